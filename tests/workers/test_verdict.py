"""The job in one sentence."""

from typing import Any

import pytest

from jobs.report import Accuracy, AccuracyChange, DeliveredFile, FileSize, Latency, Totals
from jobs.request import Limits
from workers.verdict import judge, megabytes, notes_on_zeros, signed

NOT_FASTER = "unstructured zeros do not speed up dense kernels"


def accuracy(percent: float, measure: Any = "top1") -> Accuracy:
    return Accuracy(measure=measure, role="test", images=5000, correct=round(50 * percent), percent=percent)


def delivered(speedup: float | None = 1.0, size: int = 550_000) -> DeliveredFile:
    latency = Latency(
        runtime="onnxruntime", device="cpu", threads=1, batch_size=1, runs=100, median_ms=1.0, p10_ms=0.9, p90_ms=1.1
    )
    return DeliveredFile(
        name="model.onnx",
        format="onnx",
        sha256="0" * 64,
        size=FileSize(bytes=size, deflated_bytes=size),
        accuracy=accuracy(90.84),
        change=None,
        max_abs_difference=0.0,
        agreement_percent=100.0,
        latency=latency,
        latency_original=latency,
        speedup=speedup,
    )


def change(pp: float) -> AccuracyChange:
    return AccuracyChange(change_pp=pp, interval_pp=(pp - 0.36, pp + 0.36), lost=40, gained=7, p_value=0.001)


def sentence(**options: Any) -> str:
    values: dict[str, Any] = {
        "before": accuracy(91.5),
        "after": accuracy(90.84),
        "change": change(-0.66),
        "original": FileSize(bytes=1_090_000, deflated_bytes=1_000_000),
        "original_format": "onnx",
        "delivered": delivered(),
        "limits": Limits(),
        "why_not_faster": NOT_FASTER,
    }
    return judge(**(values | options)).sentence


def test_sentence_says_accuracy_bytes_and_speed() -> None:
    assert sentence() == (
        "Accuracy 91.50 % → 90.84 % (−0.66 pp, 95 % interval −1.02 to −0.30, on 5,000 test images); "
        "file 1.09 MB → 550.0 kB (onnx); 1.00× the speed (onnxruntime, 1 thread, batch 1): "
        "unstructured zeros do not speed up dense kernels."
    )


def test_a_faster_file_needs_no_excuse() -> None:
    assert sentence(delivered=delivered(speedup=1.8)).endswith("1.80× the speed (onnxruntime, 1 thread, batch 1).")


def test_formats_are_named_where_they_differ() -> None:
    assert "; file 1.09 MB (pt2) → 550.0 kB (onnx); " in sentence(original_format="pt2")


def test_without_labels_the_sentence_speaks_of_agreement() -> None:
    found = sentence(before=accuracy(100, "agreement"), after=accuracy(98.2, "agreement"), change=change(-1.8))
    assert found.startswith(
        "Agreement with the uploaded model 98.20 % (−1.80 pp, 95 % interval −2.16 to −1.44, on 5,000"
    )


@pytest.mark.parametrize(("allowed", "kept"), [(None, True), (0.66, True), (1.0, True), (0.5, False)])
def test_limits_are_kept_or_missed_by_what_was_measured(allowed: float | None, kept: bool) -> None:
    verdict = judge(
        before=accuracy(91.5),
        after=accuracy(90.84),
        change=change(-0.66),
        original=FileSize(bytes=1, deflated_bytes=1),
        original_format="onnx",
        delivered=delivered(),
        limits=Limits(max_accuracy_drop_pp=allowed),
        why_not_faster=None,
    )
    assert verdict.limits_kept is kept
    missed = ["accuracy fell by 0.66 pp, which is 0.16 pp more than the limit of 0.50 pp"]
    assert list(verdict.missed) == ([] if kept else missed)
    assert all(text in verdict.sentence for text in verdict.missed)


def totals(nonzeros: int) -> Totals:
    return Totals(
        parameters=1000,
        nonzeros=nonzeros,
        weight_bits=32_000,
        multiplications=5000,
        effective_multiplications=5 * nonzeros,
        dense_bytes=4000,
        bitmap_bytes=125 + 4 * nonzeros,
        csr_bytes=6 * nonzeros,
    )


def test_zeros_are_not_sold_as_speed() -> None:
    original = FileSize(bytes=4100, deflated_bytes=4000)
    speed, size = notes_on_zeros(totals(1000), totals(400), original, [delivered(size=1900)])
    assert "2,000 of 5,000 multiplications" in speed
    assert "all of them are done" in speed
    assert "1,900 bytes on disk, the uploaded file 4,100" in size
    assert "4,000 bytes dense, 1,725 as a bitmap with the nonzero values, 2,400 as compressed sparse rows" in size
    assert notes_on_zeros(totals(1000), totals(1000), original, [delivered()]) == []


def test_numbers_read_well() -> None:
    assert (megabytes(999_949), megabytes(1_090_000), megabytes(0)) == ("999.9 kB", "1.09 MB", "0.0 kB")
    assert (signed(-0.664), signed(0.5), signed(0)) == ("−0.66", "+0.50", "+0.00")
