"""Which candidate is delivered, which are on the front, and how far a search goes."""

from typing import Any
from xml.etree import ElementTree

import pytest

from jobs.errors import RecipeRefused
from jobs.report import Candidate
from jobs.request import Goal, OutputFormat
from workers.search.choosing import best_of, shortfalls
from workers.search.front import drawing, front
from workers.search.measuring import TimeIsUpError
from workers.search.proposals import _narrowest
from workers.search.search import Clock, deliverable


def candidate(number: int, drop: float, size: int, *, latency: float = 1.0, goal: Goal | None = None) -> Candidate:
    made = Candidate(
        number=number, recipe=[], predicted_drop_pp=None, drop_pp=drop, drop_bound_pp=drop, bytes=size, latency_ms=latency,
        operations=10 * size, seconds=1.0, meets_goal=False,
    )  # fmt: skip
    return made.model_copy(update={"meets_goal": not shortfalls(made, goal or Goal())})


def goal(**options: Any) -> Goal:
    return Goal.model_validate(options)


def test_the_smallest_that_holds_the_accuracy_is_chosen() -> None:
    tried = [candidate(0, 0.0, 1000), candidate(1, 0.9, 300), candidate(2, 1.1, 100), candidate(3, 0.2, 300)]
    assert best_of(tried, goal()).number == 3
    wide = goal(max_accuracy_drop_pp=2.0)
    tried = [candidate(each.number, each.drop_pp, each.bytes, goal=wide) for each in tried]
    assert best_of(tried, wide).number == 2


def test_where_none_meets_the_goal_the_nearest_is_chosen() -> None:
    wanted = goal(constraints={"max_bytes": 100})
    tried = [
        candidate(0, 0.0, 1000, goal=wanted),
        candidate(1, 0.5, 150, goal=wanted),
        candidate(2, 5.0, 90, goal=wanted),
    ]
    assert not any(each.meets_goal for each in tried)
    assert best_of(tried, wanted).number == 1
    assert shortfalls(tried[2], wanted) == [("accuracy", 4.0)]
    assert shortfalls(tried[1], wanted) == [("bytes", 0.5)]


def test_a_drop_equal_to_the_limit_is_within_it() -> None:
    assert shortfalls(candidate(1, 91.5 - 91.1, 1), goal(max_accuracy_drop_pp=0.4)) == []


def test_latency_is_held_against_its_constraint() -> None:
    wanted = goal(minimise="latency", constraints={"max_latency_ms": 2.0})
    assert shortfalls(candidate(1, 0.0, 1, latency=3.0), wanted) == [("latency", 0.5)]
    tried = [candidate(0, 0.0, 1, latency=1.9, goal=wanted), candidate(1, 0.0, 9, latency=1.2, goal=wanted)]
    assert best_of(tried, wanted).number == 1


@pytest.mark.parametrize("output", ["c", "pt2_integers"])
def test_where_a_file_of_integers_is_asked_for_only_networks_in_integers_can_be_delivered(output: OutputFormat) -> None:
    integers = candidate(1, 3.0, 400).model_copy(update={"recipe": [{"kind": "quantize_fixed_point"}]})
    pruned = candidate(2, 0.0, 300).model_copy(update={"recipe": [{"kind": "prune_weights"}]})
    tried = [candidate(0, 0.0, 1000), integers, pruned]
    assert deliverable(tried, ("onnx",)) == tried
    assert deliverable(tried, ("onnx", output)) == [integers]
    with pytest.raises(RecipeRefused, match="before it had measured a network in integers"):
        deliverable([tried[0], pruned], (output,))
    with pytest.raises(RecipeRefused, match="Refused: quantize_fixed_point: too wide"):
        deliverable([tried[0], pruned], (output,), ["quantize_fixed_point: too wide"])


def test_front_has_what_no_other_beats() -> None:
    tried = [
        candidate(0, 0.0, 1000),
        candidate(1, 0.5, 400),
        candidate(2, 0.6, 500),
        candidate(3, 2.0, 100),
        candidate(4, 0.5, 450),
    ]
    assert front(tried, goal()) == (0, 1, 3)


def test_drawing_is_xml_with_a_point_for_each_candidate() -> None:
    tried = [candidate(0, 0.0, 1000), candidate(1, 0.5, 400), candidate(2, -0.2, 500)]
    root = ElementTree.fromstring(drawing(tried, front(tried, goal()), 1, goal()))
    points = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(points) == 3
    assert [point.get("r") for point in points] == ["3", "6", "3"]
    assert points[1][0].text == "1: 0.50 pp, 0.4 kB"


def test_the_last_place_that_holds_is_found_in_few_steps() -> None:
    for last in range(50):
        asked: list[int] = []

        def holds(place: int, last: int = last, asked: list[int] = asked) -> bool:
            asked.append(place)
            return place <= last

        assert _narrowest(50, holds) == last
        assert len(asked) <= 6


def test_time_that_earlier_attempts_spent_counts() -> None:
    told: list[tuple[float, str]] = []
    clock = Clock(goal(deadline_seconds=100), lambda share, message: told.append((share, message)))
    clock.check("going on")
    clock.spent_before = 50.0
    clock.best = " (best)"
    clock.check("going on")
    assert told[0][0] < 0.5 <= told[1][0]
    assert told[1][1] == "going on (best)"
    clock.spent_before = 100.0
    with pytest.raises(TimeIsUpError):
        clock.check("going on")


def test_a_wish_to_finish_ends_the_search_and_is_not_looked_for_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moment, looks, wishes = 1000.0, 0, False

    def is_wanted() -> bool:
        nonlocal looks
        looks += 1
        return wishes

    monkeypatch.setattr("workers.search.search.time.monotonic", lambda: moment)
    clock = Clock(goal(deadline_seconds=100), lambda *_: None, is_wanted)
    for _ in range(50):
        clock.check("going on")
    assert looks == 1
    wishes = True
    clock.check("going on")
    moment += 0.5
    for _ in range(2):
        with pytest.raises(TimeIsUpError):
            clock.check("going on")
    assert clock.is_finished_early
    assert looks == 2


def test_the_deadline_is_no_wish() -> None:
    clock = Clock(goal(deadline_seconds=100), lambda *_: None)
    clock.spent_before = 100.0
    with pytest.raises(TimeIsUpError):
        clock.check("going on")
    assert not clock.is_finished_early
