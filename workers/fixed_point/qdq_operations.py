"""What each operation of an integer network becomes in an ONNX file, convolutions apart.

Whatever multiplies by small numbers and requantizes is a depthwise convolution of bytes, because that is the one operator of
ONNX Runtime with a scale for each channel whose accumulator is an integer. Moving operations work on bytes as they are.
"""

import math
from dataclasses import replace
from typing import assert_never

import torch
from onnx import TensorProto

from workers.fixed_point.coding import exp2
from workers.fixed_point.interpolation import ONE, Tap
from workers.fixed_point.network import (
    Addition,
    AveragePool,
    BilinearResize,
    Concatenation,
    Convolution,
    InputTransform,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Operation,
    OutputTransform,
    Padding,
    Permutation,
    Requantization,
    Reshape,
    Slice,
    Table,
    Value,
)
from workers.fixed_point.qdq_convolutions import byte_convolution, depthwise, fits_bytes
from workers.fixed_point.qdq_tensors import (
    FLOAT_BITS,
    UNTIED,
    Form,
    Held,
    QdqTensors,
    Rounding,
    is_bytes,
    zero_of,
)
from workers.fixed_point.qdq_winograd import write_input_transform


def write_operation(tensors: QdqTensors, operation: Operation) -> Held:
    """Write one operation that is no convolution, and return what it makes."""
    output = tensors.values[operation.output]
    match operation:
        case InputTransform():
            return write_input_transform(tensors, operation, output)
        case Addition():
            return _addition(tensors, operation, output)
        case Multiplication():
            return _multiplication(tensors, operation, output)
        case MaxPool():
            return _max_pool(tensors, operation)
        case AveragePool():
            return _average_pool(tensors, operation, output)
        case Table():
            return _table(tensors, operation, output)
        case Requantization():
            return _requantization(tensors, operation, output)
        case Concatenation():
            parts = [_with_zero_of(tensors, tensors.image(source), output) for source in operation.sources]
            return replace(parts[0], name=tensors.add("Concat", [part.name for part in parts], stem="h", axis=1))
        case Slice():
            return _slice(tensors, operation)
        case Padding():
            return _padding(tensors, operation)
        case NearestUpsample():
            return _upsample(tensors, operation)
        case BilinearResize():
            return _resize(tensors, operation, output)
        case Reshape():
            return _reshape(tensors, operation, output)
        case Permutation():
            image = tensors.image(operation.source)
            order = [0, *(place + 1 for place in operation.order)]
            return replace(image, name=tensors.add("Transpose", [image.name], stem="t", perm=order))
        case Convolution() | OutputTransform():
            raise AssertionError("convolutions have modules of their own")
        case _:
            assert_never(operation)


# ---- Arithmetic -----------------------------------------------------------------------------------------------------


def _addition(tensors: QdqTensors, operation: Addition, output: Value) -> Held:
    """Where all channels have the same shifts, and nothing is rounded, what ONNX Runtime fuses to QLinearAdd.

    Elsewhere a column of two weights for each channel, over one image below the other. This keeps the shifts of each channel,
    and takes a third of the time of additions in floats, though twice that of QLinearAdd.
    """
    sources = [tensors.values[source] for source in operation.sources]
    if all(is_bytes(source) for source in (*sources, output)):
        images = [tensors.image(source) for source in operation.sources]
        shifts = {*zip(*operation.left, operation.out_shift, strict=True)}
        if len(shifts) == 1 and all(first >= out and second >= out for first, second, out in shifts):
            return _uniform_addition(tensors, operation, output, images)
        made = _sum_of_bytes(operation, sources, [image.zero for image in images], output.shape[1])
        as_stored = replace(sources[0], coding=replace(sources[0].coding, bits=8, signed=False))
        if fits_bytes(made, as_stored, output):
            pair = tensors.add("Concat", [image.name for image in images], stem="h", axis=2)
            return byte_convolution(tensors, pair, 0, made, output)
    operands, kind = _operands(tensors, operation)
    terms = [
        tensors.multiplied(operand, exp2(torch.tensor(left)), kind)
        for operand, left in zip(operands, operation.left, strict=True)
    ]
    return tensors.finished(tensors.add("Add", terms, stem="a"), kind, output, Rounding.of(operation))


