"""How a job changes its state: guarded updates, so that of two who try only one succeeds, each with its event.

A worker proves that the job is still its own by the lease token it got when it claimed it (a fencing token): once the
lease was given to somebody else, its writes match no row.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, literal, select, update
from sqlalchemy.orm import Session

from jobs.database import now
from jobs.errors import ErrorCode, JobError
from jobs.identifiers import new_id
from jobs.repository.outbox import owe_hint
from jobs.repository.uploads import record_inspection, record_rejection
from jobs.states import JobState, sources
from jobs.tables import ArtifactRow, JobEventRow, JobInputRow, JobRow, UtcDateTime

LIVE = (JobState.RUNNING, JobState.CANCELLING)
FINISHABLE = (JobState.QUEUED, JobState.RUNNING)
FINISH_REQUESTED = "finish_requested"  # an event that is no state: the job goes on, to a sooner end
LONGEST_RETRY_DELAY_SECONDS = 3600.0


class IllegalTransition(Exception):
    """The job is in a state from which this change is not possible."""

    def __init__(self, job_id: str, state: str, wanted: JobState) -> None:
        super().__init__(f"job {job_id} is {state} and can't become {wanted}")
        self.job_id, self.state, self.wanted = job_id, state, wanted


class LeaseLost(Exception):
    """The job belongs to another worker now, or to none; what this one did no longer counts."""


@dataclass(frozen=True)
class NewArtifact:
    """A stored file that a job delivers."""

    name: str
    kind: str
    media_type: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Wishes:
    """What clients have asked of a job since it was submitted."""

    cancel: bool
    finish: bool


def submit_job(
    session: Session,
    *,
    kind: str,
    request: dict[str, Any],
    model_id: str | None,
    inputs: dict[str, str],
    deadline_seconds: float,
    max_attempts: int,
    dataset_id: str | None = None,
    parent_id: str | None = None,
) -> JobRow:
    """A new queued job, its first event, and the message that it owes."""
    moment = now(session)
    job = JobRow(
        id=new_id("job"),
        kind=kind,
        state=JobState.QUEUED,
        request=request,
        model_id=model_id,
        dataset_id=dataset_id,
        parent_id=parent_id,
        deadline_seconds=deadline_seconds,
        max_attempts=max_attempts,
        created_at=moment,
        available_at=moment,
        hinted_at=moment,
        last_event=1,
    )
    session.add(job)
    session.flush()
    session.add_all(JobInputRow(job_id=job.id, role=role, dataset_id=dataset) for role, dataset in inputs.items())
    session.add(JobEventRow(job_id=job.id, seq=1, type=JobState.QUEUED, at=moment, data={}))
    owe_hint(session, job.id, moment)
    session.flush()
    return job


def claim_job(session: Session, job_id: str, *, worker: str, lease_seconds: float) -> JobRow | None:
    """Make the queued job this worker's own, or None if there is nothing to claim: the hint was late, doubled or early."""
    moment = now(session)
    return _move(
        session,
        job_id,
        JobState.RUNNING,
        JobRow.available_at <= moment,
        values={
            "attempt": JobRow.attempt + 1,
            "worker": worker,
            "lease_token": secrets.token_hex(16),
            "lease_expires_at": moment + timedelta(seconds=lease_seconds),
            "started_at": func.coalesce(JobRow.started_at, literal(moment, UtcDateTime)),
            **_NO_PROGRESS,
            "phase": "starting",
        },
        data=lambda job: {"attempt": job.attempt, "max_attempts": job.max_attempts},
    )


def renew_lease(session: Session, job_id: str, token: str, *, lease_seconds: float) -> Wishes:
    """Say that the worker is alive, and learn what is asked of the job. Raises `LeaseLost`."""
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.lease_token == token, JobRow.state.in_(LIVE))
        .values(lease_expires_at=now(session) + timedelta(seconds=lease_seconds))
        .returning(JobRow.cancel_requested_at, JobRow.finish_requested_at)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        raise LeaseLost(job_id)
    return Wishes(cancel=row[0] is not None, finish=row[1] is not None)


def record_progress(
    session: Session,
    job_id: str,
    token: str,
    *,
    phase: str,
    fraction: float | None,
    step: int | None,
    message: str | None,
    events: Sequence[tuple[str, dict[str, Any]]] = (),
) -> None:
    """Store how far the runner is, and what it had to tell. Raises `LeaseLost`."""
    values: dict[str, Any] = {"phase": phase, "step": step, "message": message, "version": JobRow.version + 1}
    if fraction is not None:
        values["progress"] = fraction
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.lease_token == token, JobRow.state.in_(LIVE))
        .values(last_event=JobRow.last_event + len(events), **values)
        .returning(JobRow.last_event)
    )
    last_event = session.execute(statement).scalar_one_or_none()
    if last_event is None:
        raise LeaseLost(job_id)
    moment = now(session)
    session.add_all(
        JobEventRow(job_id=job_id, seq=last_event - len(events) + place, type=kind, at=moment, data=data)
        for place, (kind, data) in enumerate(events, start=1)
    )


