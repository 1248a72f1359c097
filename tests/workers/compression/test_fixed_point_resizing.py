"""Method F on networks that resize their images bilinearly: one set of integers, whichever file computes them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.errors import RecipeRefused
from tests.workers.fixed_point import qdq_networks
from tests.workers.integer_networks import quantized
from tests.workers.networks import graph_of
from workers.compression.eligibility import why_not_in_integers
from workers.compression.fixed_point_plan import make_plan
from workers.compression.fixed_point_training import TrainingNetwork
from workers.compression.fold_batchnorm import fold_batchnorm
from workers.compression.quantize_fixed_point import FixedPointResult
from workers.fixed_point.compile_c import find_compiler, run_c
from workers.fixed_point.interpolation import Sampling
from workers.fixed_point.network import BilinearResize
from workers.fixed_point.program_graph import with_program
from workers.fixed_point.run import IntegerRunner
from workers.fixed_point.storage import load_network, save_network
from workers.fixed_point.write_c import write_c
from workers.fixed_point.write_qdq import write_qdq
from workers.models.graph import ModelGraph, aten, parameter
from workers.models.read_onnx import read_onnx
from workers.models.read_pt2 import read_pt2
from workers.models.write_onnx import write_onnx
from workers.models.write_pt2 import write_pt2

Resize = Callable[[Tensor, tuple[int, int]], Tensor]


def to_middles(x: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(x, size=size, mode="bilinear")


def to_corners(x: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)


class SmallUnet(nn.Module):
    """3x10x14 images to scores of five classes; images shrink by 0.7 first, and are halved and brought back within."""

    def __init__(self, resize: Resize) -> None:
        super().__init__()
        self.resize = resize
        self.outer = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 8, 3, padding=1)
        self.skip = nn.Conv2d(6, 8, 1)
        self.joined = nn.Conv2d(14, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, image: Tensor) -> Tensor:
        outer = torch.relu(self.outer(self.resize(image, (7, 10))))
        halved = self.resize(outer, (4, 5))
        inner = self.inner(halved) + self.skip(halved)
        joined = self.joined(torch.cat([self.resize(inner, (7, 10)), outer], 1))
        result: Tensor = self.fc(torch.relu(self.resize(joined, (14, 20))).mean((2, 3)))
        return result


class Segmentation(nn.Module):
    """A score of each class for each pixel: resizing is the last that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        return to_middles(self.second(torch.relu(self.first(image))), (10, 14))


RESIZES = {"half pixels": to_middles, "corners": to_corners}


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(24, 3, 10, 14, generator=generator) * torch.tensor([0.3, 1.0, 3.0]).reshape(3, 1, 1)


def network_of(resize: Resize, images: Tensor) -> ModelGraph:
    torch.manual_seed(5)
    return graph_of(SmallUnet(resize).eval(), images[:2])


def scores(result: FixedPointResult, images: Tensor) -> Tensor:
    """What the integers stand for, [N, K]."""
    runner = IntegerRunner(result.network)
    logits = runner.run_all(runner.quantize_input(images), keep=())[result.network.output]
    return runner.scores(logits).flatten(1).float()


@pytest.mark.parametrize("resize", RESIZES.values(), ids=RESIZES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_bits": 4, "activation_bits": 5},
        {"activation_bits": 12},
        {"activation_bits": 16, "weight_bits": 16, "align": "shift"},
        {"activation_lengths": "per_layer", "additions": "tie"},
    ],
    ids=str,
)
def test_every_file_gives_the_integers_of_the_simulation(
    resize: Resize, options: dict[str, Any], images: Tensor, tmp_path: Path
) -> None:
    network = network_of(resize, images)
    assert why_not_in_integers(network) is None
    result = quantized(network, images, **options)
    assert sum(isinstance(operation, BilinearResize) for operation in result.network.operations) == 4
    wanted = result.graph(images)[0]
    assert float(wanted.std()) > 0
    assert torch.equal(scores(result, images), wanted)

    compiler = find_compiler()
    assert compiler is not None
    write_c(result.network, tmp_path / "n.zip", name="n", example=None)
    runner = IntegerRunner(result.network)
    logits = run_c(tmp_path / "n.zip", runner.quantize_input(images).numpy(), tmp_path, compiler)
    assert torch.equal(runner.scores(torch.from_numpy(logits).long()).float(), wanted)

    write_qdq(result.network, result.graph, tmp_path / "n.onnx")
    torch.testing.assert_close(qdq_networks.run(tmp_path / "n.onnx", images), wanted, rtol=0, atol=1e-5)

    write_pt2(result.graph, tmp_path / "n.pt2", pack_zeros=False)
    assert torch.equal(read_pt2(tmp_path / "n.pt2")(images)[0], wanted)

    save_network(result.network, tmp_path / "n.npz")
    again = replace(result, network=load_network(tmp_path / "n.npz"))
    assert torch.equal(scores(again, images), wanted)


