"""An integer network: named tensors of integers, and operations between them that add, multiply and shift.

All tensors are (C, H, W) for one image; vectors are (C, 1, 1). Nothing in here is a floating-point number, and nothing that runs it
needs one between the input's integers and the logits'. What a float network does after its last layer (softmax, reshape)
isn't part of it.

Accumulators are 32 bits wide unless stated; `accumulator_bound` of an operation is what no image can exceed.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from workers.fixed_point.coding import Coding
from workers.fixed_point.interpolation import WEIGHT_BITS, Tap
from workers.fixed_point.tiles import input_terms

Shape = tuple[int, int, int]


def with_half(largest: int, out_shift: int) -> int:
    """The bound of a sum once the half that rounds is added."""
    return largest + (1 << out_shift >> 1 if out_shift > 0 else 0)


@dataclass(frozen=True)
class Value:
    """A tensor of integers."""

    name: str
    shape: Shape  # of one image
    coding: Coding  # one length a channel


@dataclass(frozen=True)
class _OfOne:
    """What operations on one tensor have in common."""

    source: str
    output: str

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)


@dataclass(frozen=True, eq=False)
class Convolution(_OfOne):
    """A convolution or (on (C, 1, 1), with 1x1 kernels) a linear layer, with its requantization (METHODS 5.3, F3-F4).

        acc[o] = bias[o] + sum over i, r, s of (weight[o, i, r, s] << shifts[o, i]) * x[i, ...]
        y[o]   = clamp((acc[o] + 2**(out_shift[o] - 1)) >> out_shift[o], low[o], high[o])

    where a negative out_shift shifts left. The accumulator of output o has fractional length `lengths[o]`.
    """

    layer: str
    weight: Tensor  # int64 [K, C/g, R, S], each of `weight_bits` bits, signed
    weight_bits: int
    shifts: Tensor  # int64 [K, C/g], none negative: what aligns partial sums
    bias: Tensor  # int64 [K]
    bias_bits: int
    lengths: Tensor  # int64 [K]
    out_shift: Tensor  # int64 [K]
    low: Tensor  # int64 [K]: the activation function and the range of the output, as integers
    high: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    is_linear: bool = False

    @property
    def aligned_weight(self) -> Tensor:
        """Weights shifted ahead of time, so that nothing needs to shift between partial sums (F-9)."""
        return self.weight << self.shifts[:, :, None, None]

    def put_away(self) -> "Convolution":
        """The same in as few bytes as its weights need, to be kept until `taken_out`."""
        return replace(self, weight=self.weight.to(torch.int8 if self.weight_bits <= 8 else torch.int16))

    def taken_out(self) -> "Convolution":
        return replace(self, weight=self.weight.long())

    @property
    def stored_bits(self) -> int:
        """Bits that aligned weights need."""
        aligned = self.aligned_weight
        return max(1, *(_bits_of(int(bound)) for bound in (aligned.min(), aligned.max())))

    def accumulator_bound(self, source: Coding) -> int:
        """The largest absolute value that any accumulator, or any part of its sum, can reach."""
        return int(self.accumulator_bounds(source).max())

    def accumulator_bounds(self, source: Coding) -> Tensor:
        """The same for each output, int64 [K]."""
        per_output = self.aligned_weight.abs().sum((1, 2, 3)) * source.largest + self.bias.abs()
        rounding = torch.where(
            self.out_shift > 0, torch.ones_like(self.out_shift) << (self.out_shift.clamp(min=1) - 1), 0
        )
        return per_output + rounding


@dataclass(frozen=True)
class InputTransform(_OfOne):
    """Tiles of an image in the Winograd domain of F(2x2, 3x3), at P kept positions: what a convolution of P groups then multiplies.

        v[p * C + c, i, j] = clamp((sum of sign * x[c, 2i + r - top, 2j + s - left] + half) >> out_shift[p * C + c], low, high)

    over the terms (r, s, sign) that `tiles.input_terms` has for the p-th position; outside the image x is zero.
    """

    positions: tuple[int, ...]  # ascending, of 0 to 15
    padding: tuple[int, int]  # top and left; below and to the right what the tiles reach over
    out_shift: tuple[int, ...]  # by channel of the output, P * C
    low: tuple[int, ...]
    high: tuple[int, ...]

    def accumulator_bounds(self, source: Coding) -> list[int]:
        """The largest absolute value that the sum of each channel can reach, with the half that rounds."""
        channels = len(self.out_shift) // len(self.positions)
        terms = [len(input_terms(position)) for position in self.positions for _ in range(channels)]
        return [with_half(count * source.largest, shift) for count, shift in zip(terms, self.out_shift, strict=True)]


@dataclass(frozen=True)
class OutputTransform(_OfOne):
    """Outputs from the products at P positions, of K filters each: the end of a Winograd convolution.

        acc[k, 2i + r, 2j + s] = bias[k] + sum of sign * (m[p * K + k, i, j] << left[p * K + k])
        y[k]                   = clamp((acc[k] + half) >> out_shift[k], low[k], high[k])

    over all positions p with terms (r, s, sign) of `tiles.output_terms`. What tiles have beyond the output is left out.
    """

    positions: tuple[int, ...]  # ascending, of 0 to 15
    bias: tuple[int, ...]  # [K]
    left: tuple[int, ...]  # [P * K], none negative
    out_shift: tuple[int, ...]  # [K]
    low: tuple[int, ...]
    high: tuple[int, ...]

    def lengths(self, products: Coding) -> Tensor:
        """The length of each filter's sums, int64 [K]: that of its finest products."""
        return products.lengths_tensor().reshape(len(self.positions), -1).amax(0)

    def accumulator_bounds(self, products: list[int]) -> list[int]:
        """The largest absolute value that any sum of each filter can reach, where products [P * K] are no larger than these."""
        filters = len(self.bias)
        sums = [with_half(abs(bias), shift) for bias, shift in zip(self.bias, self.out_shift, strict=True)]
        for number, (product, left) in enumerate(zip(products, self.left, strict=True)):
            sums[number % filters] += product << left
        return sums


