"""What workers ask besides changing a job's state."""

from datetime import timedelta

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from jobs.database import now
from jobs.repository.lifecycle import Wishes
from jobs.states import FINAL, JobState
from jobs.tables import JobRow, OutboxRow


def wishes_for(session: Session, job_id: str) -> Wishes:
    """What is asked of this job; nothing if there is none."""
    statement = select(JobRow.cancel_requested_at, JobRow.finish_requested_at).where(JobRow.id == job_id)
    cancel, finish = session.execute(statement).one_or_none() or (None, None)
    return Wishes(cancel=cancel is not None, finish=finish is not None)


def is_over(session: Session, job_id: str) -> bool:
    """Whether this job has ended, or never was."""
    state = session.execute(select(JobRow.state).where(JobRow.id == job_id)).scalar_one_or_none()
    return state is None or state in FINAL


def has_overlooked_job(session: Session, *, waiting_seconds: float) -> bool:
    """Whether a job has been ready to run for that long although its message was sent: nobody seems to listen."""
    still_owed = exists().where(OutboxRow.job_id == JobRow.id)
    overlooked = exists().where(
        JobRow.state == JobState.QUEUED,
        JobRow.available_at < now(session) - timedelta(seconds=waiting_seconds),
        ~still_owed,
    )
    return bool(session.execute(select(overlooked)).scalar_one())
