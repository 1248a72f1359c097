"""Fixed-point numbers: `value = q * 2**-length`, where q is an integer of so many bits (METHODS 1, US11588496B2).

Everything is rounded half up, `floor(x * 2**length + 0.5)`, because then a rounding shift of integers,
`(q + 2**(s - 1)) >> s`, gives the very same result.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SHORTEST, LONGEST = -8, 24  # fractional lengths beyond these say only that a channel holds nothing


@dataclass(frozen=True)
class Coding:
    """How the values of one tensor are stored: bits, sign, and a fractional length for each channel (F-4)."""

    bits: int
    signed: bool
    lengths: tuple[int, ...]

    @property
    def lowest(self) -> int:
        return lowest(self.bits, signed=self.signed)

    @property
    def highest(self) -> int:
        return highest(self.bits, signed=self.signed)

    @property
    def largest(self) -> int:
        """The largest absolute value that an integer can have."""
        return max(abs(self.lowest), self.highest)

    @property
    def is_uniform(self) -> bool:
        """Whether all channels have one length."""
        return len(set(self.lengths)) <= 1

    def lengths_tensor(self) -> Tensor:
        """The lengths as int64 [C]."""
        return torch.tensor(self.lengths, dtype=torch.int64)

    def quantize(self, values: Tensor) -> Tensor:
        """`values` [N, C, ...] as integers (int64); what lies outside the range becomes its end."""
        lengths = along_channels(self.lengths_tensor(), values.dim())
        return round_half_up(values.double() * exp2(lengths)).clamp(self.lowest, self.highest).long()

    def values_of(self, integers: Tensor) -> Tensor:
        """The numbers (float64) that integers [N, C, ...] stand for."""
        return integers.double() * exp2(-along_channels(self.lengths_tensor(), integers.dim()))


def lowest(bits: int, *, signed: bool) -> int:
    return -(1 << (bits - 1)) if signed else 0


def highest(bits: int, *, signed: bool) -> int:
    return (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1


def round_half_up(values: Tensor) -> Tensor:
    return torch.floor(values + 0.5)


def exp2(exponents: Tensor) -> Tensor:
    """Powers of two, exactly, in float64."""
    return torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), exponents)


def shift_right_rounding(integers: Tensor, shifts: Tensor) -> Tensor:
    """`integers / 2**shifts`, rounded half up; negative shifts go left. Shapes broadcast; int64 in, int64 out."""
    right, left = shifts.clamp(min=0), (-shifts).clamp(min=0)
    half = torch.where(right > 0, torch.ones_like(right) << (right - 1).clamp(min=0), torch.zeros_like(right))
    return ((integers << left) + half) >> right


def along_channels(per_channel: Tensor, dimensions: int) -> Tensor:
    """[C] as [1, C, 1, ...], to meet tensors of so many dimensions."""
    return per_channel.reshape(1, -1, *[1] * (dimensions - 2))
