"""Multiplications of one image: as a dense network does them, and without those by zero weights.

A weight is used once for every output position (of a transposed convolution: input position), so a zero weight saves exactly its
uses. Fewer multiplications are not speed: dense kernels multiply by zeros as fast as by anything else.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from workers.models.graph import ModelGraph, layers, parameter


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
