"""Images as an algorithm sees them: picked by number, made into a network's input, with the answer that counts as right."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from workers.datasets.dataset import Indices, Pixels


@dataclass(frozen=True)
class Examples:
    """Images numbered from 0, read only when they are needed, and one answer for each.

    The answers are labels, or the classes that the uploaded network gives where there are no labels.
    """

    pick: Callable[[Indices], Pixels]
    to_input: Callable[[Pixels], Tensor]
    targets: Indices  # (n,)

    def __len__(self) -> int:
        return len(self.targets)

    def inputs(self, indices: Indices) -> Tensor:
        """The network's input for these images."""
        return self.to_input(self.pick(indices))
