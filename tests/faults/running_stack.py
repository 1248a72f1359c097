"""A whole stack, `winnow-server up` with the scripted runner, started as a process of its own, to be maltreated."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.faults.installation import Installation

ROOT = Path(__file__).parents[2]

# Everything happens soon, so that what must happen after a while can be waited for.
SHORT: dict[str, Any] = {
    "lease_seconds": 2.0,
    "heartbeat_seconds": 0.3,
    "retry_delay_seconds": 0.2,
    "reminder_seconds": 2.0,
    "housekeeping_seconds": 0.3,
    "cancel_grace_seconds": 0.3,
}
_STACK = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # should the tests be killed, the stack goes with them, and all its processes with it
from service.local_stack import main
sys.exit(main(sys.argv[1:], worker_app="tests.faults.scripted_worker"))
"""


class RunningStack:
    """The processes of one stack. Only they are ever signalled."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, installation: Installation, log: Path) -> None:
        self.process = process
        self.port = port
        self.installation = installation
        self.log = log

    def redis(self) -> psutil.Process:
        return self._child("redis-server")

    def service(self) -> psutil.Process:
        return self._child("uvicorn")

    def workers(self) -> list[psutil.Process]:
        return [child for child in self._children() if "celery" in child.cmdline()]

    def worker_of(self, job_id: str) -> psutil.Process:
        """The worker process that has the job."""
        name = self.installation.job(job_id).worker
        assert name is not None
        return psutil.Process(int(name.rpartition(":")[2]))

    def runner_of(self, job_id: str) -> psutil.Process:
        """The innermost process: not the sandbox around it."""
        family = self.worker_of(job_id).children(recursive=True)
        return next(process for process in family if not process.children())

    def runners(self) -> list[psutil.Process]:
        return started_in(self.installation.settings.jobs_folder)

    def is_ready(self) -> bool:
        try:
            return self.request("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON body of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, body=content, headers={"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def wait_for_ticks(self, job_id: str, *, after: int = 0) -> None:
        """Until the job's runner has reported something after event number `after`."""
        self.wait_for(lambda: any(e.type == "progress" for e in self.installation.events(job_id) if e.seq > after))

    def wait_for_end(self, job_id: str) -> str:
        """The state in which the job ended; its history is checked."""
        self.wait_for(lambda: self.installation.job(job_id).finished_at is not None)
        self.installation.check_history(job_id)
        return self.installation.job(job_id).state

    def wait_for(self, condition: Callable[[], bool], *, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the stack died:\n{self.log.read_text()[-4000:]}"
            assert time.monotonic() < deadline, f"it did not happen:\n{self.log.read_text()[-4000:]}"
            time.sleep(0.02)

    def stop(self) -> float:
        """Stop it as Ctrl-C does; how many seconds that took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=20)
        return time.monotonic() - began

    def family(self) -> list[psutil.Process]:
        """All processes of the stack, itself included."""
        stack = psutil.Process(self.process.pid)
        return [stack, *stack.children(recursive=True)]

    def _children(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children())

    def _child(self, program: str) -> psutil.Process:
        return next(child for child in self._children() if any(program in word for word in child.cmdline()))


def started_in(folder: Path) -> list[psutil.Process]:
    """Every process whose working folder lies in this one, whoever its parent is now."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd().startswith(str(folder)):
                found.append(process)
    return found


@contextmanager
def running_stack(
    folder: Path, database_url: str, *, workers: int = 2, environment: dict[str, str] | None = None, **settings: Any
) -> Iterator[RunningStack]:
    """A stack that is ready; all of it is gone when the block ends, however it ends."""
    installation = Installation.at(folder, database_url, **SHORT | settings)
    log = folder / "stack.log"
    chosen = {f"WINNOW_{name.upper()}": str(value) for name, value in (SHORT | settings).items()}
    options = ["up", "--data-folder", str(folder), "--port", "0", "--workers", str(workers)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _STACK, *options],
            env={**os.environ, **chosen, "WINNOW_DATABASE_URL": database_url, **(environment or {})},
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    stack = RunningStack(process, 0, installation, log)
    try:
        stack.wait_for(lambda: b"Winnow is ready" in log.read_bytes(), seconds=60)
        found = re.search(r"ready at http://127\.0\.0\.1:(\d+)", log.read_text())
        assert found is not None
        stack.port = int(found.group(1))
        stack.wait_for(lambda: log.read_text().count("worker.ready") >= workers)
        yield stack
    finally:
        _end(process)
        installation.close()


def _end(stack: subprocess.Popen[bytes]) -> None:
    """Stop in order; kill what is left, frozen processes too."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(stack.pid).children(recursive=True)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    if stack.poll() is None:
        stack.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            stack.wait(timeout=15)
    stack.kill()
    stack.wait()
    for process in psutil.wait_procs(family, timeout=5)[1]:
        process.kill()
