"""Everything but convolutions in C: arithmetic on single numbers, pooling, and operations that only move numbers.

Tensors lie with their channels last: number (c, h, w) is at (h * W + w) * C + c.
"""

from collections.abc import Sequence
from typing import assert_never

from workers.fixed_point.c_function import Rescaling, Scratch, Written, rescaling, shifted_left, wide_type
from workers.fixed_point.c_types import Constant, code, constant, literal, type_of, words_in_comment
from workers.fixed_point.interpolation import ONE, Tap
from workers.fixed_point.network import (
    Addition,
    AveragePool,
    BilinearResize,
    Concatenation,
    IntegerNetwork,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Padding,
    Permutation,
    Requantization,
    Reshape,
    Shape,
    Slice,
    Table,
    Value,
    with_half,
)

OtherOperation = (
    Addition
    | Multiplication
    | MaxPool
    | AveragePool
    | Table
    | Requantization
    | Concatenation
    | Slice
    | Padding
    | NearestUpsample
    | BilinearResize
    | Reshape
    | Permutation
)
_MOVES = (MaxPool, Concatenation, Slice, Padding, NearestUpsample, BilinearResize, Reshape, Permutation)


def is_alias(operation: object, network: IntegerNetwork) -> bool:
    """Whether an operation's output is its source's memory under another shape."""
    if not isinstance(operation, Reshape):
        return False
    source, output = network.values[operation.source], network.values[operation.output]
    if type_of(source.coding) != type_of(output.coding):
        return False
    return source.shape[0] == output.shape[0] or (has_one_layout(source.shape) and has_one_layout(output.shape))


def has_one_layout(shape: Shape) -> bool:
    """Whether channels first and channels last are the same."""
    return shape[0] == 1 or shape[1] * shape[2] == 1


def write_operation(operation: OtherOperation, network: IntegerNetwork) -> Written:
    """The operation in C.

    Raises:
        ValueError: if its numbers don't fit the types that C has for them.
    """
    sources = [network.values[name] for name in operation.sources]
    output = network.values[operation.output]
    source = sources[0]
    if isinstance(operation, _MOVES) and not all(
        type_of(output.coding).holds(each.coding.lowest, each.coding.highest) for each in sources
    ):
        raise ValueError(f"{type_of(output.coding).name} doesn't hold what is to be moved to {output.name!r}")
    match operation:
        case Addition():
            return _addition(operation, sources, output)
        case Multiplication():
            return _multiplication(operation, sources, output)
        case MaxPool():
            return _max_pool(operation, source, output)
        case AveragePool():
            return _average_pool(operation, source, output)
        case Table():
            return _table(operation, source, output)
        case Requantization():
            scale = rescaling(
                operation.out_shift,
                operation.low,
                operation.high,
                largest=[with_half(source.coding.largest, shift) for shift in operation.out_shift],
                output=type_of(output.coding),
            )
            body = _each_number(output.shape, scale.of(f"({scale.wide.name})source[i]"))
            return _written(operation, "requantization", body, sources, output, scale)
        case Concatenation():
            return _concatenation(operation, sources, output)
        case Slice():
            strides = _strides(source.shape)
            begin = sum(start * stride for start, stride in zip(operation.start, strides, strict=True))
            steps = [step * stride for step, stride in zip(operation.step, strides, strict=True)]
            return _written(operation, "slice", _gather(output, begin, steps), sources, output)
        case Padding():
            return _padding(operation, source, output)
        case NearestUpsample():
            return _upsample(operation, source, output)
        case BilinearResize():
            return _resize(operation, source, output)
        case Reshape():
            return _reshape(operation, source, output)
        case Permutation():
            strides = _strides(source.shape)
            steps = [strides[dimension] for dimension in operation.order]
            return _written(operation, "permutation", _gather(output, 0, steps), sources, output)
        case _:
            assert_never(operation)


# ---- Single numbers -------------------------------------------------------------------------------------------------

