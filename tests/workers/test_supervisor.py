"""The supervisor against scripted runners: every way in which a job can end, and what it does with hostile runners."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from jobs.database import now
from jobs.repository.lifecycle import claim_job, reap_lost_jobs, request_cancel, request_finish
from jobs.request import JobRequest
from jobs.states import JobState, UploadState
from jobs.tables import JobRow, ModelRow
from tests.faults.installation import Action, Installation
from tests.faults.running_stack import started_in
from workers.sandbox import detect
from workers.supervisor import Supervisor

QUICK = {"heartbeat_seconds": 0.2, "lease_seconds": 10, "retry_delay_seconds": 0, "cancel_grace_seconds": 0.3}
SUCCEED: Action = ("succeed", {"model.onnx": "small"})


@pytest.fixture
def installation(tmp_path: Path, sqlite_database_url: str) -> Iterator[Installation]:
    installation = Installation.at(tmp_path / "data", sqlite_database_url, **QUICK)
    yield installation
    installation.close()


@pytest.fixture
def supervisor(installation: Installation) -> Supervisor:
    return installation.supervisor()


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Where jobs run while the test does something to them."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield pool


def limited(installation: Installation, **settings: Any) -> Installation:
    return Installation.at(installation.settings.data_folder, installation.settings.database_url, **QUICK | settings)


def wait_for(condition: Callable[[], bool], *, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def wait_until_ticking(installation: Installation, job_id: str) -> None:
    wait_for(lambda: installation.job(job_id).phase == "ticking")


def runners(installation: Installation) -> list[psutil.Process]:
    return started_in(installation.settings.jobs_folder)


# -- good ends --------------------------------------------------------------------------------------------------------


def test_outputs_verdict_and_events_are_committed(tmp_path: Path, database_url: str) -> None:
    installation = Installation.at(tmp_path / "data", database_url, **QUICK)
    job_id = installation.submit(("tick", {"count": 3, "seconds": 0.1}), SUCCEED)
    installation.supervisor().run_job(job_id)
    installation.check_history(job_id)
    job = installation.job(job_id)
    assert (job.state, job.verdict, job.progress, job.attempt) == (JobState.SUCCEEDED, "It worked.", 1.0, 1)
    assert installation.artifact_text(installation.artifacts(job_id)["model.onnx"]) == "small"
    ticks = [event.data["data"]["tick"] for event in installation.events(job_id) if event.type == "progress"]
    assert ticks == [1, 2, 3]
    installation.close()


def test_runner_in_the_full_sandbox_does_its_job(installation: Installation) -> None:
    job_id = installation.submit(("tick", {"count": 2, "seconds": 0}), SUCCEED)
    installation.supervisor(isolation=detect()).run_job(job_id)
    assert installation.job(job_id).state == JobState.SUCCEEDED


def test_inspection_makes_the_model_ready(installation: Installation, supervisor: Supervisor) -> None:
    found = {
        "format": "onnx", "inputs": [], "outputs": [], "batch_size": None, "classes": 10, "parameters": 3, "macs": 4,
        "layers": [], "operators": {},
    }  # fmt: skip
    job_id = installation.submit(("result", {"model": found}), kind="inspect_model")
    supervisor.run_job(job_id)
    with installation.database.reading() as session:
        model = session.get_one(ModelRow, installation.job(job_id).model_id)
    assert model.state == UploadState.READY and model.inspection is not None and model.inspection["classes"] == 10


def test_rejection_of_the_runner_reaches_the_model(installation: Installation, supervisor: Supervisor) -> None:
    error = {"code": "model_rejected", "message": "This is a pickle.", "where": {"entry": "x"}}
    job_id = installation.submit(("result", {"error": error}), kind="inspect_model")
    supervisor.run_job(job_id)
    with installation.database.reading() as session:
        model = session.get_one(ModelRow, installation.job(job_id).model_id)
    assert model.state == UploadState.REJECTED and model.error is not None and model.error["code"] == "model_rejected"


def test_request_holds_what_the_row_says_and_inputs_are_read_only(installation: Installation) -> None:
    wish = {"from": "request.json", "to": "outputs/request.json"}
    job_id = installation.submit(
        ("copy", wish), ("result", {"outputs": [{"path": "request.json", "kind": "model", "media_type": "a/b"}]})
    )
    isolation = detect()
    installation.supervisor(isolation=isolation).run_job(job_id)
    assignment = json.loads(installation.artifact_text(installation.artifacts(job_id)["request.json"]))["assignment"]
    expected = JobRequest.model_validate(installation.job(job_id).request)
    assert assignment["recipe"] == [step.model_dump(mode="json") for step in expected.recipe]
    assert assignment["model"]["path"] == "inputs/model.json" and assignment["model"]["filename"] == "script.json"
    assert assignment["sandbox"]["network"] == isolation.network


def test_folder_is_removed_when_the_job_is_over(installation: Installation, supervisor: Supervisor) -> None:
    supervisor.run_job(installation.submit(SUCCEED))
    supervisor.run_job(installation.submit(("result", {"error": {"code": "internal", "message": "no"}})))
    assert list(installation.settings.jobs_folder.iterdir()) == []


def test_hint_for_a_job_that_is_not_waiting_does_nothing(installation: Installation, supervisor: Supervisor) -> None:
    job_id = installation.submit(SUCCEED)
    supervisor.run_job(job_id)
    before = installation.job(job_id).version
    supervisor.run_job(job_id)
    supervisor.run_job("job_" + "0" * 26)
    assert installation.job(job_id).version == before


# -- progress ---------------------------------------------------------------------------------------------------------


def test_progress_is_written_seldom_and_its_last_value_arrives(
    installation: Installation, supervisor: Supervisor
) -> None:
    lines = [("progress", {"type": "progress", "phase": "counting", "fraction": n / 1000}) for n in range(1000)]
    job_id = installation.submit(*lines, ("leave", 1), max_attempts=1)
    supervisor.run_job(job_id)
    job = installation.job(job_id)
    assert job.progress == pytest.approx(0.999) and job.phase == "counting"
    assert job.version < 12  # claimed, a few writes, failed


def test_junk_on_standard_output_is_dropped(installation: Installation, supervisor: Supervisor) -> None:
    junk = [
        "not json", "{}", "[1]", "null", '{"type": "succeeded", "phase": "x"}', '{"type": "event", "phase": "x", "fraction": 2}',
        '{"type": "event", "phase": "x", "step": 99999999999}', '{"type": "event", "phase": "x", "message": "\\ud800"}',
        '{"type": "event", "phase": "x", "data": {"n": 99999999999999999999999}}', '{"type": "event", "phase": "' + "x" * 65 + '"}',
        '{"type": "event", "phase": "x", "data": ' + '{"a":' * 200 + "1" + "}" * 200 + "}", "x" * 200_000,
        '{"type": "event", "phase": "x", "message": "' + "y" * 70_000 + '"}',
    ]  # fmt: skip
    good = ("progress", {"type": "event", "phase": "fine\x00", "data": {"nul": "\x00"}})
    job_id = installation.submit(*[("say", line) for line in junk], good, SUCCEED)
    supervisor.run_job(job_id)
    events = [event for event in installation.events(job_id) if event.type == "progress"]
    assert [event.data["phase"] for event in events] == ["fine\ufffd"]
    assert installation.job(job_id).state == JobState.SUCCEEDED


def test_flood_of_events_is_bounded(
    installation: Installation, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.progress_reporter.MAX_EVENTS", 5)
    job_id = installation.submit(("tick", {"count": 50, "seconds": 0}), SUCCEED)
    supervisor.run_job(job_id)
    installation.check_history(job_id)
    assert len([event for event in installation.events(job_id) if event.type == "progress"]) == 5


# -- bad ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "says"),
    [
        (("die", signal.SIGKILL), "signal 9"), (("die", signal.SIGSEGV), "signal 11"),
        (("leave", 3), "exit code 3"), (("leave", 0), "no result"),
    ],
    ids=["killed", "segfault", "error", "silent"],
)  # fmt: skip
def test_crash_costs_an_attempt_and_then_the_job(ending: Action, says: str, installation: Installation) -> None:
    supervisor = installation.supervisor()
    job_id = installation.submit(ending, max_attempts=2)
    supervisor.run_job(job_id)
    assert installation.job(job_id).state == JobState.QUEUED
    supervisor.run_job(job_id)
    installation.check_history(job_id)
    job = installation.job(job_id)
    assert (job.state, job.attempt) == (JobState.FAILED, 2) and job.error is not None
    assert job.error["code"] == "runner_crashed" and says in job.error["message"] and job.error["retryable"]


def test_next_attempt_finds_the_checkpoints_of_the_lost_one(installation: Installation) -> None:
    supervisor = installation.supervisor(isolation=detect())
    job_id = installation.submit(("crash_first_time", signal.SIGKILL), SUCCEED)
    supervisor.run_job(job_id)
    supervisor.run_job(job_id)
    job = installation.job(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)


def test_checkpoints_that_are_links_are_not_followed(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    wish = {"from": "work/checkpoints/stolen", "to": "outputs/seen"}
    job_id = installation.submit(
        ("copy", wish),
        ("link", {"path": "work/checkpoints/stolen", "to": str(tmp_path / "secret")}),
        ("crash_first_time", signal.SIGKILL),
        ("result", {"outputs": [{"path": "seen", "kind": "model", "media_type": "a/b"}]}),
    )
    supervisor = installation.supervisor()
    supervisor.run_job(job_id)
    supervisor.run_job(job_id)
    assert installation.artifact_text(installation.artifacts(job_id)["seen"]) == "nothing"


def test_end_of_the_runners_log_is_kept_in_the_workers(installation: Installation, supervisor: Supervisor) -> None:
    with structlog.testing.capture_logs() as logged:
        supervisor.run_job(installation.submit(("complain", "x" * 10_000 + "the end"), ("leave", 1)))
    (tail,) = (line["log_tail"] for line in logged if line["event"] == "runner.crashed")
    assert tail.rstrip().endswith("the end") and len(tail) < 6000


def test_deadline_ends_the_job(installation: Installation, supervisor: Supervisor) -> None:
    job_id = installation.submit(("be_deaf", None), ("sleep", 60), deadline_seconds=0.5)
    started = time.monotonic()
    supervisor.run_job(job_id)
    job = installation.job(job_id)
    assert job.error is not None and job.error["code"] == "deadline_exceeded" and "0.5 seconds" in job.error["message"]
    assert time.monotonic() - started < 5


def test_deadline_counts_from_the_first_attempt(installation: Installation, supervisor: Supervisor) -> None:
    job_id = installation.submit(("leave", 1), deadline_seconds=0.3)
    supervisor.run_job(job_id)
    time.sleep(0.3)
    supervisor.run_job(job_id)
    job = installation.job(job_id)
    assert job.error is not None and job.error["code"] == "deadline_exceeded"


def test_silent_runner_is_stopped(installation: Installation) -> None:
    impatient = limited(installation, stall_seconds=0.5)
    job_id = impatient.submit(("tick", {"count": 4, "seconds": 0.8}), ("sleep", 60))
    impatient.supervisor().run_job(job_id)
    job = impatient.job(job_id)
    assert job.error is not None and job.error["code"] == "stalled" and job.progress == 1.0


def test_memory_of_the_whole_group_is_limited(installation: Installation) -> None:
    small = limited(installation, memory_limit_bytes=2**28)
    hungry = small.submit(("hoard", 2**29), ("sleep", 60))
    modest = small.submit(("hoard", 2**26), ("sleep", 0.5), SUCCEED)
    supervisor = small.supervisor(isolation=detect())
    supervisor.run_job(hungry)
    supervisor.run_job(modest)
    error = small.job(hungry).error
    assert error is not None and error["code"] == "out_of_memory" and "256 MiB" in error["message"]
    assert small.job(modest).state == JobState.SUCCEEDED


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_lost_input_fails_the_job(harm: str, installation: Installation, supervisor: Supervisor) -> None:
    job_id = installation.submit(SUCCEED)
    with installation.database.reading() as session:
        sha256 = session.get_one(ModelRow, installation.job(job_id).model_id).sha256
    blob = next(installation.settings.storage_folder.rglob(sha256))
    blob.unlink() if harm == "missing" else blob.write_text("other")
    supervisor.run_job(job_id)
    job = installation.job(job_id)
    assert job.error is not None and "missing or damaged" in job.error["message"] and job.attempt == 1


# -- hostile results --------------------------------------------------------------------------------------------------

MODEL_FILE = {"path": "m", "kind": "model", "media_type": "a/b"}


@pytest.mark.parametrize(
    "actions",
    [
        [("write", {"path": "result.json", "text": "{"})],
        [("write", {"path": "result.json", "text": "[" * 100_000})],
        [("write", {"path": "result.json", "text": '{"outputs": [], "verdict": "nothing"}'})],
        [("result", {"outputs": [MODEL_FILE], "error": {"code": "internal", "message": "both"}})],
        [("link", {"path": "result.json", "to": "/etc/passwd"})],
        [("pipe", "result.json")],
        [("result", {"outputs": [MODEL_FILE]})],
        [("result", {"outputs": [{**MODEL_FILE, "path": "../request.json"}]})],
        [("result", {"outputs": [{**MODEL_FILE, "path": ".."}]})],
        [("result", {"outputs": [{**MODEL_FILE, "path": "/etc/passwd"}]})],
        [("link", {"path": "outputs/m", "to": "/etc/passwd"}), ("result", {"outputs": [MODEL_FILE]})],
        [
            ("write", {"path": "work/other", "text": "x"}), ("hardlink", {"path": "outputs/m", "to": "other"}),
            ("result", {"outputs": [MODEL_FILE]}),
        ],
        [("pipe", "outputs/m"), ("result", {"outputs": [MODEL_FILE]})],
        [("write", {"path": "outputs/m", "text": "x"}), ("result", {"outputs": [MODEL_FILE, MODEL_FILE]})],
        [
            ("write", {"path": "outputs/m", "text": "x" * 2**19}), ("write", {"path": "outputs/n", "text": "x" * 2**19 + "x"}),
            ("result", {"outputs": [MODEL_FILE, {**MODEL_FILE, "path": "n"}]}),
        ],
        [("write", {"path": "outputs/m", "text": "{}"}), ("result", {"outputs": [{**MODEL_FILE, "kind": "report"}]})],
    ],
    ids=[
        "broken-json", "deep-json", "empty", "error-and-outputs", "result-is-link", "result-is-pipe", "missing", "traversal",
        "parent",         "absolute", "link", "hard-link", "pipe", "twice", "too-large", "no-report",
    ],
)  # fmt: skip
def test_hostile_result_fails_the_job_and_stores_nothing(actions: list[Action], installation: Installation) -> None:
    narrow = limited(installation, disk_limit_bytes=2**20)
    job_id = narrow.submit(*actions)
    narrow.supervisor().run_job(job_id)
    narrow.check_history(job_id)
    job = narrow.job(job_id)
    assert job.state == JobState.FAILED and job.error is not None
    assert "can't be accepted" in job.error["message"] and job.attempt == 1


def test_what_the_runner_left_running_is_ended(installation: Installation) -> None:
    for isolation in (detect(), None):
        supervisor = installation.supervisor(**{} if isolation is None else {"isolation": isolation})
        job_id = installation.submit(("fork_away", 60), ("sleep", 0.5), SUCCEED)
        supervisor.run_job(job_id)
        assert installation.job(job_id).state == JobState.SUCCEEDED
        assert runners(installation) == []


# -- cancelling, stopping, losing the lease ---------------------------------------------------------------------------


def start(background: ThreadPoolExecutor, supervisor: Supervisor, job_id: str) -> Future[None]:
    return background.submit(supervisor.run_job, job_id)


@pytest.mark.parametrize("attitude", ["willing", "deaf"])
def test_cancel_takes_effect_within_three_seconds_with_default_settings(
    attitude: str, tmp_path: Path, sqlite_database_url: str, background: ThreadPoolExecutor
) -> None:
    installation = Installation.at(tmp_path / "data", sqlite_database_url)
    deaf: list[Action] = [("be_deaf", None)] if attitude == "deaf" else []
    job_id = installation.submit(*deaf, ("tick", {"count": 600, "seconds": 60}), SUCCEED)
    running = start(background, installation.supervisor(isolation=detect()), job_id)
    wait_until_ticking(installation, job_id)
    asked = time.monotonic()
    installation.change(request_cancel, job_id)
    running.result(timeout=10)
    assert time.monotonic() - asked < 3
    installation.check_history(job_id)
    assert installation.job(job_id).state == JobState.CANCELLED and runners(installation) == []
    installation.close()


@pytest.mark.parametrize("isolated", [True, False], ids=["sandboxed", "open"])
def test_wish_to_finish_reaches_the_runner_of_this_attempt_and_of_the_next(
    isolated: bool, installation: Installation, background: ThreadPoolExecutor
) -> None:
    supervisor = installation.supervisor(**{"isolation": detect()} if isolated else {})
    job_id = installation.submit(
        ("tick", {"count": 1, "seconds": 0}), ("wait_for", "finish"), ("crash_first_time", 9), SUCCEED
    )
    running = start(background, supervisor, job_id)
    wait_until_ticking(installation, job_id)
    installation.change(request_finish, job_id)
    running.result(timeout=10)
    assert (installation.job(job_id).state, installation.job(job_id).attempt) == (JobState.QUEUED, 1)
    supervisor.run_job(job_id)
    installation.check_history(job_id)
    assert (installation.job(job_id).state, installation.job(job_id).attempt) == (JobState.SUCCEEDED, 2)
    assert [event.type for event in installation.events(job_id) if event.type != "progress"] == [
        "queued", "running", "finish_requested", "queued", "running", "succeeded",
    ]  # fmt: skip


def test_runner_is_not_told_to_finish_unless_that_is_wanted(installation: Installation, supervisor: Supervisor) -> None:
    wish = {"from": "finish", "to": "outputs/seen"}
    seen = ("result", {"outputs": [{"path": "seen", "kind": "model", "media_type": "a/b"}]})
    job_id = installation.submit(("sleep", 1), ("copy", wish), seen)
    supervisor.run_job(job_id)
    assert installation.artifact_text(installation.artifacts(job_id)["seen"]) == "nothing"


def test_link_in_the_place_of_the_wish_to_finish_is_not_followed(
    installation: Installation, background: ThreadPoolExecutor, tmp_path: Path
) -> None:
    target = tmp_path / "made by the supervisor"
    job_id = installation.submit(
        ("link", {"path": "finish", "to": str(target)}), ("tick", {"count": 1, "seconds": 0}), ("sleep", 1.5), SUCCEED
    )
    running = start(background, installation.supervisor(), job_id)
    wait_until_ticking(installation, job_id)
    installation.change(request_finish, job_id)
    running.result(timeout=10)
    assert installation.job(job_id).state == JobState.SUCCEEDED
    assert not target.exists()


def test_cancel_outweighs_a_wish_to_finish(installation: Installation, background: ThreadPoolExecutor) -> None:
    job_id = installation.submit(("tick", {"count": 600, "seconds": 60}), SUCCEED)
    installation.change(request_finish, job_id)
    running = start(background, installation.supervisor(), job_id)
    wait_until_ticking(installation, job_id)
    installation.change(request_cancel, job_id)
    running.result(timeout=10)
    installation.check_history(job_id)
    assert installation.job(job_id).state == JobState.CANCELLED


def test_stopping_gives_the_job_back_without_spending_an_attempt(
    installation: Installation, background: ThreadPoolExecutor
) -> None:
    supervisor = installation.supervisor()
    job_id = installation.submit(("tick", {"count": 600, "seconds": 60}))
    running = start(background, supervisor, job_id)
    wait_until_ticking(installation, job_id)
    supervisor.drain()
    running.result(timeout=5)
    job = installation.job(job_id)
    assert (job.state, job.attempt, job.lease_token) == (JobState.QUEUED, 0, None) and runners(installation) == []
    supervisor.run_job(job_id)
    assert installation.job(job_id).state == JobState.QUEUED, "a stopping worker claims nothing"


def test_job_cancelled_while_the_worker_stops_is_cancelled(
    installation: Installation, background: ThreadPoolExecutor
) -> None:
    supervisor = limited(installation, heartbeat_seconds=3).supervisor()
    job_id = installation.submit(("tick", {"count": 600, "seconds": 60}))
    running = start(background, supervisor, job_id)
    wait_until_ticking(installation, job_id)
    supervisor.drain()
    installation.change(request_cancel, job_id)
    running.result(timeout=5)
    assert installation.job(job_id).state == JobState.CANCELLED


def test_fenced_supervisor_kills_its_runner_and_writes_nothing(
    tmp_path: Path, database_url: str, background: ThreadPoolExecutor
) -> None:
    installation = Installation.at(tmp_path / "data", database_url, **QUICK)
    job_id = installation.submit(("tick", {"count": 600, "seconds": 60}), SUCCEED)
    running = start(background, installation.supervisor(), job_id)
    wait_until_ticking(installation, job_id)
    other = installation.change(_take_from_its_worker, job_id)
    running.result(timeout=5)
    job = installation.job(job_id)
    assert (job.state, job.lease_token, job.attempt) == (JobState.RUNNING, other, 2) and runners(installation) == []
    installation.close()


def test_unreachable_database_makes_the_supervisor_kill_its_runner_before_the_lease_is_over(
    installation: Installation, background: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = limited(installation, lease_seconds=1.5)
    job_id = short.submit(("tick", {"count": 600, "seconds": 60}))
    running = start(background, short.supervisor(), job_id)
    wait_until_ticking(short, job_id)
    monkeypatch.setattr("workers.lease.renew_lease", _away)
    monkeypatch.setattr("workers.progress_reporter.record_progress", _away)
    lost = time.monotonic()
    running.result(timeout=5)
    assert time.monotonic() - lost < 1.5 and runners(short) == []
    assert short.job(job_id).state == JobState.RUNNING  # the reaper's, from here on


def test_short_outage_of_the_database_costs_nothing(
    installation: Installation, background: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = installation.submit(("tick", {"count": 10, "seconds": 1}), SUCCEED)
    running = start(background, installation.supervisor(), job_id)
    wait_until_ticking(installation, job_id)
    with monkeypatch.context() as outage:
        for name in (
            "lease.renew_lease",
            "lease.wishes_for",
            "progress_reporter.record_progress",
            "supervisor.succeed_job",
        ):
            outage.setattr(f"workers.{name}", _away)
        time.sleep(1.5)
    running.result(timeout=10)
    installation.check_history(job_id)
    ticks = [event.data["data"]["tick"] for event in installation.events(job_id) if event.type == "progress"]
    assert ticks == list(range(1, 11)) and installation.job(job_id).attempt == 1


def test_mistake_of_the_supervisor_costs_an_attempt_and_leaves_no_runner(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.supervisor.store_outputs", lambda *_, **__: 1 / 0)
    job_id = installation.submit(SUCCEED, max_attempts=1)
    installation.supervisor().run_job(job_id)
    error = installation.job(job_id).error
    assert error is not None and error["code"] == "internal" and runners(installation) == []


def test_full_disk_fails_the_job_and_says_so(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    for place in ("supervisor.store_outputs", "job_folder.write_atomically"):
        with monkeypatch.context() as patched:
            patched.setattr(f"workers.{place}", full)
            job_id = installation.submit(SUCCEED)
            installation.supervisor().run_job(job_id)
        error = installation.job(job_id).error
        assert error is not None and error["code"] == "disk_full" and error["retryable"]


def test_folders_of_jobs_that_are_over_are_swept(installation: Installation, supervisor: Supervisor) -> None:
    waiting = installation.submit(SUCCEED)
    over = installation.submit(SUCCEED)
    supervisor.run_job(over)
    folders = [
        installation.settings.jobs_folder / f"{job_id}-1-01234567" for job_id in (waiting, over, "job_" + "0" * 26)
    ]
    for folder in [*folders, installation.settings.jobs_folder / "notes"]:
        folder.mkdir()
    supervisor.sweep()
    assert sorted(path.name for path in installation.settings.jobs_folder.iterdir()) == sorted(
        [folders[0].name, "notes"]
    )


def _away(*_: object, **__: object) -> None:
    raise OperationalError("a statement", None, Exception("the database is away"))


def _take_from_its_worker(session: Session, job_id: str) -> str:
    """What happens when the lease runs out: the reaper takes the job, and another worker claims it."""
    job = session.get_one(JobRow, job_id)
    job.lease_expires_at = now(session) - timedelta(seconds=1)
    session.flush()
    assert [lost.id for lost in reap_lost_jobs(session, retry_delay_seconds=0)] == [job_id]
    claimed = claim_job(session, job_id, worker="another", lease_seconds=60)
    assert claimed is not None and claimed.lease_token is not None
    return claimed.lease_token
