"""One server, spoken to with patience: what may be sent twice is repeated while the server restarts or is busy."""

import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2

from winnow.errors import ApiProblem, ConnectionLost, NoServer, WinnowError

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
BUSY = frozenset({429, 502, 503, 504})
KEY_IN_FLIGHT = "/problems/request-in-flight"  # our own first attempt is still being served
SAFE_METHODS = frozenset({"GET", "HEAD"})
USER_AGENT = "winnow-client/0.1.0"


class Patience:
    """Growing pauses between attempts, until `seconds` have passed since the last sign of life."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """The server gave a sign of life."""
        self._ends_at: float | None = None
        self._pause = FIRST_PAUSE_SECONDS

    def wait(self, failure: WinnowError, *, at_least: float = 0.0) -> None:
        """Sleep before the next attempt, or raise `failure` if there should be none."""
        moment = time.monotonic()
        self._ends_at = self._ends_at or moment + self._seconds
        pause = max(self._pause, at_least)
        if moment + pause > self._ends_at:
            raise failure
        time.sleep(pause)
        self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)


class Connection:
    """Requests to one server. Raises `ApiProblem`, `NoServer` and `ConnectionLost`, never an HTTP library's error."""

    def __init__(self, base_url: str, *, timeout_seconds: float, patience_seconds: float) -> None:
        self.base_url = base_url.rstrip("/")
        self.patience_seconds = patience_seconds
        try:
            url = httpx2.URL(self.base_url)
        except httpx2.InvalidURL as invalid:
            raise WinnowError(f"{base_url!r} is no address of a server: {invalid}") from invalid
        if url.scheme not in ("http", "https") or not url.host:
            raise WinnowError(f"{base_url!r} is no address of a server; write it like http://127.0.0.1:8000")
        self._http = httpx2.Client(
            base_url=url,
            timeout=timeout_seconds,
            headers={"User-Agent": USER_AGENT, "Accept": "application/json"},
            # A proxy named by the environment can't reach this machine's own loopback.
            trust_env=not _is_loopback(url.host),
        )
        self._answered = False

    def close(self) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,  # whatever JSON can say
        body: Callable[[], Iterator[bytes]] | None = None,
        timeout_seconds: float | None = None,
    ) -> httpx2.Response:
        """The server's answer. GETs, and POSTs with an Idempotency-Key, are repeated when a connection breaks.

        `body` makes the bytes to send, afresh for each attempt.
        """
        repeatable = method in SAFE_METHODS or "Idempotency-Key" in (headers or {})
        timeout = httpx2.USE_CLIENT_DEFAULT if timeout_seconds is None else timeout_seconds
        patience = Patience(self.patience_seconds)
        while True:
            try:
                response = self._http.request(
                    method, path, params=params, headers=headers, json=json, content=body() if body else None,
                    timeout=timeout,
                )  # fmt: skip
            except httpx2.TransportError as failure:
                patience.wait(self._judged(failure, repeatable=repeatable))
                continue
            self._answered = True
            if response.is_success or response.status_code == httpx2.codes.NOT_MODIFIED:
                return response
            problem = ApiProblem.from_response(response)
            if not (repeatable and is_passing(problem)):
                raise problem
            patience.wait(problem, at_least=_retry_after(response))

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str], silence_seconds: float | None = None
    ) -> Iterator[httpx2.Response]:
        """One GET whose body is read piece by piece. The caller resumes, and asks `judged` whether to."""
        timeout = httpx2.USE_CLIENT_DEFAULT if silence_seconds is None else silence_seconds
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            self._answered = True
            if response.is_error:
                response.read()
                raise ApiProblem.from_response(response)
            yield response

    def judged(self, failure: httpx2.TransportError | ApiProblem) -> WinnowError:
        """What to raise once patience with a stream has run out. Raises at once what waiting can't mend."""
        if isinstance(failure, httpx2.TransportError):
            return self._judged(failure, repeatable=True)
        if not is_passing(failure):
            raise failure
        return failure

    def _judged(self, failure: httpx2.TransportError, *, repeatable: bool) -> WinnowError:
        never_sent = isinstance(failure, httpx2.ConnectError | httpx2.ConnectTimeout)
        if never_sent and not self._answered:
            raise NoServer(self.base_url) from failure
        lost = ConnectionLost(self.base_url, str(failure) or type(failure).__name__)
        if never_sent or repeatable:
            return lost
        raise lost from failure


def is_passing(problem: ApiProblem) -> bool:
    """Whether the same request may well succeed in a moment."""
    return problem.status in BUSY or problem.type.endswith(KEY_IN_FLIGHT)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _retry_after(response: httpx2.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0
