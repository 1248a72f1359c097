"""Shapes and multiply-adds are found without allocating or computing anything."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.workers.networks import graph_of, small_cnn
from workers.models.read_pt2 import read_pt2
from workers.models.shapes import infer_shapes, macs


def image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_shapes_are_those_of_a_run() -> None:
    graph = graph_of(small_cnn(), image(2, 1, 8, 8))
    seen: dict[str, tuple[int, ...]] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                seen[n.name] = tuple(result.shape)
            return result

    Recorder(graph.module).run(image(3, 1, 8, 8))
    assert infer_shapes(graph, batch=3) == seen


def test_macs_count_every_multiplication_for_one_image() -> None:
    counted = macs(graph_of(small_cnn(), image(2, 1, 8, 8)))
    assert counted == {"conv1": 8 * 1 * 9 * 64, "conv2": 8 * 8 * 9 * 64, "fc": 128 * 10}


def test_macs_know_groups_strides_and_transposed_convolutions() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, groups=2, bias=False), nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
    )
    # 8x8 → 3x3: 8 channels of 2 inputs by 9 weights; back to 6x6: 8 inputs, each meeting 3 outputs by 4 weights, at 9 places.
    assert macs(graph_of(network, image(2, 4, 8, 8))) == {"0": 8 * 2 * 9 * 9, "1": 8 * 9 * 3 * 4}


def test_a_layer_that_runs_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))  # type: ignore[no-any-return]

    assert macs(graph_of(Twice(), image(2, 4, 5, 5))) == {"conv": 2 * 16 * 25}


def test_open_image_sizes_count_as_224(tmp_path: Path) -> None:
    network = nn.Conv2d(3, 2, 1)
    program = torch.export.export(
        network, (image(2, 3, 8, 12),), dynamic_shapes=({0: Dim("n"), 2: Dim("h"), 3: Dim("w")},)
    )
    torch.export.save(program, tmp_path / "n.pt2")
    assert list(macs(read_pt2(tmp_path / "n.pt2")).values()) == [3 * 2 * 224 * 224]


def test_a_large_batch_costs_no_memory() -> None:
    shapes = infer_shapes(graph_of(small_cnn(), image(2, 1, 8, 8)), batch=10**9)
    assert shapes["conv2d"] == (10**9, 8, 8, 8)
