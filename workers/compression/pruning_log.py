"""What method P records of itself: every sensitivity, every threshold tried, what was accepted, and why it ended.

Accuracies and changes are in percent and percentage points on the pruning data. `as_details()` is what the report shows.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from workers.compression.evaluator import ProbingCost
from workers.models.graph import ModelGraph

LayerEnd = Literal["accuracy_fell", "max_rate", "steps_per_round", "target_accuracy", "target_sparsity"]
SearchEnd = Literal["all_layers", "layers", "target_accuracy", "target_sparsity", "budget_spent"]


@dataclass(frozen=True)
class Sensitivity:
    """The predicted loss of accuracy of one layer at its next threshold."""

    layer: str
    threshold: float
    drop_pp: float
    is_exact: bool  # if not, the drop is at least this much: the race was lost
    is_fresh: bool  # if not, it was measured in an earlier iteration (probing lazy)


@dataclass(frozen=True)
class Trial:
    """One threshold tried on the subject layer."""

    rate: float  # aimed at
    threshold: float
    realised_rate: float  # share of the layer's weights that are zero then
    accuracy: float
    is_exact: bool  # if not, the accuracy is at most this much: it was certain to fall too far
    lost: int  # images right in the uploaded network and wrong with this trial
    gained: int
    accepted: bool


@dataclass(frozen=True)
class Iteration:
    """One subject layer: how it was chosen, how far it was pruned."""

    number: int  # from 1
    round: int  # from 1; every layer is the subject at most once a round
    sensitivities: tuple[Sensitivity, ...]  # of all candidates, in layer order
    subject: str
    reference_accuracy: float
    allowed_drop_pp: float
    trials: tuple[Trial, ...]
    accepted_rate: float  # as before the iteration, at first 0, if the first trial was rolled back
    realised_rate: float
    accuracy: float
    predicted_change_pp: float
    measured_change_pp: float
    ended_because: LayerEnd


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros of one layer, before and after."""

    layer: str
    weights: int
    zeros_before: int
    zeros: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights


@dataclass(frozen=True)
class PruneResult:
    """The pruned network and all that is to be known about how it came to be."""

    graph: ModelGraph
    iterations: tuple[Iteration, ...]
    ended_because: SearchEnd
    layers: tuple[LayerSparsity, ...]  # the prunable ones, in execution order
    skipped: dict[str, str]  # layer -> why it was left alone
    images: int
    accuracy_before: float
    accuracy_after: float
    lost: int
    gained: int
    reused_probes: (
        int  # evaluations that were known before: nothing had changed, or the same candidate was probed already
    )
    cost: ProbingCost
    warnings: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Zeros among all weights of the prunable layers."""
        return sum(layer.zeros for layer in self.layers) / sum(layer.weights for layer in self.layers)

    @property
    def predicted_change_pp(self) -> float:
        """What the sensitivities foretell to first order: each in proportion to the rate that its layer was pruned at."""
        return sum(iteration.predicted_change_pp for iteration in self.iterations)

    @property
    def measured_change_pp(self) -> float:
        return self.accuracy_after - self.accuracy_before

    @property
    def accuracy_deviation_pp(self) -> float:
        """Standard deviation of an accuracy measured on so many images."""
        share = self.accuracy_after / 100.0
        return float(100.0 * (share * (1.0 - share) / self.images) ** 0.5)

    def as_details(self) -> dict[str, Any]:
        """The step's `details` in the report, plain JSON."""
        return {
            "images": self.images,
            "accuracy_before": self.accuracy_before,
            "accuracy_after": self.accuracy_after,
            "accuracy_deviation_pp": self.accuracy_deviation_pp,
            "predicted_change_pp": self.predicted_change_pp,
            "measured_change_pp": self.measured_change_pp,
            "lost": self.lost,
            "gained": self.gained,
            "sparsity": self.sparsity,
            "ended_because": self.ended_because,
            "layers": [{**asdict(layer), "sparsity": layer.sparsity} for layer in self.layers],
            "skipped": self.skipped,
            "iterations": [asdict(iteration) for iteration in self.iterations],
            "probing": {**self.cost.as_details(), "reused_probes": self.reused_probes},
        }
