"""What can go wrong in Winnow, as values that every process understands.

`Refusal` is raised where a request, a file or a recipe can't be served; the docstring is the default message, data are attributes.
HTTP status codes live in `service/errors.py` alone.

    Refusal
    ├── ModelRefused           an uploaded model is broken, hostile or not supported
    ├── DatasetRefused         an uploaded dataset is
    ├── RecipeRefused          this recipe can't run on this model and data
    └── VerificationFailed     a written file doesn't behave like the network it was written from
"""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class ErrorCode(StrEnum):
    """Machine-readable causes of a job's failure or a file's rejection."""

    MODEL_REJECTED = "model_rejected"
    DATASET_REJECTED = "dataset_rejected"
    RECIPE_REFUSED = "recipe_refused"
    VERIFICATION_FAILED = "verification_failed"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    STALLED = "stalled"
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    WORKER_LOST = "worker_lost"
    RUNNER_CRASHED = "runner_crashed"
    INTERNAL = "internal"


class JobError(BaseModel):
    """Why a job failed or a file was rejected: what happened, what to do, and whether trying again can help."""

    model_config = ConfigDict(frozen=True)

    code: ErrorCode
    message: str = Field(max_length=4000)
    hint: str | None = Field(default=None, max_length=2000)
    retryable: bool = False
    where: dict[str, Any] = Field(
        default_factory=dict, description="The operator, node, layer, role or entry at fault."
    )


class Refusal(Exception):
    """Winnow can't do what was asked."""

    code: ErrorCode = ErrorCode.INTERNAL
    hint: str | None = None

    def __init__(self, message: str | None = None, *, hint: str | None = None, **where: object) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])
        if hint is not None:
            self.hint = hint
        self.where: dict[str, Any] = dict(where)

    def as_job_error(self) -> JobError:
        """The same refusal as the value that rows, folders and responses carry."""
        return JobError(code=self.code, message=str(self)[:4000], hint=self.hint, where=self.where)


class ModelRefused(Refusal):
    """The model file can't be read as a CNN."""

    code = ErrorCode.MODEL_REJECTED


class DatasetRefused(Refusal):
    """The dataset file can't be read as images."""

    code = ErrorCode.DATASET_REJECTED


class RecipeRefused(Refusal):
    """The recipe can't run on this model and data."""

    code = ErrorCode.RECIPE_REFUSED


class VerificationFailed(Refusal):
    """The delivered file doesn't behave like the network it was written from."""

    code = ErrorCode.VERIFICATION_FAILED
