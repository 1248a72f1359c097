"""How an integer program lies in memory: words of 32 bits, little-endian.

    magic, version, number of values, number of operations, input, output
    C, H, W, lowest, highest                                      of each value
    length                                                        of each channel of the input
    kind, output, number of sources, sources, what the kind has   of each operation

What the kinds have stands in `_words_of` and, the other way round, in `_read`. Weights are bytes, filled up with zeros to a
whole word. Readers raise ValueError where words are missing; what the words say is checked by `integer_checks.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import assert_never

import torch
from torch import Tensor

from winograd.integer_checks import check_index
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
    Value,
)

MAGIC = 0x4E494957  # "WIIN"
VERSION = 1
WORD = 4  # bytes

KINDS: dict[type[Operation], int] = {
    Convolution: 1,
    Addition: 2,
    Multiplication: 3,
    MaxPool: 4,
    AveragePool: 5,
    Table: 6,
    Requantization: 7,
    Concatenation: 8,
    Slice: 9,
    Padding: 10,
    NearestUpsample: 11,
    Reshape: 12,
    Permutation: 13,
    InputTransform: 14,
    OutputTransform: 15,
}
_NAMES = {kind: operation for operation, kind in KINDS.items()}

Parts = tuple[int, int, tuple[int, ...], tuple[Value, ...], tuple[Operation, ...]]  # of an IntegerProgram, in its order


# ---- Writing --------------------------------------------------------------------------------------------------------------


def write(
    input: int, output: int, input_lengths: Sequence[int], values: Sequence[Value], operations: Sequence[Operation]
) -> Tensor:
    """Return a program as uint8 [bytes]."""
    head = [MAGIC, VERSION, len(values), len(operations), input, output]
    for value in values:
        head += [*value.shape, value.lowest, value.highest]
    parts = [_tensor([*head, *input_lengths])]
    for operation in operations:
        parts.append(_tensor([KINDS[type(operation)], operation.output, len(operation.sources), *operation.sources]))
        parts.extend(_words_of(operation))
    return torch.cat(parts).view(torch.uint8)


def _words_of(operation: Operation) -> Iterator[Tensor]:
    match operation:
        case Convolution():
            yield _tensor([*operation.weight.shape[2:], *operation.stride, *operation.padding, *operation.dilation])
            yield _tensor([operation.groups, *operation.bias, *_requantization(operation.left, operation)])
            weights = operation.weight.flatten()
            yield torch.nn.functional.pad(weights, (0, -len(weights) % WORD)).view(torch.int32)
        case Addition():
            yield _tensor([*operation.left[0], *_requantization(operation.left[1], operation)])
        case Multiplication() | Requantization():
            yield _tensor(_requantization(operation.left, operation))
        case MaxPool():
            yield _tensor([*operation.kernel, *operation.stride, *operation.padding, *operation.dilation])
        case AveragePool():
            yield _tensor([*operation.kernel, *operation.stride, *operation.padding, operation.multiplier])
            yield _tensor(_requantization(operation.left, operation))
        case Table():
            yield _tensor([len(operation.tables), *operation.row])
            yield operation.tables.to(torch.int32).flatten()
        case Slice():
            yield _tensor([*operation.start, *operation.stop, *operation.step])
        case Padding():
            yield _tensor([*operation.before, *operation.after])
        case NearestUpsample():
            yield _tensor(operation.scale)
        case Permutation():
            yield _tensor(operation.order)
        case InputTransform():
            yield _tensor([len(operation.positions), *operation.positions, *operation.padding])
            yield _tensor(_requantization(operation.left, operation))
        case OutputTransform():
            yield _tensor([len(operation.positions), *operation.positions, *operation.bias])
            yield _tensor(_requantization(operation.left, operation))
        case Concatenation() | Reshape():
            pass
        case _:
            assert_never(operation)


def _requantization(
    left: tuple[int, ...],
    operation: Convolution
    | Addition
    | Multiplication
    | AveragePool
    | Requantization
    | InputTransform
    | OutputTransform,
) -> list[int]:
    return [*left, *operation.right, *operation.low, *operation.high]


def _tensor(words: Iterable[int]) -> Tensor:
    return torch.tensor(list(words), dtype=torch.int32)


# ---- Reading --------------------------------------------------------------------------------------------------------------


def read(program: Tensor) -> Parts:
    """Return what a program, uint8 [bytes], is made of."""
    words = _Words(program)
    magic, version, value_count, operation_count, input, output = words.take(6)
    if magic != MAGIC:
        raise ValueError("program doesn't begin as one; pass what IntegerProgram.to_tensor makes.")
    if version != VERSION:
        raise ValueError(f"program has version {version}, but only version {VERSION} can be read.")
    if value_count < 1 or operation_count < 0:
        raise ValueError(f"program has {value_count} values and {operation_count} operations; one value is the least.")
    sizes = words.take(5 * value_count)
    values = tuple(Value((c, h, w), low, high) for c, h, w, low, high in zip(*[iter(sizes)] * 5, strict=True))
    check_index(input, values, "The input")
    lengths = tuple(words.take(values[input].channels))
    operations = tuple(_read(words, values) for _ in range(operation_count))
    words.check_end()
    return input, output, lengths, values, operations


class _Words:
    """The words of a program, from the first to the last."""

    def __init__(self, program: Tensor) -> None:
        if program.dim() != 1 or program.dtype != torch.uint8 or program.device.type != "cpu":
            raise ValueError(
                f"program is {list(program.shape)}, {program.dtype}, on {program.device}; pass [bytes] of uint8, on the CPU."
            )
        if len(program) % WORD != 0:
            raise ValueError(f"program has {len(program)} bytes, no whole number of words of {WORD} bytes.")
        self._words = program.detach().clone(memory_format=torch.contiguous_format).view(torch.int32)
        self._next = 0

    def take(self, count: int) -> list[int]:
        words: list[int] = self.take_tensor(count).tolist()
        return words

    def take_tensor(self, count: int) -> Tensor:
        end = self._next + count
        if count < 0 or end > len(self._words):
            raise ValueError(
                f"program ends after {len(self._words)} words, where {count} from word {self._next} on are missing."
            )
        taken, self._next = self._words[self._next : end], end
        return taken

    def pair(self) -> Pair:
        a, b = self.take(2)
        return a, b

    def triple(self) -> Shape:
        a, b, c = self.take(3)
        return a, b, c

    def check_end(self) -> None:
        if self._next != len(self._words):
            raise ValueError(f"program has {len(self._words) - self._next} words behind its last operation.")


def _read(words: _Words, values: Sequence[Value]) -> Operation:
    kind, output, source_count = words.take(3)
    if kind not in _NAMES:
        raise ValueError(f"program has an operation of kind {kind}, which is none from 1 to {len(_NAMES)}.")
    name = _NAMES[kind].__name__
    of = output, tuple(words.take(source_count))
    for index in (output, *of[1]):
        check_index(index, values, name)
    if source_count < 1:
        raise ValueError(f"{name} reads {source_count} values; one is the least.")
    count, source = values[output].channels, values[of[1][0]]

    def channels() -> Channels:
        return tuple(words.take(count))

    # Arguments are evaluated from left to right, as the words come.
    match _NAMES[kind]:
        case t if t is Convolution:
            return _read_convolution(words, of, source, count)
        case t if t is Addition:
            return Addition(*of, (channels(), channels()), channels(), channels(), channels())
        case t if t is Multiplication:
            return Multiplication(*of, channels(), channels(), channels(), channels())
        case t if t is MaxPool:
            return MaxPool(*of, words.pair(), words.pair(), words.pair(), words.pair())
        case t if t is AveragePool:
            kernel, stride, padding, (multiplier,) = words.pair(), words.pair(), words.pair(), words.take(1)
            left, right, low, high = channels(), channels(), channels(), channels()
            return AveragePool(*of, kernel, stride, padding, multiplier, left, right, low, high)
        case t if t is Table:
            (rows,), row = words.take(1), channels()
            return Table(*of, words.take_tensor(rows * source.span).reshape(-1, source.span), row)
        case t if t is Requantization:
            return Requantization(*of, channels(), channels(), channels(), channels())
        case t if t is Concatenation:
            return Concatenation(*of)
        case t if t is Slice:
            return Slice(*of, words.triple(), words.triple(), words.triple())
        case t if t is Padding:
            return Padding(*of, words.triple(), words.triple())
        case t if t is NearestUpsample:
            return NearestUpsample(*of, words.pair())
        case t if t is Reshape:
            return Reshape(*of)
        case t if t is InputTransform:
            positions, padding = tuple(words.take(*words.take(1))), words.pair()
            return InputTransform(*of, positions, padding, channels(), channels(), channels(), channels())
        case t if t is OutputTransform:
            positions, bias = tuple(words.take(*words.take(1))), channels()
            left = tuple(words.take(len(positions) * count))
            return OutputTransform(*of, positions, bias, left, channels(), channels(), channels())
        case _:
            return Permutation(*of, words.triple())


def _read_convolution(words: _Words, of: tuple[int, tuple[int, ...]], source: Value, filters: int) -> Convolution:
    kernel, stride, padding, dilation = words.pair(), words.pair(), words.pair(), words.pair()
    (groups,) = words.take(1)
    bias, left, right, low, high = (tuple(words.take(filters)) for _ in range(5))
    if min(*kernel, groups) < 1 or source.channels % groups != 0:
        raise ValueError(f"Convolution has a kernel {list(kernel)}, and {groups} groups of {source.channels} channels.")
    shape = filters, source.channels // groups, *kernel
    size = torch.Size(shape).numel()
    weight = words.take_tensor(-(-size // WORD)).view(torch.int8)[:size].reshape(shape)
    return Convolution(*of, weight, bias, left, right, low, high, stride, padding, dilation, groups)
