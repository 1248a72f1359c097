"""How far things are: bars on a terminal, one plain line at a time elsewhere."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from winnow.resources import Job
from winnow.uploads import OnProgress

LINE_EVERY: Final = 0.1  # of a job, where there is no terminal


@contextmanager
def transfer(console: Console, label: str) -> Iterator[OnProgress]:
    """Shows the bytes of one upload or download."""
    if not console.is_terminal:
        console.print(label, markup=False, highlight=False)
        yield lambda _done, _size: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, size: bars.update(task, completed=done, total=size)


def show_job(console: Console, states: Iterable[Job]) -> Job:
    """Show a job while it goes through `states`. Returns the last one."""
    return (_show_bar if console.is_terminal else _show_lines)(console, states)


def _show_bar(console: Console, states: Iterable[Job]) -> Job:
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("job", total=1.0)
        for job in states:
            bars.update(task, completed=job.progress, description=_doing(job))
    return job


def _show_lines(console: Console, states: Iterable[Job]) -> Job:
    shown: tuple[str, str | None, int, int] | None = None
    for job in states:
        key = (job.state, job.phase, job.attempt, int(job.progress / LINE_EVERY))
        if key != shown:
            console.print(f"{job.progress:4.0%}  {_doing(job)}", markup=False, highlight=False, soft_wrap=True)
        shown = key
    return job


def _doing(job: Job) -> str:
    """What the job is at, in a few words."""
    parts = [job.phase or job.state if job.state == "running" else job.state]
    if job.step is not None and job.steps > 1:
        parts.append(f"(step {job.step + 1} of {job.steps})")
    if job.attempt > 1:
        parts.append(f"(attempt {job.attempt} of {job.max_attempts})")
    if job.jobs_ahead:
        parts.append(f"({job.jobs_ahead} ahead)")
    if job.message and not job.is_final:
        parts.append(f"· {job.message}")
    if job.eta_seconds:
        parts.append(f"· about {job.eta_seconds} s left")
    return " ".join(parts)