def succeed_job(
    session: Session,
    job_id: str,
    token: str,
    *,
    artifacts: Sequence[NewArtifact] = (),
    verdict: str | None = None,
    inspection: dict[str, Any] | None = None,
) -> JobRow:
    """The job's one good end: state, artifacts, what was found, and the event, all at once. Raises `LeaseLost`."""
    job = _end(
        session,
        job_id,
        token,
        JobState.SUCCEEDED,
        values={"verdict": verdict, "progress": 1.0},
        data={"verdict": verdict},
    )
    moment = now(session)
    session.add_all(
        ArtifactRow(
            id=new_id("art"), job_id=job_id, name=new.name, kind=new.kind, media_type=new.media_type,
            size_bytes=new.size_bytes, sha256=new.sha256, created_at=moment,
        )
        for new in artifacts
    )  # fmt: skip
    if inspection is not None:
        record_inspection(session, job, inspection)
    return job


def fail_job(session: Session, job_id: str, token: str, error: JobError) -> JobRow:
    """The job's one bad end. Raises `LeaseLost`."""
    document = error.model_dump(mode="json")
    job = _end(session, job_id, token, JobState.FAILED, values={"error": document}, data={"error": document})
    record_rejection(session, job, document)
    return job


def lose_attempt(session: Session, job_id: str, token: str, error: JobError, *, retry_delay_seconds: float) -> JobRow:
    """The runner died of something that may not happen again: back to the queue, or failed if this was the last attempt.

    Raises `LeaseLost`."""
    return _lose(session, _held(session, job_id, token), error, retry_delay_seconds)


def give_back_job(session: Session, job_id: str, token: str) -> JobRow:
    """The worker is going away in good order: back to the queue, without spending an attempt; or cancelled, if that was
    wanted. Raises `LeaseLost`."""
    job = _held(session, job_id, token)
    if job.state == JobState.CANCELLING:
        return finish_cancel(session, job_id, token)
    return _requeue(
        session,
        job,
        available_at=now(session),
        values={"attempt": JobRow.attempt - 1},
        data={"reason": "worker_stopped"},
    )


def request_cancel(session: Session, job_id: str) -> JobRow | None:
    """Cancel a queued job at once; ask the worker of a running one. None if there is no such job.

    Asking again is harmless. Raises `IllegalTransition` if the job has ended otherwise."""
    job = _lock(session, JobRow.id == job_id)
    if job is None or job.state in (JobState.CANCELLING, JobState.CANCELLED):
        return job
    moment = now(session)
    if job.state == JobState.RUNNING:
        return _moved(session, job_id, JobState.CANCELLING, values={"cancel_requested_at": moment})
    if job.state != JobState.QUEUED:
        raise IllegalTransition(job_id, job.state, JobState.CANCELLED)
    stamps = {"cancel_requested_at": moment, "finished_at": moment}
    job = _moved(session, job_id, JobState.CANCELLED, values=stamps)
    record_rejection(session, job, _CANCELLED_INSPECTION)
    return job


def request_finish(session: Session, job_id: str) -> JobRow | None:
    """Ask a job that searches, or will, to end with the best that it has found by then. None if there is no such job.

    Asking again is harmless, also once it has succeeded. Raises `IllegalTransition` if the job can't succeed any more."""
    job = _lock(session, JobRow.id == job_id)
    if job is None:
        return None
    if job.finish_requested_at is not None and job.state in (*FINISHABLE, JobState.SUCCEEDED):
        return job
    if job.state not in FINISHABLE:
        raise IllegalTransition(job_id, job.state, JobState.SUCCEEDED)
    moment = now(session)
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state.in_(FINISHABLE), JobRow.finish_requested_at.is_(None))
        .values(finish_requested_at=moment, version=JobRow.version + 1, last_event=JobRow.last_event + 1)
        .returning(JobRow)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    job = session.execute(statement).scalar_one()
    session.add(JobEventRow(job_id=job_id, seq=job.last_event, type=FINISH_REQUESTED, at=moment, data={}))
    session.flush()
    return job


def finish_cancel(session: Session, job_id: str, token: str) -> JobRow:
    """The runner has stopped. Raises `LeaseLost`."""
    job = _end(session, job_id, token, JobState.CANCELLED, values={}, data={})
    record_rejection(session, job, _CANCELLED_INSPECTION)
    return job


