"""Integer networks in plain torch: what all faster code is compared with, integer by integer.

Everything is computed in int64. Compiled code has accumulators of 32 bits, which wrap; results are the same as long as none
overflows, which whoever writes a program proves.
"""

from collections.abc import Mapping, Sequence
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional

from winograd.integer_checks import STEP, TILE
from winograd.integer_operations import (
    Addition,
    AveragePool,
    Channels,
    Concatenation,
    Convolution,
    InputTransform,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Operation,
    OutputTransform,
    Padding,
    Pair,
    Permutation,
    Requantization,
    Reshape,
    Shape,
    Slice,
    Table,
)
from winograd.integer_program import IntegerProgram
from winograd.matrices import MATRICES, Matrix


def run(program: IntegerProgram, input: Tensor) -> Tensor:
    """Return the output, int32 [N, C * H * W], for input [N, C, H, W] of float32 or int32."""
    values = {program.input: quantize(program, input)}
    last_reader = {source: number for number, op in enumerate(program.operations) for source in op.sources}
    for number, operation in enumerate(program.operations):
        values[operation.output] = _run(operation, program, values)
        for source in set(operation.sources):
            if last_reader[source] == number and source != program.output:
                del values[source]
    size = program.values[program.output].size
    return values[program.output].reshape(input.shape[0], size).to(torch.int32)


def quantize(program: IntegerProgram, input: Tensor) -> Tensor:
    """Return the integers, int64 [N, C, H, W], that the network takes for input of float32 or int32."""
    value = program.values[program.input]
    if not input.is_floating_point():
        return input.long().clamp(value.lowest, value.highest)
    lengths = _channels(program.input_lengths)
    scales = torch.ldexp(torch.ones_like(lengths, dtype=torch.float64), lengths)
    rounded = torch.floor(input.double() * scales + 0.5)
    # Not a number is no integer: clamp would keep it, and what the cast makes of it depends on the processor.
    return rounded.nan_to_num(nan=value.lowest).clamp(value.lowest, value.highest).long()


def _run(operation: Operation, program: IntegerProgram, values: Mapping[int, Tensor]) -> Tensor:
    x = values[operation.sources[0]]
    match operation:
        case Convolution():
            return _requantized(_convolution(x, operation) + _channels(operation.bias), operation.left, operation)
        case Addition():
            a, b = (
                values[source] << _channels(left)
                for source, left in zip(operation.sources, operation.left, strict=True)
            )
            return _requantized(a + b, None, operation)
        case Multiplication():
            return _requantized(x * values[operation.sources[1]], operation.left, operation)
        case MaxPool():
            padded = _pad(x, operation.padding, torch.iinfo(torch.int64).min)
            return _windows(padded, operation.kernel, operation.stride, operation.dilation).amax((-2, -1))
        case AveragePool():
            windows = _windows(_pad(x, operation.padding, 0), operation.kernel, operation.stride, (1, 1))
            return _requantized(windows.sum((-2, -1)) * operation.multiplier, operation.left, operation)
        case Table():
            lowest = program.values[operation.sources[0]].lowest
            return operation.tables.long()[_channels(operation.row).expand_as(x), x - lowest]
        case Requantization():
            return _requantized(x, operation.left, operation)
        case Concatenation():
            return torch.cat([values[source] for source in operation.sources], dim=1)
        case Slice():
            parts = zip(operation.start, operation.stop, operation.step, strict=True)
            return x[(slice(None), *(slice(*part) for part in parts))]
        case Padding():
            sides = zip(operation.before[::-1], operation.after[::-1], strict=True)
            return functional.pad(x, [side for both in sides for side in both])
        case NearestUpsample():
            return x.repeat_interleave(operation.scale[0], 2).repeat_interleave(operation.scale[1], 3)
        case Reshape():
            return x.reshape(len(x), *program.values[operation.output].shape)
        case Permutation():
            return x.permute(0, *(place + 1 for place in operation.order))
        case InputTransform():
            return _requantized(
                _in_tiles(x, operation, program.values[operation.output].shape), operation.left, operation
            )
        case OutputTransform():
            sums = _out_of_tiles(x << _channels(operation.left), operation, program.values[operation.output].shape)
            return _requantized(sums + _channels(operation.bias), None, operation)
        case _:
            assert_never(operation)


