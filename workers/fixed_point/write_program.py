"""Writes an integer network as a program that the package `winograd` runs in one call, in 8-bit arithmetic of the processor.

A program shifts to the left, then to the right, so a negative out_shift becomes one to the left. Its accumulators wrap at 32
bits, and nothing counts that: here it is proven for every image that none leaves them, or the network is refused.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import Tensor

from jobs.errors import RecipeRefused
from winograd import integer_program as programs
from workers.fixed_point.coding import Coding
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
    Slice,
    Table,
    Value,
    with_half,
)

BYTE_BITS = 8
INT32 = 2**31 - 1
LARGEST_SHIFT = 31
_INSTEAD = 'Ask for "pt2", "onnx" or "c" in place of "pt2_integers".'


def integer_program(network: IntegerNetwork) -> programs.IntegerProgram:
    """`network` as a program; raises `RecipeRefused` where it has more than 8-bit factors and 32-bit sums."""
    names = [network.input, *(operation.output for operation in network.operations)]
    layers = {layer.output: layer for layer in network.convolutions}
    writer = _Writer(network.values, layers, {name: index for index, name in enumerate(names)}.__getitem__)
    return programs.IntegerProgram(
        input=0,
        output=writer.index(network.output),
        input_lengths=network.values[network.input].coding.lengths,
        values=tuple(_value(network.values[name]) for name in names),
        operations=tuple(writer.written(operation) for operation in network.operations),
    )


def _value(value: Value) -> programs.Value:
    return programs.Value(value.shape, value.coding.lowest, value.coding.highest)


@dataclass(frozen=True)
class _Writer:
    """Writes single operations."""

    values: dict[str, Value]
    layers: dict[str, Convolution]  # by what they make
    index: Callable[[str], int]

    def written(self, operation: Operation) -> programs.Operation:
        output, sources = self.index(operation.output), tuple(self.index(source) for source in operation.sources)
        codings = [self.values[source].coding for source in operation.sources]
        match operation:
            case Convolution():
                return self._convolution(operation, output, sources)
            case InputTransform():
                bounds = replace(operation, out_shift=(0,) * len(operation.out_shift)).accumulator_bounds(codings[0])
                by = _rescaling(operation, bounds)
                return programs.InputTransform(
                    output, sources, operation.positions, operation.padding, by.lefts[0], by.right, by.low, by.high
                )
            case OutputTransform():
                return self._output_transform(operation, output, sources)
            case Addition():
                bounds = replace(operation, out_shift=(0,) * len(operation.out_shift)).accumulator_bounds(*codings)
                by = _rescaling(operation, bounds, operation.left)
                return programs.Addition(output, sources, (by.lefts[0], by.lefts[1]), by.right, by.low, by.high)
            case Multiplication():
                bounds = replace(operation, out_shift=(0,) * len(operation.out_shift)).accumulator_bounds(*codings)
                by = _rescaling(operation, bounds)
                return programs.Multiplication(output, sources, by.lefts[0], by.right, by.low, by.high)
            case MaxPool():
                return programs.MaxPool(
                    output, sources, operation.kernel, operation.stride, operation.padding, operation.dilation
                )
            case AveragePool():
                largest = operation.kernel[0] * operation.kernel[1] * codings[0].largest * operation.multiplier
                by = _rescaling(operation, [largest] * len(operation.out_shift))
                return programs.AveragePool(
                    output, sources, operation.kernel, operation.stride, operation.padding, operation.multiplier,
                    by.lefts[0], by.right, by.low, by.high,
                )  # fmt: skip
            case Table():
                return programs.Table(output, sources, operation.tables, operation.row)
            case Requantization():
                by = _rescaling(operation, [codings[0].largest] * len(operation.out_shift))
                return programs.Requantization(output, sources, by.lefts[0], by.right, by.low, by.high)
            case Concatenation():
                return programs.Concatenation(output, sources)
            case Slice():
                return programs.Slice(output, sources, operation.start, operation.stop, operation.step)
            case Padding():
                return programs.Padding(output, sources, operation.before, operation.after)
            case NearestUpsample():
                return programs.NearestUpsample(output, sources, operation.scale)
            case BilinearResize():
                raise _refused(f"{operation.output} resizes images bilinearly, which that operator doesn't do")
            case Reshape():
                return programs.Reshape(output, sources)
            case Permutation():
                return programs.Permutation(output, sources, operation.order)
            case _:
                assert_never(operation)

    def _convolution(self, operation: Convolution, output: int, sources: tuple[int, ...]) -> programs.Convolution:
        source = self.values[operation.source].coding
        _check_widths(operation, source)
        bounds = replace(operation, out_shift=torch.zeros_like(operation.out_shift)).accumulator_bounds(source)
        by = _rescaling(operation, _numbers(bounds))
        return programs.Convolution(
            output, sources, operation.aligned_weight.to(torch.int8), _numbers(operation.bias),
            by.lefts[0], by.right, by.low, by.high,
            operation.stride, operation.padding, operation.dilation, operation.groups,
        )  # fmt: skip

    def _output_transform(
        self, operation: OutputTransform, output: int, sources: tuple[int, ...]
    ) -> programs.OutputTransform:
        if min(operation.out_shift) < 0:
            raise _refused(f"outputs of {operation.output} are finer than their products")
        products = self._products_of(operation.source)
        bounds = replace(operation, out_shift=(0,) * len(operation.out_shift)).accumulator_bounds(products)
        by = _rescaling(operation, bounds)
        if max(operation.left) > LARGEST_SHIFT or any(any(left) for left in by.lefts):
            raise _refused(f"products of {operation.output} are too far apart")
        return programs.OutputTransform(
            output, sources, operation.positions, operation.bias, operation.left, by.right, by.low, by.high
        )

    def _products_of(self, value: str) -> list[int]:
        """What the products between two transforms can't exceed, by channel."""
        layer = self.layers[value]
        return [min(int(bound), INT32) for bound in layer.accumulator_bounds(self.values[layer.source].coding)]


