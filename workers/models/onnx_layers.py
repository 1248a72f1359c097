"""ONNX operators with weights or windows: convolutions, linear layers, normalisation, pooling."""

import math
import re
from dataclasses import replace

import torch
from torch import Tensor

from workers.models import canonical
from workers.models.canonical import Pair
from workers.models.graph import aten
from workers.models.graph_builder import Constant, GraphBuilder, Value
from workers.models.onnx_node import Handler, OnnxNode, Result

# Names that exporters make up for weights; the node's own name says more.
_SAYS_NOTHING = re.compile(
    r"\d+|Parameter\d+\w*|onnx::.*|_v_\d+|val_\d+|packed(_\d+)?|const\w*?_*\d+|.*Constant(_output)?_\d+(_output_\d+)?"
)

Sides = tuple[int, int, int, int]  # top, left, bottom, right: the order of ONNX


def _conv(node: OnnxNode) -> Result:
    b, image, weight = node.builder, node.value(0), _weight(node)
    size = _window(node, weight)
    stride, dilation = _pair(node, "strides"), _pair(node, "dilations")
    image, padding = _padded(node, image, _sides(node, image, size, stride, dilation), fill=0.0)
    return canonical.conv2d(
        b,
        image,
        weight,
        _bias(node, weight),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=node.integer("group", 1),
    )


def _conv_transpose(node: OnnxNode) -> Result:
    b, image, weight = node.builder, node.value(0), _weight(node)
    size = _window(node, weight)
    stride, dilation, extra = _pair(node, "strides"), _pair(node, "dilations"), _pair(node, "output_padding", 0)
    sides = _transposed_sides(node, image, size, stride, dilation, extra)
    padding, crop = (0, 0), sides
    if sides[:2] == sides[2:] and min(sides) >= 0:
        padding, crop = (sides[0], sides[1]), (0, 0, 0, 0)
    result = canonical.conv_transpose2d(
        b, image, weight, _bias(node, weight),
        stride=stride, padding=padding, output_padding=extra, groups=node.integer("group", 1), dilation=dilation,
    )  # fmt: skip
    top, left, bottom, right = crop
    return canonical.pad(b, result, [-left, -right, -top, -bottom], "constant", 0.0)


