"""3x3 convolutions of a network as Winograd convolutions, and what is left of them when positions are pruned.

While a network is pruned, all t*t positions stay and pruned ones are zero: `Mask` says which. `without_pruned` then takes them
out, so that neither their weights nor their multiplications exist any longer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from winograd.matrices import MATRICES

import winograd
from workers.models.graph import Layer, ModelGraph, aten, copy_graph, layers, parameter, set_parameter
from workers.models.shapes import infer_shapes

GroupBy = Literal["output_channels", "input_channels"]

_WEIGHTS, _POSITIONS = 1, 2  # among the arguments of winograd.conv2d


def why_not_winograd(layer: Layer, dtype: torch.dtype) -> str | None:
    """The reason why a layer can't be computed in the Winograd domain, or None (W-1; METHODS 2.6 says what could be)."""
    if layer.kind == "winograd_conv2d":
        return "it is a Winograd convolution already"
    if layer.kind != "conv2d":
        return f"it is a {layer.kind} layer; only convolutions have a Winograd form"
    size = "x".join(str(side) for side in layer.weight_shape[2:])
    if layer.weight_shape[2:] != (3, 3):
        return f"its filters are {size}; only 3x3 filters gain from a Winograd form here"
    if layer.stride != (1, 1):
        return f"its stride is {layer.stride[0]}x{layer.stride[1]}; only stride 1 has a Winograd form here"
    if layer.dilation != (1, 1):
        return f"its dilation is {layer.dilation[0]}x{layer.dilation[1]}; only dilation 1 has a Winograd form here"
    if dtype != torch.float32:
        return f"its weights are {str(dtype).removeprefix('torch.')}; Winograd convolutions are pruned in float32"
    if layer.weight_shape[1] == 1:
        return "each of its filters reads one channel, so that transforms would take longer than what they save"
    return None


def output_sides(graph: ModelGraph) -> dict[str, tuple[int, int]]:
    """Height and width of the output of every convolution, by layer; of its largest use, where it has several."""
    shapes = infer_shapes(graph)
    sides = {}
    for layer in layers(graph):
        if layer.kind != "linear":
            largest = max((shapes[name] for name in layer.used_by), key=lambda shape: shape[2] * shape[3])
            sides[layer.name] = (largest[2], largest[3])
    return sides


