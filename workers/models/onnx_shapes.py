"""ONNX operators that move elements about or compute shapes."""

import math
import operator
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, fx

from workers.models import canonical
from workers.models.graph import aten
from workers.models.graph_builder import Constant, Size, Value
from workers.models.onnx_node import Handler, OnnxNode, Result, Sizes, sizes
from workers.models.onnx_resize import resize, upsample

MAX_GATHERED = 4096
LAST = 2**63 - 1


def _constant(node: OnnxNode) -> Result:
    for attribute, found in node.attributes.items():
        match attribute, found:
            case "value", torch.Tensor():
                return Constant(found, node.layer)
            case (("value_float" | "value_floats"), (float() | list())):
                return Constant(torch.tensor(found, dtype=torch.float32), node.layer)
            case (("value_int" | "value_ints"), (int() | list())):
                return Constant(torch.tensor(found, dtype=torch.int64), node.layer)
    raise node.builder.refuse("it holds no tensor or number")


def _constant_of_shape(node: OnnxNode) -> Result:
    shape = node.numbers(0, "shape")
    if any(size < 0 for size in shape):
        raise node.builder.refuse(f"a constant of shape {shape} is impossible")
    node.builder.fold(math.prod(shape))
    value = node.attributes.get("value", torch.zeros(1))
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        raise node.builder.refuse("its value is not one number")
    return Constant(value.reshape(()).repeat(shape), node.layer)


def _shape(node: OnnxNode) -> Result:
    b, value = node.builder, node.value(0)
    places = range(b.rank(value))[slice(node.integer("start", 0), node.integer("end", LAST))]
    return sizes([b.size(value, place) for place in places])


def _size(node: OnnxNode) -> Result:
    shape = node.builder.shape(node.value(0))
    if None in shape:
        raise node.builder.refuse("the number of elements varies with the input")
    return sizes([math.prod(size or 0 for size in shape)], scalar=True)


def _gather(node: OnnxNode) -> Result:
    found, index = node.operand(0), node.constant(1, "index").tensor
    if isinstance(found, Constant) and index.dim() == 1:
        return _gathered(node, found, index)
    if index.is_floating_point() or index.numel() > MAX_GATHERED or index.dim() > 1:
        raise node.builder.refuse("only a number or a short list of places can be gathered")
    places = [int(place) for place in index.reshape(-1).tolist()]
    if isinstance(found, Sizes):
        chosen = [_item(node, found, place) for place in places]
        return sizes(chosen, scalar=index.dim() == 0)
    b = node.builder
    axis = canonical.dimension(b, node.integer("axis", 0), b.rank(found))
    size = b.shape(found)[axis]
    if size is not None:
        if any(not -size <= place < size for place in places):
            raise b.refuse(f"there is no place {places} among {size}")
        places = [place % size for place in places]
    if index.dim() == 0:
        return b.call(aten.select.int, found, axis, places[0])
    if places and size is not None and places == list(range(places[0], places[-1] + 1)):
        return canonical.slice_along(b, found, axis, places[0], places[-1] + 1)
    return b.call(aten.cat.default, [canonical.slice_along(b, found, axis, place, place + 1) for place in places], axis)


def _gathered(node: OnnxNode, found: Constant, index: Tensor) -> Constant:
    axis = canonical.dimension(node.builder, node.integer("axis", 0), found.tensor.dim())
    size = found.tensor.shape[axis]
    elements = found.tensor.numel() // max(1, size) * index.numel()
    node.builder.fold(elements)
    if index.is_floating_point() or not bool(((index >= -size) & (index < size)).all()):
        raise node.builder.refuse("it gathers from places that don't exist")
    return replace(found, tensor=found.tensor.index_select(axis, index.to(torch.int64) % max(1, size)))


def _item(node: OnnxNode, found: Sizes, place: int) -> Size:
    if not -len(found.items) <= place < len(found.items):
        raise node.builder.refuse(f"there is no place {place} among {len(found.items)} sizes")
    return found.items[place]


def _concat(node: OnnxNode) -> Result:
    if any(isinstance(found, Sizes) for found in node.operands):
        parts = [node.sizes(place, "list of sizes") for place in range(len(node.operands))]
        return sizes([item for part in parts for item in part])
    values = [node.value(place) for place in range(max(1, len(node.operands)))]
    axis = canonical.dimension(node.builder, node.integer("axis", 1), node.builder.rank(values[0]))
    return node.builder.call(aten.cat.default, values, axis)


def _split(node: OnnxNode) -> Result:
    b, value = node.builder, node.value(0)
    axis = canonical.dimension(b, node.integer("axis", 0), b.rank(value))
    size = b.shape(value)[axis]
    parts = node.list_from("split", 1)
    if size is None:
        raise b.refuse("a dimension that varies can't be split")
    if parts is None:
        step = math.ceil(size / max(1, node.results))
        parts = [min(step, size - step * place) for place in range(node.results)]
    if sum(parts) != size or any(part < 0 for part in parts):
        raise b.refuse(f"parts of {parts} don't make up {size}")
    starts = [sum(parts[:place]) for place in range(len(parts))]
    return [
        canonical.slice_along(b, value, axis, start, start + part) for start, part in zip(starts, parts, strict=True)
    ]


