"""What the service says of itself, and what it does when something that it needs is missing."""

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.messages import QueueUnavailable
from jobs.settings import Settings
from service.job_queue import CeleryJobQueue
from tests.service.conftest import StartService
from tests.service.running_service import RunningService, running_service


def test_service_is_alive_and_ready(each_service: RunningService) -> None:
    assert each_service.http.get("/livez").json() == {"status": "ok"}
    ready = each_service.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert set(ready.json()["checks"]) == {"database", "migrations", "broker", "disk"}


def test_version_names_the_api(service: RunningService) -> None:
    assert service.http.get("/version").json()["api"] == "v1"


def test_broker_that_is_down_is_named_and_jobs_are_still_accepted(start_service: StartService) -> None:
    with start_service() as service:
        service.broker.is_down = True
        ready = service.http.get("/readyz")
        job = service.submit()
        service.broker.is_down = False
        deadline = time.monotonic() + 5
        while job["id"] not in service.broker.hints:  # the hint that was owed goes out when the broker is back
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert (ready.status_code, ready.json()["type"]) == (503, "/problems/service-not-ready")
    assert ready.json()["where"]["checks"]["broker"]["ok"] is False
    assert ready.json()["where"]["checks"]["database"]["ok"] is True


def test_disk_that_is_full_is_named(start_service: StartService) -> None:
    with start_service(min_free_bytes=2**62) as service:
        assert "disk" in service.http.get("/readyz").json()["detail"]


def test_database_without_tables_is_not_ready_and_no_server_error(tmp_path: Path) -> None:
    with running_service(Settings(data_folder=tmp_path, housekeeping_seconds=0.1)) as service:
        ready, jobs = service.http.get("/readyz"), service.http.get("/v1/jobs")
    assert (ready.status_code, jobs.status_code) == (503, 503)
    assert "migrate" in ready.json()["where"]["checks"]["migrations"]["detail"]
    assert (jobs.json()["type"], jobs.headers["Retry-After"]) == ("/problems/database-unavailable", "2")


def test_poll_is_answered_while_another_process_writes(start_service: StartService) -> None:
    with start_service(housekeeping_seconds=60) as service:
        job_id = service.submit()["id"]
        tag = service.http.get(f"/v1/jobs/{job_id}").headers["ETag"]
        with sqlite3.connect(service.settings.data_folder / "winnow.sqlite") as other:
            other.execute("BEGIN IMMEDIATE")
            poll = service.http.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": tag}, timeout=2)
            other.rollback()
        other.close()
    assert poll.status_code == 304


def test_lost_worker_is_noticed_by_the_housekeeping(start_service: StartService) -> None:
    with start_service() as service:
        job_id = service.submit()["id"]
        service.worker.start(job_id)
        with service.database.writing() as session:
            session.connection().exec_driver_sql(
                "UPDATE jobs SET lease_expires_at = '2020-01-01 00:00:00.000000' WHERE id = ?", (job_id,)
            )
        deadline = time.monotonic() + 5
        while service.http.get(f"/v1/jobs/{job_id}").json()["state"] != "queued":
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_housekeeping_survives_a_failure(start_service: StartService) -> None:
    with start_service(housekeeping_seconds=0.05) as service:
        hints = service.broker.hints
        service.broker.hints = None  # type: ignore[assignment]  # a fault that nobody foresaw
        job_id = service.submit()["id"]
        time.sleep(0.3)
        service.broker.hints = hints
        deadline = time.monotonic() + 5
        while job_id not in hints:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_hint_is_sent_through_celery(redis_url: str) -> None:
    queue = CeleryJobQueue(redis_url, "test-hints")
    queue.ping()
    queue.send_hint("job_x")
    with queue._celery.connection_for_read() as connection:
        message = connection.SimpleQueue("test-hints").get(timeout=5)
        message.ack()
    queue.close()
    assert (message.headers["task"], message.payload[0]) == ("winnow.run_job", ["job_x"])


@pytest.mark.parametrize("act", ["ping", "send_hint"])
def test_broker_that_cannot_be_reached_is_reported_soon(act: str) -> None:
    queue = CeleryJobQueue("redis://127.0.0.1:1/0", "nowhere")
    began = time.monotonic()
    with pytest.raises(QueueUnavailable):
        queue.ping() if act == "ping" else queue.send_hint("job_x")
    queue.close()
    assert time.monotonic() - began < 6


def test_service_loads_neither_torch_nor_the_workers() -> None:
    program = "import sys, service.app; print([m for m in sys.modules if m.partition('.')[0] in %r or m in %r])"
    heavy, worker = ("torch", "numpy", "onnx", "onnxruntime", "workers", "PIL"), ("celery.worker", "celery.apps.worker")
    output = subprocess.run(
        [sys.executable, "-c", program % (heavy, worker)], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"
