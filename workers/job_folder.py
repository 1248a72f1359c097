"""Lays out the folder in which a runner works, and takes from it what the runner made. `jobs/folder.py` draws it."""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.errors import JobError
from jobs.folder import (
    FINISH,
    MAX_RESULT_BYTES,
    Compress,
    InputFile,
    InspectDataset,
    InspectModel,
    Outcome,
    OutputFile,
    Request,
    write_atomically,
)
from jobs.report import Report
from jobs.repository.lifecycle import NewArtifact
from jobs.request import JobRequest
from jobs.storage import CHUNK_BYTES, BlobMissing, Storage
from workers.endings import DISK_FULL, MISSING_INPUT
from workers.untrusted import MAX_INTEGER, Untrustworthy, open_untrusted, parse_untrusted

CHECKPOINTS = "checkpoints"  # within work/: complete files that the next attempt may start from
MAX_OUTPUTS = 64
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)

_FOLDER_NAME = re.compile(r"(job_[0-9a-z]{26})-[0-9]+-[0-9a-f]{8}", re.ASCII)
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,12}", re.ASCII)


@dataclass(frozen=True)
class Upload:
    """A stored file that a job works on."""

    sha256: str
    filename: str


@dataclass(frozen=True)
class Work:
    """What a job's row asks for, without the row."""

    job_id: str
    attempt: int
    kind: str
    request: dict[str, Any]
    model: Upload | None
    datasets: dict[str, Upload] = field(default_factory=dict)  # by role; an inspection's dataset is `inspected`


class CannotLayOut(Exception):
    """The job's folder can't be made."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


class ResultRefused(Exception):
    """The runner ended well, but what it left behind can't be accepted."""


class NoResult(Exception):
    """The runner left no result."""


def lay_out(
    jobs_folder: Path, work: Work, storage: Storage, *, sandbox: dict[str, Any], check: Callable[[], None]
) -> Path:
    """A new folder for this attempt, with checkpoints of an earlier one if this machine has some. Raises `CannotLayOut`.

    `check` is called now and then, and may raise to end a long copy."""
    earlier = folders_of(jobs_folder, work.job_id)
    folder = jobs_folder / f"{work.job_id}-{work.attempt}-{secrets.token_hex(4)}"
    try:
        for part in ("inputs", "outputs", "work/tmp", "work/cache", f"work/{CHECKPOINTS}"):
            (folder / part).mkdir(mode=0o700, parents=True)
        inputs = _Inputs(folder / "inputs", storage, check)
        request = Request(assignment=_assignment(work, inputs, sandbox))
        if left_behind := [path for path in earlier if _holds_files(path / "work" / CHECKPOINTS)]:
            _copy_checkpoints(left_behind[-1] / "work" / CHECKPOINTS, folder / "work" / CHECKPOINTS)
        write_atomically(folder / "request.json", request.model_dump_json())
    except BlobMissing as missing:
        raise CannotLayOut(MISSING_INPUT) from missing
    except OSError as full:
        if full.errno not in DISK_FULL_ERRORS:
            raise
        raise CannotLayOut(DISK_FULL) from full
    return folder


