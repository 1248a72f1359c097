"""ONNX operators that work on every element by itself, and reductions."""

import math
import operator
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import fx

from workers.models import canonical
from workers.models.graph import aten
from workers.models.graph_builder import Constant, Operator, Value
from workers.models.onnx_layers import add_as_bias
from workers.models.onnx_node import Handler, OnnxNode, Result, Sizes, sizes
from workers.models.onnx_tensors import element_type


def _unary(target: Operator) -> Handler:
    def handler(node: OnnxNode) -> Result:
        return node.builder.call(target, node.value(0))

    return handler


def _same(node: OnnxNode) -> Result:
    return node.operand(0)


def _dropout(node: OnnxNode) -> Result:
    if node.results > 1 and node.opset >= 10:
        node.builder.warnings.append(f"the mask of the dropout {node.name!r} is not computed")
    return [node.operand(0)]


def _binary(target: Operator) -> Handler:
    def handler(node: OnnxNode) -> Result:
        return arithmetic(node, target, node.value(0), node.value(1))

    return handler


def arithmetic(node: OnnxNode, target: Operator, left: Value, right: Value) -> Value:
    """`target` of two tensors; a stored number takes the form of a number."""
    b = node.builder
    if target is aten.div.Tensor and not b.probes(left)[0].dtype.is_floating_point:
        return _whole_division(node, left, right)
    if target in (aten.add.Tensor, aten.mul.Tensor) and isinstance(left, Constant) and not isinstance(right, Constant):
        left, right = right, left
    takes_number = target in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
    if takes_number and not isinstance(left, Constant) and _is_number(right) and b.rank(left) >= b.rank(right):
        assert isinstance(right, Constant)
        return b.call(target, left, right.tensor.reshape(()).item())
    return b.call(target, left, right)


def _is_number(value: Value) -> bool:
    return isinstance(value, Constant) and value.tensor.numel() == 1 and value.tensor.is_floating_point()


def _whole_division(node: OnnxNode, left: Value, right: Value) -> Value:
    if not isinstance(left, Constant) or not isinstance(right, Constant) or bool((right.tensor == 0).any()):
        raise node.builder.refuse("a division of whole numbers is only supported between stored, non-zero ones")
    quotient = torch.div(left.tensor, right.tensor, rounding_mode="trunc")
    return Constant(quotient, left.name, trainable=False)


def _sizes_or(function: Callable[[int, int], int], target: Operator, otherwise: Handler) -> Handler:
    """Arithmetic on sizes that vary, or of a tensor and such a size, if that is what stands there."""

    def handler(node: OnnxNode) -> Result:
        left, right = (node.operand_or_float_size(place) for place in (0, 1))
        if not isinstance(left, Sizes) and not isinstance(right, Sizes):
            return otherwise(node)
        if isinstance(left, fx.Node) and isinstance(right, Sizes) and right.is_float and len(right.items) == 1:
            return node.builder.call(target, left, right.items[0])
        return _arithmetic_of_sizes(node, function)

    return handler


def _arithmetic_of_sizes(node: OnnxNode, function: Callable[[int, int], int]) -> Result:
    left, right = node.sizes(0, "first operand"), node.sizes(1, "second operand")
    count = max(len(left), len(right))
    if len(left) not in (1, count) or len(right) not in (1, count):
        raise node.builder.refuse(f"lists of {len(left)} and {len(right)} sizes don't fit")
    pairs = zip(left * count if len(left) == 1 else left, right * count if len(right) == 1 else right, strict=True)
    scalar = all(_is_scalar(node, place) for place in (0, 1))
    return sizes([_of_sizes(node, function, one, other) for one, other in pairs], scalar=scalar)


def _is_scalar(node: OnnxNode, place: int) -> bool:
    found = node.operand(place)
    if isinstance(found, Sizes):
        return found.scalar
    return isinstance(found, Constant) and found.tensor.dim() == 0


