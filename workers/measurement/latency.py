"""Wall time of one inference, of two models by turns, so that a busy machine treats both alike."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from jobs.report import Latency

WARM_UP_RUNS = 3
FEWEST_TURNS = 7
MOST_TURNS = 300
# Threads of a runtime go on looking for work for some milliseconds after a run, which would slow the other runtime down.
REST_SECONDS = 0.02


def alternate(
    first: Callable[[], object], second: Callable[[], object], *, seconds: float, rest_seconds: float = 0.0
) -> tuple[list[float], list[float]]:
    """Milliseconds of a run of `first` and of `second` in each turn; they take turns for about `seconds`.

    A turn is two runs, of which the second counts: it finds the caches, and the model's threads, as they are where one run follows
    the other. Models with threads of their own want a rest (`REST_SECONDS`) before each turn, until the other's are asleep.
    """
    for _ in range(WARM_UP_RUNS):
        first()
        second()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < FEWEST_TURNS or (len(times[0]) < MOST_TURNS and time.perf_counter() < end):
        # Who goes first changes with each round.
        pair = [(first, times[0]), (second, times[1])]
        for run, kept in pair if len(times[0]) % 2 == 0 else reversed(pair):
            time.sleep(rest_seconds)
            run()
            start = time.perf_counter()
            run()
            kept.append((time.perf_counter() - start) * 1000)
    return times


def summarise(milliseconds: Sequence[float], *, runtime: str, threads: int, batch_size: int, device: str) -> Latency:
    """Median and spread of these runs."""
    p10, median, p90 = np.percentile(milliseconds, [10, 50, 90])
    return Latency(
        runtime=runtime,
        device=device,
        threads=threads,
        batch_size=batch_size,
        runs=len(milliseconds),
        median_ms=float(median),
        p10_ms=float(p10),
        p90_ms=float(p90),
    )


def speedup(original: Sequence[float], delivered: Sequence[float], *, seed: int) -> tuple[float, tuple[float, float]]:
    """Ratio of the medians, original over delivered, with its 95 % bootstrap interval over rounds."""
    first, second = np.asarray(original), np.asarray(delivered)
    rounds = np.random.default_rng(seed).integers(0, len(first), (2000, len(first)))
    ratios = np.median(first[rounds], axis=1) / np.median(second[rounds], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(np.median(first) / np.median(second)), (float(low), float(high))
