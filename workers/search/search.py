"""Tries what is proposed for a goal until nothing is left, time is up or somebody wants what there is; chooses what is delivered.

Whatever is known survives an interruption: the proposals are the same again, and what was measured isn't measured twice. Time that
was spent before an interruption counts.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from jobs.errors import RecipeRefused, Refusal
from jobs.folder import Compress
from jobs.inspection import ModelInspection
from jobs.preflight import OF_INTEGERS
from jobs.recipe import Step
from jobs.report import Candidate, SearchReport
from jobs.request import Goal, OutputFormat
from workers.bench import Bench
from workers.search.front import drawing, front, objective, shown
from workers.search.measuring import Measuring, TimeIsUpError, best_of
from workers.search.predictor import seconds_spent
from workers.search.proposals import Proposal, Scene, proposals

_RECIPE: TypeAdapter[tuple[Step, ...]] = TypeAdapter(tuple[Step, ...])

Tell = Callable[[float, str], None]  # share of the time that is over, and what is going on
IsWanted = Callable[[], bool]

FINISH_CHECK_SECONDS = 0.5


@dataclass(frozen=True)
class Found:
    """What a search has led to."""

    recipe: tuple[Step, ...]
    outputs: tuple[OutputFormat, ...]  # what was asked for, and the file that is fast where that is another
    report: SearchReport
    measuring: Measuring  # has the network of the recipe, ready
    goal: Goal

    def drawing(self) -> str:
        """All candidates and their front, as SVG."""
        found = self.report
        return drawing([found.original, *found.candidates], found.front, found.delivered, self.goal)

    def remark(self) -> str | None:
        """What the verdict has to say of a search that gives back what it was given."""
        found = self.report
        if found.delivered != found.original.number:
            return None
        if found.candidates:
            return "None of the recipes that were tried serves the goal better: this is the uploaded model."
        return f"{_WITHOUT_CANDIDATES[found.ended]}: this is the uploaded model."


_WITHOUT_CANDIDATES = {
    "exhausted": "The search found no recipe that could be tried",
    "deadline": "Time was up before the search had measured any recipe",
    "finished": "The search was finished before it had measured any recipe",
}


class Clock:
    """The time of a search, with what earlier attempts have spent of it."""

    def __init__(self, goal: Goal, tell: Tell, is_finish_wanted: IsWanted = lambda: False) -> None:
        self._allowed = goal.deadline_seconds
        self._tell = tell
        self._is_finish_wanted = is_finish_wanted
        self._look_again_at = 0.0
        self.is_finished_early = False
        self._started = time.monotonic()
        self.spent_before = 0.0
        self.best: str = ""

    @property
    def elapsed(self) -> float:
        return self.spent_before + time.monotonic() - self._started

    def check(self, message: str) -> None:
        """Raises `TimeIsUpError` at the deadline, or sooner if somebody wants what there is."""
        self._look_for_wish()
        if self.is_finished_early or self.elapsed >= self._allowed:
            raise TimeIsUpError
        self._tell(self.elapsed / self._allowed, f"{message}{self.best}")

    def _look_for_wish(self) -> None:
        """Not each time: a search tells of its progress more often than a file needs to be looked for."""
        moment = time.monotonic()
        if not self.is_finished_early and moment >= self._look_again_at:
            self._look_again_at = moment + FINISH_CHECK_SECONDS
            self.is_finished_early = self._is_finish_wanted()


def search(
    job: Compress, bench: Bench, inspection: ModelInspection, folder: Path, tell: Tell, is_finish_wanted: IsWanted
) -> Found:
    """The recipe that serves `job.goal` best, of those that were tried. `folder` keeps what is known of them.

    Once `is_finish_wanted`, the search ends as it does at its deadline.
    """
    goal = job.goal
    assert goal is not None
    clock = Clock(goal, tell, is_finish_wanted)
    asked, job = job.outputs, job.model_copy(update={"outputs": with_fast_integers(job)})
    measuring = Measuring(job, goal, bench, folder, clock.check)
    clock.spent_before = seconds_spent(folder) + sum(_seconds(path) for path in folder.glob("*/candidate.json"))
    original = measuring.original()
    tried = [original]
    abandoned: list[str] = []
    ended = _try_all(
        Scene(goal, job.target.runtime, inspection, bench, clock.check, folder, bool(OF_INTEGERS.keys() & set(asked))),
        measuring, clock, tried, abandoned,
    )  # fmt: skip
    chosen = best_of(deliverable(tried, asked, abandoned), goal)
    recipe = _RECIPE.validate_python(chosen.recipe)
    for path in folder.iterdir():
        if path.is_dir() and path != measuring.folder_of(recipe):
            shutil.rmtree(path / "checkpoints", ignore_errors=True)
    report = SearchReport(
        goal=goal.model_dump(mode="json"),
        ended=ended,
        seconds=clock.elapsed,
        original=original,
        candidates=tuple(tried[1:]),
        front=front(tried, goal),
        delivered=chosen.number,
        abandoned=tuple(abandoned),
    )
    return Found(recipe, job.outputs if _is_in_integers(chosen) else asked, report, measuring, goal)


def with_fast_integers(job: Compress) -> tuple[OutputFormat, ...]:
    """The outputs of a job, with the file that torch computes in integers where the goal is latency there."""
    wants_speed = job.goal is not None and job.goal.minimise == "latency" and job.target.runtime == "torch"
    return tuple(dict.fromkeys((*job.outputs, "pt2_integers"))) if wants_speed else job.outputs


def deliverable(
    tried: list[Candidate], outputs: Sequence[OutputFormat], abandoned: Sequence[str] = ()
) -> list[Candidate]:
    """Those of which all files can be written: some are written of networks in integers only.

    Raises `RecipeRefused` where there are none.
    """
    wanted = [output for output in outputs if output in OF_INTEGERS]
    if not wanted:
        return tried
    found = [each for each in tried if _is_in_integers(each)]
    if not found:
        refused = f" Refused: {abandoned[0]}" if abandoned else ""
        raise RecipeRefused(
            f"The search ended before it had measured a network in integers, and {OF_INTEGERS[wanted[0]]} written of nothing "
            f"else.{refused}",
            hint=f'Give the search more time, or leave "{wanted[0]}" out of the outputs.',
        )
    return found


def _is_in_integers(candidate: Candidate) -> bool:
    return bool(candidate.recipe) and candidate.recipe[-1]["kind"] == "quantize_fixed_point"


def _try_all(
    scene: Scene, measuring: Measuring, clock: Clock, tried: list[Candidate], abandoned: list[str]
) -> Literal["exhausted", "deadline", "finished"]:
    asked = proposals(scene)
    made: Candidate | None = None
    known: dict[Path, Candidate] = {}
    try:
        proposal: Proposal = next(asked)
        while True:
            made = known.get(measuring.folder_of(proposal.recipe)) or _tried(proposal, measuring, len(tried), abandoned)
            if made is not None and made.number == len(tried):
                known[measuring.folder_of(proposal.recipe)] = made
                tried.append(made)
                best = best_of(tried, scene.goal)
                clock.best = (
                    f" (best so far: {shown(objective(best, scene.goal), scene.goal)} at {-best.drop_pp:+.2f} pp)"
                )
            proposal = asked.send(made)
    except StopIteration:
        return "exhausted"
    except TimeIsUpError:
        return "finished" if clock.is_finished_early else "deadline"


def _tried(proposal: Proposal, measuring: Measuring, number: int, abandoned: list[str]) -> Candidate | None:
    try:
        return measuring.measured(proposal.recipe, number=number, predicted_drop_pp=proposal.predicted_drop_pp)
    except Refusal as refused:
        abandoned.append(f"{', '.join(step.kind for step in proposal.recipe)}: {refused}")
        return None


def _seconds(path: Path) -> float:
    try:
        return Candidate.model_validate_json(path.read_bytes()).seconds
    except ValueError:
        return 0.0
