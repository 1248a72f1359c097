"""Probing by suffixes gives the very answers of running the whole network, whatever its form."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.workers.networks import graph_of, save_pt2
from workers.compression.examples import Examples
from workers.compression.suffix_evaluator import SuffixEvaluator
from workers.models.graph import ModelGraph, copy_graph, layers, parameter, set_parameter
from workers.models.read_pt2 import read_pt2

MakeExamples = Callable[..., Examples]


class Branches(nn.Module):
    """Two branches that meet, a shortcut past both, a strided convolution without batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 4, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(200, 6)

    def forward(self, image: Tensor) -> Tensor:
        stem = torch.relu(self.stem(image))
        joined = torch.cat([self.left(stem), torch.relu(self.right(stem))], dim=1)
        features = torch.relu(self.norm(joined) + stem)
        scores: Tensor = self.fc(features.flatten(1))
        return scores


@pytest.fixture(scope="module")
def branches() -> ModelGraph:
    torch.manual_seed(0)
    return graph_of(Branches().eval(), torch.zeros(1, 3, 9, 9))


def right_answers(graph: ModelGraph, examples: Examples) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """By the plain graph, one fixed batch after the other."""
    size = graph.batch_size or len(examples)
    with torch.inference_mode():
        parts = [graph(part)[0] for part in torch.split(examples.inputs(np.arange(len(examples))), size)]
    classes = torch.cat([part.reshape(size, -1).argmax(dim=1) for part in parts])
    verdicts: np.ndarray[tuple[int], np.dtype[np.bool_]] = classes.numpy() == examples.targets
    return verdicts


def with_half_pruned(weight: Tensor) -> Tensor:
    return torch.where(weight.abs() < weight.abs().median(), 0.0, weight).to(weight.dtype)


def replaced(graph: ModelGraph, name: str, weight: Tensor) -> ModelGraph:
    changed = copy_graph(graph)
    set_parameter(changed, name, weight)
    return changed


@pytest.mark.parametrize("cache_mib", [0, 1, 64])
def test_a_probe_counts_what_the_whole_network_answers(
    branches: ModelGraph, examples_of: MakeExamples, cache_mib: int
) -> None:
    examples = examples_of(branches, count=230, wrong=40)
    evaluator = SuffixEvaluator(branches, examples, cache_mib=cache_mib)
    before = right_answers(branches, examples)
    assert evaluator.correct == before.sum()
    for layer in layers(branches):
        weight = with_half_pruned(parameter(branches, layer.weight))
        after = right_answers(replaced(branches, layer.weight, weight), examples)
        probe = evaluator.probe(layer, weight, at_least=0)
        assert probe.is_exact
        assert (probe.correct, probe.lost, probe.gained) == (
            after.sum(),
            (before & ~after).sum(),
            (~before & after).sum(),
        )


def test_probes_after_accepting_a_layer_are_of_the_changed_network(
    branches: ModelGraph, examples_of: MakeExamples
) -> None:
    examples = examples_of(branches, count=230, wrong=40)
    evaluator = SuffixEvaluator(branches, examples, cache_mib=64)
    changed = branches
    for layer in reversed(layers(branches)):
        for other in layers(branches):  # fills the store with values that must not survive
            evaluator.probe(other, parameter(changed, other.weight), at_least=0)
        weight = with_half_pruned(parameter(branches, layer.weight))
        evaluator.accept(layer, weight)
        changed = replaced(changed, layer.weight, weight)
        for other in layers(branches):
            probe = evaluator.probe(other, parameter(changed, other.weight), at_least=0)
            assert probe.correct == right_answers(changed, examples).sum()


def test_a_probe_that_can_no_longer_reach_enough_ends_with_an_upper_bound(
    branches: ModelGraph, examples_of: MakeExamples
) -> None:
    examples = examples_of(branches, count=1000, wrong=0)
    evaluator = SuffixEvaluator(branches, examples, cache_mib=0)
    layer = layers(branches)[0]
    nothing = torch.zeros(layer.weight_shape)
    exact = evaluator.probe(layer, nothing, at_least=0)
    raced = evaluator.probe(layer, nothing, at_least=999)
    assert not raced.is_exact
    assert raced.images < exact.images
    assert exact.correct <= raced.correct < 999


def test_a_probe_that_reaches_enough_is_exact(branches: ModelGraph, examples_of: MakeExamples) -> None:
    examples = examples_of(branches, count=230, wrong=40)
    evaluator = SuffixEvaluator(branches, examples, cache_mib=0)
    layer = layers(branches)[1]
    weight = with_half_pruned(parameter(branches, layer.weight))
    exact = evaluator.probe(layer, weight, at_least=0)
    assert evaluator.probe(layer, weight, at_least=exact.correct) == exact


