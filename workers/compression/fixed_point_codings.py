"""The fixed-point expression of every tensor between layers, from the distributions of its channels (F-1, F-3, F-4)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from jobs.recipe import QuantizeFixedPoint
from workers.compression.equalise_layers import equalise_layers
from workers.compression.fixed_point_emission import limits
from workers.compression.fixed_point_plan import CARRIED, Plan, Planned, make_plan
from workers.compression.fixed_point_rules import Expression
from workers.compression.fixed_point_statistics import ChannelStatistics, Observer, observe
from workers.compression.fixed_point_ties import tied
from workers.compression.fixed_point_walk import images_that_fit
from workers.compression.fold_batchnorm import fold_batchnorm
from workers.fixed_point.coding import Coding
from workers.models.graph import ModelGraph, aten

Calibration = Callable[[ModelGraph, int], Iterator[Tensor]]  # batches of so many images in all

ENOUGH_VALUES = 32_768  # of a channel, to compare the errors of lengths on; largest values are those of all
LOGIT_BITS = 16  # of logits that aren't a layer's accumulators
_UNSIGNED = frozenset(
    {
        aten.relu.default, aten.sigmoid.default, aten.hardsigmoid.default, aten.softplus.default, aten.abs.default,
        aten.exp.default, aten.sqrt.default,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A network with the codings of its tensors, and the images that its weights are rounded for."""

    plan: Plan
    statistics: dict[str, ChannelStatistics]
    codings: dict[str, Coding]
    batches: list[Tensor]
    images: int  # that distributions were measured on; none if they were taken while training


def prepare(
    plan: Plan, step: QuantizeFixedPoint, calibration: Calibration, observer: Observer | None = None
) -> Prepared:
    """Everything that weights need to know before they are quantized. `observer` has statistics that were taken before."""
    images = 0
    if observer is None:
        observer = Observer(plan.coded)
        images = observe(plan.graph, calibration(plan.graph, step.calibration_images), observer.see, observer.names)
    codings = choose_codings(plan, observer.found, step, calibration)
    most = min(step.calibration_images, images_that_fit(plan, step.cache_mib))
    return Prepared(plan, observer.found, codings, list(calibration(plan.graph, most)), images)


def in_quantizable_form(graph: ModelGraph, step: QuantizeFixedPoint) -> ModelGraph:
    """A copy with batch norms folded in and, where the step asks for it, ranges of weights evened out."""
    folded = fold_batchnorm(graph)
    return equalise_layers(folded) if step.equalise else folded


class Preparations:
    """The network that was prepared last. What a search tries differs in bits of weights and in retraining, of which nothing here
    depends, so it is prepared once for all."""

    def __init__(self) -> None:
        self._last: tuple[ModelGraph, str, Prepared] | None = None

    def of(self, graph: ModelGraph, step: QuantizeFixedPoint, calibration: Calibration) -> Prepared:
        """`graph`, which nobody changes afterwards, as `step` asks, with its batch norms folded in."""
        asked = step.model_copy(update={"weight_bits": 8, "layer_bits": {}, "training": None}).model_dump_json()
        if self._last is None or self._last[0] is not graph or self._last[1] != asked:
            self._last = graph, asked, prepare(make_plan(in_quantizable_form(graph, step)), step, calibration)
        return self._last[2]


def choose_codings(
    plan: Plan, statistics: dict[str, ChannelStatistics], step: QuantizeFixedPoint, calibration: Calibration
) -> dict[str, Coding]:
    """The fixed-point expression of every tensor that has lengths of its own; logits that are accumulators need none."""
    planned = plan.by_output()
    names = [name for name in plan.coded if not _is_accumulator(plan, name)]
    expressions = {name: _expression(plan, planned.get(name), name, statistics, step) for name in names}
    found = {name: statistics[name].pooled() if _is_pooled(plan, name, step) else statistics[name] for name in names}
    errors: dict[str, Tensor] = {}

    def see(name: str, values: Tensor) -> None:
        rows = values.transpose(0, 1).reshape(1, found[name].channels, -1)  # pooled, all channels are one
        # An odd step doesn't stay on a few columns of images whose sides are powers of two.
        every = found[name].count // ENOUGH_VALUES | 1
        added = expressions[name].errors(rows[:, :, ::every], found[name])
        errors[name] = errors[name] + added if name in errors else added

    chosen = [name for name in names if expressions[name].rule == "empirical_mse"]
    if chosen:
        observe(plan.graph, calibration(plan.graph, step.calibration_images), see, chosen)
    codings = {}
    for name in names:
        expression, channels = expressions[name], statistics[name].channels
        lengths = expression.with_guard(found[name], expression.lengths(found[name], errors.get(name)))
        codings[name] = Coding(
            expression.bits, expression.signed, tuple(int(n) for n in lengths.expand(channels).tolist())
        )
    if step.additions == "tie":
        return tied(plan, codings, [name for name in names if _is_pooled(plan, name, step)])
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
