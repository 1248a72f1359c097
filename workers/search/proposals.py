"""Which recipes are worth trying for a goal, and in which order: safe ones first, then what predictions say reaches furthest.

The proposals are a generator that is told what came of each: it goes further where there is room, and back where there is none.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs.inspection import ModelInspection
from jobs.recipe import (
    AssignPrecision,
    Finetune,
    PruneWeights,
    PruneWinograd,
    QuantizeFixedPoint,
    RecoveryTraining,
    Step,
    WinogradTraining,
)
from jobs.report import Candidate
from jobs.request import Goal
from workers.bench import Bench
from workers.search.allocation import Bits
from workers.search.predictor import QUANTIZATION, Predictor

# Where channels don't differ much, one length for a whole tensor leaves weights their own: they aren't tuned to their inputs'.
ONE_LENGTH = QUANTIZATION.model_copy(update={"activation_lengths": "per_layer", "align": "shift"})
# Of the limit: what is tried besides, in case that the confirming images refuse what uses all of it. They are fewer than those that
# candidates are compared on, so that more of the limit goes to chance.
SAFER_SHARES = (1 / 2, 1 / 4)
_TILES: tuple[Literal["fastest", 4], ...] = ("fastest", 4)


@dataclass(frozen=True)
class Proposal:
    """A recipe, and the drop of accuracy that is expected of it."""

    recipe: tuple[Step, ...]
    predicted_drop_pp: float | None = None


# Yields proposals and receives what was measured, or None for what could not be tried.
Proposals = Generator[Proposal, Candidate | None, None]


@dataclass(frozen=True)
class Scene:
    """What proposals are made for."""

    goal: Goal
    runtime: str
    inspection: ModelInspection
    bench: Bench
    check_time: Callable[[str], None]
    folder: Path  # for what is to survive an interruption
    wants_integers: bool = False  # because some files are written of nothing else
    confirms: bool = False  # on images of its own, which may refuse what has looked best

    @property
    def learns(self) -> bool:
        return "train" in self.bench.parts

    def can(self, kind: str) -> bool:
        """Whether a step kind can work on any layer."""
        return any(kind in layer.steps and layer.steps[kind].eligible for layer in self.inspection.layers)


def proposals(scene: Scene) -> Proposals:
    """All that is worth trying, in its order."""
    integers = scene.can("quantize_fixed_point")
    match scene.goal.minimise:
        case "latency":
            in_floats = scene.runtime == "torch" and not scene.wants_integers
            if integers:
                yield from _whole_widths(scene)
            if in_floats:
                yield from _winograd(scene)
        case "bytes" | "operations":
            if integers:
                yield from _mixed_widths(scene)
            else:
                yield from _pruned(scene)


def _whole_widths(scene: Scene) -> Proposals:
    """Integers of 8 bits are what kernels are fastest with, most of all with one length a tensor; fewer only make files smaller."""
    by_channel = yield Proposal((QUANTIZATION,))
    by_layer = yield Proposal((ONE_LENGTH,))
    if scene.learns and not any(made is not None and made.meets_goal for made in (by_channel, by_layer)):
        yield Proposal((QUANTIZATION.model_copy(update={"training": RecoveryTraining()}),))


def _winograd(scene: Scene) -> Proposals:
    """Winograd convolutions with all positions, then with as few as half of the accuracy allows, or all of it."""
    if not scene.can("prune_winograd"):
        return
    drop = scene.goal.max_accuracy_drop_pp
    step = PruneWinograd(kind="prune_winograd", select="count", count=0)
    for tile in _TILES:
        yield Proposal((step.model_copy(update={"tile": tile}),), predicted_drop_pp=0.0)
    for training in (None, WinogradTraining()) if scene.learns else (None,):
        for tile in _TILES:
            for allowed in (drop / 2, drop):
                step = PruneWinograd(
                    kind="prune_winograd", tile=tile, saves="time", max_drop_pp=allowed, training=training
                )
                yield Proposal((step,))


def _pruned(scene: Scene) -> Proposals:
    if not scene.can("prune_weights"):
        return
    drop = scene.goal.max_accuracy_drop_pp
    prune = PruneWeights(kind="prune_weights", max_drop_pp=drop) if drop else None
    if prune is not None:
        yield Proposal((prune,), predicted_drop_pp=drop)
        for share in SAFER_SHARES if scene.confirms else ():
            yield Proposal((prune.model_copy(update={"max_drop_pp": share * drop}),), predicted_drop_pp=share * drop)
    if prune is not None and scene.learns:
        further = prune.model_copy(update={"max_drop_pp": min(100.0, 3 * drop)})
        yield Proposal((further, Finetune(kind="finetune", learning_rate=0.001)))


# ---- Mixed widths ----------------------------------------------------------------------------------------------------


def _mixed_widths(scene: Scene) -> Proposals:
    """8 bits, then the narrowest allocation that holds the accuracy, without training and with it; last method Q's own."""
    yield Proposal((QUANTIZATION,))
    predictor = Predictor(scene.bench, scene.goal, scene.folder, scene.check_time)
    ladder = predictor.ladder()
    drop = scene.goal.max_accuracy_drop_pp
    place = _narrowest_within(drop, ladder, predictor)
    predicted = [predictor.known_drop_of(bits) for bits in ladder]
    place = yield from _furthest(ladder, place, QUANTIZATION, scene, predicted=predicted)
    if scene.confirms:
        yield from _safer(ladder, place, predictor, drop)
    if scene.learns:
        # Training makes up for some of what is lost beyond.
        trained = QUANTIZATION.model_copy(update={"training": RecoveryTraining()})
        yield from _furthest(ladder, place + 1, trained, scene, lowest=place + 1, predicted=predicted)
        assign = AssignPrecision(kind="assign_precision", bits=(8, 4, 2), max_drop_pp=drop, controls=0)
        yield Proposal((assign, QUANTIZATION))


