"""A report with a number of its own in every place that the command line shows."""

from jobs.report import (
    Accuracy,
    AccuracyChange,
    DataReport,
    DeliveredFile,
    FileSize,
    Latency,
    Provenance,
    Report,
    StepReport,
    Totals,
    Verdict,
)


def sample_report(*, limits_kept: bool = True) -> Report:
    before, after = _accuracy(396), _accuracy(392)
    change = AccuracyChange(change_pp=-1.0, interval_pp=(-2.25, 0.25), lost=6, gained=2, p_value=0.29)
    missed = () if limits_kept else ("the accuracy fell by 1.00 pp, 0.50 pp more than allowed",)
    return Report(
        verdict=Verdict(sentence="The file is 2.5 times smaller.", limits_kept=limits_kept, missed=missed),
        measure="top1",
        accuracy_before=before,
        accuracy_after=after,
        change=change,
        before=_totals(nonzeros=9_000, effective=500_000),
        after=_totals(nonzeros=3_600, effective=123_456),
        original_size=FileSize(bytes=50_000, deflated_bytes=46_000),
        files=(
            DeliveredFile(
                name="model.onnx",
                format="onnx",
                sha256="0" * 64,
                size=FileSize(bytes=20_000, deflated_bytes=18_000),
                accuracy=after,
                change=change,
                max_abs_difference=1e-6,
                agreement_percent=99.75,
                latency=_latency(0.111),
                latency_original=_latency(0.122),
                speedup=1.1,
                notes=("Zeros don't speed dense kernels up.",),
            ),
        ),
        steps=(
            StepReport(
                kind="prune_weights",
                seconds=12.3,
                accuracy_before=before,
                accuracy_after=after,
                predicted_change_pp=-0.75,
                measured_change_pp=-1.0,
                details={},
            ),
        ),
        layers=(),
        data=(
            DataReport(
                role="test", sha256=None, images=400, class_counts={}, origin="all", warnings=("Class 3 is rare.",)
            ),
        ),
        provenance=Provenance(
            input_sha256="0" * 64,
            seed=0,
            recipe=[],
            versions={},
            device="a CPU",
            threads=1,
            sandbox={},
            wall_seconds={},
            cpu_seconds=1.0,
        ),
    )


def _accuracy(correct: int) -> Accuracy:
    return Accuracy(measure="top1", role="test", images=400, correct=correct, percent=correct / 4)


def _totals(*, nonzeros: int, effective: int) -> Totals:
    return Totals(
        parameters=9_000,
        nonzeros=nonzeros,
        weight_bits=32,
        multiplications=500_000,
        effective_multiplications=effective,
        dense_bytes=36_000,
        bitmap_bytes=15_525,
        csr_bytes=28_900,
    )


def _latency(median: float) -> Latency:
    return Latency(
        runtime="onnxruntime", device="a CPU", threads=1, batch_size=1, runs=100, median_ms=median, p10_ms=0.1, p90_ms=0.2
    )  # fmt: skip
