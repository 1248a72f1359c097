"""Winograd convolutions of an integer network in an ONNX file.

* The transform of the input is a depthwise convolution of the image repeated for every position, with weights 1 and -1: a
  QLinearConv where tiles have 8 bits, a float convolution where they have more.
* The multiplication is one matrix product for each position. Bytes by weights of 8 bits are a MatMulInteger, whose sums have
  32 bits; all else is a product of whole numbers in float32, or of parts of them that are put together in float64.
* The transform of the output is a product with a matrix of 1 and -1, in float32 while sums are less than 2**24, else in float64.

Between the transforms, channels are last: rows of one tile each, [P, N * rows * columns, C], need not be turned around for ONNX
Runtime's convolutions of bytes, and ONNX Runtime has a product of float64 matrices, but no convolution.
"""

from dataclasses import replace

import torch
from torch import Tensor

from workers.fixed_point.coding import exp2
from workers.fixed_point.network import Convolution, InputTransform, OutputTransform, Value
from workers.fixed_point.qdq_convolutions import (
    WrittenConvolution,
    byte_convolution,
    depthwise,
    fits_bytes,
    float_convolution,
    partial_sums,
    saturates_16_bits,
    wide_sums,
    without_settled,
)
from workers.fixed_point.qdq_tensors import (
    BYTE_BITS,
    FLOAT_BITS,
    UNTIED,
    Form,
    Held,
    QdqTensors,
    Rounding,
    is_bytes,
    off_ties_of,
    zero_of,
)
from workers.fixed_point.qdq_weights import float_weight, int8_weight
from workers.fixed_point.tiles import STEP, TILE, input_terms, output_terms
from workers.models.onnx_emitter import ELEMENT_TYPES

INT32 = 2**31 - 1

# ---- To tiles -------------------------------------------------------------------------------------------------------


def write_input_transform(tensors: QdqTensors, operation: InputTransform, output: Value) -> Held:
    """Write the tiles of an image in the Winograd domain, [N, P * C, rows, columns]."""
    source, image = tensors.values[operation.source], tensors.image(operation.source)
    channels, count = source.shape[0], len(operation.positions)
    nothing = torch.zeros(count * channels, dtype=torch.int64)
    made = depthwise(
        operation, Rounding.of(operation), _kernels(operation.positions).repeat_interleave(channels, 0), nothing,
        stride=(STEP, STEP), padding=operation.padding,
    )  # fmt: skip
    made = without_settled(made, source)
    is_integer = fits_bytes(made, source, output)
    name = image.name if is_integer else tensors.unquantized(image)
    below = tuple(
        (tiles - 1) * STEP + TILE - side - above
        for tiles, side, above in zip(output.shape[1:], source.shape[1:], operation.padding, strict=True)
    )
    if below != operation.padding:
        zero = tensors.byte(image.zero) if is_integer else tensors.onnx.constant(torch.tensor(0.0))
        sides = tensors.onnx.constant([0, 0, *operation.padding, 0, 0, *below])
        name = tensors.add("Pad", [name, sides, zero], stem="h")
        made = replace(made, padding=(0, 0))
    if count > 1:
        name = tensors.add("Tile", [name, tensors.onnx.constant([1, count, 1, 1])], stem="h")
    if is_integer:
        return byte_convolution(tensors, name, image.zero, made, output)
    bound = int(partial_sums(made, source).max())
    assert bound < 2**FLOAT_BITS  # of four integers
    return float_convolution(tensors, made, bound, name)


def _kernels(positions: tuple[int, ...]) -> Tensor:
    """What a tile is multiplied by for each position, int64 [P, 1, 4, 4]."""
    kernels = torch.zeros(len(positions), 1, TILE, TILE, dtype=torch.int64)
    for kernel, position in zip(kernels, positions, strict=True):
        for r, s, sign in input_terms(position):
            kernel[0, r, s] = sign
    return kernels


# ---- Products, and from tiles ---------------------------------------------------------------------------------------