@pytest.mark.parametrize("resize", RESIZES.values(), ids=RESIZES)
def test_rounded_weights_leave_forty_decibels_of_noise(resize: Resize, images: Tensor) -> None:
    """Neighbours that have nothing to do with each other are the worst case; with 16 bits, nothing else errs as much."""
    result = quantized(network_of(resize, images), images, activation_bits=16, weight_bits=12)
    behind_first_resize = result.layers[0]
    assert behind_first_resize.layer == "outer"
    assert behind_first_resize.output_sqnr_db > 40


def test_resized_numbers_keep_the_coding_of_their_source(images: Tensor) -> None:
    network = quantized(network_of(to_corners, images), images).network
    for operation in network.operations:
        if isinstance(operation, BilinearResize):
            source, output = (network.values[name].coding for name in (operation.source, operation.output))
            assert output == source


def test_only_rounded_weights_become_matrices_in_the_simulation(images: Tensor) -> None:
    class Doubled(SmallUnet):
        def forward(self, image: Tensor) -> Tensor:
            doubled = functional.interpolate(torch.relu(self.outer(image)), scale_factor=2.0, mode="bilinear")
            result: Tensor = self.fc(functional.interpolate(doubled, size=(9, 9), mode="bilinear").mean((2, 3)))
            return result

    graph = quantized(graph_of(Doubled(to_middles).eval(), images[:2]), images).graph
    called = [node.target for node in graph.module.graph.nodes]
    assert called.count(aten.upsample_bilinear2d.vec) == 1
    assert called.count(aten.matmul.default) == 2


def test_scale_that_the_network_asks_for_is_the_one_that_is_stepped_by(images: Tensor) -> None:
    class Scaled(SmallUnet):
        def forward(self, image: Tensor) -> Tensor:
            scaled = functional.interpolate(torch.relu(self.outer(image)), scale_factor=(0.77, 1.3), mode="bilinear")
            result: Tensor = self.fc(scaled.mean((2, 3)))
            return result

    result = quantized(graph_of(Scaled(to_middles).eval(), images[:2]), images)
    (operation,) = (each for each in result.network.operations if isinstance(each, BilinearResize))
    assert operation.rows == Sampling.of(10, 7, align_corners=False, scale=0.77).taps()
    assert operation.columns == Sampling.of(14, 18, align_corners=False, scale=1.3).taps()
    assert torch.equal(scores(result, images), result.graph(images)[0])


def test_scores_of_pixels_are_resized_in_integers_too(images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(6)
    result = quantized(graph_of(Segmentation().eval(), images[:2]), images)
    wanted = result.graph(images)[0]
    assert torch.equal(scores(result, images), wanted.flatten(1))
    write_qdq(result.network, result.graph, tmp_path / "n.onnx")
    torch.testing.assert_close(qdq_networks.run(tmp_path / "n.onnx", images), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("resize", RESIZES.values(), ids=RESIZES)
def test_f10_training_network_gives_what_the_integers_give(resize: Resize, images: Tensor) -> None:
    network = network_of(resize, images)
    result = quantized(network, images)
    learning = TrainingNetwork(make_plan(fold_batchnorm(network)), result.network).made
    torch.testing.assert_close(learning(images)[0], result.graph(images)[0], rtol=1e-4, atol=1e-4)
    weight = parameter(learning, "outer.weight").requires_grad_(True)  # all resizing comes after it
    learning(images)[0].sum().backward()
    assert weight.grad is not None
    assert bool(weight.grad.any())


@pytest.mark.parametrize("resize", RESIZES.values(), ids=RESIZES)
def test_networks_from_onnx_files_have_the_same_integers(resize: Resize, images: Tensor, tmp_path: Path) -> None:
    network = network_of(resize, images)
    write_onnx(network, tmp_path / "n.onnx", pack_zeros=False)
    again = read_onnx(tmp_path / "n.onnx")
    assert torch.equal(quantized(again, images).graph(images)[0], quantized(network, images).graph(images)[0])


def test_one_operator_of_integers_is_refused_by_name(images: Tensor) -> None:
    result = quantized(network_of(to_middles, images), images)
    with pytest.raises(RecipeRefused, match=r"upsample_bilinear2d\w* resizes images bilinearly"):
        with_program(result.graph, result.network)
