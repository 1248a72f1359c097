"""The one question that is asked thousands of times a second: has this job changed since the client last looked?

A session and a transaction cost many times what the question itself costs. Here it goes straight to the driver, on
connections that stay open and on which every statement is a transaction of its own.
"""

from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, LifoQueue

from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import SQLAlchemyError

from jobs.database import Database, make_engine
from jobs.states import FINAL

# Whoever waits here may hold up everybody else; the ordinary way of asking has all the patience.
LOCK_PATIENCE_MS = 50

_QUESTION = "SELECT version, state FROM jobs WHERE id = {} AND kind = 'compress'"


@dataclass(frozen=True)
class Glance:
    """What a client must know of a job that it has seen before."""

    version: int
    is_final: bool


class JobGlances:
    """Answers from the database as it is at that moment, never from memory. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._engine = make_engine(database.url)
        self.is_instant = (
            self._engine.dialect.name == "sqlite"
        )  # a file on this machine: microseconds, no need for a thread
        self._question = _QUESTION.format("?" if self.is_instant else "%s")
        self._idle: LifoQueue[PoolProxiedConnection] = LifoQueue()

    def glance(self, job_id: str) -> Glance | None:
        """The job's version, or None if there is no such job, or the database can't say at once."""
        try:
            connection = self._connection()
        except SQLAlchemyError:
            return None
        try:
            cursor = connection.cursor()
            cursor.execute(self._question, (job_id,))
            row = cursor.fetchone()
            cursor.close()
        except self._engine.dialect.loaded_dbapi.Error:
            connection.invalidate()
            return None
        self._idle.put(connection)
        return None if row is None else Glance(version=row[0], is_final=row[1] in FINAL)

    def close(self) -> None:
        with suppress(Empty):
            while True:
                self._idle.get_nowait().close()
        self._engine.dispose()

    def _connection(self) -> PoolProxiedConnection:
        with suppress(Empty):
            return self._idle.get_nowait()
        connection = self._engine.raw_connection()
        if self.is_instant:
            connection.cursor().execute(f"PRAGMA busy_timeout = {LOCK_PATIENCE_MS}")
        else:
            assert connection.driver_connection is not None
            connection.driver_connection.autocommit = True
        return connection
