"""What makes an integer program wrong: each check raises ValueError with a sentence.

Everything that compiled code relies on is checked here, but for one thing: that no accumulator leaves 32 bits. Whoever writes
a program proves that.
"""

import math
from collections.abc import Iterable, Sequence
from typing import assert_never

import torch

from winograd.integer_operations import (
    INT32_HIGHEST,
    INT32_LOWEST,
    MOST_NUMBERS,
    MOST_SIDE,
    Addition,
    AveragePool,
    Channels,
    Concatenation,
    Convolution,
    InputTransform,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Operation,
    OutputTransform,
    Padding,
    Pair,
    Permutation,
    Requantization,
    Reshape,
    Shape,
    Slice,
    Table,
    Value,
)

LONGEST = 64  # fractional lengths beyond it say nothing
MOST_DIFFERENT = 2**16  # integers that an input or the source of a table can hold
LARGEST_SHIFT = 31
STEP, TILE = 2, 4  # outputs and inputs of a tile of F(2x2, 3x3), down and across


def check_program(
    input: int, output: int, input_lengths: Sequence[int], values: Sequence[Value], operations: Sequence[Operation]
) -> None:
    """Check a whole program: every operation writes a new value of the shape that follows from those that it reads."""
    for name, index in (("input", input), ("output", output)):
        check_index(index, values, f"The {name}")
    channels = values[input].channels
    if len(input_lengths) != channels or not _all_in(input_lengths, -LONGEST, LONGEST):
        raise ValueError(
            f"The {len(input_lengths)} lengths of the input aren't {channels}, one a channel, from -{LONGEST} to {LONGEST}."
        )
    if values[input].span > MOST_DIFFERENT:
        raise ValueError(f"The input has {values[input].span} different integers, more than 2**16.")
    written = {input}
    for number, operation in enumerate(operations):
        name = f"Operation {number} ({type(operation).__name__})"
        for index in (operation.output, *operation.sources):
            check_index(index, values, name)
        if not written.issuperset(operation.sources):
            raise ValueError(f"{name} reads {list(operation.sources)}, not all of which are written before.")
        if operation.output in written:
            raise ValueError(f"{name} writes value {operation.output}, which is written already.")
        try:
            _check_operation(operation, [values[source] for source in operation.sources], values[operation.output])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        written.add(operation.output)
    if output not in written:
        raise ValueError(f"The output is value {output}, which nothing writes.")


def check_index(index: int, values: Sequence[Value], name: str) -> None:
    """Check the index of a value."""
    if not 0 <= index < len(values):
        raise ValueError(f"{name} names value {index}, but there are {len(values)} values.")


def _check_operation(operation: Operation, sources: list[Value], output: Value) -> None:
    wanted = {Addition: 2, Multiplication: 2, Concatenation: len(sources)}.get(type(operation), 1)
    if len(sources) != wanted or wanted == 0:
        raise ValueError(f"it reads {len(sources)} values, not {max(wanted, 1)}.")
    shape = _shape_of(operation, sources, output)
    if shape != output.shape:
        raise ValueError(f"its output would be {list(shape)}, not {list(output.shape)}.")
    _check_numbers(operation, sources, output)


# ---- Shapes ---------------------------------------------------------------------------------------------------------------


def _shape_of(operation: Operation, sources: list[Value], output: Value) -> Shape:
    """The shape of the output."""
    c, h, w = shape = sources[0].shape
    match operation:
        case Convolution():
            return _convolved(operation, shape)
        case Addition():
            if sources[1].shape != shape:
                raise ValueError(f"it adds {list(sources[1].shape)} to {list(shape)}.")
            return shape
        case Multiplication():
            if sources[1].shape not in (shape, (c, 1, 1)):
                raise ValueError(f"it multiplies {list(shape)} by {list(sources[1].shape)}.")
            return shape
        case MaxPool() | AveragePool():
            dilation = operation.dilation if isinstance(operation, MaxPool) else (1, 1)
            return c, *_windows(shape, operation.kernel, operation.stride, operation.padding, dilation)
        case Table() | Requantization():
            return shape
        case Concatenation():
            if any(source.shape[1:] != (h, w) for source in sources):
                raise ValueError(f"it joins {', '.join(str(list(source.shape)) for source in sources)}.")
            return sum(source.channels for source in sources), h, w
        case Slice():
            return _sliced(operation, shape)
        case Padding():
            if min(*operation.before, *operation.after) < 0:
                raise ValueError(
                    f"it pads by {list(operation.before)} and {list(operation.after)}, not all of them sizes."
                )
            return _shape(n + a + b for n, a, b in zip(shape, operation.before, operation.after, strict=True))
        case NearestUpsample():
            _check_pair("scale", operation.scale, 1)
            return c, h * operation.scale[0], w * operation.scale[1]
        case Reshape():
            if sources[0].size != output.size:
                raise ValueError(f"it makes {list(output.shape)} of {list(shape)}.")
            return output.shape
        case Permutation():
            if sorted(operation.order) != [0, 1, 2]:
                raise ValueError(f"its order is {list(operation.order)}, not one of 0, 1, 2.")
            return _shape(shape[place] for place in operation.order)
        case InputTransform():
            _check_pair("padding", operation.padding, 0)
            return c * len(operation.positions), *output.shape[1:]  # as many tiles as the output has
        case OutputTransform():
            _check_tiles(shape, output, len(operation.positions))
            return output.shape
        case _:
            assert_never(operation)


