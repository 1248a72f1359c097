"""How fast is an upload, and how much memory does it take? 2 GB, against `sha256sum`: `python -m benchmarks.upload`.

The file lies in the page cache. The client sends it with sendfile, bare and as multipart/form-data; the time is that from
the first byte to the answer, so it includes hashing, writing, and flushing to disk. `sha256sum`, which only reads and hashes,
runs in turns with the uploads. The memory is the serving process's largest resident size during an upload, over that
before it.
"""

import argparse
import hashlib
import os
import platform
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.polling import serving
from benchmarks.tables import table
from jobs.settings import Settings
from migrations.upgrade import upgrade_database
from service.app import build_app
from tests.service.running_service import NotingBroker

MEGABYTE = 1_000_000
BOUNDARY = "0123456789abcdef"
MULTIPART_HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="big.npz"\r\n\r\n'.encode()
MULTIPART_TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


@dataclass(frozen=True)
class Measured:
    seconds: float
    grown_bytes: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=2000)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="winnow-"))
    try:
        _run(folder, options.megabytes, options.rounds)
    finally:
        shutil.rmtree(folder)


def _run(folder: Path, megabytes: int, rounds: int) -> None:
    file = folder / "big.npz"
    digest = _make_file(file, megabytes)
    settings = Settings(data_folder=folder / "data", min_free_bytes=0)
    upgrade_database(settings.database_url)
    with serving(lambda: build_app(settings, NotingBroker())) as (port, process):
        ways: dict[str, Callable[[], Measured]] = {
            "sha256sum": lambda: _sha256sum(file),
            "upload, bare body": lambda: _upload(port, process, file, digest, b"", b""),
            "upload, multipart": lambda: _upload(port, process, file, digest, MULTIPART_HEAD, MULTIPART_TAIL),
        }
        results: dict[str, list[Measured]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, measure in ways.items():
                results[name].append(measure())
                shutil.rmtree(settings.storage_folder / "sha256", ignore_errors=True)
                os.sync()  # what one leaves to be written is not the next one's burden
    _report(results, megabytes)


def _report(results: dict[str, list[Measured]], megabytes: int) -> None:
    rounds = len(results["sha256sum"])
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, SQLite; {megabytes} MB,")
    print(f"{rounds} rounds in turns; medians, in brackets the extremes; load {os.getloadavg()[0]:.1f}\n")
    rows = []
    for name, measured in results.items():
        speeds = [megabytes / one.seconds for one in measured]
        ratios = [base.seconds / one.seconds for one, base in zip(measured, results["sha256sum"], strict=True)]
        grown = "" if name == "sha256sum" else f"{max(one.grown_bytes for one in measured) / 2**20:.0f} MiB"
        rows.append((name, _spread(speeds, "{:.0f}"), _spread(ratios, "{:.2f}"), grown))
    print(table(("", "MB/s", "of sha256sum's", "memory at most"), rows))


def _spread(values: list[float], form: str) -> str:
    return f"{form.format(statistics.median(values))} [{form.format(min(values))}, {form.format(max(values))}]"


def _make_file(path: Path, megabytes: int) -> str:
    digest, block = hashlib.sha256(), os.urandom(MEGABYTE)
    with path.open("wb") as file:
        for number in range(megabytes):
            chunk = number.to_bytes(8, "big") + block[8:]
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _sha256sum(file: Path) -> Measured:
    began = time.perf_counter()
    subprocess.run(["sha256sum", str(file)], check=True, capture_output=True)
    return Measured(time.perf_counter() - began)


def _upload(port: int, process: psutil.Process, path: Path, digest: str, head: bytes, tail: bytes) -> Measured:
    kind = f"multipart/form-data; boundary={BOUNDARY}" if head else "application/octet-stream"
    size = path.stat().st_size
    request = (
        f"POST /v1/datasets HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(head) + size + len(tail)}\r\n\r\n"
    )
    with (
        path.open("rb") as file,
        socket.create_connection(("127.0.0.1", port)) as connection,
        _largest_growth(process) as growth,
    ):
        began = time.perf_counter()
        connection.sendall(request.encode() + head)
        connection.sendfile(file)
        connection.sendall(tail)
        answer = connection.recv(1 << 16)
        seconds = time.perf_counter() - began
        answer += connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 201"), answer
    assert digest.encode() in answer, answer
    return Measured(seconds, growth[0])


@contextmanager
def _largest_growth(process: psutil.Process) -> Iterator[list[int]]:
    """The growth of a process's resident memory, while the block runs and when it ends."""
    before, growth, done = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            growth[0] = max(growth[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield growth
    done.set()
    watcher.join()


if __name__ == "__main__":
    main()
