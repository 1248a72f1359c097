"""Timing by turns, and what is made of the times."""

import numpy as np
import pytest

from workers.measurement import latency
from workers.measurement.latency import (
    FEWEST_RUNS,
    FEWEST_TURNS,
    MOST_RUNS,
    WARM_UP_RUNS,
    alternate,
    alternate_at_rest,
    speedup,
    summarise,
)


def test_models_take_turns_and_neither_always_goes_first() -> None:
    calls: list[str] = []
    first, second = alternate(lambda: calls.append("a"), lambda: calls.append("b"), seconds=0)
    assert len(first) == len(second) == FEWEST_RUNS
    rounds = "".join(calls[2 * WARM_UP_RUNS :])
    assert rounds == "abba" * (FEWEST_RUNS // 2)


def test_runs_end_at_their_greatest_number() -> None:
    first, _ = alternate(lambda: None, lambda: None, seconds=60)
    assert len(first) == MOST_RUNS


def test_at_rest_a_run_that_is_not_counted_comes_before_each_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "REST_SECONDS", 0)
    calls: list[str] = []
    first, second = alternate_at_rest(lambda: calls.append("a"), lambda: calls.append("b"), seconds=0)
    assert len(first) == len(second) == FEWEST_TURNS
    assert "".join(calls[2:]) == "aabbbbaaaabbbbaaaabb"


def test_summary_is_median_and_spread() -> None:
    found = summarise([5.0, *range(1, 11)], runtime="torch", threads=2, batch_size=4, device="this")
    assert (found.runs, found.median_ms, found.p10_ms, found.p90_ms) == (11, 5.0, 2.0, 9.0)


def test_speedup_is_the_ratio_of_medians_with_an_interval_that_holds_it() -> None:
    generator = np.random.default_rng(0)
    original, delivered = generator.normal(2.0, 0.1, 200), generator.normal(1.0, 0.1, 200)
    ratio, (low, high) = speedup(original.tolist(), delivered.tolist(), seed=1)
    assert low < ratio < high
    assert ratio == pytest.approx(2.0, rel=0.05)
    assert high - low < 0.2
    assert speedup(original.tolist(), delivered.tolist(), seed=1) == (ratio, (low, high))
