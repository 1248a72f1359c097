"""Transactions. `reading` and `writing` are the only places where one begins, commits or rolls back.

A database that can't be reached or stays locked shows as SQLAlchemy's OperationalError (or TimeoutError, when all
connections are taken); nothing of the transaction has happened then, and the next one starts with a fresh connection.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, create_engine, event, func, make_url, select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

BUSY_TIMEOUT_MS = 15_000
POOL = {"pool_size": 10, "max_overflow": 40}  # one for each of a server's request threads, and some

Clock = Callable[[], datetime]


class Database:
    """One SQLite file or PostgreSQL database. Whoever gives a clock decides what time it is; else `now` tells."""

    def __init__(self, url: str, *, clock: Clock | None = None) -> None:
        self.url = url
        self._clock = clock
        self._engine = make_engine(url)
        self._reading_engine = self._engine.execution_options(**_reading_options(self._engine))
        self._writing_engine = self._engine.execution_options(begin_immediate=True)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that sees one consistent state; the database refuses changes in it."""
        with Session(self._reading_engine, expire_on_commit=False, info={"clock": self._clock}) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that commits when the block ends and rolls back when it raises."""
        session = Session(self._writing_engine, expire_on_commit=False, info={"clock": self._clock})
        with session, session.begin():
            yield session

    def close(self) -> None:
        self._engine.dispose()


def now(session: Session) -> datetime:
    """The database's clock, so that machines with wrong clocks agree on leases. SQLite lives on this machine and has ours."""
    clock: Clock | None = session.info.get("clock")
    if clock is not None:
        return clock()
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    moment = session.execute(select(func.clock_timestamp())).scalar_one()
    assert isinstance(moment, datetime)
    return moment.astimezone(UTC)


def make_engine(url: str) -> Engine:
    """Connections as all of Winnow uses them. On SQLite only those with the option `begin_immediate` may write."""
    if make_url(url).get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    return _postgres_engine(url)


def _reading_options(engine: Engine) -> dict[str, object]:
    if engine.dialect.name == "sqlite":
        return {}
    return {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


def _postgres_engine(url: str) -> Engine:
    # A worker that is frozen within a transaction must not hold its locks for ever, nor may anyone wait for ever.
    options = f"-c lock_timeout={BUSY_TIMEOUT_MS} -c idle_in_transaction_session_timeout=60000"
    arguments = {"connect_timeout": 5, "tcp_user_timeout": 15_000, "options": options}
    return create_engine(url, pool_pre_ping=True, connect_args=arguments, **POOL)


def _sqlite_engine(url: str) -> Engine:
    path = make_url(url).database
    if not path:
        raise ValueError(f"{url} names no file; Winnow's processes share their database, so it can't be in memory")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"check_same_thread": False}, **POOL)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin in _begin_sqlite, not behind our back
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        "synchronous = FULL",  # an accepted job survives a power cut
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the write lock at once: upgrading a read lock later would fail instead of waiting.
    writes = connection.get_execution_options().get("begin_immediate", False)
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.execute(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
