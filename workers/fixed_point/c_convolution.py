"""Convolutions and linear layers in C.

Activations lie with their channels last (H, W, C), so what a filter sees of a row of the image is contiguous. For a block of
output pixels that is copied into patches of 16-bit numbers; each filter is then unpacked once and multiplied with four patches at
a time. Such loops over contiguous memory are what compilers turn into vector instructions (`pmaddwd`, `vpdpwssd`, `smlad`).
A depthwise convolution has too little to sum up and runs over channels instead.
"""

from workers.fixed_point.c_function import Rescaling, Scratch, Written, rescaling, wide_type
from workers.fixed_point.c_patches import (
    PIXELS_AT_ONCE,
    block_size,
    dots,
    fill_patch,
    patch_type,
    places,
    window_of,
    zero_tail,
)
from workers.fixed_point.c_types import (
    CType,
    by_channel,
    code,
    type_of,
    words_in_comment,
)
from workers.fixed_point.c_weights import StoredWeights, store_weights
from workers.fixed_point.network import Convolution, Value


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
    patch = patch_type(source)
    # One pixel would use an unpacked filter only once.
    unpacks = pixels > 1 or not weights.is_plain
    length = rows * columns * operation.weight.shape[1]
    stride = weights.row_length if unpacks else length
    block = block_size(pixels, stride * patch.size_bytes, patch_bytes)
    at_once = min(PIXELS_AT_ONCE, block)
    row_type = weights.row_type if unpacks else weights.constants[0].type
    dots_name, dots_text = dots(at_once, stride, row_type, patch, accumulator, operation, source)
    bias, bias_constants = by_channel("bias", operation.bias.tolist(), "Biases")
    is_grouped = operation.groups > 1
    per_group = filters // operation.groups
    body = code(
        _GENERAL,
        TAIL=zero_tail(length, stride) if unpacks else "",
        GROUPS_BEGIN=f"for (int32_t group = 0; group < {operation.groups}; group++) {{" if is_grouped else "",
        GROUPS_END="}" if is_grouped else "",
        PIXELS=pixels,
        BLOCK=block,
        LAST_BLOCK=pixels - block,
        Q=output.shape[2],
        PATCH_TYPE=patch.name,
        STRIDE=stride,
        FILL=fill_patch(window_of(operation), source, patch, is_planar=is_planar),
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
    scratch = [Scratch("patches", patch, block * stride)]
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
        helpers=(dots_text,),
    )


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
    y, x = places(window_of(operation))
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
