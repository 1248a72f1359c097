"""The shortcut for "has this job changed?": `GET /v1/jobs/{id}` with `If-None-Match`, answered 304 without any framework.

Everything that is not exactly this question, or whose answer is not 304, takes the ordinary way and loses nothing but
the look at one row.
"""

import re

import anyio.to_thread
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.repository.polling import Glance, JobGlances
from service.conditional import etag, matches
from service.endpoints.jobs import PATH, polling_headers

_JOB_PATH = re.compile(re.escape(PATH) + r"/(job_[0-9a-z]{26})", re.ASCII)


class PollingShortcut:
    """Answers polls of jobs that have not changed."""

    def __init__(self, app: ASGIApp, glances: JobGlances) -> None:
        self._app = app
        self._glances = glances

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and not scope["query_string"]:
            found = _JOB_PATH.fullmatch(scope["path"])
            seen = _etag_of_poll(scope) if found else None
            if found and seen is not None:
                glance = await self._glance(found[1])
                if glance is not None and matches(seen, etag(glance.version)):
                    headers = polling_headers(glance.version, is_final=glance.is_final)
                    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
                    await send({"type": "http.response.start", "status": 304, "headers": raw})
                    await send({"type": "http.response.body", "body": b""})
                    return
        await self._app(scope, receive, send)

    async def _glance(self, job_id: str) -> Glance | None:
        if self._glances.is_instant:
            return self._glances.glance(job_id)
        return await anyio.to_thread.run_sync(self._glances.glance, job_id)


def _etag_of_poll(scope: Scope) -> str | None:
    """The client's If-None-Match, unless it is prepared to wait for a change."""
    seen = None
    for name, value in scope["headers"]:
        if name == b"prefer":
            return None
        if name == b"if-none-match":
            if seen is not None:
                return None
            seen = value.decode("latin-1")
    return seen
