import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from service.embedded_redis import LONGEST_SOCKET_PATH, EmbeddedRedis, NoRedis


@contextmanager
def running(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    process = subprocess.Popen(server.command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not server.answers():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with redis.Redis(unix_socket_path=server.url.removeprefix("redis+socket://")) as client:
            yield client
    finally:
        process.kill()
        process.wait()


def test_queue_survives_a_kill(short_folder: Path) -> None:
    server = EmbeddedRedis(short_folder)
    with running(server) as client:
        client.config_set("appendfsync", "always")  # by default within a second
        client.rpush("queue", "hint")
    with running(server) as client:
        assert client.lrange("queue", 0, -1) == [b"hint"]


def test_socket_is_private_and_no_port_is_open(short_folder: Path) -> None:
    server = EmbeddedRedis(short_folder)
    with running(server) as client:
        assert (short_folder / "redis.sock").stat().st_mode & 0o777 == 0o700
        assert client.config_get("port") == {"port": "0"}


def test_long_folder_gets_a_short_private_socket(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / ("long" * 30))
    address = Path(server.url.removeprefix("redis+socket://"))
    assert len(str(address)) <= LONGEST_SOCKET_PATH and address.parent.stat().st_mode & 0o777 == 0o700
    with running(server) as client:
        assert client.ping()
    assert EmbeddedRedis(tmp_path / ("long" * 30)).url == server.url
    address.unlink(missing_ok=True)
    address.parent.rmdir()


def test_silent_server_does_not_answer(short_folder: Path) -> None:
    assert not EmbeddedRedis(short_folder).answers()


def test_missing_server_is_explained(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(NoRedis, match=r"winnow-server\[embedded\]"):
        EmbeddedRedis(short_folder)
