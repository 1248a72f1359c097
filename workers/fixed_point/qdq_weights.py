"""Weights of an integer network in an ONNX file, in as few bytes as they need.

Stored are the weights before alignment, of 4 (two a byte), 8 or 16 bits, and the shifts that align them as one power of two for
each input channel, each filter, or each pair; or the aligned weights, where they take no more bytes. ONNX Runtime computes the
aligned weights once, when it loads the file: it fuses nothing with a DequantizeLinear of 4 bits.
"""

import torch
from onnx import TensorProto
from torch import Tensor

from workers.fixed_point.coding import exp2
from workers.fixed_point.network import Convolution
from workers.fixed_point.qdq_tensors import BYTE_BITS, QdqTensors

PACKED_BITS = 4
NODE_BYTES = 60  # about what a node and the name of a stored tensor take in the file


def int8_weight(tensors: QdqTensors, operation: Convolution) -> str:
    """The aligned weights [K, C/g, R, S] as an int8 tensor; they fit."""
    aligned = operation.aligned_weight
    shifts = _fewest(operation.shifts)
    packed_bytes = (aligned.numel() + 1) // 2 + NODE_BYTES
    if bool(shifts.any()):
        packed_bytes += 4 * shifts.numel() + 2 * NODE_BYTES
    if not tensors.packs_int4 or operation.weight_bits > PACKED_BITS or packed_bytes >= aligned.numel():
        return tensors.onnx.constant(aligned.to(torch.int8))
    packed = _stored(tensors, operation)
    if not bool(shifts.any()):
        return tensors.add("Cast", [packed], stem="w", to=TensorProto.INT8)
    return tensors.add("Cast", [_aligned(tensors, packed, shifts)], stem="w", to=TensorProto.INT8)


def float_weight(tensors: QdqTensors, operation: Convolution, scale: Tensor) -> str:
    """The aligned weights [K, C/g, R, S] times `scale` [K], powers of two, as a float32 tensor."""
    weight = _aligned(tensors, _stored(tensors, operation), _fewest(operation.shifts))
    if bool((scale == 1).all()):
        return weight
    return tensors.add("Mul", [weight, tensors.onnx.constant(scale.float().reshape(-1, 1, 1, 1))], stem="w")


def _stored(tensors: QdqTensors, operation: Convolution) -> str:
    """The weights before alignment as a tensor of 4, 8 or 16 bits."""
    kind = torch.int8 if operation.weight_bits <= BYTE_BITS else torch.int16
    weight = operation.weight.to(kind)
    if not tensors.packs_int4 or operation.weight_bits > PACKED_BITS:
        return tensors.onnx.constant(weight)
    name = tensors.onnx.unused("w")
    tensors.onnx.tensors[name] = weight
    tensors.four_bits.add(name)
    return name


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
