"""What the tests of `jobs` share: a clock that stands still, and databases that believe it."""

from collections.abc import Iterator

import pytest

from jobs.database import Database
from jobs.tables import JobRow
from tests.jobs.rows import Clock, submit


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(database_url: str, clock: Clock) -> Iterator[Database]:
    """An empty database of each kind, on the clock of the test."""
    database = Database(database_url, clock=clock)
    yield database
    database.close()


@pytest.fixture
def sqlite_database(sqlite_database_url: str, clock: Clock) -> Iterator[Database]:
    """An empty database on the clock of the test."""
    database = Database(sqlite_database_url, clock=clock)
    yield database
    database.close()


@pytest.fixture
def queued_job(database: Database) -> JobRow:
    """A compression job that waits."""
    with database.writing() as session:
        return submit(session)
