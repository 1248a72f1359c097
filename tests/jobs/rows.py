"""Rows for tests, with as little said as possible, and what a test wants to know of them."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.repository.lifecycle import claim_job, submit_job
from jobs.repository.uploads import add_upload
from jobs.tables import DatasetRow, JobEventRow, JobRow, ModelRow, OutboxRow

LEASE_SECONDS = 90.0


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def add_model(session: Session, content: str = "a model") -> ModelRow:
    return add_upload(session, ModelRow, filename="net.onnx", size_bytes=len(content), sha256=digest_of(content))


def add_dataset(session: Session, content: str = "a dataset") -> DatasetRow:
    return add_upload(session, DatasetRow, filename="images.npz", size_bytes=len(content), sha256=digest_of(content))


def submit(session: Session, *, max_attempts: int = 3, **overrides: Any) -> JobRow:
    """A compression job on a new model, unless told otherwise."""
    if "model_id" not in overrides:
        overrides["model_id"] = add_model(session).id
    return submit_job(
        session,
        kind=overrides.pop("kind", "compress"),
        request=overrides.pop("request", {"recipe": []}),
        inputs=overrides.pop("inputs", {}),
        deadline_seconds=3600,
        max_attempts=max_attempts,
        **overrides,
    )


def claim(database: Database, job_id: str, *, worker: str = "worker-1") -> str:
    """Claim a job that can be claimed, and return the lease's token."""
    with database.writing() as session:
        job = claim_job(session, job_id, worker=worker, lease_seconds=LEASE_SECONDS)
    assert job is not None and job.lease_token is not None
    return job.lease_token


def load(database: Database, job_id: str) -> JobRow:
    with database.reading() as session:
        return session.execute(select(JobRow).where(JobRow.id == job_id)).scalar_one()


def events(database: Database, job_id: str) -> list[JobEventRow]:
    with database.reading() as session:
        statement = select(JobEventRow).where(JobEventRow.job_id == job_id).order_by(JobEventRow.seq)
        return list(session.execute(statement).scalars())


def event_types(database: Database, job_id: str) -> list[str]:
    """The types of the job's events, after making sure that their numbers have no gap."""
    found = events(database, job_id)
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    assert load(database, job_id).last_event == len(found)
    return [event.type for event in found]


def owed(database: Database) -> list[str]:
    """The jobs of all messages in the outbox, due or not."""
    with database.reading() as session:
        return list(session.execute(select(OutboxRow.job_id).order_by(OutboxRow.id)).scalars())
