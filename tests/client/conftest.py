"""What the client's tests share: servers to speak to."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from winnow import Client

from tests.client.played_worker import PlayedWorker
from tests.client.scripted_server import ScriptedServer
from tests.client.service_process import ServiceProcess, running_service


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server that answers as it is told to."""
    server = ScriptedServer()
    with server.running():
        yield server


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    """A client of that server."""
    with Client(server.url, patience_seconds=2) as client:
        yield client


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite_file: Path) -> Iterator[ServiceProcess]:
    """Winnow's real service."""
    folder = tmp_path_factory.mktemp("service")
    shutil.copyfile(migrated_sqlite_file, folder / "winnow.sqlite")
    with running_service(folder) as service:
        yield service


@pytest.fixture
def worker(service: ServiceProcess) -> Iterator[PlayedWorker]:
    """Somebody who does the service's jobs."""
    worker = PlayedWorker(service.folder)
    with worker.working():
        yield worker


@pytest.fixture
def winnow(service: ServiceProcess, worker: PlayedWorker) -> Iterator[Client]:
    """A client of Winnow's real service, whose jobs are done."""
    with Client(service.url, patience_seconds=30) as client:
        yield client
