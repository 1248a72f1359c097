"""One runner process with all that it starts: started in a sandbox, stopped as a group, its memory summed up."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from workers.sandbox import Isolation, sandboxed

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MAX_LOG_BYTES = 16 * 2**20
LOG_TAIL_BYTES = 4096


@dataclass(frozen=True)
class _Member:
    """A process, told apart from a later one with the same number."""

    pid: int
    started_at: int


class RunnerProcess:
    """A runner at work on a job folder."""

    def __init__(self, command: Sequence[str], folder: Path, *, isolation: Isolation, largest_file_bytes: int) -> None:
        self._log = os.open(folder / "runner.log", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        # From the thread that waits for it: the runner is killed when the thread that started it ends.
        self._process = subprocess.Popen(
            sandboxed(
                [*command, str(folder)],
                folder=folder,
                isolation=isolation,
                largest_file_bytes=largest_file_bytes,
                parent=os.getpid(),
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=folder / "work",
            env=runner_environment(folder),
            start_new_session=True,
        )
        assert self._process.stdout is not None  # it is a pipe
        self.progress = self._process.stdout
        self.pid = self._process.pid
        self._family: set[_Member] = set()

    def wait(self, seconds: float) -> int | None:
        """The exit code (negative: the signal that ended it), or None if it still runs after that time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    @property
    def exit_code(self) -> int:
        """Of a runner that has ended."""
        assert self._process.returncode is not None  # asked after wait() or kill()
        return self._process.returncode

    def ask_to_end(self, *, grace_seconds: float) -> None:
        """Let the whole group end by itself, within that time."""
        self._signal(signal.SIGTERM)
        self.wait(grace_seconds)

    def kill(self) -> None:
        """End the whole group now, also what an already ended runner left behind."""
        self._look_around()
        self._signal(signal.SIGKILL)
        for member in self._family:
            if _started_at(member.pid) == member.started_at:
                with suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
        self._process.wait()

    def resident_bytes(self) -> int:
        """Resident memory of the runner and everything that it started."""
        self._look_around()
        return sum(_resident_bytes(member.pid) for member in self._family)

    def trim_log(self) -> None:
        """Start the log anew when it has grown out of proportion; it is written in append mode."""
        if os.fstat(self._log).st_size > MAX_LOG_BYTES:
            os.ftruncate(self._log, 0)

    def log_tail(self) -> str:
        """The end of what the runner wrote to its log."""
        size = os.fstat(self._log).st_size
        tail = os.pread(self._log, LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES))
        return tail.decode(errors="replace")

    def close(self) -> None:
        self.progress.close()
        os.close(self._log)

    def _look_around(self) -> None:
        """Remember whom the runner started. Without a process namespace, who leaves the session is lost from sight when its
        parent ends, unless it was seen before."""
        seen = _session_and_descendants(self.pid)
        self._family = {member for member in self._family if _started_at(member.pid) == member.started_at} | seen

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def runner_environment(folder: Path) -> dict[str, str]:
    """All that a runner may know of the worker's environment: how many threads and which GPUs to use."""
    work = folder / "work"
    threads = os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(work),
        "TMPDIR": str(work / "tmp"),
        "XDG_CACHE_HOME": str(work / "cache"),
        "TORCH_HOME": str(work / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "cache"),
        "TRITON_CACHE_DIR": str(work / "cache"),
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",  # nothing is imported from the folder that the runner writes into
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "WINNOW_THREADS": threads,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it, torch refuses to repeat itself on GPUs
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        **({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}),
    }


def _session_and_descendants(leader: int) -> set[_Member]:
    stats = {int(entry.name): stat for entry in Path("/proc").glob("[0-9]*") if (stat := _stat(int(entry.name)))}
    family = {pid for pid, stat in stats.items() if pid == leader or int(stat[_SESSION]) == leader}
    while grown := {pid for pid, stat in stats.items() if int(stat[_PARENT]) in family} - family:
        family |= grown
    return {_Member(pid, int(stats[pid][_STARTED_AT])) for pid in family}


# Where in /proc/PID/stat, counted from the field after the name (which may hold anything).
_PARENT, _SESSION, _STARTED_AT = 1, 3, 19


def _stat(pid: int) -> list[str]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return []


def _started_at(pid: int) -> int | None:
    stat = _stat(pid)
    return int(stat[_STARTED_AT]) if stat else None


def _resident_bytes(pid: int) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    return 0
