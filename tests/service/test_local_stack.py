"""What `winnow-server` refuses, and how it says so. Whole stacks run in tests/faults."""

import fcntl
import socket
from importlib.metadata import version
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from service.local_stack import main


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.strip() == version("winnow-server")


def test_migrate_makes_the_tables(tmp_path: Path) -> None:
    assert main(["migrate", "--data-folder", str(tmp_path / "new")]) == 0
    engine = create_engine(f"sqlite:///{tmp_path}/new/winnow.sqlite")
    assert "jobs" in inspect(engine).get_table_names()
    engine.dispose()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_address_that_others_can_reach_is_refused(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "--data-folder", str(tmp_path), "--host", host]) == 1
    message = capsys.readouterr().err
    assert "no authentication" in message and "--allow-remote" in message


def test_port_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["up", "--data-folder", str(tmp_path), "--port", str(port)]) == 1
    assert f"port {port} of 127.0.0.1 is in use" in capsys.readouterr().err


def test_second_stack_on_the_same_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "stack.lock").open("w") as lock:
        lock.write("4321")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["up", "--data-folder", str(tmp_path), "--port", "0"]) == 1
    message = capsys.readouterr().err
    assert "another winnow-server (process 4321)" in message and str(tmp_path) in message


@pytest.mark.parametrize("workers", ["0", "-1", "65", "many"])
def test_odd_number_of_workers_is_refused(workers: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["up", "--data-folder", str(tmp_path), "--workers", workers])
