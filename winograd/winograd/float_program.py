"""`FloatProgram`: a whole float32 network as one tensor of bytes, which compiled code packs and runs in one call.

    program = FloatProgram(input=0, output=1, values=((3, 32, 32), (10, 1, 1)), operations=(...))
    prepared = torch.ops.winograd.prepare_float_network(program.to_tensor())
    scores = torch.ops.winograd.float_network_prepared(images, prepared, 10)            # float32 [N, 10]

A value is (C, H, W) for one image; operations name values by their index. In memory a program is words of 32 bits,
little-endian, numbers of the network among them as float32:

    magic, version, number of values, number of operations, input, output
    C, H, W                                                       of each value
    kind, output, number of sources, sources, what the kind has   of each operation, in the order of `_words_of`

It is made when a network is prepared, and stands in no file. Whoever reads it checks it.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import assert_never

import torch
from torch import Tensor

MAGIC = 0x4E464957  # "WIFN"
VERSION = 1

Shape = tuple[int, int, int]  # C, H, W
Pair = tuple[int, int]  # rows, columns


@dataclass(frozen=True, eq=False)
class FloatProgram:
    """Values, and operations in the order in which they run; each writes a value of its own and reads what was written before.

    `input` and `output` are indices of `values`.
    """

    input: int
    output: int
    values: tuple[Shape, ...]
    operations: tuple["Operation", ...]

    def to_tensor(self) -> Tensor:
        """Return the program as uint8 [bytes]."""
        head = [MAGIC, VERSION, len(self.values), len(self.operations), self.input, self.output]
        parts = [_words(head + [size for value in self.values for size in value])]
        for operation in self.operations:
            sources = operation.sources
            parts.append(_words([KINDS[type(operation)], operation.output, len(sources), *sources]))
            parts.extend(_words_of(operation))
        return torch.cat(parts).view(torch.uint8)


# ---- Operations -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Operation:
    output: int
    sources: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Clamped(_Operation):
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True, eq=False, kw_only=True)
class Convolution(_Clamped):
    """`clamp(convolution + bias + residual)` of an image and, if there is a second source, a residual.

    Linear layers are convolutions, whose kernel is as large as the image.
    """

    weights: Tensor  # float32 [K, C/groups, R, S]
    bias: Tensor  # float32 [K]
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class WinogradConvolution(_Operation):
    """`winograd::conv2d` of an image and, if there is a second source, a residual."""

    weights: Tensor  # float32 [P, K, C/groups]
    bias: Tensor  # float32 [K]
    positions: tuple[int, ...]  # P for each of one or more equal runs of filters
    m: int
    padding: Pair = (0, 0)
    groups: int = 1
    has_relu: bool = False


@dataclass(frozen=True, eq=False)
class Addition(_Clamped):
    """`clamp(a + b)`, of one shape."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Scaling(_Clamped):
    """`clamp(x * scale[c] + shift[c])`."""

    scale: Tensor  # float32 [C]
    shift: Tensor  # float32 [C]


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(_Operation):
    """The largest number of each window; padding never wins."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class AveragePool(_Operation):
    """The mean of each window; padding is zeros, or is left out."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    counts_padding: bool = True


@dataclass(frozen=True, eq=False)
class Concatenation(_Operation):
    """Channels behind each other."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Slice(_Operation):
    """Every `step`-th of C, H and W from `start` until before `stop`, which lies inside the source."""

    stop: Shape
    start: Shape = (0, 0, 0)
    step: Shape = (1, 1, 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Padding(_Operation):
    """Zeros before and after C, H and W."""

    before: Shape
    after: Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class NearestUpsample(_Operation):
    """Every pixel `scale` times in each direction."""

    scale: Pair


@dataclass(frozen=True, eq=False)
class Multiplication(_Operation):
    """`a * b`, of one shape, or b of [C, 1, 1]."""


class Function(IntEnum):
    """What an activation computes; the names are torch's."""

    LEAKY_RELU = 0
    SIGMOID = 1
    SILU = 2
    TANH = 3
    HARDSIGMOID = 4
    HARDSWISH = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Activation(_Operation):
    """A function of each number; `slope` is that of a leaky ReLU below zero."""

    function: Function
    slope: float = 0.0


Operation = (
    Convolution
    | WinogradConvolution
    | Addition
    | Scaling
    | MaxPool
    | AveragePool
    | Concatenation
    | Slice
    | Padding
    | NearestUpsample
    | Multiplication
    | Activation
)

KINDS: dict[type[Operation], int] = {
    Convolution: 1,
    WinogradConvolution: 2,
    Addition: 3,
    Scaling: 4,
    MaxPool: 5,
    AveragePool: 6,
    Concatenation: 7,
    Slice: 8,
    Padding: 9,
    NearestUpsample: 10,
    Multiplication: 11,
    Activation: 12,
}


# ---- Words ----------------------------------------------------------------------------------------------------------------


def _words_of(operation: Operation) -> Iterator[Tensor]:
    match operation:
        case Convolution():
            yield _words([*operation.weights.shape[2:], *operation.stride, *operation.padding, *operation.dilation])
            yield _words([operation.groups])
            yield _ends(operation)
            yield _numbers(operation.bias)
            yield _numbers(operation.weights)
        case WinogradConvolution():
            kept = len(operation.weights)
            yield _words([operation.m, *operation.padding, operation.groups, len(operation.positions) // kept, kept])
            yield _words([int(operation.has_relu), *operation.positions])
            yield _numbers(operation.bias)
            yield _numbers(operation.weights)
        case Addition():
            yield _ends(operation)
        case Scaling():
            yield _ends(operation)
            yield _numbers(operation.scale)
            yield _numbers(operation.shift)
        case MaxPool():
            yield _words([*operation.kernel, *operation.stride, *operation.padding, *operation.dilation])
        case AveragePool():
            yield _words([*operation.kernel, *operation.stride, *operation.padding, int(operation.counts_padding)])
        case Slice():
            yield _words([*operation.start, *operation.stop, *operation.step])
        case Padding():
            yield _words([*operation.before, *operation.after])
        case NearestUpsample():
            yield _words(operation.scale)
        case Activation():
            yield _words([operation.function])
            yield _numbers(torch.tensor([operation.slope]))
        case Concatenation() | Multiplication():
            pass
        case _:
            assert_never(operation)


def _ends(operation: _Clamped) -> Tensor:
    return _numbers(torch.tensor([operation.low, operation.high], dtype=torch.float32))


def _words(words: Iterable[int]) -> Tensor:
    return torch.tensor(list(words), dtype=torch.int32)


def _numbers(x: Tensor) -> Tensor:
    return x.detach().contiguous().flatten().view(torch.int32)
