"""Cross-layer equalisation (Nagel et al. 2019): channels between two layers scaled so that both layers' weights need one range.

    w1[i] / s_i, b1[i] / s_i     and     w2[:, i] * s_i     with s_i = sqrt(max |w1[i]| / max |w2[:, i]|), rounded to a power of two

What is between the layers must pass positive factors on, as ReLU and pooling do. Powers of two leave the network as it was to the
last bit. Where every channel has a fractional length of its own and weights are tuned to it, integers stay as they were too:
lengths take up what was moved. One length for a whole tensor gains, and weights that are shifted to meet (`align: shift`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from workers.compression.fold_batchnorm import per_output, readers
from workers.fixed_point.coding import exp2
from workers.models.graph import (
    BIAS,
    LAYER_OPERATORS,
    ModelGraph,
    aten,
    copy_graph,
    parameter,
    set_parameter,
    winograd_conv2d,
)

_MOST_PASSES = 20
_LAYERS = frozenset({aten.conv2d.default, aten.linear.default, winograd_conv2d})
_HOMOGENEOUS = frozenset(
    {
        aten.relu.default, aten.leaky_relu.default, aten.max_pool2d.default, aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default,
    }
)  # fmt: skip


@dataclass(frozen=True)
class _Pair:
    """Two layers of which the second alone reads what the first makes."""

    first: fx.Node
    second: fx.Node


def equalise_layers(graph: ModelGraph) -> ModelGraph:
    """A copy of a network with folded batch norms that computes the same, with weights of more even ranges."""
    equalised = copy_graph(graph)
    pairs = list(_pairs(equalised))
    for _ in range(_MOST_PASSES):
        # Each pair changes the ranges of its neighbours', until none moves by a factor of two any longer.
        changed = [_equalise(equalised, pair) for pair in pairs]
        if not any(changed):
            break
    return equalised


def _pairs(graph: ModelGraph) -> Iterator[_Pair]:
    for first in graph.module.graph.nodes:
        if first.target in _LAYERS and _owns_weights(first):
            node = first
            while len(node.users) == 1:
                (node,) = node.users
                if node.target not in _HOMOGENEOUS:
                    break
            if node is not first and node.target in _LAYERS and _owns_weights(node) and _is_same_kind(first, node):
                yield _Pair(first, node)


def _owns_weights(layer: fx.Node) -> bool:
    """Whether its weights and bias are stored, and nobody else reads them."""
    stored = (layer.args[1], layer.args[BIAS[LAYER_OPERATORS[layer.target]]])
    return all(
        each is None or (isinstance(each, fx.Node) and each.op == "get_attr" and readers(each) == 1) for each in stored
    )


def _is_same_kind(first: fx.Node, second: fx.Node) -> bool:
    """A linear layer after a convolution reads pixels, not channels."""
    return (first.target is aten.linear.default) == (second.target is aten.linear.default)


def _equalise(graph: ModelGraph, pair: _Pair) -> bool:
    """Scale the channels between two layers; whether anything changed."""
    first, second = (_weight(graph, layer) for layer in (pair.first, pair.second))
    given, read = _largest_by_output(first, pair.first), _largest_by_input(second, pair.second)
    power = torch.where((given > 0) & (read > 0), (given / read.clamp_min(1e-30)).clamp_min(1e-30).log2() / 2, 0.0)
    power = power.round().long()
    if not bool(power.any()):
        return False
    scale = exp2(power)
    set_parameter(graph, _name(pair.first, 1), (first * per_output(1 / scale, pair.first, first)).to(first.dtype))
    place = BIAS[LAYER_OPERATORS[pair.first.target]]
    if pair.first.args[place] is not None:
        bias = parameter(graph, _name(pair.first, place)).detach()
        set_parameter(graph, _name(pair.first, place), (bias / scale).to(bias.dtype))
    set_parameter(graph, _name(pair.second, 1), (second * _per_input(scale, pair.second, second)).to(second.dtype))
    return True


def _largest_by_output(weight: Tensor, layer: fx.Node) -> Tensor:
    if layer.target is winograd_conv2d:
        weight = weight.transpose(0, 1)  # [P, K, C/g]
    return weight.abs().flatten(1).amax(1).double()


def _largest_by_input(weight: Tensor, layer: fx.Node) -> Tensor:
    """[C], over all outputs that read a channel."""
    if layer.target is winograd_conv2d:
        weight = weight.permute(1, 2, 0)
    groups = _groups(layer)
    rows = weight.abs().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return rows.amax((1, 3)).flatten().double()


def _per_input(scale: Tensor, layer: fx.Node, weight: Tensor) -> Tensor:
    """`scale` [C] in a shape that multiplies what each channel is multiplied by."""
    if layer.target is winograd_conv2d:
        per_group = scale.reshape(_groups(layer), -1)
        return per_group.repeat_interleave(weight.shape[1] // len(per_group), dim=0)
    per_group = scale.reshape(_groups(layer), -1)
    rows = per_group.repeat_interleave(weight.shape[0] // len(per_group), dim=0)
    return rows.reshape(*rows.shape, *[1] * (weight.dim() - 2))


def _groups(layer: fx.Node) -> int:
    if layer.target is aten.linear.default:
        return 1
    return int(str(layer.args[8 if layer.target is winograd_conv2d else 6]))


def _weight(graph: ModelGraph, layer: fx.Node) -> Tensor:
    return parameter(graph, _name(layer, 1)).detach()


def _name(layer: fx.Node, place: int) -> str:
    stored = layer.args[place]
    assert isinstance(stored, fx.Node)
    return str(stored.target)
