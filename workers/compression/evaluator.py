"""What a pruning search asks of whoever evaluates the network: the number of right answers with one layer's weights exchanged."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

from workers.models.graph import Layer


@dataclass(frozen=True)
class Probe:
    """What became of the right answers when one layer had other weights.

    A probe that was asked for `at_least` so many may end as soon as they are out of reach: then `is_exact` is false,
    `correct` is the most that could still have been reached, and the flips are those of the images seen.
    """

    correct: int
    is_exact: bool
    images: int  # seen until it ended
    lost: int  # right in the network as it was uploaded, wrong now
    gained: int  # wrong then, right now
    divergence: float = 0.0  # mean over the images seen of KL(network as uploaded || this one), in nats


@dataclass(frozen=True)
class ProbingCost:
    """The work of probing, and what it would have been with every probe a whole pass over all images.

    `multiply_adds` and the two savings add up to the number of probes times one pass.
    """

    probes: int
    ended_early: int
    image_evaluations: int
    image_evaluations_saved_by_racing: int
    multiply_adds: int
    multiply_adds_saved_by_cache: int
    multiply_adds_saved_by_racing: int
    multiply_adds_of_one_pass: int  # the whole network on all images
    multiply_adds_before_probing: int  # to learn the margins and the accuracy of the uploaded network

    def as_details(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


class Evaluator(Protocol):
    """Counts right answers of a network on the pruning data."""

    @property
    def images(self) -> int:
        """How many images there are."""
        ...

    @property
    def correct(self) -> int:
        """How many of them the network answers right as it was given."""
        ...

    def probe(self, layer: Layer, weight: Tensor, *, at_least: int) -> Probe:
        """The right answers of the current network with `weight` in `layer`; the network stays as it is."""
        ...

    def expect(self, layer: Layer) -> None:
        """A hint: the next probes are mostly of this layer."""
        ...

    def accept(self, layer: Layer, weight: Tensor) -> None:
        """From now on the current network has `weight` in `layer`."""
        ...

    def cost(self) -> ProbingCost:
        """The work done so far."""
        ...
