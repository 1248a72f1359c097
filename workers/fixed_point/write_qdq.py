"""Writes an integer network as an ONNX model that plain ONNX Runtime runs, with 8-bit kernels wherever the integers allow it.

The file has the surface of the float network: its inputs and outputs, and what that network does after its logits. Between them
is the integer network, its activations as bytes with scale 1 and its weights with scales 2**-out_shift, so that ONNX Runtime
fuses each convolution to one QLinearConv whose accumulator and requantization are the network's own.

With weights of 8 bits, ONNX Runtime's kernels for x86 processors without VNNI add pairs of products in 16 bits, saturating
(`WrittenConvolution.needs_vnni`); its session option `session.x64quantprecision` avoids that.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import helper
from torch import Tensor, fx

from workers.fixed_point.coding import exp2
from workers.fixed_point.network import Convolution, IntegerNetwork, OutputTransform
from workers.fixed_point.qdq_convolutions import WrittenConvolution, write_convolution
from workers.fixed_point.qdq_operations import write_operation
from workers.fixed_point.qdq_tensors import Form, Held, QdqTensors, Rounding, is_bytes, zero_of
from workers.fixed_point.qdq_winograd import write_products
from workers.models.graph import ModelGraph, TensorSpec, parameter
from workers.models.onnx_emitter import ELEMENT_TYPES, OnnxEmitter
from workers.models.onnx_operators import emit_node
from workers.models.shapes import infer_tensors
from workers.models.tail import logits_of

OPSET, IR_VERSION = 18, 8  # as all files that we write
PACKED_OPSET, PACKED_IR_VERSION = 21, 10  # the first with tensors of 4 bits
PRODUCER = "winnow"


@dataclass(frozen=True)
class QdqReport:
    """What the file computes, and how."""

    convolutions: tuple[WrittenConvolution, ...]  # in execution order
    opset: int
    size_bytes: int

    @property
    def is_exact(self) -> bool:
        """Whether ONNX Runtime computes the very integers of the network."""
        return all(each.exact for each in self.convolutions)

    @property
    def is_integer(self) -> bool:
        """Whether all convolutions are computed in 8-bit integers."""
        return all(each.integer for each in self.convolutions)


def write_qdq(network: IntegerNetwork, graph: ModelGraph, path: Path, *, pack_int4: bool = False) -> QdqReport:
    """Write `network` to `path`, with the inputs and outputs of `graph` and what it computes from its logits.

    With `pack_int4`, weights of up to 4 bits take only these bits each, and a file with some of 4 bits needs opset 21.
    """
    emitter = OnnxEmitter(infer_tensors(graph))
    tensors = QdqTensors(emitter, network.values, packs_weights=pack_int4)
    for spec in (*graph.inputs, *graph.outputs):
        emitter.reserve(spec.name)
    tensors.held[network.input] = _quantized_input(tensors, network, graph.inputs[0])
    written = []
    transforms = {each.source: each for each in network.operations if isinstance(each, OutputTransform)}
    for operation in network.operations:
        if isinstance(operation, Convolution) and operation.output in transforms:
            written.append(write_products(tensors, operation, transforms[operation.output]))
        elif isinstance(operation, Convolution):
            written.append(write_convolution(tensors, operation))
        elif not isinstance(operation, OutputTransform):  # those are written with what they read
            tensors.held[operation.output] = write_operation(tensors, operation)
    _write_tail(tensors, network, graph, logits_of(graph))
    opset = PACKED_OPSET if tensors.four_bits else OPSET
    stored = _model(tensors, graph, opset).SerializeToString(deterministic=True)
    path.write_bytes(stored)
    return QdqReport(tuple(written), opset, len(stored))


def _output_nodes(graph: ModelGraph) -> list[fx.Node]:
    output = next(iter(reversed(graph.module.graph.nodes)))
    return [node for node in output.args[0] if isinstance(node, fx.Node)]


# ---- Before the network ---------------------------------------------------------------------------------------------


def _quantized_input(tensors: QdqTensors, network: IntegerNetwork, spec: TensorSpec) -> Held:
    """Images as integers, rounded half up.

    `2 * x * 2**length` cut to a whole number t has all that counts, and none of the steps to it rounds: t/2 rounded half up is
    (t + 0.5)/2 rounded to the nearest.
    """
    value = network.values[network.input]
    name = spec.name
    if spec.dtype != torch.float32:
        name = tensors.add("Cast", [name], stem="k", to=ELEMENT_TYPES[torch.float32])
    if len(spec.shape) != 4:
        name = tensors.reshaped(name, (-1, *value.shape))
    coding = value.coding
    halves = tensors.add(
        "Floor", [tensors.multiplied(name, 2 * exp2(coding.lengths_tensor()), torch.float32)], stem="f"
    )
    between = tensors.add("Add", [halves, tensors.onnx.constant(torch.tensor(0.5))], stem="s")
    ends = [torch.full((value.shape[0],), end) for end in (coding.lowest, coding.highest)]
    rounding = Rounding(torch.zeros(value.shape[0], dtype=torch.int64), *ends)
    if is_bytes(value):
        zero = zero_of(value)
        return tensors.clamped_bytes(tensors.quantized(between, zero, value.name, scale=2.0), zero, rounding)
    half = torch.full((value.shape[0],), 0.5)
    return tensors.rounded(tensors.multiplied(between, half, torch.float32), torch.float32, value, rounding)


# ---- After it -------------------------------------------------------------------------------------------------------


def _write_tail(tensors: QdqTensors, network: IntegerNetwork, graph: ModelGraph, logits: fx.Node) -> None:
    """The nodes of `graph` between its logits and its outputs, as they are."""
    emitter = tensors.onnx
    outputs = _output_nodes(graph)
    tail = _nodes_after(logits, outputs)
    emitter.bind(logits, _scores_like(tensors, network, logits))
    for node, spec in zip(reversed(outputs), reversed(graph.outputs), strict=True):
        if node in tail and node.op == "call_function":
            emitter.call(node, spec.name)
    for node in graph.module.graph.nodes:
        if node not in tail:
            continue
        if node.op == "placeholder":
            emitter.bind(node, graph.inputs[0].name)
        elif node.op == "get_attr":
            emitter.parameter(node, str(node.target), parameter(graph, str(node.target)))
        else:
            emit_node(emitter, node)
    for node, spec in zip(outputs, graph.outputs, strict=True):
        if emitter.name_of(node) != spec.name:
            emitter.add("Identity", [emitter.name_of(node)], result=spec.name)


def _nodes_after(logits: fx.Node, outputs: list[fx.Node]) -> set[fx.Node]:
    """All that the outputs need and that isn't computed for the logits."""
    found: set[fx.Node] = set()
    open_nodes = list(outputs)
    while open_nodes:
        node = open_nodes.pop()
        if node is not logits and node not in found:
            found.add(node)
            open_nodes += node.all_input_nodes
    return found


