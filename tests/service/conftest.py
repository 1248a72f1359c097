"""Running services for tests: one that tests share, on each kind of database, and others made to measure."""

import logging
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import create_engine, make_url, text

from jobs.settings import Settings
from migrations.upgrade import upgrade_database
from tests.service.running_service import RunningService, running_service

StartService = Callable[..., AbstractContextManager[RunningService]]


@pytest.fixture(scope="session", autouse=True)
def plain_log() -> Iterator[None]:
    """The services that run in this process log as they do elsewhere; drawing pictures of tracebacks would hold them up."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.stdlib.LoggerFactory(),  # which pytest captures from every thread
    )
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def log_of_its_own() -> Iterator[None]:
    """What a test sets up for logging ends with it: its standard error is closed then."""
    root = logging.getLogger()
    before = root.handlers[:]
    yield
    root.handlers = [
        handler for handler in root.handlers if handler in before or type(handler) is not logging.StreamHandler
    ]


@pytest.fixture(scope="session")
def service(migrated_sqlite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service on SQLite that tests share: each looks only at what it made itself."""
    with running_service(_settings(migrated_sqlite_file, tmp_path_factory.mktemp("service"))) as running:
        yield running


@pytest.fixture(scope="session")
def postgres_service(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """The same on PostgreSQL."""
    name = f"service_{secrets.token_hex(4)}"
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    upgrade_database(url)
    with running_service(_service_settings(tmp_path_factory.mktemp("service"), database_url=url)) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def each_service(request: pytest.FixtureRequest) -> RunningService:
    """The shared services, one after the other, for what the database has a part in."""
    running = request.getfixturevalue("service" if request.param == "sqlite" else "postgres_service")
    assert isinstance(running, RunningService)
    return running


@pytest.fixture
def start_service(migrated_sqlite_file: Path, tmp_path: Path) -> StartService:
    """Starts a service of the test's own, with settings of its own."""
    return lambda **changes: running_service(_settings(migrated_sqlite_file, tmp_path, **changes))


def _settings(migrated_sqlite_file: Path, folder: Path, **changes: Any) -> Settings:
    shutil.copyfile(migrated_sqlite_file, folder / "winnow.sqlite")
    return _service_settings(folder, **changes)


def _service_settings(folder: Path, **changes: Any) -> Settings:
    return Settings(data_folder=folder, **{"housekeeping_seconds": 0.2, "min_free_bytes": 0, **changes})