def _operands(tensors: QdqTensors, operation: Addition | Multiplication) -> tuple[list[str], torch.dtype]:
    """Both operands as whole numbers of the kind in which their sum or product is exact, and can be moved off ties."""
    numbers = [tensors.floats(tensors.image(source)) for source in operation.sources]
    first, second = (tensors.values[source].coding for source in operation.sources)
    if max(operation.accumulator_bounds(first, second)) < UNTIED:
        return numbers, torch.float32
    return [tensors.add("Cast", [each], stem="k", to=TensorProto.DOUBLE) for each in numbers], torch.float64


def _uniform_addition(tensors: QdqTensors, operation: Addition, output: Value, images: list[Held]) -> Held:
    terms = []
    for image, left in zip(images, operation.left, strict=True):
        step = tensors.onnx.constant(torch.tensor(2.0 ** (left[0] - operation.out_shift[0])))
        terms.append(tensors.add("DequantizeLinear", [image.name, step, tensors.byte(image.zero)], stem="d"))
    zero = zero_of(output)
    whole = tensors.quantized(tensors.add("Add", terms, stem="a"), zero, output.name)
    return tensors.clamped_bytes(whole, zero, Rounding.of(operation))


def _sum_of_bytes(operation: Addition, sources: list[Value], zeros: list[int], height: int) -> Convolution:
    """An addition as a depthwise convolution of bytes taken for numbers from 0 on: the bias puts their zeros right.

    Where one operand is so fine that it never reaches the last bit of the sum, it is left out, and the other needs no shift.
    """
    weights, biases, shifts = [], [], []
    for first, second, shift in zip(*operation.left, operation.out_shift, strict=True):
        factors, bias, left_over = [1 << first, 1 << second], 0, shift
        for coarse, fine, amount in ((0, 1, first), (1, 0, second)):
            carried = _constant_part(sources[fine], amount, shift)
            if min(first, second) == 0 and carried is not None:
                left_over = shift - amount
                factors[coarse], factors[fine] = 1, 0
                bias = carried - (1 << left_over >> 1)
        weights.append(factors)
        biases.append(bias - sum(factor * zero for factor, zero in zip(factors, zeros, strict=True)))
        shifts.append(left_over)
    rounding = replace(Rounding.of(operation), out_shift=torch.tensor(shifts))
    weight = torch.tensor(weights).reshape(-1, 1, 2, 1)
    return depthwise(operation, rounding, weight, torch.tensor(biases), dilation=(height, 1))


def _constant_part(fine: Value, amount: int, shift: int) -> int | None:
    """`(fine + half) >> amount` if all integers that `fine` can have give the same, where `amount` is within the shift."""
    if not 0 < amount <= shift:
        return None
    half = 1 << (shift - 1)
    lowest, highest = ((end + half) >> amount for end in (fine.coding.lowest, fine.coding.highest))
    return lowest if lowest == highest else None


def _multiplication(tensors: QdqTensors, operation: Multiplication, output: Value) -> Held:
    operands, kind = _operands(tensors, operation)
    return tensors.finished(tensors.add("Mul", operands, stem="a"), kind, output, Rounding.of(operation))


