"""The same key gives the same answer, once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select

from jobs.database import Database
from jobs.repository.idempotency import (
    ABANDONED_SECONDS,
    RememberedAnswer,
    abandon_request,
    begin_request,
    complete_request,
    forget_old_answers,
)
from jobs.tables import IdempotencyRow, JobRow
from tests.jobs.rows import Clock, submit

KEEP_SECONDS = 24 * 3600.0


def begin(database: Database, *, key: str = "key", route: str = "POST /v1/jobs", fingerprint: str = "f" * 64) -> object:
    with database.writing() as session:
        return begin_request(session, route=route, key=key, fingerprint=fingerprint, keep_seconds=KEEP_SECONDS)


def complete(database: Database) -> None:
    with database.writing() as session:
        complete_request(session, route="POST /v1/jobs", key="key", status=202, response={"id": "job_1"})


def test_the_first_request_takes_the_key(database: Database) -> None:
    assert begin(database) is None


def test_a_second_request_meanwhile_learns_that_the_first_is_in_flight(database: Database) -> None:
    begin(database)
    assert begin(database) == RememberedAnswer(fingerprint="f" * 64, status=None, response=None)


def test_a_later_request_gets_the_first_ones_answer(database: Database) -> None:
    begin(database)
    complete(database)
    answer = begin(database, fingerprint="0" * 64)
    assert answer == RememberedAnswer(fingerprint="f" * 64, status=202, response={"id": "job_1"})


@pytest.mark.parametrize("other", [{"key": "other"}, {"route": "POST /v1/models"}], ids=["key", "route"])
def test_keys_are_told_apart_by_route_and_name(other: dict[str, str], database: Database) -> None:
    begin(database)
    assert begin(database, **other) is None


def test_a_request_that_created_nothing_frees_its_key(database: Database) -> None:
    begin(database)
    with database.writing() as session:
        abandon_request(session, route="POST /v1/jobs", key="key")
    assert begin(database) is None


def test_an_answer_can_not_be_abandoned(database: Database) -> None:
    begin(database)
    complete(database)
    with database.writing() as session:
        abandon_request(session, route="POST /v1/jobs", key="key")
    assert begin(database) is not None


def test_answers_are_forgotten_when_their_time_is_over(database: Database, clock: Clock) -> None:
    begin(database)
    complete(database)
    clock.advance(KEEP_SECONDS - 1)
    assert begin(database) is not None
    clock.advance(1)
    assert begin(database) is None


def test_a_key_whose_request_was_killed_becomes_free_long_before_its_time_is_over(
    database: Database, clock: Clock
) -> None:
    begin(database)
    clock.advance(ABANDONED_SECONDS)
    assert begin(database) is None


def test_cleaning_up_removes_old_answers_only(database: Database, clock: Clock) -> None:
    begin(database, key="old")
    clock.advance(KEEP_SECONDS / 2)
    begin(database, key="new")
    clock.advance(KEEP_SECONDS / 2)
    with database.writing() as session:
        forget_old_answers(session)
    with database.reading() as session:
        assert session.execute(select(IdempotencyRow.key)).scalars().all() == ["new"]


def test_of_many_requests_with_one_key_at_once_one_creates(database: Database) -> None:
    barrier = threading.Barrier(8)

    def serve(_number: int) -> str:
        barrier.wait()
        with database.writing() as session:
            known = begin_request(session, route="r", key="k", fingerprint="f", keep_seconds=KEEP_SECONDS)
            if known is None:
                job_id = submit(session).id
                complete_request(session, route="r", key="k", status=202, response={"id": job_id})
                return job_id
        assert known.response is not None  # key and job came in one transaction: nobody sees one without the other
        return str(known.response["id"])

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(serve, range(8)))
    assert len(answers) == 1
    with database.reading() as session:
        assert session.execute(select(func.count()).select_from(JobRow)).scalar_one() == 1


def test_many_requests_that_take_and_abandon_one_key_never_fail(database: Database) -> None:
    taken = []

    def serve(_number: int) -> None:
        for _ in range(10):
            with database.writing() as session:
                known = begin_request(session, route="r", key="k", fingerprint="f", keep_seconds=KEEP_SECONDS)
            if known is None:
                taken.append(1)
                with database.writing() as session:
                    abandon_request(session, route="r", key="k")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(serve, range(4)))
    assert taken
    assert begin(database, route="r", key="k") is None
