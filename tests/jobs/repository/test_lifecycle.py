"""How jobs change their states: what each change does, who may make it, and what it leaves behind."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.errors import ErrorCode, JobError
from jobs.repository.lifecycle import (
    IllegalTransition,
    LeaseLost,
    NewArtifact,
    Wishes,
    claim_job,
    fail_job,
    finish_cancel,
    give_back_job,
    lose_attempt,
    reap_lost_jobs,
    record_progress,
    renew_lease,
    request_cancel,
    request_finish,
    succeed_job,
)
from jobs.repository.queries import artifacts_of
from jobs.repository.worker_queries import wishes_for
from jobs.tables import DatasetRow, JobInputRow, JobRow, ModelRow
from tests.jobs.rows import (
    LEASE_SECONDS,
    Clock,
    add_dataset,
    add_model,
    claim,
    digest_of,
    event_types,
    events,
    load,
    owed,
    submit,
)

ERROR = JobError(code=ErrorCode.RUNNER_CRASHED, message="The runner ended with signal 11.", retryable=True)
STALE = "0" * 32
MODEL_FILE = NewArtifact(
    name="model.onnx", kind="model", media_type="application/octet-stream", size_bytes=5, sha256=digest_of("small")
)

# Everything that a worker may write, which its token must protect.
HOLDERS_WRITES: dict[str, Callable[[Session, str, str], Any]] = {
    "renew": lambda session, job_id, token: renew_lease(session, job_id, token, lease_seconds=LEASE_SECONDS),
    "progress": lambda session, job_id, token: record_progress(
        session, job_id, token, phase="reading", fraction=0.5, step=0, message=None, events=[("note", {})]
    ),
    "succeed": lambda session, job_id, token: succeed_job(session, job_id, token, artifacts=[MODEL_FILE]),
    "fail": lambda session, job_id, token: fail_job(session, job_id, token, ERROR),
    "lose": lambda session, job_id, token: lose_attempt(session, job_id, token, ERROR, retry_delay_seconds=2),
    "give_back": give_back_job,
    "finish_cancel": finish_cancel,
}


def reap(database: Database, *, retry_delay_seconds: float = 2) -> list[str]:
    with database.writing() as session:
        return [job.id for job in reap_lost_jobs(session, retry_delay_seconds=retry_delay_seconds)]


def cancel(database: Database, job_id: str) -> JobRow | None:
    with database.writing() as session:
        return request_cancel(session, job_id)


def finish(database: Database, job_id: str) -> JobRow | None:
    with database.writing() as session:
        return request_finish(session, job_id)


class TestSubmit:
    def test_a_new_job_waits_with_its_first_event_and_a_message(self, database: Database, clock: Clock) -> None:
        with database.writing() as session:
            dataset = add_dataset(session)
            job = submit(session, inputs={"selection": dataset.id, "test": dataset.id})
        found = load(database, job.id)
        assert (found.state, found.attempt, found.version, found.created_at) == ("queued", 0, 1, clock())
        assert event_types(database, job.id) == ["queued"]
        assert owed(database) == [job.id]
        with database.reading() as session:
            roles = session.execute(select(JobInputRow.role).order_by(JobInputRow.role)).scalars().all()
        assert roles == ["selection", "test"]

    def test_a_retry_knows_its_parent(self, database: Database, queued_job: JobRow) -> None:
        with database.writing() as session:
            retry = submit(session, model_id=queued_job.model_id, parent_id=queued_job.id)
        assert load(database, retry.id).parent_id == queued_job.id


class TestClaim:
    def test_the_claimed_job_runs_under_a_lease(self, database: Database, queued_job: JobRow, clock: Clock) -> None:
        claim(database, queued_job.id, worker="gpu-1")
        job = load(database, queued_job.id)
        assert (job.state, job.attempt, job.worker, job.phase) == ("running", 1, "gpu-1", "starting")
        assert job.started_at == clock()
        assert job.lease_expires_at == clock() + timedelta(seconds=LEASE_SECONDS)
        assert event_types(database, job.id) == ["queued", "running"]
        assert events(database, job.id)[1].data == {"attempt": 1, "max_attempts": 3}

    def test_a_doubled_message_finds_nothing_to_claim(self, database: Database, queued_job: JobRow) -> None:
        claim(database, queued_job.id)
        before = load(database, queued_job.id)
        with database.writing() as session:
            assert claim_job(session, queued_job.id, worker="worker-2", lease_seconds=LEASE_SECONDS) is None
        after = load(database, queued_job.id)
        assert (after.version, after.lease_token, after.worker) == (before.version, before.lease_token, "worker-1")

    def test_an_early_message_finds_nothing_to_claim(
        self, database: Database, queued_job: JobRow, clock: Clock
    ) -> None:
        token = claim(database, queued_job.id)
        with database.writing() as session:
            lose_attempt(session, queued_job.id, token, ERROR, retry_delay_seconds=10)
        clock.advance(9)
        with database.writing() as session:
            assert claim_job(session, queued_job.id, worker="worker-1", lease_seconds=LEASE_SECONDS) is None
        clock.advance(1)
        claim(database, queued_job.id)

    def test_an_unknown_job_can_not_be_claimed(self, database: Database) -> None:
        with database.writing() as session:
            assert claim_job(session, "job_" + "0" * 26, worker="worker-1", lease_seconds=1) is None

    def test_every_claim_has_another_token(self, database: Database, queued_job: JobRow) -> None:
        tokens = set()
        for _ in range(3):
            tokens.add(token := claim(database, queued_job.id))
            with database.writing() as session:
                give_back_job(session, queued_job.id, token)
        assert len(tokens) == 3

    def test_a_second_attempt_starts_from_nothing(self, database: Database, queued_job: JobRow, clock: Clock) -> None:
        first_start = clock()
        token = claim(database, queued_job.id)
        with database.writing() as session:
            record_progress(session, queued_job.id, token, phase="reading", fraction=0.7, step=1, message="halfway")
            lose_attempt(session, queued_job.id, token, ERROR, retry_delay_seconds=0)
        waiting = load(database, queued_job.id)
        assert (waiting.phase, waiting.progress, waiting.step, waiting.message) == (None, 0.0, None, None)
        clock.advance(1)
        claim(database, queued_job.id)
        job = load(database, queued_job.id)
        assert (job.attempt, job.phase, job.progress, job.step, job.message) == (2, "starting", 0.0, None, None)
        assert job.started_at == first_start


class TestLease:
    def test_renewing_makes_it_last_longer(self, database: Database, queued_job: JobRow, clock: Clock) -> None:
        token = claim(database, queued_job.id)
        version = load(database, queued_job.id).version
        clock.advance(60)
        with database.writing() as session:
            beat = renew_lease(session, queued_job.id, token, lease_seconds=LEASE_SECONDS)
        assert not beat.cancel
        assert not beat.finish
        job = load(database, queued_job.id)
        assert job.lease_expires_at == clock() + timedelta(seconds=LEASE_SECONDS)
        assert job.version == version  # clients see nothing of it

    def test_renewing_tells_of_a_wish_to_cancel(self, database: Database, queued_job: JobRow) -> None:
        token = claim(database, queued_job.id)
        cancel(database, queued_job.id)
        with database.writing() as session:
            assert renew_lease(session, queued_job.id, token, lease_seconds=LEASE_SECONDS).cancel

    @pytest.mark.parametrize("write", HOLDERS_WRITES.values(), ids=HOLDERS_WRITES)
    def test_a_stale_token_writes_nothing(
        self, write: Callable[[Session, str, str], Any], database: Database, queued_job: JobRow, clock: Clock
    ) -> None:
        stale = claim(database, queued_job.id)
        clock.advance(LEASE_SECONDS + 1)
        reap(database)
        clock.advance(60)
        claim(database, queued_job.id, worker="worker-2")
        before, told = load(database, queued_job.id), event_types(database, queued_job.id)
        with pytest.raises(LeaseLost), database.writing() as session:
            write(session, queued_job.id, stale)
        after = load(database, queued_job.id)
        assert (after.state, after.version, after.worker, after.attempt) == ("running", before.version, "worker-2", 2)
        assert event_types(database, queued_job.id) == told

    @pytest.mark.parametrize("write", HOLDERS_WRITES.values(), ids=HOLDERS_WRITES)
    def test_nobody_writes_to_a_waiting_job(
        self, write: Callable[[Session, str, str], Any], database: Database, queued_job: JobRow
    ) -> None:
        with pytest.raises(LeaseLost), database.writing() as session:
            write(session, queued_job.id, STALE)
        assert event_types(database, queued_job.id) == ["queued"]

    @pytest.mark.parametrize("write", HOLDERS_WRITES.values(), ids=HOLDERS_WRITES)
    @pytest.mark.parametrize("end", ["succeed", "fail"])
    def test_nobody_writes_to_a_job_that_has_ended(
        self, end: str, write: Callable[[Session, str, str], Any], database: Database, queued_job: JobRow
    ) -> None:
        token = claim(database, queued_job.id)
        with database.writing() as session:
            HOLDERS_WRITES[end](session, queued_job.id, token)
        before = load(database, queued_job.id)
        with pytest.raises(LeaseLost), database.writing() as session:
            write(session, queued_job.id, token)
        after = load(database, queued_job.id)
        assert (after.state, after.version) == (before.state, before.version)


class TestProgress:
    def test_what_the_runner_told_is_kept_in_order(self, database: Database, queued_job: JobRow) -> None:
        token = claim(database, queued_job.id)
        told: list[tuple[str, dict[str, Any]]] = [
            ("step_started", {"step": 0}),
            ("step_ended", {"step": 0, "dropped_pp": 0.25}),
        ]
        with database.writing() as session:
            record_progress(
                session, queued_job.id, token, phase="pruning", fraction=0.5, step=0, message="half", events=told
            )
        job = load(database, queued_job.id)
        assert (job.phase, job.progress, job.step, job.message) == ("pruning", 0.5, 0, "half")
        assert event_types(database, queued_job.id) == ["queued", "running", "step_started", "step_ended"]
        assert [(event.type, event.data) for event in events(database, queued_job.id)[2:]] == told

    def test_every_report_of_progress_is_a_new_version(self, database: Database, queued_job: JobRow) -> None:
        token = claim(database, queued_job.id)
        before = load(database, queued_job.id).version
        for fraction in (0.1, 0.2):
            with database.writing() as session:
                record_progress(
                    session, queued_job.id, token, phase="pruning", fraction=fraction, step=None, message=None
                )
        assert load(database, queued_job.id).version == before + 2

    def test_progress_without_a_fraction_keeps_the_last_one(self, database: Database, queued_job: JobRow) -> None:
        token = claim(database, queued_job.id)
        for fraction in (0.25, None):
            with database.writing() as session:
                record_progress(
                    session, queued_job.id, token, phase="pruning", fraction=fraction, step=None, message=None
                )
        assert load(database, queued_job.id).progress == 0.25


class TestEnds:
    def test_success_brings_state_artifacts_and_event_at_once(
        self, database: Database, queued_job: JobRow, clock: Clock
    ) -> None:
        token = claim(database, queued_job.id)
        clock.advance(10)
        with database.writing() as session:
            succeed_job(session, queued_job.id, token, artifacts=[MODEL_FILE], verdict="Half the size.")
        job = load(database, queued_job.id)
        assert (job.state, job.progress, job.verdict, job.finished_at) == ("succeeded", 1.0, "Half the size.", clock())
        assert (job.lease_token, job.lease_expires_at, job.worker) == (None, None, None)
        with database.reading() as session:
            assert [artifact.sha256 for artifact in artifacts_of(session, job.id)] == [MODEL_FILE.sha256]
        assert event_types(database, job.id) == ["queued", "running", "succeeded"]

    def test_a_success_that_can_not_be_stored_did_not_happen(self, database: Database, queued_job: JobRow) -> None:
        token = claim(database, queued_job.id)
        with pytest.raises(Exception, match="artifacts"), database.writing() as session:
            succeed_job(session, queued_job.id, token, artifacts=[MODEL_FILE, MODEL_FILE])  # one name, two files
        assert load(database, queued_job.id).state == "running"
        with database.reading() as session:
            assert artifacts_of(session, queued_job.id) == []

    def test_failure_keeps_the_reason(self, database: Database, queued_job: JobRow) -> None:
        token = claim(database, queued_job.id)
        with database.writing() as session:
            fail_job(session, queued_job.id, token, ERROR)
        job = load(database, queued_job.id)
        assert job.state == "failed"
        assert JobError.model_validate(job.error) == ERROR
        assert events(database, queued_job.id)[-1].data["error"]["code"] == "runner_crashed"

    def test_a_job_that_finished_before_it_noticed_the_cancel_keeps_its_real_end(
        self, database: Database, queued_job: JobRow
    ) -> None:
        token = claim(database, queued_job.id)
        cancel(database, queued_job.id)
        with database.writing() as session:
            succeed_job(session, queued_job.id, token)
        assert event_types(database, queued_job.id) == ["queued", "running", "cancelling", "succeeded"]


class TestFinish:
    @pytest.mark.parametrize("runs", [False, True], ids=["queued", "running"])
    def test_the_wish_is_kept_told_once_and_changes_no_state(
        self, runs: bool, database: Database, queued_job: JobRow, clock: Clock
    ) -> None:
        told = ["queued"]
        if runs:
            claim(database, queued_job.id)
            told.append("running")
        before = load(database, queued_job.id)
        asked = finish(database, queued_job.id)
        clock.advance(5)
        again = finish(database, queued_job.id)
        assert asked is not None and again is not None
        assert again.finish_requested_at == asked.finish_requested_at == clock() - timedelta(seconds=5)
        after = load(database, queued_job.id)
        assert (after.state, after.version) == (before.state, before.version + 1)
        assert event_types(database, queued_job.id) == [*told, "finish_requested"]

    def test_renewing_tells_of_a_wish_to_finish(self, database: Database, queued_job: JobRow) -> None:
        token = claim(database, queued_job.id)
        finish(database, queued_job.id)
        with database.writing() as session:
            beat = renew_lease(session, queued_job.id, token, lease_seconds=LEASE_SECONDS)
        assert beat == Wishes(cancel=False, finish=True)
        with database.reading() as session:
            assert wishes_for(session, queued_job.id) == beat

    def test_the_wish_outlives_a_lost_attempt(self, database: Database, queued_job: JobRow, clock: Clock) -> None:
        claim(database, queued_job.id)
        finish(database, queued_job.id)
        clock.advance(LEASE_SECONDS + 1)
        reap(database)
        clock.advance(60)
        token = claim(database, queued_job.id)
        with database.writing() as session:
            assert renew_lease(session, queued_job.id, token, lease_seconds=LEASE_SECONDS).finish

    def test_asking_again_is_harmless_once_the_job_has_succeeded(self, database: Database, queued_job: JobRow) -> None:
        token = claim(database, queued_job.id)
        finish(database, queued_job.id)
        with database.writing() as session:
            succeed_job(session, queued_job.id, token)
        version = load(database, queued_job.id).version
        job = finish(database, queued_job.id)
        assert job is not None
        assert (job.state, job.version) == ("succeeded", version)

    @pytest.mark.parametrize("asked_before", [False, True])
    @pytest.mark.parametrize("end", ["cancelling", "cancelled", "failed"])
    def test_what_can_not_succeed_any_more_can_not_be_finished(
        self, end: str, asked_before: bool, database: Database, queued_job: JobRow
    ) -> None:
        if asked_before:
            finish(database, queued_job.id)
        token = claim(database, queued_job.id)
        if end == "failed":
            with database.writing() as session:
                fail_job(session, queued_job.id, token, ERROR)
        else:
            cancel(database, queued_job.id)
        if end == "cancelled":
            with database.writing() as session:
                finish_cancel(session, queued_job.id, token)
        told = event_types(database, queued_job.id)
        with pytest.raises(IllegalTransition) as refused:
            finish(database, queued_job.id)
        assert (refused.value.state, refused.value.wanted) == (end, "succeeded")
        assert event_types(database, queued_job.id) == told

    def test_a_job_that_succeeded_by_itself_was_not_finished_early(
        self, database: Database, queued_job: JobRow
    ) -> None:
        token = claim(database, queued_job.id)
        with database.writing() as session:
            succeed_job(session, queued_job.id, token)
        with pytest.raises(IllegalTransition):
            finish(database, queued_job.id)
        assert load(database, queued_job.id).finish_requested_at is None

    def test_an_unknown_job_is_not_finished(self, database: Database) -> None:
        assert finish(database, "job_" + "0" * 26) is None


class TestInspections:
    @pytest.mark.parametrize("table", [ModelRow, DatasetRow], ids=["model", "dataset"])
    @pytest.mark.parametrize(
        ("end", "state"),
        [("succeed", "ready"), ("fail", "rejected"), ("cancel", "rejected"), ("lose", "rejected")],
    )
    def test_the_end_of_an_inspection_decides_about_the_file(
        self, end: str, state: str, table: type[ModelRow] | type[DatasetRow], database: Database, clock: Clock
    ) -> None:
        with database.writing() as session:
            upload = add_model(session) if table is ModelRow else add_dataset(session)
            of = {"model_id": upload.id} if table is ModelRow else {"model_id": None, "dataset_id": upload.id}
            kind = "inspect_model" if table is ModelRow else "inspect_dataset"
            job = submit(session, kind=kind, max_attempts=1, **of)
        if end == "cancel":
            cancel(database, job.id)
        else:
            token = claim(database, job.id)
            with database.writing() as session:
                if end == "succeed":
                    succeed_job(session, job.id, token, inspection={"format": "onnx"})
                else:
                    HOLDERS_WRITES[end](session, job.id, token)
        with database.reading() as session:
            row: Any = session.execute(select(table)).scalar_one()  # of either table
        assert (row.state, row.version, row.inspected_at) == (state, 2, clock())
        assert (row.inspection is not None) == (end == "succeed")
        assert (row.error is not None) == (end != "succeed")

    def test_the_end_of_a_compression_leaves_its_model_alone(self, database: Database, queued_job: JobRow) -> None:
        token = claim(database, queued_job.id)
        with database.writing() as session:
            fail_job(session, queued_job.id, token, ERROR)
        with database.reading() as session:
            assert session.execute(select(ModelRow.state)).scalar_one() == "inspecting"


class TestCancel:
    def test_a_waiting_job_is_cancelled_at_once(self, database: Database, queued_job: JobRow, clock: Clock) -> None:
        job = cancel(database, queued_job.id)
        assert job is not None
        assert (job.state, job.finished_at, job.cancel_requested_at) == ("cancelled", clock(), clock())
        assert event_types(database, queued_job.id) == ["queued", "cancelled"]
        with database.writing() as session:
            assert claim_job(session, queued_job.id, worker="worker-1", lease_seconds=1) is None

    def test_a_running_job_is_asked_to_stop(self, database: Database, queued_job: JobRow) -> None:
        token = claim(database, queued_job.id)
        job = cancel(database, queued_job.id)
        assert job is not None
        assert job.state == "cancelling"
        with database.writing() as session:
            finish_cancel(session, queued_job.id, token)
        assert event_types(database, queued_job.id) == ["queued", "running", "cancelling", "cancelled"]

    @pytest.mark.parametrize("running", [False, True], ids=["waiting", "running"])
    def test_asking_again_is_harmless(self, running: bool, database: Database, queued_job: JobRow) -> None:
        if running:
            claim(database, queued_job.id)
        first, second = cancel(database, queued_job.id), cancel(database, queued_job.id)
        assert first is not None
        assert second is not None
        assert (first.state, first.version) == (second.state, second.version)

    @pytest.mark.parametrize("end", ["succeed", "fail"])
    def test_a_finished_job_can_not_be_cancelled(self, end: str, database: Database, queued_job: JobRow) -> None:
        token = claim(database, queued_job.id)
        with database.writing() as session:
            HOLDERS_WRITES[end](session, queued_job.id, token)
        with pytest.raises(IllegalTransition) as refused:
            cancel(database, queued_job.id)
        assert refused.value.job_id == queued_job.id

    def test_an_unknown_job_is_none(self, database: Database) -> None:
        assert cancel(database, "job_" + "0" * 26) is None

    def test_finishing_a_cancel_that_nobody_wanted_is_refused(self, database: Database, queued_job: JobRow) -> None:
        token = claim(database, queued_job.id)
        with pytest.raises(LeaseLost), database.writing() as session:
            finish_cancel(session, queued_job.id, token)
        assert load(database, queued_job.id).state == "running"


class TestLostAttempts:
    def test_a_lost_attempt_runs_again_later_and_later(
        self, database: Database, queued_job: JobRow, clock: Clock
    ) -> None:
        delays = []
        for _ in range(2):
            token = claim(database, queued_job.id)
            with database.writing() as session:
                job = lose_attempt(session, queued_job.id, token, ERROR, retry_delay_seconds=2)
            delays.append((job.available_at - clock()).total_seconds())
            clock.advance(10)
        assert delays == [2, 4]
        assert owed(database) == [queued_job.id] * 3
        lost = events(database, queued_job.id)[2]
        assert (lost.type, lost.data["reason"], lost.data["attempt"]) == ("queued", "runner_crashed", 1)

    def test_the_pause_has_a_limit(self, database: Database, clock: Clock) -> None:
        with database.writing() as session:
            job_id = submit(session, max_attempts=5000).id
        token = claim(database, job_id)
        with database.writing() as session:
            session.get_one(JobRow, job_id).attempt = 4000
            session.flush()
            job = lose_attempt(session, job_id, token, ERROR, retry_delay_seconds=2)
        assert job.available_at - clock() == timedelta(hours=1)

    def test_the_last_attempt_that_is_lost_fails_the_job(self, database: Database, clock: Clock) -> None:
        with database.writing() as session:
            job_id = submit(session, max_attempts=2).id
        for expected in ("queued", "failed"):
            clock.advance(100)
            token = claim(database, job_id)
            with database.writing() as session:
                assert lose_attempt(session, job_id, token, ERROR, retry_delay_seconds=2).state == expected
        assert event_types(database, job_id) == ["queued", "running", "queued", "running", "failed"]

    def test_losing_an_attempt_of_a_job_to_be_cancelled_cancels_it(
        self, database: Database, queued_job: JobRow
    ) -> None:
        token = claim(database, queued_job.id)
        cancel(database, queued_job.id)
        with database.writing() as session:
            assert lose_attempt(session, queued_job.id, token, ERROR, retry_delay_seconds=2).state == "cancelled"


class TestGiveBack:
    def test_it_costs_no_attempt(self, database: Database, queued_job: JobRow) -> None:
        for _ in range(10):
            token = claim(database, queued_job.id)
            assert load(database, queued_job.id).attempt == 1
            with database.writing() as session:
                assert give_back_job(session, queued_job.id, token).state == "queued"
        assert events(database, queued_job.id)[-1].data == {"reason": "worker_stopped"}
        assert len(owed(database)) == 11

    def test_a_job_to_be_cancelled_is_cancelled(self, database: Database, queued_job: JobRow) -> None:
        token = claim(database, queued_job.id)
        cancel(database, queued_job.id)
        with database.writing() as session:
            assert give_back_job(session, queued_job.id, token).state == "cancelled"


class TestReaping:
    def test_a_worker_that_renews_keeps_its_job(self, database: Database, queued_job: JobRow, clock: Clock) -> None:
        token = claim(database, queued_job.id)
        for _ in range(5):
            clock.advance(LEASE_SECONDS - 1)
            assert reap(database) == []
            with database.writing() as session:
                renew_lease(session, queued_job.id, token, lease_seconds=LEASE_SECONDS)

    def test_a_silent_worker_loses_its_job(self, database: Database, queued_job: JobRow, clock: Clock) -> None:
        claim(database, queued_job.id)
        clock.advance(LEASE_SECONDS + 1)
        assert reap(database) == [queued_job.id]
        job = load(database, queued_job.id)
        assert (job.state, job.attempt, job.lease_token, job.worker) == ("queued", 1, None, None)
        assert job.available_at == clock() + timedelta(seconds=2)
        assert events(database, queued_job.id)[-1].data["reason"] == "worker_lost"
        assert reap(database) == []

    def test_a_job_whose_workers_are_all_lost_fails(self, database: Database, queued_job: JobRow, clock: Clock) -> None:
        for _ in range(3):
            clock.advance(1000)
            claim(database, queued_job.id)
            clock.advance(LEASE_SECONDS + 1)
            reap(database)
        job = load(database, queued_job.id)
        assert (job.state, job.attempt) == ("failed", 3)
        assert job.error is not None
        assert (job.error["code"], job.error["retryable"]) == ("worker_lost", True)

    def test_a_silent_worker_of_a_job_to_be_cancelled_has_cancelled_it(
        self, database: Database, queued_job: JobRow, clock: Clock
    ) -> None:
        claim(database, queued_job.id)
        cancel(database, queued_job.id)
        clock.advance(LEASE_SECONDS + 1)
        reap(database)
        assert event_types(database, queued_job.id) == ["queued", "running", "cancelling", "cancelled"]

    def test_many_lost_jobs_are_taken_in_portions_oldest_first(self, database: Database, clock: Clock) -> None:
        with database.writing() as session:
            job_ids = [submit(session).id for _ in range(5)]
        for job_id in job_ids:
            clock.advance(1)
            claim(database, job_id)
        clock.advance(LEASE_SECONDS + 10)
        with database.writing() as session:
            first = [job.id for job in reap_lost_jobs(session, retry_delay_seconds=2, limit=3)]
        assert [first, reap(database)] == [job_ids[:3], job_ids[3:]]
