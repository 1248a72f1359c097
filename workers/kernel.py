"""The few calls into the kernel that Python has no words for."""

import ctypes
import errno
from typing import Any

PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)


class SandboxFailed(Exception):
    """The kernel refused a part of the sandbox."""


def checked(result: int, what: str) -> int:
    """The result of a call that says by a negative number that it failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise SandboxFailed(f"{what}: {errno.errorcode.get(code, code)}")
    return result


def prctl(option: int, argument: int) -> int:
    return checked(libc.prctl(option, argument, 0, 0, 0), f"prctl({option})")


def system_call(number: int, *arguments: Any) -> int:  # pointers, and numbers, which must be as wide as registers
    wide = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    return int(libc.syscall(ctypes.c_long(number), *wide))
