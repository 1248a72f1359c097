"""What the service answers with, beside what `jobs` defines already. Within a version of the API, fields are only added."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.errors import JobError
from jobs.inspection import DatasetInspection, ModelInspection
from jobs.request import JobRequest
from jobs.states import JobState, UploadState

MODEL_ID = "mdl_01kb2xv6w8e7r0c3f5m9n1p4qs"
DATASET_ID = "dst_01kb2xvc4t2y8h6j0k5g7d9w3a"
JOB_ID = "job_01kb2xw1z9x4v7b2n8m6k3j5hg"
ARTIFACT_ID = "art_01kb2xz7r5t3w9y1p6q8s0d4fg"


class Shown(BaseModel):
    model_config = ConfigDict(frozen=True)


class UploadedFile(Shown):
    """What models and datasets have in common."""

    id: str
    state: UploadState = Field(description="`inspecting` until a worker has read the file, then `ready` or `rejected`.")
    filename: str = Field(description="As its sender called it.")
    size_bytes: int
    sha256: str
    created_at: datetime
    inspected_at: datetime | None = None
    error: JobError | None = Field(default=None, description="Why the file was rejected.")


class Model(UploadedFile):
    """An uploaded model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": MODEL_ID,
                    "state": "inspecting",
                    "filename": "resnet20.onnx",
                    "size_bytes": 1093117,
                    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "created_at": "2026-11-23T12:00:00Z",
                    "inspected_at": None,
                    "error": None,
                    "format": None,
                    "inspection": None,
                }
            ]
        }
    )

    format: Literal["onnx", "pt2"] | None = None
    inspection: ModelInspection | None = Field(default=None, description="What a worker found in a `ready` model.")


class Dataset(UploadedFile):
    """An uploaded dataset."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": DATASET_ID,
                    "state": "inspecting",
                    "filename": "selection.npz",
                    "size_bytes": 15361042,
                    "sha256": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
                    "created_at": "2026-11-23T12:00:00Z",
                    "inspected_at": None,
                    "error": None,
                    "format": None,
                    "inspection": None,
                }
            ]
        }
    )

    format: Literal["npz", "image_folder", "safetensors"] | None = None
    inspection: DatasetInspection | None = Field(default=None, description="What a worker found in a `ready` dataset.")


class ModelPage(Shown):
    items: list[Model]
    next_page_token: str | None = Field(
        description="Give it as `page_token` to get the next page; null on the last one."
    )


class DatasetPage(Shown):
    items: list[Dataset]
    next_page_token: str | None = Field(
        description="Give it as `page_token` to get the next page; null on the last one."
    )


class Job(Shown):
    """A compression job."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": JOB_ID,
                    "state": "running",
                    "request": {
                        "model": MODEL_ID,
                        "data": {"selection": DATASET_ID},
                        "recipe": [{"kind": "prune_weights", "max_drop_pp": 1.0}],
                    },
                    "parent": None,
                    "attempt": 1,
                    "max_attempts": 3,
                    "phase": "prune_weights",
                    "progress": 0.42,
                    "step": 0,
                    "steps": 1,
                    "message": "layer 7 of 20",
                    "eta_seconds": 58,
                    "jobs_ahead": None,
                    "created_at": "2026-11-23T12:00:00Z",
                    "started_at": "2026-11-23T12:00:01Z",
                    "cancel_requested_at": None,
                    "finish_requested_at": None,
                    "finished_at": None,
                    "verdict": None,
                    "error": None,
                }
            ]
        }
    )

    id: str
    state: JobState
    request: JobRequest = Field(description="What was asked for, with every default filled in.")
    parent: str | None = Field(description="The job that this one retries.")
    attempt: int = Field(description="How often it was started; more than once when a worker was lost.")
    max_attempts: int
    phase: str | None = Field(description="What is being done right now.")
    progress: float = Field(description="Of the whole job, from 0 to 1.")
    step: int | None = Field(description="Index of the recipe's step that is running, from 0.")
    steps: int = Field(description="How many steps the recipe has; 0 for a job with a goal.")
    message: str | None
    eta_seconds: int | None = Field(description="Rough, from the time that it took to get this far.")
    jobs_ahead: int | None = Field(description="How many jobs were waiting before this one, while it is `queued`.")
    created_at: datetime
    started_at: datetime | None
    cancel_requested_at: datetime | None
    finish_requested_at: datetime | None = Field(
        description="When the search was asked to end with the best that it had found."
    )
    finished_at: datetime | None
    verdict: str | None = Field(description="The report in one sentence.")
    error: JobError | None = Field(description="Why the job failed.")