def _in_tiles(x: Tensor, operation: InputTransform, shape: Shape) -> Tensor:
    """B^T d B of all tiles at the positions, [N, P * C, rows, columns]."""
    reach = [STEP * (count - 1) + TILE for count in shape[1:]]
    # As far as tiles reach; what lies further is cut off by a negative padding.
    behind = [to - side - before for to, side, before in zip(reach, x.shape[2:], operation.padding, strict=True)]
    padded = functional.pad(x, [operation.padding[1], behind[1], operation.padding[0], behind[0]])
    tiles = _windows(padded, (TILE, TILE), (STEP, STEP), (1, 1))  # [N, C, rows, columns, 4, 4]
    matrix = _integers(MATRICES[STEP].bt)
    transformed = torch.einsum("ar,ncijrs,bs->nabcij", matrix, tiles, matrix).flatten(1, 2)
    return transformed[:, list(operation.positions)].flatten(1, 2)


def _out_of_tiles(x: Tensor, operation: OutputTransform, shape: Shape) -> Tensor:
    """A^T m A of all tiles, [N, K, H, W]; positions that aren't kept are zeros."""
    products = x.reshape(len(x), len(operation.positions), -1, *x.shape[2:])
    tiles = products.new_zeros(len(x), TILE * TILE, *products.shape[2:])
    tiles[:, list(operation.positions)] = products
    matrix = _integers(MATRICES[STEP].at)
    transformed = torch.einsum(
        "ra,nabkij,sb->nkirjs", matrix, tiles.reshape(len(x), TILE, TILE, *tiles.shape[2:]), matrix
    )
    return transformed.flatten(2, 3).flatten(3, 4)[:, :, : shape[1], : shape[2]]


def _integers(matrix: Matrix) -> Tensor:
    """Of F(2x2, 3x3), whose matrices hold nothing but 0, 1 and -1."""
    return torch.tensor([[int(entry) for entry in row] for row in matrix])


def _requantized(
    sums: Tensor,
    left: Channels | None,
    operation: Convolution
    | Addition
    | Multiplication
    | AveragePool
    | Requantization
    | InputTransform
    | OutputTransform,
) -> Tensor:
    right = _channels(operation.right)
    half = torch.where(right > 0, 1 << (right - 1).clamp(min=0), 0)
    shifted = ((sums if left is None else sums << _channels(left)) + half) >> right
    return torch.minimum(torch.maximum(shifted, _channels(operation.low)), _channels(operation.high))


def _convolution(x: Tensor, operation: Convolution) -> Tensor:
    weight = _spread(operation.weight.long(), operation.dilation)
    return functional.conv2d(x, weight, None, operation.stride, operation.padding, 1, operation.groups)


def _spread(weight: Tensor, dilation: Pair) -> Tensor:
    """The same kernel with zeros in its gaps, because torch dilates no integers."""
    if dilation == (1, 1):
        return weight
    rows, columns = (step * (size - 1) + 1 for size, step in zip(weight.shape[2:], dilation, strict=True))
    spread = weight.new_zeros(*weight.shape[:2], rows, columns)
    spread[:, :, :: dilation[0], :: dilation[1]] = weight
    return spread


def _windows(x: Tensor, kernel: Pair, stride: Pair, dilation: Pair) -> Tensor:
    """[N, C, OH, OW, R, S], without copying."""
    reach = [step * (size - 1) + 1 for size, step in zip(kernel, dilation, strict=True)]
    found = x.unfold(2, reach[0], stride[0]).unfold(3, reach[1], stride[1])
    return found[..., :: dilation[0], :: dilation[1]]


def _pad(x: Tensor, padding: Pair, value: int) -> Tensor:
    return functional.pad(x, [padding[1], padding[1], padding[0], padding[0]], value=value)


def _channels(numbers: Sequence[int]) -> Tensor:
    """[C] as int64 [C, 1, 1], to meet [N, C, H, W]."""
    return torch.tensor(numbers, dtype=torch.int64)[:, None, None]
