"""Two at once: whoever tries, exactly one succeeds, and the events tell one story."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import pytest

from jobs.database import Database
from jobs.errors import ErrorCode, JobError
from jobs.repository.lifecycle import (
    LeaseLost,
    claim_job,
    fail_job,
    finish_cancel,
    give_back_job,
    lose_attempt,
    reap_lost_jobs,
    record_progress,
    renew_lease,
    request_cancel,
    succeed_job,
)
from jobs.repository.outbox import forget_hints, owed_hints, remind_of_waiting_jobs
from jobs.states import FINAL
from jobs.tables import JobRow
from tests.jobs.rows import LEASE_SECONDS, Clock, claim, event_types, load, owed, submit

Answer = TypeVar("Answer")

ERROR = JobError(code=ErrorCode.RUNNER_CRASHED, message="It crashed.")


def at_once(*actions: Callable[[], Answer]) -> list[Answer]:
    """What the actions answer when they all start at the same moment."""
    barrier = threading.Barrier(len(actions))

    def start(action: Callable[[], Answer]) -> Answer:
        barrier.wait()
        return action()

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(start, actions))


def test_of_many_who_claim_a_job_one_wins(database: Database, queued_job: JobRow) -> None:
    def try_to_claim() -> str | None:
        with database.writing() as session:
            job = claim_job(session, queued_job.id, worker="worker", lease_seconds=LEASE_SECONDS)
            return None if job is None else job.lease_token

    tokens = at_once(*[try_to_claim] * 16)
    winners = [token for token in tokens if token is not None]
    assert winners == [load(database, queued_job.id).lease_token]
    assert event_types(database, queued_job.id) == ["queued", "running"]


def test_of_many_who_end_a_job_one_wins(database: Database, queued_job: JobRow) -> None:
    token = claim(database, queued_job.id)

    def end(number: int) -> bool:
        try:
            with database.writing() as session:
                if number % 2:
                    succeed_job(session, queued_job.id, token)
                else:
                    fail_job(session, queued_job.id, token, ERROR)
        except LeaseLost:
            return False
        return True

    assert at_once(*[partial(end, number) for number in range(8)]).count(True) == 1
    assert len([kind for kind in event_types(database, queued_job.id) if kind in FINAL]) == 1


def test_events_have_no_gap_while_progress_heartbeats_and_a_cancel_come_at_once(
    database: Database, queued_job: JobRow
) -> None:
    token = claim(database, queued_job.id)

    def tell(teller: int) -> None:
        for number in range(10):
            with database.writing() as session:
                told = [("note", {"teller": teller, "number": number})] * (number % 3)
                record_progress(
                    session, queued_job.id, token, phase="pruning", fraction=None, step=0, message=None, events=told
                )

    def beat() -> None:
        for _ in range(10):
            with database.writing() as session:
                renew_lease(session, queued_job.id, token, lease_seconds=LEASE_SECONDS)

    def cancel() -> None:
        with database.writing() as session:
            request_cancel(session, queued_job.id)

    at_once(*[partial(tell, teller) for teller in range(4)], beat, cancel, cancel)
    with database.writing() as session:
        finish_cancel(session, queued_job.id, token)
    types = event_types(database, queued_job.id)
    assert types.count("note") == 4 * 9
    assert [kind for kind in types if kind != "note"] == ["queued", "running", "cancelling", "cancelled"]


@pytest.mark.parametrize("way", ["given back", "lost"])
def test_a_cancel_is_never_lost_while_the_job_changes_hands(way: str, database: Database) -> None:
    def cancel(job_id: str) -> None:
        with database.writing() as session:
            request_cancel(session, job_id)

    def let_go(job_id: str, token: str) -> None:
        with database.writing() as session:
            if way == "lost":
                lose_attempt(session, job_id, token, ERROR, retry_delay_seconds=0)
            else:
                give_back_job(session, job_id, token)

    for _ in range(20):
        with database.writing() as session:
            job_id = submit(session).id
        token = claim(database, job_id)
        at_once(partial(cancel, job_id), partial(let_go, job_id, token))
        # It was cancelled while it waited, or while it ran and before it was let go.
        assert load(database, job_id).state == "cancelled"


def test_several_reapers_take_each_lost_job_once(database: Database, clock: Clock) -> None:
    with database.writing() as session:
        job_ids = sorted(submit(session).id for _ in range(12))
    for job_id in job_ids:
        claim(database, job_id)
    clock.advance(LEASE_SECONDS + 1)

    def reap() -> list[str]:
        with database.writing() as session:
            return [job.id for job in reap_lost_jobs(session, retry_delay_seconds=2)]

    taken = [job_id for portion in at_once(*[reap] * 4) for job_id in portion]
    taken += reap()  # what was passed over because another reaper had just locked it
    assert sorted(taken) == job_ids
    for job_id in job_ids:
        assert event_types(database, job_id) == ["queued", "running", "queued"]


def test_a_reaper_and_the_late_worker_do_not_both_decide(database: Database, clock: Clock) -> None:
    for _ in range(10):
        with database.writing() as session:
            job_id = submit(session, max_attempts=1).id
        token = claim(database, job_id)
        clock.advance(LEASE_SECONDS + 1)

        def finish(job_id: str = job_id, token: str = token) -> None:
            try:
                with database.writing() as session:
                    succeed_job(session, job_id, token)
            except LeaseLost:
                pass

        def reap() -> None:
            with database.writing() as session:
                reap_lost_jobs(session, retry_delay_seconds=2)

        at_once(finish, reap)
        assert len([kind for kind in event_types(database, job_id) if kind in FINAL]) == 1


def test_several_reminders_call_out_each_job_once(database: Database, clock: Clock) -> None:
    with database.writing() as session:
        job_ids = sorted(submit(session).id for _ in range(10))
        forget_hints(session, [hint.id for hint in owed_hints(session)])
    clock.advance(100)

    def remind() -> int:
        with database.writing() as session:
            return remind_of_waiting_jobs(session, reminder_seconds=60)

    assert sum(at_once(*[remind] * 4)) == len(job_ids)
    assert sorted(owed(database)) == job_ids
