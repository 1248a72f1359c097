"""Convolutions and linear layers in C.

Activations lie with their channels last (H, W, C), so what a filter sees of a row of the image is contiguous. For a block of
output pixels that is copied into patches of 16-bit numbers; each filter is then unpacked once and multiplied with four patches at
a time. Such loops over contiguous memory are what compilers turn into vector instructions (`pmaddwd`, `vpdpwssd`, `smlad`).
A depthwise convolution has too little to sum up and runs over channels instead.
"""

from workers.fixed_point.c_function import Rescaling, Scratch, Written, rescaling, wide_type
from workers.fixed_point.c_types import (
    INT16,
    CType,
    by_channel,
    code,
    indented,
    type_of,
    words_in_comment,
)
from workers.fixed_point.c_weights import StoredWeights, store_weights
from workers.fixed_point.network import Convolution, Value

LEAST_PATCH_BYTES = 8192  # a block of pixels gets that much, or more where the rest of the network leaves more
_MOST_PIXELS = 64  # of a block: unpacking a filter is cheap by then, and caches are small
_PIXELS_AT_ONCE = 4


def is_depthwise(operation: Convolution) -> bool:
    return operation.weight.shape[1] == 1 and operation.groups == len(operation.weight)


def write_convolution(
    operation: Convolution, source: Value, output: Value, *, patch_bytes: int, is_planar: bool
) -> Written:
    """The convolution in C; `is_planar` says that its source has its channels first, as the network's input has."""
    accumulator = wide_type(operation.accumulator_bound(source.coding))
    scale = rescaling(
        operation.out_shift.tolist(),
        operation.low.tolist(),
        operation.high.tolist(),
        largest=operation.accumulator_bounds(source.coding).tolist(),
        output=type_of(output.coding),
    )
    if is_depthwise(operation):
        assert not is_planar
        return _depthwise(operation, source, output, accumulator, scale)
    return _general(operation, source, output, accumulator, scale, patch_bytes, is_planar)


# ---- The general form -----------------------------------------------------------------------------------------------

_GENERAL = """\
$TAIL
$GROUPS_BEGIN
for (int32_t block = 0; block < $PIXELS; block += $BLOCK) {
    /* All blocks have one size: the last one overlaps the one before. */
    const int32_t first = block < $LAST_BLOCK ? block : $LAST_BLOCK;
    int32_t row = first / $Q;
    int32_t column = first % $Q;
    for (int32_t pixel = 0; pixel < $BLOCK; pixel++) {
        $PATCH_TYPE *patch = patches + pixel * $STRIDE;
        $FILL
        column++;
        if (column == $Q) {
            column = 0;
            row++;
        }
    }
    for (int32_t channel = $FIRST_CHANNEL; channel < $LAST_CHANNEL; channel++) {
        $UNPACK
        for (int32_t next = 0; next < $BLOCK; next += $AT_ONCE) {
            const int32_t pixel = next < $LAST_PIXEL ? next : $LAST_PIXEL;
            $ACCUMULATOR sums[$AT_ONCE];
            $DOTS($FILTER, patches + pixel * $STRIDE, sums);
            for (int32_t i = 0; i < $AT_ONCE; i++) {
                output[(first + pixel + i) * $K + channel] = $RESULT;
            }
        }
    }
}
$GROUPS_END
"""

_FILL = """\
for (int32_t r = 0; r < $R; r++) {
    const int32_t y = $Y;
    $WHOLE_ROW
    $SINGLY
}
"""

_SINGLY = """\
for (int32_t s = 0; s < $S; s++) {
    const int32_t x = $X;
    $COPY
    patch += $CG;
}
"""

_WHOLE_ROW = """\
const $SOURCE_TYPE *seen = source + (y * $W + $X0) * $C;
for (int32_t c = 0; c < $COUNT; c++) {
    patch[c] = $CASTseen[c];
}
patch += $COUNT;
"""

_COPY = """\
const $SOURCE_TYPE *seen = source + (y * $W + x) * $PIXEL_STRIDE$GROUP_OFFSET;
for (int32_t c = 0; c < $CG; c++) {
    patch[c] = $CASTseen[$INDEX];
}
"""

_COPY_OR_ZERO = """\
if ($INSIDE) {
    $COPY
} else {
    for (int32_t c = 0; c < $CG; c++) {
        patch[c] = 0;
    }
}
"""

