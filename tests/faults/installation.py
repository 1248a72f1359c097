"""A whole installation's data in a folder, with jobs that a scripted runner can run, and what must be true of every history."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.database import Database
from jobs.identifiers import is_id
from jobs.repository.lifecycle import submit_job
from jobs.repository.queries import artifacts_of, events_after
from jobs.repository.uploads import add_upload
from jobs.request import JobRequest
from jobs.settings import Settings
from jobs.states import FINAL, JobState, UploadState
from jobs.storage import LocalStorage
from jobs.tables import ArtifactRow, DatasetRow, JobEventRow, JobRow, ModelRow
from workers.sandbox import NO_ISOLATION, Isolation
from workers.supervisor import Supervisor

SCRIPTED_RUNNER = (sys.executable, "-c", Path(__file__).with_name("scripted_runner.py").read_text())

# What an inspection would have found in a small CNN and images that fit it.
_TENSOR = {"name": "x", "dtype": "float32", "shape": ["N", 1, 8, 8]}
_LAYER = {
    "name": "conv", "kind": "conv2d", "weight_shape": [4, 1, 3, 3], "output_shape": [4, 6, 6], "parameters": 40,
    "macs": 1296, "steps": {"prune_weights": {"eligible": True}, "finetune": {"eligible": True}},
}  # fmt: skip
_CNN = {
    "format": "onnx", "inputs": [_TENSOR], "outputs": [{"name": "y", "dtype": "float32", "shape": ["N", 2]}], "batch_size": None,
    "classes": 2, "parameters": 40, "macs": 1296, "layers": [_LAYER], "operators": {"aten.conv2d.default": 1},
}  # fmt: skip
_IMAGES = {
    "format": "npz", "images": 20, "shape": [1, 8, 8], "dtype": "float32", "labelled": True, "class_counts": {"0": 10, "1": 10},
}  # fmt: skip

Action = tuple[str, Any]  # the name of a function in scripted_runner.py and its argument


@dataclass(frozen=True)
class Installation:
    """Database, storage and settings of one data folder."""

    settings: Settings
    database: Database
    storage: LocalStorage

    @classmethod
    def at(cls, folder: Path, database_url: str, **settings: Any) -> "Installation":
        chosen = Settings(data_folder=folder, database_url=database_url, **settings)
        return cls(chosen, Database(database_url), LocalStorage(chosen.storage_folder))

    def supervisor(self, *, isolation: Isolation = NO_ISOLATION, **parts: Any) -> Supervisor:
        return Supervisor(
            database=self.database,
            storage=self.storage,
            settings=self.settings,
            isolation=isolation,
            worker="tested",
            **{"runner": SCRIPTED_RUNNER, **parts},
        )

    def add_script(self, actions: Sequence[Action]) -> tuple[str, str]:
        """Store the actions as a "model"; its id and digest."""
        writer = self.storage.new_blob()
        writer.write(json.dumps(actions).encode())
        blob = writer.finish()
        with self.database.writing() as session:
            model = add_upload(
                session, ModelRow, filename="script.json", size_bytes=blob.size_bytes, sha256=blob.sha256
            )
        return model.id, blob.sha256

    def submit(
        self, *actions: Action, kind: str = "compress", deadline_seconds: float = 60, max_attempts: int = 3
    ) -> str:
        """A queued job whose runner will do these things."""
        model_id, _ = self.add_script(actions)
        request = JobRequest.model_validate({"model": model_id, "recipe": [{"kind": "prune_weights"}]})
        with self.database.writing() as session:
            job = submit_job(
                session,
                kind=kind,
                request=request.model_dump(mode="json"),
                model_id=model_id,
                inputs={},
                deadline_seconds=deadline_seconds,
                max_attempts=max_attempts,
            )
        return job.id

    def acceptable_request(self, *actions: Action) -> dict[str, Any]:
        """The body of a `POST /v1/jobs` that is accepted, for a job whose runner will do these things."""
        model_id, sha256 = self.add_script(actions)
        with self.database.writing() as session:
            data = add_upload(session, DatasetRow, filename="images.npz", size_bytes=1, sha256=sha256)
            data.state, data.inspection = UploadState.READY, _IMAGES
            model = session.get_one(ModelRow, model_id)
            model.state, model.inspection = UploadState.READY, _CNN
        return {"model": model_id, "data": {"selection": data.id}, "recipe": [{"kind": "prune_weights"}]}

    def job(self, job_id: str) -> JobRow:
        with self.database.reading() as session:
            job = session.get(JobRow, job_id)
        assert job is not None
        return job

    def events(self, job_id: str) -> Sequence[JobEventRow]:
        with self.database.reading() as session:
            return events_after(session, job_id, 0, limit=100_000)

    def artifacts(self, job_id: str) -> dict[str, ArtifactRow]:
        with self.database.reading() as session:
            return {row.name: row for row in artifacts_of(session, job_id)}

    def change(self, change: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """One repository function in a transaction of its own."""
        with self.database.writing() as session:
            return change(session, *arguments, **named)

    def artifact_text(self, row: ArtifactRow) -> str:
        with self.storage.open(row.sha256) as file:
            return file.read().decode()

    def check_history(self, job_id: str) -> None:
        """What must be true of every job that has ended, whatever happened to it."""
        job, events = self.job(job_id), self.events(job_id)
        assert is_id(job_id, "job") and job.state in FINAL
        assert [event.seq for event in events] == list(range(1, job.last_event + 1)), "events have gaps"
        states = [event.type for event in events if event.type in set(JobState)]
        assert [state for state in states if state in FINAL] == [job.state], f"ended more than once: {states}"
        assert events[-1].type == job.state, "something happened after the end"
        assert 0 <= job.attempt <= job.max_attempts
        assert job.lease_token is None and job.finished_at is not None and job.finished_at <= datetime.now(UTC)
        artifacts = self.artifacts(job_id)
        assert bool(artifacts) == (job.state == JobState.SUCCEEDED)
        for row in artifacts.values():
            with self.storage.open(row.sha256) as file:
                content = file.read()
            assert hashlib.sha256(content).hexdigest() == row.sha256 and len(content) == row.size_bytes

    def close(self) -> None:
        self.database.close()
