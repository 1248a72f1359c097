"""Convolutions and linear layers of an integer network in an ONNX file.

Three ways, the first that can be had:

* Bytes by weights of 8 bits become bytes: what ONNX Runtime fuses to one QLinearConv, `DequantizeLinear -> Conv -> QuantizeLinear`.
  Its accumulator is the network's, its requantization `round(acc * scale)` with the scale 2**-out_shift of each channel.
* A linear layer that makes logits of bytes is MatMulInteger.
* All else is a float convolution of whole numbers, which is exact while sums are less than 2**24; larger ones are made in parts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from workers.fixed_point.coding import Coding, exp2
from workers.fixed_point.network import Convolution, Value
from workers.fixed_point.qdq_tensors import (
    BYTE_BITS,
    FLOAT_BITS,
    UNTIED,
    Form,
    Held,
    QdqTensors,
    Rounded,
    Rounding,
    is_bytes,
    off_ties_of,
    zero_of,
)
from workers.fixed_point.qdq_weights import float_weight, int8_weight

# The float32 after 2**-s is 2**-s * (1 + 2**-23). As a scale it moves whatever is positive up by one or two units of the last
# place: ties, which then round up, and nothing else, as long as its neighbours are further away, that is below 2**22.
AFTER_ONE = 1 + 2**-23
EXACT_SHIFT = 14  # bytes are less than 2**8, so accumulators of what isn't saturated are less than 2**22
# ONNX Runtime takes 36 us for 16 filters on three channels of 32x32, on four 23 with the padding; one gains nothing by it.
IMAGE_CHANNELS = 3
DOT_BOUND = 2**15 - 1  # of two neighbouring products, where x86 adds them in 16 bits


@dataclass(frozen=True)
class WrittenConvolution:
    """How ONNX Runtime computes one convolution of the network."""

    layer: str
    integer: bool  # in 8-bit integers, not in floats
    exact: bool  # every integer as the network has it, on a processor whose dot products don't saturate
    needs_vnni: bool  # on x86 processors without VNNI, ONNX Runtime adds products in 16 bits, and these can exceed them


def write_convolution(tensors: QdqTensors, operation: Convolution) -> WrittenConvolution:
    """Write one convolution and what it makes."""
    source, output = tensors.values[operation.source], tensors.values[operation.output]
    bound = int(partial_sums(operation, source).max())
    is_narrow = tensors.held[operation.source].form is Form.BYTES and operation.stored_bits <= BYTE_BITS
    is_integer, is_exact = False, output.coding.bits <= FLOAT_BITS or bound < 2**FLOAT_BITS
    if is_narrow and is_bytes(output):
        settled = without_settled(operation, source)
        held = _requantizing_convolution(tensors, settled)
        is_integer, is_exact = True, rounds_half_up(settled, source, output)
    elif is_narrow and operation.is_linear and _is_raw(operation, output, bound):
        held, is_integer = _integer_scores(tensors, operation), True
    elif bound < 2**FLOAT_BITS and _is_raw(operation, output, bound):
        held = _float_scores(tensors, operation)
    elif bound < 2**FLOAT_BITS:
        held = float_convolution(tensors, operation, bound)
    else:
        held = _wide_convolution(tensors, operation)
    tensors.held[operation.output] = held
    return WrittenConvolution(
        operation.layer, is_integer, is_exact, is_integer and saturates_16_bits(operation, source)
    )


def partial_sums(operation: Convolution, source: Value) -> Tensor:
    """The largest absolute value of any part of each output's sum, bias and rounding included, int64 [K]."""
    rows = operation.aligned_weight.flatten(1)
    positive, negative = rows.clamp(min=0).sum(1), (-rows).clamp(min=0).sum(1)
    highest, lowest = source.coding.highest, -source.coding.lowest
    upwards, downwards = positive * highest + negative * lowest, negative * highest + positive * lowest
    half = torch.where(operation.out_shift > 0, 1 << (operation.out_shift.clamp(min=1) - 1), 0)
    return torch.maximum(upwards, downwards) + operation.bias.abs() + half


# ---- In bytes -------------------------------------------------------------------------------------------------------


def _requantizing_convolution(tensors: QdqTensors, operation: Convolution) -> Held:
    """Bytes from bytes: what ONNX Runtime fuses to one QLinearConv."""
    held, output = tensors.held[operation.source], tensors.values[operation.output]
    if operation.is_linear:
        return byte_convolution(tensors, _batch_as_image(tensors, operation), held.zero, operation, output)
    image = tensors.image(operation.source).name
    if operation.weight.shape[1] == IMAGE_CHANNELS and operation.groups == 1:
        sides = tensors.onnx.constant([0, 0, 0, 0, 0, 1, 0, 0])
        image = tensors.add("Pad", [image, sides, tensors.byte(held.zero)], stem="h")
        operation = replace(
            operation,
            weight=functional.pad(operation.weight, (0, 0, 0, 0, 0, 1)),
            shifts=functional.pad(operation.shifts, (0, 1)),
        )
    return byte_convolution(tensors, image, held.zero, operation, output)


