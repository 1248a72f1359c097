"""Stores weights that hold zeros in the bytes of what is not zero, in a file that any ONNX runtime reads.

A weight becomes a bitmap (one bit an element, the first element in the lowest bit) and its non-zero values. Standard operators on
these constants rebuild it:

    bitmap (m, 1) uint8 ─ BitShift right by 0…7 ─ BitwiseAnd 1 ─ Cast ─ Reshape ─ bits (8m)
    CumSum(bits) * bits ─ which non-zero value stands where, 0 for none
    Gather from (0, values…) ─ Split ─ Reshape each ─ the weights, under their own names

Nothing there depends on an input, so ONNX Runtime folds it away when it opens the file: inference costs what it did before.
(It doesn't fold NonZero, which looks like the natural choice.)
Many weights share one bitmap, which keeps the price of a weight to one small Reshape.
"""

import math
from typing import Any

import onnx
import torch
from torch import Tensor

from workers.models.onnx_emitter import PACKED, OnnxEmitter

OVERHEAD_BYTES = 160  # of a packed weight: its Reshape, its part of Split and the names in them
GROUP_ELEMENTS = 2**22  # bounds the memory that rebuilding takes


def pack_zeros_of(emitter: OnnxEmitter) -> None:
    """Replace every stored tensor that becomes smaller."""
    used = set(emitter.used_tensors())
    names = [name for name, tensor in emitter.tensors.items() if name in used and _pays(tensor)]
    rebuilding = len(emitter.nodes)
    for group in _groups(names, emitter.tensors):
        _pack(emitter, group)
    # Values must be computed before they are used.
    emitter.nodes[:] = emitter.nodes[rebuilding:] + emitter.nodes[:rebuilding]


def _pays(tensor: Tensor) -> bool:
    if tensor.dtype not in (torch.float32, torch.float64, torch.float16) or tensor.numel() == 0:
        return False
    return bitmap_bytes(tensor) + OVERHEAD_BYTES < tensor.numel() * tensor.element_size()


def bitmap_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor as a bitmap and its non-zero values."""
    return math.ceil(tensor.numel() / 8) + int(torch.count_nonzero(tensor)) * tensor.element_size()


def _groups(names: list[str], tensors: dict[str, Tensor]) -> list[list[str]]:
    groups: list[list[str]] = []
    filled = 0
    for name in sorted(names, key=lambda name: str(tensors[name].dtype)):  # stable: file order within a type
        tensor = tensors[name]
        same_type = bool(groups) and tensors[groups[-1][0]].dtype == tensor.dtype
        if not same_type or filled + tensor.numel() > GROUP_ELEMENTS:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += tensor.numel()
    return groups


def _pack(e: OnnxEmitter, names: list[str]) -> None:
    tensors = [e.tensors.pop(name) for name in names]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8))
    kept = padded != 0
    weights_of_bits = torch.tensor([1 << bit for bit in range(8)], dtype=torch.int32)
    bitmap = (kept.reshape(-1, 8).to(torch.int32) * weights_of_bits).sum(1, keepdim=True).to(torch.uint8)

    def step(operator: str, *inputs: str, **attributes: Any) -> str:
        return e.add(operator, inputs, result=e.unused(PACKED), **attributes)

    shifted = step("BitShift", e.constant(bitmap), e.constant(torch.arange(8, dtype=torch.uint8)), direction="RIGHT")
    single = step("BitwiseAnd", shifted, e.constant(torch.tensor([1], dtype=torch.uint8)))
    bits = step("Reshape", step("Cast", single, to=onnx.TensorProto.INT32), e.constant([-1]))
    places = step("Mul", step("CumSum", bits, e.constant(0)), bits)
    values = step("Gather", e.constant(torch.cat([flat.new_zeros(1), padded[kept]])), places, axis=0)
    sizes = [tensor.numel() for tensor in tensors]
    parts = e.add_split(values, [*sizes[:-1], sizes[-1] + padded.numel() - flat.numel()])
    for name, tensor, part in zip(names, tensors, parts, strict=True):
        if name == names[-1] and padded.numel() != flat.numel():
            part = step("Slice", part, e.constant([0]), e.constant([tensor.numel()]))
        e.add("Reshape", [part, e.constant(list(tensor.shape))], result=name)
