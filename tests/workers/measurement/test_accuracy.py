"""Accuracy and its change, against published values and the definitions."""

import numpy as np
import pytest
from scipy.stats import binomtest

from workers.measurement.accuracy import (
    accuracy,
    accuracy_change,
    least_change_pp,
    mcnemar_p_value,
    paired_interval,
    tango_score,
)


def test_accuracy_counts() -> None:
    found = accuracy(np.array([True, True, False, True]), measure="top1", role="test")
    assert (found.images, found.correct, found.percent) == (4, 3, 75.0)


def test_change_comes_from_the_images_that_flipped() -> None:
    before = np.array([1, 1, 1, 0, 0, 1, 1, 0], bool)
    after = np.array([1, 0, 0, 1, 0, 1, 0, 0], bool)
    change = accuracy_change(before, after)
    assert (change.lost, change.gained, change.change_pp) == (3, 1, -25.0)
    assert change.interval_pp[0] < -25.0 < change.interval_pp[1]
    assert change.p_value == pytest.approx(0.625)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (7, 1), (150, 86), (3, 3), (0, 9), (2500, 2400)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar_p_value(lost, gained) == pytest.approx(expected, rel=1e-9)


def test_interval_is_tangos_published_one() -> None:
    # Airway hyper-responsiveness of 21 children before and after transplantation: 7 and 1 discordant (Fagerland,
    # Lydersen and Laake, Statistics in Medicine 33, 2014): -0.517 to -0.026.
    low, high = paired_interval(7, 1, 21)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize(("lost", "gained", "images"), [(0, 0, 30), (12, 2, 50), (0, 5, 5000), (300, 280, 5000)])
def test_interval_ends_where_the_score_reaches_its_quantile(lost: int, gained: int, images: int) -> None:
    low, high = paired_interval(lost, gained, images)
    assert low < (gained - lost) / images < high or lost == gained == 0
    assert tango_score(lost, gained, images, low) == pytest.approx(1.95996, abs=1e-4)
    assert tango_score(lost, gained, images, high) == pytest.approx(-1.95996, abs=1e-4)
    assert paired_interval(gained, lost, images) == pytest.approx((-high, -low), abs=1e-9)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    images, p_lost, p_gained = 400, 0.03, 0.01
    draws = generator.multinomial(images, [p_lost, p_gained, 1 - p_lost - p_gained], 1500)
    covered = 0
    for lost, gained, _ in draws:
        low, high = paired_interval(int(lost), int(gained), images)
        covered += low <= p_gained - p_lost <= high
    assert 0.93 < covered / 1500 < 0.97


def test_least_change_is_one_end_of_the_interval_at_its_confidence() -> None:
    before, after = np.zeros(500, bool), np.zeros(500, bool)
    before[:30] = True
    after[20:25] = after[30:34] = True  # 25 lost, 4 gained
    change = accuracy_change(before, after)
    assert least_change_pp(before, after, 0.975) == pytest.approx(change.interval_pp[0])
    assert least_change_pp(before, after, 0.5) == pytest.approx(change.change_pp)
    assert change.interval_pp[0] < least_change_pp(before, after, 0.8) < change.change_pp


def test_least_change_is_kept_about_as_often_as_it_says() -> None:
    numbers = np.random.default_rng(0)
    lost, gained, images = 0.03, 0.01, 1000  # so the truth is -2 points
    kept = []
    for _ in range(400):
        drawn = numbers.random(images)
        before, after = drawn >= gained, drawn < 1 - lost
        before &= after | (drawn >= 1 - lost)
        kept.append(least_change_pp(before, after, 0.8) <= -2.0)
    assert 0.75 < np.mean(kept) < 0.87
