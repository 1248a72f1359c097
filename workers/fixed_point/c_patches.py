"""Patches in C: what filters see of a block of an image, copied to contiguous 16-bit numbers, and the products with them.

A filter is unpacked once for the whole block, and multiplied with four patches at a time.
"""

from dataclasses import dataclass

from workers.fixed_point.c_function import wide_type
from workers.fixed_point.c_types import INT16, CType, code, indented, type_of
from workers.fixed_point.network import Convolution, Value

LEAST_PATCH_BYTES = 8192  # a block of pixels gets that much, or more where the rest of the network leaves more
_MOST_PIXELS = 64  # of a block: unpacking a filter is cheap by then, and caches are small
PIXELS_AT_ONCE = 4


def patch_type(source: Value) -> CType:
    """The type of numbers in patches: 16 bits, which processors multiply best, if they hold the source's."""
    return INT16 if INT16.holds(source.coding.lowest, source.coding.highest) else type_of(source.coding)


def block_size(pixels: int, pixel_bytes: int, patch_bytes: int) -> int:
    """How many pixels share an unpacked filter: what memory allows, evenly spread over the blocks."""
    most = max(PIXELS_AT_ONCE, min(_MOST_PIXELS, patch_bytes // pixel_bytes) // PIXELS_AT_ONCE * PIXELS_AT_ONCE)
    if pixels <= most:
        return pixels
    even = -(-pixels // -(-pixels // most))
    return -(-even // PIXELS_AT_ONCE) * PIXELS_AT_ONCE


@dataclass(frozen=True)
class Window:
    """What is seen of an image for one output: so many rows and columns of it, in one group's channels."""

    size: tuple[int, int]
    channels: int  # of a group
    reaches_out: tuple[bool, bool]  # whether rows and columns outside the image are seen, which hold zeros
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def window_of(operation: Convolution) -> Window:
    """What one filter sees."""
    rows, columns = operation.weight.shape[2:]
    return Window(
        size=(rows, columns),
        channels=operation.weight.shape[1],
        reaches_out=(operation.padding[0] > 0, operation.padding[1] > 0),
        stride=operation.stride,
        padding=operation.padding,
        dilation=operation.dilation,
        groups=operation.groups,
    )


# ---- Copying ----------------------------------------------------------------------------------------------------------

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


def fill_patch(window: Window, source: Value, patch: CType, *, is_planar: bool) -> str:
    """C code that copies what is seen for (`row`, `column`) to `patch`, a pointer to numbers of type `patch`, which it moves."""
    (rows, columns), group_channels = window.size, window.channels
    source_type = type_of(source.coding)
    channels, height, width = source.shape
    y, x = places(window)
    # Unsigned numbers of less than 16 bits fit, which compilers can't know.
    cast = "" if patch == source_type or source_type.bits < 16 else f"({patch.name})"
    inside_row = f"y >= 0 && y < {height}" if window.reaches_out[0] else ""
    inside_column = f"x >= 0 && x < {width}" if window.reaches_out[1] else ""
    copy = code(
        _COPY,
        SOURCE_TYPE=source_type.name,
        W=width,
        PIXEL_STRIDE=1 if is_planar else channels,
        GROUP_OFFSET=_group_offset(window, height * width if is_planar else 1),
        CG=group_channels,
        CAST=cast,
        INDEX=f"c * {height * width}" if is_planar else "c",
    )
    inside = " && ".join(text for text in (inside_row, inside_column) if text)
    if inside:
        copy = code(_COPY_OR_ZERO, INSIDE=inside, COPY=copy, CG=group_channels)
    singly, whole_row = code(_SINGLY, S=columns, X=x, COPY=copy, CG=group_channels), ""
    if columns > 1 and window.groups == 1 and window.dilation[1] == 1 and not is_planar:
        x0 = _place("column", window.stride[1], window.padding[1], "")
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
            fits = f"{x0} >= 0 && {x0} + {columns} <= {width}" if window.reaches_out[1] else ""
            inside_whole = " && ".join(text for text in (inside_row, fits) if text)
            whole_row = f"if ({inside_whole}) {{\n{whole_row}continue;\n}}\n"
        else:
            singly = ""  # nothing lies outside
    return code(_FILL, R=rows, Y=y, WHOLE_ROW=whole_row, SINGLY=singly)


def places(window: Window) -> tuple[str, str]:
    """C expressions of the row and the column of the image that are seen at (r, s) of the window for (`row`, `column`)."""
    y, x = (
        _place(name, stride, padding, f"{tap} * {dilation}" if dilation > 1 else tap)
        for name, stride, padding, tap, dilation in zip(
            ("row", "column"), window.stride, window.padding, "rs", window.dilation, strict=True
        )
    )
    return y, x


def _place(name: str, stride: int, padding: int, tap: str) -> str:
    text = name if stride == 1 else f"{name} * {stride}"
    text += f" - {padding}" if padding else ""
    text += f" + {tap}" if tap else ""
    return text if text == name else f"({text})"


def _group_offset(window: Window, channel_stride: int) -> str:
    return f" + group * {window.channels * channel_stride}" if window.groups > 1 else ""


# ---- Products ---------------------------------------------------------------------------------------------------------

_ZERO_TAIL = """\
/* Filters end in zeros, which make their length a multiple of 8. */
for (int32_t i = $LENGTH; i < $STRIDE; i++) {
    filter[i] = 0;
}
"""


def zero_tail(length: int, stride: int) -> str:
    """C code that makes a filter of so many numbers as long as the rows that it is unpacked to."""
    return code(_ZERO_TAIL, LENGTH=length, STRIDE=stride) if length < stride else ""


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


def dots(
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
