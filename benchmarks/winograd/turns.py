"""Engines take turns: each in a process of its own, all stopped but one, in a rotation that no engine leads.

Thread pools that spin while they wait would slow the others down, and two copies of OpenMP in one process disturb each other.
So a process whose turn is over is stopped by a signal, with all its threads, until its next one.
"""

import json
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Runner:
    """One thing that is timed: an engine, and which of its variants."""

    engine: str
    variant: str

    @property
    def name(self) -> str:
        return (
            self.variant
            if self.engine in ("winograd", "networks")
            else " ".join(filter(None, (self.engine, self.variant)))
        )


@dataclass
class Timing:
    """Of one runner on one problem: the median milliseconds of each pass, how many runs there were, and the deviation."""

    medians: list[float] = field(default_factory=list)
    runs: int = 0
    l2: float | None = None
    largest: float | None = None
    refused: str | None = None

    @property
    def best(self) -> float:
        return min(self.medians)

    @property
    def spread(self) -> float:
        """How much longer the slowest pass took than the fastest."""
        return max(self.medians) / min(self.medians) - 1


class Process:
    """An engine's process, started when it is first asked; between questions it is stopped."""

    def __init__(self, engine: str, threads: int, python: str) -> None:
        self.engine = engine
        self._command = [python, "-m", "benchmarks.winograd.engines", engine, str(threads)]
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        process = self._process = self._process or self._started()
        assert process.stdin and process.stdout
        process.send_signal(signal.SIGCONT)
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            self._process = None
            raise EngineEnded(self.engine, process.wait())
        process.send_signal(signal.SIGSTOP)
        return dict(json.loads(answer))

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()

    def _started(self) -> subprocess.Popen[str]:
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(self._command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=nowhere, text=True)


class EngineEnded(Exception):
    """An engine's process ended by itself; run it alone to see why: python -m benchmarks.winograd.engines ENGINE THREADS."""

    def __init__(self, engine: str, code: int) -> None:
        super().__init__(f"{engine} ended with {code}. {self.__doc__}")


@contextmanager
def processes(engines: Sequence[str], threads: int, pythons: Mapping[str, str]) -> Iterator[dict[str, Process]]:
    started = {engine: Process(engine, threads, pythons[engine]) for engine in engines}
    try:
        yield started
    finally:
        for process in started.values():
            process.close()


def take_turns(
    started: Mapping[str, Process], runners: Sequence[Runner], folder: Path, *, passes: int, seconds: float
) -> dict[str, Timing]:
    """Time all runners on the problem in `folder`: `passes` rounds, each beginning elsewhere, `seconds` for each turn."""
    timings: dict[str, Timing] = {}
    for engine in dict.fromkeys(runner.engine for runner in runners):
        variants = [runner.variant for runner in runners if runner.engine == engine]
        try:
            answers = started[engine].ask({"prepare": str(folder), "variants": variants})
        except EngineEnded as why:
            answers = {variant: {"refused": str(why)} for variant in variants}
        timings |= {Runner(engine, variant).name: Timing(**answers[variant]) for variant in variants}
    able = interleaved([runner for runner in runners if timings[runner.name].refused is None])
    for number in range(passes):
        first = number * len(able) // passes
        for runner in able[first:] + able[:first]:
            answer = started[runner.engine].ask({"time": runner.variant, "seconds": seconds})
            timings[runner.name].medians.append(median(answer["milliseconds"]))
            timings[runner.name].runs += len(answer["milliseconds"])
    return timings


def interleaved(runners: Sequence[Runner]) -> list[Runner]:
    """Ours between the peers, as evenly as they go."""
    peers = [runner for runner in runners if runner.engine != "winograd"]
    ours = [runner for runner in runners if runner.engine == "winograd"]
    places = [(index + 0.5) / len(group) for group in (peers, ours) for index in range(len(group))]
    return [runner for _, runner in sorted(zip(places, [*peers, *ours], strict=True), key=lambda pair: pair[0])]