def _transposed_sides(node: OnnxNode, image: Value, size: Pair, stride: Pair, dilation: Pair, extra: Pair) -> Sides:
    wanted = node.integers("output_shape", ())
    word = node.word("auto_pad", "NOTSET")
    if len(wanted) not in (0, 2, 4):
        raise node.builder.refuse(f"its output_shape is {wanted}; two numbers are needed")
    if not wanted and word not in ("SAME_UPPER", "SAME_LOWER"):
        return (0, 0, 0, 0) if word == "VALID" else _explicit_sides(node)
    height, width = _image_size(node, image)
    outputs = wanted[-2:] if wanted else [height * stride[0], width * stride[1]]
    totals = [
        step * (given - 1) + more + (window - 1) * spread + 1 - out
        for given, step, more, window, spread, out in zip(
            (height, width), stride, extra, size, dilation, outputs, strict=True
        )
    ]
    # The odd one goes to the end for SAME_UPPER, to the start otherwise.
    starts = [total // 2 if word == "SAME_UPPER" else total - total // 2 for total in totals]
    return (starts[0], starts[1], totals[0] - starts[0], totals[1] - starts[1])


def _gemm(node: OnnxNode) -> Result:
    b, alpha, beta = node.builder, node.number("alpha", 1.0), node.number("beta", 1.0)
    left, right = node.value(0), node.value(1)
    if node.integer("transA", 0):
        left = canonical.permute(b, left, [1, 0])
    bias = node.optional(2)
    if not isinstance(right, Constant):
        return _gemm_of_results(node, left, right, bias, alpha, beta)
    if right.tensor.dim() != 2:
        raise b.refuse(f"its weight has {right.tensor.dim()} dimensions; two are needed")
    matrix = right if node.integer("transB", 0) else canonical.transposed(b, right)
    weight = _named(node, _scaled(matrix, alpha), "weight")
    outputs = weight.tensor.shape[0]
    if isinstance(bias, Constant) and bias.tensor.numel() in (1, outputs) and bias.tensor.shape[:-1].numel() == 1:
        vector = Constant(bias.tensor.reshape(-1).expand(outputs).contiguous(), bias.name)
        return canonical.linear(b, left, weight, _named(node, _scaled(vector, beta), "bias"))
    result = canonical.linear(b, left, weight, None)
    return result if bias is None else canonical.add(b, result, _times(b, bias, beta))


def _gemm_of_results(node: OnnxNode, left: Value, right: Value, bias: Value | None, alpha: float, beta: float) -> Value:
    b = node.builder
    if node.integer("transB", 0):
        right = canonical.permute(b, right, [1, 0])
    result = _times(b, canonical.matmul(b, left, right), alpha)
    return result if bias is None else canonical.add(b, result, _times(b, bias, beta))


def _times(b: GraphBuilder, value: Value, factor: float) -> Value:
    return value if factor == 1.0 else b.call(aten.mul.Tensor, value, factor)


def _scaled(constant: Constant, factor: float) -> Constant:
    return constant if factor == 1.0 else Constant(constant.tensor * factor, constant.name)


def _matmul(node: OnnxNode) -> Result:
    right = node.value(1)
    if isinstance(right, Constant) and right.tensor.dim() == 2:
        right = _named(node, right, "weight")
    return canonical.matmul(node.builder, node.value(0), right)


def _batch_normalization(node: OnnxNode) -> Result:
    b = node.builder
    if node.integer("spatial", 1) != 1:
        raise b.refuse("statistics for every pixel (spatial=0) are not supported")
    if node.integer("training_mode", 0):
        raise b.refuse("it is in training mode", hint="Export the network in evaluation mode: model.eval().")
    image = node.value(0)
    scale, bias, mean, variance = (node.constant(place, "statistics") for place in range(1, 5))
    return canonical.batch_norm(b, image, scale, bias, mean, variance, momentum=0.1, eps=node.number("epsilon", 1e-5))


def _instance_normalization(node: OnnxNode) -> Result:
    b, image = node.builder, node.value(0)
    channels = b.shape(image)[1] if b.rank(image) > 2 else None
    if channels is None:
        raise b.refuse("only a fixed number of channels is supported")
    return b.call(
        aten.group_norm.default,
        image,
        channels,
        node.value(1),
        node.value(2),
        node.number("epsilon", 1e-5),
        False,
    )


def _group_normalization(node: OnnxNode) -> Result:
    b, image = node.builder, node.value(0)
    groups, channels = node.integer("num_groups", 1), _channels(node, image)
    scale, bias = (_per_channel(node, place, channels) for place in (1, 2))
    return b.call(aten.group_norm.default, image, groups, scale, bias, node.number("epsilon", 1e-5), False)


def _per_channel(node: OnnxNode, place: int, channels: int) -> Constant:
    """Until opset 20 there is one number a group."""
    found = node.constant(place, "scale or bias")
    repeats, rest = divmod(channels, max(1, found.tensor.numel()))
    if rest:
        raise node.builder.refuse(f"{found.tensor.numel()} numbers don't fit {channels} channels")
    return found if repeats == 1 else replace(found, tensor=found.tensor.repeat_interleave(repeats))


def _layer_normalization(node: OnnxNode) -> Result:
    b, value = node.builder, node.value(0)
    axis = canonical.dimension(b, node.integer("axis", -1), b.rank(value))
    shape = b.shape(value)[axis:]
    if None in shape:
        raise b.refuse("it normalises over a size that varies")
    return b.call(
        aten.layer_norm.default,
        value,
        list(shape),
        node.value(1),
        node.optional(2),
        node.number("epsilon", 1e-5),
        False,
    )


def _lrn(node: OnnxNode) -> Result:
    """Local response normalisation: x / (bias + alpha * mean of squares over neighbouring channels) ** beta."""
    b, image, size = node.builder, node.value(0), node.integer("size", 1)
    if b.rank(image) != 4 or size < 1:
        raise b.refuse(f"windows of {size} over {b.rank(image)} dimensions are not supported")
    squares = b.call(aten.pow.Tensor_Scalar, image, 2)
    before = (size - 1) // 2
    padded = canonical.pad(b, squares, [0, 0, 0, 0, before, size - 1 - before], "constant", 0.0)
    # Channels become the height of one-channel images, over which a window of `size` x 1 is averaged.
    channels, height, width = (b.size(padded, place) for place in (1, 2, 3))
    if not isinstance(height, int) or not isinstance(width, int):
        raise b.refuse("images of varying size are not supported here")
    columns = canonical.reshape(b, padded, [b.size(padded, 0), 1, channels, height * width])
    means = canonical.avg_pool2d(
        b, columns, size=(size, 1), stride=(1, 1), padding=(0, 0), ceil_mode=False, count_include_pad=True
    )
    means = canonical.reshape(b, means, [b.size(image, place) for place in range(4)])
    scaled = b.call(aten.mul.Tensor, means, node.number("alpha", 1e-4))
    powered = b.call(
        aten.pow.Tensor_Scalar, canonical.add(b, scaled, node.number("bias", 1.0)), node.number("beta", 0.75)
    )
    return b.call(aten.div.Tensor, image, powered)


def _max_pool(node: OnnxNode) -> Result:
    b, image = node.builder, node.value(0)
    if node.results > 1:
        raise b.refuse("its second output, the places of the maxima, is not supported")
    size, stride, dilation = _pair(node, "kernel_shape", None), _pair(node, "strides"), _pair(node, "dilations")
    sides, ceil_mode = _sides(node, image, size, stride, dilation), bool(node.integer("ceil_mode", 0))
    if sides[:2] == sides[2:] and all(2 * side <= window for side, window in zip(sides, size, strict=False)):
        padding = (sides[0], sides[1])
    else:
        if ceil_mode:
            sides, ceil_mode = _sides_rounded_up(node, image, sides, size, stride, dilation), False
        image = canonical.pad(b, image, [sides[1], sides[3], sides[0], sides[2]], "constant", -math.inf)
        padding = (0, 0)
    return canonical.max_pool2d(
        b, image, size=size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode
    )


def _sides_rounded_up(node: OnnxNode, image: Value, sides: Sides, size: Pair, stride: Pair, dilation: Pair) -> Sides:
    """The padding at the end under which plain windows are those of ceil_mode: none begins in the padding."""
    ends = []
    for axis, given in enumerate(_image_size(node, image)):
        before, after, step = sides[axis], sides[axis + 2], stride[axis]
        window = (size[axis] - 1) * dilation[axis] + 1
        last = -(-(given + before + after - window) // step)
        if last * step >= given + before:
            last -= 1
        ends.append(max(0, last * step + window - given - before))
    return (sides[0], sides[1], ends[0], ends[1])


def _average_pool(node: OnnxNode) -> Result:
    b, image = node.builder, node.value(0)
    size, stride = _pair(node, "kernel_shape", None), _pair(node, "strides")
    if _pair(node, "dilations") != (1, 1):
        raise b.refuse("a dilated average is not supported")
    sides = _sides(node, image, size, stride, (1, 1))
    counts_padding = bool(node.integer("count_include_pad", 0))
    ceil_mode = bool(node.integer("ceil_mode", 0))
    if sides[:2] == sides[2:] and all(2 * side <= window for side, window in zip(sides, size, strict=False)):
        return canonical.avg_pool2d(
            b,
            image,
            size=size,
            stride=stride,
            padding=(sides[0], sides[1]),
            ceil_mode=ceil_mode,
            count_include_pad=counts_padding,
        )
    if ceil_mode:
        raise b.refuse("padding that differs from side to side together with ceil_mode is not supported")

    def average(value: Value) -> Value:
        padded = canonical.pad(b, value, [sides[1], sides[3], sides[0], sides[2]], "constant", 0.0)
        return canonical.avg_pool2d(
            b, padded, size=size, stride=stride, padding=(0, 0), ceil_mode=False, count_include_pad=True
        )

    if counts_padding:
        return average(image)
    # The part of each window that is image: the average of ones, known while reading.
    height, width = _image_size(node, image)
    ones = Constant(
        torch.ones(1, 1, height, width, dtype=b.probes(image)[0].dtype), f"{node.layer}.coverage", trainable=False
    )
    return b.call(aten.div.Tensor, average(image), average(ones))


def _global_average_pool(node: OnnxNode) -> Result:
    image = node.value(0)
    _channels(node, image)
    return canonical.adaptive_avg_pool2d(node.builder, image, (1, 1))


def _global_max_pool(node: OnnxNode) -> Result:
    image = node.value(0)
    _channels(node, image)
    return node.builder.call(aten.amax.default, image, [2, 3], True)


def _channels(node: OnnxNode, image: Value) -> int:
    shape = node.builder.shape(image)
    if len(shape) != 4 or shape[1] is None:
        raise node.builder.refuse("only batches of images with a fixed number of channels are supported")
    return shape[1]


def _image_size(node: OnnxNode, image: Value) -> Pair:
    shape = node.builder.shape(image)
    if len(shape) != 4 or shape[2] is None or shape[3] is None:
        raise node.builder.refuse("this padding needs images of a fixed size")
    return (shape[2], shape[3])


def says_nothing(name: str) -> bool:
    """Whether a weight's name was made up by an exporter."""
    return _SAYS_NOTHING.fullmatch(name) is not None


def _weight(node: OnnxNode) -> Constant:
    return _named(node, node.constant(1, "weight"), "weight")


def _bias(node: OnnxNode, weight: Constant) -> Constant | None:
    if not node.has(2):
        return None
    bias = node.constant(2, "bias")
    if weight.name == f"{node.layer}.weight":
        return replace(bias, name=f"{node.layer}.bias")
    return bias


def _named(node: OnnxNode, constant: Constant, role: str) -> Constant:
    """A layer's parameter under the uploader's name for it, or under the node's if that says nothing."""
    name = f"{node.layer}.{role}" if says_nothing(constant.name) else constant.name
    return Constant(constant.tensor, name)


def _window(node: OnnxNode, weight: Constant) -> Pair:
    if weight.tensor.dim() != 4:
        raise node.builder.refuse(
            f"only convolutions of two dimensions are supported; these filters have {weight.tensor.dim() - 2}"
        )
    size = (weight.tensor.shape[2], weight.tensor.shape[3])
    if _pair(node, "kernel_shape", None, given=size) != size:
        raise node.builder.refuse("its kernel_shape is not the shape of its weight")
    return size


def _pair(node: OnnxNode, attribute: str, default: int | None = 1, *, given: Pair | None = None) -> Pair:
    if attribute not in node.attributes:
        if given is not None:
            return given
        if default is not None:
            return (default, default)
    numbers = node.integers(attribute, ())
    if len(numbers) != 2:
        raise node.builder.refuse(
            f"its attribute {attribute} has {len(numbers)} numbers; only two dimensions are supported"
        )
    if min(numbers) < (0 if attribute == "output_padding" else 1):
        raise node.builder.refuse(f"its attribute {attribute} is {numbers}, which is impossible")
    return (numbers[0], numbers[1])


def _explicit_sides(node: OnnxNode) -> Sides:
    pads = node.integers("pads", (0, 0, 0, 0))
    if len(pads) != 4:
        raise node.builder.refuse(f"its pads are {pads}; four numbers are needed")
    return (pads[0], pads[1], pads[2], pads[3])


def _sides(node: OnnxNode, image: Value, size: Pair, stride: Pair, dilation: Pair) -> Sides:
    word = node.word("auto_pad", "NOTSET")
    if word == "NOTSET":
        return _explicit_sides(node)
    if word == "VALID":
        return (0, 0, 0, 0)
    if word not in ("SAME_UPPER", "SAME_LOWER") or min(stride) < 1:
        raise node.builder.refuse(f"auto_pad {word!r} with strides {stride} is not known")
    places = (0, 0) if stride == (1, 1) else _image_size(node, image)
    totals = [
        max(0, ((math.ceil(given / step) - 1) * step if given else 0) + (window - 1) * spread + 1 - (given or 1))
        for given, step, window, spread in zip(places, stride, size, dilation, strict=True)
    ]
    starts = [total // 2 if word == "SAME_UPPER" else total - total // 2 for total in totals]
    return (starts[0], starts[1], totals[0] - starts[0], totals[1] - starts[1])


def _padded(node: OnnxNode, image: Value, sides: Sides, *, fill: float) -> tuple[Value, Pair]:
    """The image and the padding left to do: all of it if both sides are alike, else none."""
    top, left, bottom, right = sides
    if min(sides) < 0:
        raise node.builder.refuse(f"negative padding {sides} is not supported")
    if (top, left) == (bottom, right):
        return image, (top, left)
    return canonical.pad(node.builder, image, [left, right, top, bottom], "constant", fill), (0, 0)


def add_as_bias(b: GraphBuilder, left: Value, right: Value) -> Value | None:
    """A constant added to the result of a layer without bias is that layer's bias; None if this is not so."""
    if isinstance(left, Constant):
        left, right = right, left
    if isinstance(left, Constant) or not isinstance(right, Constant) or left.op != "call_function":
        return None
    no_trailing: tuple[int, ...] = ()
    if left.target is aten.linear.default:
        channels, trailing = b.probes(left)[0].shape[-1], no_trailing
    elif left.target is aten.conv2d.default:
        channels, trailing = b.probes(left)[0].shape[1], (1, 1)
    else:
        return None
    fits = _is_vector(right.tensor, int(channels), trailing) and right.tensor.dtype == b.probes(left)[0].dtype
    if left.args[2] is not None or not fits:
        return None
    weight = left.args[1]
    layer = str(getattr(weight, "target", "")).removesuffix(".weight")
    name = f"{layer}.bias" if says_nothing(right.name) else right.name
    return b.call(left.target, left.args[0], weight, Constant(right.tensor.reshape(-1), name), *left.args[3:])


def _is_vector(tensor: Tensor, channels: int, trailing: tuple[int, ...]) -> bool:
    shape = tuple(tensor.shape)
    return shape in {(channels, *trailing), (1, channels, *trailing)} and (channels > 1 or len(shape) > len(trailing))


LAYERS: dict[str, Handler] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization,
    "GroupNormalization": _group_normalization,
    "LayerNormalization": _layer_normalization,
    "LRN": _lrn,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
}