def _of_sizes(
    node: OnnxNode, function: Callable[[int, int], int], one: int | fx.Node, other: int | fx.Node
) -> int | fx.Node:
    if isinstance(one, int) and isinstance(other, int):
        if other == 0:
            raise node.builder.refuse("it divides a size by zero")
        return function(one, other)
    result = node.builder.call(function, one, other)
    assert isinstance(result, fx.Node)
    return result


def _add(node: OnnxNode) -> Result:
    left, right = node.value(0), node.value(1)
    with_bias = add_as_bias(node.builder, left, right)
    return arithmetic(node, aten.add.Tensor, left, right) if with_bias is None else with_bias


def _variadic(target: Operator, *, mean: bool = False) -> Handler:
    def handler(node: OnnxNode) -> Result:
        result = node.value(0)
        for place in range(1, len(node.operands)):
            result = arithmetic(node, target, result, node.value(place))
        return arithmetic(node, aten.div.Tensor, result, _number(len(node.operands))) if mean else result

    return handler


def _number(value: float) -> Constant:
    return Constant(torch.tensor(float(value)), "number", trainable=False)


def _pow(node: OnnxNode) -> Result:
    return node.builder.call(aten.pow.Tensor_Scalar, node.value(0), node.scalar(1, "exponent"))


def _clip(node: OnnxNode) -> Result:
    if node.opset < 11:
        low, high = node.number("min", -math.inf), node.number("max", math.inf)
    else:
        low = node.scalar(1, "minimum") if node.has(1) else -math.inf
        high = node.scalar(2, "maximum") if node.has(2) else math.inf
    # The lowest and highest number of an exporter's type limit nothing.
    largest = 3.4e38
    return canonical.clamp(
        node.builder, node.value(0), None if low < -largest else low, None if high > largest else high
    )


def _leaky_relu(node: OnnxNode) -> Result:
    return node.builder.call(aten.leaky_relu.default, node.value(0), node.number("alpha", 0.01))


def _prelu(node: OnnxNode) -> Result:
    b, value, slope = node.builder, node.value(0), node.constant(1, "slope")
    channels = b.shape(value)[1] if b.rank(value) > 1 else None
    shape = tuple(slope.tensor.shape)
    if len(shape) == b.rank(value) and shape[:1] == (1,):
        shape = shape[1:]
    one_a_channel = shape[:1] == (channels,) and math.prod(shape) == channels and len(shape) == b.rank(value) - 1
    if slope.tensor.numel() != 1 and not one_a_channel:
        raise b.refuse(f"slopes of shape {shape} are not one number, nor one a channel")
    return b.call(aten.prelu.default, value, Constant(slope.tensor.reshape(-1), slope.name))


def _elu(node: OnnxNode) -> Result:
    return node.builder.call(aten.elu.default, node.value(0), node.number("alpha", 1.0), 1, 1)


def _selu(node: OnnxNode) -> Result:
    alpha, gamma = node.number("alpha", 1.67326319217681884765625), node.number("gamma", 1.05070102214813232421875)
    return node.builder.call(aten.elu.default, node.value(0), alpha, gamma, 1)


def _softplus(node: OnnxNode) -> Result:
    return node.builder.call(aten.softplus.default, node.value(0), 1, 20)


