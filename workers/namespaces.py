"""Runs a program in namespaces of its own: no network, no other processes, its own shared memory.

The caller stays outside and waits; the first process of the namespaces starts the program and reaps what it leaves behind.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_ulong
from pathlib import Path
from typing import NoReturn

from workers.kernel import PR_SET_PDEATHSIG, SandboxFailed, checked, libc, prctl

REFUSED = 97  # exit code: the sandbox could not be made as asked
MAX_PROCESSES = 4096  # and threads; counted for this runner alone, so only set with namespaces
SHARED_MEMORY_BYTES = 256 * 2**20

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = (
    0x20000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000


def run_in_namespaces(become: Callable[[], NoReturn]) -> NoReturn:
    """Run `become` as a grandchild in fresh namespaces, wait for it, and end the way it ended."""
    user, group = os.geteuid(), os.getegid()
    flags = _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWPID | _CLONE_NEWNS | _CLONE_NEWIPC
    checked(libc.unshare(flags), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    still_here, held_open = os.pipe()  # its writing end closes when we die
    init = os.fork()
    if init == 0:
        os.close(held_open)
        _be_init(still_here, become)
    os.close(still_here)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # meant for the runner, which has got it too
    _end_like(os.waitstatus_to_exitcode(os.waitpid(init, 0)[1]))


def _be_init(parent_alive: int, become: Callable[[], NoReturn]) -> NoReturn:
    """The first process of the namespace: the kernel kills all others in it when this one ends."""
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.set_blocking(parent_alive, False)
        try:
            os.read(parent_alive, 1)
            os._exit(REFUSED)  # end of file: the parent died before we could ask to die with it
        except BlockingIOError:
            pass
        _limit_processes()
        _mount_private_places()
        runner = os.fork()
        if runner == 0:
            become()
        while True:
            process, status = os.wait()
            if process == runner:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)  # init can't kill itself by a signal
    except (SandboxFailed, OSError, ValueError) as failure:
        print(f"sandbox: {failure}", file=sys.stderr, flush=True)
        os._exit(REFUSED)


def _limit_processes() -> None:
    # A container may have a lower limit already, which can't be raised.
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    most = MAX_PROCESSES if hard == resource.RLIM_INFINITY else min(MAX_PROCESSES, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def _end_like(code: int) -> NoReturn:
    """End with the runner's exit code, or by the signal that ended it."""
    ended_by = code - 128 if code > 128 else -code
    if ended_by in signal.valid_signals():
        with suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)
    os._exit(code)


def _mount_private_places() -> None:
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    if Path("/dev/shm").is_dir():  # noqa: S108 - not a temporary file but the mount point
        _mount("tmpfs", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={SHARED_MEMORY_BYTES},mode=700")  # noqa: S108
    try:
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    except SandboxFailed:
        # Containers mask parts of /proc and forbid this. The old /proc shows other processes' names, nothing more.
        return


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encoded = [text.encode() if text is not None else None for text in (source, target, kind)]
    result = libc.mount(*encoded, c_ulong(flags), options.encode())
    checked(result, f"mounting {target}")
