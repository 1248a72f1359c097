"""Winnow's whole stack as a child process: `winnow-server up` on a free port, stopped whatever happens to us."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
PR_SET_PDEATHSIG: Final = 1  # Linux's prctl(2)


class StackFailed(Exception):
    """The stack didn't come up; the message ends with the last lines of its log."""


@contextmanager
def running_stack(data_folder: Path, **settings: str) -> Iterator[str]:
    """Winnow with everything it keeps in `data_folder`, until the block is left. Yields its URL.

    `settings` are environment variables of the server, such as WINNOW_LEASE_SECONDS="5".
    """
    data_folder.mkdir(parents=True, exist_ok=True)
    log = data_folder / "stack.log"
    process = _start(data_folder, log, settings)
    try:
        yield _url_when_ready(process, log)
    finally:
        _stop(process)


def _start(data_folder: Path, log: Path, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    # Settings of the person who runs this belong to their own installation.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WINNOW_")}
    environment |= {"WINNOW_DATA_FOLDER": str(data_folder), "WINNOW_HOST": "127.0.0.1", "WINNOW_PORT": "0"}
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("winnow-server")), "up"],
            env=environment | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop it in good order
            preexec_fn=_stop_with_parent if sys.platform == "linux" else None,
        )


def _stop_with_parent() -> None:
    """Have the kernel stop the stack even when we are killed and can't."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _url_when_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address, which the server prints once everything runs."""
    ends_at = time.monotonic() + READY_SECONDS
    while time.monotonic() < ends_at:
        found = re.search(r"^Winnow is ready at (http://\S+)", log.read_text(errors="replace"), re.MULTILINE)
        if found is not None:
            return found[1]
        if process.poll() is not None:
            raise StackFailed(f"winnow-server ended with code {process.returncode}:\n{_tail(log)}")
        time.sleep(0.1)
    raise StackFailed(f"winnow-server was not ready after {READY_SECONDS:.0f} s:\n{_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])
