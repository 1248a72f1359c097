"""The life of a job.

    queued ──► running ──► succeeded
       ▲ │        ├──────► failed
       │ │        └──► cancelling ──► cancelled
       │ └───────────────────────────────▲
       └── (worker lost) ── running

A state changes only through `jobs.repository`, as one guarded update that writes an event in the same transaction.
"""

from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    # Back to queued when the worker was lost or drained.
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLING, JobState.QUEUED}),
    # A job that finished before it noticed the cancel request keeps its real end.
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

FINAL = frozenset(state for state, targets in TRANSITIONS.items() if not targets)


def sources(target: JobState) -> frozenset[JobState]:
    """The states from which a job may move to `target`."""
    return frozenset(state for state, targets in TRANSITIONS.items() if target in targets)


class UploadState(StrEnum):
    """The life of an uploaded model or dataset: `inspecting` until a worker has read it."""

    INSPECTING = "inspecting"
    READY = "ready"
    REJECTED = "rejected"
