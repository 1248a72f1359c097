"""Waiting for a row to change: one query loop for everybody who waits, however many they are."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Literal

import anyio.to_thread
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.repository.queries import job_version
from jobs.repository.uploads import upload_version
from jobs.tables import DatasetRow, ModelRow

log = structlog.get_logger()

INTERVAL_SECONDS = 0.2

Kind = Literal["job", "model", "dataset"]
Subject = tuple[Kind, str]

_VERSIONS: dict[Kind, Callable[[Session, str], int | None]] = {
    "job": job_version,
    "model": lambda session, model_id: upload_version(session, ModelRow, model_id),
    "dataset": lambda session, dataset_id: upload_version(session, DatasetRow, dataset_id),
}


class Watcher:
    """Wakes those who wait. Lives in one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[Subject, list[tuple[int, asyncio.Event]]] = {}
        self._loop: asyncio.Task[None] | None = None

    async def wait_for_change(self, kind: Kind, row_id: str, version: int, *, timeout_seconds: float) -> bool:
        """Return True when the row's version is no longer `version`, or False after `timeout_seconds`."""
        subject, changed = (kind, row_id), asyncio.Event()
        waiter = (version, changed)
        self._waiting.setdefault(subject, []).append(waiter)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._watch())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await changed.wait()
            return changed.is_set()
        finally:
            self._waiting[subject].remove(waiter)
            if not self._waiting[subject]:
                del self._waiting[subject]

    async def close(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop

    async def _watch(self) -> None:
        while self._waiting:
            await asyncio.sleep(INTERVAL_SECONDS)
            try:
                versions = await anyio.to_thread.run_sync(self._versions, list(self._waiting))
            except SQLAlchemyError as error:  # they wait on, and get what they have when their time is over
                log.warning("watch.failed", reason=str(error))
                continue
            for subject, current in versions.items():
                for version, changed in self._waiting.get(subject, ()):
                    if version != current:
                        changed.set()

    def _versions(self, subjects: Iterable[Subject]) -> dict[Subject, int | None]:
        with self._database.reading() as session:
            return {(kind, row_id): _VERSIONS[kind](session, row_id) for kind, row_id in subjects}
