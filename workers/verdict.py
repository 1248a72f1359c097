"""The job in one sentence, whether its limits were kept, and what must be said plainly."""

from jobs.report import Accuracy, AccuracyChange, DeliveredFile, FileSize, Totals, Verdict
from jobs.request import Goal, Limits

# Speeds closer to each other than this are called equal: alternating runs on a shared machine don't tell them apart.
_NO_FASTER = 1.05


def judge(
    *,
    before: Accuracy | None,
    after: Accuracy | None,
    change: AccuracyChange | None,
    original: FileSize,
    original_format: str,
    delivered: DeliveredFile,
    limits: Limits,
    why_not_faster: str | None,
    goal: Goal | None = None,
    remark: str | None = None,
) -> Verdict:
    """The verdict on the file that the target runtime would run."""
    missed = [*_missed_limits(change, limits, goal), *_missed_constraints(delivered, goal)]
    parts = [
        _accuracy_part(before, after, change),
        _size_part(original, original_format, delivered),
        _speed_part(delivered, why_not_faster),
    ]
    sentence = "; ".join(part for part in parts if part)
    sentence = sentence[0].upper() + sentence[1:] + "."
    if remark:
        sentence += f" {remark}"
    if missed:
        sentence += " Missed: " + "; ".join(missed) + "."
    return Verdict(sentence=sentence, limits_kept=not missed, missed=tuple(missed))


def notes_on_zeros(before: Totals, after: Totals, original: FileSize, files: list[DeliveredFile]) -> list[str]:
    """What zeros are worth and what not, said plainly."""
    if after.nonzeros >= before.nonzeros:
        return []
    smallest = min(files, key=lambda file: file.size.bytes)
    return [
        f"Unstructured zeros don't speed up dense kernels: {after.effective_multiplications:,} of "
        f"{after.multiplications:,} multiplications are by weights that are not zero, but all of them are done.",
        f"The zeros pay in bytes: {smallest.name} has {smallest.size.bytes:,} bytes on disk, the uploaded file "
        f"{original.bytes:,}. The parameters alone take {after.dense_bytes:,} bytes dense, {after.bitmap_bytes:,} as a bitmap "
        f"with the nonzero values, {after.csr_bytes:,} as compressed sparse rows.",
    ]


def megabytes(size: int) -> str:
    """Bytes as a reader wants them: 1.09 MB."""
    if size < 1_000_000:
        return f"{size / 1000:.1f} kB"
    return f"{size / 1_000_000:.2f} MB"


def signed(points: float) -> str:
    """With a sign that reads as one: −0.66."""
    return f"{points:+.2f}".replace("-", "−")


def _accuracy_part(before: Accuracy | None, after: Accuracy | None, change: AccuracyChange | None) -> str:
    if before is None or after is None or change is None:
        return ""
    low, high = (signed(limit) for limit in change.interval_pp)
    images = f"{after.images:,} {after.role} images"
    span = f"95 % interval {low} to {high}"
    if after.measure == "agreement":
        return f"agreement with the uploaded model {after.percent:.2f} % ({signed(change.change_pp)} pp, {span}, on {images})"
    return (
        f"accuracy {before.percent:.2f} % → {after.percent:.2f} % ({signed(change.change_pp)} pp, {span}, on {images})"
    )


def _size_part(original: FileSize, original_format: str, delivered: DeliveredFile) -> str:
    before, after = megabytes(original.bytes), megabytes(delivered.size.bytes)
    if original_format == delivered.format:
        return f"file {before} → {after} ({delivered.format})"
    return f"file {before} ({original_format}) → {after} ({delivered.format})"


def _speed_part(delivered: DeliveredFile, why_not_faster: str | None) -> str:
    if delivered.speedup is None or delivered.latency is None:
        return ""
    threads = f"{delivered.latency.threads} thread{'s' if delivered.latency.threads > 1 else ''}"
    speed = f"{delivered.speedup:.2f}× the speed ({delivered.latency.runtime}, {threads}, batch {delivered.latency.batch_size})"
    if delivered.speedup < _NO_FASTER and why_not_faster:
        speed += f": {why_not_faster}"
    return speed


def _missed_constraints(delivered: DeliveredFile, goal: Goal | None) -> list[str]:
    if goal is None:
        return []
    missed, wanted = [], goal.constraints
    size = delivered.size.bytes
    if wanted.max_bytes is not None and size > wanted.max_bytes:
        missed.append(
            f"the file has {size:,} bytes, which is {size - wanted.max_bytes:,} more than {wanted.max_bytes:,}"
        )
    latency = delivered.latency
    if wanted.max_latency_ms is not None and latency is not None and latency.median_ms > wanted.max_latency_ms:
        missed.append(
            f"one inference takes {latency.median_ms:.3f} ms, which is {latency.median_ms - wanted.max_latency_ms:.3f} ms more "
            f"than {wanted.max_latency_ms:g} ms"
        )
    return missed


def _missed_limits(change: AccuracyChange | None, limits: Limits, goal: Goal | None) -> list[str]:
    given = [limits.max_accuracy_drop_pp, goal.max_accuracy_drop_pp if goal else None]
    allowed = min((each for each in given if each is not None), default=None)
    if change is None or allowed is None or -change.change_pp <= allowed:
        return []
    return [
        f"accuracy fell by {-change.change_pp:.2f} pp, which is {-change.change_pp - allowed:.2f} pp more than the limit of "
        f"{allowed:.2f} pp"
    ]
