"""`Client`: everything a Winnow server does, as methods."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx2

from winnow.connection import Connection
from winnow.downloads import download_artifact
from winnow.errors import UploadRejected, WinnowError
from winnow.following import follow_events
from winnow.resources import Artifact, Document, Event, Job, Kind, Upload
from winnow.uploads import OnProgress, send_file

DEFAULT_URL: Final = "http://127.0.0.1:8000"
ROUTES: Final[dict[Kind, str]] = {"model": "/v1/models", "dataset": "/v1/datasets"}
WAIT_SECONDS: Final = 20  # how long the server is asked to hold an answer back until there is news
SHORTEST_POLL_SECONDS: Final = 0.2


class Client:
    """A Winnow server.

    Requests are repeated for up to `patience_seconds` while the server restarts or is busy; those that create something
    carry an Idempotency-Key, so that repeating never creates it twice.
    """

    def __init__(
        self, base_url: str = DEFAULT_URL, *, timeout_seconds: float = 30.0, patience_seconds: float = 60.0
    ) -> None:
        self._connection = Connection(base_url, timeout_seconds=timeout_seconds, patience_seconds=patience_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    # Models and datasets

    def upload_model(self, path: Path | str, on_progress: OnProgress | None = None) -> Upload:
        """Upload a trained network (.onnx, .pt2). It is `inspecting` until a worker has read it: see `wait_ready`."""
        return self._upload("model", Path(path), on_progress)

    def upload_dataset(self, path: Path | str, on_progress: OnProgress | None = None) -> Upload:
        """Upload images (.npz, .safetensors, .zip or .tar with one folder a class)."""
        return self._upload("dataset", Path(path), on_progress)

    def model(self, model_id: str) -> Upload:
        return self._find("model", model_id)

    def dataset(self, dataset_id: str) -> Upload:
        return self._find("dataset", dataset_id)

    def models(self) -> Iterator[Upload]:
        """All models, newest first."""
        return (Upload.from_document("model", item) for item in self._items(ROUTES["model"]))

    def datasets(self) -> Iterator[Upload]:
        """All datasets, newest first."""
        return (Upload.from_document("dataset", item) for item in self._items(ROUTES["dataset"]))

    def delete(self, upload: Upload) -> None:
        """Delete a model or dataset that no unfinished job works on."""
        self._connection.call("DELETE", f"{ROUTES[upload.kind]}/{upload.id}")

    def wait_ready(self, upload: Upload, timeout_seconds: float = 600.0) -> Upload:
        """The upload once a worker has read it. Raises `UploadRejected` if it can't be used."""
        ends_at = time.monotonic() + timeout_seconds
        while upload.state == "inspecting":
            if time.monotonic() > ends_at:
                raise WinnowError(f"{upload.filename} ({upload.id}) is still being inspected; is a worker running?")
            asked_at = time.monotonic()
            upload = self._find(upload.kind, upload.id, wait=True)
            _pace(asked_at)
        if upload.state == "rejected":
            raise UploadRejected(upload.id, upload.filename, upload.document.get("error") or {})
        return upload

    # Jobs

    def steps(self) -> Document:
        """Every step kind with its documentation, defaults and JSON Schema."""
        return self._get("/v1/steps")

    def submit(self, request: Document, *, idempotency_key: str | None = None) -> Job:
        """Start a compression job."""
        return self._create_job("/v1/jobs", request, idempotency_key)

    def check(self, request: Document) -> Document:
        """Whether this job could run, and what it would touch; nothing is created."""
        answer = self._connection.call(
            "POST", "/v1/jobs", params={"validate_only": "true"}, json=request, headers=_new_key()
        )
        return _document(answer)

    def job(self, job_id: str) -> Job:
        return Job.from_document(self._get(f"/v1/jobs/{job_id}"))

    def jobs(self, **filters: str) -> Iterator[Job]:
        """Jobs, newest first; `filters` as the API has them, such as `state="running"`."""
        return (Job.from_document(item) for item in self._items("/v1/jobs", **filters))

    def watch(self, job_id: str) -> Iterator[Job]:
        """The job now, and again whenever anything about it has changed, until it has ended."""
        etag = ""
        while True:
            asked_at = time.monotonic()
            headers = {"If-None-Match": etag, "Prefer": f"wait={WAIT_SECONDS}"} if etag else {}
            response = self._connection.call(
                "GET", f"/v1/jobs/{job_id}", headers=headers, timeout_seconds=WAIT_SECONDS * 2
            )
            if response.status_code != httpx2.codes.NOT_MODIFIED:
                etag = response.headers.get("ETag", "")
                job = Job.from_document(_document(response))
                yield job
                if job.is_final:
                    return
            _pace(asked_at)

    def wait(self, job_id: str) -> Job:
        """The job once it has ended."""
        *_, last = self.watch(job_id)
        return last

    def follow(self, job_id: str, *, after: int = 0) -> Iterator[Event]:
        """What happens to the job, as it happens: each event above number `after` once, until the job has ended."""
        return follow_events(self._connection, job_id, after=after)

    def cancel(self, job_id: str) -> Job:
        """Ask for the job to be stopped. Asking again is harmless."""
        return Job.from_document(
            _document(self._connection.call("POST", f"/v1/jobs/{job_id}/cancel", headers=_new_key()))
        )

    def finish(self, job_id: str) -> Job:
        """Ask a job with a goal to end soon with the best that it has found so far. Asking again is harmless."""
        return Job.from_document(
            _document(self._connection.call("POST", f"/v1/jobs/{job_id}/finish", headers=_new_key()))
        )

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """A new job with the same request."""
        return self._create_job(f"/v1/jobs/{job_id}/retry", None, idempotency_key)

    # Results

    def report(self, job_id: str) -> Document:
        """The finished job's report: figures measured on the very files that it delivered."""
        return self._get(f"/v1/jobs/{job_id}/report")

    def artifacts(self, job_id: str) -> list[Artifact]:
        """The files that the job delivered."""
        return [Artifact.from_document(item) for item in self._items(f"/v1/jobs/{job_id}/artifacts")]

    def download(self, artifact: Artifact, path: Path | str, on_progress: OnProgress | None = None) -> Path:
        """Save an artifact at `path`; goes on where an earlier attempt stopped, and checks the digest."""
        return download_artifact(self._connection, artifact, Path(path), on_progress=on_progress)

    # How the methods above speak with the server

    def _upload(self, kind: Kind, path: Path, on_progress: OnProgress | None) -> Upload:
        document = send_file(
            self._connection, ROUTES[kind], path, idempotency_key=uuid.uuid4().hex, on_progress=on_progress
        )
        return Upload.from_document(kind, document)

    def _find(self, kind: Kind, upload_id: str, *, wait: bool = False) -> Upload:
        headers = {"Prefer": f"wait={WAIT_SECONDS}"} if wait else {}
        response = self._connection.call(
            "GET", f"{ROUTES[kind]}/{upload_id}", headers=headers, timeout_seconds=WAIT_SECONDS * 2
        )
        return Upload.from_document(kind, _document(response))

    def _create_job(self, path: str, request: Document | None, idempotency_key: str | None) -> Job:
        response = self._connection.call("POST", path, json=request, headers=_new_key(idempotency_key))
        return Job.from_document(_document(response))

    def _get(self, path: str) -> Document:
        return _document(self._connection.call("GET", path))

    def _items(self, path: str, **filters: str) -> Iterator[Document]:
        """The items of a list, over all its pages."""
        place: dict[str, str] = {}
        while True:
            page: dict[str, Any] = self._connection.call("GET", path, params={**filters, **place}).json()
            yield from page["items"]
            if not page.get("next_page_token"):
                return
            place = {"page_token": page["next_page_token"]}


def _new_key(key: str | None = None) -> dict[str, str]:
    return {"Idempotency-Key": key or uuid.uuid4().hex}


def _document(response: httpx2.Response) -> Document:
    document: Document = response.json()
    return document


def _pace(asked_at: float) -> None:
    """Leave a moment between two questions, whatever the server does with our wish to wait."""
    time.sleep(max(0.0, asked_at + SHORTEST_POLL_SECONDS - time.monotonic()))
