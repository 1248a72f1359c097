"""Random lives of several jobs at once, against a model of a few lines: the repository does what the model says, always."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.errors import ErrorCode, JobError
from jobs.repository.lifecycle import (
    IllegalTransition,
    LeaseLost,
    NewArtifact,
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
    submit_job,
    succeed_job,
)
from jobs.repository.outbox import forget_hints, owed_hints, remind_of_waiting_jobs
from jobs.states import FINAL, TRANSITIONS, JobState
from jobs.tables import ArtifactRow, Base, JobEventRow, JobRow, OutboxRow
from tests.jobs.rows import Clock, digest_of

LEASE_SECONDS = 90
RETRY_DELAY_SECONDS = 4
REMINDER_SECONDS = 60
LIVE = ("running", "cancelling")
ERROR = JobError(code=ErrorCode.RUNNER_CRASHED, message="It crashed.")
NO_STATES = ("note", "finish_requested")  # events that change none
RESULT = NewArtifact(name="model.onnx", kind="model", media_type="x/y", size_bytes=1, sha256=digest_of("result"))


@dataclass
class Expected:
    """What a job should be."""

    max_attempts: int
    available_at: datetime
    state: str = "queued"
    attempt: int = 0
    told: list[str] = field(default_factory=lambda: ["queued"])
    tokens: list[str] = field(default_factory=list)  # of all claims; the last one holds while the job is live
    lease_expires_at: datetime | None = None
    finish_requested_at: datetime | None = None

    def becomes(self, state: str) -> None:
        self.state = state
        self.told.append(state)

    def waits_again(self, available_at: datetime) -> None:
        self.becomes("queued")
        self.available_at = available_at

    def loses_attempt(self, moment: datetime) -> None:
        if self.state == "cancelling":
            self.becomes("cancelled")
        elif self.attempt == self.max_attempts:
            self.becomes("failed")
        else:
            self.waits_again(moment + timedelta(seconds=RETRY_DELAY_SECONDS * 2 ** (self.attempt - 1)))


class LifeOfJobs(RuleBasedStateMachine):
    """Clients, workers with good and with stale tokens, reapers, and time."""

    jobs = Bundle("jobs")
    recent = st.integers(min_value=0, max_value=2)  # which claim's token a worker shows: 0 is the newest

    def __init__(self, database: Database, clock: Clock) -> None:
        super().__init__()
        self.database, self.clock = database, clock
        self.expected: dict[str, Expected] = {}
        with database.writing() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))

    @rule(target=jobs, max_attempts=st.integers(min_value=1, max_value=3))
    def submit(self, max_attempts: int) -> str:
        with self.database.writing() as session:
            job = submit_job(
                session, kind="compress", request={}, model_id=None, inputs={}, deadline_seconds=60,
                max_attempts=max_attempts,
            )  # fmt: skip
        self.expected[job.id] = Expected(max_attempts, available_at=self.clock())
        return job.id

    @rule(job_id=jobs)
    def claim(self, job_id: str) -> None:
        with self.database.writing() as session:
            job = claim_job(session, job_id, worker="worker", lease_seconds=LEASE_SECONDS)
        expected = self.expected[job_id]
        if expected.state != "queued" or expected.available_at > self.clock():
            assert job is None
            return
        assert job is not None
        assert job.lease_token is not None
        assert job.lease_token not in expected.tokens
        expected.tokens.append(job.lease_token)
        expected.attempt += 1
        expected.lease_expires_at = self.clock() + timedelta(seconds=LEASE_SECONDS)
        expected.becomes("running")

    @rule(job_id=jobs, age=recent)
    def renew(self, job_id: str, age: int) -> None:
        holds, token = self.token(job_id, age)
        try:
            with self.database.writing() as session:
                beat = renew_lease(session, job_id, token, lease_seconds=LEASE_SECONDS)
        except LeaseLost:
            assert not holds
            return
        assert holds
        expected = self.expected[job_id]
        assert beat.cancel == (expected.state == "cancelling")
        assert beat.finish == (expected.finish_requested_at is not None)
        expected.lease_expires_at = self.clock() + timedelta(seconds=LEASE_SECONDS)

    @rule(job_id=jobs, age=recent, count=st.integers(min_value=0, max_value=3))
    def tell(self, job_id: str, age: int, count: int) -> None:
        holds, token = self.token(job_id, age)
        try:
            with self.database.writing() as session:
                record_progress(
                    session, job_id, token, phase="pruning", fraction=0.5, step=0, message=None,
                    events=[("note", {})] * count,
                )  # fmt: skip
        except LeaseLost:
            assert not holds
            return
        assert holds
        self.expected[job_id].told += ["note"] * count

    @rule(job_id=jobs, age=recent, end=st.sampled_from(["succeed", "fail", "finish_cancel", "lose", "give_back"]))
    def let_go(self, job_id: str, age: int, end: str) -> None:
        holds, token = self.token(job_id, age)
        expected = self.expected[job_id]
        allowed = holds and (end != "finish_cancel" or expected.state == "cancelling")
        try:
            with self.database.writing() as session:
                self.write_end(session, job_id, token, end)
        except LeaseLost:
            assert not allowed
            return
        assert allowed
        if end == "lose":
            expected.loses_attempt(self.clock())
        elif end == "give_back" and expected.state == "running":
            expected.attempt -= 1
            expected.waits_again(self.clock())
        else:
            ends = {"succeed": "succeeded", "fail": "failed", "finish_cancel": "cancelled", "give_back": "cancelled"}
            expected.becomes(ends[end])

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        expected = self.expected[job_id]
        try:
            with self.database.writing() as session:
                request_cancel(session, job_id)
        except IllegalTransition:
            assert expected.state in ("succeeded", "failed")
            return
        assert expected.state not in ("succeeded", "failed")
        if expected.state == "queued":
            expected.becomes("cancelled")
        elif expected.state == "running":
            expected.becomes("cancelling")

    @rule(job_id=jobs)
    def finish(self, job_id: str) -> None:
        expected = self.expected[job_id]
        is_repeated = expected.finish_requested_at is not None
        allowed = expected.state in ("queued", "running") or (is_repeated and expected.state == "succeeded")
        try:
            with self.database.writing() as session:
                request_finish(session, job_id)
        except IllegalTransition:
            assert not allowed
            return
        assert allowed
        if not is_repeated:
            expected.finish_requested_at = self.clock()
            expected.told.append("finish_requested")

    @rule()
    def reap(self) -> None:
        with self.database.writing() as session:
            reaped = {job.id for job in reap_lost_jobs(session, retry_delay_seconds=RETRY_DELAY_SECONDS)}
        silent = {
            job_id
            for job_id, expected in self.expected.items()
            if expected.state in LIVE
            and expected.lease_expires_at is not None
            and expected.lease_expires_at < self.clock()
        }
        assert reaped == silent
        for job_id in silent:
            self.expected[job_id].loses_attempt(self.clock())

    @rule()
    def send(self) -> None:
        with self.database.writing() as session:
            forget_hints(session, [hint.id for hint in owed_hints(session)])

    @rule()
    def remind(self) -> None:
        with self.database.writing() as session:
            remind_of_waiting_jobs(session, reminder_seconds=REMINDER_SECONDS)

    @rule(seconds=st.sampled_from([1, 5, 61, 91]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @invariant()
    def rows_are_as_expected(self) -> None:
        with self.database.reading() as session:
            rows = {job.id: job for job in session.execute(select(JobRow)).scalars()}
            told: dict[str, list[JobEventRow]] = {job_id: [] for job_id in rows}
            for event in session.execute(select(JobEventRow).order_by(JobEventRow.job_id, JobEventRow.seq)).scalars():
                told[event.job_id].append(event)
            artifacts = set(session.execute(select(ArtifactRow.job_id)).scalars())
            owed = set(session.execute(select(OutboxRow.job_id)).scalars())
        assert rows.keys() == self.expected.keys()
        assert artifacts == {job_id for job_id, row in rows.items() if row.state == "succeeded"}
        for job_id, row in rows.items():
            self.check_row(row, self.expected[job_id])
            self.check_events(row, told[job_id], self.expected[job_id])
            if row.state == "queued" and job_id not in owed:  # then its message was sent, and a reminder will come
                assert row.hinted_at is not None
                assert row.hinted_at <= self.clock()

    def check_row(self, row: JobRow, expected: Expected) -> None:
        assert (row.state, row.attempt, row.available_at) == (expected.state, expected.attempt, expected.available_at)
        assert row.attempt <= row.max_attempts
        assert row.finish_requested_at == expected.finish_requested_at
        holder = (expected.tokens[-1], expected.lease_expires_at) if row.state in LIVE else (None, None)
        assert (row.lease_token, row.lease_expires_at) == holder
        assert (row.finished_at is not None) == (row.state in FINAL)
        assert (row.error is not None) == (row.state == "failed")
        assert row.version >= row.last_event - expected.told.count("note")

    def check_events(self, row: JobRow, events: list[JobEventRow], expected: Expected) -> None:
        assert [event.type for event in events] == expected.told
        assert [event.seq for event in events] == list(range(1, row.last_event + 1))
        assert [event.at for event in events] == sorted(event.at for event in events)
        states = [JobState(event.type) for event in events if event.type not in NO_STATES]
        assert all(after in TRANSITIONS[before] for before, after in pairwise(states))
        assert states[-1] == row.state
        assert states.count(JobState.RUNNING) == len(expected.tokens)
        assert len([state for state in states if state in FINAL]) == (row.state in FINAL)

    def token(self, job_id: str, age: int) -> tuple[bool, str]:
        """The token of an earlier claim, and whether it still gives a right to the job."""
        expected = self.expected[job_id]
        if age >= len(expected.tokens):
            return False, "0" * 32
        return age == 0 and expected.state in LIVE, expected.tokens[-1 - age]

    @staticmethod
    def write_end(session: Session, job_id: str, token: str, end: str) -> None:
        match end:
            case "succeed":
                succeed_job(session, job_id, token, artifacts=[RESULT])
            case "fail":
                fail_job(session, job_id, token, ERROR)
            case "lose":
                lose_attempt(session, job_id, token, ERROR, retry_delay_seconds=RETRY_DELAY_SECONDS)
            case "give_back":
                give_back_job(session, job_id, token)
            case "finish_cancel":
                finish_cancel(session, job_id, token)


def test_every_life_is_as_the_model_says(database: Database, clock: Clock) -> None:
    run_state_machine_as_test(
        lambda: LifeOfJobs(database, clock),  # type: ignore[arg-type]  # its own documentation says a factory will do
        settings=settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True, database=None),
    )
