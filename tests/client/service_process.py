"""Winnow's HTTP service as a process of its own, that can be killed and started again at the same address."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

START_SECONDS = 30.0


@dataclass
class ServiceProcess:
    """The service, with its data in `folder` and no broker: a test plays the worker."""

    folder: Path
    port: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WINNOW_")}
        environment |= {"WINNOW_DATA_FOLDER": str(self.folder), "WINNOW_REDIS_URL": "redis://127.0.0.1:1/0"}
        command = [sys.executable, "-m", "uvicorn", "--factory", "service.app:create_app", "--port", str(self.port)]
        with (self.folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self._wait_until_alive()

    def kill(self) -> None:
        """End it as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(START_SECONDS)

    def _wait_until_alive(self) -> None:
        assert self._process is not None
        ends_at = time.monotonic() + START_SECONDS
        while True:
            try:
                httpx2.get(f"{self.url}/livez", trust_env=False).raise_for_status()
            except httpx2.TransportError:
                log = (self.folder / "service.log").read_text()
                assert self._process.poll() is None and time.monotonic() < ends_at, log
                time.sleep(0.05)
            else:
                return


@contextmanager
def running_service(folder: Path) -> Iterator[ServiceProcess]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    service = ServiceProcess(folder, port)
    service.start()
    try:
        yield service
    finally:
        service.kill()  # nobody needs its data any more
