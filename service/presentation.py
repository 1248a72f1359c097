"""From rows to what clients see."""

from datetime import datetime

from jobs.errors import JobError
from jobs.request import JobRequest
from jobs.states import JobState
from jobs.tables import ArtifactRow, DatasetRow, JobEventRow, JobRow, ModelRow
from service.schemas import Artifact, Dataset, Job, JobEvent, Model

_LEAST_PROGRESS = 0.02  # before that, an estimate of the rest is worth nothing


def shown_model(row: ModelRow) -> Model:
    return Model.model_validate(_upload_fields(row))


def shown_dataset(row: DatasetRow) -> Dataset:
    return Dataset.model_validate(_upload_fields(row))


def shown_job(row: JobRow, *, jobs_ahead: int | None, moment: datetime) -> Job:
    request = JobRequest.model_validate(row.request)
    return Job(
        id=row.id,
        state=JobState(row.state),
        request=request,
        parent=row.parent_id,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        phase=row.phase,
        progress=row.progress,
        step=row.step,
        steps=len(request.recipe),
        message=row.message,
        eta_seconds=_eta_seconds(row, moment),
        jobs_ahead=jobs_ahead,
        created_at=row.created_at,
        started_at=row.started_at,
        cancel_requested_at=row.cancel_requested_at,
        finish_requested_at=row.finish_requested_at,
        finished_at=row.finished_at,
        verdict=row.verdict,
        error=JobError.model_validate(row.error) if row.error else None,
    )


def shown_event(row: JobEventRow) -> JobEvent:
    return JobEvent(seq=row.seq, type=row.type, at=row.at, data=row.data)


def shown_artifact(row: ArtifactRow) -> Artifact:
    return Artifact(
        id=row.id,
        job=row.job_id,
        name=row.name,
        kind=row.kind,
        media_type=row.media_type,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        created_at=row.created_at,
    )


def _upload_fields(row: ModelRow | DatasetRow) -> dict[str, object]:
    return {
        "id": row.id,
        "state": row.state,
        "filename": row.filename,
        "size_bytes": row.size_bytes,
        "sha256": row.sha256,
        "created_at": row.created_at,
        "inspected_at": row.inspected_at,
        "error": row.error,
        "format": row.inspection["format"] if row.inspection else None,
        "inspection": row.inspection,
    }


def _eta_seconds(row: JobRow, moment: datetime) -> int | None:
    if row.state != JobState.RUNNING or row.started_at is None or row.progress < _LEAST_PROGRESS:
        return None
    elapsed = (moment - row.started_at).total_seconds()
    return max(0, round(elapsed * (1 - row.progress) / row.progress))
