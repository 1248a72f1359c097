"""Every request has an id: the caller's if it is a sane one, else a new one. It is returned, and in every line of the log."""

import logging
import re
import secrets
import sys
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import problem_response
from service.refusals import InternalError

log = structlog.get_logger()

HEADER = "X-Request-ID"
_SANE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}", re.ASCII)
_QUIET = ("/livez", "/readyz")


class RequestLog:
    """The outermost layer: it names requests, logs how they ended, and answers when everything below it fails."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _SANE.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self._app(scope, receive, send_named)
        except ClientDisconnect:
            log.info("request.client_went_away", method=scope["method"], path=scope["path"][:200])
        except Exception:
            log.exception("request.failed", method=scope["method"], path=scope["path"])
            if status:
                raise  # half an answer is out: only a broken connection tells the truth now
            await problem_response(InternalError(), scope)(scope, receive, send_named)
        finally:
            _log_end(scope, status, began)
            structlog.contextvars.unbind_contextvars("request_id")


def configure_logging() -> None:
    """One JSON object a line on standard error, from this program and from the libraries that it uses.

    Everything goes through the standard library's handler, because that one survives a standard error that is gone.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("service", "jobs", "__main__", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = name != "uvicorn.access"  # requests are logged above, with their ids


def _log_end(scope: Scope, status: int, began: float) -> None:
    path = scope["path"]
    if status in (0, 304) or path in _QUIET:
        return  # there was no answer; or there are thousands a second, and nothing happened
    milliseconds = round((time.perf_counter() - began) * 1000, 1)
    log.info("request.served", method=scope["method"], path=path[:200], status=status, milliseconds=milliseconds)
