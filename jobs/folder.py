"""The job folder: all that passes between the supervisor and the runner.

    FOLDER/
      request.json    what to do (`Assignment`), written by the supervisor
      inputs/         the uploaded files, read-only
      work/           the runner's scratch space, checkpoints and HOME
      outputs/        what the runner made
      finish          empty; there once the search is to end with the best that it has found, made by the supervisor
      result.json     how it ended (`Outcome`), written last and atomically
      runner.log      the runner's own log (stderr)

The runner reports progress as one `Progress` JSON object a line on its standard output.
Everything that comes back is hostile until it has passed these schemas.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.errors import JobError
from jobs.inspection import DatasetInspection, ModelInspection
from jobs.recipe import Step
from jobs.request import Goal, Limits, OutputFormat, Preprocess, Target

MAX_RESULT_BYTES = 64 * 1024 * 1024
MAX_PROGRESS_LINE_BYTES = 64 * 1024
FINISH = "finish"


class Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputFile(Value):
    """A file under `inputs/`."""

    path: str
    filename: str = Field(description="As the user called it.")
    sha256: str


class InspectModel(Value):
    task: Literal["inspect_model"]
    file: InputFile


class InspectDataset(Value):
    task: Literal["inspect_dataset"]
    file: InputFile


class Compress(Value):
    task: Literal["compress"]
    model: InputFile
    data: dict[Literal["train", "selection", "test"], InputFile]
    preprocess: Preprocess | None
    recipe: tuple[Step, ...]  # empty where there is a goal, until the search has found one
    goal: Goal | None = None
    limits: Limits
    seed: int
    outputs: tuple[OutputFormat, ...]
    target: Target
    # What the sandbox gives this runner, for the report: memory, threads, what is isolated.
    sandbox: dict[str, Any] = Field(default_factory=dict)


Assignment = Annotated[InspectModel | InspectDataset | Compress, Field(discriminator="task")]


class Request(Value):
    """The content of request.json."""

    version: Literal[1] = 1
    assignment: Assignment


class Progress(Value):
    """One line of the runner's standard output."""

    type: Literal["progress", "event"]
    phase: str = Field(max_length=64, description="reading, baseline, prune_weights, writing, verifying, …")
    fraction: float | None = Field(default=None, ge=0, le=1, description="Of the whole job.")
    step: int | None = Field(default=None, ge=0, le=1000, description="Index of the recipe's step, from 0.")
    message: str | None = Field(default=None, max_length=1000)
    data: dict[str, Any] = Field(default_factory=dict)


class OutputFile(Value):
    """A file under `outputs/`."""

    path: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    kind: Literal["model", "report", "figure"]
    media_type: str = Field(max_length=128)


class Outcome(Value):
    """The content of result.json: exactly one of an error, an inspection, or outputs with a verdict."""

    error: JobError | None = None
    model: ModelInspection | None = None
    dataset: DatasetInspection | None = None
    outputs: tuple[OutputFile, ...] = ()
    verdict: str | None = None


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either all of it or what it held before, also after a power cut."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
