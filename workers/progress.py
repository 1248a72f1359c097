"""What a running job tells of itself, and how long its phases take."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jobs.folder import Progress

ReportProgress = Callable[[Progress], None]
StepProgress = Callable[[float, str, dict[str, Any]], None]  # share done, what is going on, numbers to show


class Phases:
    """Tells what goes on and how far it is, and measures how long each phase takes."""

    def __init__(self, report_progress: ReportProgress) -> None:
        self._report_progress = report_progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str, fraction: float, *, step: int | None = None) -> Iterator[None]:
        self.event(phase, fraction, step=step)
        started = time.monotonic()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - started

    def event(self, phase: str, fraction: float, *, step: int | None = None) -> None:
        """A line that is never left out."""
        self._report_progress(Progress(type="event", phase=phase, fraction=fraction, step=step))

    def report(self, phase: str, fraction: float, message: str) -> None:
        self._report_progress(Progress(type="progress", phase=phase, fraction=fraction, message=message))

    def within(self, phase: str, step: int, begin: float, end: float) -> StepProgress:
        """What a step reports its own share by; it fills the part of the job from `begin` to `end`."""

        def report(share: float, message: str, data: dict[str, Any]) -> None:
            fraction = begin + (end - begin) * min(1.0, max(0.0, share))
            self._report_progress(
                Progress(type="progress", phase=phase, fraction=fraction, step=step, message=message[:1000], data=data)
            )

        return report
