"""What candidates miss of a goal, and which of them is the best."""

from collections.abc import Sequence

from jobs.report import Candidate
from jobs.request import Goal
from workers.search.front import objective

_EQUAL = 1e-9  # percentages are fractions of a number of images: what differs by less is equal


def shortfalls(candidate: Candidate, goal: Goal) -> list[tuple[str, float]]:
    """What the candidate misses of the goal, and by how much, relative to what is allowed."""
    limits = goal.constraints
    found = []
    excess = _drop_pp(candidate) - goal.max_accuracy_drop_pp
    if excess > _EQUAL:
        found.append(("accuracy", excess / max(goal.max_accuracy_drop_pp, 0.1)))
    if limits.max_bytes is not None and candidate.bytes > limits.max_bytes:
        found.append(("bytes", candidate.bytes / limits.max_bytes - 1))
    latency = candidate.latency_ms
    if limits.max_latency_ms is not None and latency is not None and latency > limits.max_latency_ms:
        found.append(("latency", latency / limits.max_latency_ms - 1))
    return found


def best_of(candidates: Sequence[Candidate], goal: Goal) -> Candidate:
    """The best that meets the goal; where none does, the one that misses it by least."""
    meeting = [each for each in candidates if each.meets_goal]
    if meeting:
        return min(meeting, key=lambda each: (objective(each, goal), each.drop_pp, each.number))
    return min(candidates, key=lambda each: (sum(share for _, share in shortfalls(each, goal)), each.number))


def _drop_pp(candidate: Candidate) -> float:
    """The loss that isn't exceeded with the goal's confidence: the greater one of that on the images for comparisons and, once
    it was looked at, that on the confirming images."""
    confirming = candidate.confirming_drop_bound_pp
    return candidate.drop_bound_pp if confirming is None else max(candidate.drop_bound_pp, confirming)