def _convolved(operation: Convolution, shape: Shape) -> Shape:
    weight, groups = operation.weight, operation.groups
    if weight.dtype != torch.int8 or weight.dim() != 4 or weight.device.type != "cpu" or 0 in weight.shape:
        raise ValueError(
            f"its weight is {list(weight.shape)}, {weight.dtype}, on {weight.device}, not [K, C/g, R, S] of int8 on the CPU."
        )
    filters, of_group = weight.shape[:2]
    if groups < 1 or filters % groups or of_group * groups != shape[0]:
        raise ValueError(f"its weight {list(weight.shape)} in {groups} groups doesn't meet {shape[0]} channels.")
    kernel = weight.shape[2], weight.shape[3]
    padded = math.prod(side + 2 * around for side, around in zip(shape[1:], operation.padding, strict=True))
    if weight.numel() > MOST_NUMBERS or padded * (shape[0] + 3) > MOST_NUMBERS:
        raise ValueError(
            f"its weight {list(weight.shape)} or its input {list(shape)}, padded, is too large: more than 2**28."
        )
    return filters, *_windows(shape, kernel, operation.stride, operation.padding, operation.dilation)


def _windows(shape: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """How many windows there are downwards and sideways."""
    _check_pair("kernel", kernel, 1)
    _check_pair("stride", stride, 1)
    _check_pair("padding", padding, 0)
    _check_pair("dilation", dilation, 1)
    rows, columns = (
        (shape[axis + 1] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    )
    if rows < 1 or columns < 1:
        raise ValueError(f"its kernel {list(kernel)} is larger than {list(shape[1:])} with padding {list(padding)}.")
    return rows, columns


def _sliced(operation: Slice, shape: Shape) -> Shape:
    parts = list(zip(operation.start, operation.stop, operation.step, shape, strict=True))
    if not all(0 <= start < stop <= size and step >= 1 for start, stop, step, size in parts):
        raise ValueError(
            f"it takes {list(operation.start)} to {list(operation.stop)} by {list(operation.step)} of {list(shape)}."
        )
    return _shape(math.ceil((stop - start) / step) for start, stop, step, _ in parts)


def _check_tiles(shape: Shape, output: Value, positions: int) -> None:
    wanted = output.channels * positions, *(-(-side // STEP) for side in output.shape[1:])
    if shape != wanted:
        raise ValueError(f"it makes {list(output.shape)} of {list(shape)}, not of {list(wanted)}.")


def _shape(sizes: Iterable[int]) -> Shape:
    c, h, w = sizes
    return c, h, w


def _check_pair(name: str, pair: Pair, least: int) -> None:
    if len(pair) != 2 or not _all_in(pair, least, MOST_SIDE):
        raise ValueError(f"its {name} is {list(pair)}, not two numbers from {least} to {MOST_SIDE}.")


# ---- Numbers --------------------------------------------------------------------------------------------------------------


def _check_numbers(operation: Operation, sources: list[Value], output: Value) -> None:
    match operation:
        case Convolution():
            if not sources[0].is_byte:
                raise ValueError(f"it reads {sources[0].span} different integers, more than 256.")
            _check_channels("bias", operation.bias, output, INT32_LOWEST, INT32_HIGHEST)
            _check_requantization((operation.left,), operation, output)
        case Addition():
            if len(operation.left) != 2:
                raise ValueError(f"it has left shifts for {len(operation.left)} operands, not two.")
            _check_requantization(operation.left, operation, output)
        case Multiplication() | Requantization():
            _check_requantization((operation.left,), operation, output)
        case AveragePool():
            if not INT32_LOWEST <= operation.multiplier <= INT32_HIGHEST:
                raise ValueError(f"its multiplier is {operation.multiplier}, which has more than 32 bits.")
            _check_requantization((operation.left,), operation, output)
        case InputTransform():
            _check_positions(operation.positions)
            _check_requantization((operation.left,), operation, output)
        case OutputTransform():
            _check_positions(operation.positions)
            _check_channels("bias", operation.bias, output, INT32_LOWEST, INT32_HIGHEST)
            if len(operation.left) != sources[0].channels or not _all_in(operation.left, 0, LARGEST_SHIFT):
                raise ValueError(
                    f"its {len(operation.left)} shifts aren't {sources[0].channels} from 0 to {LARGEST_SHIFT}."
                )
            _check_requantization((), operation, output)
        case Table():
            _check_tables(operation, sources[0], output)
        case MaxPool():
            _check_no_window_is_padding(operation, sources[0].shape)
            _check_kept(sources, output)
        case Concatenation() | Slice() | Padding() | NearestUpsample() | Reshape() | Permutation():
            _check_kept(sources, output)
        case _:
            assert_never(operation)


def _check_requantization(
    lefts: Sequence[Channels],
    operation: Convolution
    | Addition
    | Multiplication
    | AveragePool
    | Requantization
    | InputTransform
    | OutputTransform,
    output: Value,
) -> None:
    for left in lefts:
        _check_channels("left", left, output, 0, LARGEST_SHIFT)
    _check_channels("right", operation.right, output, 0, LARGEST_SHIFT)
    _check_channels("low", operation.low, output, output.lowest, output.highest)
    _check_channels("high", operation.high, output, output.lowest, output.highest)
    if any(low > high for low, high in zip(operation.low, operation.high, strict=True)):
        raise ValueError("its low is above its high.")


def _check_channels(name: str, numbers: Channels, output: Value, lowest: int, highest: int) -> None:
    if len(numbers) != output.channels or not _all_in(numbers, lowest, highest):
        raise ValueError(
            f"its {len(numbers)} numbers {name} aren't {output.channels}, one a channel, from {lowest} to {highest}."
        )


def _check_positions(positions: tuple[int, ...]) -> None:
    if not positions or not _all_in(positions, 0, TILE * TILE - 1) or list(positions) != sorted(set(positions)):
        raise ValueError(f"its positions are {list(positions)}, not some of 0 to {TILE * TILE - 1}, ascending.")


def _check_tables(operation: Table, source: Value, output: Value) -> None:
    tables = operation.tables
    if source.span > MOST_DIFFERENT:
        raise ValueError(f"its tables would have {source.span} entries, more than 2**16.")
    if tables.dim() != 2 or tables.shape[1] != source.span or tables.shape[0] < 1 or tables.device.type != "cpu":
        raise ValueError(f"its tables are {list(tables.shape)}, not [rows, {source.span}] on the CPU.")
    if tables.is_floating_point() or not output.holds(int(tables.min()), int(tables.max())):
        raise ValueError(f"its tables hold more than integers from {output.lowest} to {output.highest}.")
    _check_channels("row", operation.row, output, 0, len(tables) - 1)


def _check_kept(sources: list[Value], output: Value) -> None:
    """Check that the output has room for integers that are passed on as they are."""
    for source in sources:
        if not output.holds(source.lowest, source.highest):
            raise ValueError(
                f"it passes {source.lowest} to {source.highest} on as {output.lowest} to {output.highest}, which is less."
            )


def _check_no_window_is_padding(operation: MaxPool, shape: Shape) -> None:
    axes = zip(shape[1:], operation.kernel, operation.stride, operation.padding, operation.dilation, strict=True)
    for size, taps, stride, padding, dilation in axes:
        count = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        # Windows that start inside read their first integer; only those that start before it have to be looked at.
        before = (number * stride - padding for number in range(min(count, math.ceil(padding / stride))))
        firsts = [(start, math.ceil(-start / dilation)) for start in before]
        if (count - 1) * stride - padding >= size or any(
            tap >= taps or start + tap * dilation >= size for start, tap in firsts
        ):
            raise ValueError(f"with padding {list(operation.padding)} there are windows of nothing but padding.")


def _all_in(numbers: Iterable[int], lowest: int, highest: int) -> bool:
    return all(lowest <= number <= highest for number in numbers)
