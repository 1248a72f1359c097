"""A real stack, and what may happen to it. Whatever does, every accepted job ends exactly once and its history has no gap."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from jobs.states import JobState
from service.embedded_redis import EmbeddedRedis
from tests.faults.faults import COSTS_AN_ATTEMPT, DELIVERED, FAULTS, TICKING, is_whole, recovery_seconds
from tests.faults.running_stack import RunningStack, running_stack

WORKERS = 2
QUICK = ("succeed", DELIVERED)
SLOW = ("tick", {"count": 600, "seconds": 60})


@pytest.fixture(scope="module")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One stack for all: what a fault leaves behind is the next one's problem."""
    folder = tmp_path_factory.mktemp("stack")
    crash = {"CRASH_FILE": str(folder / "crash")}
    with running_stack(folder, f"sqlite:///{folder}/winnow.sqlite", workers=WORKERS, environment=crash) as stack:
        yield stack


@pytest.fixture
def stack(shared_stack: RunningStack) -> RunningStack:
    shared_stack.wait_for(lambda: is_whole(shared_stack, workers=WORKERS))
    return shared_stack


def delivered(stack: RunningStack, job_id: str) -> dict[str, str]:
    rows = stack.installation.artifacts(job_id)
    return {name: stack.installation.artifact_text(row) for name, row in rows.items()}


@pytest.mark.parametrize("name", FAULTS)
def test_running_job_survives(name: str, stack: RunningStack) -> None:
    job_id = stack.installation.submit(*TICKING)
    recovery_seconds(stack, job_id, name, workers=WORKERS)
    assert stack.wait_for_end(job_id) == JobState.SUCCEEDED
    assert stack.installation.job(job_id).attempt == (2 if name in COSTS_AN_ATTEMPT else 1)
    assert delivered(stack, job_id) == DELIVERED


def test_stack_on_postgresql_survives_too_and_stops_in_order(tmp_path: Path, postgres_database_url: str) -> None:
    with running_stack(tmp_path, postgres_database_url, workers=WORKERS) as stack:
        for name in ("kill worker", "freeze worker"):
            job_id = stack.installation.submit(*TICKING)
            recovery_seconds(stack, job_id, name, workers=WORKERS)
            assert stack.wait_for_end(job_id) == JobState.SUCCEEDED
            assert delivered(stack, job_id) == DELIVERED
        job_id = stack.installation.submit(SLOW)
        stack.wait_for_ticks(job_id)
        family = stack.family()
        assert stack.stop() < 10 and stack.process.returncode == 0
        assert psutil.wait_procs(family, timeout=1)[1] == []
        job = stack.installation.job(job_id)
        assert (job.state, job.attempt) == (JobState.QUEUED, 0)


@pytest.mark.parametrize("moment", ["claimed", "laid_out", "runner_ended", "artifacts_stored", "committed"])
def test_worker_may_die_at_any_moment(moment: str, stack: RunningStack) -> None:
    crash = stack.installation.settings.data_folder / "crash"
    crash.write_text(moment)
    job_id = stack.installation.submit(QUICK)
    assert stack.wait_for_end(job_id) == JobState.SUCCEEDED
    stack.wait_for(lambda: not crash.exists())
    assert stack.installation.job(job_id).attempt == (1 if moment == "committed" else 2)
    assert delivered(stack, job_id) == DELIVERED
    stack.wait_for(lambda: not list(stack.installation.settings.jobs_folder.glob(f"{job_id}-*")))


def test_runner_that_always_dies_ends_the_job_after_its_attempts(stack: RunningStack) -> None:
    job_id = stack.installation.submit(("die", 9))
    assert stack.wait_for_end(job_id) == JobState.FAILED
    job = stack.installation.job(job_id)
    assert job.attempt == 3 and job.error is not None and job.error["code"] == "runner_crashed"


def test_queued_jobs_survive_a_flushed_redis(stack: RunningStack) -> None:
    busy = [stack.installation.submit(("tick", {"count": 10, "seconds": 1.5}), QUICK) for _ in range(WORKERS)]
    for job_id in busy:
        stack.wait_for_ticks(job_id)
    waiting = [stack.installation.submit(QUICK) for _ in range(3)]
    with broker(stack) as redis_server:
        stack.wait_for(lambda: redis_server.llen(stack.installation.settings.queue) >= len(waiting))
        redis_server.flushall()
    assert [stack.wait_for_end(job_id) for job_id in [*busy, *waiting]] == [JobState.SUCCEEDED] * 5


def test_job_submitted_while_redis_is_down_runs_when_it_is_back(stack: RunningStack) -> None:
    request = stack.installation.acceptable_request(QUICK)
    stack.redis().suspend()
    began = time.monotonic()
    status, job = stack.request("POST", "/v1/jobs", request)
    assert (status, time.monotonic() - began < 2) == (202, True), job
    time.sleep(0.5)
    stack.redis().kill()
    assert stack.wait_for_end(job["id"]) == JobState.SUCCEEDED


def test_cancel_over_http_takes_effect_within_three_seconds(stack: RunningStack) -> None:
    job_id = stack.installation.submit(("be_deaf", None), SLOW)
    stack.wait_for_ticks(job_id)
    began = time.monotonic()
    assert stack.request("POST", f"/v1/jobs/{job_id}/cancel")[0] in (200, 202)
    assert stack.wait_for_end(job_id) == JobState.CANCELLED
    assert time.monotonic() - began < 3 and not stack.runners()


def test_job_whose_worker_dies_before_it_noticed_the_cancel_is_cancelled(stack: RunningStack) -> None:
    job_id = stack.installation.submit(SLOW)
    stack.wait_for_ticks(job_id)
    worker = stack.worker_of(job_id)
    worker.suspend()
    assert stack.request("POST", f"/v1/jobs/{job_id}/cancel")[0] in (200, 202)
    worker.kill()
    assert stack.wait_for_end(job_id) == JobState.CANCELLED
    assert stack.installation.job(job_id).attempt == 1


def test_stopping_a_worker_gives_its_job_to_another(stack: RunningStack) -> None:
    job_id = stack.installation.submit(*TICKING)
    stack.wait_for_ticks(job_id)
    worker = stack.worker_of(job_id)
    worker.terminate()
    worker.wait(timeout=15)
    assert stack.wait_for_end(job_id) == JobState.SUCCEEDED
    events = [event for event in stack.installation.events(job_id) if event.type == JobState.QUEUED]
    assert [event.data for event in events] == [{}, {"reason": "worker_stopped"}]
    assert stack.installation.job(job_id).attempt == 1


def test_killed_stack_leaves_no_process_behind(tmp_path: Path) -> None:
    with running_stack(tmp_path, f"sqlite:///{tmp_path}/winnow.sqlite", workers=1) as stack:
        stack.wait_for_ticks(stack.installation.submit(SLOW))
        family = stack.family()
        assert len(family) >= 5  # itself, Redis, API, worker, runner
        stack.process.kill()
        stack.process.wait()
        assert psutil.wait_procs(family, timeout=5)[1] == []


def broker(stack: RunningStack) -> redis.Redis:
    """The stack's own Redis."""
    url = EmbeddedRedis(stack.installation.settings.data_folder / "redis").url
    return redis.Redis(unix_socket_path=url.removeprefix("redis+socket://"))
