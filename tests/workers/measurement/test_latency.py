"""Timing by turns, and what is made of the times."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from workers.measurement import latency
from workers.measurement.latency import FEWEST_TURNS, MOST_TURNS, WARM_UP_RUNS, alternate, speedup, summarise


def test_models_take_turns_of_two_runs_and_neither_always_goes_first() -> None:
    calls: list[str] = []
    first, second = alternate(lambda: calls.append("a"), lambda: calls.append("b"), seconds=0)
    assert len(first) == len(second) == FEWEST_TURNS == 7
    assert "".join(calls[2 * WARM_UP_RUNS :]) == "aabb" + 3 * "bbaaaabb"


def test_only_the_second_run_of_a_turn_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, runs = 0.0, 0
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: now, sleep=lambda _: None))

    def slow_after_another_model() -> None:
        nonlocal now, runs
        runs += 1
        is_first_of_turn = runs <= WARM_UP_RUNS or (runs - WARM_UP_RUNS) % 2 == 1
        now += 50.0 if is_first_of_turn else 0.25

    found, _ = alternate(slow_after_another_model, lambda: None, seconds=0)
    assert found == [250.0] * FEWEST_TURNS


def test_turns_end_at_their_greatest_number() -> None:
    first, _ = alternate(lambda: None, lambda: None, seconds=60)
    assert len(first) == MOST_TURNS


def test_each_turn_rests_first_where_that_is_asked_for() -> None:
    began = time.perf_counter()
    alternate(lambda: None, lambda: None, seconds=0, rest_seconds=0.01)
    assert time.perf_counter() - began >= 2 * FEWEST_TURNS * 0.01


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
