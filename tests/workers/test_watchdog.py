"""When a worker takes itself for deaf."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from jobs.housekeeping import send_owed_hints
from jobs.repository.lifecycle import claim_job
from jobs.tables import JobRow
from tests.faults.installation import Installation
from workers.supervisor import Supervisor
from workers.watchdog import Watchdog

WAITING_SECONDS = 60.0


@pytest.fixture
def installation(tmp_path: Path, database_url: str) -> Iterator[Installation]:
    installation = Installation.at(tmp_path / "data", database_url)
    yield installation
    installation.close()


class Slot(Supervisor):
    """A supervisor that has been idle for a given time."""

    def __init__(self, idle_seconds: float) -> None:
        self._idle = idle_seconds

    @property
    def idle_seconds(self) -> float:
        return self._idle


class Void:
    def send_hint(self, job_id: str) -> None:
        """Lose it."""


def is_deaf(installation: Installation, *, idle_seconds: float = 2 * WAITING_SECONDS) -> bool:
    return Watchdog(Slot(idle_seconds), installation.database, waiting_seconds=WAITING_SECONDS).is_deaf()


def waiting_job(installation: Installation, *, for_seconds: float = 2 * WAITING_SECONDS, is_sent: bool = True) -> str:
    job_id = installation.submit()
    if is_sent:
        assert send_owed_hints(installation.database, Void())
    with installation.database.writing() as session:
        session.get_one(JobRow, job_id).available_at -= timedelta(seconds=for_seconds)
    return job_id


def test_idle_worker_is_deaf_when_a_job_waits_long_after_its_message(installation: Installation) -> None:
    waiting_job(installation)
    assert is_deaf(installation)


def test_worker_is_not_deaf_when_nothing_waits(installation: Installation) -> None:
    job_id = waiting_job(installation)
    installation.change(claim_job, job_id, worker="another", lease_seconds=60)
    assert not is_deaf(installation)


def test_worker_that_was_busy_is_not_deaf(installation: Installation) -> None:
    waiting_job(installation)
    assert not is_deaf(installation, idle_seconds=WAITING_SECONDS / 2)


def test_worker_is_not_deaf_when_the_job_has_not_waited_long(installation: Installation) -> None:
    waiting_job(installation, for_seconds=WAITING_SECONDS / 2)
    assert not is_deaf(installation)


def test_worker_is_not_deaf_while_the_broker_is_owed_the_message(installation: Installation) -> None:
    waiting_job(installation, is_sent=False)
    assert not is_deaf(installation)
