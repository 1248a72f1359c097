"""Runs a command cut off from the rest of the machine, as far as the kernel allows: `python -m workers.sandbox … -- command`.

A program of its own that is put before the runner, because none of this may be done between fork and exec of a process
that has threads. Always: death with the supervisor, no core dumps, a largest file, no new privileges, no capabilities,
first in line when the machine runs out of memory. Where there is more:

* namespaces: no network at all; processes of its own, so that whatever the runner starts ends with it; its own /dev/shm
* Landlock: reads only the system, the interpreter and Winnow's code; writes only into its job folder and /dev/shm; no
  TCP; signals reach nobody outside

    supervisor ── this program (outer) ── init of the new process namespace ── the runner
                  without namespaces: this program becomes the runner

Whatever was asked for and can't be had ends in exit code 97 and no runner: what the report says of the sandbox is true.
"""

import argparse
import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from workers.kernel import PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, SandboxFailed, checked, libc, prctl
from workers.landlock import confine_to, landlock_abi
from workers.namespaces import REFUSED, run_in_namespaces

MAX_OPEN_FILES = 4096


@dataclass(frozen=True)
class Isolation:
    """What the kernel of this machine gives a runner."""

    namespaces: bool
    landlock_abi: int  # 0: none

    @property
    def network(self) -> str:
        if self.namespaces:
            return "none"
        return "no_tcp" if self.landlock_abi >= 4 else "open"

    def for_report(self) -> dict[str, Any]:
        """As the report's provenance tells it."""
        return {
            "network": self.network,
            "files": "own_folder" if self.landlock_abi else "open",
            "processes": "own" if self.namespaces else "shared",
            "landlock_abi": self.landlock_abi,
        }


NO_ISOLATION = Isolation(namespaces=False, landlock_abi=0)


def detect() -> Isolation:
    """Find out by trying, in processes that end at once, what this machine allows."""
    abi = landlock_abi()
    candidates = [Isolation(namespaces=True, landlock_abi=abi), Isolation(namespaces=False, landlock_abi=abi)]
    candidates += [Isolation(namespaces=True, landlock_abi=0)] if abi else []
    return next((candidate for candidate in candidates if _holds(candidate)), NO_ISOLATION)


def sandboxed(
    command: Sequence[str], *, folder: Path, isolation: Isolation, largest_file_bytes: int, parent: int
) -> list[str]:
    """The command line that runs `command` in a sandbox whose only writable place is `folder`."""
    options = ["--folder", str(folder), "--largest-file-bytes", str(largest_file_bytes), "--parent", str(parent)]
    if isolation.namespaces:
        options.append("--namespaces")
    if isolation.landlock_abi:
        options.append("--landlock")
    return [sys.executable, "-I", "-m", "workers.sandbox", *options, "--", *command]


def main(arguments: Sequence[str]) -> NoReturn:
    options, command = _parse(arguments)
    try:
        _die_with(options.parent)
        _limit_resources(options.largest_file_bytes)
        if options.namespaces:
            run_in_namespaces(lambda: _become(command, options))
        _become(command, options)
    except (SandboxFailed, OSError) as failure:
        print(f"sandbox: {failure}", file=sys.stderr, flush=True)
        os._exit(REFUSED)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    split = list(arguments).index("--")
    parser = argparse.ArgumentParser(prog="workers.sandbox")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--largest-file-bytes", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--namespaces", action="store_true")
    parser.add_argument("--landlock", action="store_true")
    return parser.parse_args(arguments[:split]), list(arguments[split + 1 :])


def _holds(isolation: Isolation) -> bool:
    """Whether a process in this isolation starts and can still import Winnow's own code."""
    folder = Path("/nonexistent")  # nothing needs to be writable for an import
    probe = [sys.executable, "-c", "import jobs.states, workers"]
    command = sandboxed(probe, folder=folder, isolation=isolation, largest_file_bytes=2**20, parent=os.getpid())
    return subprocess.run(command, capture_output=True, cwd="/", check=False).returncode == 0


def _become(command: Sequence[str], options: argparse.Namespace) -> NoReturn:
    """Give up every privilege and turn into `command`."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    _drop_capabilities()
    if options.landlock:
        confine_to(options.folder)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.execv(command[0], list(command))  # noqa: S606 - no shell is what we want


def _die_with(parent: int) -> None:
    """Be killed when the thread of `parent` that started us ends, even if that has already happened."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(REFUSED)


def _limit_resources(largest_file_bytes: int) -> None:
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, largest_file_bytes))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    # If the machine runs out of memory, the runner goes and not the database.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _drop_capabilities() -> None:
    """Without a bounding set the next exec has no capabilities, also for root."""
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            if ctypes.get_errno() == errno.EINVAL:  # past the last capability that this kernel knows
                return
            if ctypes.get_errno() == errno.EPERM:  # an ordinary user, who has none to drop
                return
            checked(-1, "dropping capabilities")


if __name__ == "__main__":
    main(sys.argv[1:])
