"""Winograd convolutions in C: what an integer network has as three operations is one function.

The numbers that are multiplied, and the products, of a whole image would be many times the image. So a block of tiles at a time is
transformed, position by position, to 16-bit numbers that lie as a convolution's patches do. Then for each filter there are the
products of the block at all positions, each with the weights of that position, which are unpacked once for the block; and their
sums are the outputs of that filter.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from workers.fixed_point.c_function import Scratch, Written, rescaling, shifted_left, wide_type
from workers.fixed_point.c_operations import OtherOperation
from workers.fixed_point.c_patches import PIXELS_AT_ONCE, Window, block_size, dots, fill_patch, patch_type, zero_tail
from workers.fixed_point.c_types import INT32, Constant, CType, by_channel, code, type_of, words_in_comment
from workers.fixed_point.c_weights import store_weights
from workers.fixed_point.network import Convolution, InputTransform, IntegerNetwork, OutputTransform, Value
from workers.fixed_point.tiles import STEP, TILE, input_terms, output_terms


@dataclass(frozen=True, eq=False)
class Winograd:
    """A Winograd convolution: three operations that nothing else reads the results of, but of the last."""

    to_tiles: InputTransform
    products: Convolution
    from_tiles: OutputTransform

    @property
    def sources(self) -> tuple[str, ...]:
        return self.to_tiles.sources

    @property
    def output(self) -> str:
        return self.from_tiles.output

    @property
    def layer(self) -> str:
        return self.products.layer


Step = Convolution | Winograd | OtherOperation


def steps_of(network: IntegerNetwork) -> tuple[Step, ...]:
    """The operations of a network, where the three of a Winograd convolution are one, which runs when the last of them would.

    Raises:
        ValueError: if there is a transform that isn't part of a Winograd convolution.
    """
    found = {last.output: _found(last, network) for last in network.operations if isinstance(last, OutputTransform)}
    inside = {name for each in found.values() for name in (each.to_tiles.output, each.products.output)}
    steps: list[Step] = []
    for operation in network.operations:
        if isinstance(operation, OutputTransform):
            steps.append(found[operation.output])
        elif operation.output not in inside:
            if isinstance(operation, InputTransform):
                raise _not_one(operation)
            steps.append(operation)
    return tuple(steps)


def _found(last: OutputTransform, network: IntegerNetwork) -> Winograd:
    """The Winograd convolution that a transform is the end of."""
    makers = {operation.output: operation for operation in network.operations}
    readers = Counter(source for operation in network.operations for source in operation.sources)
    readers[network.output] += 1
    products = makers.get(last.source)
    if isinstance(products, Convolution):
        first = makers.get(products.source)
        if (
            isinstance(first, InputTransform)
            and readers[first.output] == readers[products.output] == 1
            and first.positions == last.positions
            and products.groups == len(first.positions)
            and (tuple(products.weight.shape[2:]), products.stride, products.padding) == ((1, 1), (1, 1), (0, 0))
            and not products.out_shift.any()
        ):
            return Winograd(first, products, last)
    raise _not_one(last)


def _not_one(operation: InputTransform | OutputTransform) -> ValueError:
    return ValueError(
        f"{operation.output!r} can't be written as C: it isn't part of a Winograd convolution, which is an input transform, a 1x1 "
        "convolution with a group for each position and no shift of its output, and an output transform, where nothing else reads "
        "what is in between"
    )


_WINOGRAD = """\
$TAIL
for (int32_t block = 0; block < $TILES; block += $BLOCK) {
    /* All blocks have one size: the last one overlaps the one before. */
    const int32_t first = block < $LAST_BLOCK ? block : $LAST_BLOCK;
    const int32_t first_row = first / $ACROSS;
    const int32_t first_column = first % $ACROSS;
    int32_t row = first_row;
    int32_t column = first_column;
    for (int32_t tile = 0; tile < $BLOCK; tile++) {
        $SOURCE_TYPE *patch = inputs;
        $PATCH_TYPE *numbers = transformed + tile * $STRIDE;
        $FILL
        $POSITIONS
        $NEXT
    }
    for (int32_t k = 0; k < $K; k++) {
        for (int32_t position = 0; position < $P; position++) {
            const int32_t channel = position * $K + k;
            const int32_t filter_number = channel;
            $UNPACK
            for (int32_t next = 0; next < $BLOCK; next += $AT_ONCE) {
                const int32_t tile = position * $BLOCK + (next < $LAST_TILE ? next : $LAST_TILE);
                $ACCUMULATOR sums[$AT_ONCE];
                $DOTS(filter, transformed + tile * $STRIDE, sums);
                for (int32_t i = 0; i < $AT_ONCE; i++) {
                    products[tile + i] = $PRODUCT;
                }
            }
        }
        const int32_t channel = k;
        row = first_row;
        column = first_column;
        for (int32_t tile = 0; tile < $BLOCK; tile++) {
            const $WIDE *m = products + tile;
            const $WIDE sums[$OUTPUTS] = {
            $SUMS
            };
            for (int32_t r = 0; r < $STEP && row * $STEP + r < $H; r++) {
                for (int32_t s = 0; s < $STEP && column * $STEP + s < $W; s++) {
                    output[((row * $STEP + r) * $W + column * $STEP + s) * $K + channel] = $RESULT;
                }
            }
            $NEXT
        }
    }
}
"""

_NEXT = """\
column++;
if (column == $ACROSS) {
    column = 0;
    row++;
}
"""

_POSITION = """\
/* Position ($A, $B) */
for (int32_t c = 0; c < $C; c++) {
    $CHANNEL
    numbers[$PLACE + c] = $RESULT;
}
"""


def write_winograd(operation: Winograd, network: IntegerNetwork, *, patch_bytes: int, is_planar: bool) -> Written:
    """The Winograd convolution in C; `is_planar` says that its source has its channels first, as the network's input has.

    Raises:
        ValueError: if the network can't be computed with 64-bit integers.
    """
    source, transformed, output = (
        network.values[name] for name in (operation.sources[0], operation.products.source, operation.output)
    )
    count, filters = len(operation.from_tiles.positions), len(operation.from_tiles.bias)
    down, across = transformed.shape[1:]
    weights = store_weights(operation.products, is_depthwise=False)
    stride = weights.row_length
    source_type, patch = type_of(source.coding), patch_type(transformed)
    accumulator = wide_type(operation.products.accumulator_bound(transformed.coding))
    product, sums_bounds, product_constants = _product(operation, transformed)
    wide = wide_type(max(sums_bounds))
    product, left_constants = shifted_left(product, operation.from_tiles.left, "left", wide)
    block = block_size(down * across, count * (stride * patch.size_bytes + wide.size_bytes), patch_bytes)
    at_once = min(PIXELS_AT_ONCE, block)
    dots_name, dots_text = dots(at_once, stride, weights.row_type, patch, accumulator, operation.products, transformed)
    positions, position_constants = _positions(operation.to_tiles, source, patch, block * stride)
    bias, bias_constants = by_channel("bias", operation.from_tiles.bias, "Biases of the outputs")
    scale = rescaling(
        operation.from_tiles.out_shift,
        operation.from_tiles.low,
        operation.from_tiles.high,
        largest=sums_bounds,
        output=type_of(output.coding),
    )
    body = code(
        _WINOGRAD,
        TAIL=zero_tail(source.shape[0], stride),
        TILES=down * across,
        BLOCK=block,
        LAST_BLOCK=down * across - block,
        ACROSS=across,
        SOURCE_TYPE=source_type.name,
        PATCH_TYPE=patch.name,
        STRIDE=stride,
        FILL=fill_patch(_window(operation, source, transformed), source, source_type, is_planar=is_planar),
        POSITIONS=positions,
        NEXT=code(_NEXT, ACROSS=across),
        K=filters,
        P=count,
        UNPACK=weights.unpack,
        AT_ONCE=at_once,
        LAST_TILE=block - at_once,
        ACCUMULATOR=accumulator.name,
        DOTS=dots_name,
        PRODUCT=product,
        WIDE=wide.name,
        OUTPUTS=STEP * STEP,
        SUMS=",\n".join(_sums(operation.from_tiles, block)),
        STEP=STEP,
        H=output.shape[1],
        W=output.shape[2],
        RESULT=scale.of(f"sums[r * {STEP} + s]" if bias == "0" else f"{bias} + sums[r * {STEP} + s]"),
    )
    purpose = _purpose(operation, source, output, down * across, weights.description)
    return Written(
        kind=f"winograd_{filters}x3x3",
        title=f"Winograd convolution {words_in_comment(operation.layer)}: {purpose}",
        purpose=f"Winograd convolution: {purpose}",
        body=body,
        sources=(("source", operation.sources[0]),),
        constants=(
            *weights.constants, *position_constants, *product_constants, *left_constants, *bias_constants, *scale.constants,
        ),
        scratch=(
            Scratch("inputs", source_type, TILE * TILE * source.shape[0]),
            Scratch("transformed", patch, count * block * stride),
            Scratch("filter", weights.row_type, stride),
            Scratch("products", wide, count * block),
        ),
        helpers=(dots_text,),
    )  # fmt: skip


def _window(operation: Winograd, source: Value, transformed: Value) -> Window:
    """The inputs of a tile."""
    padding = operation.to_tiles.padding
    down, across = (
        before > 0 or STEP * (count - 1) + TILE - before > size
        for before, count, size in zip(padding, transformed.shape[1:], source.shape[1:], strict=True)
    )
    return Window((TILE, TILE), source.shape[0], (down, across), stride=(STEP, STEP), padding=padding)


def _positions(
    operation: InputTransform, source: Value, patch: CType, position_stride: int
) -> tuple[str, tuple[Constant, ...]]:
    """C code from the inputs of a tile to its numbers at each position, and the arrays that it needs."""
    scale = rescaling(
        operation.out_shift,
        operation.low,
        operation.high,
        largest=operation.accumulator_bounds(source.coding),
        output=patch,
        prefix="tile_",
    )
    channels, texts = source.shape[0], []
    for number, position in enumerate(operation.positions):
        result = scale.of(
            _sum(
                (sign, f"({scale.wide.name})inputs[{(r * TILE + s) * channels} + c]")
                for r, s, sign in input_terms(position)
            )
        )
        texts.append(
            code(
                _POSITION,
                A=position // TILE,
                B=position % TILE,
                C=channels,
                CHANNEL=f"const int32_t channel = {number * channels} + c;" if "[channel]" in result else "",
                PLACE=number * position_stride,
                RESULT=result,
            )
        )
    return "".join(texts), scale.constants


def _product(operation: Winograd, transformed: Value) -> tuple[str, list[int], tuple[Constant, ...]]:
    """The C expression of a product from `sums[i]`, what no sum of products exceeds, and the arrays that it needs."""
    products = operation.products
    low, high = products.low.tolist(), products.high.tolist()
    bounds = products.accumulator_bounds(transformed.coding).tolist()
    bias, constants = by_channel("product_bias", products.bias.tolist(), "Biases of the products")
    text = "sums[i]" if bias == "0" else f"({bias} + sums[i])"
    limits = [max(-least, most) for least, most in zip(low, high, strict=True)]
    if any(bound > min(-least, most) for bound, least, most in zip(bounds, low, high, strict=True)):
        shifts = [0] * len(bounds)
        scale = rescaling(shifts, low, high, largest=bounds, output=INT32, prefix="product_")
        text, constants = scale.of(text), (*constants, *scale.constants)
    reached = [min(bound, limit) for bound, limit in zip(bounds, limits, strict=True)]
    return text, operation.from_tiles.accumulator_bounds(reached), constants


def _sums(operation: OutputTransform, block: int) -> Iterable[str]:
    """The C expressions of the outputs of a tile, whose products of consecutive positions lie so far apart behind `m`."""
    for place in ((r, s) for r in range(STEP) for s in range(STEP)):
        yield _sum(
            (sign, f"m[{number * block}]")
            for number, position in enumerate(operation.positions)
            for r, s, sign in output_terms(position)
            if (r, s) == place
        )


def _sum(terms: Iterable[tuple[int, str]]) -> str:
    """Signed terms as a C expression; those without a minus come first."""
    ordered = sorted(terms, key=lambda term: -term[0])
    return " ".join(f"{'+' if sign > 0 else '-'} {text}" for sign, text in ordered).removeprefix("+ ") or "0"


def _purpose(operation: Winograd, source: Value, output: Value, tiles: int, weights: str) -> str:
    channels, (filters, rows, columns) = source.shape[0], output.shape
    shapes = f"{'x'.join(map(str, source.shape))} to {'x'.join(map(str, output.shape))}"
    padding = operation.to_tiles.padding
    padded = f", padding {padding[0]}x{padding[1]}" if padding != (0, 0) else ""
    count, pairs = len(operation.from_tiles.positions), channels * filters
    return (
        f"{shapes}; F(2x2, 3x3){padded}, {count} of {TILE * TILE} positions, {count * tiles * pairs} multiplications, where "
        f"the direct convolution makes {9 * rows * columns * pairs}; {weights}"
    )