def _average_pool(tensors: QdqTensors, operation: AveragePool, output: Value) -> Held:
    source, image = tensors.values[operation.source], tensors.image(operation.source)
    channels, height, width = source.shape
    is_global = operation.kernel == (height, width) and operation.padding == (0, 0)
    largest = source.coding.largest * math.prod(operation.kernel)
    if is_global:
        axes, numbers = tensors.onnx.constant([2, 3]), tensors.floats(image)
        if largest >= 2**FLOAT_BITS:
            doubles = tensors.add("Cast", [numbers], stem="k", to=TensorProto.DOUBLE)
            sums = tensors.add("ReduceSum", [doubles, axes], stem="a", keepdims=1)
            return tensors.finished(
                sums, torch.float64, output, Rounding.of(operation), multiplier=operation.multiplier
            )
        sums = tensors.add("ReduceSum", [numbers, axes], stem="a", keepdims=1)
    else:
        weight = torch.full((channels, 1, *operation.kernel), operation.multiplier)
        zeros = torch.zeros(channels, dtype=torch.int64)
        made = depthwise(
            operation, Rounding.of(operation), weight, zeros, stride=operation.stride, padding=operation.padding
        )
        if fits_bytes(made, source, output):
            return byte_convolution(tensors, image.name, image.zero, made, output)
        sums = _window_sums(tensors, operation, tensors.unquantized(image), channels)
    bound = largest * operation.multiplier
    return tensors.requantized(sums, output, Rounding.of(operation), bound=bound, multiplier=operation.multiplier)


def _window_sums(tensors: QdqTensors, operation: AveragePool, floats: str, channels: int) -> str:
    ones = tensors.add("Expand", [tensors.one, tensors.onnx.constant([channels, 1, *operation.kernel])], stem="w")
    return tensors.add(
        "Conv", [floats, ones], stem="a", kernel_shape=list(operation.kernel), strides=list(operation.stride),
        pads=list(operation.padding) * 2, group=channels,
    )  # fmt: skip


def _requantization(tensors: QdqTensors, operation: Requantization, output: Value) -> Held:
    source, image = tensors.values[operation.source], tensors.image(operation.source)
    channels = source.shape[0]
    ones, zeros = torch.ones(channels, 1, 1, 1, dtype=torch.int64), torch.zeros(channels, dtype=torch.int64)
    made = depthwise(operation, Rounding.of(operation), ones, zeros)
    if fits_bytes(made, source, output):
        return byte_convolution(tensors, image.name, image.zero, made, output)
    return tensors.requantized(tensors.floats(image), output, Rounding.of(operation), bound=source.coding.largest)


def _table(tensors: QdqTensors, operation: Table, output: Value) -> Held:
    """A look-up in all tables behind each other. GatherElements is several times faster than Gather at single numbers."""
    source, image = tensors.values[operation.source], tensors.image(operation.source)
    lowest, size = source.coding.lowest, operation.tables.shape[1]
    zero = zero_of(output) if is_bytes(output) else 0
    kind = torch.uint8 if is_bytes(output) else torch.int16 if output.coding.highest < 2**15 else torch.int32
    tables = tensors.onnx.constant((operation.tables + zero).to(kind).flatten())
    places = tensors.add("Cast", [image.name], stem="k", to=TensorProto.INT64)
    starts = torch.tensor(operation.row) * size - lowest - image.zero
    if bool(starts.any()):
        places = tensors.add("Add", [places, tensors.per_channel(starts, torch.int64)], stem="k")
    found = tensors.add("GatherElements", [tables, tensors.reshaped(places, (-1,))], stem="g")
    shaped = tensors.reshaped(found, (-1, *output.shape))
    if is_bytes(output):
        return Held(shaped, Form.BYTES, zero)
    return Held(tensors.add("Cast", [shaped], stem="k", to=TensorProto.FLOAT), Form.FLOATS)


