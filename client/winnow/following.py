"""What happens to a job, as it happens: server-sent events, resumed after every break; polling where they can't get through."""

import time
from collections.abc import Iterator
from typing import Final

import httpx2

from winnow.connection import Connection, Patience
from winnow.errors import ApiProblem, ConnectionLost
from winnow.resources import Document, Event

# The server sends a comment at least every 15 s. Longer silence means that something between us holds the stream back.
SILENCE_SECONDS: Final = 40.0
POLL_SECONDS: Final = 1.0
EVENT_STREAM: Final = "text/event-stream"


class _NoStream(Exception):
    """This server, or a proxy before it, doesn't pass events on as they happen."""


class _NothingFollows(Exception):
    """The job has ended, and all its events are known."""


def follow_events(connection: Connection, job_id: str, *, after: int = 0) -> Iterator[Event]:
    """Every event with a number above `after`, once and in order, until the job has ended."""
    seen = after
    try:
        for event in _streamed(connection, job_id, after):
            seen = event.seq
            yield event
    except _NothingFollows:
        return
    except _NoStream:
        yield from _polled(connection, job_id, seen)


def _streamed(connection: Connection, job_id: str, seen: int) -> Iterator[Event]:
    patience = Patience(connection.patience_seconds)
    while True:
        try:
            for event in _one_stream(connection, job_id, seen):
                if event.seq <= seen:
                    continue
                seen = event.seq
                patience.renew()
                yield event
                if event.is_final:
                    return
            patience.wait(ConnectionLost(connection.base_url, "the event stream ended early"))
        except httpx2.ReadTimeout as silence:
            raise _NoStream from silence
        except (httpx2.TransportError, ApiProblem) as broken:
            patience.wait(connection.judged(broken))


def _one_stream(connection: Connection, job_id: str, seen: int) -> Iterator[Event]:
    headers = {"Accept": EVENT_STREAM, "Last-Event-ID": str(seen)}
    with connection.stream(f"/v1/jobs/{job_id}/events", headers=headers, silence_seconds=SILENCE_SECONDS) as response:
        if response.status_code == httpx2.codes.NO_CONTENT:
            raise _NothingFollows
        if not response.headers.get("Content-Type", "").startswith(EVENT_STREAM):
            raise _NoStream
        for message in httpx2.EventSource(response):
            if message.data:
                document: Document = message.json()  # type: ignore[assignment]  # an event is always an object
                yield Event.from_document(document)


def _polled(connection: Connection, job_id: str, seen: int) -> Iterator[Event]:
    while True:
        page = connection.call("GET", f"/v1/jobs/{job_id}/events", params={"after": seen}).json()
        for event in map(Event.from_document, page["items"]):
            seen = event.seq
            yield event
            if event.is_final:
                return
        if not page["items"]:
            time.sleep(POLL_SECONDS)
