"""Keeps a claimed job ours: a thread that renews the lease and learns what clients ask of the job meanwhile."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError

from jobs.database import Database
from jobs.repository.lifecycle import LeaseLost, renew_lease
from jobs.repository.worker_queries import wishes_for

log = structlog.get_logger()

DATABASE_AWAY = (OperationalError, InterfaceError)  # locked, disk full, connection lost: may pass
WISHES_CHECK_SECONDS = 0.5


class Lease:
    """What the supervisor knows of its right to the job. It only ever gets worse: a lost lease never comes back."""

    def __init__(
        self, database: Database, job_id: str, token: str, *, lease_seconds: float, heartbeat_seconds: float
    ) -> None:
        self.job_id, self.token = job_id, token
        self._database = database
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._renewed_at = time.monotonic()
        self._cancel_requested = threading.Event()
        self._finish_requested = threading.Event()
        self._lost = threading.Event()
        self._over = threading.Event()

    @property
    def is_lost(self) -> bool:
        """Somebody else has the job, or may have it before we could find out because the database does not answer."""
        margin = min(2 * self._heartbeat_seconds, self._lease_seconds / 4)
        silent_seconds = time.monotonic() - self._renewed_at
        return self._lost.is_set() or silent_seconds > self._lease_seconds - margin

    @property
    def cancel_requested(self) -> bool:
        return self._cancel_requested.is_set()

    @property
    def finish_requested(self) -> bool:
        """The job's search is to end with the best that it has found."""
        return self._finish_requested.is_set()

    def mark_lost(self) -> None:
        """A write with our token matched no row."""
        self._lost.set()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the lease while the block runs."""
        heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        heart.start()
        try:
            yield
        finally:
            self._over.set()

    def _beat(self) -> None:
        with structlog.contextvars.bound_contextvars(job_id=self.job_id):
            pause = min(self._heartbeat_seconds, WISHES_CHECK_SECONDS)
            while not self._over.wait(pause):
                try:
                    self._ask()
                except LeaseLost:
                    self.mark_lost()
                    return
                except DATABASE_AWAY as away:
                    log.warning("lease.database_away", reason=type(away).__name__)

    def _ask(self) -> None:
        asked_at = time.monotonic()  # the lease runs from when it was asked for, not from when the answer came
        if asked_at - self._renewed_at >= self._heartbeat_seconds:
            with self._database.writing() as session:
                wishes = renew_lease(session, self.job_id, self.token, lease_seconds=self._lease_seconds)
            self._renewed_at = asked_at
        else:
            with self._database.reading() as session:
                wishes = wishes_for(session, self.job_id)
        if wishes.cancel:
            self._cancel_requested.set()
        if wishes.finish:
            self._finish_requested.set()