def _resize(tensors: QdqTensors, operation: BilinearResize, output: Value) -> Held:
    """Weighted sums of whole numbers, all of them exact. `Resize` would have other weights, and rounds where it pleases."""
    coding, channels = tensors.values[operation.source].coding, output.shape[0]
    numbers, kind = tensors.floats(tensors.image(operation.source)), torch.float32
    if operation.accumulator_bound(coding) >= UNTIED:
        numbers, kind = tensors.add("Cast", [numbers], stem="k", to=TensorProto.DOUBLE), torch.float64
    for axis, taps in ((2, operation.rows), (3, operation.columns)):
        numbers = _between(tensors, numbers, taps, axis, tensors.values[operation.source].shape[axis - 1], kind)
    ends = (torch.full((channels,), end) for end in (output.coding.lowest, output.coding.highest))
    return tensors.finished(numbers, kind, output, Rounding(torch.full((channels,), operation.SHIFT), *ends))


def _between(tensors: QdqTensors, numbers: str, taps: tuple[Tap, ...], axis: int, size: int, kind: torch.dtype) -> str:
    """Weighted sums of neighbours along one axis of [N, C, H, W], which has `size` numbers."""
    places, weights = (torch.tensor(column) for column in zip(*taps, strict=True))
    behind = (places + 1).clamp(max=size - 1)  # where there is none, its weight is zero
    terms = []
    for of, factors in ((places, ONE - weights), (behind, weights)):
        found = tensors.add("Gather", [numbers, tensors.onnx.constant(of)], stem="g", axis=axis)
        factor = tensors.onnx.constant(factors.to(kind).reshape(-1, *[1] * (3 - axis)))
        terms.append(tensors.add("Mul", [found, factor], stem="m"))
    return tensors.add("Add", terms, stem="a")


# ---- Moving ---------------------------------------------------------------------------------------------------------


def _max_pool(tensors: QdqTensors, operation: MaxPool) -> Held:
    image = tensors.image(operation.source)
    name = tensors.add(
        "MaxPool", [image.name], stem="p", kernel_shape=list(operation.kernel), strides=list(operation.stride),
        pads=list(operation.padding) * 2, dilations=list(operation.dilation),
    )  # fmt: skip
    return replace(image, name=name)


def _with_zero_of(tensors: QdqTensors, held: Held, output: Value) -> Held:
    """Bytes with the zero, or floats in the place of bytes, that `output` has."""
    if not is_bytes(output):
        return Held(tensors.floats(held), Form.FLOATS)
    zero = zero_of(output)
    if held.zero == zero:
        return held
    return Held(tensors.quantized(tensors.floats(held), zero, "h"), Form.BYTES, zero)


def _slice(tensors: QdqTensors, operation: Slice) -> Held:
    image, shape = tensors.image(operation.source), tensors.values[operation.source].shape
    cut = [
        (start, stop, place + 1, step)
        for place, (start, stop, step) in enumerate(zip(operation.start, operation.stop, operation.step, strict=True))
        if (start, step) != (0, 1) or stop < shape[place]
    ]
    if not cut:
        return image
    arguments = [tensors.onnx.constant(list(column)) for column in zip(*cut, strict=True)]
    return replace(image, name=tensors.add("Slice", [image.name, *arguments], stem="h"))


def _padding(tensors: QdqTensors, operation: Padding) -> Held:
    image = tensors.image(operation.source)
    sides = tensors.onnx.constant([0, *operation.before, 0, *operation.after])
    zero = tensors.byte(image.zero) if image.form is Form.BYTES else tensors.onnx.constant(torch.tensor(0.0))
    return replace(image, name=tensors.add("Pad", [image.name, sides, zero], stem="h"))


def _upsample(tensors: QdqTensors, operation: NearestUpsample) -> Held:
    image = tensors.image(operation.source)
    scales = tensors.onnx.constant(torch.tensor([1.0, 1.0, *operation.scale], dtype=torch.float32))
    name = tensors.add(
        "Resize", [image.name, "", scales], stem="h", mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    return replace(image, name=name)


def _reshape(tensors: QdqTensors, operation: Reshape, output: Value) -> Held:
    if output.shape[1:] == (1, 1):
        return tensors.rows(operation.source)
    held = tensors.held[operation.source]
    return replace(held, name=tensors.reshaped(held.name, (-1, *output.shape)), rows=False)