def write_products(tensors: QdqTensors, operation: Convolution, transform: OutputTransform) -> WrittenConvolution:
    """Write the convolution that multiplies tiles, and what the transform that reads it makes of its accumulators."""
    source, output = tensors.values[operation.source], tensors.values[transform.output]
    assert not bool(operation.out_shift.any())  # its accumulators are the output
    rounding = Rounding.of(transform)
    left = torch.tensor(transform.left).reshape(len(transform.positions), -1)  # [P, K]
    bias = operation.bias  # joins what is added at the end

    largest = partial_sums(replace(operation, bias=torch.zeros_like(bias)), source)
    overflows = int((largest + bias.abs()).max()) > INT32
    is_narrow = tensors.held[operation.source].form is Form.BYTES and operation.stored_bits <= BYTE_BITS
    is_integer = is_narrow and not overflows
    is_wide = not is_integer and (overflows or int(largest.max()) >= 2**FLOAT_BITS)
    if overflows:
        bias = torch.zeros_like(bias)  # it has to be there before they are clamped

    signs = _signs(transform.positions)
    constant = signs @ (bias.reshape(left.shape) << left) + torch.tensor(transform.bias)  # [4, K]
    bounds = (signs.abs() @ (largest.reshape(left.shape) << left) + constant.abs()).amax(0)  # [K]
    half = torch.where(rounding.out_shift > 0, 1 << (rounding.out_shift.clamp(min=1) - 1), 0)
    moves_off_ties = int(bounds.max()) < UNTIED
    fits_floats = moves_off_ties or int((bounds + half).max()) < 2**FLOAT_BITS
    kind = torch.float32 if fits_floats and not is_wide else torch.float64

    scale = exp2(left - rounding.out_shift)  # [P, K]
    if is_integer:
        products = _scaled(tensors, _cast(tensors, _integer_products(tensors, operation), kind), scale, kind)
    elif is_wide:
        products = _scaled(tensors, _wide_products(tensors, operation, overflows=overflows), scale, kind)
    else:
        products = _float_products(tensors, operation, float_weight(tensors, operation, scale.flatten()))
        products = products if kind == torch.float32 else _cast(tensors, products, kind)
    rows = tensors.reshaped(products, (len(signs[0]), -1))
    sums = tensors.add("MatMul", [tensors.onnx.constant(signs.to(kind)), rows], stem="a")
    grid = tensors.values[operation.output].shape[1:]
    sums = tensors.reshaped(sums, (STEP, STEP, -1, *grid, output.shape[0]))

    floors = kind == torch.float32 and not moves_off_ties
    off_ties = half * exp2(-rounding.out_shift) if floors else off_ties_of(rounding.out_shift)
    added = (constant * exp2(-rounding.out_shift) + off_ties).reshape(STEP, STEP, 1, 1, 1, -1)
    numbers = tensors.add("Add", [sums, tensors.onnx.constant(added.to(kind))], stem="s")
    if floors:
        numbers = tensors.add("Floor", [numbers], stem="f")
    tensors.held[transform.output] = _rounded_image(tensors, numbers, kind, output, rounding)
    is_exact = output.coding.bits <= FLOAT_BITS or int(bounds.max()) < 2**FLOAT_BITS
    needs_vnni = is_integer and saturates_16_bits(operation, source)
    return WrittenConvolution(operation.layer, is_integer, is_exact, needs_vnni)


def _signs(positions: tuple[int, ...]) -> Tensor:
    """What the outputs of a tile are of its positions, int64 [4, P]."""
    signs = torch.zeros(STEP * STEP, len(positions), dtype=torch.int64)
    for number, position in enumerate(positions):
        for r, s, sign in output_terms(position):
            signs[STEP * r + s, number] = sign
    return signs


def _integer_products(tensors: QdqTensors, operation: Convolution) -> str:
    """Accumulators without the bias, int32 [P, tiles, K]."""
    held = tensors.image(operation.source)
    matrices = _matrices(tensors, operation, int8_weight(tensors, operation))
    tiles = _rows_of_tiles(tensors, held.name, operation)
    return tensors.add("MatMulInteger", [tiles, matrices, tensors.byte(held.zero)], stem="a")


