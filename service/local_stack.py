"""`winnow-server`: the whole stack on one machine, in one data folder, without root and without Docker.

    winnow-server up        Redis, the database's tables, the API, the worker; Ctrl-C stops all
    winnow-server migrate   bring the database to the newest tables
    winnow-server version

`up` starts the other processes, starts those again that die, and stops them in order. Each of them is killed by the
kernel when this process ends, however it ends. They are all started by the main thread, which lives as long.
"""

import argparse
import ctypes
import errno
import fcntl
import http.client
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import structlog

from jobs.settings import Settings
from migrations.upgrade import upgrade_database
from service.embedded_redis import EmbeddedRedis, NoRedis
from service.request_log import configure_logging
from service.settings import HttpSettings

WORKER_APP = "workers.celery_app"
START_SECONDS = 60.0
LOOK_SECONDS = 0.1
FIRST_PAUSE_SECONDS = 0.2  # before a process that died is started again; doubles while it keeps dying
LONGEST_PAUSE_SECONDS = 10.0
STEADY_SECONDS = 5.0  # after which a process is taken to have started well

log = structlog.get_logger()

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class CannotStart(Exception):
    """The stack can't be started as asked; the message says what to do."""


class Stopped(Exception):
    """Somebody wants the stack to end."""


def main(arguments: Sequence[str] | None = None, *, worker_app: str = WORKER_APP) -> int:
    options = _parser().parse_args(arguments)
    if options.command == "version":
        print(version("winnow-server"))
        return 0
    configure_logging()
    try:
        if options.command == "migrate":
            upgrade_database(_settings(options.data_folder).database_url)
            return 0
        _refuse_open_host(options.host, allowed=options.allow_remote)
        settings = _settings(options.data_folder)
        settings.data_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _only_one(settings.data_folder):
            port = _free_port(options.host, options.port)
            return LocalStack(settings, options.host, port, workers=options.workers, worker_app=worker_app).run()
    except (CannotStart, NoRedis, PermissionError) as reason:
        print(f"winnow-server: {reason}", file=sys.stderr)
        return 1


class LocalStack:
    """Redis, API and workers as child processes."""

    def __init__(self, settings: Settings, host: str, port: int, *, workers: int, worker_app: str = WORKER_APP) -> None:
        self._address = host, port
        self._database_url = settings.database_url
        self._redis = EmbeddedRedis(settings.data_folder / "redis")
        environment = {
            **os.environ,
            "WINNOW_DATA_FOLDER": str(settings.data_folder),
            "WINNOW_DATABASE_URL": settings.database_url,
            "WINNOW_REDIS_URL": self._redis.url,
        }
        self._redis_server = Child("redis", self._redis.command, environment)
        self._service = Child("service", _service_command(host, port), environment)
        self._workers = [
            Child(f"worker-{number}", _worker_command(worker_app, number, settings.queue), environment)
            for number in range(1, workers + 1)
        ]
        self._stop_wanted = False

    def run(self) -> int:
        """Start everything, keep it running until SIGINT or SIGTERM, and stop everything."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._want_stop)
        try:
            self._start()
            host, port = self._address
            print(f"Winnow is ready at http://{_in_url(host)}:{port} (Ctrl-C stops it)", flush=True)
            self._keep_running(until=lambda: False)
        except Stopped:
            return 0
        finally:
            self._stop()
        return 0

    def _start(self) -> None:
        self._redis_server.start()
        self._keep_running(until=self._redis.answers, what="Redis")
        upgrade_database(self._database_url)
        self._service.start()
        for worker in self._workers:
            worker.start()
        self._keep_running(until=self._is_ready, what="the API")

    def _keep_running(self, *, until: Callable[[], bool], what: str | None = None) -> None:
        """Look after the children until something is true; with `what` within a time."""
        give_up = time.monotonic() + START_SECONDS
        while not until():
            if self._stop_wanted:
                raise Stopped
            if what is not None and time.monotonic() > give_up:
                raise CannotStart(f"{what} did not start within {START_SECONDS:g} seconds; the log above says why")
            for child in self._children():
                child.look_after()
            time.sleep(LOOK_SECONDS)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(*self._address, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _stop(self) -> None:
        """Workers first, so that they can give their jobs back; Redis last, because the others talk to it."""
        stack = [*self._workers, self._service]
        for child in stack:
            child.ask_to_stop()
        give_up = time.monotonic() + 6
        for child in stack:
            child.end(max(0.1, give_up - time.monotonic()))
        self._redis_server.ask_to_stop()
        self._redis_server.end(2)

    def _children(self) -> list["Child"]:
        return [self._redis_server, self._service, *self._workers]

    def _want_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_wanted = True


class Child:
    """A process that is kept running once it was started."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._name = name
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_again_at: float | None = None
        self._pause_seconds = FIRST_PAUSE_SECONDS

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us; we stop the others in order
            preexec_fn=_die_with(os.getpid()),  # safe: this process has no second thread
        )
        self._started_at = time.monotonic()
        self._start_again_at = None
        log.info("stack.started", name=self._name, pid=self._process.pid)

    def look_after(self) -> None:
        """Start the process again, after a pause, if it died."""
        if self._process is None or self._process.poll() is None:
            return
        moment = time.monotonic()
        if self._start_again_at is None:
            steady = moment - self._started_at > STEADY_SECONDS
            self._pause_seconds = FIRST_PAUSE_SECONDS if steady else min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
            self._start_again_at = moment + self._pause_seconds
            log.error(
                "stack.died", name=self._name, exit_code=self._process.returncode, pause_seconds=self._pause_seconds
            )
        elif moment >= self._start_again_at:
            self.start()

    def ask_to_stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def end(self, grace_seconds: float) -> None:
        """Wait for the process, and kill it if it takes too long."""
        if self._process is None:
            return
        try:
            self._process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            log.warning("stack.killed", name=self._name)
            self._process.kill()
            self._process.wait()