def _scores_like(tensors: QdqTensors, network: IntegerNetwork, logits: fx.Node) -> str:
    """The numbers that the logits stand for, of the shape and type that the node of the float network has."""
    shape, kind = tensors.onnx.shape(logits), tensors.onnx.dtype(logits)
    held = tensors.held[network.output]
    name = tensors.scores(network.output)
    is_rows = held.rows and held.form is Form.SCORES
    if is_rows != (len(shape) == 2):
        name = tensors.reshaped(name, (-1, *shape[1:]))
    return name if kind == torch.float32 else tensors.add("Cast", [name], stem="k", to=ELEMENT_TYPES[kind])


# ---- The file -------------------------------------------------------------------------------------------------------


def _model(tensors: QdqTensors, graph: ModelGraph, opset: int) -> onnx.ModelProto:
    emitter = tensors.onnx
    for node in emitter.nodes:
        node.ClearField("name")  # that of its result says as much
    made = helper.make_graph(
        emitter.nodes,
        "network",
        [_value_info(spec) for spec in graph.inputs],
        [_value_info(spec) for spec in graph.outputs],
        initializer=[_tensor_proto(tensors, name) for name in emitter.used_tensors()],
    )
    model = helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSION if opset == OPSET else PACKED_IR_VERSION,
        producer_name=PRODUCER,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, ELEMENT_TYPES[spec.dtype], list(spec.shape))


def _tensor_proto(tensors: QdqTensors, name: str) -> onnx.TensorProto:
    if name not in tensors.four_bits:
        return tensors.onnx.tensor_proto(name)
    weight = tensors.onnx.tensors[name]
    return helper.make_tensor(name, onnx.TensorProto.INT4, list(weight.shape), _packed(weight), raw=True)


def _packed(weight: Tensor) -> bytes:
    """Two integers of 4 bits a byte, the first in the lower half."""
    nibbles = torch.zeros((weight.numel() + 1) // 2 * 2, dtype=torch.uint8)
    nibbles[: weight.numel()] = weight.flatten().view(torch.uint8) & 0xF
    packed = nibbles[0::2] | (nibbles[1::2] << 4)
    return bytes(packed.numpy().tobytes())
