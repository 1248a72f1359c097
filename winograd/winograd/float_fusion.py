"""What an operation of a float program can do along the way: the same operation with more in it, or None where it can't.

The operation must have one reader, which then reads what the new one writes.
"""

from dataclasses import replace

import torch
from torch import Tensor

from winograd.float_program import (
    Addition,
    Convolution,
    Operation,
    Scaling,
    Slice,
    WinogradConvolution,
)


def with_clamp(operation: Operation, low: float, high: float) -> Operation | None:
    """Keep its output between `low` and `high`."""
    match operation:
        case Convolution() | Addition() | Scaling():
            # What it keeps between its own ends already may reach from beyond the new ones.
            ends = (min(max(end, low), high) for end in (operation.low, operation.high))
            return replace(operation, low=next(ends), high=next(ends))
        case WinogradConvolution() if (low, high) == (0, float("inf")):
            return replace(operation, has_relu=True)
        case _:
            return None


def with_residual(operation: Operation, residual: int) -> Operation | None:
    """Add a value of the same shape."""
    if not isinstance(operation, Convolution | WinogradConvolution) or not _is_linear(operation):
        return None
    return replace(operation, sources=(*operation.sources, residual))


def with_scaling(operation: Operation, scale: Tensor, shift: Tensor) -> Operation | None:
    """Multiply each channel of its output by a number and add another, both float64 [K]."""
    if not isinstance(operation, Convolution | WinogradConvolution) or not _is_linear(operation):
        return None
    bias = (operation.bias * scale + shift).float()
    if isinstance(operation, Convolution):
        weights = operation.weights * scale[:, None, None, None]  # [K, C/g, R, S]
    else:
        weights = operation.weights * scale[:, None]  # [P, K, C/g]
    return replace(operation, weights=weights.to(torch.float32), bias=bias)


def with_slice(operation: Slice, dimension: int, *, start: int, step: int, size: int) -> Slice:
    """Take every `step`-th of the dimension, 0 to 2, from `start`, `size` in all."""
    starts, stops, steps = list(operation.start), list(operation.stop), list(operation.step)
    starts[dimension] += start * steps[dimension]
    steps[dimension] *= step
    stops[dimension] = starts[dimension] + (size - 1) * steps[dimension] + 1
    return replace(operation, start=_triple(starts), stop=_triple(stops), step=_triple(steps))


def _is_linear(operation: Convolution | WinogradConvolution) -> bool:
    """Whether nothing was added to it or cut off yet."""
    if len(operation.sources) != 1:
        return False
    if isinstance(operation, WinogradConvolution):
        return not operation.has_relu
    return (operation.low, operation.high) == (float("-inf"), float("inf"))


def _triple(sizes: list[int]) -> tuple[int, int, int]:
    c, h, w = sizes
    return c, h, w
