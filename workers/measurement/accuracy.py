"""Accuracy with counts, and the change between two networks on the same images with what is certain of it.

The interval of the change is Tango's score interval for paired proportions (Statistics in Medicine 17, 1998): it holds its
level also where few images flip, and has a width where none does. The p-value is McNemar's, exact.
"""

import math
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from jobs.report import Accuracy, AccuracyChange

Right = npt.NDArray[np.bool_]  # one entry an image: was the answer right?

_Z_95 = 1.959963984540054


def accuracy(right: Right, *, measure: Literal["top1", "agreement"], role: Literal["selection", "test"]) -> Accuracy:
    """The part of the images that were answered right."""
    correct = int(right.sum())
    return Accuracy(measure=measure, role=role, images=len(right), correct=correct, percent=100 * correct / len(right))


def accuracy_change(before: Right, after: Right) -> AccuracyChange:
    """After minus before, on the same images."""
    lost = int((before & ~after).sum())
    gained = int((~before & after).sum())
    low, high = paired_interval(lost, gained, len(before))
    return AccuracyChange(
        change_pp=100 * (gained - lost) / len(before),
        interval_pp=(100 * low, 100 * high),
        lost=lost,
        gained=gained,
        p_value=mcnemar_p_value(lost, gained),
    )


def least_change_pp(before: Right, after: Right, confidence: float) -> float:
    """The change of accuracy, in percentage points, that the true one isn't below with this confidence (Tango, one-sided).

    Where no answer flips, that is nearly zero; at 0.5 it is the change that was observed.
    """
    lost, gained, images = int((before & ~after).sum()), int((~before & after).sum()), len(before)
    estimate = (gained - lost) / images
    z = NormalDist().inv_cdf(confidence)
    if z <= 0:
        return 100 * estimate
    return 100 * _solve(lost, gained, images, z, low=-1.0, high=estimate)


def mcnemar_p_value(lost: int, gained: int) -> float:
    """Two-sided exact probability of so uneven flips if each were as likely lost as gained."""
    flips, fewer = lost + gained, min(lost, gained)
    # The terms of the binomial distribution by their logarithms: 2^-flips alone would underflow.
    halves = flips * math.log(2)
    log_flips = math.lgamma(flips + 1)
    tail = math.fsum(
        math.exp(log_flips - math.lgamma(k + 1) - math.lgamma(flips - k + 1) - halves) for k in range(fewer + 1)
    )
    return min(1.0, 2 * tail)


def paired_interval(lost: int, gained: int, images: int) -> tuple[float, float]:
    """Tango's 95 % interval of (gained - lost) / images."""
    estimate = (gained - lost) / images
    return (
        _solve(lost, gained, images, _Z_95, low=-1.0, high=estimate),
        _solve(lost, gained, images, -_Z_95, low=estimate, high=1.0),
    )


def tango_score(lost: int, gained: int, images: int, difference: float) -> float:
    """How many standard errors the observed difference lies above `difference`, were that the true one."""
    # The likeliest probability of a loss under the assumed difference: the greater root of 2n q^2 + b q + c = 0.
    b = -(gained + lost) + (2 * images - (gained - lost)) * difference
    c = -lost * difference * (1 - difference)
    q = (math.sqrt(max(0.0, b * b - 8 * images * c)) - b) / (4 * images)
    variance = images * (2 * q + difference * (1 - difference))
    distance = gained - lost - images * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _solve(lost: int, gained: int, images: int, z: float, *, low: float, high: float) -> float:
    """The difference at which the score is `z`; the score falls as the difference grows."""
    for _ in range(60):
        middle = (low + high) / 2
        if tango_score(lost, gained, images, middle) > z:
            low = middle
        else:
            high = middle
    return (low + high) / 2
