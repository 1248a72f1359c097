"""An HTTP server that answers exactly as a test tells it to, also badly: late, cut off, damaged, or not at all."""

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One answer. With `cut_after`, the connection breaks after that many bytes of the body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None


@dataclass(frozen=True)
class Seen:
    """One request, as it arrived."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


Answer = Reply | Callable[[Seen], Reply]


def json_reply(document: Any, status: int = 200, **headers: str) -> Reply:  # whatever JSON can say
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(document).encode(), {"Content-Type": "application/json", **names})


def problem_reply(status: int, title: str, headers: Mapping[str, str] | None = None, **fields: Any) -> Reply:
    document = {"type": "/problems/x", "title": title, "status": status, **fields}
    return Reply(status, json.dumps(document).encode(), {"Content-Type": "application/problem+json", **(headers or {})})


class ScriptedServer:
    """Gives each path its answers in turn, the last one again and again, and remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._answers: dict[tuple[str, str], list[Answer]] = defaultdict(list)
        handler = type("Handler", (_Handler,), {"script": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def on(self, method: str, path: str, *answers: Answer) -> None:
        self._answers[method, path] += answers

    def answer(self, request: Seen) -> Reply:
        self.seen.append(request)
        answers = self._answers[request.method, request.path]
        if not answers:
            return problem_reply(404, "Nothing at this address")
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer if isinstance(answer, Reply) else answer(request)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            self._http.shutdown()
            thread.join()
            self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    script: ScriptedServer

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self.script.answer(Seen(self.command, self.path, dict(self.headers), body))
        with suppress(BrokenPipeError, ConnectionResetError):  # the client had enough
            self._send(reply)
        self.close_connection = True

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        # An event stream has no length; its end is the end of the connection.
        if reply.headers.get("Content-Type") != "text/event-stream":
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body[: reply.cut_after])

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815  # names that http.server looks for

    def log_message(self, format: str, *args: object) -> None:
        """Tests look at `seen` instead."""
