"""What happened to a job: as a page, or as a stream of server-sent events that ends with the job.

The table is the only source, so a stream that breaks goes on anywhere, at any process, without a gap.
"""

from collections.abc import AsyncIterator, Sequence

import anyio.to_thread
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.repository.queries import events_after, find_job
from jobs.states import FINAL
from jobs.tables import JobEventRow, JobRow
from service.presentation import shown_event
from service.refusals import ResourceNotFound
from service.schemas import JobEventPage
from service.watching import Watcher

BATCH = 500
PING_SECONDS = 10.0
RETRY_MILLISECONDS = 2000


def event_page(database: Database, job_id: str, after: int, limit: int) -> JobEventPage:
    """The events that follow the one with the number `after`."""
    with database.reading() as session:
        _find(session, job_id)
        events = [shown_event(row) for row in events_after(session, job_id, after, limit=limit)]
    return JobEventPage(items=events, next_after=events[-1].seq if events else after)


def nothing_follows(database: Database, job_id: str, after: int) -> bool:
    """Whether the job has ended and the client has all of its events."""
    with database.reading() as session:
        return _is_over(_find(session, job_id), after)


async def event_stream(database: Database, watcher: Watcher, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Every event from the one after `after` to the last, as they happen."""
    yield format_sse_event(retry=RETRY_MILLISECONDS)
    while True:
        job, events = await anyio.to_thread.run_sync(_news, database, job_id, after)
        for event in events:
            after = event.seq
            name = " ".join(event.type.split())  # a runner named it, and a line end would end the field
            yield format_sse_event(event=name, id=str(event.seq), data_str=shown_event(event).model_dump_json())
        if _is_over(job, after):
            return
        if not events and not await watcher.wait_for_change("job", job_id, job.version, timeout_seconds=PING_SECONDS):
            yield KEEPALIVE_COMMENT


def _news(database: Database, job_id: str, after: int) -> tuple[JobRow, Sequence[JobEventRow]]:
    with database.reading() as session:
        return _find(session, job_id), events_after(session, job_id, after, limit=BATCH)


def _find(session: Session, job_id: str) -> JobRow:
    job = find_job(session, job_id)
    if job is None:
        raise ResourceNotFound("job", job_id)
    return job


def _is_over(job: JobRow, after: int) -> bool:
    return job.state in FINAL and after >= job.last_event
