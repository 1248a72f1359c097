"""Integers in C: types, literals, names, and arrays of constants."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.fixed_point.coding import Coding, highest, lowest

Integers = npt.NDArray[np.int64]

_NUMBERS_A_LINE = 24
_LONGEST_NAME = 40  # C99 compilers may look at the first 63 characters of an internal name only


@dataclass(frozen=True)
class CType:
    """One of the integer types of <stdint.h>."""

    bits: int
    signed: bool

    @property
    def name(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}_t"

    @property
    def size_bytes(self) -> int:
        return self.bits // 8

    def holds(self, least: int, most: int) -> bool:
        return lowest(self.bits, signed=self.signed) <= least and most <= highest(self.bits, signed=self.signed)


INT8, INT16, INT32, INT64 = (CType(bits, True) for bits in (8, 16, 32, 64))
UINT8, UINT16, UINT32 = (CType(bits, False) for bits in (8, 16, 32))
_BY_SIZE = (INT8, UINT8, INT16, UINT16, INT32, UINT32, INT64)


def type_of(coding: Coding) -> CType:
    """What a tensor's integers are stored in.

    Raises:
        ValueError: if they have more than 32 bits.
    """
    if coding.bits > 32:
        raise ValueError(f"tensors in C have at most 32 bits a number, and this one has {coding.bits}")
    return CType(next(bits for bits in (8, 16, 32) if coding.bits <= bits), coding.signed)


def smallest_type(least: int, most: int) -> CType:
    """The smallest type that holds both, signed if there is a choice.

    Raises:
        ValueError: if 64 bits don't.
    """
    for candidate in _BY_SIZE:
        if candidate.holds(least, most):
            return candidate
    raise ValueError(f"64 bits don't hold integers from {least} to {most}")


@dataclass(frozen=True, eq=False)
class Constant:
    """An array of constants, which a function takes as the argument `argument`."""

    argument: str
    type: CType
    numbers: Integers  # flat
    comment: str  # its dimensions and meaning

    @property
    def size_bytes(self) -> int:
        return self.type.size_bytes * self.numbers.size

    def text(self, name: str) -> str:
        """The array's definition in C."""
        numbers = [literal(number) for number in self.numbers.tolist()]
        lines = (
            "    " + ", ".join(numbers[start : start + _NUMBERS_A_LINE])
            for start in range(0, len(numbers), _NUMBERS_A_LINE)
        )
        return (
            f"/* {self.comment} */\n"
            f"static const {self.type.name} {name}[{len(numbers)}] = {{\n" + ",\n".join(lines) + "\n};\n"
        )


def constant(argument: str, numbers: Sequence[int] | Integers, comment: str) -> Constant:
    """Constants in the smallest type that holds them all."""
    array = np.asarray(numbers, np.int64).reshape(-1)
    return Constant(argument, smallest_type(int(array.min()), int(array.max())), array, comment)


def by_channel(argument: str, numbers: Sequence[int], comment: str) -> tuple[str, tuple[Constant, ...]]:
    """The C expression of a number that may differ by `channel`, and the array behind it if it really does."""
    if len(set(numbers)) == 1:
        return literal(numbers[0]), ()
    return f"{argument}[channel]", (constant(argument, numbers, comment),)


def literal(number: int) -> str:
    """An integer in C; the lowest ones have no literal of their own."""
    if number == -(1 << 63):
        return "(-INT64_C(9223372036854775807) - 1)"
    if number == -(1 << 31):
        return "(-2147483647 - 1)"
    return str(number) if -(1 << 31) < number < 1 << 31 else f"INT64_C({number})"


def name_in_c(text: str) -> str:
    """`text`, whatever it is, as a part of a name in C: letters, digits and underscores."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:_LONGEST_NAME].rstrip("_")


def words_in_comment(text: str) -> str:
    """`text`, whatever it is, as words that can't end a comment, continue a line or be a trigraph."""
    return re.sub(r"[^A-Za-z0-9_.:\- ]", "_", text)[:200]


def packed(numbers: Integers, bits: int) -> Integers:
    """Rows [K, N] of integers of 2 or 4 bits as bytes [K, ceil(N / per_byte)].

    The lowest bits of a row's bytes hold its first part, the next bits its second part, and so on, because parts unpack into
    consecutive memory, which compilers vectorise:

        4 bits:  byte i = number[i] | number[i + ceil(N/2)] << 4
    """
    per_byte = 8 // bits
    length = -(-numbers.shape[1] // per_byte)
    padded = np.zeros((len(numbers), per_byte * length), np.int64)
    padded[:, : numbers.shape[1]] = numbers & ((1 << bits) - 1)
    parts = padded.reshape(len(numbers), per_byte, length) << (np.arange(per_byte) * bits)[:, None]
    joined: Integers = parts.sum(1)
    return joined


def code(template: str, **values: Any) -> str:  # whatever has a text: numbers, names, expressions
    """`template` with `$NAME`s replaced; a line that is only a name takes any number of lines."""
    name = rf"\$({'|'.join(sorted(values, key=len, reverse=True))})(?![A-Z0-9])"

    def block(found: re.Match[str]) -> str:
        text = str(values[found[1]]).rstrip("\n")
        return f"{text}\n" if text else ""

    template = re.sub(rf"^ *{name}\n", block, template, flags=re.MULTILINE)
    filled = re.sub(name, lambda found: str(values[found[1]]), template)
    assert "$" not in filled, filled[filled.index("$") :][:40]
    return filled


def indented(text: str, depth: int = 0) -> str:
    """C code with each line indented by the braces around it."""
    lines = []
    for line in text.splitlines():
        stripped = line.strip()
        depth -= stripped.startswith("}")
        lines.append("    " * depth + stripped if stripped else "")
        depth += stripped.count("{") - stripped.count("}") + stripped.startswith("}")
    return "".join(f"{line}\n" for line in lines)
