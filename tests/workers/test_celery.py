"""A real Celery worker on a real Redis: what messages do, how the worker ends, and what it logs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from jobs.housekeeping import remind, send_owed_hints
from jobs.messages import RUN_JOB, celery_settings
from jobs.repository.outbox import owed_hints
from jobs.states import JobState
from service.job_queue import CeleryJobQueue
from tests.faults.installation import Installation
from tests.faults.running_stack import ROOT, SHORT, started_in

QUICK = ("succeed", {"model.onnx": "small"})
SECRET = "postgresql-password-that-nobody-may-see"


@pytest.fixture
def installation(tmp_path: Path, sqlite_database_url: str, redis_url: str) -> Iterator[Installation]:
    queue = f"queue-{tmp_path.name}-{os.getpid()}"
    installation = Installation.at(tmp_path / "data", sqlite_database_url, redis_url=redis_url, queue=queue, **SHORT)
    yield installation
    installation.close()


@pytest.fixture
def queue(installation: Installation) -> Iterator[CeleryJobQueue]:
    queue = CeleryJobQueue(installation.settings.redis_url, installation.settings.queue)
    yield queue
    queue.close()


@contextmanager
def running_worker(
    installation: Installation,
    log: Path,
    *,
    listen_on: str | None = None,
    reminder_seconds: float = SHORT["reminder_seconds"],
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as `winnow-server up` starts it; it has had time to connect."""
    settings = installation.settings
    names = ("data_folder", "database_url", "redis_url", "queue", *SHORT)
    chosen = {f"WINNOW_{name.upper()}": str(getattr(settings, name)) for name in names}
    chosen["WINNOW_REMINDER_SECONDS"] = str(reminder_seconds)
    options = ["-P", "threads", "-c", "1", "-Q", listen_on or settings.queue, "--without-mingle", "--without-gossip"]
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "--quiet", "-A", "tests.faults.scripted_worker", "worker", *options],
            env={**os.environ, **chosen, "SECRET": SECRET},
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(lambda: b"worker.ready" in log.read_bytes())
        yield worker
    finally:
        worker.kill()
        worker.wait()


def wait_for(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def has_ended(installation: Installation, job_id: str) -> bool:
    return installation.job(job_id).finished_at is not None


def test_worker_takes_hints_early_and_one_at_a_time() -> None:
    settings = celery_settings("redis://localhost", "winnow")
    assert settings["task_acks_late"] is False and settings["worker_disable_prefetch"] is True
    assert settings["accept_content"] == ["json"] and settings["task_ignore_result"] is True


def test_doubled_and_senseless_messages_harm_nothing(
    installation: Installation, queue: CeleryJobQueue, tmp_path: Path
) -> None:
    job_id = installation.submit(("tick", {"count": 5, "seconds": 0.5}), QUICK)
    with running_worker(installation, tmp_path / "log") as worker:
        sender = Celery(set_as_current=False)
        sender.conf.update(celery_settings(installation.settings.redis_url, installation.settings.queue))
        for senseless in ([], ["../../etc/passwd"], [None], [{"a": 1}], ["job_" + "0" * 26], [job_id, job_id]):
            sender.send_task(RUN_JOB, args=senseless)
        sender.close()
        for _ in range(3):
            queue.send_hint(job_id)
        wait_for(lambda: has_ended(installation, job_id))
        last = installation.submit(QUICK)
        queue.send_hint(last)
        wait_for(lambda: has_ended(installation, last))
        assert worker.poll() is None
    for ended in (job_id, last):
        installation.check_history(ended)
        assert (installation.job(ended).state, installation.job(ended).attempt) == (JobState.SUCCEEDED, 1)


_SEND_AND_DIE = """
import os, signal, sys
from jobs.database import Database
from jobs.housekeeping import send_owed_hints
from service.job_queue import CeleryJobQueue

class Dying(CeleryJobQueue):
    def send_hint(self, job_id):
        super().send_hint(job_id)
        os.kill(os.getpid(), signal.SIGKILL)

send_owed_hints(Database(sys.argv[1]), Dying(*sys.argv[2:]))
"""


def test_crash_between_sending_and_forgetting_a_hint_sends_it_twice_and_runs_the_job_once(
    installation: Installation, queue: CeleryJobQueue, tmp_path: Path
) -> None:
    job_id = installation.submit(QUICK)
    settings = installation.settings
    sender = [sys.executable, "-c", _SEND_AND_DIE, settings.database_url, settings.redis_url, settings.queue]
    assert subprocess.run(sender, cwd=ROOT).returncode == -signal.SIGKILL
    with installation.database.reading() as session:
        assert [hint.job_id for hint in owed_hints(session)] == [job_id]
    assert send_owed_hints(installation.database, queue)
    with running_worker(installation, tmp_path / "log"):
        wait_for(lambda: b"it is not waiting" in (tmp_path / "log").read_bytes())  # the second message was there
        wait_for(lambda: has_ended(installation, job_id))
    installation.check_history(job_id)
    assert installation.job(job_id).attempt == 1


def test_lost_message_is_sent_again(installation: Installation, queue: CeleryJobQueue, tmp_path: Path) -> None:
    job_id = installation.submit(QUICK)
    assert send_owed_hints(installation.database, Void())
    with running_worker(installation, tmp_path / "log"):
        time.sleep(SHORT["reminder_seconds"])
        remind(installation.database, reminder_seconds=SHORT["reminder_seconds"])
        assert send_owed_hints(installation.database, queue)
        wait_for(lambda: has_ended(installation, job_id))
    installation.check_history(job_id)


@pytest.mark.parametrize(("number", "state"), [(signal.SIGTERM, JobState.QUEUED), (signal.SIGKILL, JobState.RUNNING)])
def test_end_of_the_worker_ends_its_runner(
    number: signal.Signals, state: JobState, installation: Installation, queue: CeleryJobQueue, tmp_path: Path
) -> None:
    job_id = installation.submit(("tick", {"count": 600, "seconds": 60}))
    with running_worker(installation, tmp_path / "log") as worker:
        queue.send_hint(job_id)
        wait_for(lambda: installation.job(job_id).phase == "ticking")
        worker.send_signal(number)
        wait_for(lambda: not started_in(installation.settings.jobs_folder), seconds=3)
        worker.wait(timeout=15)
    assert installation.job(job_id).state == state


def test_worker_that_hears_nothing_ends_itself(installation: Installation, tmp_path: Path) -> None:
    with running_worker(installation, tmp_path / "log", listen_on="another-queue", reminder_seconds=0.5) as worker:
        installation.submit(QUICK)
        assert send_owed_hints(installation.database, Void())
        worker.wait(timeout=20)
    assert "worker.deaf" in (tmp_path / "log").read_text()


def test_log_is_json_names_the_job_and_holds_no_environment(
    installation: Installation, queue: CeleryJobQueue, tmp_path: Path
) -> None:
    job_id = installation.submit(("complain", "last words"), ("die", signal.SIGSEGV), max_attempts=1)
    with running_worker(installation, tmp_path / "log"):
        queue.send_hint(job_id)
        wait_for(lambda: has_ended(installation, job_id))
    text = (tmp_path / "log").read_text()
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    told = [line["event"] for line in lines if line.get("job_id") == job_id]
    assert told == ["job.claimed", "runner.started", "runner.crashed", "job.attempt_ended"]
    assert "last words" in text and SECRET not in text


class Void:
    """A broker that loses everything."""

    def send_hint(self, job_id: str) -> None:
        """Lose it."""
