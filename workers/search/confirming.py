"""Images that a search doesn't compare candidates on, kept back to confirm what it found.

The best of many candidates looks better than it is on the images that they were compared on: where several come close to the
limit, the one that chance has favoured there is chosen. So a part of the selection images has no say in the search. What a
candidate loses on them is sealed in its folder while the search goes on, and looked at once, when it is over.

Each look could be fooled by chance, and many looks the more. Therefore candidates have their turn from the safest to the best, and
the first that isn't confirmed ends it (fixed-sequence testing: Maurer, Hothorn and Lehmacher 1995; "Learn then Test", Angelopoulos
et al. 2021). A candidate that breaks the limit is delivered only if the first such one in this order is confirmed by mistake, which
is one look: so each has the goal's whole confidence, and nothing has to be divided among them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from jobs.data_roles import CONFIRMING_SHARE, Role, confirming_images_needed
from jobs.folder import write_atomically
from jobs.inspection import ModelInspection
from jobs.report import Candidate
from jobs.request import Goal
from workers.bench import Bench
from workers.datasets.roles import Part
from workers.datasets.splits import split_by_class
from workers.measurement.accuracy import least_change_pp
from workers.models.graph import ModelGraph
from workers.search.choosing import shortfalls
from workers.search.front import objective

FILE_NAME = "confirming.json"


class Sealed(BaseModel):
    """What a candidate loses on the confirming images, in percentage points."""

    drop_pp: float
    drop_bound_pp: float


NOTHING_LOST = Sealed(drop_pp=0.0, drop_bound_pp=0.0)  # by the uploaded model


def kept_back(bench: Bench, inspection: ModelInspection, goal: Goal) -> tuple[Bench, Bench | None]:
    """The bench that a search compares candidates on, and another for the images that it keeps back, if they are enough."""
    part = bench.parts["selection"]
    groups = np.zeros(len(part), np.int64) if part.labels is None else part.labels
    shares = {"confirming": CONFIRMING_SHARE, "comparing": 1 - CONFIRMING_SHARE}
    chosen = split_by_class(groups, shares, bench.job.seed)
    needed = confirming_images_needed(goal)
    if needed is None or len(chosen["confirming"]) < needed:
        return bench, None

    def bench_on(name: str) -> Bench:
        of_it = replace(part, indices=part.indices[chosen[name]], origin=f"{name} images of: {part.origin}")
        parts: dict[Role, Part] = {**bench.parts, "selection": of_it}
        return Bench(bench.job, bench.uploaded, inspection, parts)

    return bench_on("comparing"), bench_on("confirming")


def seal(folder: Path, confirming: Bench, graph: ModelGraph, goal: Goal) -> None:
    """Measure what a candidate loses on the confirming images, and put it away in the candidate's folder."""
    before, after = (confirming.selection_right(network) for network in (confirming.uploaded, graph))
    found = Sealed(
        drop_pp=100 * float(before.mean() - after.mean()),
        drop_bound_pp=-least_change_pp(before, after, goal.confidence),
    )
    write_atomically(folder / FILE_NAME, found.model_dump_json())


def sealed(folder: Path) -> Sealed:
    """What was put away. Raises `FileNotFoundError` and `ValidationError`."""
    return Sealed.model_validate_json((folder / FILE_NAME).read_bytes())


def confirmed(candidates: Sequence[Candidate], goal: Goal, sealed_of: Callable[[Candidate], Sealed]) -> list[Candidate]:
    """The candidates with what they lose on the confirming images, those that aren't confirmed no longer meeting the goal."""
    opened = [_with_figures(each, sealed_of(each)) if each.meets_goal else each for each in candidates]
    turns = _turns(opened, goal)
    passed = len(list(takewhile(lambda each: _is_confirmed(each, goal), turns)))
    end = _risk(turns[passed], goal) if passed < len(turns) else None

    def judged(candidate: Candidate) -> Candidate:
        had_no_turn = end is not None and _risk(candidate, goal) >= end
        is_met = candidate.meets_goal and not had_no_turn and _is_confirmed(candidate, goal)
        return candidate.model_copy(update={"meets_goal": is_met})

    return [judged(each) for each in opened]


def _with_figures(candidate: Candidate, found: Sealed) -> Candidate:
    return candidate.model_copy(
        update={"confirming_drop_pp": found.drop_pp, "confirming_drop_bound_pp": found.drop_bound_pp}
    )


def _turns(candidates: Sequence[Candidate], goal: Goal) -> list[Candidate]:
    """Those that met the goal so far, from the safest on; one of higher risk has a turn only if it is better, too."""
    turns: list[Candidate] = []
    for candidate in sorted((each for each in candidates if each.meets_goal), key=lambda each: _risk(each, goal)):
        if not turns or objective(candidate, goal) < objective(turns[-1], goal):
            turns.append(candidate)
    return turns


def _risk(candidate: Candidate, goal: Goal) -> tuple[float, float, int]:
    """What puts candidates in their order; the confirming images have no say in it, or the order would be a look at them."""
    return candidate.drop_bound_pp, objective(candidate, goal), candidate.number


def _is_confirmed(candidate: Candidate, goal: Goal) -> bool:
    return not shortfalls(candidate, goal)
