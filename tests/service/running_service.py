"""The service as its users meet it: a real server on a real port, with a broker that only takes notes."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from jobs.database import Database
from jobs.messages import QueueUnavailable
from jobs.settings import Settings
from jobs.storage import LocalStorage
from service.app import build_app
from tests.service.fake_worker import FakeWorker


@dataclass
class NotingBroker:
    """Remembers the hints that it was given; can be made to fail."""

    hints: list[str] = field(default_factory=list)
    is_down: bool = False

    def send_hint(self, job_id: str) -> None:
        self.ping()
        self.hints.append(job_id)

    def ping(self) -> None:
        if self.is_down:
            raise QueueUnavailable("the broker is down")

    def close(self) -> None:
        """There is nothing to let go."""


@dataclass(frozen=True)
class RunningService:
    url: str
    http: httpx2.Client
    settings: Settings
    database: Database
    storage: LocalStorage
    broker: NotingBroker
    worker: FakeWorker

    @property
    def storage_folder(self) -> Path:
        return self.settings.storage_folder

    def upload(self, kind: str, content: bytes, **parameters: str) -> dict[str, Any]:
        """Upload a bare body, and return what the service says of it."""
        response = self.http.post(
            f"/v1/{kind}s", content=content, params=parameters, headers={"Content-Type": "application/octet-stream"}
        )
        assert response.status_code == 201, response.text
        document: dict[str, Any] = response.json()
        return document

    def ready_model(self, content: bytes = b"a model") -> str:
        """The id of a model that was inspected."""
        model_id: str = self.upload("model", content)["id"]
        self.worker.accept_model(model_id)
        return model_id

    def ready_dataset(self, content: bytes = b"a dataset") -> str:
        """The id of a dataset that was inspected."""
        dataset_id: str = self.upload("dataset", content)["id"]
        self.worker.accept_dataset(dataset_id)
        return dataset_id

    def job_request(self, **changes: Any) -> dict[str, Any]:
        """A request that is accepted, on a new model and dataset."""
        return {
            "model": self.ready_model(),
            "data": {"selection": self.ready_dataset()},
            "recipe": [{"kind": "prune_weights", "max_drop_pp": 1.0}],
            **changes,
        }

    def goal_request(self, **changes: Any) -> dict[str, Any]:
        """A request with a goal that is accepted, on a new model and dataset."""
        request = self.job_request(goal={"minimise": "latency"}, **changes)
        del request["recipe"]
        return request

    def submit(self, **changes: Any) -> dict[str, Any]:
        """A queued job."""
        return self._submitted(self.job_request(**changes))

    def submit_goal(self) -> dict[str, Any]:
        """A queued job that is to search."""
        return self._submitted(self.goal_request())

    def _submitted(self, request: dict[str, Any]) -> dict[str, Any]:
        response = self.http.post("/v1/jobs", json=request)
        assert response.status_code == 202, response.text
        document: dict[str, Any] = response.json()
        return document


@contextmanager
def running_service(settings: Settings) -> Iterator[RunningService]:
    """Serve until the block ends. The database must have its tables."""
    broker = NotingBroker()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(build_app(settings, broker), log_config=None, access_log=False, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    database, storage = Database(settings.database_url), LocalStorage(settings.storage_folder)
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        with httpx2.Client(base_url=url, timeout=30, trust_env=False) as http:
            worker = FakeWorker(database, storage)
            yield RunningService(url, http, settings, database, storage, broker, worker)
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
        database.close()
    assert not thread.is_alive()
