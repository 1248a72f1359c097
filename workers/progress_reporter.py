"""Carries what the runner says on its standard output to the job's row: checked, bounded, and not more often than useful."""

import os
import selectors
import threading
import time
from typing import IO, Any

import structlog

from jobs.database import Database
from jobs.folder import MAX_PROGRESS_LINE_BYTES, Progress
from jobs.repository.lifecycle import LeaseLost, record_progress
from jobs.tables import storable
from workers.lease import DATABASE_AWAY, Lease
from workers.untrusted import Untrustworthy, parse_untrusted

log = structlog.get_logger()

EVENT = "progress"  # the type of the events that a runner causes; it can't pretend a change of state
WRITE_SECONDS = 0.5
MAX_EVENTS = 10_000
MAX_EVENT_BYTES = 8 * 2**20  # of one attempt, together
MAX_STEP = 1000
READ_BYTES = 64 * 1024
CLOSE_SECONDS = 5.0


class ProgressReporter:
    """A thread of its own, so that a slow database delays no kill. While it is held up, the pipe makes the runner wait."""

    def __init__(self, stream: IO[bytes], database: Database, lease: Lease) -> None:
        self._stream = stream
        self._database = database
        self._lease = lease
        self._heard_at = time.monotonic()
        self._written_at = 0.0
        self._unfinished = b""  # the beginning of a line
        self._skipping = False  # within a line that is too long
        self._latest: Progress | None = None
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._event_count = 0
        self._event_bytes = 0
        self._junk_lines = 0
        self._dropped_events = 0
        self._closing = threading.Event()
        context = structlog.contextvars.get_contextvars()
        self._thread = threading.Thread(target=self._run, args=(context,), name="progress", daemon=True)
        self._thread.start()

    @property
    def silent_seconds(self) -> float:
        """How long ago the runner last reported something sensible."""
        return time.monotonic() - self._heard_at

    def close(self) -> None:
        """Write down what is still in the pipe; the runner has ended."""
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)
        if self._junk_lines or self._dropped_events:
            log.warning("runner.odd_progress", junk_lines=self._junk_lines, dropped_events=self._dropped_events)

    def _run(self, context: dict[str, Any]) -> None:
        structlog.contextvars.bind_contextvars(**context)
        with selectors.DefaultSelector() as selector:
            selector.register(self._stream, selectors.EVENT_READ)
            while not self._lease.is_lost:
                if selector.select(timeout=0.1):
                    chunk = os.read(self._stream.fileno(), READ_BYTES)
                    if not chunk:
                        break
                    self._take(chunk)
                elif self._closing.is_set():
                    break
                if time.monotonic() - self._written_at >= WRITE_SECONDS:
                    self._write()
        self._write_last()

    def _take(self, chunk: bytes) -> None:
        *lines, self._unfinished = (self._unfinished + chunk).split(b"\n")
        for line in lines:
            if self._skipping:
                self._skipping = False
            elif line.strip():
                self._take_line(line)
        if len(self._unfinished) > MAX_PROGRESS_LINE_BYTES:
            self._junk_lines += not self._skipping
            self._skipping, self._unfinished = True, b""

    def _take_line(self, line: bytes) -> None:
        try:
            progress = parse_untrusted(Progress, line[: MAX_PROGRESS_LINE_BYTES + 1])  # what is cut off doesn't parse
        except Untrustworthy:
            self._junk_lines += 1
            return
        if progress.step is not None and progress.step > MAX_STEP:
            self._junk_lines += 1
            return
        self._heard_at = time.monotonic()
        self._latest = progress
        if progress.type == "event":
            self._take_event(progress, len(line))

    def _take_event(self, progress: Progress, size_bytes: int) -> None:
        self._event_count += 1
        self._event_bytes += size_bytes
        if self._event_count > MAX_EVENTS or self._event_bytes > MAX_EVENT_BYTES:
            self._dropped_events += 1
            return
        self._events.append((EVENT, progress.model_dump(exclude={"type"})))

    def _write_last(self) -> None:
        give_up = time.monotonic() + CLOSE_SECONDS
        while self._latest is not None and not self._lease.is_lost and time.monotonic() < give_up:
            self._write()
            if self._latest is not None:
                time.sleep(0.1)

    def _write(self) -> None:
        self._written_at = time.monotonic()
        if self._latest is None:
            return
        try:
            with self._database.writing() as session:
                record_progress(
                    session,
                    self._lease.job_id,
                    self._lease.token,
                    phase=storable(self._latest.phase),
                    fraction=self._latest.fraction,
                    step=self._latest.step,
                    message=self._latest.message,
                    events=self._events,
                )
        except LeaseLost:
            self._lease.mark_lost()
        except DATABASE_AWAY as away:
            log.warning("progress.database_away", reason=type(away).__name__)
        else:
            self._latest, self._events = None, []