def reap_lost_jobs(session: Session, *, retry_delay_seconds: float, limit: int = 100) -> list[JobRow]:
    """Take jobs from workers that fell silent: cancelled if that was wanted, else another attempt, else failed."""
    moment = now(session)
    # All at once: they are changed below, and a cursor must not walk over rows that change under it.
    expired = (
        session.execute(
            select(JobRow)
            .where(JobRow.state.in_(LIVE), JobRow.lease_expires_at < moment)
            .order_by(JobRow.lease_expires_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .execution_options(populate_existing=True)
        )
        .scalars()
        .all()
    )
    error = JobError(
        code=ErrorCode.WORKER_LOST,
        message="The worker fell silent and its lease ran out.",
        hint="Retry the job; if it happens again, look at the worker's log and memory.",
        retryable=True,
    )
    return [_lose(session, job, error, retry_delay_seconds) for job in expired]


_NO_PROGRESS: dict[str, Any] = {"phase": None, "progress": 0.0, "step": None, "message": None}
_RELEASED: dict[str, Any] = {"lease_token": None, "lease_expires_at": None, "worker": None}
_CANCELLED_INSPECTION = JobError(
    code=ErrorCode.INTERNAL, message="The inspection was cancelled.", hint="Upload the file again.", retryable=True
).model_dump(mode="json")


def _lose(session: Session, job: JobRow, error: JobError, retry_delay_seconds: float) -> JobRow:
    """What follows from a lost attempt. The caller has locked the row."""
    assert job.lease_token is not None  # a live job always has one
    if job.state == JobState.CANCELLING:
        return finish_cancel(session, job.id, job.lease_token)
    if job.attempt >= job.max_attempts:
        return fail_job(session, job.id, job.lease_token, error)
    delay_seconds = min(retry_delay_seconds * 2.0 ** min(job.attempt - 1, 30), LONGEST_RETRY_DELAY_SECONDS)
    data = {"reason": error.code, "message": error.message, "attempt": job.attempt, "max_attempts": job.max_attempts}
    return _requeue(session, job, available_at=now(session) + timedelta(seconds=delay_seconds), values={}, data=data)


def _requeue(
    session: Session, job: JobRow, *, available_at: datetime, values: dict[str, Any], data: dict[str, Any]
) -> JobRow:
    times = {"available_at": available_at, "hinted_at": available_at}
    queued = _moved(
        session, job.id, JobState.QUEUED, values={**_RELEASED, **_NO_PROGRESS, **times, **values}, data=lambda _: data
    )
    owe_hint(session, job.id, available_at)
    return queued


def _end(
    session: Session, job_id: str, token: str, state: JobState, *, values: dict[str, Any], data: dict[str, Any]
) -> JobRow:
    moment = now(session)
    job = _move(
        session, job_id, state, JobRow.lease_token == token,
        values={**_RELEASED, "finished_at": moment, **values}, data=lambda _: data,
    )  # fmt: skip
    if job is None:
        raise LeaseLost(job_id)
    return job


def _held(session: Session, job_id: str, token: str) -> JobRow:
    """The job, locked, if the token still gives a right to it. Raises `LeaseLost`."""
    job = _lock(session, JobRow.id == job_id, JobRow.lease_token == token)
    if job is None:
        raise LeaseLost(job_id)
    return job


def _lock(session: Session, *conditions: ColumnElement[bool]) -> JobRow | None:
    """The job as it is now and stays until this transaction ends. (On SQLite the whole database is locked already.)"""
    statement = select(JobRow).where(*conditions).with_for_update().execution_options(populate_existing=True)
    return session.execute(statement).scalar_one_or_none()


def _moved(
    session: Session,
    job_id: str,
    state: JobState,
    *,
    values: dict[str, Any],
    data: Callable[[JobRow], dict[str, Any]] = lambda _: {},
) -> JobRow:
    """A change that can't fail, because the caller has locked the row and looked at its state."""
    job = _move(session, job_id, state, values=values, data=data)
    assert job is not None
    return job


def _move(
    session: Session,
    job_id: str,
    state: JobState,
    *conditions: ColumnElement[bool],
    values: dict[str, Any],
    data: Callable[[JobRow], dict[str, Any]],  # from the new row to what the event tells
) -> JobRow | None:
    """The only statement that changes a state: it matches no row unless the change is legal right now."""
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state.in_(sources(state)), *conditions)
        .values(state=state, version=JobRow.version + 1, last_event=JobRow.last_event + 1, **values)
        .returning(JobRow)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    job = session.execute(statement).scalar_one_or_none()
    if job is not None:
        session.add(JobEventRow(job_id=job_id, seq=job.last_event, type=state, at=now(session), data=data(job)))
        session.flush()
    return job
