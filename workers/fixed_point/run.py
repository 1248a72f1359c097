"""Runs an integer network in torch's integer operators: no floating-point number between the input's integers and the logits'.

It is the reference that the C source, the ONNX file and the float simulation are held against. Accumulators are int32 where the
weights prove that they suffice for any image; elsewhere sums are made in int64, and every accumulator that 32 bits would not
have held is counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional

from workers.fixed_point.coding import along_channels, shift_right_rounding
from workers.fixed_point.interpolation import ONE, Tap
from workers.fixed_point.network import (
    Addition,
    AveragePool,
    BilinearResize,
    Concatenation,
    Convolution,
    InputTransform,
    IntegerNetwork,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Operation,
    OutputTransform,
    Padding,
    Permutation,
    Requantization,
    Reshape,
    Shape,
    Slice,
    Table,
    Value,
)
from workers.fixed_point.tiles import STEP, TILE, input_terms, output_terms

INT32 = 2**31 - 1


@dataclass
class Executed:
    """What a run did: how many images, accumulators that left 32 bits, and shifts made between partial sums (F-9)."""

    images: int = 0
    overflows: int = 0
    plane_shifts: int = 0


class IntegerRunner:
    """Runs one network. With `prestored`, weights are aligned once, here; else each partial sum is shifted in every run."""

    def __init__(self, network: IntegerNetwork, *, prestored: bool = True) -> None:
        self.network = network
        self.executed = Executed()
        self._steps = [_Step(operation, network.values, prestored=prestored) for operation in network.operations]
        self._last_reader = {source: number for number, op in enumerate(network.operations) for source in op.sources}

    def quantize_input(self, images: Tensor) -> Tensor:
        """Float images [N, C, H, W] as the integers that the network takes."""
        return self.network.values[self.network.input].coding.quantize(images)

    def run(self, integers: Tensor) -> Tensor:
        """Logits int64 [N, K] for input integers [N, C, H, W]."""
        logits = self.run_all(integers, keep=())[self.network.output]
        return logits.reshape(len(logits), -1)

    def run_all(self, integers: Tensor, keep: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """Every tensor of the network by name, int64 [N, C, H, W]; with `keep`, only those and the logits."""
        shape = self.network.values[self.network.input].shape
        values = {self.network.input: integers.long().reshape(len(integers), *shape)}
        self.executed.images += len(integers)
        for number, step in enumerate(self._steps):
            values[step.operation.output] = step.run(values, self.executed)
            for source in set(step.operation.sources):
                is_wanted = keep is None or source in keep or source == self.network.output
                if self._last_reader[source] == number and not is_wanted:
                    del values[source]
        return values

    def scores(self, logits: Tensor) -> Tensor:
        """The numbers (float64 [N, K]) that logits stand for."""
        return self.network.values[self.network.output].coding.values_of(logits)


def run_operation(operation: Operation, tensors: Mapping[str, Tensor], values: Mapping[str, Value]) -> Tensor:
    """What one operation makes of `tensors`, int64 [N, C, H, W]; `values` say what they are."""
    return _Step(operation, values, prestored=True).run(tensors, Executed())


class _Step:
    """An operation that is ready to run."""

    def __init__(self, operation: Operation, values: Mapping[str, Value], *, prestored: bool) -> None:
        self.operation = operation
        self._source = values[operation.sources[0]].coding
        self._shape = values[operation.output].shape
        if isinstance(operation, Convolution):
            self._fits = operation.accumulator_bound(self._source) <= INT32
            self._is_prestored = prestored or not bool(operation.shifts.any())
            self._weight = operation.aligned_weight.to(torch.int32 if self._fits else torch.int64)

    def run(self, values: Mapping[str, Tensor], executed: Executed) -> Tensor:
        operation = self.operation
        x = values[operation.sources[0]]
        match operation:
            case Convolution():
                accumulators = self._convolve(operation, x, executed)
                return _requantized(accumulators, operation.out_shift, operation.low, operation.high)
            case InputTransform():
                sums = _positions_of_tiles(x, operation, self._shape)
                return _requantized(sums, operation.out_shift, operation.low, operation.high)
            case OutputTransform():
                sums = _outputs_of_tiles(x << _channels(operation.left), operation, self._shape)
                return _requantized(
                    sums + _channels(operation.bias), operation.out_shift, operation.low, operation.high
                )
            case Addition():
                pairs = zip(operation.sources, operation.left, strict=True)
                a, b = (values[source] << _channels(left) for source, left in pairs)
                return _requantized(a + b, operation.out_shift, operation.low, operation.high)
            case Multiplication():
                product = x * values[operation.sources[1]]
                return _requantized(product, operation.out_shift, operation.low, operation.high)
            case MaxPool():
                return _max_pool(x, operation)
            case AveragePool():
                sums = _window_sums(x, operation) * operation.multiplier
                return _requantized(sums, operation.out_shift, operation.low, operation.high)
            case Table():
                return operation.tables[_channels(operation.row).expand_as(x), x - self._source.lowest]
            case Requantization():
                return _requantized(x, operation.out_shift, operation.low, operation.high)
            case Concatenation():
                return torch.cat([values[source] for source in operation.sources], dim=1)
            case Slice():
                parts = zip(operation.start, operation.stop, operation.step, strict=True)
                return x[(slice(None), *(slice(*part) for part in parts))].contiguous()
            case Padding():
                sides = [n for pair in zip(operation.before[::-1], operation.after[::-1], strict=True) for n in pair]
                return functional.pad(x, sides)
            case NearestUpsample():
                return x.repeat_interleave(operation.scale[0], 2).repeat_interleave(operation.scale[1], 3)
            case BilinearResize():
                sums = _between(_between(x, operation.rows, 2), operation.columns, 3)
                return shift_right_rounding(sums, torch.tensor(operation.SHIFT))
            case Reshape():
                return x.reshape(len(x), *self._shape)
            case Permutation():
                return x.permute(0, *(place + 1 for place in operation.order)).contiguous()
            case _:
                assert_never(operation)

    def _convolve(self, operation: Convolution, x: Tensor, executed: Executed) -> Tensor:
        """The accumulators, int64 [N, K, OH, OW]."""
        x = x.to(self._weight.dtype)
        if self._is_prestored:
            sums = _convolution(x, self._weight, operation).long()
        else:
            sums = _sum_of_shifted_planes(operation, x, executed)
        accumulators = sums + along_channels(operation.bias, 4)
        if not self._fits:
            executed.overflows += int((accumulators.abs() > INT32).sum())
        return accumulators


def _sum_of_shifted_planes(operation: Convolution, x: Tensor, executed: Executed) -> Tensor:
    """As hardware with a shifter for each partial sum would: one input channel of every group at a time."""
    group_channels = operation.weight.shape[1]
    total: Tensor | None = None
    for channel in range(group_channels):
        part = x[:, channel::group_channels].contiguous()  # this channel of each group
        plane = operation.weight[:, channel : channel + 1].to(x.dtype)
        shifted = _convolution(part, plane, operation).long() << along_channels(operation.shifts[:, channel], 4)
        executed.plane_shifts += len(plane)
        total = shifted if total is None else total + shifted
    assert total is not None
    return total


def _convolution(x: Tensor, weight: Tensor, operation: Convolution) -> Tensor:
    if operation.dilation != (1, 1):
        weight = _spread(weight, operation.dilation)  # torch dilates no integers
    return functional.conv2d(x, weight, None, operation.stride, operation.padding, 1, operation.groups)


def _spread(weight: Tensor, dilation: tuple[int, int]) -> Tensor:
    """The same kernel with zeros in its gaps."""
    rows, columns = (step * (size - 1) + 1 for size, step in zip(weight.shape[2:], dilation, strict=True))
    spread = weight.new_zeros(*weight.shape[:2], rows, columns)
    spread[:, :, :: dilation[0], :: dilation[1]] = weight
    return spread


def _positions_of_tiles(x: Tensor, operation: InputTransform, shape: Shape) -> Tensor:
    """The sums of an input transform, [N, P * C, rows, columns]."""
    below, right = (
        (count - 1) * STEP + TILE - side - padding
        for count, side, padding in zip(shape[1:], x.shape[2:], operation.padding, strict=True)
    )
    padded = functional.pad(x, (operation.padding[1], right, operation.padding[0], below))
    inputs = _windows(padded, (TILE, TILE), (STEP, STEP), (1, 1))  # [N, C, rows, columns, 4, 4]
    sums = [
        torch.stack([sign * inputs[..., r, s] for r, s, sign in input_terms(position)]).sum(0)
        for position in operation.positions
    ]
    return torch.cat(sums, dim=1)


def _outputs_of_tiles(products: Tensor, operation: OutputTransform, shape: Shape) -> Tensor:
    """The sums of an output transform, without the bias, [N, K, OH, OW]."""
    count, (rows, columns) = len(operation.positions), products.shape[2:]
    by_position = products.reshape(len(products), count, -1, rows, columns)
    sums = products.new_zeros(len(products), shape[0], rows, STEP, columns, STEP)
    for number, position in enumerate(operation.positions):
        for r, s, sign in output_terms(position):
            sums[:, :, :, r, :, s] += sign * by_position[:, number]
    return sums.reshape(len(products), shape[0], rows * STEP, columns * STEP)[:, :, : shape[1], : shape[2]]


def _requantized(
    accumulators: Tensor,
    out_shift: Tensor | tuple[int, ...],
    low: Tensor | tuple[int, ...],
    high: Tensor | tuple[int, ...],
) -> Tensor:
    shifted = shift_right_rounding(accumulators, _channels(out_shift))
    return torch.minimum(torch.maximum(shifted, _channels(low)), _channels(high))


def _channels(numbers: Tensor | tuple[int, ...]) -> Tensor:
    return along_channels(torch.as_tensor(numbers, dtype=torch.int64), 4)


def _max_pool(x: Tensor, operation: MaxPool) -> Tensor:
    lowest = torch.iinfo(torch.int64).min
    padded = functional.pad(x, _sides(operation.padding), value=lowest)
    windows = _windows(padded, operation.kernel, operation.stride, operation.dilation)
    return windows.amax((-2, -1))


def _window_sums(x: Tensor, operation: AveragePool) -> Tensor:
    return _windows(functional.pad(x, _sides(operation.padding)), operation.kernel, operation.stride, (1, 1)).sum(
        (-2, -1)
    )


def _between(x: Tensor, taps: tuple[Tap, ...], axis: int) -> Tensor:
    """Weighted sums of neighbours along one axis of [N, C, H, W]."""
    places, weights = (torch.tensor(column) for column in zip(*taps, strict=True))
    behind = (places + 1).clamp(max=x.shape[axis] - 1)  # where there is none, its weight is zero
    weight = weights.reshape(-1, *[1] * (3 - axis))
    return x.index_select(axis, places) * (ONE - weight) + x.index_select(axis, behind) * weight


def _sides(padding: tuple[int, int]) -> list[int]:
    return [padding[1], padding[1], padding[0], padding[0]]


def _windows(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """[N, C, OH, OW, R, S] without copying."""
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    found = x.unfold(2, reach[0], stride[0]).unfold(3, reach[1], stride[1])
    return found[..., :: dilation[0], :: dilation[1]]
