"""What is tried for a goal, and in which order; what comes of it is scripted here."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs.eligibility import SEARCHED_KINDS
from jobs.inspection import Eligibility, LayerInfo, ModelInspection
from jobs.recipe import PruneWeights, PruneWinograd, QuantizeFixedPoint
from jobs.report import Candidate
from jobs.request import Goal
from workers.bench import Bench
from workers.search.predictor import QUANTIZATION
from workers.search.proposals import Proposal, Proposals, Scene, _furthest, proposals


def scene(kinds: tuple[str, ...], *, learns: bool = False, runtime: str = "onnxruntime", **goal: Any) -> Scene:
    layer = LayerInfo(
        name="conv", kind="conv2d", weight_shape=(8, 3, 3, 3), output_shape=(8, 8, 8), parameters=216, macs=13_824,
        steps={kind: Eligibility(eligible=kind in kinds, reason=None) for kind in SEARCHED_KINDS},
    )  # fmt: skip
    inspection = ModelInspection(
        format="onnx", inputs=(), outputs=(), batch_size=None, classes=10, parameters=216, macs=13_824, layers=(layer,),
        operators={},
    )  # fmt: skip
    bench = cast("Bench", SimpleNamespace(parts={"train": 1, "selection": 1} if learns else {"selection": 1}))
    return Scene(Goal.model_validate(goal), runtime, inspection, bench, lambda _: None, Path("nowhere"))


def came_to(drop: float) -> Candidate:
    return Candidate(
        number=1, recipe=[], predicted_drop_pp=None, drop_pp=drop, drop_bound_pp=drop, bytes=1, latency_ms=1.0, operations=1,
        seconds=1.0, meets_goal=drop <= 1.0,
    )  # fmt: skip


def asked(given: Proposals, answer: Callable[[Proposal], Candidate | None]) -> list[Proposal]:
    found = []
    try:
        proposal = next(given)
        while True:
            found.append(proposal)
            proposal = given.send(answer(proposal))
    except StopIteration:
        return found


@pytest.mark.parametrize("size", [1, 2, 17, 80])
def test_ladder_is_climbed_to_its_last_place_that_holds_from_wherever_it_starts(size: int) -> None:
    ladder = [{"conv": place} for place in range(size)]
    for last in range(-1, size):
        for start in {0, size // 2, size - 1}:
            tried: list[int] = []

            def answer(proposal: Proposal, last: int = last, tried: list[int] = tried) -> Candidate:
                (step,) = proposal.recipe
                assert isinstance(step, QuantizeFixedPoint)
                tried.append(step.layer_bits["conv"])
                return came_to(0.5 if tried[-1] <= last else 2.0)

            climbed = _furthest(ladder, start, QUANTIZATION, scene(("quantize_fixed_point",)))
            asked(climbed, answer)  # type: ignore[arg-type]  # it returns the place, too
            assert max((place for place in tried if place <= last), default=-1) == last
            assert len(tried) == len(set(tried)) <= 14


def test_places_known_to_hold_are_not_tried_again() -> None:
    ladder = [{"conv": place} for place in range(20)]
    climbed = _furthest(ladder, 12, QUANTIZATION, scene(()), lowest=10)
    tried = [proposal.recipe[0] for proposal in asked(climbed, lambda _: came_to(2.0))]  # type: ignore[arg-type]
    places = [step.layer_bits["conv"] for step in tried if isinstance(step, QuantizeFixedPoint)]
    assert places[0] == 12
    assert min(places) == 10


def test_latency_in_onnxruntime_is_of_integers_and_retrained_only_where_they_lose_too_much() -> None:
    given = scene(("quantize_fixed_point",), learns=True, minimise="latency")
    assert len(asked(proposals(given), lambda _: came_to(0.1))) == 2
    steps = [proposal.recipe[0] for proposal in asked(proposals(given), lambda _: came_to(3.0))]
    assert [isinstance(step, QuantizeFixedPoint) and step.training is not None for step in steps] == [
        False,
        False,
        True,
    ]
    lengths = [step.activation_lengths for step in steps if isinstance(step, QuantizeFixedPoint)]
    assert lengths == ["per_channel", "per_layer", "per_channel"]


@pytest.mark.parametrize(("learns", "count"), [(False, 6), (True, 10)])
def test_latency_in_torch_is_of_winograd_convolutions(learns: bool, count: int) -> None:
    given = scene(("prune_winograd",), learns=learns, runtime="torch", minimise="latency", max_accuracy_drop_pp=2.0)
    tried = [proposal.recipe[0] for proposal in asked(proposals(given), lambda _: None)]
    assert len(tried) == count
    assert all(isinstance(step, PruneWinograd) for step in tried)
    assert isinstance(tried[0], PruneWinograd)
    assert tried[0].count == 0


def test_latency_in_torch_is_of_integers_too_and_of_them_alone_where_a_file_is_written_of_nothing_else() -> None:
    given = scene(("prune_winograd", "quantize_fixed_point"), runtime="torch", minimise="latency")
    kinds = [proposal.recipe[0].kind for proposal in asked(proposals(given), lambda _: came_to(0.1))]
    assert kinds == ["quantize_fixed_point"] * 2 + ["prune_winograd"] * 6
    alone = asked(proposals(replace(given, wants_integers=True)), lambda _: came_to(0.1))
    assert [proposal.recipe[0].kind for proposal in alone] == ["quantize_fixed_point"] * 2


def test_networks_that_integers_cannot_do_are_pruned() -> None:
    given = scene(("prune_weights",), learns=True, minimise="bytes")
    kinds = [[step.kind for step in proposal.recipe] for proposal in asked(proposals(given), lambda _: None)]
    assert kinds == [["prune_weights"], ["prune_weights", "finetune"]]


class ForeseenPredictor:
    """Twenty allocations, each of which costs a tenth of a point more than the one before."""

    def __init__(self, *_: object) -> None:
        self.asked: set[int] = set()

    def ladder(self) -> list[dict[str, int]]:
        return [{"conv": place} for place in range(20)]

    def drop_of(self, bits: dict[str, int]) -> float:
        self.asked.add(bits["conv"])
        return 0.1 * bits["conv"]

    def known_drop_of(self, bits: dict[str, int]) -> float | None:
        return self.drop_of(bits) if bits["conv"] in self.asked else None


@pytest.mark.parametrize("confirms", [False, True])
def test_safer_allocations_are_tried_too_where_the_choice_may_be_refused(
    monkeypatch: pytest.MonkeyPatch, confirms: bool
) -> None:
    monkeypatch.setattr("workers.search.proposals.Predictor", ForeseenPredictor)
    given = replace(scene(("quantize_fixed_point",), minimise="bytes"), confirms=confirms)

    def answer(proposal: Proposal) -> Candidate:
        (step,) = proposal.recipe
        assert isinstance(step, QuantizeFixedPoint)
        return came_to(0.1 * step.layer_bits.get("conv", 0))

    tried = asked(proposals(given), answer)
    places = [
        step.layer_bits.get("conv")
        for (step,) in (each.recipe for each in tried)
        if isinstance(step, QuantizeFixedPoint)
    ]
    assert max(place for place in places if place is not None and 0.1 * place <= 1.0) == 10
    if confirms:
        assert places[-2:] == [5, 2]
        assert [each.predicted_drop_pp for each in tried[-2:]] == pytest.approx([0.5, 0.2])
    else:
        assert not {5, 2} & set(places)


def test_pruning_is_tried_for_parts_of_the_limit_too_where_the_choice_may_be_refused() -> None:
    given = replace(scene(("prune_weights",), minimise="bytes", max_accuracy_drop_pp=2.0), confirms=True)
    steps = [proposal.recipe[0] for proposal in asked(proposals(given), lambda _: None)]
    assert [step.max_drop_pp for step in steps if isinstance(step, PruneWeights)] == [2.0, 1.0, 0.5]


def test_nothing_is_proposed_where_nothing_can_be_done() -> None:
    for minimise in ("bytes", "latency", "operations"):
        for runtime in ("onnxruntime", "torch"):
            assert asked(proposals(scene((), minimise=minimise, runtime=runtime)), lambda _: None) == []