def _slice(node: OnnxNode) -> Result:
    starts, ends = node.list_from("starts", 1), node.list_from("ends", 2)
    if starts is None or ends is None or len(starts) != len(ends):
        raise node.builder.refuse("it has no starts or ends")
    axes = node.list_from("axes", 3) or list(range(len(starts)))
    steps = (node.numbers(4, "steps") if node.has(4) else None) or [1] * len(starts)
    if len(axes) != len(starts) or len(steps) != len(starts):
        raise node.builder.refuse("its starts, ends, axes and steps are not equally many")
    found = node.operand(0)
    if isinstance(found, Sizes):
        return sizes(found.items[starts[0] : ends[0] : steps[0]]) if steps[0] != 0 else found
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        found = canonical.slice_along(node.builder, found, axis, start, end, step)
    return found


def _reshape(node: OnnxNode) -> Result:
    b = node.builder
    found = node.operand(0)
    wanted = [*node.integers("shape", ())] if "shape" in node.attributes else node.sizes(1, "shape")
    if isinstance(found, Sizes):
        return sizes(found.items, scalar=not wanted)
    if not node.integer("allowzero", 0):
        wanted = [
            b.size(found, place) if size == 0 and place < b.rank(found) else size for place, size in enumerate(wanted)
        ]
    return canonical.reshape(b, found, wanted)


def _flatten(node: OnnxNode) -> Result:
    b, value = node.builder, node.value(0)
    rank, axis = b.rank(value), node.integer("axis", 1)
    if not -rank <= axis <= rank:
        raise b.refuse(f"there is no dimension {axis} in a tensor of {rank}")
    axis = axis + rank if axis < 0 else axis
    before, after = (_product(node, value, places) for places in (range(axis), range(axis, rank)))
    return canonical.reshape(b, value, [before, after])


def _product(node: OnnxNode, value: Value, places: range) -> Size:
    """The number of elements over some dimensions: a number, or a node if it varies."""
    b = node.builder
    product: Size = 1
    for place in places:
        size = b.size(value, place)
        if isinstance(size, fx.Node) or isinstance(product, fx.Node):
            product = size if product == 1 else product if size == 1 else _times(node, product, size)
        else:
            product *= size
    return product


def _times(node: OnnxNode, one: Size, other: Size) -> Size:
    result = node.builder.call(operator.mul, one, other)
    assert isinstance(result, fx.Node)
    return result


def _squeeze(node: OnnxNode) -> Result:
    found, axes = node.operand(0), node.list_from("axes", 1)
    if isinstance(found, Sizes):
        return sizes(found.items, scalar=True)
    return canonical.squeeze(node.builder, found, axes)


def _unsqueeze(node: OnnxNode) -> Result:
    found, axes = node.operand(0), node.list_from("axes", 1)
    if axes is None:
        raise node.builder.refuse("it has no axes")
    if isinstance(found, Sizes):
        return Sizes(found.items)
    return canonical.unsqueeze(node.builder, found, axes)


def _transpose(node: OnnxNode) -> Result:
    b, value = node.builder, node.value(0)
    order = node.integers("perm", list(range(b.rank(value)))[::-1])
    if sorted(order) != list(range(b.rank(value))):
        raise b.refuse(f"{order} is no order of {b.rank(value)} dimensions")
    return canonical.permute(b, value, order)


def _expand(node: OnnxNode) -> Result:
    b, value = node.builder, node.value(0)
    wanted = node.sizes(1, "shape")
    missing = len(wanted) - b.rank(value)
    # ONNX lets either side be 1; ATen's -1 keeps a size.
    kept: list[Size] = [-1 if place >= missing and size == 1 else size for place, size in enumerate(wanted)]
    if missing < 0:
        kept = [*[-1] * -missing, *kept]
    return b.call(aten.expand.default, value, kept)


def _tile(node: OnnxNode) -> Result:
    b, value, repeats = node.builder, node.value(0), node.numbers(1, "repeats")
    if len(repeats) != b.rank(value) or any(not 1 <= repeat <= 256 for repeat in repeats):
        raise b.refuse(f"repeats {repeats} are not supported")
    for axis, repeat in enumerate(repeats):
        if repeat > 1:
            value = b.call(aten.cat.default, [value] * repeat, axis)
    return value


def _pad(node: OnnxNode) -> Result:
    b, value = node.builder, node.value(0)
    rank = b.rank(value)
    pads = node.list_from("pads", 1)
    axes = node.numbers(3, "axes") if node.has(3) else list(range(rank))
    if pads is None or len(pads) != 2 * len(axes):
        raise b.refuse(f"its pads are {pads}; two numbers for each of {len(axes)} dimensions are needed")
    amounts = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        mirrored = rank - 1 - canonical.dimension(b, axis, rank)  # ATen counts from the last dimension
        amounts[2 * mirrored], amounts[2 * mirrored + 1] = pads[place], pads[place + len(axes)]
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode = node.word("mode", "constant")
    if mode not in modes:
        raise b.refuse(f"padding mode {mode!r} is not supported")
    fill = node.number("value", 0.0) if node.opset < 11 else node.scalar(2, "fill") if node.has(2) else 0.0
    return canonical.pad(b, value, amounts, modes[mode], fill)