@dataclass(frozen=True)
class Mask:
    """Which positions a layer keeps: `kept` [groups, t*t] says so for each of the equal runs of channels (W-3, W-10)."""

    kept: Tensor
    group_by: GroupBy

    @classmethod
    def whole(cls, m: int, groups: int, group_by: GroupBy) -> "Mask":
        return cls(torch.ones(groups, MATRICES[m].t ** 2, dtype=torch.bool), group_by)

    @property
    def groups(self) -> int:
        return self.kept.shape[0]

    def share(self) -> float:
        """Part of the positions that is kept."""
        return float(self.kept.double().mean())

    def positions(self) -> list[list[int]]:
        """The kept positions of each group, ascending."""
        return [group.nonzero().flatten().tolist() for group in self.kept]

    def pruned(self) -> list[list[int]]:
        """The pruned positions of each group, ascending: the index of the patent."""
        return [(~group).nonzero().flatten().tolist() for group in self.kept]

    def chunks(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Weights [t*t, K, C/g] by group, each a view."""
        return weights.chunk(self.groups, dim=1 if self.group_by == "output_channels" else 2)

    def apply(self, weights: Tensor) -> Tensor:
        """A copy of weights [t*t, K, C/g] with exact zeros at pruned positions, for every kernel of a group (W-6)."""
        masked = weights.clone()
        for chunk, kept in zip(self.chunks(masked), self.kept, strict=True):
            chunk[~kept] = 0.0
        return masked


def to_winograd(graph: ModelGraph, tiles: Mapping[str, int]) -> ModelGraph:
    """A copy in which each layer named in `tiles` is computed as F(m x m, 3x3) with that m, at all positions."""
    converted = copy_graph(graph)
    nodes = {node.name: node for node in converted.module.graph.nodes}
    for layer in layers(graph):
        m = tiles.get(layer.name)
        if m is None:
            continue
        positions = list(range(MATRICES[m].t ** 2))
        filters = parameter(graph, layer.weight).detach()
        set_parameter(converted, layer.weight, transformed(filters, m))
        for name in layer.used_by:
            node = nodes[name]
            image, weights, bias, _, padding, _, groups = node.args
            node.target = torch.ops.winograd.conv2d.default
            node.args = (image, weights, positions, m, _pair(padding), bias, None, "none", groups)
    converted.module.recompile()
    return converted


def transformed(filters: Tensor, m: int) -> Tensor:
    """Filters [K, C/g, 3, 3] in the Winograd domain, [t*t, K, C/g]; computed in float64 and rounded once."""
    return winograd.transform_filters(filters.double(), range(MATRICES[m].t ** 2), m).to(filters.dtype)


def without_pruned(graph: ModelGraph, masks: Mapping[str, Mask]) -> ModelGraph:
    """A copy of a network with all positions, in which pruned ones are gone: what is left is all that is computed (W-8).

    Groups of input channels become convolutions of their own, whose outputs are added up.
    """
    smaller = copy_graph(graph)
    nodes = {node.name: node for node in smaller.module.graph.nodes}
    for layer in layers(graph):
        mask = masks.get(layer.name)
        if mask is None:
            continue
        weights = parameter(graph, layer.weight).detach()
        kept = [chunk[group] for chunk, group in zip(mask.chunks(weights), mask.kept, strict=True)]
        for name in layer.used_by:
            if mask.group_by == "output_channels" or mask.groups == 1:
                set_parameter(smaller, layer.weight, torch.cat(kept, dim=1))
                nodes[name].update_arg(_POSITIONS, [p for group in mask.positions() for p in group])
            else:
                _split_by_input(smaller, layer, nodes[name], kept, mask.positions())
    smaller.module.recompile()
    return smaller


def with_pruned(smaller: ModelGraph, graph: ModelGraph, masks: Mapping[str, Mask]) -> ModelGraph:
    """The reverse of `without_pruned` after training: `graph` with all weights of `smaller`, and zeros at pruned positions."""
    whole = copy_graph(graph)
    known = {name for name, _ in (*whole.module.named_parameters(), *whole.module.named_buffers())}
    masked = {layer.weight: layer for layer in layers(graph) if layer.name in masks}
    for name in sorted(known):
        if name not in masked:
            set_parameter(whole, name, parameter(smaller, name).detach().clone())
            continue
        mask = masks[masked[name].name]
        weights = torch.zeros_like(parameter(graph, name).detach())
        trained = _trained_groups(smaller, name, mask)
        for chunk, kept, values in zip(mask.chunks(weights), mask.kept, trained, strict=True):
            chunk[kept] = values
        set_parameter(whole, name, weights)
    return whole


def _trained_groups(smaller: ModelGraph, weight: str, mask: Mask) -> list[Tensor]:
    if mask.group_by == "output_channels" or mask.groups == 1:
        return list(parameter(smaller, weight).detach().chunk(mask.groups, dim=1))
    return [parameter(smaller, _name_of_group(weight, group)).detach() for group in range(mask.groups)]


def _split_by_input(
    graph: ModelGraph, layer: Layer, node: fx.Node, kept: list[Tensor], positions: list[list[int]]
) -> None:
    image, _, _, m, padding, bias, residual, activation, groups = node.args
    channels = kept[0].shape[2]
    fx_graph = node.graph
    total: fx.Node | None = None
    with fx_graph.inserting_before(node):
        for group, (weights, where) in enumerate(zip(kept, positions, strict=True)):
            name = _name_of_group(layer.weight, group)
            _register(graph.module, name, weights)
            part = fx_graph.call_function(aten.slice.Tensor, (image, 1, group * channels, (group + 1) * channels, 1))
            own_bias: Any = bias if group == 0 else None  # fx's arguments
            args = (part, fx_graph.get_attr(name), where, m, padding, own_bias, residual, activation, groups)
            output = fx_graph.call_function(torch.ops.winograd.conv2d.default, args)
            total = output if total is None else fx_graph.call_function(aten.add.Tensor, (total, output))
    assert total is not None
    node.replace_all_uses_with(total)
    fx_graph.erase_node(node)
    attribute = layer.weight
    for reader in [n for n in fx_graph.nodes if n.op == "get_attr" and n.target == attribute and not n.users]:
        fx_graph.erase_node(reader)


def _name_of_group(weight: str, group: int) -> str:
    """The weights of the first group keep their name."""
    owner, _, leaf = weight.rpartition(".")
    prefix = f"{owner}." if owner else ""
    return weight if group == 0 else f"{prefix}input_group_{group}_{leaf}"


def _register(module: fx.GraphModule, name: str, value: Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    owner._parameters[leaf] = nn.Parameter(value.clone(), requires_grad=False)


def _pair(value: Any) -> list[int]:  # fx's arguments
    return [int(value[0]), int(value[-1])] if isinstance(value, (list, tuple)) else [int(value), int(value)]