@dataclass(frozen=True)
class Addition:
    """`y[c] = clamp(((a[c] << left_a[c]) + (b[c] << left_b[c]) + half) >> out_shift[c], low[c], high[c])`, all of one shape."""

    sources: tuple[str, str]
    output: str
    left: tuple[tuple[int, ...], tuple[int, ...]]  # of each operand, by channel
    out_shift: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]

    def accumulator_bounds(self, a: Coding, b: Coding) -> list[int]:
        """The largest absolute value that the sum of each channel can reach, with the half that rounds."""
        return [
            with_half((a.largest << left_a) + (b.largest << left_b), shift)
            for left_a, left_b, shift in zip(*self.left, self.out_shift, strict=True)
        ]


@dataclass(frozen=True)
class Multiplication:
    """`y[c] = clamp((a[c] * b[c] + half) >> out_shift[c], low[c], high[c])`; b may be (C, 1, 1), one factor a channel."""

    sources: tuple[str, str]
    output: str
    out_shift: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]

    def accumulator_bounds(self, a: Coding, b: Coding) -> list[int]:
        """The largest absolute value that the product of each channel can reach, with the half that rounds."""
        return [with_half(a.largest * b.largest, shift) for shift in self.out_shift]


@dataclass(frozen=True)
class MaxPool(_OfOne):
    """The largest integer of each window; padding never wins."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class AveragePool(_OfOne):
    """`y[c] = clamp((sum of the window * multiplier + half) >> out_shift[c], low[c], high[c])`: a division as multiply and shift.

    Padding counts as zeros, and all windows have the same divisor.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    multiplier: int
    out_shift: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Table(_OfOne):
    """`y = tables[row[c]][x - lowest of x]`: any function of one number, by look-up; channels with equal lengths share a row."""

    function: str  # what it stands for, such as hardswish
    tables: Tensor  # int64 [rows, 2**bits of the source]
    row: tuple[int, ...]  # by channel


@dataclass(frozen=True)
class Requantization(_OfOne):
    """The same numbers with other lengths: `y[c] = clamp((x[c] + half) >> out_shift[c], low[c], high[c])`."""

    out_shift: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]


@dataclass(frozen=True)
class Concatenation:
    """Channels behind each other, integers as they are."""

    sources: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Slice(_OfOne):
    """Every `step`-th of each dimension (C, H, W) from `start` until before `stop`."""

    start: Shape
    stop: Shape
    step: Shape


@dataclass(frozen=True)
class Padding(_OfOne):
    """Zeros before and after, in each dimension (C, H, W)."""

    before: Shape
    after: Shape


@dataclass(frozen=True)
class NearestUpsample(_OfOne):
    """Every integer repeated `scale` times downwards and sideways."""

    scale: tuple[int, int]


@dataclass(frozen=True)
class BilinearResize(_OfOne):
    """Every number a mean of four neighbours, in the coding of the source: no mean is beyond what it is made of, so nothing clamps.

        (i, down), (j, across) = rows[p], columns[q]
        above   = (128 - across) * x[c, i, j] + across * x[c, i, j + 1]                 below is the same of row i + 1
        y[c, p, q] = ((128 - down) * above + down * below + 2**13) >> 14

    Against exact weights, `y` is off by at most half a step, and 1/256 of how far the four are apart downwards and sideways each.
    """

    rows: tuple[Tap, ...]  # a tap for each row of the output
    columns: tuple[Tap, ...]

    SHIFT: ClassVar[int] = 2 * WEIGHT_BITS

    def accumulator_bound(self, source: Coding) -> int:
        """The largest absolute value that the sum can reach, with the half that rounds."""
        return with_half(source.largest << self.SHIFT, self.SHIFT)


@dataclass(frozen=True)
class Reshape(_OfOne):
    """The same integers in the same order of memory (C, H, W) under another shape."""


@dataclass(frozen=True)
class Permutation(_OfOne):
    """Dimensions (C, H, W) in another order."""

    order: tuple[int, int, int]


Operation = (
    Convolution
    | InputTransform
    | OutputTransform
    | Addition
    | Multiplication
    | MaxPool
    | AveragePool
    | Table
    | Requantization
    | Concatenation
    | Slice
    | Padding
    | NearestUpsample
    | BilinearResize
    | Reshape
    | Permutation
)


@dataclass(frozen=True)
class IntegerNetwork:
    """Operations in the order in which they run, and the tensors that they read and make."""

    input: str
    output: str  # the logits: accumulators as they are, 32 bits, all with one length
    values: dict[str, Value]
    operations: tuple[Operation, ...]

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        return tuple(operation for operation in self.operations if isinstance(operation, Convolution))

    def layer_behind(self, value: str) -> Convolution:
        """The convolution that makes this tensor."""
        return next(layer for layer in self.convolutions if layer.output == value)


def _bits_of(value: int) -> int:
    """Bits of a two's complement number that holds `value`."""
    return (value.bit_length() if value >= 0 else (-value - 1).bit_length()) + 1
