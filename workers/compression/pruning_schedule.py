"""The schedule of method P: with which rates a layer is tried when it is the subject, and how much accuracy may be gone by then.

All layers have their turn once a round. A round starts from the network that the last one left; every layer's rate goes on from
where it stands, and the limit of accuracy is one equal part of the budget further. One round alone is the patent's method;
more of them keep layers in step, so that none spends at a high price what others would spend at a low one (docs/methods.md).

Rates and limits are exact fractions of the recipe's decimals, so that 0.1 three times is 0.3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count

from jobs.recipe import PruneWeights


@dataclass(frozen=True)
class Round:
    """One turn of the layers: number `number`, from 1. The first `planned` ones are for all layers, and raise the limit.

    Those beyond are for the layers that were still rising when the planned ones were over, with the whole budget as the limit.
    """

    step: PruneWeights
    number: int
    planned: int

    @property
    def is_extra(self) -> bool:
        return self.number > self.planned

    def next_rate(self, accepted: Fraction) -> Fraction:
        """The rate that a layer pruned at `accepted`, 0 if it is not pruned yet, is tried with first."""
        return accepted + exact(self.step.rate_step) if accepted else exact(self.step.first_rate)

    def rates(self, accepted: Fraction) -> Iterator[Fraction]:
        """The next rate of a layer, and `rate_step` more each time, as far as this round goes."""
        rate, highest = self.next_rate(accepted), self.highest_rate(accepted)
        while rate <= highest:
            yield rate
            rate += exact(self.step.rate_step)

    def highest_rate(self, accepted: Fraction) -> Fraction:
        """No layer goes above this rate in its turn."""
        highest = exact(self.step.max_rate)
        if self.planned == 1:
            return highest
        return min(highest, self.next_rate(accepted) + (self.step.steps_per_round - 1) * exact(self.step.rate_step))

    def allowed_drop_pp(self, share_after: Fraction) -> Fraction:
        """The drop at which a subject is left alone, when this share of all prunable weights has its turn after it.

        With `progressive` it is in step with the weights that have had their turn: equal parts for all layers would
        spend the budget on small ones.
        """
        part = exact(self.step.max_drop_pp) / self.planned
        parts = min(self.number, self.planned)
        match self.step.reference:
            case "layer_start":
                return part
            case "baseline":
                return part * parts
            case "progressive":
                return part * (parts - share_after)


def rounds_of(step: PruneWeights) -> Iterator[Round]:
    """The rounds that the recipe asks for, and extra ones without end."""
    for number in count(1):
        yield Round(step, number, step.rounds_to_run)


def exact(decimal: float) -> Fraction:
    return Fraction(str(decimal))