_EACH_NUMBER = """\
for (int32_t pixel = 0; pixel < $PIXELS; pixel++) {
    for (int32_t channel = 0; channel < $C; channel++) {
        const int32_t i = pixel * $C + channel;
        output[i] = $RESULT;
    }
}
"""

_EACH_NUMBER_ALIKE = """\
for (int32_t i = 0; i < $COUNT; i++) {
    output[i] = $RESULT;
}
"""


def _each_number(shape: Shape, result: str) -> str:
    channels, pixels = shape[0], shape[1] * shape[2]
    if "channel" in result or "pixel" in result:
        return code(_EACH_NUMBER, PIXELS=pixels, C=channels, RESULT=result)
    return code(_EACH_NUMBER_ALIKE, COUNT=channels * pixels, RESULT=result)


def _addition(operation: Addition, sources: Sequence[Value], output: Value) -> Written:
    bounds = operation.accumulator_bounds(sources[0].coding, sources[1].coding)
    scale = rescaling(operation.out_shift, operation.low, operation.high, largest=bounds, output=type_of(output.coding))
    (a, left_a), (b, left_b) = (
        shifted_left(f"{name}[i]", left, f"left_{name}", scale.wide)
        for name, left in zip(("a", "b"), operation.left, strict=True)
    )
    body = _each_number(output.shape, scale.of(f"{a} + {b}"))
    return _written(operation, "addition", body, sources, output, scale, extra=(*left_a, *left_b), names=("a", "b"))


def _multiplication(operation: Multiplication, sources: Sequence[Value], output: Value) -> Written:
    bounds = operation.accumulator_bounds(sources[0].coding, sources[1].coding)
    scale = rescaling(operation.out_shift, operation.low, operation.high, largest=bounds, output=type_of(output.coding))
    a, b = (_broadcast(name, source.shape, output.shape) for name, source in zip(("a", "b"), sources, strict=True))
    body = _each_number(output.shape, scale.of(f"({scale.wide.name}){a} * {b}"))
    return _written(operation, "multiplication", body, sources, output, scale, names=("a", "b"))


def _broadcast(name: str, shape: Shape, whole: Shape) -> str:
    """The number of an operand, some of whose dimensions are 1, that meets number `i` of the whole."""
    if shape == whole:
        return f"{name}[i]"
    if shape[1:] == (1, 1):
        return f"{name}[channel]" if shape[0] > 1 else f"{name}[0]"
    if shape[0] == 1 and shape[1:] == whole[1:]:
        return f"{name}[pixel]"
    raise ValueError(f"C source can't multiply {shape} with {whole}")


def _table(operation: Table, source: Value, output: Value) -> Written:
    entries = operation.tables.shape[1]
    tables = constant("tables", operation.tables.numpy(), f"Tables {list(operation.tables.shape)}")
    place = f"source[i] - {literal(source.coding.lowest)}" if source.coding.signed else "source[i]"
    extra = [tables]
    if len(operation.tables) > 1:
        extra.append(constant("rows", operation.row, "The table of each channel"))
        place = f"(int32_t)rows[channel] * {entries} + {place}"
    body = _each_number(output.shape, f"({type_of(output.coding).name})tables[{place}]")
    function = words_in_comment(operation.function)
    return _written(operation, "table", body, [source], output, extra=extra, note=f"{function} by look-up")


# ---- Pooling --------------------------------------------------------------------------------------------------------

_WINDOWS = """\
for (int32_t row = 0; row < $P; row++) {
    for (int32_t column = 0; column < $Q; column++) {
        $POINTER
        for (int32_t channel = 0; channel < $C; channel++) {
            $TARGET = $START;
        }
        for (int32_t r = 0; r < $R; r++) {
            const int32_t y = row * $SH - $PH + r * $DH;
            if (y < 0 || y >= $H) {
                continue;
            }
            for (int32_t s = 0; s < $S; s++) {
                const int32_t x = column * $SW - $PW + s * $DW;
                if (x < 0 || x >= $W) {
                    continue;
                }
                const $SOURCE_TYPE *restrict seen = source + (y * $W + x) * $C;
                for (int32_t channel = 0; channel < $C; channel++) {
                    $TAKE
                }
            }
        }
        $FINISH
    }
}
"""

