"""What the service does beside answering: it sends hints that are owed, takes jobs from lost workers, and cleans up."""

import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import DBAPIError

from jobs import housekeeping
from jobs.database import Database
from jobs.messages import JobQueue
from jobs.settings import Settings
from jobs.storage import LocalStorage

log = structlog.get_logger()

GARBAGE_SECONDS = 60.0  # looking at every stored file is dear, and nothing waits for it


class Housekeeper:
    """One thread. Whatever fails in it is logged and tried again."""

    def __init__(self, database: Database, storage: LocalStorage, queue: JobQueue, settings: Settings) -> None:
        self._database, self._storage, self._queue, self._settings = database, storage, queue, settings
        self._wanted = threading.Event()
        self._stopping = False
        self._garbage_at = time.monotonic() + GARBAGE_SECONDS
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def nudge(self) -> None:
        """A hint is owed: send it now rather than at the next round."""
        self._wanted.set()

    def stop(self) -> None:
        self._stopping = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping:
            self._attempt("send", lambda: housekeeping.send_owed_hints(self._database, self._queue))
            if time.monotonic() >= due:
                self._tidy()
                due = time.monotonic() + self._settings.housekeeping_seconds
            self._wanted.wait(max(0.0, due - time.monotonic()))
            self._wanted.clear()

    def _tidy(self) -> None:
        settings, database = self._settings, self._database
        self._attempt("reap", lambda: housekeeping.reap(database, retry_delay_seconds=settings.retry_delay_seconds))
        self._attempt("remind", lambda: housekeeping.remind(database, reminder_seconds=settings.reminder_seconds))
        if time.monotonic() >= self._garbage_at:
            self._garbage_at = time.monotonic() + GARBAGE_SECONDS
            self._attempt(
                "collect",
                lambda: housekeeping.collect_garbage(
                    database, self._storage, keep_blobs_seconds=settings.keep_blobs_seconds
                ),
            )

    def _attempt(self, part: str, action: Callable[[], object]) -> None:
        try:
            action()
        except DBAPIError as error:  # busy or away; the next round finds out which
            log.warning("housekeeping.database_failed", part=part, reason=str(error).partition("\n")[0])
        except Exception:  # whatever it is, the next round must come
            log.exception("housekeeping.failed", part=part)
