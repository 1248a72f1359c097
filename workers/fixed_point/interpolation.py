"""Where the numbers of a resized image lie between those of the image it is made of, and with which integer weights they mix.

Places are exact fractions; the one rounding is that of weights to multiples of 2**-7. So few bits let sums of four 16-bit numbers,
weighted in two directions, stay within 32 bits, and those of four 8-bit numbers within what single precision can round exactly.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Self

WEIGHT_BITS = 7
ONE = 1 << WEIGHT_BITS

# A number of the input, by its place, and the weight of the one behind it. The two weights add up to ONE, so that theirs is below
# it, and where it is zero there may be nothing behind.
Tap = tuple[int, int]


@dataclass(frozen=True)
class Sampling:
    """Along one axis: number x of the output lies at `first + x * step`, or at the end of the input that it is beyond."""

    before: int  # numbers of the input
    after: int  # and of the output
    first: Fraction
    step: Fraction

    @classmethod
    def of(cls, before: int, after: int, *, align_corners: bool, scale: float | None) -> Self:
        """As ATen's upsample_bilinear2d has it; `scale` is what the network asked for, if it asked for no size."""
        if align_corners:
            # The outermost numbers stay where they are.
            return cls(before, after, Fraction(0), Fraction(before - 1, max(1, after - 1)))
        # Numbers are the middles of pixels, the first at half a pixel.
        step = Fraction(before, after) if scale is None else 1 / Fraction(scale)
        return cls(before, after, (step - 1) / 2, step)

    @property
    def is_exact(self) -> bool:
        """Whether no weight has to be rounded, and floating-point numbers hold all places."""
        return all((number * ONE).denominator == 1 for number in (self.first, self.step))

    def taps(self) -> tuple[Tap, ...]:
        """What each number of the output is made of: weights rounded half up, which is off by 2**-8 at most."""
        return tuple(self._tap(self.first + x * self.step) for x in range(self.after))

    def _tap(self, place: Fraction) -> Tap:
        inside = min(max(place, Fraction(0)), Fraction(self.before - 1))
        return divmod(floor(inside * ONE + Fraction(1, 2)), ONE)
