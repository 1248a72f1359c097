"""How many images a search keeps back to confirm its choice."""

import pytest

from jobs.data_roles import confirming_images, confirming_images_needed
from jobs.request import Goal


def goal(drop: float, confidence: float = 0.8) -> Goal:
    return Goal(max_accuracy_drop_pp=drop, confidence=confidence)


def test_a_third_is_kept_back_where_that_is_enough() -> None:
    assert confirming_images(2000, goal(1.0)) == 667
    assert confirming_images(1600, goal(1.0)) == 0
    assert confirming_images(200, goal(1.0)) == 0
    assert confirming_images(0, goal(1.0)) == 0


def test_half_the_limit_takes_four_times_the_images() -> None:
    needed = confirming_images_needed(goal(1.0))
    assert needed == 567
    assert confirming_images_needed(goal(0.5)) == pytest.approx(4 * needed, abs=4)


@pytest.mark.parametrize("wanted", [goal(50.0), goal(0.0, confidence=0.5), goal(1.0, confidence=0.5)], ids=str)
def test_a_hundred_images_are_the_least(wanted: Goal) -> None:
    assert confirming_images_needed(wanted) == 100


@pytest.mark.parametrize("drop", [0.0, 5e-324, 1e-4])
def test_no_number_of_images_confirms_a_limit_of_nothing(drop: float) -> None:
    assert confirming_images_needed(goal(drop)) is None
    assert confirming_images(10**9, goal(drop)) == 0
