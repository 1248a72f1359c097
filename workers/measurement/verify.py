"""Reload a delivered file in a fresh process, by the runtime that a user would use, and hold it against the network in memory.

Tolerances of the outputs, relative to the largest of them (and at least to 1): runtimes add up in other orders and fold batch
normalisation, which moves the last bits. Single precision keeps about seven digits, of which a deep network loses three; half
precision keeps three, of which it loses one. A wrong layer is far beyond either.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from jobs.errors import VerificationFailed
from jobs.report import Comparison, ExecutedOperations, Latency
from workers.measurement.latency import speedup, summarise

RELATIVE_TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 3e-2}
# Images whose class may differ, because two scores are closer to each other than the tolerance.
LEAST_AGREEMENT_PERCENT = 99.5

LOOK_SECONDS = 0.5  # between looks at whether a process is still wanted; seldom enough not to disturb what it times

RUNTIMES: dict[str, str] = {"onnx": "onnxruntime", "pt2": "torch"}

Scores = npt.NDArray[np.floating]  # (n, classes), or whatever the first output is


@dataclass(frozen=True)
class Verified:
    """What the fresh process found."""

    outputs: Scores
    max_abs_difference: float
    agreement_percent: float
    latency: Latency | None
    latency_original: Latency | None
    speedup: float | None
    speedup_interval: tuple[float, float] | None
    original_error: str | None  # why the original file could not be timed
    executed: ExecutedOperations | None  # by Winograd convolutions; None where no operator counts them
    comparisons: tuple[Comparison, ...]
    comparison_errors: tuple[str, ...]  # why an original is not among the comparisons


@dataclass(frozen=True)
class Original:
    """The uploaded model as a file, to compare with on so many threads."""

    path: Path
    file_format: Literal["onnx", "pt2"]
    threads: int


@dataclass(frozen=True)
class Conditions:
    """How the file is run and timed."""

    threads: int
    batch_size: int  # for the outputs
    latency_batch_size: int
    latency_seconds: float
    device: str
    seed: int


def verify_file(
    path: Path,
    file_format: Literal["onnx", "pt2"],
    *,
    inputs: Path,
    expected: Scores,
    original: Path | None,
    conditions: Conditions,
    scratch: Path,
    gemms: int | None = None,
    tolerance: float | None = None,
    compared_with: Sequence[Original] = (),
    while_waiting: Callable[[], None] | None = None,
) -> Verified:
    """Run the file at `path` on `inputs` (an .npy file) and compare its first output with `expected`.

    `original` is a file of the same format to time it against, by turns; so are those of `compared_with`, of any format. A
    .pt2 file must take exactly `gemms` matrix multiplications in Winograd convolutions, if given. `tolerance` of the
    outputs is relative to the largest of them, by default that of their precision; classes must agree with any.
    `while_waiting` is called now and then, and ends the process by any exception. Raises `VerificationFailed`.
    """
    outputs_path = scratch / f"verified.{file_format}.npy"
    answer = _run_process(
        {
            "parent": os.getpid(),
            "format": file_format,
            "delivered": str(path),
            "original": None if original is None else str(original),
            "inputs": str(inputs),
            "outputs": str(outputs_path),
            "threads": conditions.threads,
            "batch_size": conditions.batch_size,
            "latency_batch_size": conditions.latency_batch_size,
            "latency_seconds": conditions.latency_seconds,
            "comparisons": [
                {"original": str(other.path), "format": other.file_format, "threads": other.threads}
                for other in compared_with
            ],
        },
        path,
        scratch,
        while_waiting,
    )
    outputs = np.load(outputs_path, allow_pickle=False)
    outputs_path.unlink()
    difference, agreement = compare_outputs(outputs, expected, name=path.name, tolerance=tolerance)
    executed = None if answer["executed"] is None else ExecutedOperations.model_validate(answer["executed"])
    if gemms is not None:
        _check_gemms(0 if executed is None else executed.gemms, gemms, name=path.name)
    timed = answer["original_ms"]

    def latency(milliseconds: list[float], runtime: str) -> Latency | None:
        if not milliseconds:
            return None
        return summarise(
            milliseconds,
            runtime=runtime,
            threads=conditions.threads,
            batch_size=conditions.latency_batch_size,
            device=conditions.device,
        )

    ratio, interval = speedup(timed, answer["delivered_ms"], seed=conditions.seed) if timed else (None, None)
    return Verified(
        outputs=outputs,
        max_abs_difference=difference,
        agreement_percent=agreement,
        latency=latency(answer["delivered_ms"], answer["runtime"]),
        latency_original=latency(timed, RUNTIMES[file_format]),
        speedup=ratio,
        speedup_interval=interval,
        original_error=answer["original_error"],
        executed=executed,
        comparisons=tuple(
            _comparison(other, times, answer["runtime"], conditions)
            for other, times in zip(compared_with, answer["comparisons"], strict=True)
            if "error" not in times
        ),
        comparison_errors=tuple(times["error"] for times in answer["comparisons"] if "error" in times),
    )


def _comparison(
    other: Original, times: dict[str, list[float]], delivered_runtime: str, conditions: Conditions
) -> Comparison:
    ratio, interval = speedup(times["original_ms"], times["delivered_ms"], seed=conditions.seed)
    return Comparison(
        runtime=RUNTIMES[other.file_format],
        delivered_runtime=delivered_runtime,
        threads=other.threads,
        batch_size=conditions.latency_batch_size,
        rounds=len(times["original_ms"]),
        delivered_ms=float(np.median(times["delivered_ms"])),
        original_ms=float(np.median(times["original_ms"])),
        speedup=ratio,
        speedup_interval=interval,
    )


def compare_outputs(
    outputs: Scores, expected: Scores, *, name: str, tolerance: float | None = None
) -> tuple[float, float]:
    """Largest difference and agreement of the classes in percent, or `VerificationFailed` if they are not the same network's.

    `tolerance` is relative to the largest output; by default that of the outputs' precision.
    """
    if outputs.shape != expected.shape or outputs.dtype != expected.dtype:
        raise VerificationFailed(
            f"{name} gives {outputs.dtype} {outputs.shape} where the network in memory gives "
            f"{expected.dtype} {expected.shape}.",
            file=name,
        )
    if not np.isfinite(outputs).all():
        raise VerificationFailed(f"{name} gives values that are not finite.", file=name)
    difference = float(np.abs(outputs.astype(np.float64) - expected.astype(np.float64)).max())
    relative = RELATIVE_TOLERANCE[expected.dtype.name] if tolerance is None else tolerance
    allowed = relative * max(1.0, float(np.abs(expected).max()))
    agreement = 100 * float(np.mean(classes(outputs) == classes(expected)))
    if difference > allowed:
        raise VerificationFailed(
            f"{name} differs from the network in memory by up to {difference:.3g} (allowed: {allowed:.3g}); "
            f"{agreement:.2f} % of the images get the same class.",
            file=name,
        )
    if agreement < LEAST_AGREEMENT_PERCENT:
        raise VerificationFailed(
            f"{name} gives only {agreement:.2f} % of the images the class that the network in memory gives "
            f"(needed: {LEAST_AGREEMENT_PERCENT} %).",
            file=name,
        )
    return difference, agreement


def _check_gemms(executed: int, expected: int, *, name: str) -> None:
    """A pruned position that is multiplied all the same, or a kept one that isn't, is not what was promised (W-8)."""
    if executed != expected:
        raise VerificationFailed(
            f"{name} takes {executed} matrix multiplications in its Winograd convolutions, where the kept positions make "
            f"{expected}.",
            file=name,
        )


