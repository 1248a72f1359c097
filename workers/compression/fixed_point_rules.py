"""Fractional lengths from distributions: for each channel, the fixed-point expression that covers it statistically (F-3, F-13)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workers.compression.fixed_point_statistics import ChannelStatistics
from workers.fixed_point.coding import LONGEST, SHORTEST, exp2, highest, lowest, round_half_up

Rule = Literal["pdf_sqnr", "empirical_mse", "max_abs", "k_sigma"]
Pdf = Literal["auto", "gaussian", "logistic", "hypsecant", "laplace", "uniform", "supercauchy"]

# For values of unit root mean square and n = 2, 3, ... 17 bits (signed): the length of least mean square error is
# floor(bound - log2 of the root mean square). Up to n = 9 as METHODS appendix B has them; beyond, by the same integration.
BOUNDS: dict[str, tuple[float, ...]] = {
    "gaussian": (
        0.461, 1.205, 1.981, 2.778, 3.597, 4.438, 5.298, 6.175, 7.065, 7.966, 8.877, 9.796, 10.722, 11.654, 12.591, 13.532,
    ),
    "logistic": (
        0.401, 1.061, 1.759, 2.484, 3.235, 4.011, 4.809, 5.626, 6.460, 7.308, 8.169, 9.040, 9.920, 10.809, 11.705, 12.607,
    ),
    "hypsecant": (
        0.350, 0.989, 1.664, 2.372, 3.110, 3.876, 4.666, 5.477, 6.305, 7.149, 8.005, 8.873, 9.751, 10.637, 11.530, 12.430,
    ),
    "laplace": (
        0.244, 0.891, 1.567, 2.271, 3.004, 3.765, 4.550, 5.357, 6.183, 7.024, 7.878, 8.744, 9.620, 10.505, 11.397, 12.296,
    ),
    "uniform": (
        0.528, 1.505, 2.435, 3.362, 4.311, 5.277, 6.253, 7.237, 8.226, 9.220, 10.215, 11.212, 12.211, 13.209, 14.209, 15.208,
    ),
    "supercauchy": (
        0.469, 0.863, 1.215, 1.562, 1.904, 2.242, 2.577, 2.911, 3.245, 3.579, 3.912, 4.245, 4.579, 4.912, 5.245, 5.579,
    ),
}  # fmt: skip
KURTOSIS = {"uniform": 1.8, "gaussian": 3.0, "logistic": 4.2, "hypsecant": 5.0, "laplace": 6.0}
HEAVIEST = 8.0  # a kurtosis beyond this is the super-Cauchy's, which has none

FEWEST_VALUES = 1000  # fewer say little about a distribution: the largest is taken, and one bit as a guard
TRIED_LENGTHS = range(-1, 7)  # by empirical_mse, from the length at which the largest value just fits


@dataclass(frozen=True)
class Expression:
    """The fixed-point expressions of one tensor's channels to choose."""

    bits: int
    signed: bool
    rule: Rule = "empirical_mse"
    pdf: Pdf = "auto"
    k: float = 3.5

    def lengths(self, found: ChannelStatistics, errors: Tensor | None = None) -> Tensor:
        """The length of each channel, int64 [C]. `errors` [len(TRIED_LENGTHS), C] are what empirical_mse chooses by."""
        match self.rule:
            case "pdf_sqnr":
                lengths = self._best_for_distribution(found)
            case "max_abs":
                lengths = self.longest_for(found.max_abs)
            case "k_sigma":
                lengths = self.longest_for(found.mean.abs() + self.k * found.variance.sqrt())
            case "empirical_mse":
                assert errors is not None
                # The last of equals: a longer one leaves room for nothing, a shorter one for what wasn't seen.
                lengths = self.longest_for(found.max_abs) + torch.argmin(errors, dim=0) + TRIED_LENGTHS[0]
        return _filled_in(lengths, found.rms > 0)

    def longest_for(self, magnitude: Tensor) -> Tensor:
        """The longest lengths at which values of this magnitude fit (Ristretto's rule): int64."""
        whole_bits = torch.ceil(torch.log2(magnitude.clamp_min(1e-30))).long()
        return (self.bits - 1 if self.signed else self.bits) - whole_bits

    def errors(self, values: Tensor, found: ChannelStatistics) -> Tensor:
        """Sums of squared errors of values [N, C, ...] at each length of `TRIED_LENGTHS`, float64 [lengths, C]."""
        rows = values.double().transpose(0, 1).flatten(1)  # [C, n]
        start = self.longest_for(found.max_abs)
        sums = []
        for offset in TRIED_LENGTHS:
            scale = exp2(start + offset)[:, None]
            sums.append(self._quantized(rows, scale).sub_(rows).square_().sum(1))
        return torch.stack(sums)

    def with_guard(self, found: ChannelStatistics, lengths: Tensor) -> Tensor:
        """The lengths, or what fits the largest value and twice it where too few values were seen."""
        if found.count >= FEWEST_VALUES:
            return lengths
        return _filled_in(self.longest_for(found.max_abs) - 1, found.rms > 0)

    def _quantized(self, rows: Tensor, scale: Tensor) -> Tensor:
        integers = round_half_up(rows * scale)
        return integers.clamp_(lowest(self.bits, signed=self.signed), highest(self.bits, signed=self.signed)).div_(
            scale
        )

    def _best_for_distribution(self, found: ChannelStatistics) -> Tensor:
        # One-sided values are half of a distribution that is symmetric about zero, and have the sign's bit for themselves.
        bits = self.bits if self.signed else self.bits + 1
        rms = found.rms if self.signed else found.nonzero_rms
        bounds = torch.tensor([BOUNDS[name][bits - 2] for name in self.distributions(found)], dtype=torch.float64)
        return torch.floor(bounds - torch.log2(rms.clamp_min(1e-30))).long()

    def distributions(self, found: ChannelStatistics) -> list[str]:
        """Which distribution each channel is taken for."""
        if self.pdf != "auto":
            return [self.pdf] * found.channels
        return [_nearest(value) for value in (found.kurtosis if self.signed else found.spread).tolist()]


def _nearest(kurtosis: float) -> str:
    if kurtosis > HEAVIEST:
        return "supercauchy"
    return min(KURTOSIS, key=lambda name: abs(KURTOSIS[name] - kurtosis))


def _filled_in(lengths: Tensor, is_alive: Tensor) -> Tensor:
    """Lengths within bounds; a channel that is always zero gets the median of the others."""
    median = lengths[is_alive].median() if bool(is_alive.any()) else torch.tensor(0)
    return torch.where(is_alive, lengths, median).clamp(SHORTEST, LONGEST)
