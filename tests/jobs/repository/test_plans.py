"""Questions that are asked all the time use an index, so that they stay fast when there are many jobs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, text
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.repository.lifecycle import reap_lost_jobs
from jobs.repository.outbox import owed_hints, remind_of_waiting_jobs
from jobs.repository.queries import events_after, jobs_ahead, jobs_page
from jobs.repository.uploads import is_in_use, referenced_blobs, uploads_page
from jobs.repository.worker_queries import has_overlooked_job
from jobs.tables import ArtifactRow, DatasetRow, JobEventRow, JobInputRow, JobRow, ModelRow, OutboxRow
from tests.jobs.rows import Clock, digest_of

MANY = 3000
MODEL, DATASET, JOB = "mdl_" + "0" * 26, "dst_" + "0" * 26, "job_" + "0" * 26

QUESTIONS: dict[str, Callable[[Session], object]] = {
    "newest jobs": lambda session: jobs_page(session, before=None, limit=10),
    "next page of jobs": lambda session: jobs_page(session, before="job_" + f"{1000:026}", limit=10),
    "jobs of one model": lambda session: jobs_page(session, before=None, limit=10, model_id=MODEL),
    "jobs of one parent": lambda session: jobs_page(session, before=None, limit=10, parent_id=JOB),
    "failed jobs": lambda session: jobs_page(session, before=None, limit=10, states=["failed"]),
    "jobs ahead": lambda session: jobs_ahead(session, session.get_one(JobRow, "job_" + f"{7:026}")),
    "lost jobs": lambda session: reap_lost_jobs(session, retry_delay_seconds=1),
    "overlooked jobs": lambda session: remind_of_waiting_jobs(session, reminder_seconds=60),
    "is any job overlooked": lambda session: has_overlooked_job(session, waiting_seconds=60),
    "messages owed": lambda session: owed_hints(session),
    "events": lambda session: events_after(session, JOB, 5, limit=10),
    "newest models": lambda session: uploads_page(session, ModelRow, before=None, limit=10),
    "is a model in use": lambda session: is_in_use(session, ModelRow, MODEL),
    "is a dataset in use": lambda session: is_in_use(session, DatasetRow, DATASET),
    "referenced files": lambda session: referenced_blobs(session, [digest_of("1"), digest_of("2")], keep_seconds=1),
}


@pytest.fixture
def full_database(database: Database, clock: Clock) -> Database:
    """Thousands of jobs that have ended, a few that wait and a few that run."""
    moment = clock()
    uploads = [
        {
            "id": f"{number:026}", "state": "ready", "filename": "x", "size_bytes": 1, "version": 1,
            "sha256": digest_of(str(number)), "created_at": moment,
        }
        for number in range(MANY)
    ]  # fmt: skip
    jobs: list[dict[str, Any]] = [
        {
            "id": f"job_{number:026}", "kind": "compress", "state": state_of(number), "version": 1, "last_event": 1,
            "request": {}, "model_id": f"mdl_{number:026}",
            "dataset_id": f"dst_{number:026}", "parent_id": None, "deadline_seconds": 1.0,
            "created_at": moment, "available_at": moment, "hinted_at": moment, "attempt": 0, "max_attempts": 3,
            "progress": 0.0, "lease_expires_at": moment if state_of(number) == "running" else None,
        }
        for number in range(MANY)
    ]  # fmt: skip
    with database.writing() as session:
        session.execute(insert(ModelRow), [row | {"id": f"mdl_{row['id']}"} for row in uploads])
        session.execute(insert(DatasetRow), [row | {"id": f"dst_{row['id']}"} for row in uploads])
        session.execute(insert(JobRow), jobs)
        session.execute(
            insert(JobInputRow),
            [
                {"job_id": job["id"], "role": "test", "dataset_id": f"dst_{number:026}"}
                for number, job in enumerate(jobs)
            ],
        )
        session.execute(
            insert(JobEventRow),
            [{"job_id": job["id"], "seq": 1, "type": "queued", "at": moment, "data": {}} for job in jobs],
        )
        due = [moment - timedelta(seconds=number) for number in range(MANY)]
        session.execute(
            insert(OutboxRow), [{"job_id": job["id"], "due_at": at} for job, at in zip(jobs, due, strict=True)]
        )
        session.execute(
            insert(ArtifactRow),
            [
                {
                    "id": f"art_{number:026}", "job_id": job["id"], "name": "x", "kind": "model", "media_type": "x/y",
                    "size_bytes": 1, "sha256": digest_of(str(number)), "created_at": moment,
                }
                for number, job in enumerate(jobs)
            ],
        )  # fmt: skip
        session.execute(text("ANALYZE"))
    return database


def state_of(number: int) -> str:
    return {7: "queued", 8: "queued", 9: "running", 10: "failed"}.get(number, "succeeded")


def test_no_question_reads_a_table_from_end_to_end(full_database: Database) -> None:
    scans = {}
    with full_database.writing() as session:
        connection = session.connection()
        for name, question in QUESTIONS.items():
            with recorded(connection) as statements:
                question(session)
            assert statements, f"{name} asked nothing"
            scans[name] = [line for statement in statements for line in plan(connection, *statement) if is_scan(line)]
    assert scans == {name: [] for name in QUESTIONS}


@contextmanager
def recorded(connection: Connection) -> Iterator[list[tuple[str, Any]]]:
    """The queries that are run meanwhile, with their parameters."""
    statements: list[tuple[str, Any]] = []

    def record(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if statement.startswith("SELECT") and "clock_timestamp" not in statement:
            statements.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", record)
    yield statements
    event.remove(connection, "before_cursor_execute", record)


def plan(connection: Connection, statement: str, parameters: Any) -> list[str]:
    explain = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
    return [str(row[-1]) for row in connection.exec_driver_sql(explain + statement, parameters)]


def is_scan(line: str) -> bool:
    """Whether a line of a plan reads a whole table (walking along an index stops at the LIMIT)."""
    return "Seq Scan" in line or (line.startswith("SCAN") and "USING" not in line and "CONSTANT" not in line)