def classes(scores: Scores | npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """The class with the highest score, for each image."""
    return np.asarray(scores.reshape(len(scores), -1).argmax(axis=1), np.int64)


def _run_process(
    arguments: dict[str, object], path: Path, scratch: Path, while_waiting: Callable[[], None] | None
) -> dict[str, Any]:
    arguments_path, answer_path = scratch / "verify.arguments.json", scratch / "verify.answer.json"
    arguments_path.write_text(json.dumps(arguments))
    answer_path.unlink(missing_ok=True)
    with subprocess.Popen(
        [sys.executable, "-m", "workers.measurement.verify_process", str(arguments_path), str(answer_path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # the runner's standard output carries progress
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "OMP_NUM_THREADS": str(arguments["threads"])},
    ) as process:
        said = _said_until_ended(process, while_waiting)
    if process.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL):
        raise MemoryError(f"the process that verified {path.name} was killed, most likely for want of memory")
    if process.returncode != 0 or not answer_path.exists():
        last = (said.strip().splitlines() or ["no message"])[-1]
        raise VerificationFailed(f"{path.name} crashed the process that ran it: {last[:500]}", file=path.name)
    answer: dict[str, Any] = json.loads(answer_path.read_text())
    if "error" in answer:
        raise VerificationFailed(f"{path.name} can't be run: {answer['error']}", file=path.name)
    return answer


def _said_until_ended(process: subprocess.Popen[str], while_waiting: Callable[[], None] | None) -> str:
    """What the process has written on its standard error by its end."""
    try:
        while True:
            try:
                return process.communicate(timeout=None if while_waiting is None else LOOK_SECONDS)[1]
            except subprocess.TimeoutExpired:
                if while_waiting is not None:
                    while_waiting()
    except BaseException:
        process.kill()  # it would go on for nobody
        raise
