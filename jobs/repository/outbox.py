"""Messages owed to the broker: written in the transaction that owes them, deleted after they were sent.

A crash between sending and deleting sends twice, which is harmless: the second hint finds nothing to claim.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, exists, select, update
from sqlalchemy.orm import Session

from jobs.database import now
from jobs.states import JobState
from jobs.tables import JobRow, OutboxRow


@dataclass(frozen=True)
class OwedHint:
    id: int
    job_id: str


def owe_hint(session: Session, job_id: str, due_at: datetime) -> None:
    session.add(OutboxRow(job_id=job_id, due_at=due_at))


def owed_hints(session: Session, *, limit: int = 100) -> list[OwedHint]:
    """The messages that are due, oldest first."""
    rows = session.execute(
        select(OutboxRow.id, OutboxRow.job_id)
        .where(OutboxRow.due_at <= now(session))
        .order_by(OutboxRow.due_at, OutboxRow.id)
        .limit(limit)
    )
    return [OwedHint(id=row.id, job_id=row.job_id) for row in rows]


def forget_hints(session: Session, hint_ids: Collection[int]) -> None:
    session.execute(delete(OutboxRow).where(OutboxRow.id.in_(hint_ids)))


def remind_of_waiting_jobs(session: Session, *, reminder_seconds: float, limit: int = 20) -> int:
    """Owe another message for jobs that still wait long after theirs: the broker may have lost it. Returns how many.

    Only for those that are next in line: the others' turn comes, and a long queue must not flood the broker meanwhile.
    """
    moment = now(session)
    next_in_line = (
        select(JobRow.id)
        .where(JobRow.state == JobState.QUEUED, JobRow.available_at <= moment)
        .order_by(JobRow.id)
        .limit(limit)
    )
    overlooked = (
        session.execute(
            select(JobRow.id)
            .where(
                JobRow.id.in_(next_in_line),
                JobRow.state == JobState.QUEUED,
                JobRow.hinted_at < moment - timedelta(seconds=reminder_seconds),
                ~exists().where(OutboxRow.job_id == JobRow.id),  # the first message is still owed
            )
            .order_by(JobRow.id)
            .with_for_update(skip_locked=True)
        )
        .scalars()
        .all()
    )
    if overlooked:
        session.execute(
            update(JobRow)
            .where(JobRow.id.in_(overlooked))
            .values(hinted_at=moment)
            .execution_options(synchronize_session=False)
        )
    for job_id in overlooked:
        owe_hint(session, job_id, moment)
    return len(overlooked)
