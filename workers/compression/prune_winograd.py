"""Method W (US11521039B2): Winograd convolutions pruned at positions that all kernels of a group have in common.

    compute eligible convolutions in the Winograd domain                        W-1, W-7
    in rounds:
        score every position by the weights that it has over all kernels        W-2, W-4
        choose positions to prune, the same for all kernels of a group          W-3, W-5, W-10, W-12
        prune them, and fit the weights that remain to what the layer gave      W-6, design
        train the network without them                                          W-9
        keep the round if accuracy is within the tolerance, else take it back   W-11
    drop what was pruned: neither stored, nor transformed, nor multiplied       W-8

`docs/methods.md` maps each claim element to the test that shows it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from winograd.matrices import MATRICES

from jobs.recipe import PruneWinograd
from jobs.tiles import tiles_of
from workers.compression.evaluator import Evaluator
from workers.compression.fold_batchnorm import fold_batchnorm
from workers.compression.frontier import Frontier, batches_within
from workers.compression.winograd_allocation import Allocation, allocate
from workers.compression.winograd_elimination import elimination_scores
from workers.compression.winograd_layers import (
    Mask,
    output_sides,
    to_winograd,
    with_pruned,
    without_pruned,
)
from workers.compression.winograd_moments import Moments, compensated, measure_moments, measure_target
from workers.compression.winograd_positions import prune_below, prune_lowest
from workers.compression.winograd_scores import accuracy_score, random_score, score
from workers.compression.winograd_tiles import choose_tiles
from workers.compression.winograd_times import Load, ModelledTimes
from workers.models.graph import Layer, ModelGraph, copy_graph, layers, parameter, set_parameter
from workers.models.shapes import macs

OnProgress = Callable[[float, str, dict[str, Any]], None]  # share done, what is going on, numbers to show
Train = Callable[[ModelGraph, int], ModelGraph]  # (network without pruned positions, number of the round) -> trained

SHARE_BISECTIONS = 12  # to a part in 4,096 of the way

RoundEnd = Literal["kept", "taken_back"]
Target = Literal["target_reduction", "target_speedup"]
End = Literal["all_pruned", "accuracy_fell", "rounds", "nothing_asked"] | Target


@dataclass(frozen=True)
class Surroundings:
    """What the step asks of the job: images to measure, probe and judge on, and to train with."""

    calibration: Callable[[ModelGraph], Iterable[Tensor]]  # batches of input for a network, the same at every call
    evaluator_of: Callable[[ModelGraph], Evaluator]
    evaluate: Callable[[ModelGraph], float]  # accuracy in percent on the selection images
    train: Train | None
    seed: int
    load: Load = field(default_factory=Load)  # that times are modelled for


@dataclass(frozen=True)
class WinogradLayer:
    """One layer of the report. Multiplications are of one image, modelled microseconds of one batch on the target."""

    layer: str
    tile: int
    positions: int  # t*t
    pruned: list[list[int]]  # the pruning index of each group of kernels
    scores: list[list[float]]  # the table of each group, as it was in the last round that was kept, or tried
    multiplications_direct: int
    multiplications_winograd: int
    multiplications: int  # that remain
    modelled_us_direct: float
    modelled_us_winograd: float  # at all positions
    modelled_us: float  # at those that remain
    output_error: (
        float | None
    )  # part of the output's mean square that was missed before training, layers before it counted in


@dataclass(frozen=True)
class Round:
    """Pruned, fitted, trained, judged."""

    number: int
    pruned: dict[str, int]  # positions of each group that are gone, by layer
    accuracy_pruned: float  # before training
    accuracy: float
    multiplications: int
    predicted_drop_pp: float | None
    ended: RoundEnd


@dataclass(frozen=True)
class WinogradResult:
    """The pruned network and how it came to be."""

    graph: ModelGraph
    layers: tuple[WinogradLayer, ...]
    skipped: dict[str, str]
    rounds: tuple[Round, ...]
    ended_because: End
    is_trained: bool
    accuracy_before: float
    accuracy_converted: float  # all positions kept: the same but for rounding
    accuracy_after: float
    multiplications_direct: int  # of the whole network, other layers counted in
    multiplications: int
    modelled_us_direct: float  # of the layers that were worked on, and no others
    modelled_us: float
    load: Load  # that these hold for
    predicted_change_pp: float | None
    allocation: Allocation | None
    warnings: tuple[str, ...]

    @property
    def measured_change_pp(self) -> float:
        return self.accuracy_after - self.accuracy_before

    def as_details(self) -> dict[str, Any]:
        """The step's `details` in the report, plain JSON."""
        return {
            "accuracy_before": self.accuracy_before,
            "accuracy_converted": self.accuracy_converted,
            "accuracy_after": self.accuracy_after,
            "predicted_change_pp": self.predicted_change_pp,
            "measured_change_pp": self.measured_change_pp,
            "is_trained": self.is_trained,
            "ended_because": self.ended_because,
            "multiplications_direct": self.multiplications_direct,
            "multiplications": self.multiplications,
            "reduction": self.multiplications_direct / self.multiplications,
            "modelled_us_direct": _rounded(self.modelled_us_direct),
            "modelled_us": _rounded(self.modelled_us),
            "modelled_speedup": _rounded(self.modelled_us_direct / self.modelled_us),
            "modelled_for": self.load.as_details(),
            "layers": [vars(layer) for layer in self.layers],
            "skipped": self.skipped,
            "rounds": [vars(done) for done in self.rounds],
            "allocation": None if self.allocation is None else self.allocation.as_details(),
        }


