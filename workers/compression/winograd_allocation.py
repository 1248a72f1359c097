"""How many positions each layer gives up, so that what is spent saves the most multiplications, or time (ours, beyond the claims).

Each layer is probed alone at a ladder of numbers of pruned positions; everything else stays as it is. Right answers are whole
images, of which a single layer costs few or none, and together many. So layers are compared by how far the scores move (the
divergence of the classes' probabilities), which adds up where changes are small: steps up the ladders are taken in the order
of their divergence for each multiplication, or microsecond, saved. How far to go along that order is for measured accuracy to say.

A divergence takes few images, as every image tells. What it comes to in accuracy is read off the probes: those that moved the
scores of all images about as far as all layers together do, whichever layer it was.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import log
from typing import Any

from torch import Tensor

from workers.compression.evaluator import Evaluator
from workers.compression.winograd_layers import Mask
from workers.models.graph import Layer

NEIGHBOURS = 9  # probes of nearly the same divergence that a drop is read off


@dataclass(frozen=True)
class Sensitivity:
    """One layer with some positions pruned, all other layers untouched."""

    layer: str
    count: int  # positions of each group
    divergence: float  # nats an image
    drop_pp: float
    saved: float  # multiplications of one image, or modelled microseconds of one batch


@dataclass(frozen=True)
class Increment:
    """A step up one layer's ladder, to `count` pruned positions."""

    layer: str
    count: int
    divergence: float  # in addition to the step before
    saved: float  # the same


@dataclass(frozen=True)
class Allocation:
    """All that was probed, and the order in which positions are given up."""

    images: int
    sensitivities: tuple[Sensitivity, ...]
    increments: tuple[Increment, ...]

    def counts(self, share: float) -> tuple[dict[str, int], float]:
        """Positions to prune by layer, and the predicted drop in percentage points, after a share of all that can be saved."""
        counts = {one.layer: 0 for one in self.sensitivities}
        wanted = share * sum(one.saved for one in self.increments)
        saved = divergence = 0.0
        for one in self.increments:
            if saved + 0.5 * one.saved > wanted:
                break
            counts[one.layer] = one.count
            saved, divergence = saved + one.saved, divergence + one.divergence
        return counts, self._drop_at(divergence)

    def _drop_at(self, divergence: float) -> float:
        """What such a divergence of all layers together is expected to cost, in percentage points."""
        known = [one for one in self.sensitivities if one.divergence > 0]
        if divergence <= 0 or not known:
            return 0.0
        near = sorted(known, key=lambda one: abs(log(one.divergence / divergence)))[:NEIGHBOURS]
        return divergence * sum(one.drop_pp for one in near) / sum(one.divergence for one in near)

    def as_details(self) -> dict[str, Any]:
        """For the report."""
        return {
            "images": self.images,
            "sensitivities": [asdict(one) for one in self.sensitivities],
            "order": [{"layer": one.layer, "count": one.count} for one in self.increments],
        }


def allocate(
    found: Mapping[str, Layer],
    *,
    ladder: Callable[[str], list[Mask]],
    weights_of: Callable[[str, Mask], Tensor],
    saved_by: Callable[[str, Mask], float],
    evaluator: Evaluator,
    on_progress: Callable[[float, str], None],
) -> Allocation:
    """Probe every layer at every rung of its ladder, and order the rungs of all layers."""
    sensitivities: list[Sensitivity] = []
    increments: list[Increment] = []
    for number, (name, layer) in enumerate(found.items()):
        evaluator.expect(layer)
        of_layer = []
        for mask in ladder(name):
            on_progress(number / len(found), f"Probing {name}")
            probe = evaluator.probe(layer, weights_of(name, mask), at_least=0)
            drop_pp = 100.0 * (evaluator.correct - probe.correct) / evaluator.images
            count = int((~mask.kept).sum(1).max())
            of_layer.append(Sensitivity(name, count, probe.divergence, drop_pp, saved_by(name, mask)))
        sensitivities += of_layer
        increments += _convex(of_layer)
    ordered = sorted(enumerate(increments), key=lambda item: (item[1].divergence / item[1].saved, item[0]))
    return Allocation(evaluator.images, tuple(sensitivities), tuple(one for _, one in ordered))


def _convex(rungs: list[Sensitivity]) -> list[Increment]:
    """The rungs on the lower convex hull of (saved, divergence), so that each step costs more than the one before it."""
    if not rungs:
        return []
    hull = [Sensitivity(rungs[0].layer, 0, 0.0, 0.0, 0.0)]
    for rung in rungs:
        if rung.saved <= hull[-1].saved:
            continue
        while len(hull) > 1 and _slope(hull[-2], rung) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(rung)
    return [
        Increment(
            after.layer,
            after.count,
            max(0.0, after.divergence - before.divergence),
            after.saved - before.saved,
        )
        for before, after in pairwise(hull)
    ]


def _slope(before: Sensitivity, after: Sensitivity) -> float:
    return (after.divergence - before.divergence) / (after.saved - before.saved)
