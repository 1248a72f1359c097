"""Method Q (US11625577B2, US11934939B2): precision per layer from the weight differences of learning cycles.

learn the first network in cycles, or take statistics that were recorded elsewhere             Q-1, Q-2
mean squares of the weights' differences, one statistic for each layer                         Q-3
layers in ascending order of it, some of them left out                                         Q-4, Q-8
a binary search for how many of them can have fewer bits, in a pass for each lower precision   Q-5, Q-6, Q-7
the second network: fewer bits there, the first precision elsewhere                            Q-9
the same number of layers in other orders                                                      Q-12
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.recipe import AssignPrecision, LearningStatistics, QuantizeFixedPoint
from workers.compression.finetune import AfterStep, OnProgress
from workers.compression.fixed_point_codings import Calibration
from workers.compression.precision_orders import FIXED_ORDERS, LayerStatistics, OrderName, Orders
from workers.compression.precision_search import PrefixSearch, Trial
from workers.compression.second_networks import SecondNetworks
from workers.compression.weight_differences import DifferenceRecorder
from workers.models.graph import ModelGraph, layers, parameter
from workers.models.shapes import macs

_LEARNED, _QUANTIZED, _SEARCHED = 0.5, 0.7, 0.9  # shares of the step's progress
FIXED = "quantize_fixed_point fixes its bits (layer_bits)"


@dataclass(frozen=True)
class Surroundings:
    """What the step uses of its job."""

    calibration: Calibration
    evaluate: Callable[[ModelGraph], float]  # percent on the selection images
    quantization: QuantizeFixedPoint  # what makes the second network
    learn: Callable[[ModelGraph, AfterStep], ModelGraph]  # trains a copy
    seed: int


@dataclass(frozen=True)
class LayerPrecision:
    """One layer, for the report."""

    layer: str
    weights: int
    mean_squares: list[float]  # of every cycle that counts, from the reference that the recipe names
    statistic: float  # aggregated
    sorted_by: float  # normalised as the recipe says
    rank: int  # from 0, of the statistic as it is
    rank_over_variance: int  # of the statistic over the weights' variance: raw ones depend on how large weights are
    bits: int
    left_out: str | None  # why it keeps the first precision whatever its statistic says


@dataclass(frozen=True)
class Pass:
    """The search at one lower precision."""

    bits: int
    candidates: int
    chosen: int
    trials: list[Trial]


@dataclass(frozen=True)
class Control:
    """As many layers of another order at the first lower precision."""

    order: str
    seed: int | None
    accuracy: float
    drop_pp: float
    average_bits: float


@dataclass(frozen=True)
class PrecisionResult:
    """The first network, the precision of each layer's weights, and what led there."""

    graph: ModelGraph
    precision: dict[str, int]
    accuracy_given: float  # percent on the selection images, in floating point
    accuracy_learned: float | None
    keeps_learned: bool
    accuracy_first: float  # in integers, all layers at the first precision
    accuracy_second: float
    losses: list[float]  # of every learning cycle
    layers: tuple[LayerPrecision, ...]
    order: tuple[str, ...]
    passes: tuple[Pass, ...]
    controls: tuple[Control, ...]
    average_bits: float
    weight_bytes: int
    bit_operations: int  # multiply-adds of one image, times the bits of both factors
    warnings: tuple[str, ...] = ()

    @property
    def predicted_change_pp(self) -> float:
        """What the second network loses against the one that was given."""
        return self.accuracy_second - self.accuracy_given

    @property
    def measured_change_pp(self) -> float:
        """What learning changed in the network that goes on."""
        learned = self.accuracy_learned if self.keeps_learned and self.accuracy_learned is not None else None
        return 0.0 if learned is None else learned - self.accuracy_given

    def as_details(self) -> dict[str, Any]:
        """The step's `details` in the report, plain JSON."""
        shown = ("accuracy_given", "accuracy_learned", "keeps_learned", "accuracy_first", "accuracy_second", "losses")
        sizes = ("average_bits", "weight_bytes", "bit_operations")
        return {
            **{name: getattr(self, name) for name in (*shown, *sizes)},
            "layers": [asdict(layer) for layer in self.layers],
            "order": list(self.order),
            "passes": [asdict(each) for each in self.passes],
            "controls": [asdict(control) for control in self.controls],
        }