_DOTS = """\
/* Products of a filter and of $PIXELS patches, $LENGTH numbers each, added up. */
static void $NAME(
    const $ROW *restrict filter,
    const $PATCH *restrict patches,
    $ACCUMULATOR *restrict sums)
{
    $DECLARE
    for (int32_t i = 0; i < $LENGTH; i++) {
        $ADD
    }
    $STORE
}
"""


def _general(
    operation: Convolution,
    source: Value,
    output: Value,
    accumulator: CType,
    scale: Rescaling,
    patch_bytes: int,
    is_planar: bool,
) -> Written:
    filters, _, rows, columns = operation.weight.shape
    pixels = output.shape[1] * output.shape[2]
    weights = store_weights(operation, is_depthwise=False)
    source_type = type_of(source.coding)
    patch_type = INT16 if INT16.holds(source.coding.lowest, source.coding.highest) else source_type
    # One pixel would use an unpacked filter only once.
    unpacks = pixels > 1 or not weights.is_plain
    length = rows * columns * operation.weight.shape[1]
    stride = weights.row_length if unpacks else length
    block = _block(pixels, stride * patch_type.size_bytes, patch_bytes)
    at_once = min(_PIXELS_AT_ONCE, block)
    row_type = weights.row_type if unpacks else weights.constants[0].type
    dots_name, dots = _dots(at_once, stride, row_type, patch_type, accumulator, operation, source)
    bias, bias_constants = by_channel("bias", operation.bias.tolist(), "Biases")
    is_grouped = operation.groups > 1
    per_group = filters // operation.groups
    body = code(
        _GENERAL,
        TAIL=_zero_tail(length, stride) if unpacks else "",
        GROUPS_BEGIN=f"for (int32_t group = 0; group < {operation.groups}; group++) {{" if is_grouped else "",
        GROUPS_END="}" if is_grouped else "",
        PIXELS=pixels,
        BLOCK=block,
        LAST_BLOCK=pixels - block,
        Q=output.shape[2],
        PATCH_TYPE=patch_type.name,
        STRIDE=stride,
        FILL=_fill(operation, source, source_type, patch_type, is_planar),
        FIRST_CHANNEL=f"group * {per_group}" if is_grouped else 0,
        LAST_CHANNEL=f"(group + 1) * {per_group}" if is_grouped else filters,
        UNPACK="const int32_t filter_number = channel;\n" + weights.unpack if unpacks else "",
        AT_ONCE=at_once,
        LAST_PIXEL=block - at_once,
        ACCUMULATOR=accumulator.name,
        DOTS=dots_name,
        FILTER="filter" if unpacks else f"weights + channel * {length}",
        K=filters,
        RESULT=scale.of("sums[i]" if bias == "0" else f"{bias} + sums[i]"),
    )
    scratch = [Scratch("patches", patch_type, block * stride)]
    if unpacks:
        scratch.append(Scratch("filter", row_type, stride))
    title, purpose = _described(operation, source, output, weights)
    return Written(
        kind=f"{'linear' if operation.is_linear else 'convolution'}_{filters}x{rows}x{columns}",
        title=title,
        purpose=purpose,
        body=body,
        sources=(("source", operation.source),),
        constants=(*weights.constants, *bias_constants, *scale.constants),
        scratch=tuple(scratch),
        helpers=(dots,),
    )


