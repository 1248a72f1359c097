"""Transactions: all or nothing, one consistent view, and what happens when the database is busy or goes away."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from jobs import database as module
from jobs.database import Database, now
from jobs.tables import JobInputRow, ModelRow, OutboxRow
from tests.jobs.rows import Clock, add_model


def count_models(database: Database) -> int:
    with database.reading() as session:
        return session.execute(select(func.count()).select_from(ModelRow)).scalar_one()


class Interrupted(Exception):
    """Raised by a test in the middle of a transaction."""


def test_writing_commits_when_the_block_ends(database: Database) -> None:
    with database.writing() as session:
        add_model(session)
    assert count_models(database) == 1


def test_writing_rolls_back_when_the_block_raises(database: Database) -> None:
    def add_and_stumble() -> None:
        with database.writing() as session:
            add_model(session)
            raise Interrupted

    with pytest.raises(Interrupted):
        add_and_stumble()
    assert count_models(database) == 0


def test_reading_refuses_changes(database: Database) -> None:
    with pytest.raises(DBAPIError, match=r"readonly|read-only"), database.reading() as session:
        add_model(session)
    with database.writing() as session:
        add_model(session)  # and the connection is none the worse for it
    assert count_models(database) == 1


def test_reading_sees_one_consistent_state(database: Database) -> None:
    with database.reading() as session:
        before = session.execute(select(func.count()).select_from(ModelRow)).scalar_one()
        with database.writing() as other:
            add_model(other)
        assert session.execute(select(func.count()).select_from(ModelRow)).scalar_one() == before
    assert count_models(database) == before + 1


def test_rows_can_be_read_after_their_transaction(database: Database) -> None:
    with database.writing() as session:
        model = add_model(session)
    assert model.filename == "net.onnx"


def test_foreign_keys_hold(database: Database) -> None:
    with pytest.raises(IntegrityError), database.writing() as session:
        session.add(JobInputRow(job_id="job_" + "0" * 26, role="train", dataset_id="dst_" + "0" * 26))


def test_states_outside_the_list_are_refused(database: Database) -> None:
    with pytest.raises(IntegrityError), database.writing() as session:
        add_model(session).state = "lost"


def test_the_clock_of_the_test_is_believed(database: Database, clock: Clock) -> None:
    with database.reading() as session:
        assert now(session) == clock()
        clock.advance(5)
        assert now(session) == clock()


def test_the_database_tells_the_time_otherwise(database_url: str) -> None:
    database = Database(database_url)
    with database.writing() as session:
        first, second = now(session), now(session)
    database.close()
    assert first.tzinfo is UTC
    assert first < second  # also within one transaction
    assert abs(first - datetime.now(UTC)) < timedelta(seconds=5)


def test_a_database_in_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="can't be in memory"):
        Database("sqlite://")


class TestSqlite:
    def test_writers_wait_for_each_other(self, sqlite_database: Database) -> None:
        entered = threading.Event()

        def write_slowly() -> None:
            with sqlite_database.writing() as session:
                add_model(session)
                entered.set()
                time.sleep(0.2)

        thread = threading.Thread(target=write_slowly)
        thread.start()
        entered.wait()
        with sqlite_database.writing() as session:
            assert session.execute(select(func.count()).select_from(ModelRow)).scalar_one() == 1
            add_model(session)
        thread.join()
        assert count_models(sqlite_database) == 2

    def test_readers_do_not_wait_for_a_writer(self, sqlite_database: Database) -> None:
        with sqlite_database.writing() as session:
            add_model(session)
            session.flush()
            assert count_models(sqlite_database) == 0

    def test_a_locked_database_is_an_operational_error_and_passes(
        self, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "BUSY_TIMEOUT_MS", 50)
        database = Database(sqlite_database_url)
        other = sqlite3.connect(sqlite_database_url.removeprefix("sqlite:///"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="locked"), database.writing() as session:
            add_model(session)
        other.execute("ROLLBACK")
        other.close()
        with database.writing() as session:
            add_model(session)
        assert count_models(database) == 1
        database.close()

    def test_a_full_disk_is_an_operational_error_and_passes(self, sqlite_database: Database) -> None:
        def add_too_many() -> None:
            with sqlite_database.writing() as session:
                pages = session.execute(text("PRAGMA page_count")).scalar_one()
                session.execute(text(f"PRAGMA max_page_count = {pages}"))
                for place in range(1000):
                    add_model(session, f"model {place}")

        with pytest.raises(OperationalError, match="full"):
            add_too_many()
        with sqlite_database.writing() as session:
            session.execute(text("PRAGMA max_page_count = 1000000"))
            add_model(session)
        assert count_models(sqlite_database) == 1

    def test_its_folder_is_made(self, tmp_path: Path) -> None:
        database = Database(f"sqlite:///{tmp_path}/not/yet/winnow.sqlite")
        with database.reading() as session:
            assert session.execute(text("SELECT 1")).scalar_one() == 1
        database.close()


class TestPostgres:
    @pytest.fixture
    def postgres(self, postgres_database_url: str) -> Iterator[Database]:
        database = Database(postgres_database_url)
        yield database
        database.close()

    def test_after_a_disconnect_the_next_transaction_works(self, postgres: Database) -> None:
        def add_while_the_server_restarts() -> None:
            with postgres.writing() as session:
                add_model(session)
                end_other_connections(postgres)
                add_model(session)

        with pytest.raises(OperationalError):
            add_while_the_server_restarts()
        with postgres.writing() as session:
            add_model(session)
        assert count_models(postgres) == 1

    def test_idle_connections_that_broke_are_replaced(self, postgres: Database) -> None:
        assert count_models(postgres) == 0
        end_other_connections(postgres)
        assert count_models(postgres) == 0

    def test_nobody_waits_for_ever_for_a_lock(
        self, postgres_database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "BUSY_TIMEOUT_MS", 50)
        database = Database(postgres_database_url)
        with database.writing() as session:
            session.execute(text("LOCK TABLE outbox"))
            with pytest.raises(OperationalError, match="lock timeout"), database.writing() as other:
                other.execute(select(OutboxRow)).all()
        database.close()


def end_other_connections(database: Database) -> None:
    """As a restart of the server does to everybody else."""
    other = Database(database.url)
    with other.writing() as session:
        session.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        )
    other.close()