def test_wrong_and_fragile_images_come_first(branches: ModelGraph, examples_of: MakeExamples) -> None:
    """With 100 wrong images in front, a race for one more right answer than there are ends in the first batches."""
    examples = examples_of(branches, count=1000, wrong=100)
    evaluator = SuffixEvaluator(branches, examples, cache_mib=0)
    layer = layers(branches)[0]
    raced = evaluator.probe(layer, parameter(branches, layer.weight), at_least=evaluator.correct + 1)
    assert raced.images == 100


def test_work_done_and_saved_add_up_to_whole_passes(branches: ModelGraph, examples_of: MakeExamples) -> None:
    examples = examples_of(branches, count=500, wrong=50)
    evaluator = SuffixEvaluator(branches, examples, cache_mib=8)
    for layer in layers(branches):
        weight = with_half_pruned(parameter(branches, layer.weight))
        evaluator.expect(layer)
        evaluator.probe(layer, weight, at_least=0)
        evaluator.probe(layer, weight, at_least=460)
    cost = evaluator.cost()
    saved = cost.multiply_adds_saved_by_cache + cost.multiply_adds_saved_by_racing
    assert cost.multiply_adds + saved == cost.probes * cost.multiply_adds_of_one_pass
    # stem 8*3*9 on 5x5, left 4*8 and right 4*4*9 on 5x5, fc 6*200
    assert cost.multiply_adds_of_one_pass == 500 * (216 * 25 + 32 * 25 + 144 * 25 + 1200)
    assert cost.image_evaluations + cost.image_evaluations_saved_by_racing == 500 * cost.probes
    assert cost.probes == 2 * len(layers(branches))


def test_a_kept_layer_input_saves_everything_before_it(branches: ModelGraph, examples_of: MakeExamples) -> None:
    examples = examples_of(branches, count=100, wrong=0)
    evaluator = SuffixEvaluator(branches, examples, cache_mib=64)
    last = layers(branches)[-1]
    evaluator.probe(last, parameter(branches, last.weight), at_least=0)
    first = evaluator.cost().multiply_adds
    evaluator.probe(last, parameter(branches, last.weight), at_least=0)
    assert evaluator.cost().multiply_adds - first == 100 * 1200


def test_a_network_of_one_batch_size_is_probed_in_such_batches(examples_of: MakeExamples) -> None:
    torch.manual_seed(0)

    class Mixing(nn.Module):
        """Normalises over the batch, so only the exported size gives what was exported."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 5)

        def forward(self, image: Tensor) -> Tensor:
            scores: Tensor = self.fc((image - image.mean(0, keepdim=True)).flatten(1))
            return scores

    graph = graph_of_fixed_batch(Mixing(), torch.randn(4, 1, 4, 4))
    assert graph.batch_size == 4
    examples = examples_of(graph, count=40, wrong=0)
    evaluator = SuffixEvaluator(graph, examples, cache_mib=1)
    assert evaluator.images == 40
    (layer,) = layers(graph)
    same = evaluator.probe(layer, parameter(graph, layer.weight), at_least=0)
    assert same.correct == evaluator.correct
    assert (same.lost, same.gained) == (0, 0)


def graph_of_fixed_batch(module: nn.Module, example: Tensor) -> ModelGraph:
    with TemporaryDirectory() as folder:
        return read_pt2(save_pt2(module, example, Path(folder) / "fixed.pt2", dynamic_batch=False))


def test_a_half_precision_network_is_evaluated_as_it_is(examples_of: MakeExamples) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).half().eval()
    graph = graph_of(network, torch.zeros(1, 1, 8, 8, dtype=torch.float16))
    examples = examples_of(graph, count=60, wrong=7)
    evaluator = SuffixEvaluator(graph, examples, cache_mib=1)
    assert evaluator.correct == right_answers(graph, examples).sum() == 53
    for layer in layers(graph):
        weight = with_half_pruned(parameter(graph, layer.weight))
        expected = right_answers(replaced(graph, layer.weight, weight), examples).sum()
        assert evaluator.probe(layer, weight, at_least=0).correct == expected


def test_a_label_that_the_network_does_not_know_is_a_wrong_answer(
    branches: ModelGraph, examples_of: MakeExamples
) -> None:
    examples = examples_of(branches, count=50, wrong=0)
    examples.targets[:3] = 77
    assert SuffixEvaluator(branches, examples, cache_mib=0).correct == 47
