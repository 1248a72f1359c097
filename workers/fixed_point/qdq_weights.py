"""Weights of an integer network in an ONNX file, in as few bytes as they need.

Stored are the weights before alignment, of 2, 3, 4, 8 or 16 bits, and the shifts that align them as one power of two for each
input channel, each filter, or each pair; or the aligned weights, where they take no more bytes. ONNX Runtime computes the
aligned weights once, when it loads the file: it fuses nothing with a DequantizeLinear of 4 bits.
"""

from collections.abc import Callable

import torch
from onnx import TensorProto
from torch import Tensor

from workers.fixed_point.coding import exp2
from workers.fixed_point.network import Convolution
from workers.fixed_point.pack_weights import codes_of_word, packed_bytes, packed_codes
from workers.fixed_point.qdq_tensors import BYTE_BITS, QdqTensors

INT4_BITS = 4
NODE_BYTES = 60  # about what a node and the name of a stored tensor take in the file
CODES_BYTES = 5 * NODE_BYTES  # what `_as_codes` adds to the codes: 200 to 290 bytes a layer were measured

_Store = Callable[[QdqTensors, Tensor, int], str]  # makes a tensor in the file of a weight and its bits


def int8_weight(tensors: QdqTensors, operation: Convolution) -> str:
    """The aligned weights [K, C/g, R, S] as an int8 tensor; they fit."""
    aligned = operation.aligned_weight
    shifts = _fewest(operation.shifts)
    stored_bytes = _cheapest(tensors, operation)[0] + NODE_BYTES
    if bool(shifts.any()):
        stored_bytes += 4 * shifts.numel() + 2 * NODE_BYTES
    if stored_bytes >= aligned.numel():
        return tensors.onnx.constant(aligned.to(torch.int8))
    stored = _stored(tensors, operation)
    if bool(shifts.any()):
        stored = _aligned(tensors, stored, shifts)
    return tensors.add("Cast", [stored], stem="w", to=TensorProto.INT8)


def float_weight(tensors: QdqTensors, operation: Convolution, scale: Tensor) -> str:
    """The aligned weights [K, C/g, R, S] times `scale` [K], powers of two, as a float32 tensor."""
    weight = _aligned(tensors, _stored(tensors, operation), _fewest(operation.shifts))
    if bool((scale == 1).all()):
        return weight
    return tensors.add("Mul", [weight, tensors.onnx.constant(scale.float().reshape(-1, 1, 1, 1))], stem="w")


def _stored(tensors: QdqTensors, operation: Convolution) -> str:
    """The weights before alignment as a tensor of some type."""
    _, store = _cheapest(tensors, operation)
    return store(tensors, operation.weight, operation.weight_bits)


def _cheapest(tensors: QdqTensors, operation: Convolution) -> tuple[int, _Store]:
    """The fewest bytes that the weights before alignment can take in the file, and what stores them so."""
    count, bits = operation.weight.numel(), operation.weight_bits
    ways: list[tuple[int, _Store]] = [(count if bits <= BYTE_BITS else 2 * count, _as_they_are)]
    if tensors.packs_weights and bits <= INT4_BITS:
        ways.append((packed_bytes(count, INT4_BITS), _as_int4))
    if tensors.packs_weights and bits < INT4_BITS:
        ways.append((packed_bytes(count, bits) + CODES_BYTES, _as_codes))
    return min(ways, key=lambda way: way[0])


def _as_they_are(tensors: QdqTensors, weight: Tensor, bits: int) -> str:
    return tensors.onnx.constant(weight.to(torch.int8 if bits <= BYTE_BITS else torch.int16))


def _as_int4(tensors: QdqTensors, weight: Tensor, _: int) -> str:
    name = tensors.onnx.unused("w")
    tensors.onnx.tensors[name] = weight.to(torch.int8)
    tensors.four_bits.add(name)
    return name


def _as_codes(tensors: QdqTensors, weight: Tensor, bits: int) -> str:
    """Bytes that hold several weights, and what takes them apart: the opsets that we write have no type narrower than INT4.

    A word divided by 2**(bits * i), whose last `bits` bits before the point are code i, is a sum of its bytes times powers of two,
    exact in float32.
    """
    stored = packed_codes(weight.flatten(), bits)
    first_bits = bits * torch.arange(codes_of_word(bits))[:, None]
    quotients_of_bytes = exp2(BYTE_BITS * torch.arange(len(stored)) - first_bits).float()  # [codes, B]
    numbers = tensors.add("Cast", [tensors.onnx.constant(stored)], stem="w", to=TensorProto.FLOAT)
    quotients = tensors.add("MatMul", [tensors.onnx.constant(quotients_of_bytes), numbers], stem="w")
    width, half = (tensors.onnx.constant(torch.tensor(2.0**power)) for power in (bits, bits - 1))
    codes = tensors.add("Floor", [tensors.add("Mod", [quotients, width], stem="w", fmod=1)], stem="w")
    if codes_of_word(bits) * stored.shape[1] > weight.numel():
        ends = [tensors.onnx.constant([end]) for end in (0, weight.numel())]
        codes = tensors.add("Slice", [tensors.reshaped(codes, [-1]), *ends], stem="w")
    return tensors.add("Sub", [tensors.reshaped(codes, weight.shape), half], stem="w")


def _aligned(tensors: QdqTensors, weight: str, shifts: Tensor) -> str:
    """Stored weights as floats, shifted."""
    floats = tensors.add("Cast", [weight], stem="w", to=TensorProto.FLOAT)
    if not bool(shifts.any()):
        return floats
    return tensors.add("Mul", [floats, tensors.onnx.constant(exp2(shifts).float()[:, :, None, None])], stem="w")


def _fewest(shifts: Tensor) -> Tensor:
    """Shifts [K, C/g] as [1, C/g] where all filters have the same, or [K, 1] where all channels have, or as they are."""
    if bool((shifts == shifts[:1]).all()):
        return shifts[:1]
    return shifts[:, :1] if bool((shifts == shifts[:, :1]).all()) else shifts
