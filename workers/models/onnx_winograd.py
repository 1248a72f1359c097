"""Winograd convolutions in ONNX: calls of functions in a domain of our own, whose bodies are standard operators.

Any runtime that knows functions inlines the bodies and needs to know nothing else; one with code of its own for Winograd
convolutions finds all that it must know in the attributes of the call: m, positions, padding and groups, as `winograd.conv2d`
takes them. Convolutions that differ in nothing but their weights call the same function, WinogradConv2d_1, _2 and so on, with
the inputs image, weights and, if it has one, bias.
"""

from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import helper
from torch import fx, nn

from workers.models.graph import BATCH, ModelGraph, TensorSpec, winograd_conv2d
from workers.models.lower_winograd import lower_winograd
from workers.models.onnx_emitter import OnnxEmitter
from workers.models.onnx_operators import emit_node
from workers.models.shapes import infer_tensors

DOMAIN = "ai.winnow"
DOMAIN_VERSION = 1
NAME = "WinogradConv2d"


@dataclass(frozen=True)
class _Configuration:
    """All that a function is made for; the weights are its input."""

    m: int
    positions: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int
    image_shape: tuple[int | str, ...]
    weights_shape: tuple[int, ...]
    dtype: torch.dtype
    has_bias: bool

    def attributes(self) -> dict[str, int | list[int]]:
        return {"m": self.m, "positions": list(self.positions), "padding": list(self.padding), "groups": self.groups}


class WinogradFunctions:
    """The functions that a model needs, made as calls of them are added. `opset` is that of the standard operators."""

    def __init__(self, *, opset: int, sizes_are_open: bool) -> None:
        self._opset = opset
        self._sizes_are_open = sizes_are_open
        self._functions: dict[_Configuration, onnx.FunctionProto] = {}

    @property
    def protos(self) -> list[onnx.FunctionProto]:
        return list(self._functions.values())

    def call(self, emitter: OnnxEmitter, node: fx.Node) -> None:
        """Add a call that computes what `node`, a Winograd convolution, does."""
        configuration = self._configuration(emitter, node)
        if configuration not in self._functions:
            name = f"{NAME}_{len(self._functions) + 1}"
            self._functions[configuration] = _function(name, configuration, self._opset)
        image, weights, bias = node.args[0], node.args[1], node.args[5]
        names = [emitter.name_of(value) for value in (image, weights, bias) if isinstance(value, fx.Node)]
        name = self._functions[configuration].name
        emitter.finish(node, name, names, domain=DOMAIN, **configuration.attributes())

    def _configuration(self, emitter: OnnxEmitter, node: fx.Node) -> _Configuration:
        given: Any = node.args  # as `winograd.conv2d` takes them
        image, weights, positions, m, padding, bias, _, _, groups = given
        _, channels, height, width = emitter.shape(image)
        sides: tuple[int | str, int | str] = ("height", "width") if self._sizes_are_open else (height, width)
        return _Configuration(
            m=m,
            positions=tuple(positions),
            padding=(padding[0], padding[-1]),
            groups=groups,
            image_shape=(BATCH, channels, *sides),
            weights_shape=emitter.shape(weights),
            dtype=emitter.dtype(weights),
            has_bias=bias is not None,
        )


def _function(name: str, configuration: _Configuration, opset: int) -> onnx.FunctionProto:
    network = lower_winograd(_network_of(configuration))
    emitter = OnnxEmitter(infer_tensors(network))
    inputs, output = [spec.name for spec in network.inputs], network.outputs[0].name
    for taken in (*inputs, output):
        emitter.reserve(taken)
    names = iter(inputs)
    result = network.module.graph.output_node().all_input_nodes[0]
    emitter.call(result, output)
    for node in network.module.graph.nodes:
        if node.op == "placeholder":
            emitter.bind(node, next(names))
        elif node.op == "get_attr":
            emitter.parameter(node, str(node.target), network.module.get_buffer(str(node.target)))
        elif node.op == "call_function":
            emit_node(emitter, node)
    constants = [
        helper.make_node("Constant", [], [tensor], name=tensor, value=emitter.tensor_proto(tensor))
        for tensor in emitter.used_tensors()
    ]
    return helper.make_function(
        DOMAIN, name, inputs, [output], [*constants, *emitter.nodes], [helper.make_opsetid("", opset)],
        attributes=list(configuration.attributes()), doc_string=_description(configuration),
    )  # fmt: skip


def _description(configuration: _Configuration) -> str:
    m, kept = configuration.m, configuration.weights_shape[0]
    return (
        f"A 3x3 convolution as Winograd F({m}x{m}, 3x3), in which {kept} of {(m + 2) ** 2} positions are computed: "
        f"weights [{kept}, filters, channels of a group] of the Winograd domain."
    )


def _network_of(configuration: _Configuration) -> ModelGraph:
    """A network that takes its weights as inputs and consists of the one convolution."""
    weights = TensorSpec("weights", configuration.dtype, configuration.weights_shape)
    bias = TensorSpec("bias", configuration.dtype, configuration.weights_shape[1:2])
    image = TensorSpec("image", configuration.dtype, configuration.image_shape)
    inputs = (image, weights, bias) if configuration.has_bias else (image, weights)
    graph = fx.Graph()
    nodes = [graph.placeholder(spec.name) for spec in inputs]
    args: tuple[Any, ...] = (  # fx's arguments
        *nodes[:2], list(configuration.positions), configuration.m, list(configuration.padding),
        nodes[2] if configuration.has_bias else None, None, "none", configuration.groups,
    )  # fmt: skip
    graph.output((graph.call_function(winograd_conv2d, args),))
    shape: tuple[int | str, ...] = (BATCH, configuration.weights_shape[1], "rows", "columns")
    module = fx.GraphModule(nn.Module(), graph, class_name=NAME)
    return ModelGraph(module, inputs, (TensorSpec("output", configuration.dtype, shape),), batch_size=None)
