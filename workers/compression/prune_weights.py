"""Method P (US12045723B2): prune weights by thresholds from their distribution, layer by layer, without training.

    set thresholds from the distribution of the trained weights            P-1, P-2
    predict for every layer how much accuracy pruning it would cost        P-3
    the layer that costs least is the current subject                      P-5
    prune it, raise the threshold and prune it again,                      P-6, P-7, P-8
        until accuracy has fallen by the set limit; then go back one step
    leave it alone from now on, and choose the next one                    P-9
    until all layers, or a set number, were pruned, or a target is met     P-10, P-11
    in the next round all that again, from the network this one left       design

`docs/methods.md` maps each claim element to the test that shows it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor

from jobs.errors import RecipeRefused
from jobs.recipe import PruneWeights
from workers.compression.eligibility import why_not
from workers.compression.evaluator import Evaluator, Probe
from workers.compression.fold_batchnorm import fold_batchnorm
from workers.compression.pruning_log import (
    Iteration,
    LayerEnd,
    LayerSparsity,
    PruneResult,
    SearchEnd,
    Sensitivity,
    Trial,
)
from workers.compression.pruning_schedule import exact, rounds_of
from workers.compression.thresholds import (
    WeightDistribution,
    layer_distributions,
    pruned,
    with_channels_kept,
)
from workers.models.graph import Layer, ModelGraph, copy_graph, layers, parameter, set_parameter

OnProgress = Callable[[float, str, dict[str, Any]], None]  # share done, what is going on, numbers to show


def prune_weights(
    graph: ModelGraph, step: PruneWeights, *, evaluator_of: Callable[[ModelGraph], Evaluator], on_progress: OnProgress
) -> PruneResult:
    """A copy of `graph` with weights set to zero as `step` asks; all other weights keep their bits.

    `evaluator_of` makes what counts right answers on the pruning data, for the very network that is pruned.
    """
    start = fold_batchnorm(graph) if step.fold_before else copy_graph(graph)
    weights, skipped = _prunable_weights(start, step)
    distributions = layer_distributions(
        {layer.name: weight for layer, weight in weights.items()},
        scope=step.scope,
        shape=step.distribution,
        center=step.center,
    )
    search = _Search(weights, distributions, evaluator_of(start), step, on_progress)
    ended_because = search.run()
    for layer, weight in search.weights.items():
        set_parameter(start, layer.weight, weight)
    return PruneResult(
        graph=start,
        iterations=tuple(search.iterations),
        ended_because=ended_because,
        layers=tuple(_sparsity(layer, weights[layer], search.weights[layer]) for layer in weights),
        skipped=skipped,
        images=search.evaluator.images,
        accuracy_before=search.percent(search.evaluator.correct),
        accuracy_after=search.percent(search.now.correct),
        lost=search.now.lost,
        gained=search.now.gained,
        reused_probes=search.reused_probes,
        cost=search.evaluator.cost(),
        warnings=_warnings(step, search, ended_because),
    )


@dataclass(frozen=True)
class _Candidate:
    """A layer pruned with a threshold, and how the network answers with it."""

    layer: Layer
    threshold: float
    weight: Tensor
    probe: Probe


class _Search:
    """The pruned network so far (`weights`, `now`) and the layers that have not been the subject yet in this round (`active`)."""

    def __init__(
        self,
        weights: dict[Layer, Tensor],
        distributions: dict[str, WeightDistribution],
        evaluator: Evaluator,
        step: PruneWeights,
        on_progress: OnProgress,
    ) -> None:
        self.evaluator = evaluator
        self.weights = dict(weights)
        self.iterations: list[Iteration] = []
        self.now = Probe(evaluator.correct, is_exact=True, images=evaluator.images, lost=0, gained=0)
        self.reused_probes = 0
        self._step = step
        self._on_progress = on_progress
        self._distributions = distributions
        self._layers = list(weights)
        self._size = sum(weight.numel() for weight in weights.values())
        self._active = list(weights)
        self._round = next(rounds_of(step))
        self._subjects_of_round = 0
        self._accepted = dict.fromkeys(weights, Fraction(0))  # the rate that each layer is pruned at
        self._ends: dict[Layer, LayerEnd] = {}  # why each subject of this round was left alone
        self._order = {layer: position for position, layer in enumerate(weights)}
        self._sensitivities: dict[Layer, Sensitivity] = {}  # the last known of each layer

    def run(self) -> SearchEnd:
        """Prune in rounds until a rule ends it, or until no layer is left to go on with."""
        ended: SearchEnd = "all_layers"
        for current in rounds_of(self._step):
            self._round = current
            self._active = self._layers_of_round()
            if not self._active:
                break
            ended = self._run_round()
            if ended in ("target_sparsity", "target_accuracy"):
                break
        self._on_progress(1.0, "Pruning has ended.", self._figures())
        return ended

    def _layers_of_round(self) -> list[Layer]:
        if self._round.is_extra:
            return [layer for layer in self._layers if self._ends.get(layer) == "steps_per_round"]
        return [layer for layer in self._layers if self._next_rate(layer) <= exact(self._step.max_rate)]

    def _run_round(self) -> SearchEnd:
        """Prune one subject layer after the other until none is left, or a rule ends it."""
        self._subjects_of_round = 0
        self._ends.clear()
        while (ended := self._end_of_round()) is None:
            self._iterate()
        return ended

    def percent(self, correct: int) -> float:
        return 100.0 * correct / self.evaluator.images

    @property
    def sparsity(self) -> float:
        zeros = sum(_zeros(weight) for weight in self.weights.values())
        return zeros / self._size

    def _end_of_round(self) -> SearchEnd | None:
        stop = self._step.stop
        if self._sparsity_is_reached():
            return "target_sparsity"
        if stop.target_accuracy is not None and self.now.correct <= self._target_correct():
            return "target_accuracy"
        if stop.layers is not None and self._subjects_of_round >= stop.layers:
            return "layers"
        if not self._active:
            return "all_layers"
        # Only a kept crossing can spend all that the round may; every further layer would spend more.
        spent = self.evaluator.correct - self.now.correct
        if self._step.reference != "layer_start" and spent >= self._images_of(self._round.allowed_drop_pp(Fraction(0))):
            return "budget_spent"
        return None

    def _iterate(self) -> None:
        first = self._choose_subject()
        sensitivities = tuple(self._sensitivities[layer] for layer in self._active)
        reference = self.now.correct if self._step.reference == "layer_start" else self.evaluator.correct
        before = self.now
        allowed = self._round.allowed_drop_pp(self._share_after(first.layer))
        rate_before, next_rate = self._accepted[first.layer], self._next_rate(first.layer)
        trials, ended = self._prune_subject(first, at_least=floor(reference - self._images_of(allowed)) + 1)
        rate = self._accepted[first.layer]
        self._active.remove(first.layer)
        self._ends[first.layer] = ended
        self._subjects_of_round += 1
        self.iterations.append(
            Iteration(
                number=len(self.iterations) + 1,
                round=self._round.number,
                sensitivities=sensitivities,
                subject=first.layer.name,
                reference_accuracy=self.percent(reference),
                allowed_drop_pp=float(allowed),
                trials=tuple(trials),
                accepted_rate=float(rate),
                realised_rate=_zero_share(self.weights[first.layer]),
                accuracy=self.percent(self.now.correct),
                predicted_change_pp=-self._sensitivities[first.layer].drop_pp
                * float((rate - rate_before) / (next_rate - rate_before)),
                measured_change_pp=self.percent(self.now.correct) - self.percent(before.correct),
                ended_because=ended,
            )
        )

    def _choose_subject(self) -> _Candidate:
        """The active layer whose pruning at its next threshold costs least; ties go to more weights, then to the earlier."""
        expected = sorted(self._active, key=self._expectation)
        self.evaluator.expect(expected[0])
        return self._choose_lazily(expected) if self._step.probing == "lazy" else self._choose_by_race(expected)

    def _choose_by_race(self, expected: list[Layer]) -> _Candidate:
        best: _Candidate | None = None
        for position, layer in enumerate(expected):
            self._report((0.5 * position) / len(expected), f"Probing {layer.name}")
            # To beat the best so far it takes more right answers, or as many where it comes first among equals.
            at_least = best.probe.correct + (self._tie_rank(layer) < self._tie_rank(best.layer)) if best else 0
            candidate = self._probed(layer, at_least=at_least)
            if candidate.probe.correct >= at_least:
                best = candidate
        assert best is not None
        return best

    def _choose_lazily(self, expected: list[Layer]) -> _Candidate:
        """Measure again from the smallest known sensitivity on, until a fresh one is the smallest."""
        fresh: dict[Layer, _Candidate] = {}
        for layer in expected if self._subjects_of_round == 0 else ():
            self._report(0.5 * len(fresh) / len(expected), f"Probing {layer.name}")
            fresh[layer] = self._probed(layer, at_least=0)
        for layer in set(expected) - fresh.keys():
            self._sensitivities[layer] = _stale(self._sensitivities[layer])
        while (smallest := min(self._active, key=self._expectation)) not in fresh:
            self._report(0.5 * len(fresh) / len(expected), f"Probing {smallest.name}")
            fresh[smallest] = self._probed(smallest, at_least=0)
        return fresh[smallest]

    def _prune_subject(self, first: _Candidate, *, at_least: int) -> tuple[list[Trial], LayerEnd]:
        """Raise the threshold of one layer until accuracy has fallen too far, and keep the last that had not."""
        self.evaluator.expect(first.layer)
        target = self._target_correct()
        lowest = max(target, 0 if self._step.keep_crossing else at_least)
        trials: list[Trial] = []
        ended: LayerEnd | None = None
        for rate in self._round.rates(self._accepted[first.layer]):
            self._report(0.5 + 0.5 * float(rate), f"Pruning {first.layer.name}")
            candidate = self._probed_at(first.layer, rate, at_least=self._raced(lowest)) if trials else first
            accepted = candidate.probe.correct >= lowest
            trials.append(self._trial(candidate, float(rate), accepted=accepted))
            if accepted:
                self.weights[first.layer], self.now = candidate.weight, candidate.probe
                self._accepted[first.layer] = rate
            if (not accepted and target > at_least) or self.now.correct == target:
                ended = "target_accuracy"
            elif candidate.probe.correct < at_least:
                ended = "accuracy_fell"
            elif self._sparsity_is_reached():
                ended = "target_sparsity"
            if ended:
                break
        if any(trial.accepted for trial in trials):
            self.evaluator.accept(first.layer, self.weights[first.layer])
        if ended is None:
            ended = "max_rate" if self._next_rate(first.layer) > exact(self._step.max_rate) else "steps_per_round"
        return trials, ended

    def _probed(self, layer: Layer, *, at_least: int) -> _Candidate:
        """The layer pruned at its next threshold; what it costs is remembered as its sensitivity."""
        candidate = self._probed_at(layer, self._next_rate(layer), at_least=self._raced(at_least))
        drop_pp = self.percent(self.now.correct) - self.percent(candidate.probe.correct)
        self._sensitivities[layer] = Sensitivity(
            layer.name, candidate.threshold, drop_pp, candidate.probe.is_exact, is_fresh=True
        )
        return candidate

    def _probed_at(self, layer: Layer, rate: Fraction, *, at_least: int) -> _Candidate:
        distribution = self._distributions[layer.name]
        threshold = distribution.threshold(float(rate))
        current = self.weights[layer]
        weight = pruned(current, threshold, distribution.centre)
        if self._step.keep_channel:
            weight = with_channels_kept(current, weight, kind=layer.kind, groups=layer.groups)
        if torch.equal(weight, current):
            self.reused_probes += 1
            return _Candidate(layer, threshold, weight, self.now)
        return _Candidate(layer, threshold, weight, self.evaluator.probe(layer, weight, at_least=at_least))

    def _raced(self, at_least: int) -> int:
        """How many right answers a probe must reach to matter; with probing full, every probe goes to its end."""
        return 0 if self._step.probing == "full" else at_least

    def _trial(self, candidate: _Candidate, rate: float, *, accepted: bool) -> Trial:
        probe = candidate.probe
        return Trial(
            rate=rate,
            threshold=candidate.threshold,
            realised_rate=_zero_share(candidate.weight),
            accuracy=self.percent(probe.correct),
            is_exact=probe.is_exact,
            lost=probe.lost,
            gained=probe.gained,
            accepted=accepted,
        )

    def _share_after(self, subject: Layer) -> Fraction:
        """The share of all prunable weights that has its turn in this round after the subject."""
        return Fraction(sum(self.weights[layer].numel() for layer in self._active if layer != subject), self._size)

    def _next_rate(self, layer: Layer) -> Fraction:
        return self._round.next_rate(self._accepted[layer])

    def _images_of(self, percentage_points: Fraction) -> Fraction:
        return percentage_points * self.evaluator.images / 100

    def _target_correct(self) -> int:
        """The fewest right answers that the target accuracy permits; -1 without a target."""
        target = self._step.stop.target_accuracy
        return -1 if target is None else ceil(self._images_of(exact(target)))

    def _sparsity_is_reached(self) -> bool:
        target = self._step.stop.target_sparsity
        return target is not None and self.sparsity >= target

    def _tie_rank(self, layer: Layer) -> tuple[int, int]:
        """Among equals the highest wins: more weights first, then the earlier layer."""
        return (self.weights[layer].numel(), -self._order[layer])

    def _expectation(self, layer: Layer) -> tuple[float, int, int]:
        """Sorts by the last known sensitivity, then as ties are broken."""
        known = self._sensitivities.get(layer)
        size, place = self._tie_rank(layer)
        return (known.drop_pp if known else 0.0, -size, -place)

    def _report(self, share_of_layer: float, message: str) -> None:
        total = min(len(self._layers), self._step.stop.layers or len(self._layers))
        done_of_round = (self._subjects_of_round + share_of_layer) / total
        planned_done = (self._round.number - 1 + done_of_round) / self._round.planned
        # How many extra rounds there will be is not known beforehand, so they come ever closer to the end.
        share = 0.9 * planned_done if planned_done <= 1 else 1 - 0.1 / planned_done
        self._on_progress(share, message, self._figures())

    def _figures(self) -> dict[str, Any]:
        return {
            "round": self._round.number,
            "rounds": self._round.planned,
            "layers_done": self._subjects_of_round,
            "layers": len(self._layers),
            "accuracy": self.percent(self.now.correct),
            "sparsity": self.sparsity,
        }


def _prunable_weights(graph: ModelGraph, step: PruneWeights) -> tuple[dict[Layer, Tensor], dict[str, str]]:
    """The layers that P may prune with their weights, and why not the others."""
    found = {layer: parameter(graph, layer.weight).detach().clone() for layer in layers(graph)}
    unknown = sorted(set(step.exclude) - {layer.name for layer in found})
    if unknown:
        raise RecipeRefused(
            f"There is no layer called {unknown[0]!r} to exclude.",
            hint=f"Its layers are: {', '.join(layer.name for layer in found)}.",
            layers=unknown,
        )
    prunable: dict[Layer, Tensor] = {}
    skipped: dict[str, str] = {}
    for layer, weight in found.items():
        reason = "the recipe excludes it" if layer.name in step.exclude else why_not("prune_weights", layer, weight)
        if reason:
            skipped[layer.name] = reason
        else:
            prunable[layer] = weight
    if not prunable:
        raise RecipeRefused("No layer of this model can be pruned.", layers=skipped)
    return prunable, skipped


def _stale(sensitivity: Sensitivity) -> Sensitivity:
    return replace(sensitivity, is_fresh=False)


def _zeros(weight: Tensor) -> int:
    return int((weight == 0).sum())


def _zero_share(weight: Tensor) -> float:
    return _zeros(weight) / weight.numel()


def _sparsity(layer: Layer, before: Tensor, after: Tensor) -> LayerSparsity:
    return LayerSparsity(layer.name, after.numel(), _zeros(before), _zeros(after))


def _warnings(step: PruneWeights, search: _Search, ended_because: SearchEnd) -> tuple[str, ...]:
    found = []
    images, budget = search.evaluator.images, step.max_drop_pp
    if budget * images < 100:
        found.append(
            f"One of the {images} pruning images is {100 / images:.2g} percentage points, more than the budget of {budget}: "
            "no image may be lost. More images would allow more pruning."
        )
    if step.stop.target_sparsity is not None and ended_because != "target_sparsity":
        found.append(
            f"The target sparsity of {step.stop.target_sparsity} was not reached: pruning ended at {search.sparsity:.4f}, "
            "where every layer had spent its part of the accuracy budget."
        )
    return tuple(found)
