"""What clients read: jobs, their events, and what they delivered."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.states import JobState
from jobs.tables import ArtifactRow, DatasetRow, JobEventRow, JobInputRow, JobRow, ModelRow

MOST_EVENTS = 2**31 - 1  # what the column can hold


def find_job(session: Session, job_id: str) -> JobRow | None:
    """A compression job; inspections are the service's own business."""
    return session.execute(select(JobRow).where(JobRow.id == job_id, JobRow.kind == "compress")).scalar_one_or_none()


def job_version(session: Session, job_id: str) -> int | None:
    """Just enough for a 304."""
    return session.execute(
        select(JobRow.version).where(JobRow.id == job_id, JobRow.kind == "compress")
    ).scalar_one_or_none()


def jobs_page(
    session: Session,
    *,
    before: str | None,
    limit: int,
    states: Sequence[str] = (),
    model_id: str | None = None,
    parent_id: str | None = None,
) -> Sequence[JobRow]:
    """The newest jobs older than the one called `before`."""
    statement = select(JobRow).where(JobRow.kind == "compress").order_by(JobRow.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(JobRow.id < before)
    if states:
        statement = statement.where(JobRow.state.in_(states))
    if model_id is not None:
        statement = statement.where(JobRow.model_id == model_id)
    if parent_id is not None:
        statement = statement.where(JobRow.parent_id == parent_id)
    return session.execute(statement).scalars().all()


def jobs_ahead(session: Session, job: JobRow) -> int:
    """How many queued jobs came before this one."""
    return session.execute(
        select(func.count()).select_from(JobRow).where(JobRow.state == JobState.QUEUED, JobRow.id < job.id)
    ).scalar_one()


def events_after(session: Session, job_id: str, seq: int, *, limit: int) -> Sequence[JobEventRow]:
    """What happened after event `seq`. Any whole number will do; clients send what they like."""
    seq = max(0, min(seq, MOST_EVENTS))
    return (
        session.execute(
            select(JobEventRow)
            .where(JobEventRow.job_id == job_id, JobEventRow.seq > seq)
            .order_by(JobEventRow.seq)
            .limit(limit)
        )
        .scalars()
        .all()
    )


def artifacts_of(session: Session, job_id: str) -> Sequence[ArtifactRow]:
    return (
        session.execute(select(ArtifactRow).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.name))
        .scalars()
        .all()
    )


def find_artifact(session: Session, artifact_id: str) -> ArtifactRow | None:
    return session.get(ArtifactRow, artifact_id)


def inputs_of(session: Session, job: JobRow) -> tuple[ModelRow | None, dict[str, DatasetRow]]:
    """The model and the datasets, by role, that a job works on. An inspection's dataset has the role `inspected`."""
    model = session.get(ModelRow, job.model_id) if job.model_id else None
    rows = session.execute(
        select(JobInputRow.role, DatasetRow)
        .join(DatasetRow, DatasetRow.id == JobInputRow.dataset_id)
        .where(JobInputRow.job_id == job.id)
    )
    datasets = dict(rows.all())
    if job.dataset_id:
        inspected = session.get(DatasetRow, job.dataset_id)
        assert inspected is not None  # a foreign key says so
        datasets["inspected"] = inspected
    return model, datasets
