"""Writes the canonical graph as an `.onnx` file that plain ONNX Runtime runs.

Opset 18 is the oldest that has all we emit in one form (reductions and padding with axes as inputs, bitwise operators), and
IR version 8 came with it, so every ONNX Runtime from 1.14 on takes the file.
"""

from pathlib import Path

import onnx
from onnx import helper
from torch import fx

from workers.models.graph import ModelGraph, TensorSpec, parameter, winograd_conv2d
from workers.models.lower_winograd import has_open_sizes
from workers.models.onnx_emitter import ELEMENT_TYPES, OnnxEmitter
from workers.models.onnx_operators import emit_node
from workers.models.onnx_winograd import DOMAIN, DOMAIN_VERSION, WinogradFunctions
from workers.models.onnx_zeros import pack_zeros_of
from workers.models.shapes import infer_tensors

OPSET = 18
IR_VERSION = 8
PRODUCER = "winnow"


def write_onnx(graph: ModelGraph, path: Path, *, pack_zeros: bool) -> None:
    """Write `graph` to `path`; with `pack_zeros`, weights with zeros take only the bytes of what is not zero."""
    path.write_bytes(onnx_model(graph, pack_zeros=pack_zeros).SerializeToString(deterministic=True))


def onnx_model(graph: ModelGraph, *, pack_zeros: bool) -> onnx.ModelProto:
    """`graph` as an ONNX model."""
    emitter = OnnxEmitter(infer_tensors(graph))
    functions = WinogradFunctions(opset=OPSET, sizes_are_open=has_open_sizes(graph))
    _name_surface(graph, emitter)
    for node in graph.module.graph.nodes:
        if node.op == "get_attr":
            emitter.parameter(node, str(node.target), parameter(graph, str(node.target)))
        elif node.target is winograd_conv2d:
            functions.call(emitter, node)
        elif node.op == "call_function":
            emit_node(emitter, node)
    _emit_outputs(graph, emitter)
    if pack_zeros:
        pack_zeros_of(emitter)
    made = helper.make_graph(
        emitter.nodes,
        "network",
        [_value_info(spec) for spec in graph.inputs],
        [_value_info(spec) for spec in graph.outputs],
        initializer=[emitter.tensor_proto(name) for name in emitter.used_tensors()],
    )
    imports = [helper.make_opsetid("", OPSET)]
    if functions.protos:
        imports.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    model = helper.make_model(
        made, opset_imports=imports, functions=functions.protos, ir_version=IR_VERSION, producer_name=PRODUCER
    )
    onnx.checker.check_model(model)
    return model


def _name_surface(graph: ModelGraph, emitter: OnnxEmitter) -> None:
    """Inputs and outputs keep the names they came with; an inner tensor yields if it has the same one."""
    for spec in (*graph.inputs, *graph.outputs):
        emitter.reserve(spec.name)
    placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, graph.inputs, strict=True):
        emitter.bind(node, spec.name)
    computed = set()
    for node, spec in zip(_output_nodes(graph), graph.outputs, strict=True):
        if node.op == "call_function" and node not in computed:
            emitter.call(node, spec.name)
            computed.add(node)


def _emit_outputs(graph: ModelGraph, emitter: OnnxEmitter) -> None:
    """An output that is also an input, a parameter or another output needs a node of its own."""
    for node, spec in zip(_output_nodes(graph), graph.outputs, strict=True):
        if emitter.name_of(node) != spec.name:
            emitter.add("Identity", [emitter.name_of(node)], result=spec.name)


def _output_nodes(graph: ModelGraph) -> list[fx.Node]:
    output = next(iter(reversed(graph.module.graph.nodes)))
    return [node for node in output.args[0] if isinstance(node, fx.Node)]


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, ELEMENT_TYPES[spec.dtype], list(spec.shape))
