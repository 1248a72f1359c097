"""Runs one assignment in a job folder, without any server: `python -m workers.runner FOLDER`.

Reads FOLDER/request.json, tells its progress as one JSON object a line on standard output, logs on standard error, and writes
FOLDER/result.json last and atomically. A search ends early, with the best that it has found, once there is a file FOLDER/finish.

Exit status: 0 whenever result.json was written, also if it holds an error; 143 when stopped by SIGTERM; anything else is a crash.

`WINNOW_THREADS` sets how many threads compression computes with (default: all processors). Latency is measured with those of the
request's `target`.
"""

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from jobs.errors import ErrorCode, JobError, Refusal
from jobs.folder import (
    MAX_PROGRESS_LINE_BYTES,
    Compress,
    InspectDataset,
    InspectModel,
    Outcome,
    Progress,
    Request,
    write_atomically,
)

SHORTEST_PAUSE_SECONDS = 0.2  # between two lines of progress; events are never held back
STOPPED = 128 + signal.SIGTERM
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def main() -> None:
    signal.signal(signal.SIGTERM, _stop)
    if len(sys.argv) != 2:
        sys.exit("usage: python -m workers.runner FOLDER")
    run_folder(Path(sys.argv[1]), report_progress=_ProgressLines().report)


def run_folder(folder: Path, *, report_progress: Callable[[Progress], None]) -> Outcome:
    """Do what FOLDER/request.json asks, and write how it ended to FOLDER/result.json."""
    request = Request.model_validate_json((folder / "request.json").read_bytes())
    try:
        outcome = _run(request, folder, report_progress)
    except Exception as error:  # every end of a job but a crash is a result
        if not isinstance(error, Refusal):
            traceback.print_exc(file=sys.stderr)
        outcome = Outcome(error=job_error(error))
    write_atomically(folder / "result.json", outcome.model_dump_json(indent=1))
    return outcome


def job_error(error: Exception) -> JobError:
    """What the user is told of an exception; the log has the rest."""
    if isinstance(error, Refusal):
        return error.as_job_error()
    # torch raises its own class, and says so only in words, when an allocation fails.
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return JobError(
            code=ErrorCode.OUT_OF_MEMORY,
            message="The job needed more memory than a runner may use.",
            hint="Give fewer images, or lower cache_mib in the recipe.",
        )
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return JobError(
            code=ErrorCode.DISK_FULL, message="The worker's disk is full.", hint="Try again later.", retryable=True
        )
    return JobError(
        code=ErrorCode.INTERNAL,
        message=f"The runner failed unexpectedly ({type(error).__name__}).",
        hint="The worker's log has the details.",
    )


def _run(request: Request, folder: Path, report_progress: Callable[[Progress], None]) -> Outcome:
    # Imported when needed: to inspect a dataset takes no torch, and importing that takes seconds.
    match request.assignment:
        case InspectDataset() as task:
            from workers.datasets.inspect_dataset import inspect_dataset

            work = folder / "work"
            work.mkdir(exist_ok=True)
            return Outcome(dataset=inspect_dataset(folder / task.file.path, scratch=work))
        case InspectModel() as task:
            _prepare_torch()
            from workers.models.inspect_model import inspect_model

            return Outcome(model=inspect_model(folder / task.file.path))
        case Compress() as job:
            _prepare_torch(job.seed)
            from workers.pipeline import run_job

            return run_job(job, folder, report_progress)


def _prepare_torch(seed: int = 0) -> None:
    """The same request gives the same bytes: fixed seed, fixed number of threads, deterministic kernels."""
    import torch

    torch.set_num_threads(int(os.environ.get("WINNOW_THREADS") or len(os.sched_getaffinity(0))))
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


class _ProgressLines:
    """Writes progress to standard output, and not more of it than anyone can read."""

    def __init__(self) -> None:
        self._last = -SHORTEST_PAUSE_SECONDS

    def report(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.type == "progress" and now - self._last < SHORTEST_PAUSE_SECONDS:
            return
        self._last = now
        line = progress.model_dump_json(exclude_none=True)
        if len(line.encode()) >= MAX_PROGRESS_LINE_BYTES:
            line = progress.model_copy(update={"data": {}}).model_dump_json(exclude_none=True)
        print(line, flush=True)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    # At once, in the midst of whatever runs: nothing is left half done that a later attempt would take for whole.
    os._exit(STOPPED)


if __name__ == "__main__":
    main()