def prune_winograd(
    graph: ModelGraph, step: PruneWinograd, surroundings: Surroundings, on_progress: OnProgress
) -> WinogradResult:
    """A copy of `graph` with its 3x3 convolutions in the Winograd domain, pruned as `step` asks; batch norms are folded in."""
    tiles, skipped = choose_tiles(graph, step, surroundings.load)
    accuracy_before = surroundings.evaluate(graph)
    search = _Search(graph, tiles, step, surroundings, on_progress)
    accuracy_converted = surroundings.evaluate(search.accepted.graph)
    ended = search.run(accuracy_before)
    final = search.emitted()
    return WinogradResult(
        graph=final,
        layers=search.layer_reports(),
        skipped=skipped,
        rounds=tuple(search.rounds),
        ended_because=ended,
        is_trained=step.training is not None and any(done.ended == "kept" for done in search.rounds),
        accuracy_before=accuracy_before,
        accuracy_converted=accuracy_converted,
        accuracy_after=surroundings.evaluate(final),
        multiplications_direct=search.multiplications_direct,
        multiplications=search.multiplications_of(search.accepted.masks),
        modelled_us_direct=search.modelled_us_direct,
        modelled_us=search.modelled_us_of(search.accepted.masks),
        load=surroundings.load,
        predicted_change_pp=search.predicted_change_pp(),
        allocation=search.allocation,
        warnings=tuple(_warnings(step, search)),
    )


@dataclass(frozen=True)
class _State:
    """A network with all positions and zeros at the pruned ones."""

    graph: ModelGraph
    masks: dict[str, Mask]


