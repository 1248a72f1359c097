"""Bytes and multiplications, counted by hand on a tiny network."""

import os
import zlib
from pathlib import Path

import torch
from torch import fx, nn

from workers.measurement.operations import count_operations
from workers.measurement.size import bitmap_bytes, csr_bytes, file_size, totals
from workers.models.graph import ModelGraph, TensorSpec, aten

# conv (4, 2, 3, 3) on 6 x 6 without padding: 16 output positions; 72 weights; linear (5, 64).
MACS = {"conv": 72 * 16, "fc": 320}


def tiny_network() -> ModelGraph:
    root = nn.Module()
    root.conv, root.fc = nn.Module(), nn.Module()
    root.conv.weight = nn.Parameter(torch.ones(4, 2, 3, 3))
    root.fc.weight = nn.Parameter(torch.ones(5, 64))
    root.fc.bias = nn.Parameter(torch.ones(5))
    with torch.no_grad():
        root.conv.weight[0] = 0  # 18 zeros
        root.fc.weight[:, :40] = 0  # 200 zeros
    graph = fx.Graph()
    image = graph.placeholder("image")
    conv = graph.call_function(
        aten.conv2d.default, (image, graph.get_attr("conv.weight"), None, [1, 1], [0, 0], [1, 1], 1)
    )
    flat = graph.call_function(aten.reshape.default, (conv, [-1, 64]))
    graph.output(
        (graph.call_function(aten.linear.default, (flat, graph.get_attr("fc.weight"), graph.get_attr("fc.bias"))),)
    )
    return ModelGraph(
        fx.GraphModule(root, graph),
        (TensorSpec("image", torch.float32, ("N", 2, 6, 6)),),
        (TensorSpec("scores", torch.float32, ("N", 5)),),
        None,
    )


def test_zero_weight_saves_exactly_its_uses() -> None:
    counts = count_operations(tiny_network(), MACS)
    assert (counts["conv"].dense, counts["conv"].effective) == (1152, 54 * 16)
    assert (counts["fc"].dense, counts["fc"].effective) == (320, 120)


def test_totals_count_every_parameter_and_sparse_weights_only_where_they_are() -> None:
    found = totals(tiny_network(), MACS)
    assert (found.parameters, found.nonzeros) == (72 + 320 + 5, 54 + 120 + 5)
    assert found.weight_bits == 32 * 392
    assert (found.multiplications, found.effective_multiplications) == (1472, 54 * 16 + 120)
    assert found.dense_bytes == 4 * 397
    assert found.bitmap_bytes == (9 + 54 * 4) + (40 + 120 * 4) + 20
    # One byte an index: rows have 18 and 64 entries. Row starts: 5 and 6 of 4 bytes.
    assert found.csr_bytes == (54 * 5 + 20) + (120 * 5 + 24) + 20


def test_sparse_bytes_follow_the_width_of_values_and_rows() -> None:
    weight = torch.zeros(2, 300, dtype=torch.float16)
    weight[0, :7] = 1
    assert bitmap_bytes(weight) == 75 + 14
    assert csr_bytes(weight) == 7 * (2 + 2) + 12


def test_file_size_is_measured_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = bytes(3_000_000) + os.urandom(1000)
    path.write_bytes(content)
    found = file_size(path)
    assert found.bytes == 3_001_000
    assert found.deflated_bytes == len(zlib.compress(content, 6, -15))