_RESCALE_SUMS = """\
for (int32_t channel = 0; channel < $C; channel++) {
    output[(row * $Q + column) * $C + channel] = $RESULT;
}
"""


def _windows(operation: MaxPool | AveragePool, source: Value, output: Value, **parts: object) -> str:
    dilation = operation.dilation if isinstance(operation, MaxPool) else (1, 1)
    return code(
        _WINDOWS,
        P=output.shape[1],
        Q=output.shape[2],
        C=source.shape[0],
        H=source.shape[1],
        W=source.shape[2],
        R=operation.kernel[0],
        S=operation.kernel[1],
        SH=operation.stride[0],
        SW=operation.stride[1],
        PH=operation.padding[0],
        PW=operation.padding[1],
        DH=dilation[0],
        DW=dilation[1],
        SOURCE_TYPE=type_of(source.coding).name,
        **parts,
    )


def _max_pool(operation: MaxPool, source: Value, output: Value) -> Written:
    kind = type_of(output.coding).name
    body = _windows(
        operation,
        source,
        output,
        POINTER=f"{kind} *restrict most = output + (row * {output.shape[2]} + column) * {source.shape[0]};",
        TARGET="most[channel]",
        START=literal(source.coding.lowest),
        TAKE=f"most[channel] = ({kind})(seen[channel] > most[channel] ? seen[channel] : most[channel]);",
        FINISH="",
    )
    return _written(operation, "max_pool", body, [source], output, note=_window_text(operation))


def _average_pool(operation: AveragePool, source: Value, output: Value) -> Written:
    largest = operation.kernel[0] * operation.kernel[1] * source.coding.largest
    sums = wide_type(largest)
    bounds = [with_half(largest * abs(operation.multiplier), shift) for shift in operation.out_shift]
    scale = rescaling(operation.out_shift, operation.low, operation.high, largest=bounds, output=type_of(output.coding))
    result = f"({scale.wide.name})sums[channel]"
    if operation.multiplier != 1:
        result += f" * {literal(operation.multiplier)}"
    body = _windows(
        operation,
        source,
        output,
        POINTER="",
        TARGET="sums[channel]",
        START="0",
        TAKE="sums[channel] += seen[channel];",
        FINISH=code(_RESCALE_SUMS, Q=output.shape[2], C=source.shape[0], RESULT=scale.of(result)),
    )
    scratch = (Scratch("sums", sums, source.shape[0]),)
    return _written(
        operation, "average_pool", body, [source], output, scale, scratch=scratch, note=_window_text(operation)
    )


def _window_text(operation: MaxPool | AveragePool) -> str:
    text = f"{operation.kernel[0]}x{operation.kernel[1]} windows, stride {operation.stride[0]}x{operation.stride[1]}"
    if operation.padding != (0, 0):
        text += f", padding {operation.padding[0]}x{operation.padding[1]}"
    return text


# ---- Moving numbers -------------------------------------------------------------------------------------------------

_GATHER = """\
for (int32_t row = 0; row < $P; row++) {
    for (int32_t column = 0; column < $Q; column++) {
        const int32_t place = $PLACE;
        for (int32_t channel = 0; channel < $C; channel++) {
            output[(row * $Q + column) * $C + channel] = source[place + channel * $STEP];
        }
    }
}
"""


def _gather(output: Value, begin: int, steps: Sequence[int]) -> str:
    """Each number of the output lies at `begin` and so many steps along (C, H, W)."""
    channels, height, width = output.shape
    place = f"row * {literal(steps[1])} + column * {literal(steps[2])}" + (f" + {begin}" if begin else "")
    return code(_GATHER, P=height, Q=width, C=channels, PLACE=place, STEP=steps[0])


