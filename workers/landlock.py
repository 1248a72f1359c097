"""Which files a process may touch, by Landlock: a right that a process gives up for itself and everything that it starts.

Rights that an older kernel doesn't know are left out; the names and numbers are those of linux/landlock.h.
"""

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from workers.kernel import checked, system_call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 9
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_ALL_FIRST_ABI = (1 << 13) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

_READ = _READ_FILE | _READ_DIR
_RUN = _READ | _EXECUTE
# No links, pipes or devices, and nothing that was written can be executed.
_WRITE = _READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK | _REFER

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
_READABLE = (
    "/proc", "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm", "/dev/urandom", "/dev/random", "/dev/zero",
    "/etc/ld.so.cache", "/etc/localtime", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/mime.types",
)  # fmt: skip
_WRITABLE = ("/dev/null", "/dev/shm")  # noqa: S108
_GPUS = "nvidia*"  # in /dev


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("descriptor", ctypes.c_int32))


def landlock_abi() -> int:
    """Which version of Landlock the kernel has; 0 if none."""
    return max(0, system_call(_CREATE_RULESET, None, 0, _VERSION_FLAG))


def confine_to(folder: Path) -> None:
    """Let this process, and all that it starts, write into `folder` only and read only what running Python needs."""
    abi = landlock_abi()
    handled = (
        _ALL_FIRST_ABI | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEV if abi >= 5 else 0)
    )
    rules = _Ruleset(handled, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = checked(system_call(_CREATE_RULESET, ctypes.byref(rules), size, 0), "Landlock")
    _allow(ruleset, _RUN & handled, [*map(Path, _SYSTEM), *_interpreter_folders()])
    _allow(ruleset, _READ & handled, [*map(Path, _READABLE), *_code_folders()])
    _allow(ruleset, _WRITE & handled, [folder, *map(Path, _WRITABLE)])
    _allow(ruleset, (_READ | _WRITE_FILE | _IOCTL_DEV) & handled, Path("/dev").glob(_GPUS))
    checked(system_call(_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _allow(ruleset: int, rights: int, paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        allowed = rights if path.is_dir() else rights & _OF_FILES
        rule = _PathBeneath(allowed, descriptor)
        checked(system_call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0), f"Landlock for {path}")
        os.close(descriptor)


def _interpreter_folders() -> set[Path]:
    return {Path(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)}


def _code_folders() -> list[Path]:
    """Winnow's packages one by one: the folder that holds them may hold the data folder too."""
    here = Path(__file__).resolve().parent
    # winograd is here only where it was installed from its sources as they lie; else it is among the interpreter's packages.
    return [here, here.parent / "jobs", here.parent / "winograd" / "winograd"]