def _block(pixels: int, pixel_bytes: int, patch_bytes: int) -> int:
    """How many pixels share an unpacked filter: what memory allows, evenly spread over the blocks."""
    most = max(_PIXELS_AT_ONCE, min(_MOST_PIXELS, patch_bytes // pixel_bytes) // _PIXELS_AT_ONCE * _PIXELS_AT_ONCE)
    if pixels <= most:
        return pixels
    even = -(-pixels // -(-pixels // most))
    return -(-even // _PIXELS_AT_ONCE) * _PIXELS_AT_ONCE


_ZERO_TAIL = """\
/* Filters end in zeros, which make their length a multiple of 8. */
for (int32_t i = $LENGTH; i < $STRIDE; i++) {
    filter[i] = 0;
}
"""


def _zero_tail(length: int, stride: int) -> str:
    return code(_ZERO_TAIL, LENGTH=length, STRIDE=stride) if length < stride else ""


def _fill(operation: Convolution, source: Value, source_type: CType, patch_type: CType, is_planar: bool) -> str:
    """C code that copies what the filters see at (`row`, `column`) to `patch`."""
    _, group_channels, rows, columns = operation.weight.shape
    channels, height, width = source.shape
    y, x = _positions(operation)
    # Unsigned numbers of less than 16 bits fit, which compilers can't know.
    cast = "" if patch_type == source_type or source_type.bits < 16 else f"({patch_type.name})"
    inside_row = f"y >= 0 && y < {height}" if operation.padding[0] else ""
    inside_column = f"x >= 0 && x < {width}" if operation.padding[1] else ""
    copy = code(
        _COPY,
        SOURCE_TYPE=source_type.name,
        W=width,
        PIXEL_STRIDE=1 if is_planar else channels,
        GROUP_OFFSET=_group_offset(operation, height * width if is_planar else 1),
        CG=group_channels,
        CAST=cast,
        INDEX=f"c * {height * width}" if is_planar else "c",
    )
    inside = " && ".join(text for text in (inside_row, inside_column) if text)
    if inside:
        copy = code(_COPY_OR_ZERO, INSIDE=inside, COPY=copy, CG=group_channels)
    singly, whole_row = code(_SINGLY, S=columns, X=x, COPY=copy, CG=group_channels), ""
    if columns > 1 and operation.groups == 1 and operation.dilation[1] == 1 and not is_planar:
        x0 = _position("column", operation.stride[1], operation.padding[1], "")
        whole_row = code(
            _WHOLE_ROW,
            SOURCE_TYPE=source_type.name,
            W=width,
            X0=x0,
            C=channels,
            CAST=cast,
            COUNT=columns * channels,
        )
        if inside:
            fits = f"{x0} >= 0 && {x0} + {columns} <= {width}" if operation.padding[1] else ""
            inside_whole = " && ".join(text for text in (inside_row, fits) if text)
            whole_row = f"if ({inside_whole}) {{\n{whole_row}continue;\n}}\n"
        else:
            singly = ""  # nothing lies outside
    return code(_FILL, R=rows, Y=y, WHOLE_ROW=whole_row, SINGLY=singly)


def _positions(operation: Convolution) -> tuple[str, str]:
    """C expressions of the row and the column of the image that tap (r, s) of the output at (`row`, `column`) reads."""
    y, x = (
        _position(name, stride, padding, f"{tap} * {dilation}" if dilation > 1 else tap)
        for name, stride, padding, tap, dilation in zip(
            ("row", "column"), operation.stride, operation.padding, "rs", operation.dilation, strict=True
        )
    )
    return y, x


def _position(name: str, stride: int, padding: int, tap: str) -> str:
    text = name if stride == 1 else f"{name} * {stride}"
    text += f" - {padding}" if padding else ""
    text += f" + {tap}" if tap else ""
    return text if text == name else f"({text})"


def _group_offset(operation: Convolution, channel_stride: int) -> str:
    return f" + group * {operation.weight.shape[1] * channel_stride}" if operation.groups > 1 else ""


def _dots(
    pixels: int,
    length: int,
    row: CType,
    patch: CType,
    accumulator: CType,
    operation: Convolution,
    source: Value,
) -> tuple[str, str]:
    """The name and text of the function that multiplies one filter with some patches."""
    largest = int(operation.aligned_weight.abs().max()) * max(abs(source.coding.lowest), source.coding.highest)
    product = wide_type(largest)
    name = f"dots_{pixels}x{length}_{row.name}_{patch.name}_{accumulator.bits}".replace("_t_", "_")
    if product != accumulator:
        name += f"_{product.bits}"
    declare = [f"const {patch.name} *const x{i} = patches + {i * length};" for i in range(pixels)]
    declare += [f"{accumulator.name} sum{i} = 0;" for i in range(pixels)]
    add = [f"sum{i} += ({product.name})filter[i] * x{i}[i];" for i in range(pixels)]
    store = [f"sums[{i}] = sum{i};" for i in range(pixels)]
    text = code(
        _DOTS,
        PIXELS=pixels,
        LENGTH=length,
        NAME=name,
        ROW=row.name,
        PATCH=patch.name,
        ACCUMULATOR=accumulator.name,
        DECLARE="\n".join(declare),
        ADD="\n".join(add),
        STORE="\n".join(store),
    )
    head, brace, rest = text.partition("{\n")
    return name, head + indented(brace + rest)


# ---- Depthwise ------------------------------------------------------------------------------------------------------

_DEPTHWISE = """\
$UNPACK
for (int32_t row = 0; row < $P; row++) {
    for (int32_t column = 0; column < $Q; column++) {
        for (int32_t channel = 0; channel < $C; channel++) {
            sums[channel] = $BIAS;
        }
        for (int32_t r = 0; r < $R; r++) {
            const int32_t y = $Y;
            $SKIP_ROW
            for (int32_t s = 0; s < $S; s++) {
                const int32_t x = $X;
                $SKIP_COLUMN
                const $ROW_TYPE *restrict tap = $FILTER + (r * $S + s) * $C;
                const $SOURCE_TYPE *restrict seen = source + (y * $W + x) * $C;
                for (int32_t channel = 0; channel < $C; channel++) {
                    sums[channel] += ($PRODUCT)tap[channel] * seen[channel];
                }
            }
        }
        for (int32_t channel = 0; channel < $C; channel++) {
            output[(row * $Q + column) * $C + channel] = $RESULT;
        }
    }
}
"""


def _depthwise(
    operation: Convolution, source: Value, output: Value, accumulator: CType, scale: Rescaling
) -> Written:  # fmt: skip
    channels, height, width = source.shape
    rows, columns = operation.weight.shape[2:]
    weights = store_weights(operation, is_depthwise=True)
    source_type = type_of(source.coding)
    largest = int(operation.aligned_weight.abs().max()) * max(abs(source.coding.lowest), source.coding.highest)
    bias, bias_constants = by_channel("bias", operation.bias.tolist(), "Biases")
    y, x = _positions(operation)
    body = code(
        _DEPTHWISE,
        UNPACK="" if weights.is_plain else "const int32_t filter_number = 0;\n" + weights.unpack,
        P=output.shape[1],
        Q=output.shape[2],
        C=channels,
        W=width,
        BIAS=bias,
        R=rows,
        S=columns,
        Y=y,
        X=x,
        SKIP_ROW=_skip("y", height) if operation.padding[0] else "",
        SKIP_COLUMN=_skip("x", width) if operation.padding[1] else "",
        ROW_TYPE=(weights.constants[0].type if weights.is_plain else weights.row_type).name,
        FILTER="weights" if weights.is_plain else "filter",
        SOURCE_TYPE=source_type.name,
        PRODUCT=wide_type(largest).name,
        RESULT=scale.of("sums[channel]"),
    )
    scratch = [Scratch("sums", accumulator, channels)]
    if not weights.is_plain:
        scratch.append(Scratch("filter", weights.row_type, weights.row_length))
    title, purpose = _described(operation, source, output, weights)
    return Written(
        kind=f"depthwise_{rows}x{columns}",
        title=title,
        purpose=purpose,
        body=body,
        sources=(("source", operation.source),),
        constants=(*weights.constants, *bias_constants, *scale.constants),
        scratch=tuple(scratch),
    )


def _skip(name: str, size: int) -> str:
    return f"if ({name} < 0 || {name} >= {size}) {{\n    continue;\n}}"


def _described(operation: Convolution, source: Value, output: Value, weights: StoredWeights) -> tuple[str, str]:
    """What this operation is, and what the function is that it may share with others."""
    name = words_in_comment(operation.layer)
    shapes = f"{'x'.join(map(str, source.shape))} to {'x'.join(map(str, output.shape))}"
    least, most = int(operation.lengths.min()), int(operation.lengths.max())
    lengths = f"accumulators of length {least}" if least == most else f"accumulators of lengths {least} to {most}"
    if operation.is_linear:
        kind, shared = "linear layer", f"{shapes}; {weights.description}"
    else:
        rows, columns = operation.weight.shape[2:]
        geometry = f"{rows}x{columns} filters"
        for what, pair, usual in (
            ("stride", operation.stride, (1, 1)),
            ("padding", operation.padding, (0, 0)),
            ("dilation", operation.dilation, (1, 1)),
        ):
            if pair != usual:
                geometry += f", {what} {pair[0]}x{pair[1]}"
        if operation.groups > 1:
            geometry += f", {operation.groups} groups"
        kind, shared = "convolution", f"{shapes}; {geometry}; {weights.description}"
    return f"{kind} {name}: {shared}; {lengths}", f"{kind}: {shared}"
