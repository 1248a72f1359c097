"""How many layers of an order can have fewer bits (Q-5, Q-6): the longest prefix whose loss of accuracy is within a threshold."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

NEIGHBOURS = 2  # tried beyond what a binary search has found
_EQUAL = 1e-9  # percentages are fractions of a number of images: what differs by less is equal


@dataclass(frozen=True)
class Trial:
    """One network with the first `layers` of the order at fewer bits."""

    layers: int
    accuracy: float  # percent on the selection images
    drop_pp: float  # against the network in which no layer has fewer bits
    is_within: bool


@dataclass
class PrefixSearch:
    """Finds the number of layers. `accuracy_of` makes and measures the network with so many layers at fewer bits."""

    size: int  # layers in the order
    accuracy_of: Callable[[int], float]
    reference: float  # accuracy in percent, against which drops are measured
    max_drop_pp: float
    trials: list[Trial] = field(default_factory=list)

    def find(self, how: Literal["binary", "linear"], *, verify_neighbours: bool) -> int:
        """The largest number of layers that was seen to be within the threshold; 0 if none was."""
        found = self._binary() if how == "binary" else self._linear()
        if verify_neighbours and how == "binary":
            for more in range(found + 1, min(found + NEIGHBOURS, self.size) + 1):
                self._is_within(more)
        return max((trial.layers for trial in self.trials if trial.is_within), default=0)

    def _binary(self) -> int:
        """As METHODS 4.3: at most ceil(log2(size + 1)) networks are measured, and the result is one of them, or none."""
        low, high = 0, self.size
        while low < high:
            middle = (low + high + 1) // 2
            if self._is_within(middle):
                low = middle
            else:
                high = middle - 1
        return low

    def _linear(self) -> int:
        within = [self._is_within(count) for count in range(1, self.size + 1)]
        return max((count for count, fits in enumerate(within, 1) if fits), default=0)

    def _is_within(self, layers: int) -> bool:
        known = {trial.layers: trial.is_within for trial in self.trials}
        if layers not in known:
            accuracy = self.accuracy_of(layers)
            drop = self.reference - accuracy
            known[layers] = drop <= self.max_drop_pp + _EQUAL
            self.trials.append(Trial(layers, accuracy, drop, known[layers]))
        return known[layers]