def assign_precision(
    graph: ModelGraph, step: AssignPrecision, around: Surroundings, on_progress: OnProgress
) -> PrecisionResult:
    """The bits of every layer's weights. Statistics that are given are of all layers of `graph`.

    Raises `RecipeRefused` for networks that can't be made of integers, and where learning has too few cycles.
    """
    first = _first_network(graph, step, around, on_progress)
    statistics = LayerStatistics(first.graph, first.statistics, step)
    left_out = statistics.left_out() | dict.fromkeys(around.quantization.layer_bits, FIXED)
    networks = SecondNetworks(
        first.graph, around.quantization, step.bits, around.calibration, _share(on_progress, _LEARNED, _QUANTIZED)
    )
    orders = Orders(statistics.ascending(left_out), statistics.weights, networks.relative_errors(step.bits[1]))
    search = _Search(step, around, networks, orders, statistics)
    chosen, passes = search.passes(_share(on_progress, _QUANTIZED, _SEARCHED))
    on_progress(_SEARCHED, "Comparing with other orders", {})
    controls = search.controls(passes[0].chosen)
    precision = search.of_all(chosen)
    warnings = list(first.warnings)
    if not chosen:
        warnings.append(f"No layer met the tolerance of {step.max_drop_pp} pp: all keep {step.bits[0]} bits.")
    return PrecisionResult(
        graph=first.graph,
        precision=precision,
        accuracy_given=first.accuracy_given,
        accuracy_learned=first.accuracy_learned,
        keeps_learned=first.keeps_learned,
        accuracy_first=search.reference,
        accuracy_second=search.accuracy_of(chosen),
        losses=first.losses,
        layers=_reports(statistics, precision, left_out),
        order=tuple(orders.named(step.order, around.seed)),
        passes=tuple(passes),
        controls=tuple(controls),
        average_bits=search.average_bits(precision),
        weight_bytes=search.bits_of_weights(precision) // 8,
        bit_operations=sum(
            count * precision[name] * around.quantization.activation_bits for name, count in macs(first.graph).items()
        ),
        warnings=tuple(warnings),
    )


# ---- The first network and its learning ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _First:
    graph: ModelGraph
    statistics: LearningStatistics
    accuracy_given: float
    accuracy_learned: float | None
    keeps_learned: bool
    losses: list[float]
    warnings: tuple[str, ...] = ()


def _first_network(graph: ModelGraph, step: AssignPrecision, around: Surroundings, on_progress: OnProgress) -> _First:
    given = around.evaluate(graph)
    if step.statistics is not None:
        return _First(graph, step.statistics, given, None, keeps_learned=False, losses=[])
    weights = {layer.name: parameter(graph, layer.weight) for layer in layers(graph)}
    recorder = DifferenceRecorder(weights, step.learning)
    on_progress(0.0, "Learning", {})
    learned = around.learn(graph, recorder.after_step)
    accuracy = around.evaluate(learned)
    is_kept = step.keep == "learned" or (step.keep == "better" and accuracy > given)
    decay = step.learning.weight_decay
    warnings = (f"Weight decay of {decay} moved all weights, so differences aren't those of learning alone.",)
    return _First(
        graph=learned if is_kept else graph,
        statistics=recorder.statistics(),
        accuracy_given=given,
        accuracy_learned=accuracy,
        keeps_learned=is_kept,
        losses=recorder.losses,
        warnings=warnings if decay else (),
    )


# ---- The search ------------------------------------------------------------------------------------------------------