def _strides(shape: Shape) -> Shape:
    """How far neighbours along (C, H, W) are from each other."""
    channels, _, width = shape
    return (1, width * channels, channels)


_PART = """\
for (int32_t pixel = 0; pixel < $PIXELS; pixel++) {
    for (int32_t channel = 0; channel < $C; channel++) {
        output[pixel * $ALL + $OFFSET + channel] = $NAME[pixel * $C + channel];
    }
}
"""


def _concatenation(operation: Concatenation, sources: Sequence[Value], output: Value) -> Written:
    names = tuple(f"source{number}" for number in range(len(sources)))
    body, offset = "", 0
    for name, source in zip(names, sources, strict=True):
        pixels = output.shape[1] * output.shape[2]
        body += code(_PART, PIXELS=pixels, C=source.shape[0], ALL=output.shape[0], OFFSET=offset, NAME=name)
        offset += source.shape[0]
    return _written(operation, "concatenation", body, sources, output, names=names)


_ZEROS = """\
for (int32_t i = 0; i < $COUNT; i++) {
    output[i] = 0;
}
"""

_PADDED = """\
for (int32_t row = $ROWS; row++) {
    for (int32_t column = $COLUMNS; column++) {
        const int32_t place = ((row + $TOP) * $Q + column + $LEFT) * $K + $FRONT;
        for (int32_t channel = $CHANNELS; channel++) {
            output[place + channel] = source[(row * $W + column) * $C + channel];
        }
    }
}
"""


def _padding(operation: Padding, source: Value, output: Value) -> Written:
    """Negative padding takes away."""
    channels, rows, columns = (
        f"{max(0, -before)}; {name} < {min(size, whole - before)}"
        for name, before, size, whole in zip(
            ("channel", "row", "column"), operation.before, source.shape, output.shape, strict=True
        )
    )
    body = code(_ZEROS, COUNT=output.shape[0] * output.shape[1] * output.shape[2]) + code(
        _PADDED,
        ROWS=rows,
        COLUMNS=columns,
        CHANNELS=channels,
        FRONT=operation.before[0],
        TOP=operation.before[1],
        LEFT=operation.before[2],
        Q=output.shape[2],
        K=output.shape[0],
        W=source.shape[2],
        C=source.shape[0],
    )
    return _written(operation, "padding", body, [source], output)


_UPSAMPLE = """\
for (int32_t row = 0; row < $H; row++) {
    for (int32_t down = 0; down < $SH; down++) {
        for (int32_t column = 0; column < $W; column++) {
            const $SOURCE_TYPE *restrict seen = source + (row * $W + column) * $C;
            for (int32_t right = 0; right < $SW; right++) {
                for (int32_t channel = 0; channel < $C; channel++) {
                    output[((row * $SH + down) * $Q + column * $SW + right) * $C + channel] = seen[channel];
                }
            }
        }
    }
}
"""


def _upsample(operation: NearestUpsample, source: Value, output: Value) -> Written:
    body = code(
        _UPSAMPLE,
        SOURCE_TYPE=type_of(source.coding).name,
        C=source.shape[0],
        H=source.shape[1],
        W=source.shape[2],
        SH=operation.scale[0],
        SW=operation.scale[1],
        Q=output.shape[2],
    )
    return _written(operation, "nearest_upsample", body, [source], output)


