"""A report with a number of its own in every place that the command line shows."""

from typing import Any

from jobs.report import (
    Accuracy,
    AccuracyChange,
    Candidate,
    DataReport,
    DeliveredFile,
    FileSize,
    Latency,
    Provenance,
    Report,
    SearchReport,
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
        search=sample_search(),
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


def sample_search(others: int = 2) -> SearchReport:
    """A search that delivered the last of its front, after as many `others` that were no good."""
    precise = {"kind": "quantize_fixed_point", "weight_bits": 8, "layer_bits": {}}
    coarse = {**precise, "layer_bits": {"conv": 4, "head": 4, "stem": 2}}
    pruned = {"kind": "prune_weights", "max_drop_pp": 0.5, "stop": {"target_sparsity": None}}
    failures = tuple(_candidate(number, [coarse], drop=9.5, meets_goal=False) for number in range(1, others + 1))
    front = (_candidate(others + 1, [precise], drop=0.25), _candidate(others + 2, [pruned, coarse], drop=0.75))
    return SearchReport(
        goal={"minimise": "bytes"},
        ended="deadline",
        seconds=61.2,
        original=_candidate(0, [], drop=0.0),
        candidates=(*failures, *front),
        front=(others + 1, others + 2),
        delivered=others + 2,
        abandoned=("prune_winograd: no layer has 3x3 filters.",),
    )


def _candidate(number: int, recipe: list[dict[str, Any]], *, drop: float, meets_goal: bool = True) -> Candidate:
    return Candidate(
        number=number,
        recipe=recipe,
        predicted_drop_pp=None,
        drop_pp=drop,
        drop_bound_pp=drop + 0.2,
        bytes=40_000 - 1_000 * number,
        latency_ms=0.321,
        operations=64_000_000,
        seconds=1.5,
        meets_goal=meets_goal,
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