class _Search:
    """Tries second networks. `reference` is the accuracy of the one in which no layer has fewer bits."""

    def __init__(
        self,
        step: AssignPrecision,
        around: Surroundings,
        networks: SecondNetworks,
        orders: Orders,
        statistics: LayerStatistics,
    ) -> None:
        self._step = step
        self._around = around
        self._networks = networks
        self._orders = orders
        self._sizes = {name: weight.numel() for name, weight in statistics.weights.items()}
        self._known: dict[tuple[tuple[str, int], ...], float] = {}
        self.reference = self.accuracy_of({})

    def accuracy_of(self, precision: Mapping[str, int]) -> float:
        """Percent on the selection images of the network whose layers have these bits, the others the first precision."""
        key = tuple(sorted(precision.items()))
        if key not in self._known:
            self._known[key] = self._around.evaluate(self._networks.simulated(precision))
        return self._known[key]

    def passes(self, on_progress: OnProgress) -> tuple[dict[str, int], list[Pass]]:
        """The layers with fewer bits, and the passes that found them: each works on the layers that the one before has chosen."""
        chosen: dict[str, int] = {}
        passes: list[Pass] = []
        candidates = self._orders.named(self._step.order, self._around.seed)
        for number, bits in enumerate(self._step.bits[1:]):
            on_progress(number / len(self._step.bits[1:]), f"Searching layers for {bits} bits", {"bits": bits})
            passes.append(self._pass(bits, candidates, chosen))
            candidates = candidates[: passes[-1].chosen]
            chosen = {**chosen, **dict.fromkeys(candidates, bits)}
        return chosen, passes

    def _pass(self, bits: int, candidates: list[str], chosen: Mapping[str, int]) -> Pass:
        search = PrefixSearch(
            len(candidates),
            lambda count: self.accuracy_of({**chosen, **dict.fromkeys(candidates[:count], bits)}),
            self.reference,
            self._step.max_drop_pp,
        )
        found = search.find(self._step.search, verify_neighbours=self._step.verify_neighbours)
        return Pass(bits, len(candidates), found, search.trials)

    def controls(self, count: int) -> list[Control]:
        """As many layers in other orders; nothing where none or all were chosen, or no comparison is asked for."""
        if not self._step.controls or not 0 < count < len(self._orders.differences):
            return []
        fixed = [(name, None) for name in FIXED_ORDERS if name != self._step.order]
        seeds = [self._around.seed + 1 + number for number in range(self._step.controls)]
        return [self._control(name, seed, count) for name, seed in [*fixed, *(("random", seed) for seed in seeds)]]

    def _control(self, name: OrderName, seed: int | None, count: int) -> Control:
        precision = dict.fromkeys(self._orders.named(name, seed or 0)[:count], self._step.bits[1])
        accuracy = self.accuracy_of(precision)
        average = self.average_bits(self.of_all(precision))
        return Control(name, seed, accuracy, self.reference - accuracy, average)

    # ---- Sizes ------------------------------------------------------------------------------------------------------

    def of_all(self, chosen: Mapping[str, int]) -> dict[str, int]:
        """The bits of every layer."""
        default = dict.fromkeys(self._sizes, self._step.bits[0])
        fixed = self._around.quantization.layer_bits
        return {name: {**default, **fixed, **chosen}[name] for name in self._sizes}

    def bits_of_weights(self, precision: Mapping[str, int]) -> int:
        return sum(precision[name] * size for name, size in self._sizes.items())

    def average_bits(self, precision: Mapping[str, int]) -> float:
        return self.bits_of_weights(precision) / sum(self._sizes.values())


def _reports(
    statistics: LayerStatistics, precision: Mapping[str, int], left_out: Mapping[str, str]
) -> tuple[LayerPrecision, ...]:
    over_variance = statistics.normalised("var")
    raw, relative = (sorted(of, key=lambda name: of[name]) for of in (statistics.raw, over_variance))
    return tuple(
        LayerPrecision(
            layer=name,
            weights=weight.numel(),
            mean_squares=statistics.mean_squares[name],
            statistic=statistics.raw[name],
            sorted_by=statistics.sorted_by[name],
            rank=raw.index(name),
            rank_over_variance=relative.index(name),
            bits=precision[name],
            left_out=left_out.get(name),
        )
        for name, weight in statistics.weights.items()
    )


def _share(on_progress: OnProgress, begin: float, end: float) -> OnProgress:
    def report(share: float, message: str, data: dict[str, Any]) -> None:
        on_progress(begin + (end - begin) * share, message, data)

    return report