def _check_widths(operation: Convolution, source: Coding) -> None:
    if source.bits > BYTE_BITS:
        raise _refused(f"the layer {operation.layer} reads activations of {source.bits} bits")
    if operation.stored_bits > BYTE_BITS:
        raise _refused(
            f"weights of the layer {operation.layer}, shifted to meet partial sums, take {operation.stored_bits} bits",
            hint=f'"align": "retune_opt" keeps weights as narrow as asked. {_INSTEAD}',
        )


# ---- Shifts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rescaling:
    """How a program makes outputs of sums, by channel."""

    lefts: tuple[tuple[int, ...], ...]  # of each operand
    right: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]


def _rescaling(
    operation: Convolution
    | Addition
    | Multiplication
    | AveragePool
    | Requantization
    | InputTransform
    | OutputTransform,
    bounds: Sequence[int],
    lefts: Sequence[Sequence[int]] | None = None,
) -> _Rescaling:
    """What follows sums of no more than `bounds`, which are shifted by `lefts` already, operand by operand."""
    lefts = [[0] * len(bounds)] if lefts is None else lefts
    given = zip(bounds, *map(_numbers, (operation.out_shift, operation.low, operation.high)), *lefts, strict=True)
    channels = [_channel(operation, *numbers) for numbers in given]
    right, low, high, *shifted = zip(*channels, strict=True)
    return _Rescaling(tuple(shifted), right, low, high)


def _channel(operation: Operation, bound: int, out_shift: int, low: int, high: int, *lefts: int) -> tuple[int, ...]:
    """Right, low, high and the shifts to the left of one channel."""
    left, right = max(0, -out_shift), max(0, out_shift)
    half = with_half(0, right)
    always_zero = bound < max(half, 1)
    if always_zero and bound <= INT32:  # whatever the shift, which may be larger than a program's
        end = min(max(0, low), high)
        return (0, end, end, *(0 for _ in lefts))
    if left > LARGEST_SHIFT or (bound << left) + half > INT32 or max(lefts) + left > LARGEST_SHIFT:
        raise _refused(f"sums of {_called(operation)} may leave 32 bits, though none did on the images that were tried")
    return (right, low, high, *(left + given for given in lefts))


def _called(operation: Operation) -> str:
    return f"the layer {operation.layer}" if isinstance(operation, Convolution) else operation.output


def _numbers(numbers: Tensor | Iterable[int]) -> tuple[int, ...]:
    return tuple(int(number) for number in (numbers.tolist() if isinstance(numbers, Tensor) else numbers))


def _refused(reason: str, hint: str = _INSTEAD) -> RecipeRefused:
    return RecipeRefused(f"The network can't be one operator of 8-bit integers: {reason}.", hint=hint)
