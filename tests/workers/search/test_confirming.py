"""Images that have no part in a search, and which candidates they confirm."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from jobs.recipe import PruneWeights
from jobs.report import Candidate, SearchReport
from jobs.request import Goal
from tests.workers.search.test_choosing import candidate, goal
from tests.workers.test_bench import bench_with
from workers.bench import Bench
from workers.checkpoints import State
from workers.measurement.accuracy import least_change_pp
from workers.models.inspect_model import describe
from workers.search.choosing import best_of, shortfalls
from workers.search.confirming import NOTHING_LOST, Sealed, confirmed, kept_back
from workers.search.measuring import Measuring
from workers.search.search import Found

ORIGINAL = candidate(0, 0.0, 1000)


def judged(tried: Sequence[Candidate], lost: Mapping[int, float], wanted: Goal | None = None) -> list[Candidate]:
    """The candidates once their losses on the confirming images were looked at, given by number as a bound."""
    found = {0: NOTHING_LOST, **{number: Sealed(drop_pp=drop, drop_bound_pp=drop) for number, drop in lost.items()}}
    return confirmed(tried, wanted or goal(), lambda each: found[each.number])


def meeting(candidates: Sequence[Candidate]) -> list[int]:
    return [each.number for each in candidates if each.meets_goal]


def test_candidate_that_holds_where_it_was_compared_but_not_where_it_is_confirmed_is_not_delivered() -> None:
    found = judged([ORIGINAL, candidate(1, 0.2, 500), candidate(2, 0.6, 300)], {1: 0.3, 2: 1.2})
    assert meeting(found) == [0, 1]
    assert best_of(found, goal()).number == 1
    figures = [(each.drop_bound_pp, each.confirming_drop_bound_pp) for each in found]
    assert figures == [(0.0, 0.0), (0.2, 0.3), (0.6, 1.2)]
    assert shortfalls(found[2], goal()) == [("accuracy", pytest.approx(0.2))]


def test_best_is_delivered_where_all_are_confirmed() -> None:
    found = judged([ORIGINAL, candidate(1, 0.2, 500), candidate(2, 0.6, 300)], {1: 0.3, 2: 0.9})
    assert best_of(found, goal()).number == 2


def test_the_first_that_is_not_confirmed_ends_the_turns_of_riskier_ones() -> None:
    """Or each of many would have a chance of its own to be confirmed by mistake."""
    found = judged(
        [ORIGINAL, candidate(1, 0.2, 500), candidate(2, 0.4, 400), candidate(3, 0.6, 300)], {1: 0.3, 2: 1.1, 3: 0.9}
    )
    assert meeting(found) == [0, 1]
    assert best_of(found, goal()).number == 1


def test_candidate_of_more_risk_and_no_less_bytes_has_no_turn() -> None:
    found = judged(
        [ORIGINAL, candidate(1, 0.2, 300), candidate(2, 0.4, 400), candidate(3, 0.6, 200)], {1: 0.3, 2: 1.1, 3: 0.9}
    )
    assert meeting(found) == [0, 1, 3]
    assert best_of(found, goal()).number == 3


def test_candidate_that_missed_the_goal_before_is_not_looked_at() -> None:
    found = judged([ORIGINAL, candidate(1, 1.5, 300)], {})
    assert found[1].confirming_drop_pp is None
    assert meeting(found) == [0]


def test_where_none_is_confirmed_the_uploaded_model_keeps_the_limit() -> None:
    found = judged([ORIGINAL, candidate(1, 0.2, 500), candidate(2, 0.6, 300)], {1: 1.3, 2: 1.2})
    assert best_of(found, goal()).number == 0


def test_where_the_uploaded_model_is_no_answer_the_one_that_misses_by_least_is_chosen() -> None:
    wanted = goal(constraints={"max_bytes": 600})
    tried = [
        candidate(each, drop, size, goal=wanted) for each, drop, size in ((0, 0.0, 1000), (1, 0.2, 500), (2, 0.6, 300))
    ]
    found = judged(tried, {1: 1.1, 2: 1.9}, wanted)
    assert meeting(found) == []
    assert best_of(found, wanted).number == 1


def test_confidence_is_not_spent_by_looking_at_many() -> None:
    """Of candidates that all break the limit a little, one is confirmed in no more searches than the confidence leaves."""
    wanted, random, mistaken, searches = goal(max_accuracy_drop_pp=1.0), np.random.default_rng(0), 0, 400
    tried = [candidate(number, 0.1 * number, 1000 - number) for number in range(1, 6)]
    before = np.ones(600, np.bool_)
    for _ in range(searches):
        # Each candidate really loses 1.01 pp; the images that one loses, another may keep.
        bounds = {
            each.number: -least_change_pp(before, random.random(600) >= 0.0101, wanted.confidence) for each in tried
        }
        mistaken += bool(meeting(judged(tried, bounds, wanted)))
    assert 0 < mistaken / searches < 1 - wanted.confidence + 0.05


# ---- Which images ----------------------------------------------------------------------------------------------------


def split(folder: Path, images: range, wanted: Goal, *, labelled: bool = True) -> tuple[Bench, Bench | None, Bench]:
    bench = bench_with(folder, labelled=labelled, selection=images, test=range(1500, 1600))
    return *kept_back(bench, describe(bench.uploaded, "pt2"), wanted), bench


@pytest.mark.parametrize("labelled", [True, False])
def test_a_third_of_the_selection_images_is_kept_back_and_none_is_on_both_sides(tmp_path: Path, labelled: bool) -> None:
    comparing, confirming, bench = split(tmp_path, range(900, 1400), goal(max_accuracy_drop_pp=3.0), labelled=labelled)
    assert confirming is not None
    sides = [each.parts["selection"].indices for each in (comparing, confirming)]
    assert np.array_equal(np.sort(np.concatenate(sides)), bench.parts["selection"].indices)
    assert len(sides[1]) == pytest.approx(500 / 3, abs=5)
    for each in (comparing, confirming):
        assert each.parts["test"] is bench.parts["test"]
        assert each.measure == bench.measure
        assert len(each.selection_right(each.uploaded)) == len(each.parts["selection"])
    if labelled:
        everything, kept = (np.bincount(cast("Any", each.parts["selection"].labels)) for each in (bench, confirming))
        assert np.abs(kept - everything / 3).max() <= 0.5


def test_the_same_images_are_kept_back_by_every_attempt(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _, confirming, _ = split(tmp_path / name, range(900, 1400), goal(max_accuracy_drop_pp=3.0))
        assert confirming is not None
        found.append(confirming.parts["selection"].indices)
    assert np.array_equal(found[0], found[1])


def test_of_few_images_none_is_kept_back(tmp_path: Path) -> None:
    comparing, confirming, bench = split(tmp_path, range(900, 1100), goal())
    assert confirming is None
    assert comparing is bench


def test_a_strict_limit_takes_more_images_than_a_loose_one(tmp_path: Path) -> None:
    assert split(tmp_path, range(900, 1400), goal())[1] is None
    assert split(tmp_path, range(900, 1400), goal(max_accuracy_drop_pp=3.0))[1] is not None


# ---- What the search sees of them ------------------------------------------------------------------------------------


class Networks(Measuring):
    """Measures the uploaded network whatever the recipe; counts how often."""

    runs = 0

    def run(self, *_: Any, **__: Any) -> Any:
        self.runs += 1
        return State(self._bench.uploaded), []


def measuring(folder: Path) -> tuple[Networks, tuple[Any, ...]]:
    comparing, confirming, bench = split(folder, range(900, 1400), goal(max_accuracy_drop_pp=3.0))
    recipe = (PruneWeights(kind="prune_weights", max_drop_pp=1.0),)
    job = bench.job.model_copy(update={"target": bench.job.target.model_copy(update={"runtime": "torch"})})
    found = Networks(
        job, goal(max_accuracy_drop_pp=3.0), comparing, folder / "search", lambda _: None, confirming=confirming
    )
    return found, recipe


def test_confirming_figures_are_sealed_until_the_search_is_over(tmp_path: Path) -> None:
    networks, recipe = measuring(tmp_path)
    made = networks.measured(recipe, number=1, predicted_drop_pp=None)
    assert (made.meets_goal, made.confirming_drop_pp, made.confirming_drop_bound_pp) == (True, None, None)
    found = networks.sealed(recipe)
    # No answer flips, and 165 or so images are sure of so much.
    assert found.drop_pp == 0
    assert 0 < found.drop_bound_pp < 0.5
    assert networks.sealed(()) == NOTHING_LOST


def test_candidate_whose_sealed_figures_are_gone_is_measured_again(tmp_path: Path) -> None:
    networks, recipe = measuring(tmp_path)
    for runs in (1, 1):
        networks.measured(recipe, number=1, predicted_drop_pp=None)
        assert networks.runs == runs
    kept = networks.folder_of(recipe) / "confirming.json"
    before = kept.read_bytes()
    kept.write_text("{")
    networks.measured(recipe, number=1, predicted_drop_pp=None)
    assert networks.runs == 2
    assert kept.read_bytes() == before


# ---- What is said of it ----------------------------------------------------------------------------------------------


def found(
    delivered: int, unconfirmed: tuple[int, ...], *, confirming_images: int = 667, wanted: Goal | None = None
) -> Found:
    report = SearchReport(
        goal={}, ended="exhausted", seconds=1.0, original=ORIGINAL, candidates=(candidate(1, 0.2, 500),), front=(0, 1),
        delivered=delivered, selection_images=200, confirming_images=confirming_images, unconfirmed=unconfirmed,
    )  # fmt: skip
    return Found((), ("onnx",), report, cast("Measuring", None), wanted or goal())


def test_verdict_says_what_was_not_confirmed() -> None:
    assert found(1, ()).remark() is None
    assert found(1, (1,)).remark() == "This was not confirmed on 667 images that had no part in the search."
    assert found(0, (1,)).remark() == (
        "No recipe that serves the goal better was confirmed to keep the limit on 667 images that had no part in the search: "
        "this is the uploaded model."
    )
    assert found(1, ()).warnings() == []


def test_report_says_when_images_are_too_few_to_confirm() -> None:
    (few,) = found(1, (), confirming_images=0).warnings()
    assert few == (
        "The 200 selection images are too few to keep some back that confirm the choice (about 1,701 would do): the images that "
        "recipes are compared on also vouch for the best of them, and there it looks better than it is."
    )
    (never,) = found(1, (), confirming_images=0, wanted=goal(max_accuracy_drop_pp=0)).warnings()
    assert never.startswith(
        "No number of images can confirm, with a confidence of 0.8, that not more than 0 pp are lost"
    )
