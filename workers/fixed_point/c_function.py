"""What an operation becomes in C: a function, and what it is called with."""

from collections.abc import Sequence
from dataclasses import dataclass

from workers.fixed_point.c_types import INT32, INT64, Constant, CType, by_channel, literal


@dataclass(frozen=True)
class Scratch:
    """Memory that an operation needs while it runs."""

    argument: str
    type: CType
    count: int


@dataclass(frozen=True)
class Written:
    """An operation as the body of a C function; operations with the same body and types of arguments share the function."""

    kind: str  # what the function's name begins with
    title: str  # what the operation is, for people
    purpose: str  # what the function is, whichever operation calls it
    body: str
    sources: tuple[tuple[str, str], ...]  # argument and the tensor that it gets
    constants: tuple[Constant, ...] = ()
    scratch: tuple[Scratch, ...] = ()
    helpers: tuple[str, ...] = ()  # functions that the body calls


@dataclass(frozen=True)
class Rescaling:
    """From accumulators to a tensor's numbers: a rounding shift and a range, each possibly other for each channel."""

    wide: CType
    shifted: str  # C expression with @ for the accumulator
    low: str
    high: str
    output: CType
    constants: tuple[Constant, ...]

    def of(self, accumulator: str) -> str:
        """The C expression for one accumulator of `channel`."""
        shifted = self.shifted.replace("@", accumulator)
        return f"({self.output.name})clamp{self.wide.bits}({shifted}, {self.low}, {self.high})"


def rescaling(
    out_shift: Sequence[int],
    low: Sequence[int],
    high: Sequence[int],
    *,
    largest: Sequence[int],
    output: CType,
    prefix: str = "",
) -> Rescaling:
    """How accumulators become numbers of type `output`; `largest` bounds them by channel, with the half that rounds.

    A function that rescales several times tells the arrays apart by what their names begin with.

    Raises:
        ValueError: if 64 bits don't suffice, or if the range isn't within the output's type.
    """
    if not output.holds(min(low), max(high)):
        raise ValueError(f"the range from {min(low)} to {max(high)} isn't within {output.name}")
    bound = max(_bound(*pair) for pair in zip(out_shift, largest, strict=True))
    wide = wide_type(max(bound, max(high), -min(low)))
    shift, constants = by_channel(
        f"{prefix}out_shift", out_shift, "By how many bits each channel's accumulators are shifted"
    )
    bits = wide.bits
    if constants:
        shifted = f"round_shift{bits}(@, {shift})" if min(out_shift) >= 0 else f"rescale{bits}(@, {shift})"
    elif out_shift[0] == 0:
        shifted = "@"
    else:
        number = abs(out_shift[0])
        shifted = f"round_shift{bits}(@, {number})" if out_shift[0] > 0 else f"shift_left{bits}(@, {number})"
    low_text, low_constants = by_channel(f"{prefix}low", low, "The lowest number of each channel")
    high_text, high_constants = by_channel(f"{prefix}high", high, "The highest number of each channel")
    return Rescaling(wide, shifted, low_text, high_text, output, (*constants, *low_constants, *high_constants))


def _bound(out_shift: int, largest: int) -> int:
    """What a left shift makes of it at most; and no shift may be as wide as its type, even of nothing."""
    return max(largest, 1) << -out_shift if out_shift < 0 else max(largest, 1 << out_shift >> 1)


def wide_type(bound: int) -> CType:
    """The type of accumulators with this bound.

    Raises:
        ValueError: if 64 bits don't suffice.
    """
    if bound >= 1 << 63:
        raise ValueError("sums may need more than 64 bits")
    return INT32 if bound < 1 << 31 else INT64


def shifted_left(
    expression: str, shifts: Sequence[int], argument: str, wide: CType
) -> tuple[str, tuple[Constant, ...]]:
    """The expression shifted left by so many bits, by channel, and the array behind the shifts if they differ."""
    shift, constants = by_channel(argument, shifts, "By how many bits each channel of an operand is shifted")
    if shift == literal(0):
        return f"({wide.name}){expression}", ()
    return f"shift_left{wide.bits}({expression}, {shift})", constants
