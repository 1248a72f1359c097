"""Methods W and F together: pruned Winograd convolutions in integers (METHODS 6.3)."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from winograd.matrices import MATRICES

from jobs.errors import RecipeRefused
from tests.workers.integer_networks import around, quantized, recipe
from tests.workers.networks import graph_of
from workers.compression.fixed_point_places import places_of
from workers.compression.fixed_point_plan import make_plan
from workers.compression.fixed_point_statistics import Observer, observe, observed_while
from workers.compression.fixed_point_training import TrainingNetwork
from workers.compression.fixed_point_winograd import excess_of_sums
from workers.compression.fold_batchnorm import fold_batchnorm
from workers.compression.quantize_fixed_point import FixedPointResult, quantize_fixed_point
from workers.compression.winograd_layers import Mask, to_winograd, without_pruned
from workers.fixed_point.coding import Coding
from workers.fixed_point.network import Convolution, InputTransform, IntegerNetwork, OutputTransform, Value
from workers.fixed_point.run import INT32, IntegerRunner
from workers.fixed_point.tiles import input_terms, output_terms
from workers.models.graph import ModelGraph, copy_graph, layers, parameter, set_parameter


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, on images of odd sides; the second one has no bias, and no ReLU before the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 12, 3, padding=1)
        self.two = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.last = nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = torch.relu(self.two(torch.relu(self.one(x))) + x)
        result: Tensor = self.fc(torch.clamp(self.last(x), 0.0, 6.0).mean((2, 3)))
        return result


LAYERS = ("stem", "one", "two", "last")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(40, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def winograd_network(
    images: Tensor, *, pruned: int = 4, tile: int = 2, kept: Tensor | None = None, folded: bool = True
) -> ModelGraph:
    """The same positions are gone in every layer."""
    torch.manual_seed(3)
    module = Residual()
    module.train()
    with torch.no_grad():
        for _ in range(20):
            module(images)
    graph = graph_of(module.eval(), images[:2])
    converted = to_winograd(fold_batchnorm(graph) if folded else graph, dict.fromkeys(LAYERS, tile))
    if kept is None:
        kept = torch.ones(1, (tile + 2) ** 2, dtype=torch.bool)
        kept[:, torch.randperm((tile + 2) ** 2, generator=torch.Generator().manual_seed(5))[:pruned]] = False
    return without_pruned(converted, dict.fromkeys(LAYERS, Mask(kept, "output_channels")))


def agrees_exactly(result: FixedPointResult, images: Tensor) -> None:
    runner = IntegerRunner(result.network)
    scores = runner.scores(runner.run(runner.quantize_input(images)))
    torch.testing.assert_close(scores.float(), result.graph(images)[0].float(), rtol=0, atol=0)
    assert runner.executed.overflows == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"align": "shift"},
        {"align": "retune"},
        {"weight_bits": 4},
        {"weight_bits": 4, "activation_bits": 4},
        {"weight_bits": 16, "activation_bits": 16},
        {"activation_lengths": "per_layer", "weight_lengths": "per_layer"},
        {"rounding": "nearest", "correct_bias": False},
        {"bias_bits": 16},
    ],
    ids=str,
)
@pytest.mark.parametrize("pruned", [0, 4, 9])
def test_f8_winograd_integers_give_exactly_what_the_simulation_gives(
    images: Tensor, options: dict[str, Any], pruned: int
) -> None:
    result = quantized(winograd_network(images, pruned=pruned), images, **options)
    kinds = [type(operation) for operation in result.network.operations]
    assert kinds.count(InputTransform) == kinds.count(OutputTransform) == len(LAYERS)
    agrees_exactly(result, images)


def test_w8_integers_multiply_at_kept_positions_alone(images: Tensor) -> None:
    network = quantized(winograd_network(images, pruned=4), images).network
    products = {each.layer: each for each in network.convolutions}
    for layer, channels, filters in (("stem", 3, 8), ("one", 8, 12), ("two", 12, 8), ("last", 8, 6)):
        assert products[layer].groups == 12
        assert products[layer].weight.shape == (12 * filters, channels, 1, 1)
    for operation in network.operations:
        if isinstance(operation, InputTransform | OutputTransform):
            assert len(operation.positions) == 12


@pytest.mark.parametrize("pruned", [0, 4])
def test_integers_are_near_the_floating_point_network(images: Tensor, pruned: int) -> None:
    graph = winograd_network(images, pruned=pruned)
    wanted = graph(images)[0]
    errors = {}
    for bits in (6, 8, 12):
        result = quantized(graph, images, weight_bits=bits, activation_bits=bits)
        errors[bits] = float((result.graph(images)[0] - wanted).norm() / wanted.norm())
    assert errors[12] < errors[8] < errors[6]
    assert errors[8] < 0.02


def test_f4_positions_of_a_channel_have_lengths_of_their_own(images: Tensor) -> None:
    network = quantized(winograd_network(images, pruned=0), images).network
    transforms = [each for each in network.operations if isinstance(each, InputTransform)]
    assert any(
        len(set(network.values[each.output].coding.lengths[channel :: network.values[each.source].shape[0]])) > 1
        for each in transforms
        for channel in range(network.values[each.source].shape[0])
    )


def test_f5_f6_f7_hold_between_positions_and_products(images: Tensor) -> None:
    """A product's length is that of V's and U's together, and a filter's sums have the longest of its products'."""
    network = quantized(winograd_network(images), images, align="shift").network
    products = {each.output: each for each in network.convolutions}
    for transform in (each for each in network.operations if isinstance(each, OutputTransform)):
        layer, coding = products[transform.source], network.values[transform.source].coding
        assert coding.lengths == tuple(layer.lengths.tolist())
        assert not layer.out_shift.any()
        for filters in range(len(transform.bias)):
            lengths = coding.lengths[filters :: len(transform.bias)]
            assert max(lengths) == int(transform.lengths(coding)[filters])
            left = transform.left[filters :: len(transform.bias)]
            assert [max(lengths) - length for length in lengths] == list(left)


