"""Ends a worker that sits idle while jobs wait: after a broker's restart a consumer may listen without ever hearing.

Whatever started the worker starts it anew. Until then no job is lost, only late.
"""

import os
import signal
import threading
import time

import structlog

from jobs.database import Database
from jobs.repository.worker_queries import has_overlooked_job
from workers.lease import DATABASE_AWAY
from workers.supervisor import Supervisor

log = structlog.get_logger()

LAST_RESORT_SECONDS = 10.0
DEAF = 75  # exit code of a worker that did not even end when asked to


class Watchdog:
    """Looks now and then; also sweeps up after workers of this machine that were killed."""

    def __init__(self, supervisor: Supervisor, database: Database, *, waiting_seconds: float) -> None:
        self._supervisor = supervisor
        self._database = database
        self._waiting_seconds = waiting_seconds

    def start(self) -> None:
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self._supervisor.sweep()
                deaf = self.is_deaf()
            except DATABASE_AWAY as away:
                log.warning("watchdog.database_away", reason=type(away).__name__)
                deaf = False
            if deaf:
                self._end_worker()
            time.sleep(self._waiting_seconds / 4)

    def is_deaf(self) -> bool:
        """Jobs have waited long after their messages were sent, and this slot was free all that time."""
        if self._supervisor.idle_seconds < self._waiting_seconds:
            return False
        with self._database.reading() as session:
            return has_overlooked_job(session, waiting_seconds=self._waiting_seconds)

    def _end_worker(self) -> None:
        log.error("worker.deaf", idle_seconds=round(self._supervisor.idle_seconds))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LAST_RESORT_SECONDS)
        os._exit(DEAF)
