"""How much does polling cost? `GET /v1/jobs/{id}` answered 304, against a bare FastAPI route: `python -m benchmarks.polling`.

Both servers are uvicorn with uvloop and httptools, one process each; the bare one has one route that returns a small
dictionary and no middleware. A client in a third process keeps some connections busy and counts answers. The servers are
measured in turns, so that whatever else the machine does hits both alike. The processor time of the serving process
is given beside the requests a second, because it does not depend on who else wants the processor.
"""

import argparse
import asyncio
import multiprocessing
import os
import platform
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx2
import psutil
import structlog
import uvicorn
import uvloop
from fastapi import FastAPI

from benchmarks.tables import table
from jobs.database import Database
from jobs.repository.lifecycle import claim_job, submit_job
from jobs.repository.uploads import add_upload
from jobs.settings import Settings
from jobs.tables import ModelRow
from migrations.upgrade import upgrade_database
from service.app import build_app
from tests.servers import start_postgres
from tests.service.running_service import NotingBroker

CONNECTIONS = 16


@dataclass(frozen=True)
class Measured:
    requests_per_second: float
    processor_microseconds: float  # of the serving process, for one request


@dataclass(frozen=True)
class Target:
    """A server, and the request that is sent to it again and again."""

    name: str
    port: int
    process: psutil.Process
    request: bytes
    answer_bytes: int
    status: int


class _Caller(asyncio.Protocol):
    """One connection that asks again as soon as it is answered. Answers all have the same length."""

    def __init__(self, request: bytes, answer_bytes: int) -> None:
        self._request, self._answer_bytes = request, answer_bytes
        self._received = 0
        self.answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        while self._received >= self._answer_bytes:
            self._received -= self._answer_bytes
            self.answers += 1
            self._transport.write(self._request)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--postgres", action="store_true", help="PostgreSQL instead of SQLite")
    options = parser.parse_args()
    with _database(postgres=options.postgres) as settings:
        job_id, etag = _running_job(settings)
        poll = {"If-None-Match": etag}
        with (
            serving(_bare_app) as (bare_port, bare_process),
            serving(lambda: build_app(settings, NotingBroker())) as (port, process),
        ):
            bare = _target("bare FastAPI route", bare_port, bare_process, f"/bare/{job_id}", {})
            ours = _target("GET /v1/jobs/{id}, 304", port, process, f"/v1/jobs/{job_id}", poll)
            full = _target("GET /v1/jobs/{id}, 200", port, process, f"/v1/jobs/{job_id}", {})
            assert (bare.status, ours.status, full.status) == (200, 304, 200)
            results: dict[str, list[Measured]] = {target.name: [] for target in (bare, ours, full)}
            for target in (bare, ours, full):
                _measure(target, 0.5)
            for _ in range(options.rounds):
                for target in (bare, ours, full):
                    results[target.name].append(_measure(target, options.seconds))
    _report(results, bare.name, settings, options.seconds)


def _report(results: dict[str, list[Measured]], baseline: str, settings: Settings, seconds: float) -> None:
    kind = settings.database_url.partition(":")[0]
    rounds = len(results[baseline])
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {kind}; {CONNECTIONS} connections,"
    )
    print(
        f"{rounds} rounds of {seconds:g} s each in turns; medians, in brackets the quartiles; load {os.getloadavg()[0]:.1f}\n"
    )
    rows = []
    for name, measured in results.items():
        pairs = list(zip(measured, results[baseline], strict=True))
        rows.append(
            (
                name,
                _spread([m.requests_per_second for m in measured], "{:.0f}"),
                _spread([m.requests_per_second / b.requests_per_second for m, b in pairs], "{:.2f}"),
                _spread([m.processor_microseconds for m in measured], "{:.0f}"),
                _spread([b.processor_microseconds / m.processor_microseconds for m, b in pairs], "{:.2f}"),
            )
        )
    print(table(("", "requests/s", "of the bare route's", "processor µs/request", "bare route's µs over these"), rows))