@pytest.mark.parametrize("bits", [8, 16])
def test_sums_of_products_never_leave_32_bits(images: Tensor, bits: int) -> None:
    network = quantized(winograd_network(images, pruned=0), images, weight_bits=bits, activation_bits=bits).network
    products = {each.output: each for each in network.convolutions}
    for transform in (each for each in network.operations if isinstance(each, OutputTransform)):
        layer = products[transform.source]
        bounds = layer.accumulator_bounds(network.values[layer.source].coding).tolist()
        assert max(transform.accumulator_bounds(bounds)) <= INT32


def test_lengths_that_are_too_fine_are_lowered_where_they_are_finest() -> None:
    lengths = torch.tensor([9, 7, 8, 7])  # two positions of two filters
    bounds = torch.tensor([2**30, 2**28, 2**29, 2**28])
    excess = excess_of_sums(lengths, bounds, torch.zeros(2), 32, torch.tensor([4, 4]))
    assert excess.tolist() == [1, 0, 0, 0]
    # A bias of 3.0 needs 9 + 2 bits and a sign.
    fits = excess_of_sums(lengths, bounds // 2**10, torch.tensor([3.0, 0.0]), 12, torch.tensor([4, 4]))
    tight = excess_of_sums(lengths, bounds // 2**10, torch.tensor([3.0, 0.0]), 11, torch.tensor([4, 4]))
    assert fits.tolist() == [0, 0, 0, 0]
    assert tight.tolist() == [1, 0, 0, 0]


def test_transforms_are_those_of_the_matrices() -> None:
    """By hand: rows 1 and 3 of BT are [0, 1, 1, 0] and [0, -1, 0, 1], columns 1 and 3 of AT [1, 1] and [0, 1]."""
    assert set(input_terms(4 * 1 + 3)) == {(1, 1, -1), (1, 3, 1), (2, 1, -1), (2, 3, 1)}
    assert set(output_terms(4 * 1 + 3)) == {(0, 1, 1), (1, 1, 1)}
    assert sum(len(output_terms(position)) for position in range(16)) == 36


def test_dense_tiles_of_exact_weights_are_the_direct_convolution(images: Tensor) -> None:
    """With enough bits nothing is rounded, and the transforms undo each other: integers give what the direct ones give."""
    x = torch.randint(-128, 128, (3, 5, 9, 7))
    weight = torch.randint(-8, 9, (4, 5, 3, 3))
    g = 2 * torch.tensor([[float(value) for value in row] for row in MATRICES[2].g])  # whole numbers
    u = torch.einsum("ar,kcrs,bs->abkc", g, weight.float(), g).long().reshape(16 * 4, 5, 1, 1)
    wide = (INT32,) * 4
    zeros = torch.zeros(64, dtype=torch.int64)
    values = {
        "x": Value("x", (5, 9, 7), Coding(8, True, (0,) * 5)),
        "v": Value("v", (80, 5, 4), Coding(11, True, (0,) * 80)),
        "m": Value("m", (64, 5, 4), Coding(32, True, (2,) * 64)),
        "y": Value("y", (4, 9, 7), Coding(32, True, (2,) * 4)),
    }
    operations = (
        InputTransform("x", "v", tuple(range(16)), (1, 1), (0,) * 80, (-1024,) * 80, (1023,) * 80),
        Convolution("v", "m", "layer", u, 8, zeros[:, None].expand(64, 5), zeros, 32, zeros + 2, zeros, zeros - INT32,
                    zeros + INT32, groups=16),
        OutputTransform("m", "y", tuple(range(16)), (4, 8, 0, -4), (0,) * 64, (0,) * 4, (-INT32,) * 4, wide),
    )  # fmt: skip
    found = IntegerRunner(IntegerNetwork("x", "y", values, operations)).run_all(x)["y"]
    direct = torch.nn.functional.conv2d(x, weight, torch.tensor([1, 2, 0, -1]), padding=1)
    assert torch.equal(found, 4 * direct)


def test_f10_training_network_gives_what_the_integers_give(images: Tensor) -> None:
    graph = winograd_network(images)
    result = quantized(graph, images)
    training = TrainingNetwork(make_plan(fold_batchnorm(graph)), result.network).made
    torch.testing.assert_close(training(images)[0], result.graph(images)[0], rtol=0, atol=0)


def test_f10_retraining_moves_the_weights_and_the_bias_of_transforms(images: Tensor) -> None:
    graph = winograd_network(images)

    def moved(network: ModelGraph) -> ModelGraph:
        with torch.no_grad():
            for parameter in network.module.parameters():
                parameter += 0.05
        return network

    plain = quantized(graph, images)
    surroundings = replace(around(graph, images), retrain=moved, evaluate=lambda _: 50.0)
    learned = quantize_fixed_point(graph, recipe(), surroundings, lambda *_: None)
    assert learned.training is not None
    assert learned.training.is_kept
    pairs = list(zip(plain.network.operations, learned.network.operations, strict=True))
    transforms = [(a, b) for a, b in pairs if isinstance(a, OutputTransform) and isinstance(b, OutputTransform)]
    assert any(a.bias != b.bias for a, b in transforms)
    assert all(a.left == b.left and a.out_shift == b.out_shift for a, b in transforms)
    agrees_exactly(learned, images)


def test_larger_tiles_are_refused_by_name(images: Tensor) -> None:
    with pytest.raises(RecipeRefused, match=r"stem is computed as F\(4x4, 3x3\)") as refused:
        quantized(winograd_network(images, tile=4), images)
    assert "tile" in str(refused.value.hint)


def test_positions_of_groups_are_refused_by_name(images: Tensor) -> None:
    kept = torch.ones(2, 16, dtype=torch.bool)
    kept[0, 3] = kept[1, 12] = False
    with pytest.raises(RecipeRefused, match="stem is a Winograd convolution of several groups"):
        quantized(winograd_network(images, kept=kept), images)


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "with its batch norm"])
def test_f2_distributions_of_tiles_are_measured_while_training(images: Tensor, folded: bool) -> None:
    graph = winograd_network(images, folded=folded)
    plan = make_plan(fold_batchnorm(graph))
    passes = []

    def train(watched: ModelGraph) -> ModelGraph:
        learned = copy_graph(watched)
        for batch in (images[:16], images[16:]):
            learned.module(batch)
            passes.append(len(batch))
        name = layers(learned)[1].weight
        set_parameter(learned, name, parameter(learned, name) * 1.5)
        return learned

    observer = Observer(plan.coded)
    learned = observed_while(train, graph, observer, places_of(plan))

    wanted = Observer(plan.coded)
    observe(plan.graph, [images[:16], images[16:]], wanted.see, wanted.names)
    assert observer.found.keys() == wanted.found.keys() == set(plan.coded)
    assert sum(each.kind == "input_transform" for each in plan.operations) == len(LAYERS)
    for name, found in observer.found.items():
        assert found.count == wanted.found[name].count
        torch.testing.assert_close(found.rms, wanted.found[name].rms, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.max_abs, wanted.found[name].max_abs, rtol=1e-4, atol=1e-5)
    name = layers(graph)[1].weight
    torch.testing.assert_close(parameter(learned, name), parameter(graph, name) * 1.5)

    surroundings = replace(around(graph, images), pretrain=train)
    step = recipe(statistics="training", pretraining={"epochs": 1}, rule="pdf_sqnr")
    result = quantize_fixed_point(graph, step, surroundings, lambda *_: None)
    assert passes == [16, 24] * 2
    assert result.calibration_images == 0  # no distribution was measured on any
    assert result.profile.keys() == set(plan.coded)
    agrees_exactly(result, images)