def without_settled(operation: Convolution, source: Value) -> Convolution:
    """The same with no weights for outputs that round to 0 whatever the image: channels that are as good as dead.

    Their shifts can be larger than scales and biases have bits for.
    """
    is_settled = (operation.out_shift > 0) & (partial_sums(operation, source) < 1 << operation.out_shift.clamp(min=0))
    is_live = (~is_settled).long()
    return replace(
        operation,
        weight=operation.weight * is_live[:, None, None, None],
        bias=operation.bias * is_live,
        out_shift=operation.out_shift * is_live,
    )


def byte_convolution(tensors: QdqTensors, name: str, zero: int, operation: Convolution, output: Value) -> Held:
    """A convolution of the bytes called `name`, [N, C, H, W], in which `zero` stands for 0, that makes bytes."""
    scale = torch.where(operation.out_shift > 0, AFTER_ONE, 1.0) * exp2(-operation.out_shift)
    stored_zero, bias = _bias_for(operation, zero_of(output))
    scales = tensors.onnx.constant(scale.float())
    weight = int8_weight(tensors, operation)
    inputs = [
        tensors.dequantized(name, zero),
        tensors.add("DequantizeLinear", [weight, scales], stem="d", axis=0),
        tensors.add("DequantizeLinear", [tensors.onnx.constant(bias.int()), scales], stem="d", axis=0),
    ]
    numbers = tensors.add("Conv", inputs, stem="a", **_geometry(operation))
    quantized = tensors.quantized(numbers, stored_zero, operation.output)
    held = tensors.clamped_bytes(quantized, zero_of(output), Rounding.of(operation))
    return _unfolded(tensors, operation, held)