def _spread(values: list[float], form: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{form.format(middle)} [{form.format(low)}, {form.format(high)}]"


def _measure(target: Target, seconds: float) -> Measured:
    with multiprocessing.get_context("spawn").Pool(1) as client:
        client.apply(time.time)  # the client has started before the clock does
        before = target.process.cpu_times()
        answers, elapsed = client.apply(_call, (target.port, target.request, target.answer_bytes, seconds))
        after = target.process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return Measured(answers / elapsed, used / answers * 1e6)


def _call(port: int, request: bytes, answer_bytes: int, seconds: float) -> tuple[int, float]:
    return uvloop.run(_keep_calling(port, request, answer_bytes, seconds))


async def _keep_calling(port: int, request: bytes, answer_bytes: int, seconds: float) -> tuple[int, float]:
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    callers = [
        (await loop.create_connection(lambda: _Caller(request, answer_bytes), "127.0.0.1", port))[1]
        for _ in range(CONNECTIONS)
    ]
    await asyncio.sleep(seconds)
    return sum(caller.answers for caller in callers), time.perf_counter() - began


def _target(name: str, port: int, process: psutil.Process, path: str, headers: dict[str, str]) -> Target:
    lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{key}: {value}" for key, value in headers.items())]
    request = "\r\n".join([*lines, "", ""]).encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        time.sleep(0.3)
        answer = connection.recv(1 << 20)
    return Target(name, port, process, request, len(answer), int(answer.split()[1]))


def _bare_app() -> FastAPI:
    app = FastAPI()

    @app.get("/bare/{job_id}")
    async def bare(job_id: str) -> dict[str, str]:
        return {"id": job_id}

    return app


@contextmanager
def serving(make_app: Callable[[], object]) -> Iterator[tuple[int, psutil.Process]]:
    """One uvicorn in a process of its own."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    port = listener.getsockname()[1]
    # fork: the application is made in the child, from what is at hand here
    server = multiprocessing.get_context("fork").Process(target=_serve, args=(make_app, listener), daemon=True)
    server.start()
    path = "/openapi.json"
    while True:
        try:
            httpx2.get(f"http://127.0.0.1:{port}{path}", timeout=30, trust_env=False)
            break
        except httpx2.TransportError:
            time.sleep(0.1)
    yield port, psutil.Process(server.pid)
    server.terminate()
    server.join()


def _serve(make_app: Callable[[], object], listener: socket.socket) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    config = uvicorn.Config(make_app(), loop="uvloop", http="httptools", log_config=None, access_log=False)  # type: ignore[arg-type]
    uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _database(*, postgres: bool) -> Iterator[Settings]:
    folder = Path(tempfile.mkdtemp(prefix="winnow-"))
    server = start_postgres(folder) if postgres else None
    settings = Settings(data_folder=folder, database_url=server.url if server else "", min_free_bytes=0)
    upgrade_database(settings.database_url)
    yield settings
    if server:
        server.stop()
    shutil.rmtree(folder)


def _running_job(settings: Settings) -> tuple[str, str]:
    """A job that runs, among ten thousand others; and its ETag."""
    database = Database(settings.database_url)
    request = {"model": f"mdl_{'0' * 26}", "recipe": [{"kind": "prune_weights"}]}
    with database.writing() as session:
        model = add_upload(session, ModelRow, filename="net.onnx", size_bytes=1, sha256="0" * 64)
        for _ in range(10_000):
            job = submit_job(
                session,
                kind="compress",
                request=request,
                model_id=model.id,
                inputs={},
                deadline_seconds=3600,
                max_attempts=3,
            )
    with database.writing() as session:
        claimed = claim_job(session, job.id, worker="benchmark", lease_seconds=36_000)
    database.close()
    assert claimed is not None
    return claimed.id, f'W/"{claimed.version}"'


if __name__ == "__main__":
    main()
