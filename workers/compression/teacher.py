"""What a network that only teaches answers, computed as fast as it can be: it answers every image of every epoch."""

from collections.abc import Callable

from torch import Tensor

import winograd
from workers.compression.winograd_layers import to_winograd, why_not_winograd
from workers.models.graph import ModelGraph, layers, parameter
from workers.models.write_pt2 import exported

WORTH_PREPARING = 5_000  # images; preparing takes a second or a few
TILE = 4  # whose rounding is next to that of direct convolution


def answers_of(graph: ModelGraph, images: int) -> Callable[[Tensor], Tensor]:
    """The network's first output for a batch, computed where its weights are; `images` will be asked for in all.

    On the CPU, and for enough images, its 3x3 convolutions become Winograd ones and the whole one call of compiled code, where
    winograd can (`winograd.prepare`): the same numbers, up to rounding.
    """

    def as_it_is(batch: Tensor) -> Tensor:
        return graph(batch)[0]

    on_cpu = all(tensor.device.type == "cpu" for tensor in graph.module.state_dict().values())
    if images < WORTH_PREPARING or not on_cpu or len(graph.outputs) > 1:
        return as_it_is
    tiles = {
        layer.name: TILE
        for layer in layers(graph)
        if why_not_winograd(layer, parameter(graph, layer.weight).dtype) is None
    }
    prepared = winograd.prepare(exported(to_winograd(graph, tiles)).module())
    return prepared if prepared.in_one_call else as_it_is