def _hard_sigmoid(node: OnnxNode) -> Result:
    b, alpha, beta = node.builder, node.number("alpha", 0.2), node.number("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return b.call(aten.hardsigmoid.default, node.value(0))
    scaled = b.call(aten.mul.Tensor, node.value(0), alpha)
    return canonical.clamp(b, b.call(aten.add.Tensor, scaled, beta), 0.0, 1.0)


def _gelu(node: OnnxNode) -> Result:
    return node.builder.call(aten.gelu.default, node.value(0), approximate=node.word("approximate", "none"))


def _swish(node: OnnxNode) -> Result:
    if node.number("alpha", 1.0) != 1.0:
        raise node.builder.refuse("only alpha=1 is supported")
    return node.builder.call(aten.silu.default, node.value(0))


def _softmax(target: Operator) -> Handler:
    def handler(node: OnnxNode) -> Result:
        b, value = node.builder, node.value(0)
        rank = b.rank(value)
        axis = canonical.dimension(b, node.integer("axis", 1 if node.opset < 13 else -1), rank)
        if node.opset >= 13:
            return b.call(target, value, axis)
        # Until opset 12 all dimensions from the axis on count as one.
        shape = b.shape(value)
        longer = [place for place in range(axis, rank) if shape[place] != 1]
        if len(longer) <= 1:
            return b.call(target, value, longer[0] if longer else axis)
        flat = canonical.flatten(b, value, axis, rank - 1)
        return canonical.reshape(b, b.call(target, flat, axis), [b.size(value, place) for place in range(rank)])

    return handler


def _cast(node: OnnxNode) -> Result:
    found = node.operand_or_float_size(0)
    dtype = element_type(node.integer("to", 0), f"the result of {node.name!r}")
    if isinstance(found, Sizes):
        if dtype not in (torch.int32, torch.int64, torch.float16, torch.float32, torch.float64):
            raise node.builder.refuse("a size that varies with the input is used like a tensor, which is not supported")
        return replace(found, is_float=dtype.is_floating_point)
    return canonical.cast(node.builder, found, dtype)


def _reduce(target: Operator) -> Handler:
    def handler(node: OnnxNode) -> Result:
        b, value = node.builder, node.value(0)
        rank = b.rank(value)
        axes = node.list_from("axes", 1)
        if not axes and node.integer("noop_with_empty_axes", 0):
            return value
        dims = [canonical.dimension(b, axis, rank) for axis in axes] if axes else list(range(rank))
        return b.call(target, value, dims, bool(node.integer("keepdims", 1)))

    return handler


def _arg_max(node: OnnxNode) -> Result:
    b, value = node.builder, node.value(0)
    if node.integer("select_last_index", 0):
        raise b.refuse("select_last_index is not supported")
    axis = canonical.dimension(b, node.integer("axis", 0), b.rank(value))
    return b.call(aten.argmax.default, value, axis, bool(node.integer("keepdims", 1)))


ELEMENTWISE: dict[str, Handler] = {
    "Identity": _same,
    "Dropout": _dropout,
    "Relu": _unary(aten.relu.default),
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Elu": _elu,
    "Selu": _selu,
    "Sigmoid": _unary(aten.sigmoid.default),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(aten.hardswish.default),
    "Swish": _swish,
    "Mish": _unary(aten.mish.default),
    "Tanh": _unary(aten.tanh.default),
    "Softplus": _softplus,
    "Gelu": _gelu,
    "Erf": _unary(aten.erf.default),
    "Exp": _unary(aten.exp.default),
    "Log": _unary(aten.log.default),
    "Sqrt": _unary(aten.sqrt.default),
    "Abs": _unary(aten.abs.default),
    "Neg": _unary(aten.neg.default),
    "Reciprocal": _unary(aten.reciprocal.default),
    "Floor": _unary(aten.floor.default),
    "Ceil": _unary(aten.ceil.default),
    "Pow": _pow,
    "Clip": _clip,
    "Add": _sizes_or(operator.add, aten.add.Tensor, _add),
    "Sub": _sizes_or(operator.sub, aten.sub.Tensor, _binary(aten.sub.Tensor)),
    "Mul": _sizes_or(operator.mul, aten.mul.Tensor, _binary(aten.mul.Tensor)),
    "Div": _sizes_or(operator.floordiv, aten.div.Tensor, _binary(aten.div.Tensor)),
    "Sum": _variadic(aten.add.Tensor),
    "Mean": _variadic(aten.add.Tensor, mean=True),
    "Max": _variadic(aten.maximum.default),
    "Min": _variadic(aten.minimum.default),
    "Softmax": _softmax(aten.softmax.int),
    "LogSoftmax": _softmax(aten.log_softmax.int),
    "Cast": _cast,
    "ReduceMean": _reduce(aten.mean.dim),
    "ReduceSum": _reduce(aten.sum.dim_IntList),
    "ReduceMax": _reduce(aten.amax.default),
    "ReduceMin": _reduce(aten.amin.default),
    "ArgMax": _arg_max,
}