def _parser() -> argparse.ArgumentParser:
    http_settings = HttpSettings()
    parser = argparse.ArgumentParser(prog="winnow-server", description="CNN compression over HTTP.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="run the whole stack until Ctrl-C")
    up.add_argument("--host", default=http_settings.host, help="address to listen on (default: %(default)s)")
    up.add_argument(
        "--port", type=int, default=http_settings.port, help="port; 0 takes a free one (default: %(default)s)"
    )
    up.add_argument("--workers", type=int, choices=range(1, 65), default=1, metavar="N", help="jobs that run at once")
    up.add_argument("--allow-remote", action="store_true", help="listen on an address that others can reach")
    migrate = commands.add_parser("migrate", help="bring the database to the newest tables")
    for command in (up, migrate):
        command.add_argument(
            "--data-folder", type=Path, help="where everything is kept (default: WINNOW_DATA_FOLDER or var)"
        )
    commands.add_parser("version", help="print the version")
    return parser


def _settings(data_folder: Path | None) -> Settings:
    chosen = Settings() if data_folder is None else Settings(data_folder=data_folder)
    return chosen.model_copy(update={"data_folder": chosen.data_folder.absolute()})


def _service_command(host: str, port: int) -> list[str]:
    return [
        sys.executable, "-m", "uvicorn", "--factory", "service.app:create_app", "--host", host, "--port", str(port),
        "--http", "httptools", "--loop", "uvloop", "--no-access-log", "--log-level", "warning", "--no-server-header",
        "--timeout-graceful-shutdown", "2",
    ]  # fmt: skip


def _worker_command(app: str, number: int, queue: str) -> list[str]:
    return [
        sys.executable, "-m", "celery", "--quiet", "-A", app, "worker", "-P", "threads", "-c", "1", "-Q", queue,
        "-n", f"winnow-{number}@%h", "--without-mingle", "--without-gossip", "--without-heartbeat",
    ]  # fmt: skip


def _refuse_open_host(host: str, *, allowed: bool) -> None:
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not (local or allowed):
        raise CannotStart(
            f"{host} can be reached by others, and Winnow has no authentication yet: whoever reaches it can do everything. "
            "Put a proxy that authenticates before it, or say --allow-remote."
        )


@contextmanager
def _only_one(data_folder: Path) -> Iterator[None]:
    """No second stack on the same data folder."""
    with (data_folder / "stack.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            lock.seek(0)
            raise CannotStart(
                f"another winnow-server (process {lock.read().strip()}) is running on {data_folder}. "
                "Stop it, or choose another --data-folder."
            ) from taken
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _free_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as taken:
            reason = "is in use" if taken.errno == errno.EADDRINUSE else f"can't be used ({taken.strerror})"
            raise CannotStart(f"port {port} of {host} {reason}. Choose another --port.") from taken
        return int(probe.getsockname()[1])


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes its program: ask the kernel to be killed with its parent."""

    def ask() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask


if __name__ == "__main__":
    sys.exit(main())
