"""What a candidate is measured to be; what its file's own process would find is scripted here."""

from pathlib import Path

import numpy as np
import pytest

from jobs.recipe import QuantizeFixedPoint
from jobs.report import Latency
from jobs.request import Goal
from tests.workers.test_bench import bench_with
from workers.measurement.verify import Verified
from workers.search.measuring import Measuring


def verified(original_ms: float, delivered_ms: float, *, interrupted: float = 1.0) -> Verified:
    """The fastest runs took so long; the medians of the original's so many times as long."""

    def latency(ms: float, median_ms: float) -> Latency:
        return Latency(
            runtime="onnxruntime",
            device="cpu",
            threads=1,
            batch_size=1,
            runs=9,
            median_ms=median_ms,
            p10_ms=ms,
            p90_ms=median_ms,
        )

    median_ms = original_ms * interrupted
    return Verified(
        outputs=np.zeros((1, 10), np.float32), max_abs_difference=0.0, agreement_percent=100.0,
        latency=latency(delivered_ms, delivered_ms), latency_original=latency(original_ms, median_ms),
        speedup=median_ms / delivered_ms, speedup_interval=None, original_error=None,
        executed=None, comparisons=(), comparison_errors=(),
    )  # fmt: skip


def test_latencies_compare_however_busy_the_machine_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine has slowed down, and interrupts the longer runs; the candidate is twice as fast.
    found = iter([verified(2.0, 2.0), verified(6.0, 3.0, interrupted=3.0)])
    monkeypatch.setattr("workers.search.measuring.verify_file", lambda *_, **__: next(found))
    bench = bench_with(tmp_path, labelled=True, selection=range(1000, 1200))
    goal = Goal(minimise="latency")
    measuring = Measuring(bench.job, goal, bench, tmp_path / "search", lambda _: None)
    assert measuring.original().latency_ms == 2.0
    step = QuantizeFixedPoint(kind="quantize_fixed_point", calibration_images=50)
    candidate = measuring.measured((step,), number=1, predicted_drop_pp=None)
    assert candidate.latency_ms == pytest.approx(1.0)
    assert candidate.bytes < measuring.original().bytes
