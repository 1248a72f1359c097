"""Multiplications of one image: as a dense network does them, and without those by zero weights.

A weight is used once for every output position (of a transposed convolution: input position), so a zero weight saves exactly its
uses. Fewer multiplications are not speed: dense kernels multiply by zeros as fast as by anything else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from workers.models.graph import ModelGraph, layers, parameter, winograd_conv2d


@dataclass(frozen=True)
class OperationCount:
    dense: int
    effective: int


def count_operations(graph: ModelGraph, macs: Mapping[str, int]) -> dict[str, OperationCount]:
    """By layer name. `macs` gives each layer's multiply-adds for one image, which its shape alone decides."""
    counts = {}
    for layer in layers(graph):
        weight = parameter(graph, layer.weight)
        uses, rest = divmod(macs[layer.name], weight.numel())
        assert rest == 0, f"{layer.name}: every weight is used equally often"
        counts[layer.name] = OperationCount(macs[layer.name], uses * int(weight.count_nonzero()))
    return counts


def winograd_gemms(graph: ModelGraph) -> int:
    """Matrix multiplications that the Winograd convolutions of the network take in one run, whatever the batch (W-8)."""
    return sum(_gemms(graph, node) for node in graph.module.graph.nodes if node.target is winograd_conv2d)


def _gemms(graph: ModelGraph, node: fx.Node) -> int:
    """One for each kept position, and group of the convolution or run of filters with positions of its own, whichever are
    more."""
    given: Any = node.args  # as `winograd.conv2d` takes them
    _, weights, positions, _, _, _, _, _, groups = given
    kept = parameter(graph, str(weights.target)).shape[0]
    return int(kept * max(groups, len(positions) // kept))
