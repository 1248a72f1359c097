"""Reads an `.onnx` file, opset 7 to 24, into the canonical graph.

Only the file itself is read: weights that refer to other files are refused before anything is opened. Operators are names looked
up in a table; functions, subgraphs and foreign domains are refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from torch import Tensor, fx

from jobs.errors import ModelRefused
from workers.models.graph import ModelGraph
from workers.models.graph_builder import MAX_NODES, Constant, GraphBuilder, Value
from workers.models.input_shapes import DeclaredInput, Varying, build_with_batch
from workers.models.onnx_elementwise import ELEMENTWISE
from workers.models.onnx_layers import LAYERS, says_nothing
from workers.models.onnx_node import Handler, OnnxNode, Operand, Sizes
from workers.models.onnx_shapes import SHAPES
from workers.models.onnx_tensors import element_type, read_attribute, read_tensor

OLDEST_OPSET, NEWEST_OPSET = 7, 24
MAX_FILE_BYTES = 2**31 - 1  # protobuf's own limit
MAX_INPUTS = 64

HANDLERS: dict[str, Handler] = {**LAYERS, **ELEMENTWISE, **SHAPES}

_QUANTIZATION = ("Quantize", "Dequantize", "QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantize")
_SYMBOL = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
_NUMBER = re.compile(r"[\W\d_]*", re.ASCII)


def read_onnx(path: Path) -> ModelGraph:
    """The network in the file."""
    model = _parsed(path)
    opset = _checked_opset(model)
    graph = model.graph
    _check_graph(graph)
    weights = {name: Constant(tensor, name) for name, tensor in _initializers(graph)}
    nodes = list(_nodes(graph))
    inputs = [_declared_input(given) for given in graph.input if given.name not in weights]
    if len(inputs) > MAX_INPUTS:
        raise ModelRefused(f"the network takes {len(inputs)} inputs; at most {MAX_INPUTS} are accepted")

    def add_nodes(builder: GraphBuilder, placeholders: list[fx.Node]) -> list[tuple[str, Value]]:
        values: dict[str, Operand] = {**weights}
        values.update(zip((given.name for given in inputs), placeholders, strict=True))
        for node in nodes:
            _add_node(builder, node, opset, values)
        builder.operator = builder.node = ""
        return [(given.name, _output(values, given.name)) for given in graph.output]

    result = build_with_batch(inputs, add_nodes)
    result.producer = f"{model.producer_name} {model.producer_version}".strip()[:128] or None
    result.opset = opset
    return result


@dataclass(frozen=True)
class _NodeInFile:
    proto: onnx.NodeProto
    name: str
    layer: str
    attributes: dict[str, object]


def _parsed(path: Path) -> onnx.ModelProto:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ModelRefused(f"the file has {size} bytes; an ONNX file has at most {MAX_FILE_BYTES}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError, RecursionError) as error:  # the last two: text that is no UTF-8, nesting
        raise ModelRefused("the file is no ONNX model, or it is damaged") from error
    if not model.HasField("graph") or not model.graph.node:
        raise ModelRefused("the file is no ONNX model, or it is damaged: it has no graph")
    if not all(isinstance(text, str) for text in _texts(model)):  # protobuf hands out what is no UTF-8 as bytes
        raise ModelRefused("the file is damaged: a name in it is not UTF-8")
    return model


def _texts(model: onnx.ModelProto) -> Iterator[object]:
    yield from (model.producer_name, model.producer_version)
    yield from (entry.domain for entry in model.opset_import)
    yield from (proto.name for proto in model.graph.initializer)
    for node in model.graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield from (attribute.name, attribute.t.name)
    for given in (*model.graph.input, *model.graph.output):
        yield given.name
        yield from (size.dim_param for size in given.type.tensor_type.shape.dim)


def _checked_opset(model: onnx.ModelProto) -> int:
    if model.functions:
        raise ModelRefused(
            "the model defines functions of its own", hint="Inline them: onnx.inliner.inline_local_functions."
        )
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1 or not OLDEST_OPSET <= versions[0] <= NEWEST_OPSET:
        found = ", ".join(str(version) for version in versions[:4]) or "none"
        raise ModelRefused(
            f"the model is written for opset {found}; Winnow reads {OLDEST_OPSET} to {NEWEST_OPSET}",
            hint="Convert it with onnx.version_converter, or export it again.",
        )
    return int(versions[0])


def _check_graph(graph: onnx.GraphProto) -> None:
    if len(graph.node) > MAX_NODES:
        raise ModelRefused(f"the network has {len(graph.node)} nodes; at most {MAX_NODES} are accepted")
    if graph.sparse_initializer:
        raise ModelRefused("sparse initializers are not supported", hint="Store the weights as dense tensors.")
    if not graph.output:
        raise ModelRefused("the network returns nothing")


def _initializers(graph: onnx.GraphProto) -> Iterator[tuple[str, Tensor]]:
    seen: set[str] = set()
    for proto in graph.initializer:
        if not proto.name or proto.name in seen:
            raise ModelRefused(f"there are two weights called {proto.name[:256]!r}", parameter=proto.name[:256])
        seen.add(proto.name)
        yield proto.name, read_tensor(proto, proto.name)


def _nodes(graph: onnx.GraphProto) -> Iterator[_NodeInFile]:
    for index, proto in enumerate(graph.node):
        result = next((name for name in proto.output if name), "")
        name = proto.name or result or f"node {index}"
        _check_operator(proto, name)
        attributes = {}
        for attribute in proto.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise _refused(proto, name, "it holds a graph of its own")
            attributes[attribute.name] = read_attribute(attribute)
        yield _NodeInFile(proto, name, _layer_name(proto, index, result), attributes)


def _check_operator(proto: onnx.NodeProto, name: str) -> None:
    if proto.domain not in ("", "ai.onnx"):
        raise _refused(proto, name, f"operators of the domain {proto.domain[:128]!r} are not supported")
    if proto.op_type in HANDLERS:
        return
    if proto.op_type.startswith(_QUANTIZATION):
        raise _refused(
            proto, name, "the model is quantized already", hint="Upload the floating-point model; Winnow quantizes it."
        )
    if proto.op_type in ("If", "Loop", "Scan"):
        raise _refused(proto, name, "control flow is not supported", hint="Export the network with fixed decisions.")
    raise _refused(
        proto, name, "Winnow doesn't know this operator",
        hint="Replace the layer by one that computes the same with common operators, and export again.",
    )  # fmt: skip


def _refused(proto: onnx.NodeProto, name: str, reason: str, *, hint: str | None = None) -> ModelRefused:
    operator = proto.op_type[:128]
    return ModelRefused(f"{operator} at node {name[:256]!r}: {reason}", hint=hint, operator=operator, node=name[:256])


def _layer_name(proto: onnx.NodeProto, index: int, result: str) -> str:
    """What to call the layer, or the constant, that a node is.

    PyTorch names nodes after the modules they come from, each level with the whole path so far: `/layer1/layer1.0/conv1/Conv`.
    """
    if proto.op_type in ("Constant", "ConstantOfShape"):
        return result
    if not proto.name or _NUMBER.fullmatch(proto.name):
        return f"{proto.op_type.lower()}_{index}"
    path = ""
    for part in proto.name.strip("/").split("/")[: -1 if proto.name.startswith("/") else None]:
        path = part if not path or part.startswith(f"{path}.") else f"{path}.{part}"
    return path or proto.name.strip("/")


def _add_node(builder: GraphBuilder, node: _NodeInFile, opset: int, values: dict[str, Operand]) -> None:
    proto = node.proto
    builder.operator, builder.node = proto.op_type, node.name
    operands: list[Operand | None] = []
    for name in proto.input:
        if name and name not in values:
            raise builder.refuse(f"nothing is called {name[:256]!r} here")
        operands.append(values[name] if name else None)
    reading = OnnxNode(
        builder, proto.op_type, node.name, node.layer, opset, tuple(operands), node.attributes, _used_results(proto)
    )
    found = HANDLERS[proto.op_type](reading)
    # Operators with more results than are read, such as the statistics of normalisation, leave them undefined.
    for name, value in zip(proto.output, found if isinstance(found, list) else [found], strict=False):
        if name in values:
            raise builder.refuse(f"the name {name[:256]!r} is used twice")
        if isinstance(value, Constant) and says_nothing(value.name) and not says_nothing(name):
            value = replace(value, name=name)
        if name:
            values[name] = value


def _used_results(proto: onnx.NodeProto) -> int:
    return sum(1 for name in proto.output if name)


def _output(values: dict[str, Operand], name: str) -> Value:
    found = values.get(name)
    if found is None or isinstance(found, Sizes):
        raise ModelRefused(f"the output {name[:256]!r} is no tensor that the network computes", output=name[:256])
    return found


def _declared_input(given: onnx.ValueInfoProto) -> DeclaredInput:
    if not given.type.HasField("tensor_type") or not given.type.tensor_type.HasField("shape"):
        raise ModelRefused(f"the input {given.name[:256]!r} is no tensor of a declared shape", input=given.name[:256])
    tensor = given.type.tensor_type
    shape = tuple(_declared_size(given.name, place, size) for place, size in enumerate(tensor.shape.dim))
    return DeclaredInput(given.name, element_type(tensor.elem_type, given.name), shape)


def _declared_size(name: str, place: int, size: onnx.TensorShapeProto.Dimension) -> int | Varying:
    if size.dim_value > 0:
        return int(size.dim_value)
    if size.HasField("dim_param") and _SYMBOL.fullmatch(size.dim_param):
        return Varying(size.dim_param)
    return Varying(f"{name[:64]}_{place}")  # nameless, "?" or -1: each by itself
