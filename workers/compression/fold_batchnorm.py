"""Folds batch normalisation into the convolution or linear layer before it, exact up to rounding."""

import torch
from torch import Tensor, fx, nn

from workers.models.graph import (
    BIAS,
    LAYER_OPERATORS,
    ModelGraph,
    aten,
    copy_graph,
    drop_unread_parameters,
    parameter,
    set_parameter,
    winograd_conv2d,
)


def fold_batchnorm(graph: ModelGraph) -> ModelGraph:
    """A copy in which every batch normalisation that can be folded is gone.

    It can where it alone reads the output of a layer whose weights nobody else reads: then
    `gamma * (w x + b - mean) / sqrt(var + eps) + beta` is that layer with other weights and another bias.
    """
    folded = copy_graph(graph)
    ranks = _ranks(folded)
    for norm in list(folded.module.graph.nodes):
        if norm.target is aten.batch_norm.default and _can_take(norm.args[0], ranks):
            _fold(folded, norm.args[0], norm)
    drop_unread_parameters(folded.module)
    folded.module.recompile()
    return folded


def _can_take(layer: fx.Node, ranks: dict[str, int]) -> bool:
    if layer.target not in LAYER_OPERATORS or len(layer.users) != 1:
        return False
    # Over more than two dimensions, a linear layer's outputs are not the channels that are normalised.
    if layer.target is aten.linear.default and ranks.get(layer.name) != 2:
        return False
    weight = layer.args[1]
    return isinstance(weight, fx.Node) and weight.op == "get_attr" and readers(weight) == 1


def _fold(graph: ModelGraph, layer: fx.Node, norm: fx.Node) -> None:
    _, gamma, beta, mean, variance, _, _, eps, _ = norm.args
    weight, bias = _value(graph, layer.args[1]), _value(graph, layer.args[_bias(layer)])
    assert weight is not None
    mean_value, variance_value = _value(graph, mean), _value(graph, variance)
    assert mean_value is not None
    assert variance_value is not None
    # In double precision, so that only the last rounding remains.
    scale = (variance_value.double() + float(str(eps))).rsqrt() * _or(_value(graph, gamma), 1.0)  # (K,)
    shift = _or(_value(graph, beta), 0.0) + (_or(bias, 0.0) - mean_value.double()) * scale  # (K,)

    weight_name = str(layer.args[1].target) if isinstance(layer.args[1], fx.Node) else ""
    set_parameter(graph, weight_name, (weight.double() * per_output(scale, layer, weight)).to(weight.dtype))
    old_bias = layer.args[_bias(layer)]
    if isinstance(old_bias, fx.Node) and readers(old_bias) == 1:
        set_parameter(graph, str(old_bias.target), shift.to(weight.dtype))
    else:
        _give_bias(graph.module, layer, weight_name, shift.to(weight.dtype))
    norm.replace_all_uses_with(layer)
    graph.module.graph.erase_node(norm)


def _give_bias(module: fx.GraphModule, layer: fx.Node, weight_name: str, bias: Tensor) -> None:
    bias_name = free_bias_name(module, weight_name)
    owner, _, leaf = bias_name.rpartition(".")
    module.get_submodule(owner).register_parameter(leaf, nn.Parameter(bias, requires_grad=False))
    with module.graph.inserting_before(layer):
        layer.update_arg(_bias(layer), module.graph.get_attr(bias_name))


def per_output(scale: Tensor, layer: fx.Node, weight: Tensor) -> Tensor:
    """`scale` (K,) in a shape that multiplies each output channel's weights."""
    if layer.target is winograd_conv2d:
        return scale.reshape(1, -1, 1)  # weights [P, K, C/g]: the transform is linear
    if layer.target is not aten.conv_transpose2d.input:
        return scale.reshape(-1, *[1] * (weight.dim() - 1))
    # (C, K/g, R, S): input channels of group 0 first, and each group has outputs of its own.
    groups = int(str(layer.args[6]))
    of_group = scale.reshape(groups, weight.shape[1])  # (g, K/g)
    return of_group.repeat_interleave(weight.shape[0] // groups, dim=0)[:, :, None, None]


def _bias(layer: fx.Node) -> int:
    return BIAS[LAYER_OPERATORS[layer.target]]


def _value(graph: ModelGraph, node: object) -> Tensor | None:
    return parameter(graph, str(node.target)).detach() if isinstance(node, fx.Node) else None


def _or(value: Tensor | None, default: float) -> Tensor | float:
    return default if value is None else value.double()


def readers(attribute: fx.Node) -> int:
    """How many nodes read a parameter, by whichever `get_attr`."""
    return sum(
        len(node.users) for node in attribute.graph.nodes if node.op == "get_attr" and node.target == attribute.target
    )


def free_bias_name(module: nn.Module, weight: str) -> str:
    """What to call the bias of a layer that has none, by the name of its weights."""
    taken = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    name = f"{weight.removesuffix('.weight')}.bias" if weight.endswith(".weight") else f"{weight}_bias"
    while name in taken:
        name += "_folded"
    return name


def _ranks(graph: ModelGraph) -> dict[str, int]:
    """Dimensions of every node's value by node name, from a run on shapes alone; empty if an image may have any size."""
    if any(isinstance(side, str) for spec in graph.inputs for side in spec.shape[1:]):
        return {}
    found: dict[str, int] = {}
    shapes = copy_graph(graph).module.to("meta")
    inputs = [
        torch.empty([2 if isinstance(side, str) else side for side in spec.shape], dtype=spec.dtype, device="meta")
        for spec in graph.inputs
    ]

    class _Ranks(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            value = super().run_node(node)
            if isinstance(value, Tensor):
                found[node.name] = value.dim()
            return value

    _Ranks(shapes).run(*inputs)
    return found
