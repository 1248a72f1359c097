"""The life of a job, over all pairs of states."""

import itertools

import pytest

from jobs.states import FINAL, TRANSITIONS, JobState, sources

LEGAL = {
    ("queued", "running"),
    ("queued", "cancelled"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelling"),
    ("running", "queued"),
    ("cancelling", "cancelled"),
    ("cancelling", "succeeded"),
    ("cancelling", "failed"),
}


@pytest.mark.parametrize(("source", "target"), list(itertools.product(JobState, JobState)))
def test_exactly_the_drawn_transitions_are_legal(source: JobState, target: JobState) -> None:
    assert (target in TRANSITIONS[source]) == ((source, target) in LEGAL)
    assert (source in sources(target)) == ((source, target) in LEGAL)


def test_the_final_states_are_the_three_ends() -> None:
    assert {"succeeded", "failed", "cancelled"} == FINAL


def test_every_state_can_reach_an_end() -> None:
    reaching = set(FINAL)
    for _ in JobState:
        reaching |= {state for state in JobState if TRANSITIONS[state] & reaching}
    assert reaching == set(JobState)