def _depth_to_space(node: OnnxNode) -> Result:
    b, image, block = node.builder, node.value(0), node.integer("blocksize", 1)
    batch, channels, height, width = _image(node, image)
    if block < 1 or channels % (block * block):
        raise b.refuse(f"{channels} channels can't become blocks of {block}x{block}")
    if node.word("mode", "DCR") == "CRD":
        return b.call(aten.pixel_shuffle.default, image, block)
    # (N, b, b, C, H, W) → (N, C, H, b, W, b), and from there as pixel_shuffle does: channels to the front of their block.
    split = canonical.reshape(b, image, [batch, block * block, channels // (block * block), height, width])
    grouped = canonical.permute(b, split, [0, 2, 1, 3, 4])
    return b.call(aten.pixel_shuffle.default, canonical.reshape(b, grouped, [batch, channels, height, width]), block)


def _space_to_depth(node: OnnxNode) -> Result:
    b, image, block = node.builder, node.value(0), node.integer("blocksize", 1)
    batch, channels, _height, _width = _image(node, image)
    if block < 1:
        raise b.refuse(f"blocks of {block} are impossible")
    depth = b.call(aten.pixel_unshuffle.default, image, block)  # channel-major; ONNX wants place-major
    height, width = b.size(depth, 2), b.size(depth, 3)
    split = canonical.reshape(b, depth, [batch, channels, block * block, height, width])
    return canonical.reshape(
        b, canonical.permute(b, split, [0, 2, 1, 3, 4]), [batch, channels * block * block, height, width]
    )


def _image(node: OnnxNode, image: Value) -> tuple[Size, int, Size, Size]:
    b = node.builder
    if b.rank(image) != 4:
        raise b.refuse("only batches of images are supported")
    channels = b.size(image, 1)
    if not isinstance(channels, int):
        raise b.refuse("the number of channels varies with the input")
    return b.size(image, 0), channels, b.size(image, 2), b.size(image, 3)


def _reduce_prod(node: OnnxNode) -> Result:
    found = node.operand(0)
    if not isinstance(found, Sizes):
        tensor = node.constant(0, "list of sizes").tensor
        return Constant(tensor.prod().reshape([1] if node.integer("keepdims", 1) else []), "sizes", trainable=False)
    product: Size = 1
    for item in found.items:
        known = isinstance(item, int) and isinstance(product, int)
        product = product * item if known else _times(node, product, item)  # type: ignore[operator]
    return sizes([product], scalar=not node.integer("keepdims", 1))


def _of_constants(function: Callable[[OnnxNode, list[Tensor]], Tensor]) -> Handler:
    """Operators that only stand between constants, such as those that unpack weights."""

    def handler(node: OnnxNode) -> Result:
        given = [node.constant(place, f"input {place}") for place in range(len(node.operands))]
        return Constant(function(node, [constant.tensor for constant in given]), given[0].name)

    return handler


def _bit_shift(node: OnnxNode, tensors: list[Tensor]) -> Tensor:
    if any(tensor.dtype != torch.uint8 for tensor in tensors) or node.word("direction", "") != "RIGHT":
        raise node.builder.refuse("only bytes shifted to the right are supported")
    _check_broadcast(node, tensors)
    return torch.bitwise_right_shift(*tensors)


def _bitwise_and(node: OnnxNode, tensors: list[Tensor]) -> Tensor:
    if any(tensor.is_floating_point() for tensor in tensors):
        raise node.builder.refuse("only whole numbers have bits")
    _check_broadcast(node, tensors)
    return torch.bitwise_and(*tensors)


def _check_broadcast(node: OnnxNode, tensors: list[Tensor]) -> None:
    try:
        shape = torch.broadcast_shapes(*[tensor.shape for tensor in tensors])  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise node.builder.refuse("the shapes of its inputs don't fit") from error
    if len(tensors) != 2:
        raise node.builder.refuse("it needs two inputs")
    node.builder.fold(math.prod(shape))


def _cum_sum(node: OnnxNode, tensors: list[Tensor]) -> Tensor:
    values, axis = tensors[0], node.numbers(1, "axis")
    if node.integer("exclusive", 0) or node.integer("reverse", 0) or len(axis) != 1:
        raise node.builder.refuse("only plain sums along one axis are supported")
    return values.cumsum(canonical.dimension(node.builder, axis[0], values.dim()), dtype=values.dtype)


SHAPES: dict[str, Handler] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": resize,
    "Upsample": upsample,
    "ReduceProd": _reduce_prod,
    "BitShift": _of_constants(_bit_shift),
    "BitwiseAnd": _of_constants(_bitwise_and),
    "CumSum": _of_constants(_cum_sum),
}
