"""Small integer networks of random integers, one operation after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.fixed_point.coding import Coding
from workers.fixed_point.interpolation import Sampling
from workers.fixed_point.network import (
    Addition,
    AveragePool,
    BilinearResize,
    Concatenation,
    Convolution,
    IntegerNetwork,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Operation,
    Padding,
    Permutation,
    Requantization,
    Reshape,
    Shape,
    Slice,
    Table,
    Value,
)

LENGTH = 4  # of all channels: the integers that run don't depend on it


def coding(channels: int, bits: int = 8, *, signed: bool = True) -> Coding:
    return Coding(bits, signed, (LENGTH,) * channels)


class RandomNetwork:
    """An integer network while it is made. Methods add an operation and return the name of its output."""

    def __init__(self, shape: Shape, *, bits: int = 8, signed: bool = True, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.values = {"image": Value("image", shape, coding(shape[0], bits, signed=signed))}
        self.operations: list[Operation] = []

    def made(self, output: str | None = None) -> IntegerNetwork:
        """The network; its output is what was made last unless it is named."""
        return IntegerNetwork("image", output or self.operations[-1].output, self.values, tuple(self.operations))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=self.generator)

    def numbers(self, low: int, high: int, count: int) -> tuple[int, ...]:
        return tuple(self.integers(low, high, count).tolist())

    def images(self, count: int) -> Tensor:
        """Random inputs, int64 [N, C, H, W]; the first are the lowest and the highest that there are."""
        value = self.values["image"]
        images = self.integers(value.coding.lowest, value.coding.highest, count, *value.shape)
        images[0], images[1] = value.coding.lowest, value.coding.highest
        return images

    # ---- Operations -------------------------------------------------------------------------------------------------

    def convolve(
        self,
        source: str = "image",
        *,
        filters: int = 5,
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        weight_bits: int = 8,
        largest_shift: int = 0,
        out_shifts: tuple[int, int] = (5, 9),
        bias_bits: int = 16,
        bits: int = 8,
        signed: bool = True,
        layer: str | None = None,
    ) -> str:
        channels, height, width = self.values[source].shape
        half = 1 << (weight_bits - 1)
        most = 1 << (bias_bits - 1)
        low, high = self._range(filters, bits, signed=signed)
        operation = Convolution(
            layer=layer or f"conv{len(self.operations)}",
            source=source,
            output=self._name("conv"),
            weight=self.integers(-half, half - 1, filters, channels // groups, *kernel),
            weight_bits=weight_bits,
            shifts=self.integers(0, largest_shift, filters, channels // groups),
            bias=self.integers(-most, most - 1, filters),
            bias_bits=bias_bits,
            lengths=torch.full((filters,), LENGTH),
            out_shift=self.integers(*out_shifts, filters),
            low=torch.tensor(low),
            high=torch.tensor(high),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        rows, columns = (
            (size + 2 * pad - step * (taps - 1) - 1) // jump + 1
            for size, pad, step, taps, jump in zip((height, width), padding, dilation, kernel, stride, strict=True)
        )
        return self._add(operation, (filters, rows, columns), coding(filters, bits, signed=signed))

    def linear(self, source: str, outputs: int, *, weight_bits: int = 8, largest_shift: int = 0) -> str:
        """A last layer, whose logits have 32 bits."""
        inputs = self.values[source].shape[0]
        half = 1 << (weight_bits - 1)
        limit = torch.full((outputs,), 2**31 - 1)
        operation = Convolution(
            layer="fc",
            source=source,
            output=self._name("fc"),
            weight=self.integers(-half, half - 1, outputs, inputs, 1, 1),
            weight_bits=weight_bits,
            shifts=self.integers(0, largest_shift, outputs, inputs),
            bias=self.integers(-1000, 1000, outputs),
            bias_bits=16,
            lengths=torch.full((outputs,), LENGTH),
            out_shift=torch.zeros(outputs, dtype=torch.int64),
            low=-limit,
            high=limit,
            is_linear=True,
        )
        return self._add(operation, (outputs, 1, 1), coding(outputs, 32))

    def requantize(self, source: str = "image", *, bits: int = 8, signed: bool = True, shifts: tuple[int, int] = (-2, 3),
                   name: str | None = None) -> str:  # fmt: skip
        shape = self.values[source].shape
        low, high = self._range(shape[0], bits, signed=signed)
        out_shift = self.numbers(*shifts, shape[0])
        operation = Requantization(source, name or self._name("requantized"), out_shift, low, high)
        return self._add(operation, shape, coding(shape[0], bits, signed=signed))

    def add(
        self, a: str, b: str, *, bits: int = 8, signed: bool = True, left: int = 3, shifts: tuple[int, int] = (0, 4)
    ) -> str:
        shape = self.values[a].shape
        low, high = self._range(shape[0], bits, signed=signed)
        lefts = (self.numbers(0, left, shape[0]), self.numbers(0, left, shape[0]))
        operation = Addition((a, b), self._name("sum"), lefts, self.numbers(*shifts, shape[0]), low, high)
        return self._add(operation, shape, coding(shape[0], bits, signed=signed))

    def multiply(self, a: str, b: str, *, bits: int = 8, shifts: tuple[int, int] = (3, 8)) -> str:
        shape = self.values[a].shape
        low, high = self._range(shape[0], bits, signed=True)
        operation = Multiplication((a, b), self._name("product"), self.numbers(*shifts, shape[0]), low, high)
        return self._add(operation, shape, coding(shape[0], bits))

    def max_pool(self, source: str, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int] = (0, 0),
                 dilation: tuple[int, int] = (1, 1)) -> str:  # fmt: skip
        value = self.values[source]
        operation = MaxPool(source, self._name("most"), kernel, stride, padding, dilation)
        return self._add(operation, _pooled(value.shape, kernel, stride, padding, dilation), value.coding)

    def average_pool(self, source: str, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int] = (0, 0),
                     *, multiplier: int = 1, shifts: tuple[int, int] = (1, 5)) -> str:  # fmt: skip
        value = self.values[source]
        channels = value.shape[0]
        low, high = self._range(channels, 8, signed=True)
        out_shift = self.numbers(*shifts, channels)
        operation = AveragePool(source, self._name("mean"), kernel, stride, padding, multiplier, out_shift, low, high)
        return self._add(operation, _pooled(value.shape, kernel, stride, padding, (1, 1)), coding(channels))

    def look_up(self, source: str = "image", *, tables: int = 2, bits: int = 8, signed: bool = True) -> str:
        value = self.values[source]
        made = coding(value.shape[0], bits, signed=signed)
        numbers = self.integers(made.lowest, made.highest, tables, 1 << value.coding.bits)
        operation = Table(
            source, self._name("table"), "hardswish", numbers, self.numbers(0, tables - 1, value.shape[0])
        )
        return self._add(operation, value.shape, made)

    def concatenate(self, sources: Sequence[str]) -> str:
        values = [self.values[source] for source in sources]
        shape = (sum(value.shape[0] for value in values), *values[0].shape[1:])
        first = values[0].coding
        made = coding(shape[0], first.bits, signed=first.signed)
        return self._add(Concatenation(tuple(sources), self._name("joined")), shape, made)

    def slice(self, source: str, start: Shape, stop: Shape, step: Shape) -> str:
        a, b, c = (len(range(*part)) for part in zip(start, stop, step, strict=True))
        return self._moved(Slice(source, self._name("slice"), start, stop, step), (a, b, c))

    def pad(self, source: str, before: Shape, after: Shape) -> str:
        shape = self.values[source].shape
        a, b, c = (sum(sizes) for sizes in zip(shape, before, after, strict=True))
        return self._moved(Padding(source, self._name("padded"), before, after), (a, b, c))

    def upsample(self, source: str, scale: tuple[int, int]) -> str:
        channels, height, width = self.values[source].shape
        operation = NearestUpsample(source, self._name("larger"), scale)
        return self._moved(operation, (channels, height * scale[0], width * scale[1]))

    def resize(self, source: str, size: tuple[int, int], *, align_corners: bool = False) -> str:
        channels, *before = self.values[source].shape
        rows, columns = (
            Sampling.of(*sizes, align_corners=align_corners, scale=None).taps()
            for sizes in zip(before, size, strict=True)
        )
        return self._moved(BilinearResize(source, self._name("resized"), rows, columns), (channels, *size))

    def reshape(self, source: str, shape: Shape) -> str:
        return self._moved(Reshape(source, self._name("reshaped")), shape)

    def permute(self, source: str, order: tuple[int, int, int]) -> str:
        shape = self.values[source].shape
        a, b, c = (shape[place] for place in order)
        return self._moved(Permutation(source, self._name("permuted"), order), (a, b, c))

    def _moved(self, operation: Operation, shape: Shape) -> str:
        given = self.values[operation.sources[0]].coding
        return self._add(operation, shape, coding(shape[0], given.bits, signed=given.signed))

    def _add(self, operation: Operation, shape: Shape, made: Coding) -> str:
        self.operations.append(operation)
        self.values[operation.output] = Value(operation.output, shape, made)
        return operation.output

    def _name(self, kind: str) -> str:
        return f"{kind}{len(self.operations)}"

    def _range(self, channels: int, bits: int, *, signed: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ranges by channel, a little tighter than the coding's."""
        whole = coding(channels, bits, signed=signed)
        slack = (whole.highest - whole.lowest) // 8
        low, high = self.numbers(0, slack, channels), self.numbers(0, slack, channels)
        return tuple(whole.lowest + n for n in low), tuple(whole.highest - n for n in high)


def _pooled(
    shape: Shape, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Shape:
    rows, columns = (
        (size + 2 * pad - step * (taps - 1) - 1) // jump + 1
        for size, pad, step, taps, jump in zip(shape[1:], padding, dilation, kernel, stride, strict=True)
    )
    return (shape[0], rows, columns)
