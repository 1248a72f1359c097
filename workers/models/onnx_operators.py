"""What each operator of the canonical graph becomes in ONNX, opset 18."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from workers.models.graph import aten
from workers.models.onnx_emitter import ELEMENT_TYPES, OnnxEmitter

Emit = Callable[[OnnxEmitter, fx.Node], None]


def emit_node(e: OnnxEmitter, node: fx.Node) -> None:
    """Add the ONNX nodes that compute what `node` does."""
    _EMITTERS[node.target](e, node)


def _name(e: OnnxEmitter, argument: object) -> str:
    """The value of an argument; nothing at all is an empty name in ONNX."""
    if argument is None:
        return ""
    assert isinstance(argument, fx.Node)
    return e.name_of(argument)


def _node(argument: object) -> fx.Node:
    assert isinstance(argument, fx.Node)
    return argument


def _numbers(argument: Any) -> list[int]:  # Any: a list in the arguments of a node
    return [int(number) for number in argument]


def _inputs(e: OnnxEmitter, *arguments: object) -> list[str]:
    names = [_name(e, argument) for argument in arguments]
    while names and not names[-1]:
        names.pop()
    return names


def _conv2d(e: OnnxEmitter, node: fx.Node) -> None:
    image, weight, bias, stride, padding, dilation, groups = node.args
    e.finish(
        node, "Conv", _inputs(e, image, weight, bias),
        kernel_shape=list(e.shape(_node(weight))[2:]), strides=_numbers(stride), pads=_numbers(padding) * 2,
        dilations=_numbers(dilation), group=groups,
    )  # fmt: skip


def _conv_transpose2d(e: OnnxEmitter, node: fx.Node) -> None:
    image, weight, bias, stride, padding, output_padding, groups, dilation = node.args
    e.finish(
        node, "ConvTranspose", _inputs(e, image, weight, bias),
        kernel_shape=list(e.shape(_node(weight))[2:]), strides=_numbers(stride), pads=_numbers(padding) * 2,
        output_padding=_numbers(output_padding), dilations=_numbers(dilation), group=groups,
    )  # fmt: skip


def _linear(e: OnnxEmitter, node: fx.Node) -> None:
    features, weight, bias = node.args
    if len(e.shape(_node(features))) == 2:
        e.finish(node, "Gemm", _inputs(e, features, weight, bias), transB=1)
        return
    turned = e.add("Transpose", [_name(e, weight)], perm=[1, 0])
    if bias is None:
        e.finish(node, "MatMul", [_name(e, features), turned])
    else:
        e.finish(node, "Add", [e.add("MatMul", [_name(e, features), turned]), _name(e, bias)])


def _batch_norm(e: OnnxEmitter, node: fx.Node) -> None:
    e.finish(node, "BatchNormalization", _inputs(e, *node.args[:5]), epsilon=node.args[7])


def _layer_norm(e: OnnxEmitter, node: fx.Node) -> None:
    value, shape, weight, bias, eps, _ = node.args
    sizes = _numbers(shape)
    scale = _name(e, weight) or e.constant(torch.ones(sizes, dtype=e.dtype(node)))
    names = [_name(e, value), scale] + ([_name(e, bias)] if bias is not None else [])
    e.finish(node, "LayerNormalization", names, axis=-len(sizes), epsilon=eps)


def _group_norm(e: OnnxEmitter, node: fx.Node) -> None:
    image, groups, weight, bias, eps, _ = node.args
    count, channels, dtype = int(str(groups)), e.shape(node)[1], e.dtype(node)
    ones, zeros = (e.constant(torch.full((count,), value, dtype=dtype)) for value in (1.0, 0.0))
    grouped = e.add("Reshape", [_name(e, image), e.constant([0, count, -1])])
    normal = e.add("InstanceNormalization", [grouped, ones, zeros], epsilon=eps)
    result = e.add("Reshape", [normal, e.add("Shape", [_name(e, image)])])
    column = e.constant([channels] + [1] * (len(e.shape(node)) - 2))
    if weight is not None:
        result = e.add("Mul", [result, e.add("Reshape", [_name(e, weight), column])])
    if bias is not None:
        result = e.add("Add", [result, e.add("Reshape", [_name(e, bias), column])])
    e.finish(node, "Identity", [result])


def _plain(onnx_operator: str) -> Emit:
    def emit(e: OnnxEmitter, node: fx.Node) -> None:
        e.finish(node, onnx_operator, [_name(e, node.args[0])])

    return emit


def _number(e: OnnxEmitter, value: object, dtype: torch.dtype) -> str:
    return e.constant(value, dtype)


def _clamp(e: OnnxEmitter, node: fx.Node) -> None:
    value, low, high = node.args
    names = [_name(e, value), "" if low is None else _number(e, low, e.dtype(node))]
    e.finish(node, "Clip", names if high is None else [*names, _number(e, high, e.dtype(node))])


def _leaky_relu(e: OnnxEmitter, node: fx.Node) -> None:
    e.finish(node, "LeakyRelu", [_name(e, node.args[0])], alpha=float(_argument(node, 1, 0.01)))


def _prelu(e: OnnxEmitter, node: fx.Node) -> None:
    value, weight = _node(node.args[0]), _node(node.args[1])
    slope = e.add("Reshape", [_name(e, weight), e.constant([-1] + [1] * (len(e.shape(value)) - 2))])
    e.finish(node, "PRelu", [_name(e, value), slope])


def _elu(e: OnnxEmitter, node: fx.Node) -> None:
    alpha, scale = float(_argument(node, 1, 1)), float(_argument(node, 2, 1))
    if scale == 1:
        e.finish(node, "Elu", [_name(e, node.args[0])], alpha=alpha)
    else:
        e.finish(node, "Selu", [_name(e, node.args[0])], alpha=alpha, gamma=scale)


def _gelu(e: OnnxEmitter, node: fx.Node) -> None:
    x, dtype = _name(e, node.args[0]), e.dtype(node)
    if node.kwargs.get("approximate", "none") == "tanh":
        cubed = e.add("Mul", [e.add("Mul", [e.add("Mul", [x, x]), x]), _number(e, 0.044715, dtype)])
        inner = e.add("Tanh", [e.add("Mul", [e.add("Add", [x, cubed]), _number(e, math.sqrt(2 / math.pi), dtype)])])
    else:
        inner = e.add("Erf", [e.add("Mul", [x, _number(e, math.sqrt(0.5), dtype)])])
    grown = e.add("Mul", [x, e.add("Add", [inner, _number(e, 1.0, dtype)])])
    e.finish(node, "Mul", [grown, _number(e, 0.5, dtype)])


def _hardsigmoid(e: OnnxEmitter, node: fx.Node) -> None:
    e.finish(node, "HardSigmoid", [_name(e, node.args[0])], alpha=1 / 6, beta=0.5)


def _silu(e: OnnxEmitter, node: fx.Node) -> None:
    x = _name(e, node.args[0])
    e.finish(node, "Mul", [x, e.add("Sigmoid", [x])])


def _mish(e: OnnxEmitter, node: fx.Node) -> None:
    x = _name(e, node.args[0])
    e.finish(node, "Mul", [x, e.add("Tanh", [e.add("Softplus", [x])])])


def _softplus(e: OnnxEmitter, node: fx.Node) -> None:
    x, beta = _name(e, node.args[0]), float(_argument(node, 1, 1))
    if beta == 1:
        e.finish(node, "Softplus", [x])
        return
    factor = _number(e, beta, e.dtype(node))
    e.finish(node, "Div", [e.add("Softplus", [e.add("Mul", [x, factor])]), factor])


def _along(onnx_operator: str) -> Emit:
    def emit(e: OnnxEmitter, node: fx.Node) -> None:
        e.finish(node, onnx_operator, [_name(e, node.args[0])], axis=node.args[1])

    return emit


def _binary(onnx_operator: str) -> Emit:
    def emit(e: OnnxEmitter, node: fx.Node) -> None:
        e.finish(node, onnx_operator, [_operand(e, argument, e.dtype(node)) for argument in node.args[:2]])

    return emit


def _operand(e: OnnxEmitter, argument: object, dtype: torch.dtype) -> str:
    """An operand in the type of the result, which ONNX, unlike ATen, wants to be the same everywhere."""
    if not isinstance(argument, fx.Node):
        return _number(e, argument, dtype)
    if not e.is_size(argument) and e.dtype(argument) == dtype:
        return e.name_of(argument)
    return e.add("Cast", [e.name_of(argument)], to=ELEMENT_TYPES[dtype])


def _of_sizes(onnx_operator: str) -> Emit:
    def emit(e: OnnxEmitter, node: fx.Node) -> None:
        names = [e.name_of(item) if isinstance(item, fx.Node) else e.constant([item]) for item in node.args]
        e.finish(node, onnx_operator, names)

    return emit


def _sym_size(e: OnnxEmitter, node: fx.Node) -> None:
    dim = int(str(node.args[1]))
    e.finish(node, "Shape", [_name(e, node.args[0])], start=dim, end=dim + 1)


def _cast(e: OnnxEmitter, node: fx.Node) -> None:
    e.finish(node, "Cast", [_name(e, node.args[0])], to=ELEMENT_TYPES[e.dtype(node)])


def _matmul(e: OnnxEmitter, node: fx.Node) -> None:
    e.finish(node, "MatMul", _inputs(e, *node.args))


def _max_pool2d(e: OnnxEmitter, node: fx.Node) -> None:
    image, size, stride, padding, dilation, ceil_mode = node.args
    e.finish(
        node, "MaxPool", [_name(e, image)],
        kernel_shape=_numbers(size), strides=_numbers(stride), pads=_numbers(padding) * 2, dilations=_numbers(dilation),
        ceil_mode=int(bool(ceil_mode)),
    )  # fmt: skip


def _avg_pool2d(e: OnnxEmitter, node: fx.Node) -> None:
    image, size, stride, padding, ceil_mode, count_include_pad, divisor = node.args
    window = _numbers(size)
    attributes: dict[str, Any] = {
        "kernel_shape": window, "strides": _numbers(stride), "pads": _numbers(padding) * 2, "ceil_mode": int(bool(ceil_mode)),
        "count_include_pad": int(bool(count_include_pad or divisor)),
    }  # fmt: skip
    if divisor is None:
        e.finish(node, "AveragePool", [_name(e, image)], **attributes)
        return
    factor = math.prod(window) / float(str(divisor))
    e.finish(node, "Mul", [e.add("AveragePool", [_name(e, image)], **attributes), _number(e, factor, e.dtype(node))])


def _adaptive_avg_pool2d(e: OnnxEmitter, node: fx.Node) -> None:
    """Averages over unequal windows are products with a matrix on each side: rows @ image @ columns."""
    image, (height, width) = _node(node.args[0]), _numbers(node.args[1])
    if (height, width) == (1, 1):
        e.finish(node, "GlobalAveragePool", [_name(e, image)])
        return
    rows = e.constant(_averages(e.shape(image)[2], height).to(e.dtype(node)))
    columns = e.constant(_averages(e.shape(image)[3], width).t().contiguous().to(e.dtype(node)))
    e.finish(node, "MatMul", [e.add("MatMul", [rows, _name(e, image)]), columns])


def _averages(given: int, wanted: int) -> Tensor:
    """The matrix (wanted, given) that averages the windows of adaptive pooling."""
    matrix = torch.zeros(wanted, given, dtype=torch.float64)
    for row in range(wanted):
        start, end = row * given // wanted, -(-(row + 1) * given // wanted)
        matrix[row, start:end] = 1 / (end - start)
    return matrix


def _reduce(onnx_operator: str) -> Emit:
    def emit(e: OnnxEmitter, node: fx.Node) -> None:
        value, dims = node.args[0], e.constant(_numbers(node.args[1]))
        e.finish(node, onnx_operator, [_name(e, value), dims], keepdims=int(bool(_argument(node, 2, False))))

    return emit


def _argmax(e: OnnxEmitter, node: fx.Node) -> None:
    value, dim = _name(e, node.args[0]), _argument(node, 1, None)
    if dim is None:
        e.finish(node, "ArgMax", [e.add("Reshape", [value, e.constant([-1])])], axis=0, keepdims=0)
    else:
        e.finish(node, "ArgMax", [value], axis=dim, keepdims=int(bool(_argument(node, 2, False))))


def _reshape(e: OnnxEmitter, node: fx.Node) -> None:
    e.finish(node, "Reshape", [_name(e, node.args[0]), e.vector(_list(node.args[1]))])


def _permute(e: OnnxEmitter, node: fx.Node) -> None:
    e.finish(node, "Transpose", [_name(e, node.args[0])], perm=_numbers(node.args[1]))


def _expand(e: OnnxEmitter, node: fx.Node) -> None:
    sizes = [1 if size == -1 else size for size in _list(node.args[1])]  # 1 keeps a size in ONNX
    e.finish(node, "Expand", [_name(e, node.args[0]), e.vector(sizes)])


def _cat(e: OnnxEmitter, node: fx.Node) -> None:
    e.finish(node, "Concat", _inputs(e, *_list(node.args[0])), axis=node.args[1])


def _slice(e: OnnxEmitter, node: fx.Node) -> None:
    value, dim, start, end, step = node.args
    e.finish(node, "Slice", [_name(e, value), *(e.vector([number]) for number in (start, end, dim, step))])


def _select(e: OnnxEmitter, node: fx.Node) -> None:
    value, dim, index = node.args
    e.finish(node, "Gather", [_name(e, value), e.constant(index)], axis=dim)


def _pad(e: OnnxEmitter, node: fx.Node) -> None:
    value, amounts, mode, fill = _node(node.args[0]), _numbers(node.args[1]), str(node.args[2]), node.args[3]
    rank = len(e.shape(value))
    before, after = [0] * rank, [0] * rank
    for place in range(len(amounts) // 2):  # ATen counts from the last dimension
        before[rank - 1 - place], after[rank - 1 - place] = amounts[2 * place], amounts[2 * place + 1]
    names = [_name(e, value), e.constant(before + after)]
    if mode == "constant":
        names.append(_number(e, fill or 0.0, e.dtype(node)))
    e.finish(node, "Pad", names, mode={"constant": "constant", "reflect": "reflect", "replicate": "edge"}[mode])


def _upsample_nearest2d(e: OnnxEmitter, node: fx.Node) -> None:
    image, size, scales = node.args
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    e.finish(node, "Resize", _resize_inputs(e, image, size, scales), **attributes)


def _upsample_bilinear2d(e: OnnxEmitter, node: fx.Node) -> None:
    image, size, align_corners, scales = node.args
    transform = "align_corners" if align_corners else "half_pixel"
    names = _resize_inputs(e, image, size, scales)
    e.finish(node, "Resize", names, mode="linear", coordinate_transformation_mode=transform)


def _resize_inputs(e: OnnxEmitter, image: object, size: object, scales: object) -> list[str]:
    if scales is not None:
        factors = torch.tensor([1.0, 1.0, *_list(scales)], dtype=torch.float32)
        return [_name(e, image), "", e.constant(factors)]
    kept = e.add("Shape", [_name(e, image)], start=0, end=2)
    return [_name(e, image), "", "", e.add("Concat", [kept, e.vector(_list(size))], axis=0)]


def _pixel_shuffle(e: OnnxEmitter, node: fx.Node) -> None:
    e.finish(node, "DepthToSpace", [_name(e, node.args[0])], blocksize=node.args[1], mode="CRD")


def _pixel_unshuffle(e: OnnxEmitter, node: fx.Node) -> None:
    """ONNX puts places before channels, ATen channels before places: the channels are put in order afterwards."""
    image, block = _node(node.args[0]), int(str(node.args[1]))
    channels, places = e.shape(image)[1], block * block
    order = torch.arange(places * channels).reshape(places, channels).t().reshape(-1).contiguous()
    depth = e.add("SpaceToDepth", [_name(e, image)], blocksize=block)
    e.finish(node, "Gather", [depth, e.constant(order)], axis=1)


def _list(argument: object) -> list[Any]:  # Any: elements of a node's list argument
    assert isinstance(argument, (list, tuple))
    return list(argument)


def _argument(node: fx.Node, place: int, default: Any) -> Any:  # Any: a number or None
    return node.args[place] if len(node.args) > place else default


_EMITTERS: dict[object, Emit] = {
    aten.conv2d.default: _conv2d,
    aten.conv_transpose2d.input: _conv_transpose2d,
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.relu.default: _plain("Relu"),
    aten.clamp.default: _clamp,
    aten.leaky_relu.default: _leaky_relu,
    aten.prelu.default: _prelu,
    aten.elu.default: _elu,
    aten.gelu.default: _gelu,
    aten.sigmoid.default: _plain("Sigmoid"),
    aten.hardsigmoid.default: _hardsigmoid,
    aten.silu.default: _silu,
    aten.hardswish.default: _plain("HardSwish"),
    aten.mish.default: _mish,
    aten.tanh.default: _plain("Tanh"),
    aten.softplus.default: _softplus,
    aten.softmax.int: _along("Softmax"),
    aten.log_softmax.int: _along("LogSoftmax"),
    aten.add.Tensor: _binary("Add"),
    aten.sub.Tensor: _binary("Sub"),
    aten.mul.Tensor: _binary("Mul"),
    aten.div.Tensor: _binary("Div"),
    aten.pow.Tensor_Scalar: _binary("Pow"),
    aten.maximum.default: _binary("Max"),
    aten.minimum.default: _binary("Min"),
    aten.matmul.default: _matmul,
    aten.abs.default: _plain("Abs"),
    aten.neg.default: _plain("Neg"),
    aten.exp.default: _plain("Exp"),
    aten.log.default: _plain("Log"),
    aten.sqrt.default: _plain("Sqrt"),
    aten.reciprocal.default: _plain("Reciprocal"),
    aten.erf.default: _plain("Erf"),
    aten.floor.default: _plain("Floor"),
    aten.ceil.default: _plain("Ceil"),
    aten.to.dtype: _cast,
    aten.max_pool2d.default: _max_pool2d,
    aten.avg_pool2d.default: _avg_pool2d,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
    aten.mean.dim: _reduce("ReduceMean"),
    aten.sum.dim_IntList: _reduce("ReduceSum"),
    aten.amax.default: _reduce("ReduceMax"),
    aten.amin.default: _reduce("ReduceMin"),
    aten.argmax.default: _argmax,
    aten.reshape.default: _reshape,
    aten.permute.default: _permute,
    aten.expand.default: _expand,
    aten.cat.default: _cat,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.pad.default: _pad,
    aten.upsample_nearest2d.vec: _upsample_nearest2d,
    aten.upsample_bilinear2d.vec: _upsample_bilinear2d,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
    aten.sym_size.int: _sym_size,
    operator.add: _of_sizes("Add"),
    operator.sub: _of_sizes("Sub"),
    operator.mul: _of_sizes("Mul"),
    operator.floordiv: _of_sizes("Div"),
}
WRITABLE = frozenset(_EMITTERS)
