"""Shapes and multiply-adds of a network, found without allocating anything."""

import math
from typing import Any

import torch
from torch import Tensor, fx

from workers.models.graph import BATCH, DEFAULT_SIZE, LAYER_OPERATORS, ModelGraph, TensorSpec, layers
from workers.models.shape_rules import run_on_shapes


def infer_tensors(
    graph: ModelGraph, batch: int = 1
) -> dict[str, Any]:  # Any: tensors, and numbers where sizes are computed
    """What every node returns, as tensors without data, by the name of the node."""
    return _run(graph, graph.batch_size or batch)


def infer_shapes(graph: ModelGraph, batch: int = 1) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by the name of its node. Open sizes other than the batch count as `DEFAULT_SIZE`."""
    values = infer_tensors(graph, batch)
    return {name: tuple(value.shape) for name, value in values.items() if isinstance(value, Tensor)}


def macs(graph: ModelGraph) -> dict[str, int]:
    """Multiply-adds of every layer for one image, by the layer's name; a layer used twice counts twice."""
    batch = graph.batch_size or 1
    values = infer_tensors(graph)
    nodes = {node.name: node for node in graph.module.graph.nodes}
    return {
        layer.name: sum(_node_macs(nodes[name], values) for name in layer.used_by) // batch for layer in layers(graph)
    }


def concrete_shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """The shape of an input, with numbers for what may vary."""
    return tuple(_concrete_size(size, batch) for size in spec.shape)


def multiplications_of(weights: torch.Size, m: int, output: torch.Size) -> int:
    """Multiplications of a Winograd convolution with weights [P, K, C/g] and output [N, K, OH, OW]; transforms not counted."""
    images, _, height, width = output
    return images * math.ceil(height / m) * math.ceil(width / m) * math.prod(weights)


def _concrete_size(size: int | str, batch: int) -> int:
    if isinstance(size, int):
        return size
    if size == BATCH:
        return batch
    multiple = int(size.partition("*")[0]) if "*" in size else 1
    return multiple * max(1, DEFAULT_SIZE // multiple)


def _run(graph: ModelGraph, batch: int) -> dict[str, Any]:
    inputs = [torch.empty(concrete_shape(spec, batch), dtype=spec.dtype, device="meta") for spec in graph.inputs]
    runner = _ShapeRunner(graph.module)
    runner.run(*inputs)
    return runner.values


class _ShapeRunner(fx.Interpreter):
    """Runs a graph on tensors without data and remembers what every node returned."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[str, Any] = {}  # Any: tensors, and numbers where the graph computes sizes

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.values[n.name] = result
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        found = super().get_attr(target, args, kwargs)
        assert isinstance(found, Tensor)
        return torch.empty_strided(found.shape, found.stride(), dtype=found.dtype, device="meta")

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return run_on_shapes(target, *args, **kwargs)


def _node_macs(node: fx.Node, values: dict[str, Any]) -> int:
    weight, result = values[str(node.args[1])], values[node.name]
    if LAYER_OPERATORS[node.target] == "winograd_conv2d":
        return multiplications_of(weight.shape, int(str(node.args[3])), result.shape)
    if LAYER_OPERATORS[node.target] == "conv_transpose2d":
        # Every input element meets every weight of its channel once.
        given = values[str(node.args[0])]
        return int(given.numel() * math.prod(weight.shape[1:]))
    return int(result.numel() * math.prod(weight.shape[1:]))
