"""What do crashes cost? Each fault many times on the running job of a real stack: `python -m benchmarks.faults [repetitions]`.

The job ticks for about a second under the scripted runner, so that the figures show the machinery and not a model. After each
one its whole history is checked: one end, events without gaps, the right bytes delivered once. Recovery is the time from the
fault until the job goes on, in a new attempt if need be, and the stack is whole again; where a worker is lost, most of it is
waiting for its lease to run out.
"""

import platform
import statistics
import sys
import tempfile
from pathlib import Path

from jobs.states import JobState
from tests.faults.faults import DELIVERED, FAULTS, TICKING, is_whole, recovery_seconds
from tests.faults.running_stack import SHORT, RunningStack, running_stack

WORKERS = 2


def main(repetitions: int) -> None:
    print(f"{platform.machine()}, Python {platform.python_version()}, SQLite, {WORKERS} workers; settings: {SHORT}\n")
    print("| fault | n | ended exactly once | delivered right | attempts | recovery median | recovery max |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="winnow-") as place:
        folder = Path(place)
        with running_stack(folder, f"sqlite:///{folder}/winnow.sqlite", workers=WORKERS) as stack:
            for name in FAULTS:
                print(_row(name, stack, repetitions), flush=True)
            jobs = repetitions * len(FAULTS)
            stored = sum(path.is_file() for path in stack.installation.settings.storage_folder.glob("sha256/*/*/*"))
            print(f"\n{jobs} jobs, {stored} different files in the storage (one script, one delivered file).")
            stack.wait_for(lambda: not list(stack.installation.settings.jobs_folder.iterdir()))
            print(f"Job folders left behind: 0. Runners left behind: {len(stack.runners())}.")


def _row(name: str, stack: RunningStack, repetitions: int) -> str:
    recoveries, attempts, ended, delivered = [], [], 0, 0
    for _ in range(repetitions):
        stack.wait_for(lambda: is_whole(stack, workers=WORKERS))
        job_id = stack.installation.submit(*TICKING)
        recoveries.append(recovery_seconds(stack, job_id, name, workers=WORKERS))
        ended += stack.wait_for_end(job_id) == JobState.SUCCEEDED  # its history was checked, else this raises
        attempts.append(stack.installation.job(job_id).attempt)
        rows = stack.installation.artifacts(job_id)
        delivered += {row.name: stack.installation.artifact_text(row) for row in rows.values()} == DELIVERED
    counts = ", ".join(f"{attempts.count(number)}×{number}" for number in sorted(set(attempts)))
    median, most = statistics.median(recoveries), max(recoveries)
    return f"| {name} | {repetitions} | {ended} | {delivered} | {counts} | {median:.1f} s | {most:.1f} s |"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
