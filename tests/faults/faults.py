"""What can happen to a stack while a job runs, each as one function; `benchmarks/faults.py` does them many times."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from tests.faults.installation import Action
from tests.faults.running_stack import RunningStack

Fault = Callable[[RunningStack, str], None]

TICKING: tuple[Action, ...] = (("tick", {"count": 20, "seconds": 1.0}), ("succeed", {"model.onnx": "small"}))
DELIVERED = {"model.onnx": "small"}


def kill_runner(stack: RunningStack, job_id: str) -> None:
    stack.runner_of(job_id).kill()


def kill_worker(stack: RunningStack, job_id: str) -> None:
    """The supervisor's process; its runner must end with it."""
    _kill_and_wait(stack.worker_of(job_id))
    stack.wait_for(lambda: not stack.runners(), seconds=2)


def kill_redis(stack: RunningStack, _job_id: str) -> None:
    _kill_and_wait(stack.redis())


def kill_service(stack: RunningStack, _job_id: str) -> None:
    _kill_and_wait(stack.service())


def freeze_worker(stack: RunningStack, job_id: str) -> None:
    """Until another worker has the job; then it thaws, believing that the job is its own."""
    worker = stack.worker_of(job_id)
    zombies = worker.children(recursive=True)
    worker.send_signal(signal.SIGSTOP)
    try:
        stack.wait_for(lambda: stack.installation.job(job_id).attempt == 2)
    finally:
        with suppress(psutil.NoSuchProcess):
            worker.send_signal(signal.SIGCONT)
    assert psutil.wait_procs(zombies, timeout=5)[1] == []


FAULTS: dict[str, Fault] = {
    "kill runner": kill_runner,
    "kill worker": kill_worker,
    "kill Redis": kill_redis,
    "kill API": kill_service,
    "freeze worker": freeze_worker,
}
COSTS_AN_ATTEMPT = {"kill runner", "kill worker", "freeze worker"}


def is_whole(stack: RunningStack, *, workers: int) -> bool:
    """All processes are there and the API finds nothing amiss."""
    return stack.is_ready() and len(stack.workers()) == workers


def recovery_seconds(stack: RunningStack, job_id: str, name: str, *, workers: int) -> float:
    """Let it happen to the job's stack; the time until the job goes on, in a new attempt if need be, and the stack is whole."""
    stack.wait_for_ticks(job_id)
    last = stack.installation.job(job_id).last_event
    began = time.monotonic()
    FAULTS[name](stack, job_id)
    if name in COSTS_AN_ATTEMPT:
        stack.wait_for(lambda: _start_of_attempt(stack, job_id, 2) is not None)
        last = _start_of_attempt(stack, job_id, 2) or 0
    stack.wait_for_ticks(job_id, after=last)
    stack.wait_for(lambda: is_whole(stack, workers=workers))
    return time.monotonic() - began


def _start_of_attempt(stack: RunningStack, job_id: str, attempt: int) -> int | None:
    """The number of the event that tells of it."""
    starts = [event.seq for event in stack.installation.events(job_id) if event.data.get("attempt") == attempt]
    return starts[0] if starts else None


def _kill_and_wait(process: psutil.Process) -> None:
    process.kill()
    with suppress(psutil.NoSuchProcess):
        process.wait(timeout=10)