def ask_to_finish(folder: Path) -> bool:
    """Leave word for the runner that its search is to end with what it has; asking again is harmless.

    False if that was not possible now. The runner may have put anything in that place, which is never followed or opened."""
    try:
        os.close(os.open(folder / FINISH, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return True
    except OSError:  # the disk is full, or a runner without a sandbox has removed its folder
        return False
    return True


def read_outcome(folder: Path, kind: str) -> Outcome:
    """How the runner says that it ended. Raises `NoResult`, `ResultRefused`."""
    if not os.path.lexists(folder / "result.json"):
        raise NoResult
    try:
        with open_untrusted(folder, "result.json", max_bytes=MAX_RESULT_BYTES) as file:
            outcome = parse_untrusted(Outcome, file.read())
    except Untrustworthy as reason:
        raise ResultRefused(f"result.json: {reason}") from reason
    found = {
        "error": outcome.error is not None,
        "inspect_model": outcome.model is not None,
        "inspect_dataset": outcome.dataset is not None,
        "compress": bool(outcome.outputs),
    }
    if [name for name, there in found.items() if there] not in (["error"], [kind]):
        raise ResultRefused(f"result.json holds neither an error nor what a {kind} job ends with")
    return outcome


def store_outputs(
    folder: Path, outputs: Iterable[OutputFile], storage: Storage, *, max_bytes: int
) -> list[NewArtifact]:
    """Put the files that the runner made into the storage. Raises `ResultRefused`; storing twice is harmless."""
    outputs = list(outputs)
    names = {output.path for output in outputs}
    if len(names) != len(outputs) or len(outputs) > MAX_OUTPUTS or names & {".", ".."}:
        raise ResultRefused("result.json lists too many outputs, or one twice")
    left_bytes = max_bytes
    artifacts = []
    for output in outputs:
        try:
            artifact = _store_output(folder / "outputs", output, storage, max_bytes=left_bytes)
        except Untrustworthy as reason:
            raise ResultRefused(f"outputs/{output.path}: {reason}") from reason
        left_bytes -= artifact.size_bytes
        artifacts.append(artifact)
    return artifacts


def folders_of(jobs_folder: Path, job_id: str) -> list[Path]:
    """The folders that this machine has of a job, oldest first."""
    return sorted(jobs_folder.glob(f"{job_id}-*"), key=lambda path: path.stat().st_mtime)


def remove_folders_of(jobs_folder: Path, job_id: str) -> None:
    for folder in folders_of(jobs_folder, job_id):
        shutil.rmtree(folder, ignore_errors=True)


def jobs_with_folders(jobs_folder: Path) -> Iterator[str]:
    """The jobs of which this machine has folders."""
    names = (_FOLDER_NAME.fullmatch(path.name) for path in jobs_folder.iterdir())
    yield from sorted({match.group(1) for match in names if match})


class _Inputs:
    """Copies uploads into `inputs/`, the same bytes once, under names that Winnow chooses."""

    def __init__(self, folder: Path, storage: Storage, check: Callable[[], None]) -> None:
        self._folder = folder
        self._storage = storage
        self._check = check
        self._copied: dict[str, str] = {}

    def add(self, name: str, upload: Upload) -> InputFile:
        if upload.sha256 not in self._copied:
            suffix = Path(upload.filename).suffix
            path = name + (suffix.lower() if _SUFFIX.fullmatch(suffix) else "")
            self._copy(upload.sha256, self._folder / path)
            self._copied[upload.sha256] = f"inputs/{path}"
        return InputFile(path=self._copied[upload.sha256], filename=upload.filename, sha256=upload.sha256)

    def _copy(self, sha256: str, path: Path) -> None:
        digest = hashlib.sha256()
        with self._storage.open(sha256) as source, path.open("xb") as target:
            while chunk := source.read(CHUNK_BYTES):
                self._check()
                digest.update(chunk)
                target.write(chunk)
        if digest.hexdigest() != sha256:
            raise BlobMissing(f"{sha256} is damaged: its bytes have the digest {digest.hexdigest()}")
        path.chmod(0o400)


def _assignment(work: Work, inputs: _Inputs, sandbox: dict[str, Any]) -> InspectModel | InspectDataset | Compress:
    if work.kind == "inspect_dataset":
        return InspectDataset(task="inspect_dataset", file=inputs.add("dataset", work.datasets["inspected"]))
    assert work.model is not None  # submission sees to that
    model = inputs.add("model", work.model)
    if work.kind == "inspect_model":
        return InspectModel(task="inspect_model", file=model)
    wanted = JobRequest.model_validate(work.request)
    data = {role: inputs.add(role, upload) for role, upload in work.datasets.items()}
    return Compress.model_validate(
        {
            "task": "compress",
            "model": model,
            "data": data,
            "preprocess": wanted.preprocess,
            "recipe": wanted.recipe,
            "goal": wanted.goal,
            "limits": wanted.limits,
            "seed": wanted.seed,
            "outputs": wanted.outputs,
            "target": wanted.target,
            "sandbox": sandbox,
        }
    )


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and any(folder.iterdir())


def _copy_checkpoints(source: Path, target: Path) -> None:
    """Only plain files, as deep as they lie: an earlier runner wrote this folder."""
    for path in source.iterdir():
        if path.is_dir() and not path.is_symlink():
            (target / path.name).mkdir(mode=0o700)
            _copy_checkpoints(path, target / path.name)
            continue
        with (
            suppress(Untrustworthy),
            open_untrusted(source, path.name, max_bytes=MAX_INTEGER) as file,
            (target / path.name).open("xb") as copy,
        ):
            shutil.copyfileobj(file, copy, CHUNK_BYTES)


def _store_output(outputs: Path, output: OutputFile, storage: Storage, *, max_bytes: int) -> NewArtifact:
    if output.kind == "report":
        max_bytes = min(max_bytes, MAX_RESULT_BYTES)
    with open_untrusted(outputs, output.path, max_bytes=max_bytes) as file:
        if output.kind == "report":
            parse_untrusted(Report, file.read())
            file.seek(0)
        writer = storage.new_blob()
        try:
            while chunk := file.read(CHUNK_BYTES):
                writer.write(chunk)
            blob = writer.finish()
        finally:
            writer.discard()
    return NewArtifact(
        name=output.path,
        kind=output.kind,
        media_type=output.media_type,
        size_bytes=blob.size_bytes,
        sha256=blob.sha256,
    )
