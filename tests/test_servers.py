"""The servers that tests run against: they keep their data over a crash and leave no orphan."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis
from sqlalchemy import create_engine, text

from tests.servers import start_postgres, start_redis


def socket_of(url: str) -> str:
    return url.removeprefix("redis+socket://")


def test_redis_keeps_its_data_over_a_crash(short_folder: Path) -> None:
    first = start_redis(short_folder)
    with redis.Redis(unix_socket_path=socket_of(first.url)) as client:
        client.set("kept", "yes")
    first.kill()
    second = start_redis(short_folder)
    assert second.url == first.url
    with redis.Redis(unix_socket_path=socket_of(second.url)) as client:
        assert client.get("kept") == b"yes"
    second.stop()


def test_postgres_keeps_its_data_over_a_restart(short_folder: Path) -> None:
    for statement, expected in (("CREATE TABLE kept AS SELECT 1 AS one", None), ("SELECT one FROM kept", 1)):
        server = start_postgres(short_folder)
        engine = create_engine(server.url)
        with engine.begin() as connection:
            result = connection.execute(text(statement))
            assert (result.scalar() if result.returns_rows else None) == expected
        engine.dispose()
        server.stop()


def test_a_folder_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long"):
        start_redis(tmp_path / ("x" * 100))


@pytest.mark.parametrize("start", ["start_redis", "start_postgres"])
def test_a_server_dies_with_the_process_that_started_it(start: str, short_folder: Path) -> None:
    code = (
        "import sys, time, pathlib, tests.servers as servers\n"
        f"print(servers.{start}(pathlib.Path(sys.argv[1])).process.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(short_folder)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        family = [server, *server.children(recursive=True)]
        parent.kill()
    deadline = time.monotonic() + 10
    while any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family):
        assert time.monotonic() < deadline
        time.sleep(0.02)
