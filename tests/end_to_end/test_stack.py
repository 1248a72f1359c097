"""The demo's stack ends with whoever started it, however that ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.end_to_end.conftest import PROJECT

HOLD_A_STACK = """
import sys, time
from pathlib import Path
from demo.stack import running_stack

with running_stack(Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(short_folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs a stack and waits."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_STACK, str(short_folder)], cwd=PROJECT, env=os.environ,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with holder:
        yield holder
        holder.kill()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL], ids=lambda ending: ending.name)
def test_nothing_is_left_running(holder: subprocess.Popen[str], ending: signal.Signals) -> None:
    assert holder.stdout is not None and holder.stdout.readline().startswith("http://127.0.0.1:")
    started = psutil.Process(holder.pid).children(recursive=True)
    assert len(started) >= 4  # the stack, Redis, the API, the worker
    holder.send_signal(ending)
    _, left = psutil.wait_procs(started, timeout=20)
    assert left == []