class _Search:
    """Prunes further and further; `accepted` is the last state that accuracy allowed."""

    def __init__(
        self,
        graph: ModelGraph,
        tiles: Mapping[str, int],
        step: PruneWinograd,
        surroundings: Surroundings,
        on_progress: OnProgress,
    ) -> None:
        converted = to_winograd(graph, tiles)
        masks = {name: Mask.whole(m, step.groups, step.group_by) for name, m in tiles.items()}
        self.accepted = _State(converted, masks)
        self._whole = masks
        self._converted = converted
        self.rounds: list[Round] = []
        self.allocation: Allocation | None = None
        self._step = step
        self._around = surroundings
        self._on_progress = on_progress
        self._tiles = dict(tiles)
        self._layers = {layer.name: layer for layer in layers(converted) if layer.name in tiles}
        self._sides = output_sides(converted)
        self._direct = macs(graph)
        self._times = {
            layer.name: ModelledTimes.of(layer, self._sides[layer.name], surroundings.load)
            for layer in layers(graph)
            if layer.name in tiles
        }
        self._scored: _State | None = None  # whose moments and scores the following are
        self._moments: dict[str, Moments] = {}
        self._scores: dict[str, Tensor] = {}
        self._errors: dict[str, float] = {}
        self._accepted_scores: dict[str, Tensor] = {}
        self._accepted_errors: dict[str, float] = {}

    # ---- The rounds -------------------------------------------------------------------------------------------------

    def run(self, accuracy_before: float) -> End:
        """Prune in rounds until all that was asked is pruned, or accuracy has fallen too far.

        With training, each round goes an equal part of the way; without, it goes all the way at once, but not beyond a target.
        A round that was taken back is followed by one that goes half as far.
        """
        lowest = accuracy_before - self._step.max_drop_pp
        share, stride = 0.0, 1.0 / self._step.rounds if self._around.train is not None else 1.0
        too_far: float | None = None
        for number in range(1, self._step.rounds + 1):
            if self._reached_target(self.accepted.masks) or share == 1.0:
                break
            self._report(number, 0.0, "Measuring")
            wanted = min(1.0, share + stride) if too_far is None else (share + too_far) / 2
            masks, predicted = self._masks_at(wanted, number)
            if self._reached_target(masks):
                wanted = self._least_share_to_target(share, wanted, number)
                masks, predicted = self._masks_at(wanted, number)
            if self._is_accepted(masks) or self._try(number, masks, predicted, lowest):
                share = wanted
            else:
                too_far = wanted
        if target := self._reached_target(self.accepted.masks):
            return target
        if not self.rounds:
            return "nothing_asked"
        return "all_pruned" if share == 1.0 else "rounds" if too_far is None else "accuracy_fell"

    def _is_accepted(self, masks: Mapping[str, Mask]) -> bool:
        return all(torch.equal(masks[name].kept, mask.kept) for name, mask in self.accepted.masks.items())

    def _try(self, number: int, masks: dict[str, Mask], predicted: float | None, lowest: float) -> bool:
        """One round; whether it was kept."""
        state = self._pruned(masks, number)
        accuracy_pruned = accuracy = self._around.evaluate(state.graph)
        if self._around.train is not None:
            self._report(number, 0.3, "Training without the pruned positions")
            trained = self._around.train(without_pruned(state.graph, masks), number)
            state = _State(with_pruned(trained, state.graph, masks), masks)
            accuracy = self._around.evaluate(state.graph)
        ended: RoundEnd = "kept" if accuracy >= lowest else "taken_back"
        pruned = {name: int((~mask.kept).sum(1).max()) for name, mask in masks.items()}
        count = self.multiplications_of(masks)
        self.rounds.append(Round(number, pruned, accuracy_pruned, accuracy, count, predicted, ended))
        if ended == "kept":
            self.accepted = state
            self._accepted_scores, self._accepted_errors = dict(self._scores), dict(self._errors)
        return ended == "kept"

    def _masks_at(self, share: float, number: int) -> tuple[dict[str, Mask], float | None]:
        """The masks after a share of all that was asked, and the drop in percentage points that probing foretells."""
        step = self._step
        if self._scored is not self.accepted:  # a round that was taken back has changed nothing
            self._score(number)
        fixed = {name: rate for name, rate in step.rates.items() if name in self._tiles}
        if step.select == "allocate":
            return self._allocated(share, number, fixed)
        return {name: self._selected(name, share, fixed.get(name)) for name in self._layers}, None

    def _score(self, number: int) -> None:
        """Measure the accepted network, and score the positions of its layers."""
        graph = self.accepted.graph
        if self._step.score in ("fit", "energy") or self._fits:
            self._moments = measure_moments(graph, self._tiles, self._around.calibration(graph))
        self._scores = {}
        for name, layer in self._layers.items():
            self._report(number, 0.02, f"Scoring positions of {name}")
            self._scores[name] = self._scores_of(layer)
        self._scored = self.accepted

    @property
    def _fits(self) -> bool:
        """Weights that are made from 3x3 filters again in training can't be fitted one by one."""
        training = self._step.training
        return self._step.compensate and (training is None or training.domain == "winograd")

    def _selected(self, name: str, share: float, own_rate: float | None) -> Mask:
        """The mask of one layer after a share of the whole way."""
        step, m, mask = self._step, self._tiles[name], self.accepted.masks[name]
        positions = MATRICES[m].t ** 2
        at_most = int(step.max_rate * positions)
        if own_rate is not None:
            return prune_lowest(mask, self._scores[name], m, count=round(own_rate * positions * share))
        match step.select:
            case "threshold":
                assert step.threshold is not None
                scores = self._scores[name]
                unit = float(scores.mean()) if step.threshold_unit == "mean" else 1.0
                return prune_below(
                    mask, scores, m, threshold=step.threshold * unit, at_most=max(1, round(at_most * share))
                )
            case "count":
                assert step.count is not None
                return prune_lowest(mask, self._scores[name], m, count=min(at_most, round(step.count * share)))
            case _:
                rate = step.rate or 0.0
                return prune_lowest(mask, self._scores[name], m, count=min(at_most, round(rate * positions * share)))

    def _allocated(self, share: float, number: int, fixed: Mapping[str, float]) -> tuple[dict[str, Mask], float | None]:
        """Positions of all layers where they cost least; those of `fixed` layers at their own rate."""
        if self.allocation is None:
            self._report(number, 0.05, "Probing what positions cost")
            self.allocation = allocate(
                {name: layer for name, layer in self._layers.items() if name not in fixed},
                ladder=self._ladder,
                weights_of=self._fitted,
                saved_by=self._saved,
                evaluator=self._around.evaluator_of(self.accepted.graph),
                on_progress=lambda done, what: self._report(number, 0.05 + 0.25 * done, what),
            )
        counts, predicted = self.allocation.counts(share)
        masks = {}
        for name in self._layers:
            if name in fixed:
                masks[name] = self._selected(name, share, fixed[name])
            else:
                masks[name] = prune_lowest(
                    self.accepted.masks[name], self._scores[name], self._tiles[name], count=counts[name]
                )
        return masks, predicted

    def _ladder(self, name: str) -> list[Mask]:
        """Masks of one layer from few to many pruned positions, in ninths of all positions."""
        m = self._tiles[name]
        positions = MATRICES[m].t ** 2
        most, step = int(self._step.max_rate * positions), round(positions / 9)
        whole = self.accepted.masks[name]
        counts = sorted({*range(step, most, step), most})
        return [prune_lowest(whole, self._scores[name], m, count=count) for count in counts]

    # ---- Layers -----------------------------------------------------------------------------------------------------

    def _scores_of(self, layer: Layer) -> Tensor:
        """[groups, t*t] on the weights as they are now; of pruned positions, whatever comes out for zeros."""
        step, mask, m = self._step, self.accepted.masks[layer.name], self._tiles[layer.name]
        weights = parameter(self.accepted.graph, layer.weight).detach()
        if step.score == "random":
            # One order for all rounds, so that positions that are gone stay among the lowest.
            generator = torch.Generator().manual_seed(self._around.seed + list(self._layers).index(layer.name))
            return torch.stack([random_score(len(weights), generator) for _ in range(mask.groups)])
        if step.score == "accuracy":
            return self._accuracy_scores(layer, weights, mask)
        if step.score != "fit" and step.score != "energy":
            return torch.stack([score(step.score, u, m) for u in mask.chunks(weights)])
        moments = self._moments[layer.name]
        if step.score == "fit" and moments.gram is not None:
            return elimination_scores(weights, mask, moments)
        energies = mask.chunks(moments.energy_of(weights))
        return torch.stack([score("energy", u, m, e) for u, e in zip(mask.chunks(weights), energies, strict=True)])

    def _accuracy_scores(self, layer: Layer, weights: Tensor, mask: Mask) -> Tensor:
        evaluator = self._around.evaluator_of(self.accepted.graph)
        scores = []
        for group in range(mask.groups):

            def correct_without(position: int, group: int = group) -> int:
                kept = mask.kept.clone()
                kept[group, position] = False
                return evaluator.probe(layer, replace(mask, kept=kept).apply(weights), at_least=0).correct

            scores.append(accuracy_score(correct_without, len(weights)))
        return torch.stack(scores)

    def _pruned(self, masks: Mapping[str, Mask], number: int) -> _State:
        """The accepted network with other masks, and the weights that remain fitted.

        Layers are fitted in order, each to what it gave before anything was pruned, on what the layers before it make now.
        """
        pruned = copy_graph(self.accepted.graph)
        own, wanted = self._frontiers(pruned) if self._fits else (None, None)
        self._errors = {}
        for name, layer in self._layers.items():
            mask = masks[name]
            if own is None or wanted is None:
                set_parameter(pruned, layer.weight, mask.apply(parameter(pruned, layer.weight).detach()))
                continue
            self._report(number, 0.3, f"Fitting {name}")
            moments, target = self._moments[name], None
            if moments.gram is not None:
                moments, target = measure_target(name, own, wanted)
            weights = parameter(self._reference, layer.weight).detach()
            fitted, self._errors[name] = compensated(weights, mask, moments, target)
            set_parameter(pruned, layer.weight, fitted)
        return _State(pruned, dict(masks))

    def _frontiers(self, pruned: ModelGraph) -> tuple[Frontier, Frontier]:
        """Of a network that is being pruned, and of the one whose outputs are to be kept."""
        half = self._step.cache_mib * 2**20 // 2
        batches = batches_within(half, pruned, self._around.calibration(pruned))
        return Frontier(pruned, batches), Frontier(self._reference, batches)

    @property
    def _reference(self) -> ModelGraph:
        """The network whose layers' outputs are to be kept: as it was trained last, or else the upload."""
        return self._converted if self._around.train is None else self.accepted.graph

    def _fitted(self, name: str, mask: Mask) -> Tensor:
        """The weights of one layer with that mask, if no other layer changes."""
        weights = parameter(self._reference, self._layers[name].weight).detach()
        return compensated(weights, mask, self._moments[name])[0] if self._fits else mask.apply(weights)

    # ---- Multiplications and time -----------------------------------------------------------------------------------

    @property
    def multiplications_direct(self) -> int:
        return sum(self._direct.values())

    def multiplications_of(self, masks: Mapping[str, Mask]) -> int:
        """Of the whole network on one image, layers that are left alone counted as direct convolutions."""
        others = sum(count for name, count in self._direct.items() if name not in self._tiles)
        return others + sum(round(self._multiplications(name) * mask.share()) for name, mask in masks.items())

    def _multiplications(self, name: str) -> float:
        """Of one layer at all positions."""
        layer = self._layers[name]
        positions, filters, channels = layer.weight_shape
        tiles = tiles_of(self._tiles[name], self._sides[name])
        return tiles * positions * filters * channels * len(layer.used_by)

    @property
    def modelled_us_direct(self) -> float:
        """Of the layers that are worked on: of the others, winograd's table knows nothing."""
        return sum(times.direct_us for times in self._times.values())

    def modelled_us_of(self, masks: Mapping[str, Mask]) -> float:
        """Of the same layers."""
        return sum(self._modelled_us(name, mask) for name, mask in masks.items())

    def _modelled_us(self, name: str, mask: Mask) -> float:
        return self._times[name].winograd_us(self._tiles[name], mask)

    def _saved(self, name: str, mask: Mask) -> float:
        """What one layer saves without the positions that a mask lacks, in the unit that the recipe asks for."""
        if self._step.saves == "time":
            return self._modelled_us(name, self._whole[name]) - self._modelled_us(name, mask)
        return self._multiplications(name) * (1 - mask.share())

    def _least_share_to_target(self, short: float, reached: float, number: int) -> float:
        """Between a share that falls short of the target and one that reaches it: to go beyond would cost accuracy for nothing."""
        for _ in range(SHARE_BISECTIONS):
            middle = (short + reached) / 2
            if self._reached_target(self._masks_at(middle, number)[0]):
                reached = middle
            else:
                short = middle
        return reached

    def _reached_target(self, masks: Mapping[str, Mask]) -> Target | None:
        if self.multiplications_direct / self.multiplications_of(masks) >= (self._step.target_reduction or math.inf):
            return "target_reduction"
        if self.modelled_us_direct / self.modelled_us_of(masks) >= (self._step.target_speedup or math.inf):
            return "target_speedup"
        return None

    # ---- What it comes to -------------------------------------------------------------------------------------------

    def emitted(self) -> ModelGraph:
        """The accepted network without pruned positions, batch norms folded into the weights that are left."""
        return without_pruned(fold_batchnorm(self.accepted.graph), self.accepted.masks)

    def predicted_change_pp(self) -> float | None:
        kept = [done for done in self.rounds if done.ended == "kept" and done.predicted_drop_pp is not None]
        return -kept[-1].predicted_drop_pp if kept and kept[-1].predicted_drop_pp is not None else None

    def layer_reports(self) -> tuple[WinogradLayer, ...]:
        reports = []
        for name, mask in self.accepted.masks.items():
            scores, whole = self._accepted_scores.get(name, self._scores.get(name)), self._multiplications(name)
            error = self._accepted_errors.get(name)
            reports.append(
                WinogradLayer(
                    layer=name,
                    tile=self._tiles[name],
                    positions=mask.kept.shape[1],
                    pruned=mask.pruned(),
                    scores=[] if scores is None else [[float(f"{x:.6g}") for x in row] for row in scores.tolist()],
                    multiplications_direct=self._direct[name],
                    multiplications_winograd=round(whole),
                    multiplications=round(whole * mask.share()),
                    modelled_us_direct=_rounded(self._times[name].direct_us),
                    modelled_us_winograd=_rounded(self._modelled_us(name, self._whole[name])),
                    modelled_us=_rounded(self._modelled_us(name, mask)),
                    output_error=None if error is None else _rounded(error),
                )
            )
        return tuple(reports)

    def _report(self, number: int, share: float, what: str) -> None:
        done = (number - 1 + share) / self._step.rounds
        count = self.multiplications_of(self.accepted.masks)
        figures = {"round": number, "rounds": self._step.rounds, "reduction": self.multiplications_direct / count}
        self._on_progress(done, what, figures)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _warnings(step: PruneWinograd, search: _Search) -> list[str]:
    found = []
    if step.training is None:
        found.append(
            "Nothing was trained: the patent's method trains the network without the pruned weights. Give prune_winograd "
            '"training", and training images, to prune further.'
        )
    capped = [
        layer.layer for layer in search.layer_reports() if (step.count or 0) > int(step.max_rate * layer.positions)
    ]
    if capped:
        found.append(
            f"max_rate {step.max_rate} allows less than {step.count} positions to be pruned in: {', '.join(capped)}."
        )
    if not any(done.ended == "kept" for done in search.rounds):
        found.append("No position was pruned; the convolutions are computed in the Winograd domain, at all positions.")
    return found