def _safer(ladder: list[Bits], place: int, predictor: Predictor, drop: float) -> Proposals:
    """Allocations before `place` that are predicted to cost only a part of the limit.

    They are tried whatever the confirming images say, who have no say before the end.
    """
    for share in SAFER_SHARES:
        safer = _narrowest_within(share * drop, ladder, predictor)
        if 0 < safer < place:
            step = QUANTIZATION.model_copy(update={"layer_bits": ladder[safer]})
            yield Proposal((step,), predictor.known_drop_of(ladder[safer]))


def _furthest(
    ladder: list[Bits],
    start: int,
    form: QuantizeFixedPoint,
    scene: Scene,
    *,
    lowest: int = 0,
    predicted: Sequence[float | None] | None = None,
) -> Generator[Proposal, Candidate | None, int]:
    """Try the allocation at `start` in that form, go on while it holds the accuracy, else back; returns the last that did.

    Those before `lowest` are not tried; `predicted` has the drop that each place of the ladder was predicted to cost.
    """
    low, high, place, stride = lowest, len(ladder) - 1, start, max(1, len(ladder) // 16)
    while low <= high:
        step = form.model_copy(update={"layer_bits": ladder[place]})
        made = yield Proposal((step,), None if predicted is None else predicted[place])
        if made is not None and made.drop_bound_pp <= scene.goal.max_accuracy_drop_pp:
            low = place + 1
        else:
            high = place - 1
        # Strides grow until both ends are known, and then the rest is halved.
        if high == len(ladder) - 1:
            place, stride = min(high, place + stride), 2 * stride
        elif low == lowest:
            place, stride = max(lowest, place - stride), 2 * stride
        else:
            place = (low + high) // 2
    return low - 1


def _narrowest_within(drop: float, ladder: list[Bits], predictor: Predictor) -> int:
    """The place of the last allocation that is predicted to cost no more than `drop` percentage points."""
    return _narrowest(len(ladder), lambda number: predictor.drop_of(ladder[number]) <= drop)


def _narrowest(count: int, holds: Callable[[int], bool]) -> int:
    """The last of `count` places, from 0, that holds, if those before it do; 0 where none does."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
