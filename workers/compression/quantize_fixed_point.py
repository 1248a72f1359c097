"""Method F (US11588496B2): per-channel fixed-point networks with fractional lengths from the convolution result.

fold batch norms; statistics of every channel on calibration images, or while training         F-1, F-2
the fixed-point expression of every channel of every tensor, and of every kernel                F-3, F-4
layer by layer: lengths of products, bias and weights; integers, rounded by what outputs need   F-5, F-6, F-7
the integer network, and its float simulation                                                   F-8, F-9
retraining with the lengths as they are                                                         F-10
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.recipe import QuantizeFixedPoint
from workers.compression.finetune import OnProgress
from workers.compression.fixed_point_codings import Calibration, Preparations, in_quantizable_form, prepare
from workers.compression.fixed_point_places import places_of
from workers.compression.fixed_point_plan import make_plan
from workers.compression.fixed_point_simulation import simulate
from workers.compression.fixed_point_statistics import Observer, observed_while
from workers.compression.fixed_point_training import retrained
from workers.compression.fixed_point_walk import FixedPointLayer, Walk
from workers.fixed_point.network import Addition, IntegerNetwork
from workers.models.graph import ModelGraph


@dataclass(frozen=True)
class Surroundings:
    """What the step uses of its job."""

    calibration: Calibration
    evaluate: Callable[[ModelGraph], float]  # percent on the selection images
    pretrain: Callable[[ModelGraph], ModelGraph] | None = None  # trains the floating-point network
    retrain: Callable[[ModelGraph], ModelGraph] | None = None  # trains the network with its roundings
    preparations: Preparations = field(default_factory=Preparations)  # of other recipes of the same job


@dataclass(frozen=True)
class Retraining:
    """Percent on the selection images without and with it; it is kept if it isn't worse."""

    accuracy_before: float
    accuracy_after: float
    is_kept: bool


@dataclass(frozen=True)
class AdditionShifts:
    """How many additions of tensors the network has, and in how many of their channels an operand is shifted to meet the other."""

    count: int
    channels: int  # of all of them
    shifted_channels: int

    @classmethod
    def of(cls, network: IntegerNetwork) -> "AdditionShifts | None":
        found = [operation for operation in network.operations if isinstance(operation, Addition)]
        if not found:
            return None
        shifts = [pair for addition in found for pair in zip(*addition.left, strict=True)]
        return cls(len(found), len(shifts), sum(any(pair) for pair in shifts))


@dataclass(frozen=True)
class FixedPointResult:
    """The integer network, its simulation, and what led there."""

    graph: ModelGraph
    network: IntegerNetwork
    measured_change_pp: float
    calibration_images: int  # that distributions were measured on; none if they were taken while training
    rounding_images: int
    layers: tuple[FixedPointLayer, ...]
    profile: dict[str, Any] = field(default_factory=dict)
    additions: AdditionShifts | None = None  # None: the network adds no tensors
    training: Retraining | None = None
    warnings: tuple[str, ...] = ()

    def as_details(self) -> dict[str, Any]:
        """The step's `details` in the report, plain JSON."""
        return {
            "calibration_images": self.calibration_images,
            "rounding_images": self.rounding_images,
            "layers": [asdict(layer) for layer in self.layers],
            "channels": self.profile,
            "additions": None if self.additions is None else asdict(self.additions),
            "training": None if self.training is None else asdict(self.training),
        }


def quantize_fixed_point(
    graph: ModelGraph,
    step: QuantizeFixedPoint,
    around: Surroundings,
    on_progress: OnProgress,
    precision: Mapping[str, int] | None = None,
) -> FixedPointResult:
    """The network in integers. `precision` has the bits of the weights of layers that don't get the step's `weight_bits`.

    Raises `RecipeRefused` for what integers can't do.
    """
    before = around.evaluate(graph)
    on_progress(0.0, "Measuring distributions, choosing fractional lengths", {})
    if around.pretrain is None:
        prepared = around.preparations.of(graph, step, around.calibration)
    else:
        plan = make_plan(in_quantizable_form(graph, step))
        observer = Observer(plan.coded)
        learned_graph = observed_while(around.pretrain, graph, observer, places_of(plan))
        prepared = prepare(make_plan(in_quantizable_form(learned_graph, step)), step, around.calibration, observer)
    plan = prepared.plan
    walk = Walk(plan, step, prepared.codings, prepared.batches, precision={**(precision or {}), **step.layer_bits})
    for number, planned in enumerate(plan.operations):
        on_progress(0.3 + 0.6 * number / len(plan.operations), f"Quantizing {planned.output}", {})
        walk.take(planned)
    network = walk.emission.network()
    simulated = simulate(plan, network)
    accuracy = around.evaluate(simulated)
    training, warnings = None, []
    if around.retrain is not None:
        on_progress(0.9, "Retraining with these lengths", {})
        learned = retrained(plan, network, around.retrain)
        after = around.evaluate(simulate(plan, learned))
        training = Retraining(accuracy, after, is_kept=after >= accuracy)
        if training.is_kept:
            network, simulated, accuracy = learned, simulate(plan, learned), after
        else:
            warnings.append("Retraining made the network worse on the selection images, so it was left as it was.")
    return FixedPointResult(
        graph=simulated,
        network=network,
        measured_change_pp=accuracy - before,
        calibration_images=prepared.images,
        rounding_images=sum(len(batch) for batch in prepared.batches),
        layers=tuple(walk.reports),
        profile={name: found.profile() for name, found in prepared.statistics.items()},
        additions=AdditionShifts.of(network),
        training=training,
        warnings=tuple(warnings),
    )
