"""How an attempt at a job can end, and what the client is told about the bad ends."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.errors import ErrorCode, JobError
from jobs.folder import Outcome
from jobs.repository.lifecycle import NewArtifact
from workers.namespaces import REFUSED


@dataclass(frozen=True)
class Succeeded:
    outcome: Outcome
    artifacts: Sequence[NewArtifact]


@dataclass(frozen=True)
class Failed:
    """For good: trying again would end the same way."""

    error: JobError


@dataclass(frozen=True)
class AttemptLost:
    """The runner died of something that may not happen again."""

    error: JobError


@dataclass(frozen=True)
class Cancelled:
    """The client wanted it."""


@dataclass(frozen=True)
class GivenBack:
    """This worker is stopping."""


@dataclass(frozen=True)
class Fenced:
    """The job is not ours any more: nothing that we know of it may be written."""


OwnEnding = Succeeded | Failed | AttemptLost | Cancelled | GivenBack
Ending = OwnEnding | Fenced


OUR_MISTAKE = JobError(
    code=ErrorCode.INTERNAL, message="The worker made a mistake; its log has the details.", retryable=True
)
DISK_FULL = JobError(
    code=ErrorCode.DISK_FULL,
    message="The worker's disk is full.",
    hint="Free space in the data folder, then retry the job.",
    retryable=True,
)
MISSING_INPUT = JobError(
    code=ErrorCode.INTERNAL,
    message="A stored file that this job needs is missing or damaged.",
    hint="Upload the model and the datasets again and submit a new job.",
)


def deadline_exceeded(seconds: float) -> JobError:
    return JobError(
        code=ErrorCode.DEADLINE_EXCEEDED,
        message=f"The job was not done {seconds:g} seconds after it first started.",
        hint="Raise limits.deadline_seconds, or make the recipe or the data smaller.",
    )


def stalled(seconds: float) -> JobError:
    return JobError(
        code=ErrorCode.STALLED, message=f"The runner reported nothing for {seconds:g} seconds.", retryable=True
    )


def out_of_memory(limit_bytes: int) -> JobError:
    return JobError(
        code=ErrorCode.OUT_OF_MEMORY,
        message=f"The runner needed more than {limit_bytes / 2**20:.0f} MiB of memory.",
        hint="Use fewer images or a smaller cache_mib, or raise WINNOW_MEMORY_LIMIT_BYTES on the worker.",
    )


def crashed(code: int) -> JobError:
    if code == REFUSED:
        how = "could not be put into its sandbox"
    elif code < 0:
        how = f"was ended by signal {-code}"
    else:
        how = f"ended with exit code {code} and no result"
    return JobError(
        code=ErrorCode.RUNNER_CRASHED,
        message=f"The runner {how}.",
        hint="If it happens again, look at the worker's log; a kill by the system often means too little memory.",
        retryable=True,
    )


def result_refused(reason: Exception) -> JobError:
    return JobError(code=ErrorCode.INTERNAL, message=f"What the runner left behind can't be accepted: {reason}"[:4000])