_RESIZE = """\
for (int32_t row = 0; row < $P; row++) {
    const $SOURCE_TYPE *restrict upper = source + (int32_t)rows[3 * row] * $LINE;
    const $SOURCE_TYPE *restrict lower = source + (int32_t)rows[3 * row + 1] * $LINE;
    const int32_t down = rows[3 * row + 2];
    for (int32_t column = 0; column < $Q; column++) {
        const int32_t left = (int32_t)columns[3 * column] * $C;
        const int32_t right = (int32_t)columns[3 * column + 1] * $C;
        const int32_t across = columns[3 * column + 2];
        /* What the four weigh: $ONE squared in all, so that no mean is beyond them. */
        const $WIDE upper_left = ($ONE - down) * ($ONE - across);
        const $WIDE upper_right = ($ONE - down) * across;
        const $WIDE lower_left = down * ($ONE - across);
        const $WIDE lower_right = down * across;
        for (int32_t channel = 0; channel < $C; channel++) {
            const $WIDE sum = upper_left * upper[left + channel] + upper_right * upper[right + channel]
                + lower_left * lower[left + channel] + lower_right * lower[right + channel];
            output[(row * $Q + column) * $C + channel] = ($OUTPUT_TYPE)$ROUNDED;
        }
    }
}
"""


def _resize(operation: BilinearResize, source: Value, output: Value) -> Written:
    wide = wide_type(operation.accumulator_bound(source.coding))
    channels, height, width = source.shape
    body = code(
        _RESIZE,
        SOURCE_TYPE=type_of(source.coding).name,
        OUTPUT_TYPE=type_of(output.coding).name,
        WIDE=wide.name,
        ONE=ONE,
        ROUNDED=f"round_shift{wide.bits}(sum, {operation.SHIFT})",
        LINE=width * channels,
        C=channels,
        P=output.shape[1],
        Q=output.shape[2],
    )
    tables = [
        constant(
            name,
            _neighbours(taps, size),
            f"For each of {name}: two of the source, and the weight of the second of {ONE}",
        )
        for name, taps, size in (("rows", operation.rows, height), ("columns", operation.columns, width))
    ]
    return _written(operation, "bilinear_resize", body, [source], output, extra=tables)


def _neighbours(taps: Sequence[Tap], size: int) -> list[int]:
    """For each tap its place, the one behind it (itself at the end, where its weight is zero), and the weight of that."""
    return [number for place, weight in taps for number in (place, min(place + 1, size - 1), weight)]


_RESHAPE = """\
int32_t pixel_after = 0;
int32_t channel_after = 0;
/* In the order that both shapes share: channel by channel. */
for (int32_t channel = 0; channel < $C; channel++) {
    for (int32_t pixel = 0; pixel < $PIXELS; pixel++) {
        output[pixel_after * $CHANNELS_AFTER + channel_after] = source[pixel * $C + channel];
        pixel_after++;
        if (pixel_after == $PIXELS_AFTER) {
            pixel_after = 0;
            channel_after++;
        }
    }
}
"""


def _reshape(operation: Reshape, source: Value, output: Value) -> Written:
    body = code(
        _RESHAPE,
        C=source.shape[0],
        PIXELS=source.shape[1] * source.shape[2],
        CHANNELS_AFTER=output.shape[0],
        PIXELS_AFTER=output.shape[1] * output.shape[2],
    )
    return _written(operation, "reshape", body, [source], output)


def _written(
    operation: OtherOperation,
    kind: str,
    body: str,
    sources: Sequence[Value],
    output: Value,
    scale: Rescaling | None = None,
    *,
    extra: Sequence[Constant] = (),
    scratch: tuple[Scratch, ...] = (),
    names: tuple[str, ...] = ("source",),
    note: str = "",
) -> Written:
    shapes = " and ".join("x".join(map(str, source.shape)) for source in sources)
    purpose = f"{shapes} to {'x'.join(map(str, output.shape))}" + (f"; {note}" if note else "")
    what = kind.replace("_", " ")
    return Written(
        kind=kind,
        title=f"{what} {words_in_comment(operation.output)}: {purpose}",
        purpose=f"{what}: {purpose}",
        body=body,
        sources=tuple(zip(names, operation.sources, strict=True)),
        constants=(*extra, *(scale.constants if scale else ())),
        scratch=scratch,
    )