class JobPage(Shown):
    items: list[Job]
    next_page_token: str | None = Field(
        description="Give it as `page_token` to get the next page; null on the last one."
    )


class JobFault(Shown):
    """A reason why a job can't run."""

    pointer: str | None = Field(description="JSON Pointer into the request, as a URI fragment.")
    detail: str
    hint: str | None


class Validation(Shown):
    """Whether a job could run, what it would touch, and roughly what it would need."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "valid": True,
                    "errors": [],
                    "touched_layers": {"prune_weights": ["conv1", "layer1.0.conv1"]},
                    "estimate": {"seconds_at_most": 420.5},
                }
            ]
        }
    )

    valid: bool
    errors: list[JobFault]
    touched_layers: dict[str, list[str]] = Field(
        description="The layers that each step kind may change: kinds of the recipe, or those that the search for a goal tries."
    )
    # what is estimated differs from step kind to step kind
    estimate: dict[str, Any] | None = Field(
        description="An upper bound of the cost, and whether a goal looks reachable; null if the job can't run."
    )


class JobEvent(Shown):
    """Something that happened to a job."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "seq": 2,
                    "type": "running",
                    "at": "2026-11-23T12:00:01Z",
                    "data": {"attempt": 1, "max_attempts": 3},
                }
            ]
        }
    )

    seq: int = Field(description="Counts from 1 without gaps.")
    type: str = Field(description="A state that the job reached, or what the running job had to tell.")
    at: datetime
    data: dict[str, Any]


class JobEventPage(Shown):
    items: list[JobEvent]
    next_after: int = Field(description="Give it as `after` to get what happens next.")


class Artifact(Shown):
    """A file that a job delivered."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": ARTIFACT_ID,
                    "job": JOB_ID,
                    "name": "model.onnx",
                    "kind": "model",
                    "media_type": "application/octet-stream",
                    "size_bytes": 284512,
                    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                    "created_at": "2026-11-23T12:03:20Z",
                }
            ]
        }
    )

    id: str
    job: str
    name: str
    kind: str = Field(description="`model` or `report`.")
    media_type: str
    size_bytes: int
    sha256: str
    created_at: datetime


class ArtifactList(Shown):
    items: list[Artifact]


class StepKind(Shown):
    """One kind of step that a recipe can have."""

    kind: str
    description: str
    needs: str = Field(description="The data role that the step works with.")
    defaults: dict[str, Any]
    # a JSON Schema is any JSON
    json_schema: dict[str, Any] = Field(description="JSON Schema of the step.")


class StepKindList(Shown):
    items: list[StepKind]


class Alive(Shown):
    status: Literal["ok"] = "ok"


class Check(Shown):
    ok: bool
    detail: str | None = None


class Readiness(Shown):
    """Whether everything that the service needs works."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "status": "ready",
                    "checks": {
                        name: {"ok": True, "detail": None} for name in ("database", "migrations", "broker", "disk")
                    },
                }
            ]
        }
    )

    status: Literal["ready"] = "ready"
    checks: dict[str, Check]


class Version(Shown):
    """What is running."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": "0.1.0", "api": "v1", "python": "3.11.9"}]})

    version: str
    api: Literal["v1"] = "v1"
    python: str
