"""Method F (US11588496B2): per-channel fixed-point networks with fractional lengths from the convolution result.

fold batch norms; statistics of every channel on calibration images, or while training         F-1, F-2
the fixed-point expression of every channel of every tensor, and of every kernel                F-3, F-4
layer by layer: lengths of products, bias and weights; integers, rounded by what outputs need   F-5, F-6, F-7
the integer network, and its float simulation                                                   F-8, F-9
retraining with the lengths as they are                                                         F-10
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from jobs.recipe import QuantizeFixedPoint
from workers.compression.finetune import OnProgress
from workers.compression.fixed_point_emission import limits
from workers.compression.fixed_point_plan import CARRIED, Plan, Planned, make_plan
from workers.compression.fixed_point_rules import Expression
from workers.compression.fixed_point_simulation import simulate
from workers.compression.fixed_point_statistics import ChannelStatistics, Observer, observe, observed_while
from workers.compression.fixed_point_training import retrained
from workers.compression.fixed_point_walk import FixedPointLayer, Walk, images_that_fit
from workers.compression.fold_batchnorm import fold_batchnorm
from workers.fixed_point.coding import Coding
from workers.fixed_point.network import IntegerNetwork
from workers.models.graph import ModelGraph, aten

LOGIT_BITS = 16  # of logits that aren't a layer's accumulators
_UNSIGNED = frozenset(
    {
        aten.relu.default, aten.sigmoid.default, aten.hardsigmoid.default, aten.softplus.default, aten.abs.default,
        aten.exp.default, aten.sqrt.default,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Surroundings:
    """What the step uses of its job."""

    calibration: Callable[[ModelGraph, int], Iterator[Tensor]]  # batches of so many images in all
    evaluate: Callable[[ModelGraph], float]  # percent on the selection images
    pretrain: Callable[[ModelGraph], ModelGraph] | None = None  # trains the floating-point network
    retrain: Callable[[ModelGraph], ModelGraph] | None = None  # trains the network with its roundings


@dataclass(frozen=True)
class Retraining:
    """Percent on the selection images without and with it; it is kept if it isn't worse."""

    accuracy_before: float
    accuracy_after: float
    is_kept: bool


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
    training: Retraining | None = None
    warnings: tuple[str, ...] = ()

    def as_details(self) -> dict[str, Any]:
        """The step's `details` in the report, plain JSON."""
        return {
            "calibration_images": self.calibration_images,
            "rounding_images": self.rounding_images,
            "layers": [asdict(layer) for layer in self.layers],
            "channels": self.profile,
            "training": None if self.training is None else asdict(self.training),
        }


def quantize_fixed_point(
    graph: ModelGraph, step: QuantizeFixedPoint, around: Surroundings, on_progress: OnProgress
) -> FixedPointResult:
    """The network in integers. Raises `RecipeRefused` for what integers can't do."""
    before = around.evaluate(graph)
    observer, images = None, 0
    if around.pretrain is not None:
        observer = Observer(make_plan(fold_batchnorm(graph)).coded)
        graph = observed_while(around.pretrain, graph, observer)
    plan = make_plan(fold_batchnorm(graph))
    on_progress(0.0, "Measuring distributions", {})
    if observer is None:
        observer = Observer(plan.coded)
        calibration = around.calibration(plan.graph, step.calibration_images)
        images = observe(plan.graph, calibration, observer.see, observer.names)
    on_progress(0.2, "Choosing fractional lengths", {})
    codings = _codings(plan, observer.found, step, around)
    most = min(step.calibration_images, images_that_fit(plan, step.cache_mib))
    batches = list(around.calibration(plan.graph, most))
    walk = Walk(plan, step, codings, batches)
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
        calibration_images=images,
        rounding_images=sum(len(batch) for batch in batches),
        layers=tuple(walk.reports),
        profile={name: found.profile() for name, found in observer.found.items()},
        training=training,
        warnings=tuple(warnings),
    )


# ---- Distributions and lengths --------------------------------------------------------------------------------------


def _codings(
    plan: Plan, statistics: dict[str, ChannelStatistics], step: QuantizeFixedPoint, around: Surroundings
) -> dict[str, Coding]:
    """The fixed-point expression of every tensor that has lengths of its own; logits that are accumulators need none."""
    planned = plan.by_output()
    names = [name for name in plan.coded if not _is_accumulator(plan, name)]
    expressions = {name: _expression(plan, planned.get(name), name, statistics, step) for name in names}
    found = {name: statistics[name].pooled() if _is_pooled(plan, name, step) else statistics[name] for name in names}
    errors: dict[str, Tensor] = {}

    def see(name: str, values: Tensor) -> None:
        rows = values.transpose(0, 1).reshape(1, found[name].channels, -1)  # pooled, all channels are one
        added = expressions[name].errors(rows, found[name])
        errors[name] = errors[name] + added if name in errors else added

    chosen = [name for name in names if expressions[name].rule == "empirical_mse"]
    if chosen:
        observe(plan.graph, around.calibration(plan.graph, step.calibration_images), see, chosen)
    codings = {}
    for name in names:
        expression, channels = expressions[name], statistics[name].channels
        lengths = expression.with_guard(found[name], expression.lengths(found[name], errors.get(name)))
        codings[name] = Coding(
            expression.bits, expression.signed, tuple(int(n) for n in lengths.expand(channels).tolist())
        )
    return codings


def _expression(
    plan: Plan, planned: Planned | None, name: str, statistics: dict[str, ChannelStatistics], step: QuantizeFixedPoint
) -> Expression:
    if planned is None:  # the input: its range is known, and nothing of it is cut off
        signed = bool((statistics[name].minimum < 0).any())
        return Expression(step.activation_bits, signed, "max_abs")
    bits = LOGIT_BITS if name == plan.logits else step.activation_bits
    return Expression(bits, not _is_unsigned(plan, planned, statistics), step.rule, step.pdf, step.k)


def _is_unsigned(plan: Plan, planned: Planned, statistics: dict[str, ChannelStatistics]) -> bool:
    """Whether the nodes themselves never give a negative number."""
    is_chain = planned.kind == "table"  # of functions, of which the last decides
    if planned.nodes[-1].target in _UNSIGNED or (not is_chain and limits(planned)[0] >= 0):
        return True
    if planned.kind not in ("average_pool", "multiply", "add"):
        return False
    by_output = plan.by_output()

    def never_negative(name: str) -> bool:
        if name == plan.input:
            return bool((statistics[name].minimum >= 0).all())
        source = by_output[name]
        if source.kind in CARRIED:
            return all(never_negative(each) for each in source.sources)
        return _is_unsigned(plan, source, statistics)

    return all(never_negative(name) for name in planned.sources)


def _is_accumulator(plan: Plan, name: str) -> bool:
    """Logits that come from a layer stay its 32-bit accumulators, cut off nowhere."""
    planned = plan.by_output().get(name)
    is_layer = planned is not None and planned.kind in ("convolution", "linear") and len(planned.nodes) == 1
    return name == plan.logits and is_layer


def _is_pooled(plan: Plan, name: str, step: QuantizeFixedPoint) -> bool:
    return step.activation_lengths == "per_layer" or name in plan.uniform