def depthwise(
    operation: Rounded,
    rounding: Rounding,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Convolution:
    """A depthwise convolution with weights [C, 1, R, S] that stands for another operation."""
    channels = len(weight)
    nothing = torch.zeros(channels, dtype=torch.int64)
    return Convolution(
        layer="", source=operation.sources[0], output=operation.output, weight=weight, weight_bits=BYTE_BITS,
        shifts=nothing[:, None], bias=bias, bias_bits=32, lengths=nothing, out_shift=rounding.out_shift, low=rounding.low,
        high=rounding.high, stride=stride, padding=padding, dilation=dilation, groups=channels,
    )  # fmt: skip


def fits_bytes(made: Convolution, source: Value, output: Value) -> bool:
    """Whether a convolution can be computed in bytes, and rounds as the network does."""
    is_narrow = is_bytes(source) and is_bytes(output) and made.stored_bits <= BYTE_BITS
    return is_narrow and rounds_half_up(made, source, output)


def rounds_half_up(operation: Convolution, source: Value, output: Value) -> bool:
    """Whether the requantization of bytes rounds as the network does, whatever the image."""
    zero, _ = _bias_for(operation, zero_of(output))
    sums = partial_sums(operation, source) + (zero_of(output) << operation.out_shift.clamp(min=0))
    is_exact = (operation.out_shift <= EXACT_SHIFT) | (sums < UNTIED)
    return zero == 0 and bool(is_exact.all()) and int(sums.max()) < 2**31


def _bias_for(operation: Convolution, zero: int) -> tuple[int, Tensor]:
    """The zero point of the QuantizeLinear after a convolution, and the bias.

    A scale beyond 2**-s moves negative numbers down, where ties should go up. So there are none: the bias adds what the zero
    point would, and the bytes are the same. Whoever reads them takes `zero` for 0.
    """
    offset = zero * exp2(operation.out_shift)
    bias = operation.bias + offset.long()
    is_possible = bool((offset.frac() == 0).all()) and int(bias.abs().max()) < 2**31
    return (0, bias) if is_possible else (zero, operation.bias)


def _batch_as_image(tensors: QdqTensors, operation: Convolution) -> str:
    """What a linear layer reads as [1, C, N, 1], so that one multiplication of matrices does the whole batch.

    ONNX Runtime convolves bytes with channels last, so the transposition costs nothing.
    """
    row = tensors.reshaped(tensors.held[operation.source].name, (1, -1, 1, operation.weight.shape[1]))
    return tensors.add("Transpose", [row], stem="t", perm=[0, 3, 1, 2])


def _unfolded(tensors: QdqTensors, operation: Convolution, held: Held) -> Held:
    """Of a linear layer, the rows [N, K] from [1, K, N, 1]."""
    if not operation.is_linear:
        return held
    turned = tensors.add("Transpose", [held.name], stem="t", perm=[0, 2, 3, 1])
    return replace(held, name=tensors.reshaped(turned, (-1, len(operation.weight))), rows=True)


def saturates_16_bits(operation: Convolution, source: Value) -> bool:
    """Whether the sum of two products can be more than the 16 bits that it has on x86 processors without VNNI."""
    pairs = operation.aligned_weight.abs().flatten(1).topk(min(2, operation.weight[0].numel())).values.sum(1)
    # Signed integers have 128 added while they are multiplied.
    return int(pairs.max()) * (source.coding.highest + zero_of(source)) > DOT_BOUND


# ---- Logits ---------------------------------------------------------------------------------------------------------


def _is_raw(operation: Convolution, output: Value, bound: int) -> bool:
    """Whether the accumulators are the output, or some of them shifted left: nothing is rounded or clamped."""
    if output.coding.bits <= FLOAT_BITS or int(operation.out_shift.max()) > 0:
        return False
    largest = bound << -int(operation.out_shift.min())
    return largest < 2**31 and int(operation.low.max()) <= -largest and int(operation.high.min()) >= largest


def _score_scale(operation: Convolution, output: Value) -> Tensor:
    """What an accumulator is multiplied by to be the number that it stands for, [K]."""
    return exp2(-operation.out_shift - output.coding.lengths_tensor())


def _integer_scores(tensors: QdqTensors, operation: Convolution) -> Held:
    source, output = tensors.rows(operation.source), tensors.values[operation.output]
    weight = int8_weight(tensors, operation)
    matrix = tensors.add("Transpose", [tensors.reshaped(weight, operation.weight.shape[:2])], stem="w", perm=[1, 0])
    sums = tensors.add("MatMulInteger", [source.name, matrix, tensors.byte(source.zero)], stem="a")
    accumulators = tensors.add("Add", [sums, tensors.onnx.constant(operation.bias.int())], stem="a")
    numbers = tensors.add("Cast", [accumulators], stem="k", to=TensorProto.FLOAT)
    step = tensors.onnx.constant(_score_scale(operation, output).float())
    return Held(tensors.add("Mul", [numbers, step], stem="m"), Form.SCORES, rows=True)


# ---- In floats ------------------------------------------------------------------------------------------------------


def float_convolution(tensors: QdqTensors, operation: Convolution, bound: int, floats: str | None = None) -> Held:
    """One float convolution, of what the operation reads or of `floats` in its place, with sums of at most `bound`.

    Weights and bias carry the shift, and the bias what keeps sums off ties. Sums of 23 or 24 bits have no room for that, but for
    the half that makes rounding down of rounding half up.
    """
    scale = exp2(-operation.out_shift)
    weight = float_weight(tensors, operation, scale)
    output, rounding = tensors.values[operation.output], Rounding.of(operation)
    if bound < UNTIED:
        bias = operation.bias * scale + off_ties_of(operation.out_shift)
        numbers = _float_sums(tensors, operation, weight, bias, floats)
    else:
        bias = operation.bias * scale + torch.where(operation.out_shift > 0, 0.5, 0.0)
        numbers = tensors.add("Floor", [_float_sums(tensors, operation, weight, bias, floats)], stem="f")
    return tensors.rounded(numbers, torch.float32, output, rounding)


def _float_scores(tensors: QdqTensors, operation: Convolution) -> Held:
    """Logits by one float convolution, whose weights and bias carry the length."""
    scale = _score_scale(operation, tensors.values[operation.output])
    return Held(
        _float_sums(tensors, operation, float_weight(tensors, operation, scale), operation.bias * scale),
        Form.SCORES,
    )


def _wide_convolution(tensors: QdqTensors, operation: Convolution) -> Held:
    """Sums of so many bits that float32 can't hold them."""
    floats = tensors.unquantized(tensors.image(operation.source))

    def sums_of(part: Convolution, weight: str, digits: str) -> str:
        return _float_sums(tensors, part, weight, None, digits)

    sums = wide_sums(tensors, operation, floats, sums_of)
    bias = tensors.onnx.constant(operation.bias.double().reshape(1, -1, 1, 1))
    total = tensors.add("Add", [sums, bias], stem="a")
    return tensors.finished(total, torch.float64, tensors.values[operation.output], Rounding.of(operation))


def wide_sums(
    tensors: QdqTensors, operation: Convolution, floats: str, sums_of: Callable[[Convolution, str, str], str]
) -> str:
    """Sums without the bias, in float64, of whole numbers called `floats`: put together from sums that float32 holds.

    `sums_of` adds what multiplies the numbers of some digits by the weights of a part: `sums_of(part, weights, digits)`.
    """
    digits = _digits_of(tensors, floats, tensors.values[operation.source].coding)
    total = None
    for weight_place, part in _weight_parts(operation, max(bound for _, _, bound in digits)):
        weight = float_weight(tensors, part, torch.ones(len(part.weight)))
        for place, name, _ in digits:
            doubles = tensors.add("Cast", [sums_of(part, weight, name)], stem="k", to=TensorProto.DOUBLE)
            factor = tensors.onnx.constant(2.0 ** (weight_place + place), torch.float64)
            term = tensors.add("Mul", [doubles, factor], stem="m")
            total = term if total is None else tensors.add("Add", [total, term], stem="a")
    assert total is not None
    return total


def _digits_of(tensors: QdqTensors, rest: str, coding: Coding) -> list[tuple[int, str, int]]:
    """Parts of 8 bits of whole numbers: the power of two of each, its name, and the largest absolute value that it can have."""
    digits, place, largest = [], 0, coding.largest
    while largest >= 2**BYTE_BITS:
        upper = tensors.add(
            "Floor", [tensors.multiplied(rest, torch.tensor([2.0**-BYTE_BITS]), torch.float32)], stem="f"
        )
        lower = tensors.add(
            "Sub", [rest, tensors.multiplied(upper, torch.tensor([2.0**BYTE_BITS]), torch.float32)], stem="f"
        )
        digits.append((place, lower, 2**BYTE_BITS - 1))
        rest, place, largest = upper, place + BYTE_BITS, (largest >> BYTE_BITS) + 1
    return [*digits, (place, rest, largest)]


def _weight_parts(operation: Convolution, largest: int) -> list[tuple[int, Convolution]]:
    """Convolutions whose weights times powers of two add up to those of `operation`, with sums that float32 holds."""
    if _largest_row(operation.aligned_weight) * largest < 2**FLOAT_BITS:
        return [(0, operation)]
    for bits in (8, 4, 2):
        parts = _parts_of(operation.aligned_weight, bits)
        if max(_largest_row(part) for part in parts) * largest < 2**FLOAT_BITS:
            unshifted = torch.zeros_like(operation.shifts)
            return [
                (place * bits, replace(operation, weight=part, weight_bits=bits, shifts=unshifted))
                for place, part in enumerate(parts)
            ]
    raise AssertionError(f"{operation.layer} adds more products than a convolution has")


def _largest_row(weight: Tensor) -> int:
    """The largest sum of absolute weights of one output."""
    return int(weight.abs().flatten(1).sum(1).max())


def _parts_of(weight: Tensor, bits: int) -> list[Tensor]:
    """Signed digits of so many bits, the lowest first."""
    parts: list[Tensor] = []
    half = 1 << (bits - 1)
    while not parts or bool(weight.any()):
        parts.append((weight + half) % (1 << bits) - half)
        weight = (weight - parts[-1]) >> bits
    return parts


def _float_sums(
    tensors: QdqTensors, operation: Convolution, weight: str, bias: Tensor | None, floats: str | None = None
) -> str:
    """The sums of a float convolution as [N, K, P, Q], of what the operation reads or of `floats` in its place."""
    image = floats or tensors.unquantized(tensors.image(operation.source))
    inputs = [weight] if bias is None else [weight, tensors.onnx.constant(bias.float())]
    if not operation.is_linear:
        return tensors.add("Conv", [image, *inputs], stem="a", **_geometry(operation))
    count, width = operation.weight.shape[:2]
    rows = tensors.reshaped(image, (-1, width))
    matrix = tensors.reshaped(weight, (count, width))
    sums = tensors.add("Gemm", [rows, matrix, *inputs[1:]], stem="a", transB=1)
    return tensors.reshaped(sums, (-1, count, 1, 1))


def _geometry(operation: Convolution) -> dict[str, object]:
    """Attributes of the Conv node. Those that are what ONNX takes them for anyway are left out: in files of few bits they count."""
    (top, left), kernel = operation.padding, list(operation.weight.shape[2:])
    pads, strides, dilations = [top, left, top, left], list(operation.stride), list(operation.dilation)
    given: dict[str, object] = {"kernel_shape": kernel}
    given |= {"pads": pads} if any(pads) else {}
    given |= {"strides": strides} if strides != [1, 1] else {}
    given |= {"dilations": dilations} if dilations != [1, 1] else {}
    given |= {"group": operation.groups} if operation.groups != 1 else {}
    return given
