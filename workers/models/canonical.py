"""The canonical form of every operator that has more than one, whichever file it comes from.

A function here takes the builder and the values that an operator works on, and adds what the graph knows instead.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from workers.models import graph
from workers.models.graph import aten
from workers.models.graph_builder import Constant, GraphBuilder, Size, Value

Pair = tuple[int, int]


def pair(builder: GraphBuilder, value: object, default: int | None = None) -> Pair:
    """One number for both directions, or two."""
    numbers: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    if not numbers and default is not None:
        numbers = [default]
    if len(numbers) not in (1, 2) or not all(isinstance(number, int) for number in numbers):
        raise builder.refuse(f"one or two whole numbers were expected, not {value!r}")
    return (int(numbers[0]), int(numbers[-1]))


def constant(builder: GraphBuilder, value: Value | None, what: str) -> Constant:
    """`value`, which must be known while reading."""
    if not isinstance(value, Constant):
        raise builder.refuse(f"its {what} is computed while the network runs; Winnow needs it stored in the file")
    return value


def conv2d(
    builder: GraphBuilder,
    image: Value,
    weight: Value,
    bias: Value | None,
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Value:
    weight = _filters(builder, image, weight)
    _check_channels(builder, image, weight.tensor.shape[1] * groups, weight.tensor.shape[0], groups)
    return builder.call(aten.conv2d.default, image, weight, bias, [*stride], [*padding], [*dilation], groups)


def conv_transpose2d(
    builder: GraphBuilder,
    image: Value,
    weight: Value,
    bias: Value | None,
    *,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
) -> Value:
    weight = _filters(builder, image, weight)
    _check_channels(builder, image, weight.tensor.shape[0], weight.tensor.shape[0], groups)
    return builder.call(
        aten.conv_transpose2d.input,
        image, weight, bias, [*stride], [*padding], [*output_padding], groups, [*dilation],
    )  # fmt: skip


def winograd_convolution(
    builder: GraphBuilder,
    image: Value,
    weights: Value,
    bias: Value | None,
    *,
    positions: list[int],
    m: int,
    padding: Pair,
    residual: Value | None,
    activation: str,
    groups: int,
) -> Value:
    """What follows the sums in the operator becomes nodes of its own. The operator checks shapes and positions itself."""
    if activation not in ("none", "relu"):
        raise builder.refuse(f"its activation is {activation[:40]!r}; it can be none or relu")
    if not all(isinstance(position, int) for position in positions):
        raise builder.refuse("its positions are not all numbers")
    stored_weights = constant(builder, weights, "weight")
    stored_bias = None if bias is None else constant(builder, bias, "bias")
    output = builder.call(
        graph.winograd_conv2d, image, stored_weights, positions, m, [*padding], stored_bias, None, "none", groups
    )
    if residual is not None:
        if [probe.shape for probe in builder.probes(residual)] != [probe.shape for probe in builder.probes(output)]:
            raise builder.refuse("its residual is not shaped like its output")
        output = add(builder, output, residual)
    return builder.call(aten.relu.default, output) if activation == "relu" else output


def _filters(builder: GraphBuilder, image: Value, weight: Value) -> Constant:
    if builder.rank(image) != 4 or builder.rank(weight) != 4:
        raise builder.refuse(
            "only convolutions of two dimensions over batches of images are supported; "
            f"this one has an input of {builder.rank(image)} and filters of {builder.rank(weight)} dimensions"
        )
    return constant(builder, weight, "weight")


def _check_channels(builder: GraphBuilder, image: Value, wanted: int, grouped: int, groups: int) -> None:
    channels = builder.shape(image)[1]
    if groups < 1 or grouped % groups or channels != wanted:
        raise builder.refuse(f"{channels} channels in {groups} groups don't fit its weight, which is made for {wanted}")


def linear(builder: GraphBuilder, features: Value, weight: Value, bias: Value | None) -> Value:
    """features @ weight.T + bias"""
    return builder.call(aten.linear.default, features, constant(builder, weight, "weight"), bias)


def matmul(builder: GraphBuilder, left: Value, right: Value) -> Value:
    """A product with a stored matrix is a linear layer."""
    if isinstance(right, Constant) and right.tensor.dim() == 2 and builder.rank(left) >= 2:
        return linear(builder, left, transposed(builder, right), None)
    return builder.call(aten.matmul.default, left, right)


def transposed(builder: GraphBuilder, matrix: Constant) -> Constant:
    if matrix.tensor.dim() != 2:
        raise builder.refuse(f"its weight has {matrix.tensor.dim()} dimensions; two are needed")
    return Constant(matrix.tensor.t().contiguous(), matrix.name, trainable=matrix.trainable)


def batch_norm(
    builder: GraphBuilder,
    image: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    *,
    momentum: float,
    eps: float,
) -> Value:
    if mean is None or variance is None:
        raise builder.refuse("it keeps no running statistics, so it can't run in evaluation mode")
    known_mean = constant(builder, mean, "running mean")
    owner = known_mean.name.removesuffix("running_mean")
    if weight is None:
        weight = Constant(torch.ones_like(known_mean.tensor), f"{owner}weight")
    if bias is None:
        bias = Constant(torch.zeros_like(known_mean.tensor), f"{owner}bias")
    return builder.call(
        aten.batch_norm.default,
        image,
        constant(builder, weight, "weight"),
        constant(builder, bias, "bias"),
        as_buffer(known_mean),
        as_buffer(constant(builder, variance, "running variance")),
        False,
        momentum,
        eps,
        False,
    )


def as_buffer(value: Constant) -> Constant:
    return Constant(value.tensor, value.name, trainable=False)


def reshape(builder: GraphBuilder, value: Value, sizes: Sequence[Size]) -> Value:
    """One canonical reshape: numbers where sizes are fixed, and -1 for the one that varies."""
    if isinstance(value, Constant):
        return builder.call(aten.reshape.default, value, [*sizes])
    first, second = builder.probes(value)
    declared = _resolved(builder, sizes, first.numel(), 0)
    if builder.batch_is_free and not any(isinstance(size, fx.Node) for size in sizes):
        other = _with_free_batch(builder, value, declared)
    else:
        other = _resolved(builder, sizes, second.numel(), 1)
    varying = [place for place, (a, b) in enumerate(zip(declared, other, strict=True)) if a != b]
    if len(varying) > 1:
        target: list[Size] = [size if place in varying else declared[place] for place, size in enumerate(sizes)]
    else:
        target = [-1 if place in varying else size for place, size in enumerate(declared)]
    return builder.call(aten.reshape.default, value, target)


def _resolved(builder: GraphBuilder, sizes: Sequence[Size], elements: int, probe: int) -> list[int]:
    numbers = [size.meta["probes"][probe] if isinstance(size, fx.Node) else size for size in sizes]
    if numbers.count(-1) > 1:
        raise builder.refuse(f"more than one size of {numbers} is left open")
    if -1 in numbers:
        known = -math.prod(numbers)
        if known <= 0 or elements % known:
            raise builder.refuse(f"{elements} elements can't take the shape {numbers}")
        numbers[numbers.index(-1)] = elements // known
    if math.prod(numbers) != elements or any(number < 0 for number in numbers):
        raise builder.refuse(f"{elements} elements can't take the shape {numbers}")
    return numbers


def _with_free_batch(builder: GraphBuilder, value: Value, declared: list[int]) -> list[int]:
    """The shape for another batch, of a reshape that was written for one batch only.

    Elements are in row-major order, so if nothing but the first dimension varied before, the batch is still the outermost
    one afterwards, and it is the first dimension that grows.
    """
    first, second = builder.probes(value)
    if first.shape == second.shape:
        return declared
    if first.shape[1:] != second.shape[1:] or not declared:
        raise builder.refuse(f"the shape {declared} is made for one batch size only")
    images, rest = divmod(declared[0] * second.shape[0], first.shape[0])
    if rest:
        raise builder.refuse(f"the shape {declared} is made for one batch size only")
    return [images, *declared[1:]]


def flatten(builder: GraphBuilder, value: Value, start: int, end: int) -> Value:
    """Merge the dimensions from `start` to `end` into one."""
    rank = builder.rank(value)
    if rank == 0:
        return reshape(builder, value, [1])
    start, end = dimension(builder, start, rank), dimension(builder, end, rank)
    if start > end:
        raise builder.refuse(f"dimensions {start} to {end} can't be flattened")
    before = [builder.size(value, place) for place in range(start)]
    after = [builder.size(value, place) for place in range(end + 1, rank)]
    merged = [probe.shape[start : end + 1].numel() for probe in builder.probes(value)]
    # The size in the middle is named if it is fixed, so that a varying batch may be the open one.
    middle: Size = merged[0] if merged[0] == merged[1] else -1
    return reshape(builder, value, [*before, middle, *after])


def dimension(builder: GraphBuilder, number: int, rank: int) -> int:
    """A dimension counted from the front."""
    if not -rank <= number < rank:
        raise builder.refuse(f"there is no dimension {number} in a tensor of {rank}")
    return number % rank


def unsqueeze(builder: GraphBuilder, value: Value, places: Sequence[int]) -> Value:
    rank = builder.rank(value) + len(places)
    new = {dimension(builder, place, rank) for place in places}
    if len(new) != len(places):
        raise builder.refuse(f"a dimension is named twice in {list(places)}")
    old = iter(range(builder.rank(value)))
    sizes = [1 if place in new else builder.size(value, next(old)) for place in range(rank)]
    return reshape(builder, value, sizes)


def squeeze(builder: GraphBuilder, value: Value, places: Sequence[int] | None) -> Value:
    """Remove dimensions of size one: those in `places`, or all."""
    shape = builder.shape(value)
    asked = range(len(shape)) if places is None else [dimension(builder, place, len(shape)) for place in places]
    if (
        builder.batch_is_free
        and places is None
        and shape
        and shape[0] is None
        and builder.probes(value)[0].shape[0] == 1
    ):
        raise builder.refuse("it removes the batch dimension when there is one image only")
    gone = {place for place in asked if shape[place] == 1}
    sizes = [builder.size(value, place) for place in range(len(shape)) if place not in gone]
    return reshape(builder, value, sizes)


def permute(builder: GraphBuilder, value: Value, order: Sequence[int]) -> Value:
    rank = builder.rank(value)
    places = [dimension(builder, place, rank) for place in order]
    if places == list(range(rank)):
        return value
    return builder.call(aten.permute.default, value, places)


def clamp(builder: GraphBuilder, value: Value, low: float | None, high: float | None) -> Value:
    """Limit to low..high. With nothing to limit, the value itself."""
    low = None if low is None or low == -math.inf else low
    high = None if high is None or high == math.inf else high
    if low is None and high is None:
        return value
    if low == 0 and high is None:
        return builder.call(aten.relu.default, value)
    return builder.call(aten.clamp.default, value, low, high)


def slice_along(builder: GraphBuilder, value: Value, dim: int, start: int, end: int, step: int = 1) -> Value:
    dim = dimension(builder, dim, builder.rank(value))
    size = builder.shape(value)[dim]
    if step < 1:
        raise builder.refuse(f"a slice goes forward; its step can't be {step}")
    if size is not None:
        start, end, step = slice(start, end, step).indices(size)
        if (start, end, step) == (0, size, 1):
            return value
    return builder.call(aten.slice.Tensor, value, dim, start, max(start, end) if size is not None else end, step)


def pad(builder: GraphBuilder, value: Value, amounts: Sequence[int], mode: str, fill: float) -> Value:
    """Pad, last dimension first: (left, right, top, bottom, …). Negative amounts crop."""
    amounts = list(amounts)
    # Modes other than constant know two dimensions of four, no more and no fewer.
    while len(amounts) > (2 if mode == "constant" else 4) and amounts[-2:] == [0, 0]:
        amounts = amounts[:-2]
    if not any(amounts):
        return value
    return builder.call(aten.pad.default, value, amounts, mode, fill if mode == "constant" else None)


def max_pool2d(
    builder: GraphBuilder, image: Value, *, size: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> Value:  # fmt: skip
    return builder.call(aten.max_pool2d.default, image, [*size], [*stride], [*padding], [*dilation], ceil_mode)


def avg_pool2d(
    builder: GraphBuilder, image: Value, *, size: Pair, stride: Pair, padding: Pair, ceil_mode: bool,
    count_include_pad: bool, divisor: int | None = None,
) -> Value:  # fmt: skip
    return builder.call(
        aten.avg_pool2d.default, image, [*size], [*stride], [*padding], ceil_mode, count_include_pad, divisor
    )


def adaptive_avg_pool2d(builder: GraphBuilder, image: Value, size: Pair) -> Value:
    """Where the input's size is a multiple of the output's, this is plain average pooling."""
    if builder.rank(image) != 4 or min(size) < 1:
        raise builder.refuse(f"averages of size {size} of {builder.rank(image)} dimensions are not supported")
    height, width = builder.shape(image)[-2:]
    if size != (1, 1) and (height is None or width is None):
        raise builder.refuse("averages to a fixed size need images of a fixed size")
    if size == (1, 1) or height is None or width is None or height % size[0] or width % size[1]:
        return builder.call(aten.adaptive_avg_pool2d.default, image, [*size])
    window = (height // size[0], width // size[1])
    if window == (1, 1):
        return image
    return avg_pool2d(
        builder, image, size=window, stride=window, padding=(0, 0), ceil_mode=False, count_include_pad=True
    )


def add(builder: GraphBuilder, left: Value, right: Value | float) -> Value:
    return builder.call(aten.add.Tensor, left, right)


def cast(builder: GraphBuilder, value: Value, dtype: torch.dtype) -> Value:
    if builder.probes(value)[0].dtype == dtype:
        return value
    return builder.call(aten.to.dtype, value, dtype)