def _float_products(tensors: QdqTensors, operation: Convolution, weight: str, floats: str | None = None) -> str:
    """The same in float32, of weights that may be scaled, and of what the operation reads or of `floats` in its place."""
    if floats is None:
        floats = tensors.unquantized(tensors.image(operation.source))
    tiles = _rows_of_tiles(tensors, floats, operation)
    return tensors.add("MatMul", [tiles, _matrices(tensors, operation, weight)], stem="a")


def _wide_products(tensors: QdqTensors, operation: Convolution, *, overflows: bool) -> str:
    """The same in float64. Those that 32 bits may not hold have the bias added, and are clamped."""

    def sums_of(part: Convolution, weight: str, digits: str) -> str:
        return _float_products(tensors, part, weight, digits)

    floats = tensors.unquantized(tensors.image(operation.source))
    total = wide_sums(tensors, operation, floats, sums_of)
    if overflows:
        steps = (("Add", operation.bias), ("Max", operation.low), ("Min", operation.high))
        for operator, numbers in steps:
            stored = tensors.onnx.constant(numbers.double().reshape(operation.groups, 1, -1))
            total = tensors.add(operator, [total, stored], stem="c")
    return total


def _rows_of_tiles(tensors: QdqTensors, image: str, operation: Convolution) -> str:
    """The image [N, P * C, rows, columns] as [P, N * rows * columns, C]."""
    last = tensors.add("Transpose", [image], stem="t", perm=[0, 2, 3, 1])
    rows = tensors.reshaped(last, (-1, operation.groups, operation.weight.shape[1]))
    return tensors.add("Transpose", [rows], stem="t", perm=[1, 0, 2])


def _matrices(tensors: QdqTensors, operation: Convolution, weight: str) -> str:
    """Weights [P * K, C, 1, 1] as [P, C, K]."""
    apart = tensors.reshaped(weight, (operation.groups, -1, operation.weight.shape[1]))
    return tensors.add("Transpose", [apart], stem="w", perm=[0, 2, 1])


def _cast(tensors: QdqTensors, name: str, kind: torch.dtype) -> str:
    return tensors.add("Cast", [name], stem="k", to=ELEMENT_TYPES[kind])


def _scaled(tensors: QdqTensors, products: str, scale: Tensor, kind: torch.dtype) -> str:
    """Products [P, tiles, K] times `scale` [P, K]."""
    if bool((scale == 1).all()):
        return products
    return tensors.add("Mul", [products, tensors.onnx.constant(scale[:, None].to(kind))], stem="m")


def _rounded_image(tensors: QdqTensors, numbers: str, kind: torch.dtype, output: Value, rounding: Rounding) -> Held:
    """Numbers of tiles, none of them a tie, as the integers of the image. What is moved is bytes, if it can be."""
    if is_bytes(output):
        image = _image_of_tiles(tensors, tensors.nearest_bytes(numbers, kind, output), output)
        return tensors.clamped_bytes(image, zero_of(output), rounding)
    return tensors.rounded(_image_of_tiles(tensors, numbers, output), kind, output, rounding)


def _image_of_tiles(tensors: QdqTensors, name: str, output: Value) -> str:
    """Tiles [2, 2, N, rows, columns, K] as the image [N, K, H, W], without what they have beyond it."""
    channels, height, width = output.shape
    whole = [-(-side // STEP) * STEP for side in (height, width)]
    joined = tensors.add("Transpose", [name], stem="t", perm=[2, 3, 0, 4, 1, 5])
    image = tensors.reshaped(joined, (-1, *whole, channels))
    if whole != [height, width]:
        ends = [tensors.onnx.constant(numbers) for numbers in ([0, 0], [height, width], [1, 2])]
        image = tensors.add("Slice", [image, *ends], stem="h")
    return tensors.add("Transpose", [image], stem="t", perm=[0, 3, 1, 2])
