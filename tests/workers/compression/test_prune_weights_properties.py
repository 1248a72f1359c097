"""What holds for method P whatever its options: searched by hypothesis over the recipe's whole schema."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.recipe import PruneWeights
from workers.compression.examples import Examples
from workers.compression.prune_weights import prune_weights
from workers.compression.pruning_log import PruneResult
from workers.compression.suffix_evaluator import SuffixEvaluator
from workers.models.graph import ModelGraph

OPTIONS = st.fixed_dictionaries(
    {
        "max_drop_pp": st.sampled_from([0.01, 1.0, 2.5, 10.0, 100.0]),
        "reference": st.sampled_from(["baseline", "layer_start", "progressive"]),
        "rounds": st.none() | st.integers(1, 3),
        "steps_per_round": st.integers(1, 3),
        "scope": st.sampled_from(["layer", "global"]),
        "distribution": st.sampled_from(["normal", "empirical"]),
        "first_rate": st.sampled_from([0.01, 0.1, 0.5, 0.9]),
        "rate_step": st.sampled_from([0.05, 0.1, 0.3]),
        "max_rate": st.sampled_from([0.9, 0.99]),
        "center": st.booleans(),
        "keep_crossing": st.booleans(),
        "keep_channel": st.booleans(),
        "stop": st.fixed_dictionaries(
            {
                "layers": st.none() | st.integers(1, 4),
                "target_accuracy": st.none() | st.sampled_from([50.0, 88.0, 91.0, 100.0]),
                "target_sparsity": st.none() | st.sampled_from([0.05, 0.5, 0.95]),
            }
        ),
        "exclude": st.sets(st.sampled_from(["conv1", "conv2"])).map(tuple),
        "cache_mib": st.sampled_from([0, 1]),
    }
)
SETTINGS = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def run(
    graph: ModelGraph, examples: Examples, options: dict[str, Any], probing: str
) -> tuple[PruneWeights, PruneResult]:
    step = PruneWeights.model_validate({"kind": "prune_weights", "probing": probing, **options})
    result = prune_weights(
        graph,
        step,
        evaluator_of=lambda start: SuffixEvaluator(start, examples, cache_mib=step.cache_mib),
        on_progress=lambda *_: None,
    )
    return step, result


def zeros(tensor: torch.Tensor) -> int:
    return int((tensor == 0).sum())


@given(options=OPTIONS)
@SETTINGS
def test_the_result_keeps_every_promise(
    small_network: ModelGraph, examples_of: Callable[..., Examples], options: dict[str, Any]
) -> None:
    examples = examples_of(small_network, count=120, wrong=12)
    step, result = run(small_network, examples, options, "race")
    before, after = small_network.module.state_dict(), result.graph.module.state_dict()

    pruned_layers = {layer.layer for layer in result.layers}
    assert pruned_layers == {"conv1", "conv2", "fc"} - set(step.exclude)
    for name, tensor in after.items():
        kept = tensor != 0
        assert torch.equal(tensor[kept], before[name][kept])
        assert torch.equal(tensor, before[name]) or name.removesuffix(".weight") in pruned_layers

    assert sum(layer.zeros for layer in result.layers) == sum(zeros(after[f"{name}.weight"]) for name in pruned_layers)
    recounted = SuffixEvaluator(result.graph, examples, cache_mib=0).correct
    assert recounted == round(result.accuracy_after * result.images / 100)

    turns = [(done.round, done.subject) for done in result.iterations]
    assert len(turns) == len(set(turns))
    assert turns == sorted(turns, key=lambda turn: turn[0])
    for done in result.iterations:
        assert all(one.threshold <= other.threshold for one, other in pairwise(done.trials))
        assert all(one.realised_rate <= other.realised_rate for one, other in pairwise(done.trials))
    if step.stop.layers is not None:
        assert all(sum(turn[0] == done.round for turn in turns) <= step.stop.layers for done in result.iterations)
    if step.stop.target_accuracy is not None and result.accuracy_before >= step.stop.target_accuracy:
        assert result.accuracy_after >= step.stop.target_accuracy
    if not step.keep_crossing and step.reference != "layer_start":
        assert result.accuracy_before - result.accuracy_after < step.max_drop_pp
    if result.ended_because == "target_sparsity":
        assert step.stop.target_sparsity is not None
        assert result.sparsity >= step.stop.target_sparsity
    if step.keep_channel:
        for name in pruned_layers:
            assert bool((after[f"{name}.weight"].flatten(1) != 0).any(dim=1).all())


@given(options=OPTIONS)
@SETTINGS
def test_racing_decides_as_probing_in_full_does(
    small_network: ModelGraph, examples_of: Callable[..., Examples], options: dict[str, Any]
) -> None:
    examples = examples_of(small_network, count=120, wrong=12)
    _, race = run(small_network, examples, options, "race")
    _, full = run(small_network, examples, options, "full")
    assert race.ended_because == full.ended_because
    for raced, whole in zip(race.iterations, full.iterations, strict=True):
        assert (raced.subject, raced.accepted_rate, raced.accuracy) == (
            whole.subject,
            whole.accepted_rate,
            whole.accuracy,
        )
        assert raced.ended_because == whole.ended_because
        assert [trial.accepted for trial in raced.trials] == [trial.accepted for trial in whole.trials]
    state = full.graph.module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in race.graph.module.state_dict().items())
