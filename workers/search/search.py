"""Tries what is proposed for a goal until nothing is left, time is up or somebody wants what there is; chooses what is delivered.

Whatever is known survives an interruption: the proposals are the same again, and what was measured isn't measured twice. Time that
was spent before an interruption counts.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from jobs.data_roles import why_none_confirm
from jobs.errors import RecipeRefused, Refusal
from jobs.folder import Compress
from jobs.inspection import ModelInspection
from jobs.preflight import OF_INTEGERS
from jobs.recipe import Step
from jobs.report import Candidate, SearchReport
from jobs.request import Goal, OutputFormat
from workers.bench import Bench
from workers.search.choosing import best_of
from workers.search.confirming import confirmed, kept_back
from workers.search.front import drawing, front, objective, shown
from workers.search.measuring import Measuring, TimeIsUpError
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
        """What the verdict has to say of a search that gives back what it was given, or what it isn't sure of."""
        found = self.report
        if found.delivered in found.unconfirmed:
            return f"This was not confirmed on {found.confirming_images:,} images that had no part in the search."
        if found.delivered != found.original.number:
            return None
        if found.unconfirmed:
            return (
                "No recipe that serves the goal better was confirmed to keep the limit on "
                f"{found.confirming_images:,} images that had no part in the search: this is the uploaded model."
            )
        if found.candidates:
            return "None of the recipes that were tried serves the goal better: this is the uploaded model."
        return f"{_WITHOUT_CANDIDATES[found.ended]}: this is the uploaded model."

    def warnings(self) -> list[str]:
        """What is to be known of the figures of candidates."""
        found = self.report
        if found.confirming_images or found.selection_images is None:
            return []
        return [why_none_confirm(found.selection_images, self.goal)]


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
        """Tells what goes on. Raises `TimeIsUpError` as `check_time` does."""
        self.check_time()
        self._tell(self.elapsed / self._allowed, f"{message}{self.best}")

    def check_time(self) -> None:
        """Raises `TimeIsUpError` at the deadline, or sooner if somebody wants what there is."""
        self._look_for_wish()
        if self.is_finished_early or self.elapsed >= self._allowed:
            raise TimeIsUpError

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
    comparing, confirming = kept_back(bench, inspection, goal)
    measuring = Measuring(job, goal, comparing, folder, clock.check, confirming=confirming)
    clock.spent_before = seconds_spent(folder) + sum(_seconds(path) for path in folder.glob("*/candidate.json"))
    tried = [measuring.original()]
    abandoned: list[str] = []
    needs_integers = bool(OF_INTEGERS.keys() & set(asked))
    scene = Scene(
        goal, job.target.runtime, inspection, comparing, clock.check, folder, needs_integers, confirming is not None
    )
    # Not the uploaded model before, nor what is made again afterwards: there is something to deliver however little time there is.
    with ExitStack() as meanwhile:
        for each in filter(None, (comparing, confirming)):
            meanwhile.enter_context(each.interruptible(clock.check_time))
        ended = _try_all(scene, measuring, clock, tried, abandoned)
    rivals = deliverable(tried, asked, abandoned)
    judged = rivals if confirming is None else confirmed(rivals, goal, lambda each: measuring.sealed(_recipe_of(each)))
    chosen = best_of(judged, goal)
    recipe = _recipe_of(chosen)
    for path in folder.iterdir():
        if path.is_dir() and path != measuring.folder_of(recipe):
            shutil.rmtree(path / "checkpoints", ignore_errors=True)
    final = {each.number: each for each in (*tried, *judged)}
    report = SearchReport(
        goal=goal.model_dump(mode="json"),
        ended=ended,
        seconds=clock.elapsed,
        original=final[0],
        candidates=tuple(final[each.number] for each in tried[1:]),
        front=front(tried, goal),
        delivered=chosen.number,
        abandoned=tuple(abandoned),
        selection_images=len(comparing.parts["selection"]),
        confirming_images=0 if confirming is None else len(confirming.parts["selection"]),
        unconfirmed=tuple(each.number for each in tried if each.meets_goal and not final[each.number].meets_goal),
    )
    return Found(recipe, job.outputs if _is_in_integers(chosen) else asked, report, measuring, goal)


def _recipe_of(candidate: Candidate) -> tuple[Step, ...]:
    return _RECIPE.validate_python(candidate.recipe)


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
