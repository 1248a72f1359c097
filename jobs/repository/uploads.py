"""Models and datasets: the files that users bring, and what a worker found in them."""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import and_, exists, or_, select, union, update
from sqlalchemy.orm import Session

from jobs.database import now
from jobs.identifiers import Prefix, new_id
from jobs.states import FINAL, UploadState
from jobs.tables import ArtifactRow, DatasetRow, JobInputRow, JobRow, ModelRow

UploadedRow = ModelRow | DatasetRow
UploadTable = type[ModelRow] | type[DatasetRow]
Row = TypeVar("Row", ModelRow, DatasetRow)


def add_upload(session: Session, table: type[Row], *, filename: str, size_bytes: int, sha256: str) -> Row:
    """A new model or dataset that waits for its inspection."""
    prefix: Prefix = "mdl" if table is ModelRow else "dst"
    row = table(
        id=new_id(prefix),
        state=UploadState.INSPECTING,
        filename=filename,
        size_bytes=size_bytes,
        sha256=sha256,
        version=1,
        created_at=now(session),
    )
    session.add(row)
    session.flush()
    return row


def find_upload(session: Session, table: type[Row], upload_id: str) -> Row | None:
    return session.execute(select(table).where(table.id == upload_id, table.deleted_at.is_(None))).scalar_one_or_none()


def uploads_page(
    session: Session, table: type[Row], *, before: str | None, limit: int, state: str | None = None
) -> Sequence[Row]:
    """The newest uploads older than the one called `before`."""
    statement = select(table).where(table.deleted_at.is_(None)).order_by(table.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(table.id < before)
    if state is not None:
        statement = statement.where(table.state == state)
    return session.execute(statement).scalars().all()


def upload_version(session: Session, table: UploadTable, upload_id: str) -> int | None:
    """Just enough for a 304."""
    return session.execute(
        select(table.version).where(table.id == upload_id, table.deleted_at.is_(None))
    ).scalar_one_or_none()


def record_inspection(session: Session, job: JobRow, inspection: dict[str, Any]) -> None:
    """The file that `job` inspected is ready."""
    _close_inspection(session, job, {"state": UploadState.READY, "inspection": inspection})


def record_rejection(session: Session, job: JobRow, error: dict[str, Any]) -> None:
    """The file that `job` inspected can't be used. Does nothing for other jobs."""
    if job.kind != "compress":
        _close_inspection(session, job, {"state": UploadState.REJECTED, "error": error})


def _close_inspection(session: Session, job: JobRow, values: dict[str, Any]) -> None:
    table: UploadTable = ModelRow if job.kind == "inspect_model" else DatasetRow
    upload_id = job.model_id if table is ModelRow else job.dataset_id
    session.execute(
        update(table)
        .where(table.id == upload_id, table.state == UploadState.INSPECTING)
        .values(version=table.version + 1, inspected_at=now(session), **values)
        .execution_options(synchronize_session=False)
    )


def is_in_use(session: Session, table: UploadTable, upload_id: str) -> bool:
    """Whether a job that has not ended works on this upload."""
    unfinished = JobRow.state.not_in(FINAL)
    if table is ModelRow:
        question = exists().where(JobRow.model_id == upload_id, unfinished, JobRow.kind == "compress")
    else:
        question = exists().where(JobInputRow.dataset_id == upload_id, JobInputRow.job_id == JobRow.id, unfinished)
    return bool(session.execute(select(question)).scalar_one())


def delete_upload(session: Session, table: UploadTable, upload_id: str) -> bool:
    """Hide the upload; its file is collected later. False if there is none."""
    statement = (
        update(table)
        .where(table.id == upload_id, table.deleted_at.is_(None))
        .values(deleted_at=now(session), version=table.version + 1)
        .returning(table.id)
        .execution_options(synchronize_session=False)
    )
    return session.execute(statement).scalar_one_or_none() is not None


def referenced_blobs(session: Session, digests: Collection[str], *, keep_seconds: float) -> set[str]:
    """Which of these stored files are needed: by an artifact, by an upload that lives or was deleted less than
    `keep_seconds` ago, or by a job that has not ended and works on a deleted upload."""
    deleted_since = now(session) - timedelta(seconds=keep_seconds)
    unfinished = JobRow.state.not_in(FINAL)
    questions = [select(ArtifactRow.sha256).where(ArtifactRow.sha256.in_(digests))]
    for table in (ModelRow, DatasetRow):
        kept = or_(table.deleted_at.is_(None), table.deleted_at > deleted_since)
        questions.append(select(table.sha256).where(table.sha256.in_(digests), kept))
    for table, of_job in (
        (ModelRow, JobRow.model_id == ModelRow.id),
        (DatasetRow, JobRow.dataset_id == DatasetRow.id),
        (DatasetRow, and_(JobInputRow.job_id == JobRow.id, JobInputRow.dataset_id == DatasetRow.id)),
    ):
        questions.append(select(table.sha256).where(table.sha256.in_(digests), of_job, unfinished))
    return set(session.execute(union(*questions)).scalars())
