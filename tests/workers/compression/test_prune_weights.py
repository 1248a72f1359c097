"""Method P against docs/methods.md: each claim element has a test named after it, P-1 and P-2 in test_thresholds.py."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jobs.errors import RecipeRefused
from jobs.recipe import PruneWeights, Stop
from tests.workers.compression.scripted_evaluator import DropOf, ScriptedEvaluator
from tests.workers.networks import graph_of
from workers.compression.examples import Examples
from workers.compression.prune_weights import prune_weights
from workers.compression.pruning_log import PruneResult
from workers.compression.suffix_evaluator import SuffixEvaluator
from workers.datasets.splits import sample_per_class
from workers.models.graph import ModelGraph, layers, parameter
from workers.models.read_pt2 import read_pt2

COSTS = {"A": 4.0, "B": 1.0, "C": 9.0}


def quadratic_drop(rates: dict[str, float]) -> float:
    """Vector C.3: the accuracy lost is the sum of c * p^2, in percentage points."""
    return sum(COSTS[layer] * rate**2 for layer, rate in rates.items())


def vector_step(**options: Any) -> PruneWeights:
    """The options of vector C.3. Its rates go up to 1.0, which recipes do not permit, hence the unchecked copy."""
    given = {
        "kind": "prune_weights",
        "first_rate": 0.1,
        "rate_step": 0.1,
        "max_drop_pp": 1.0,
        "distribution": "empirical",
        "scope": "layer",
        "reference": "baseline",
        "rounds": 1,
        **options,
    }
    step = PruneWeights.model_validate(given)
    return step.model_copy(update={"max_rate": 1.0})


def run_scripted(
    graph: ModelGraph, step: PruneWeights, drop_of: DropOf = quadratic_drop
) -> tuple[PruneResult, ScriptedEvaluator]:
    evaluators: list[ScriptedEvaluator] = []

    def evaluator_of(start: ModelGraph) -> ScriptedEvaluator:
        evaluators.append(ScriptedEvaluator(start, drop_of))
        return evaluators[0]

    result = prune_weights(graph, step, evaluator_of=evaluator_of, on_progress=lambda *_: None)
    return result, evaluators[0]


def run_measured(graph: ModelGraph, examples: Examples, step: PruneWeights) -> PruneResult:
    return prune_weights(
        graph,
        step,
        evaluator_of=lambda start: SuffixEvaluator(start, examples, cache_mib=step.cache_mib),
        on_progress=lambda *_: None,
    )


def weights_of(graph: ModelGraph) -> dict[str, torch.Tensor]:
    return {layer.name: parameter(graph, layer.weight).detach() for layer in layers(graph)}


def outcome(result: PruneResult) -> list[tuple[Any, ...]]:
    """What a search decided, without how it found out."""
    return [
        (done.subject, done.accepted_rate, done.accuracy, done.ended_because, [trial.rate for trial in done.trials])
        for done in result.iterations
    ]


@pytest.mark.parametrize(
    ("reference", "rates", "trials", "final_drop"),
    [
        ("baseline", {"B": 0.9, "A": 0.2, "C": 0.0}, [10, 3, 1], 0.97),
        ("layer_start", {"B": 0.9, "A": 0.4, "C": 0.3}, [10, 5, 4], 2.26),
        # The limits are 1/3, 2/3 and 1: B 0.5 (0.25), A 0.3 (0.61), C 0.2 (0.97).
        ("progressive", {"B": 0.5, "A": 0.3, "C": 0.2}, [6, 4, 3], 0.97),
    ],
)
def test_p5_subject_is_the_layer_of_lowest_sensitivity_as_in_vector_c3(
    three_layers: ModelGraph, reference: str, rates: dict[str, float], trials: list[int], final_drop: float
) -> None:
    result, _ = run_scripted(three_layers, vector_step(reference=reference))
    assert {done.subject: done.accepted_rate for done in result.iterations} == rates
    assert [done.subject for done in result.iterations] == ["B", "A", "C"]
    assert [len(done.trials) for done in result.iterations] == trials
    assert -result.measured_change_pp == pytest.approx(final_drop, abs=1e-9)


def test_progressive_limits_grow_with_the_weights_that_have_had_their_turn() -> None:
    network = nn.Sequential(nn.Linear(10, 30), nn.Linear(30, 20), nn.Linear(20, 5))  # 300, 600 and 100 weights
    result, _ = run_scripted(graph_of(network, torch.zeros(1, 10)), vector_step(reference="progressive"), lambda _: 0.0)
    limits = {done.subject: done.allowed_drop_pp for done in result.iterations}
    assert limits == {"1": 0.6, "0": 0.9, "2": 1.0}


@pytest.mark.parametrize(
    ("reference", "limits"),
    [
        ("baseline", [0.5, 0.5, 0.5, 1.0, 1.0, 1.0]),
        ("layer_start", [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ("progressive", [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0]),
    ],
)
def test_each_round_may_spend_an_equal_part_of_the_budget(
    three_layers: ModelGraph, reference: str, limits: list[float]
) -> None:
    result, _ = run_scripted(three_layers, vector_step(reference=reference, rounds=2), lambda _: 0.0)
    assert [done.allowed_drop_pp for done in result.iterations[:6]] == pytest.approx(limits)


def test_a_round_goes_on_from_the_rates_that_the_last_one_left(three_layers: ModelGraph) -> None:
    """Totals of sum c * p^2 stay below 1/6, 2/6, 3/6 in the first round, and below 4/6, 5/6, 1 in the second."""
    step = vector_step(reference="progressive", rounds=2, steps_per_round=1000)
    result, _ = run_scripted(three_layers, step)
    assert [(done.round, done.subject, done.accepted_rate) for done in result.iterations] == [
        (1, "B", 0.4),  # 0.16
        (1, "A", 0.2),  # 0.32
        (1, "C", 0.1),  # 0.41
        (2, "B", 0.6),  # 0.61
        (2, "A", 0.3),  # 0.81
        (2, "C", 0.1),  # 0.2 would make it 1.08
    ]
    second = {found.layer: found.drop_pp for found in result.iterations[3].sensitivities if found.is_exact}
    assert second["B"] == pytest.approx(0.5**2 - 0.4**2)
    assert [done.trials[0].rate for done in result.iterations[3:]] == [0.5, 0.3, 0.2]


def test_a_layer_is_raised_by_a_set_number_of_steps_in_each_round(three_layers: ModelGraph) -> None:
    result, _ = run_scripted(three_layers, vector_step(rounds=5, steps_per_round=2), lambda _: 0.0)
    assert [done.accepted_rate for done in result.iterations] == [0.2] * 3 + [0.4] * 3 + [0.6] * 3 + [0.8] * 3 + [
        1.0
    ] * 3
    assert [done.ended_because for done in result.iterations] == ["steps_per_round"] * 12 + ["max_rate"] * 3


def test_layers_that_are_still_rising_after_the_last_round_go_on_up_to_the_whole_budget(
    three_layers: ModelGraph,
) -> None:
    step = vector_step(reference="progressive", rounds=2, steps_per_round=2)
    result, _ = run_scripted(three_layers, step, lambda rates: 9 * rates["C"] ** 2)
    assert [(done.round, done.subject, done.accepted_rate) for done in result.iterations] == [
        (1, "A", 0.2),
        (1, "B", 0.2),
        (1, "C", 0.2),  # 0.36 of 0.5
        (2, "A", 0.4),
        (2, "B", 0.4),
        (2, "C", 0.3),  # 0.81 of 1; 0.4 fails, so C is done
        (3, "A", 0.6),
        (3, "B", 0.6),
        (4, "A", 0.8),
        (4, "B", 0.8),
        (5, "A", 1.0),
        (5, "B", 1.0),
    ]
    assert result.iterations[-1].allowed_drop_pp == 1.0
    assert result.ended_because == "all_layers"


def test_one_round_alone_raises_a_layer_as_far_as_accuracy_permits(three_layers: ModelGraph) -> None:
    result, _ = run_scripted(three_layers, vector_step(rounds=1, steps_per_round=1), lambda _: 0.0)
    assert [(done.round, done.accepted_rate) for done in result.iterations] == [(1, 1.0)] * 3


def test_layers_at_the_highest_rate_take_no_part_in_later_rounds(three_layers: ModelGraph) -> None:
    step = vector_step(rounds=3, steps_per_round=1000)
    result, _ = run_scripted(three_layers, step, lambda rates: rates["C"])
    assert [(done.round, done.subject) for done in result.iterations if done.ended_because == "max_rate"] == [
        (1, "A"),
        (1, "B"),
    ]
    assert [len(done.sensitivities) for done in result.iterations if done.round > 1] == [1, 1]


def test_rules_about_the_result_end_all_rounds_and_the_number_of_layers_ends_each(three_layers: ModelGraph) -> None:
    by_sparsity, _ = run_scripted(three_layers, vector_step(rounds=3, stop=Stop(target_sparsity=0.1)))
    assert (by_sparsity.ended_because, by_sparsity.iterations[-1].round) == ("target_sparsity", 1)
    by_layers, _ = run_scripted(three_layers, vector_step(rounds=3, steps_per_round=1000, stop=Stop(layers=1)))
    assert [done.round for done in by_layers.iterations] == [1, 2, 3]


@pytest.mark.parametrize(("budget", "rounds"), [(0.1, 1), (0.25, 1), (0.3, 2), (0.5, 2), (1.0, 4), (2.0, 8), (40.0, 8)])
def test_there_is_a_round_for_every_quarter_of_a_percentage_point_up_to_eight(budget: float, rounds: int) -> None:
    assert PruneWeights(kind="prune_weights", max_drop_pp=budget).rounds_to_run == rounds
    assert PruneWeights(kind="prune_weights", max_drop_pp=budget, rounds=3).rounds_to_run == 3


def test_p3_sensitivity_is_the_accuracy_before_pruning_a_layer_less_the_accuracy_after(
    three_layers: ModelGraph,
) -> None:
    result, _ = run_scripted(three_layers, vector_step(probing="full"))
    first = {found.layer: found.drop_pp for found in result.iterations[0].sensitivities}
    assert first == pytest.approx({"A": 0.04, "B": 0.01, "C": 0.09}, abs=1e-9)


def test_p3_probing_leaves_the_network_as_it_is(
    small_network: ModelGraph, examples_of: Callable[..., Examples]
) -> None:
    before = {name: tensor.clone() for name, tensor in small_network.module.state_dict().items()}
    evaluator = SuffixEvaluator(small_network, examples_of(small_network), cache_mib=1)
    for layer in layers(small_network):
        evaluator.probe(layer, torch.zeros(layer.weight_shape), at_least=0)
    after = small_network.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    some = layers(small_network)[1]
    same = evaluator.probe(some, parameter(small_network, some.weight), at_least=0)
    assert (same.correct, same.lost, same.gained) == (evaluator.correct, 0, 0)


def test_p4_pruning_data_are_a_set_number_drawn_at_random_from_each_class() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(7), 40))
    drawn = sample_per_class(labels, 11, seed=3)
    assert np.bincount(labels[drawn]).tolist() == [11] * 7
    assert len(set(drawn.tolist())) == 77
    assert np.array_equal(drawn, sample_per_class(labels, 11, seed=3))
    assert not np.array_equal(drawn, sample_per_class(labels, 11, seed=4))


def test_p6_only_the_subject_is_pruned_and_every_weight_below_the_threshold_is_zero(three_layers: ModelGraph) -> None:
    result, _ = run_scripted(three_layers, vector_step(stop=Stop(layers=1)))
    before, after = weights_of(three_layers), weights_of(result.graph)
    (done,) = result.iterations
    threshold = [trial.threshold for trial in done.trials if trial.accepted][-1]
    assert torch.equal(after["B"] == 0, before["B"].abs() < threshold)
    assert torch.equal(before["A"], after["A"])
    assert torch.equal(before["C"], after["C"])


def test_p7_the_same_layer_is_pruned_again_without_a_new_selection_until_accuracy_has_fallen(
    three_layers: ModelGraph,
) -> None:
    _, evaluator = run_scripted(three_layers, vector_step(stop=Stop(layers=1)))
    probed = [(call.layer, round(call.zeros, 3)) for call in evaluator.calls if call.what == "probe"]
    assert sorted(layer for layer, _ in probed[:3]) == ["A", "B", "C"]
    # The first trial is the probe that won the selection.
    assert probed[3:] == [("B", round(0.1 * k, 3)) for k in range(2, 11)]


@pytest.mark.parametrize("distribution", ["normal", "empirical"])
def test_p8_thresholds_rise_and_zeros_are_nested(three_layers: ModelGraph, distribution: str) -> None:
    result, evaluator = run_scripted(three_layers, vector_step(distribution=distribution, probing="full"))
    for done in result.iterations:
        assert all(one.threshold < other.threshold for one, other in pairwise(done.trials))
        masks = [call.is_zero for call in evaluator.calls if call.what == "probe" and call.layer == done.subject]
        assert all(bool(more[fewer].all()) for fewer, more in pairwise(masks))


def test_p9_a_pruned_layer_is_never_probed_again_in_its_round(three_layers: ModelGraph) -> None:
    result, evaluator = run_scripted(three_layers, vector_step())
    done: set[str] = set()
    for call in evaluator.calls:
        if call.what == "accept":
            done.add(call.layer)
        elif call.what == "probe":
            assert call.layer not in done
    assert [len(iteration.sensitivities) for iteration in result.iterations] == [3, 2, 1]


def test_p10_pruning_ends_after_the_set_number_of_layers_or_after_all(three_layers: ModelGraph) -> None:
    two, _ = run_scripted(three_layers, vector_step(stop=Stop(layers=2)))
    every, _ = run_scripted(three_layers, vector_step())
    assert ([done.subject for done in two.iterations], two.ended_because) == (["B", "A"], "layers")
    assert (len(every.iterations), every.ended_because) == (3, "all_layers")


@pytest.mark.parametrize("target", [99.19, 99.5, 99.9])
@pytest.mark.parametrize("keep_crossing", [False, True])
def test_p11_accuracy_never_falls_below_the_target(
    three_layers: ModelGraph, target: float, keep_crossing: bool
) -> None:
    step = vector_step(stop=Stop(target_accuracy=target), keep_crossing=keep_crossing)
    result, _ = run_scripted(three_layers, step)
    assert result.accuracy_after >= target


def test_p11_pruning_ends_when_the_target_accuracy_is_met(three_layers: ModelGraph) -> None:
    # B at 0.9 costs 0.81, exactly down to the target.
    result, _ = run_scripted(three_layers, vector_step(stop=Stop(target_accuracy=99.19)))
    assert result.ended_because == "target_accuracy"
    assert [done.subject for done in result.iterations] == ["B"]
    assert result.accuracy_after == pytest.approx(99.19)


def test_p12_nothing_is_trained_and_unpruned_weights_keep_their_bits(
    small_network: ModelGraph, examples_of: Callable[..., Examples], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("method P must not train")

    monkeypatch.setattr(torch.optim.Optimizer, "__init__", refuse)
    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    before = {name: tensor.clone() for name, tensor in small_network.module.state_dict().items()}
    result = run_measured(small_network, examples_of(small_network), PruneWeights(kind="prune_weights", max_drop_pp=20))
    assert result.sparsity > 0.1
    for name, tensor in result.graph.module.state_dict().items():
        kept = tensor != 0
        assert torch.equal(tensor[kept], before[name][kept])
        assert bool(kept.all()) or name in {f"{layer.layer}.weight" for layer in result.layers}


def test_p13_the_pruned_network_classifies_a_captured_image_from_its_file(
    small_network: ModelGraph, examples_of: Callable[..., Examples], tmp_path: Path
) -> None:
    result = run_measured(small_network, examples_of(small_network), PruneWeights(kind="prune_weights", max_drop_pp=5))
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    file = tmp_path / "pruned.pt2"
    torch.export.save(torch.export.export(result.graph.module, (image,)), file)
    (scores,) = read_pt2(file)(image)
    assert scores.shape == (1, 10)
    assert int(scores.argmax()) == int(result.graph(image)[0].argmax())


def test_the_uploaded_graph_is_not_changed(three_layers: ModelGraph) -> None:
    before = {name: tensor.clone() for name, tensor in three_layers.module.state_dict().items()}
    result, _ = run_scripted(three_layers, vector_step())
    assert result.sparsity > 0
    after = three_layers.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_ties_go_to_more_weights_and_then_to_the_earlier_layer() -> None:
    network = nn.Sequential(nn.Linear(8, 10), nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 4))
    graph = graph_of(network, torch.zeros(1, 8))
    for probing in ("race", "full", "lazy"):
        step = vector_step(probing=probing).model_copy(update={"max_rate": 0.2})
        result, _ = run_scripted(graph, step, lambda _: 0.0)
        assert [done.subject for done in result.iterations] == ["1", "2", "0", "3"]


def test_kept_crossing_spends_the_budget_once_and_ends(three_layers: ModelGraph) -> None:
    result, _ = run_scripted(three_layers, vector_step(keep_crossing=True))
    assert [(done.subject, done.accepted_rate) for done in result.iterations] == [("B", 1.0)]
    assert result.ended_because == "budget_spent"
    assert -result.measured_change_pp == pytest.approx(1.0)


def test_target_sparsity_ends_pruning_as_soon_as_it_is_reached(three_layers: ModelGraph) -> None:
    result, _ = run_scripted(three_layers, vector_step(stop=Stop(target_sparsity=0.25)))
    assert result.ended_because == "target_sparsity"
    assert result.iterations[-1].ended_because == "target_sparsity"
    assert result.sparsity == pytest.approx(0.8 / 3)
    assert result.warnings == ()


def test_a_target_sparsity_out_of_reach_is_said(three_layers: ModelGraph) -> None:
    result, _ = run_scripted(three_layers, vector_step(stop=Stop(target_sparsity=0.9)))
    assert result.ended_because == "all_layers"
    assert "target sparsity of 0.9 was not reached" in result.warnings[0]


def test_excluded_layers_stay_as_they_are_and_say_why(three_layers: ModelGraph) -> None:
    result, evaluator = run_scripted(three_layers, vector_step(exclude=("B",)))
    assert torch.equal(weights_of(result.graph)["B"], weights_of(three_layers)["B"])
    assert "B" not in {call.layer for call in evaluator.calls}
    assert result.skipped == {"B": "the recipe excludes it"}
    assert [layer.layer for layer in result.layers] == ["A", "C"]


def test_an_unknown_excluded_layer_is_refused_by_name(three_layers: ModelGraph) -> None:
    with pytest.raises(RecipeRefused, match="no layer called 'D'"):
        run_scripted(three_layers, vector_step(exclude=("D",)))


def test_a_model_without_prunable_layers_is_refused(three_layers: ModelGraph) -> None:
    with pytest.raises(RecipeRefused, match="No layer of this model can be pruned"):
        run_scripted(three_layers, vector_step(exclude=("A", "B", "C")))


def test_constant_and_tiny_layers_are_skipped() -> None:
    constant = nn.Linear(20, 20)
    nn.init.constant_(constant.weight, 0.5)
    network = nn.Sequential(constant, nn.Linear(20, 3), nn.Linear(3, 4))
    result, _ = run_scripted(graph_of(network, torch.zeros(1, 20)), vector_step(), lambda _: 0.0)
    assert [layer.layer for layer in result.layers] == ["1"]
    assert set(result.skipped) == {"0", "2"}


def test_weights_shared_by_two_nodes_are_one_layer(examples_of: Callable[..., Examples]) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = nn.Conv2d(4, 4, 3, padding=1)
            self.last = nn.Linear(4 * 36, 5)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            features = self.twice(torch.relu(self.twice(image)))
            result: torch.Tensor = self.last(features.flatten(1))
            return result

    torch.manual_seed(0)
    graph = graph_of(Shared().eval(), torch.zeros(1, 4, 6, 6))
    examples = examples_of(graph)
    result = run_measured(graph, examples, PruneWeights(kind="prune_weights", max_drop_pp=10))
    assert sorted(layer.layer for layer in result.layers) == ["last", "twice"]
    # What the search believed is what the delivered network does, with the weights pruned at both places.
    assert correct_answers(result.graph, examples) == round(result.accuracy_after * result.images / 100)


def correct_answers(graph: ModelGraph, examples: Examples) -> int:
    with torch.inference_mode():
        scores = graph(examples.inputs(np.arange(len(examples))))[0]
    return int((scores.argmax(dim=1).numpy() == examples.targets).sum())


def test_a_depthwise_layer_is_pruned_like_any_other(examples_of: Callable[..., Examples]) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 7))
    graph = graph_of(network.eval(), torch.zeros(1, 6, 6, 6))
    result = run_measured(graph, examples_of(graph), PruneWeights(kind="prune_weights", max_drop_pp=30))
    assert {layer.layer: layer.zeros > 0 for layer in result.layers} == {"0": True, "3": True}


def test_keep_channel_leaves_a_weight_in_every_output_channel(three_layers: ModelGraph) -> None:
    result, _ = run_scripted(three_layers, vector_step(keep_channel=True), lambda _: 0.0)
    for weight in weights_of(result.graph).values():
        assert ((weight != 0).sum(dim=1) == 1).all()


def test_fold_before_prunes_the_folded_weights(small_network: ModelGraph, examples_of: Callable[..., Examples]) -> None:
    result = run_measured(
        small_network, examples_of(small_network), PruneWeights(kind="prune_weights", max_drop_pp=5, fold_before=True)
    )
    names = {str(node.target) for node in result.graph.module.graph.nodes}
    assert not any("batch_norm" in name for name in names)
    assert result.sparsity > 0


@pytest.mark.parametrize("seed", range(5))
def test_racing_comes_to_the_same_network_as_probing_every_image(
    small_network: ModelGraph, examples_of: Callable[..., Examples], seed: int
) -> None:
    examples = examples_of(small_network, count=300, wrong=30, seed=seed)
    options: dict[str, Any] = {"kind": "prune_weights", "max_drop_pp": 4.0, "first_rate": 0.05}
    race = run_measured(small_network, examples, PruneWeights(**options, probing="race"))
    full = run_measured(small_network, examples, PruneWeights(**options, probing="full"))
    assert outcome(race) == outcome(full)
    assert all(
        torch.equal(a, b) for a, b in zip(weights_of(race.graph).values(), weights_of(full.graph).values(), strict=True)
    )
    assert race.cost.multiply_adds < full.cost.multiply_adds
    assert full.cost.multiply_adds_saved_by_racing == 0


def test_a_raced_sensitivity_is_a_true_lower_bound(
    small_network: ModelGraph, examples_of: Callable[..., Examples]
) -> None:
    examples = examples_of(small_network, count=300, wrong=30)
    options: dict[str, Any] = {"kind": "prune_weights", "max_drop_pp": 4.0, "first_rate": 0.3}
    race = run_measured(small_network, examples, PruneWeights(**options, probing="race"))
    full = run_measured(small_network, examples, PruneWeights(**options, probing="full"))
    bounds = 0
    for raced, exact in zip(race.iterations, full.iterations, strict=True):
        for bound, drop in zip(raced.sensitivities, exact.sensitivities, strict=True):
            assert bound.drop_pp == drop.drop_pp if bound.is_exact else bound.drop_pp <= drop.drop_pp
            bounds += not bound.is_exact
    assert bounds > 0


def test_lazy_probing_measures_fewer_layers_and_says_which_are_old(three_layers: ModelGraph) -> None:
    lazy, few = run_scripted(three_layers, vector_step(probing="lazy"))
    race, many = run_scripted(three_layers, vector_step(probing="full"))
    assert outcome(lazy) == outcome(race)
    assert len(few.calls) < len(many.calls)
    assert [found.is_fresh for found in lazy.iterations[1].sensitivities] == [True, False]


@pytest.mark.parametrize("cache_mib", [0, 1, 1024])
def test_the_size_of_the_cache_changes_nothing_but_the_work(
    small_network: ModelGraph, examples_of: Callable[..., Examples], cache_mib: int
) -> None:
    examples = examples_of(small_network, count=700, wrong=50)
    options: dict[str, Any] = {"kind": "prune_weights", "max_drop_pp": 3.0}
    without = run_measured(small_network, examples, PruneWeights(**options, cache_mib=0))
    given = run_measured(small_network, examples, PruneWeights(**options, cache_mib=cache_mib))
    assert given.iterations == without.iterations
    assert given.cost.probes == without.cost.probes
    assert without.cost.multiply_adds_saved_by_cache == 0
    assert (given.cost.multiply_adds_saved_by_cache > 0) == (cache_mib > 0)


def test_the_log_says_what_was_measured(small_network: ModelGraph, examples_of: Callable[..., Examples]) -> None:
    examples = examples_of(small_network, count=300, wrong=20)
    result = run_measured(small_network, examples, PruneWeights(kind="prune_weights", max_drop_pp=3.0))
    assert result.images == 300
    assert result.accuracy_before == pytest.approx(100 * 280 / 300)
    assert result.measured_change_pp == pytest.approx(100 * (result.gained - result.lost) / 300)
    assert sum(done.measured_change_pp for done in result.iterations) == pytest.approx(result.measured_change_pp)
    for layer in result.layers:
        assert layer.zeros == int((weights_of(result.graph)[layer.layer] == 0).sum())
    details = result.as_details()
    assert details["sparsity"] == pytest.approx(result.sparsity)
    assert details["probing"]["probes"] == result.cost.probes


def test_a_mask_that_changes_nothing_costs_nothing(three_layers: ModelGraph) -> None:
    with torch.no_grad():
        parameter(three_layers, "B.weight")[:20].zero_()
    step = vector_step(first_rate=0.0005, rate_step=0.0001, distribution="empirical").model_copy(
        update={"max_rate": 0.0007}
    )
    result, evaluator = run_scripted(three_layers, step, lambda _: 0.0)
    # B has 500 nonzero weights: none is pruned at 0.05 %, while A and C lose one each time it is 0.5 of 1000 or more.
    assert not [call for call in evaluator.calls if call.what == "probe" and call.layer == "B"]
    assert result.reused_probes >= 3


def test_predicted_change_is_in_proportion_to_the_accepted_rate(three_layers: ModelGraph) -> None:
    result, _ = run_scripted(three_layers, vector_step(reference="layer_start"))
    # First order from the sensitivities at 0.1: B 0.01 * 9, A 0.04 * 4, C 0.09 * 3; the true drops are quadratic.
    assert [done.predicted_change_pp for done in result.iterations] == pytest.approx([-0.09, -0.16, -0.27])
    assert result.predicted_change_pp == pytest.approx(-0.52)


def test_one_image_more_than_the_budget_is_warned_of(
    small_network: ModelGraph, examples_of: Callable[..., Examples]
) -> None:
    result = run_measured(
        small_network,
        examples_of(small_network, count=50, wrong=0),
        PruneWeights(kind="prune_weights", max_drop_pp=1.0),
    )
    assert "One of the 50 pruning images is 2 percentage points" in result.warnings[0]
    assert result.accuracy_after >= result.accuracy_before - 1.0


def test_progress_rises_to_one(three_layers: ModelGraph) -> None:
    shares: list[float] = []
    prune_weights(
        three_layers,
        vector_step(),
        evaluator_of=lambda graph: ScriptedEvaluator(graph, quadratic_drop),
        on_progress=lambda share, _message, _figures: shares.append(share),
    )
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(("lost", "accepted"), [(2, True), (3, False)])
def test_a_drop_of_exactly_the_limit_is_too_much(three_layers: ModelGraph, lost: int, accepted: bool) -> None:
    """0.3 percentage points of 1000 images are 3 images; in floating point 100 * 3 / 1000 may fall on either side of 0.3."""
    result = prune_weights(
        three_layers,
        vector_step(max_drop_pp=0.3, stop=Stop(layers=1)),
        evaluator_of=lambda graph: ScriptedEvaluator(graph, lambda rates: lost / 10 * any(rates.values()), images=1000),
        on_progress=lambda *_: None,
    )
    assert result.iterations[0].trials[0].accepted is accepted
