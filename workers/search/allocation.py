"""Bits for the weights of every layer, so that a network costs little accuracy for its size.

What a layer at fewer bits does to the scores is measured with that layer alone (the squared difference of all scores, over the
spread of the scores), and taken to add up over layers. For each price of a bit, every layer then takes the width at which error
and price together are lowest; the prices at which a layer changes its mind are the corners of the lower convex hull of its errors
(Lagrange multipliers, Everett 1963; Shoham and Gersho 1988). So the allocations are few, and none that the prediction allows is
better than they are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Bits = dict[str, int]


@dataclass(frozen=True)
class Sensitivity:
    """One layer at one width: what the scores lose, and what it costs."""

    bits: int
    error: float
    cost: int  # bits that the file takes for the weights, or bit operations


def measured_sensitivities(
    widths: Sequence[int],
    layers: Iterable[str],
    cost_of: Callable[[str, int], int],
    error_of: Callable[[Mapping[str, int]], float],
) -> dict[str, list[Sensitivity]]:
    """Each layer at each width, the first of which is free of error.

    `cost_of` is of a layer at so many bits; `error_of` is of a network with these layers at these bits, the others at the first.
    """
    return {
        layer: [
            Sensitivity(bits, 0.0 if bits == widths[0] else error_of({layer: bits}), cost_of(layer, bits))
            for bits in widths
        ]
        for layer in layers
    }


def allocations(sensitivities: Mapping[str, Sequence[Sensitivity]]) -> list[Bits]:
    """From the widest layers to the narrowest: each allocation changes one layer of the one before, the one whose bits cost most
    for the error that they save."""
    hulls = {layer: lower_hull(found) for layer, found in sensitivities.items()}
    moves = [
        (_slope(wide, narrow), layer, narrow.bits) for layer, hull in hulls.items() for wide, narrow in pairwise(hull)
    ]
    bits = {layer: hull[0].bits for layer, hull in hulls.items()}
    found = [dict(bits)]
    # Along a hull slopes grow, so the moves of a layer come in their order; the sort is stable.
    for _, layer, narrower in sorted(moves, key=lambda move: move[0]):
        bits[layer] = narrower
        found.append(dict(bits))
    return found


def lower_hull(found: Sequence[Sensitivity]) -> list[Sensitivity]:
    """The widths that are best at some price, the widest first."""
    hull: list[Sensitivity] = []
    for point in sorted(found, key=lambda each: (-each.cost, each.error)):
        # A narrower width that errs no more makes the wider one pointless.
        while hull and point.error <= hull[-1].error:
            hull.pop()
        if hull and point.cost == hull[-1].cost:
            continue  # deflated, a few weights can take as much at fewer bits
        while len(hull) > 1 and _slope(hull[-1], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(wide: Sensitivity, narrow: Sensitivity) -> float:
    """Error that is added for each unit of cost that is saved."""
    return (narrow.error - wide.error) / (wide.cost - narrow.cost)
