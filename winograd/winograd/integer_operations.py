"""The operations of an integer network, and the values between them: what an `IntegerProgram` is made of.

    requantized(s) = clamp(((s << left) + half) >> right, low, high)        half = 1 << (right - 1), or 0 where right is 0

with left, right (0 to 31), low and high of the output's channel. A value is (C, H, W) for one image; operations name values
by their index. What makes an operation wrong stands in `integer_checks.py`, how it lies in memory in `integer_bytes.py`.
"""

import math
from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, int, int]  # C, H, W
Pair = tuple[int, int]  # rows, columns
Channels = tuple[int, ...]  # a number for each channel of the output

INT32_LOWEST, INT32_HIGHEST = -(2**31), 2**31 - 1
MOST_SIDE = 2**20  # of values, windows, strides and the like
MOST_NUMBERS = 2**28  # of a value, or the weights of a layer


@dataclass(frozen=True)
class Value:
    """A tensor of integers from `lowest` to `highest`, 0 among them. Raises ValueError where nothing like it can be."""

    shape: Shape
    lowest: int
    highest: int

    def __post_init__(self) -> None:
        sides_fit = len(self.shape) == 3 and all(1 <= side <= MOST_SIDE for side in self.shape)
        if not sides_fit or math.prod(self.shape) > MOST_NUMBERS:
            raise ValueError(
                f"A value has the shape {list(self.shape)}; C, H and W are from 1 to {MOST_SIDE}, their product at most 2**28."
            )
        if not INT32_LOWEST <= self.lowest <= 0 <= self.highest <= INT32_HIGHEST:
            raise ValueError(
                f"A value goes from {self.lowest} to {self.highest}; 0 lies between, and both have 32 bits."
            )

    @property
    def channels(self) -> int:
        """C."""
        return self.shape[0]

    @property
    def size(self) -> int:
        """C * H * W."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """How many different integers it can hold."""
        return self.highest - self.lowest + 1

    @property
    def is_byte(self) -> bool:
        """Whether compiled code holds it as bytes, x - lowest."""
        return self.span <= 256

    def holds(self, lowest: int, highest: int) -> bool:
        """Whether all integers from `lowest` to `highest` are among its own."""
        return self.lowest <= lowest <= highest <= self.highest


@dataclass(frozen=True)
class _Operation:
    output: int
    sources: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Convolution(_Operation):
    """`y[k] = requantized(bias[k] + convolution)`; also linear layers, as 1x1 on (C, 1, 1). Padding is the integer 0."""

    weight: Tensor  # int8 [K, C/g, R, S]
    bias: Channels
    left: Channels
    right: Channels
    low: Channels
    high: Channels
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class Addition(_Operation):
    """`y[c] = clamp(((a << left[0][c]) + (b << left[1][c]) + half) >> right[c], low[c], high[c])`, all of one shape."""

    left: tuple[Channels, Channels]
    right: Channels
    low: Channels
    high: Channels


@dataclass(frozen=True)
class Multiplication(_Operation):
    """`y[c] = requantized(a * b)`; b may be (C, 1, 1), one factor for each channel."""

    left: Channels
    right: Channels
    low: Channels
    high: Channels


@dataclass(frozen=True)
class MaxPool(_Operation):
    """The largest integer of each window; padding never wins, and no window lies in padding alone."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)


@dataclass(frozen=True)
class AveragePool(_Operation):
    """`y[c] = requantized(sum of the window * multiplier)`; padding counts as zeros."""

    kernel: Pair
    stride: Pair
    padding: Pair
    multiplier: int
    left: Channels
    right: Channels
    low: Channels
    high: Channels


@dataclass(frozen=True, eq=False)
class Table(_Operation):
    """`y[c] = tables[row[c]][x - lowest of x]`."""

    tables: Tensor  # integers [rows, span of the source]
    row: Channels


@dataclass(frozen=True)
class Requantization(_Operation):
    """`y[c] = requantized(x)`."""

    left: Channels
    right: Channels
    low: Channels
    high: Channels


@dataclass(frozen=True)
class Concatenation(_Operation):
    """Channels behind each other."""


@dataclass(frozen=True)
class Slice(_Operation):
    """Every `step`-th of C, H and W from `start` until before `stop`, which lies inside the source."""

    start: Shape
    stop: Shape
    step: Shape = (1, 1, 1)


@dataclass(frozen=True)
class Padding(_Operation):
    """Zeros before and after C, H and W."""

    before: Shape
    after: Shape


@dataclass(frozen=True)
class NearestUpsample(_Operation):
    """Every integer repeated `scale` times downwards and sideways."""

    scale: Pair


@dataclass(frozen=True)
class Reshape(_Operation):
    """The same integers in the same order of memory C, H, W."""


@dataclass(frozen=True)
class Permutation(_Operation):
    """C, H, W in another order: the output's i-th dimension is the source's `order[i]`-th."""

    order: tuple[int, int, int]


@dataclass(frozen=True)
class InputTransform(_Operation):
    """Tiles of F(2x2, 3x3) in the Winograd domain, at P kept positions, which a convolution of P groups then multiplies.

    `v[p * C + c, i, j] = requantized((B^T d B)[position p])` of the tile d of 4x4 integers whose first is at row
    2 i - padding[0] and column 2 j - padding[1] of channel c; outside the image there are zeros.
    """

    positions: tuple[int, ...]  # ascending, of 0 to 15
    padding: Pair  # above and to the left
    left: Channels
    right: Channels
    low: Channels
    high: Channels


@dataclass(frozen=True)
class OutputTransform(_Operation):
    """Outputs of K filters from their products m [P * K, ...] at P positions.

    `y[k] = clamp((bias[k] + (A^T m A)[k] + half) >> right[k], low[k], high[k])`, each product shifted to the left first; what
    tiles have beyond the output is left out.
    """

    positions: tuple[int, ...]  # ascending, of 0 to 15
    bias: Channels
    left: tuple[int, ...]  # [P * K]
    right: Channels
    low: Channels
    high: Channels


Operation = (
    Convolution
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
    | Reshape
    | Permutation
    | InputTransform
    | OutputTransform
)
