"""Messages owed to the broker."""

import pytest

from jobs.database import Database
from jobs.errors import ErrorCode, JobError
from jobs.repository.lifecycle import lose_attempt, request_cancel
from jobs.repository.outbox import forget_hints, owed_hints, remind_of_waiting_jobs
from jobs.repository.worker_queries import has_overlooked_job
from jobs.tables import JobRow
from tests.jobs.rows import Clock, claim, owed, submit

ERROR = JobError(code=ErrorCode.RUNNER_CRASHED, message="It crashed.")


def send_all(database: Database) -> list[str]:
    """What housekeeping does, without a broker."""
    with database.writing() as session:
        hints = owed_hints(session)
        forget_hints(session, [hint.id for hint in hints])
    return [hint.job_id for hint in hints]


def remind(database: Database, *, limit: int = 20) -> int:
    with database.writing() as session:
        return remind_of_waiting_jobs(session, reminder_seconds=60, limit=limit)


def test_a_message_is_owed_once(database: Database, queued_job: JobRow) -> None:
    assert send_all(database) == [queued_job.id]
    assert send_all(database) == []


def test_a_transaction_that_fails_owes_nothing(database: Database) -> None:
    def submit_and_fail() -> None:
        with database.writing() as session:
            submit(session)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        submit_and_fail()
    assert owed(database) == []


def test_messages_come_oldest_first_and_in_portions(database: Database, clock: Clock) -> None:
    made = []
    for _ in range(3):
        with database.writing() as session:
            made.append(submit(session).id)
        clock.advance(1)
    with database.reading() as session:
        assert [hint.job_id for hint in owed_hints(session, limit=2)] == made[:2]


def test_the_message_of_a_retry_is_due_when_the_job_is(database: Database, queued_job: JobRow, clock: Clock) -> None:
    send_all(database)
    token = claim(database, queued_job.id)
    with database.writing() as session:
        lose_attempt(session, queued_job.id, token, ERROR, retry_delay_seconds=10)
    assert send_all(database) == []
    clock.advance(10)
    assert send_all(database) == [queued_job.id]


def test_a_job_that_still_waits_is_called_out_again(database: Database, queued_job: JobRow, clock: Clock) -> None:
    send_all(database)
    clock.advance(59)
    assert remind(database) == 0
    clock.advance(2)
    assert remind(database) == 1
    assert remind(database) == 0
    assert send_all(database) == [queued_job.id]


def test_a_message_that_is_still_owed_is_not_doubled(database: Database, queued_job: JobRow, clock: Clock) -> None:
    clock.advance(1000)
    assert remind(database) == 0
    assert owed(database) == [queued_job.id]


def test_jobs_that_do_not_wait_are_not_called_out(database: Database, clock: Clock) -> None:
    with database.writing() as session:
        running, cancelled, backing_off = (submit(session).id for _ in range(3))
    send_all(database)
    claim(database, running)
    token = claim(database, backing_off)
    with database.writing() as session:
        request_cancel(session, cancelled)
        lose_attempt(session, backing_off, token, ERROR, retry_delay_seconds=1000)
        forget_hints(session, [hint.id for hint in owed_hints(session)])
    clock.advance(100)
    assert remind(database) == 0


def test_a_long_queue_does_not_flood_the_broker(database: Database, clock: Clock) -> None:
    with database.writing() as session:
        waiting = sorted(submit(session).id for _ in range(6))
    send_all(database)
    for _ in range(3):
        clock.advance(61)
        assert remind(database, limit=2) == 2
        assert remind(database, limit=2) == 0
        assert send_all(database) == waiting[:2]
    claim(database, waiting[0])
    assert remind(database, limit=2) == 1
    assert send_all(database) == [waiting[2]]  # the next in line, at once


def test_a_job_is_overlooked_when_nobody_takes_it_though_it_was_sent(
    database: Database, queued_job: JobRow, clock: Clock
) -> None:
    def overlooked() -> bool:
        with database.reading() as session:
            return has_overlooked_job(session, waiting_seconds=120)

    clock.advance(121)
    assert not overlooked()
    send_all(database)
    assert overlooked()
    claim(database, queued_job.id)
    assert not overlooked()
