"""What all tests share: real servers, fresh databases made by running the migrations, the collection of real models."""

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from jobs.database import Database
from jobs.tables import Base
from migrations.upgrade import upgrade_database
from tests.servers import start_postgres, start_redis

DATA_FOLDER = Path(os.environ.get("WINNOW_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real models and images (WINNOW_DATA)."""
    return DATA_FOLDER


def pytest_configure() -> None:
    """Ctrl-C reaches what the tests start, also where a shell in the background made everything below it deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of real models are skipped, visibly, where the collection is missing."""
    if (DATA_FOLDER / "MANIFEST.md").is_file():
        return
    reason = f"no model and image collection at {DATA_FOLDER}; set WINNOW_DATA to its folder"
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="winnow-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis that all tests share; take a queue name of your own in it."""
    with tempfile.TemporaryDirectory(prefix="winnow-", dir="/tmp") as folder:
        server = start_redis(Path(folder))
        yield server.url
        server.stop()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL that all tests share: the address of its maintenance database."""
    with tempfile.TemporaryDirectory(prefix="winnow-", dir="/tmp") as folder:
        server = start_postgres(Path(folder))
        yield server.url
        server.stop()


@pytest.fixture(scope="session")
def migrated_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all tables and no rows, to copy."""
    path = tmp_path_factory.mktemp("migrated") / "winnow.sqlite"
    upgrade_database(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres_url(postgres_url: str) -> Iterator[str]:
    """A PostgreSQL database with all tables, which each test that uses it finds empty."""
    with new_postgres_database(postgres_url) as url:
        upgrade_database(url)
        yield url


@pytest.fixture
def sqlite_database_url(migrated_sqlite_file: Path, tmp_path: Path) -> str:
    """The address of an empty SQLite database with all tables."""
    path = tmp_path / "winnow.sqlite"
    shutil.copyfile(migrated_sqlite_file, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_database_url(migrated_postgres_url: str) -> str:
    """The address of an empty PostgreSQL database with all tables."""
    # Emptying takes milliseconds, where a new database takes up to seconds on a busy machine.
    tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
    _administer(
        migrated_postgres_url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()",
        f"TRUNCATE {tables} RESTART IDENTITY",
    )
    return migrated_postgres_url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The address of an empty database with all tables, of each kind that Winnow runs on."""
    names = {"sqlite": "sqlite_database_url", "postgresql": "postgres_database_url"}
    url = request.getfixturevalue(names[request.param])
    assert isinstance(url, str)
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty database with all tables, of each kind that Winnow runs on."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def sqlite_database(sqlite_database_url: str) -> Iterator[Database]:
    """An empty database with all tables, for tests that one kind is enough for."""
    database = Database(sqlite_database_url)
    yield database
    database.close()


@contextmanager
def new_postgres_database(server_url: str) -> Iterator[str]:
    """The address of a database without tables, for as long as the block runs."""
    name = f"test_{secrets.token_hex(6)}"
    _administer(server_url, f"CREATE DATABASE {name}")
    yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    _administer(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def _administer(url: str, *statements: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()
