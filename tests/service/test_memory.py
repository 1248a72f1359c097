"""Uploads and downloads of any size take the service the same memory: it is measured on a process of its own."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil  # type: ignore[import-untyped]
import pytest

MEBIBYTE = 2**20
SIZE = 300 * MEBIBYTE
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="big"\r\n\r\n'


@pytest.fixture(scope="module")
def server(
    migrated_sqlite_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of a service that was started from the command line, without any broker."""
    folder = tmp_path_factory.mktemp("memory")
    shutil.copyfile(migrated_sqlite_file, folder / "winnow.sqlite")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = {
        "WINNOW_DATA_FOLDER": str(folder),
        "WINNOW_REDIS_URL": "redis://127.0.0.1:1/0",
        "WINNOW_MIN_FREE_BYTES": "0",
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "service.app:create_app", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx2.get(f"{url}/openapi.json", trust_env=False, timeout=30)
            break
        except httpx2.TransportError:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
    yield url, psutil.Process(process.pid)
    process.terminate()
    process.wait(timeout=20)
    shutil.rmtree(folder)


@contextmanager
def largest_growth(process: psutil.Process) -> Iterator[list[int]]:
    """How much the process's resident memory grows while the block runs."""
    before, growth, done = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            growth[0] = max(growth[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield growth
    finally:
        done.set()
        watcher.join()


def body(head: bytes, tail: bytes) -> Iterator[bytes]:
    block = os.urandom(MEBIBYTE)
    yield head
    for _ in range(SIZE // MEBIBYTE):
        yield block
    yield tail


@pytest.mark.parametrize("form", ["bare", "multipart"])
def test_large_upload_takes_little_memory(server: tuple[str, psutil.Process], form: str) -> None:
    url, process = server
    head, tail = (HEAD, b"\r\n--b--\r\n") if form == "multipart" else (b"", b"")
    kind = "multipart/form-data; boundary=b" if form == "multipart" else "application/octet-stream"
    with largest_growth(process) as growth:
        headers = {"Content-Type": kind, "Content-Length": str(len(head) + SIZE + len(tail))}
        response = httpx2.post(
            f"{url}/v1/models", content=body(head, tail), headers=headers, timeout=120, trust_env=False
        )
    assert response.json()["size_bytes"] == SIZE
    assert growth[0] < 64 * MEBIBYTE


def test_large_download_to_a_slow_reader_takes_little_memory(server: tuple[str, psutil.Process]) -> None:
    url, process = server
    model = httpx2.get(f"{url}/v1/models", trust_env=False).json()["items"][0]["id"]
    with (
        largest_growth(process) as growth,
        httpx2.Client(trust_env=False, timeout=60) as http,
        http.stream("GET", f"{url}/v1/models/{model}/content") as response,
    ):
        chunks = response.iter_raw()
        first = next(chunks)
        time.sleep(0.5)
        received = len(first) + sum(len(chunk) for chunk in chunks)
    assert received == SIZE
    assert growth[0] < 64 * MEBIBYTE
