"""Method W as a step, claim element by claim element (docs/methods.md)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from winograd.selection import Shape

import winograd
from jobs.errors import RecipeRefused
from jobs.recipe import PruneWinograd, WinogradTraining
from jobs.tiles import best_tile, tiles_of
from tests.workers.compression.made_up_times import Measure
from tests.workers.networks import graph_of
from workers.compression.evaluator import Probe, ProbingCost
from workers.compression.finetune import TrainingImages
from workers.compression.frontier import Frontier
from workers.compression.prune_winograd import Surroundings, Train, WinogradResult, prune_winograd
from workers.compression.winograd_allocation import Allocation, Increment, Sensitivity
from workers.compression.winograd_elimination import elimination_scores
from workers.compression.winograd_layers import Mask, to_winograd, transformed, without_pruned
from workers.compression.winograd_moments import compensated, measure_moments, measure_target
from workers.compression.winograd_positions import leaves_all_outputs, prune_below, prune_lowest
from workers.compression.winograd_scores import input_gains, output_gains, score
from workers.compression.winograd_tiles import DIRECT_IS_FASTER
from workers.compression.winograd_times import Load
from workers.compression.winograd_training import Trainer
from workers.models.graph import Layer, ModelGraph, copy_graph, layers, parameter, set_parameter


class Mixed(nn.Module):
    """Two layers that W can work on, and one of each kind that it can't."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.strided = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.large = nn.Conv2d(8, 8, 5, padding=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fc = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(image)))
        x = torch.relu(self.second(x) + x)
        x = torch.relu(self.large(self.pointwise(self.dilated(self.strided(x)))))
        result: Tensor = self.fc(torch.relu(self.depthwise(x)).mean((2, 3)))
        return result


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(24, 4, 10, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network(images: Tensor) -> ModelGraph:
    torch.manual_seed(3)
    module = Mixed()
    module.train()
    module(images)  # statistics of batch normalisation that fit
    return graph_of(module.eval(), images[:1])


class Judge:
    """Counts the images whose class is still that of the uploaded network."""

    def __init__(self, network: ModelGraph, images: Tensor) -> None:
        self._images = images
        self._classes = self.classes(network)

    @torch.inference_mode()
    def classes(self, network: ModelGraph) -> Tensor:
        return network(self._images)[0].argmax(1)

    def percent(self, network: ModelGraph) -> float:
        return 100 * float((self.classes(network) == self._classes).double().mean())

    def evaluator_of(self, network: ModelGraph) -> "WholePasses":
        return WholePasses(self, network, len(self._images))


class WholePasses:
    """An `Evaluator` without any cleverness."""

    def __init__(self, judge: Judge, network: ModelGraph, images: int) -> None:
        self._judge = judge
        self._network = network
        self.images = images

    @property
    def correct(self) -> int:
        return round(self._judge.percent(self._network) * self.images / 100)

    def probe(self, layer: Layer, weight: Tensor, *, at_least: int) -> Probe:
        before = parameter(self._network, layer.weight).detach().clone()
        with torch.inference_mode():
            scores_before = self._network(self._judge._images)[0].log_softmax(1)
            set_parameter(self._network, layer.weight, weight)
            correct = self.correct
            scores = self._network(self._judge._images)[0].log_softmax(1)
        set_parameter(self._network, layer.weight, before)
        divergence = float((scores_before.exp() * (scores_before - scores)).sum(1).mean())
        return Probe(correct, True, self.images, 0, 0, divergence)

    def expect(self, layer: Layer) -> None:
        pass

    def accept(self, layer: Layer, weight: Tensor) -> None:
        raise AssertionError("the step judges whole networks, it accepts nothing here")

    def cost(self) -> ProbingCost:
        raise AssertionError("nobody asks")


def run(
    network: ModelGraph,
    images: Tensor,
    *,
    train: Callable[[ModelGraph, int], ModelGraph] | None = None,
    load: Load | None = None,
    **options: Any,
) -> WinogradResult:
    judge = Judge(network, images)
    surroundings = Surroundings(
        calibration=lambda _graph: images.split(8),
        evaluator_of=judge.evaluator_of,
        evaluate=judge.percent,
        train=train,
        seed=0,
        load=load or Load(),
    )
    step = PruneWinograd.model_validate({"kind": "prune_winograd", "max_drop_pp": 100, **options})
    return prune_winograd(network, step, surroundings, lambda *_: None)


def frontiers(pruned: ModelGraph, whole: ModelGraph, batches: Iterable[Tensor]) -> tuple[Frontier, Frontier]:
    given = list(batches)
    return Frontier(pruned, given), Frontier(whole, given)


def outputs(network: ModelGraph, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(images)[0]


def test_w1_eligible_layers_are_found_and_the_others_are_listed_with_the_reason(
    network: ModelGraph, images: Tensor
) -> None:
    result = run(network, images, select="count", count=0)
    assert [layer.layer for layer in result.layers] == ["first", "second"]
    assert "stride is 2x2" in result.skipped["strided"]
    assert "dilation is 2x2" in result.skipped["dilated"]
    assert "filters are 1x1" in result.skipped["pointwise"]
    assert "filters are 5x5" in result.skipped["large"]
    assert "one channel" in result.skipped["depthwise"]
    assert "linear" in result.skipped["fc"]


def test_w2_the_index_is_one_of_t_by_t_locations_each_with_a_score(network: ModelGraph, images: Tensor) -> None:
    result = run(network, images, select="count", count=3, tile=4, rounds=1)
    for layer in result.layers:
        assert layer.positions == 36
        assert len(layer.scores[0]) == 36
        (pruned,) = layer.pruned
        assert len(pruned) == 3
        assert set(pruned) == set(np.argsort(layer.scores[0], kind="stable")[:3].tolist())


@pytest.mark.parametrize("tile", [2, 4, 6])
def test_w3_positions_are_pruned_in_all_kernels_and_no_other_is(network: ModelGraph, images: Tensor, tile: int) -> None:
    converted = to_winograd(network, {"second": tile})
    weights = parameter(converted, "second.weight").detach()
    mask = prune_lowest(
        Mask.whole(tile, 1, "output_channels"), score("rms", weights, tile)[None], tile, count=(tile + 2) ** 2 // 3
    )
    masked = mask.apply(weights)
    for position in range((tile + 2) ** 2):
        assert bool((masked[position] == 0).all()) == (position in mask.pruned()[0])
    kept = mask.positions()[0]
    assert torch.equal(masked[kept], weights[kept])


def test_w4_scores_are_what_loops_over_all_kernels_give() -> None:
    weights = torch.randn(16, 3, 2, generator=torch.Generator().manual_seed(0))
    u = weights.numpy().astype(np.float64)
    small = 0.1 * np.sqrt((u**2).mean())
    alpha, beta = output_gains(2).numpy(), input_gains(2).numpy()
    energy = np.abs(np.random.default_rng(0).normal(size=(16, 3, 2)))
    for position in range(16):
        values = [u[position, k, c] for k in range(3) for c in range(2)]
        expected = {
            "mean_abs": sum(abs(v) for v in values) / 6,
            "rms": (sum(v * v for v in values) / 6) ** 0.5,
            "max_abs": max(abs(v) for v in values),
            "small_frac": -sum(abs(v) < small for v in values) / 6,
            "energy_white": alpha[position] * beta[position] * sum(v * v for v in values),
        }
        for name, value in expected.items():
            assert float(score(name, weights, 2)[position]) == pytest.approx(value), name  # type: ignore[arg-type]
        loops = sum(u[position, k, c] ** 2 * energy[position, k, c] for k in range(3) for c in range(2))
        found = score("energy", weights, 2, torch.from_numpy(energy))[position]
        assert float(found) == pytest.approx(alpha[position] * loops)


@pytest.mark.parametrize("tile", [2, 4])
def test_w4_energy_foretells_the_error_of_the_output(network: ModelGraph, images: Tensor, tile: int) -> None:
    """Whole tiles only, so that nothing is cut off, and one channel, because it takes channels to be uncorrelated."""
    cut = images[:, :, :8, :8]
    converted = to_winograd(network, {"first": tile})
    moments = measure_moments(converted, ["first"], [cut])["first"]
    weights = parameter(converted, "first.weight").detach().clone()
    weights[:, :, 1:] = 0
    energies = score("energy", weights, tile, moments.energy_of(weights))
    positions = list(range((tile + 2) ** 2))
    whole = winograd.conv2d(cut, weights, positions, tile, 1)
    for position in (0, 5, (tile + 2) ** 2 - 1):
        without = weights.clone()
        without[position] = 0
        lost = (winograd.conv2d(cut, without, positions, tile, 1) - whole).double().square().sum()
        tiles = len(cut) * tiles_of(tile, (8, 8))
        assert float(lost) / tiles == pytest.approx(float(energies[position]), rel=1e-3)


def test_w2_to_w5_published_vector() -> None:
    """METHODS C.1: two planes, m = 2."""
    planes = torch.tensor(
        [
            [[0.9, 0.1, 0.2, 0.8], [0.05, 0.6, 0.5, 0.1], [0.1, 0.4, 0.7, 0.02], [0.7, 0.1, 0.1, 0.9]],
            [[-0.8, 0.2, -0.1, 0.6], [0.03, -0.5, 0.6, -0.2], [0.2, -0.3, 0.8, 0.04], [0.5, -0.2, 0.1, -1.0]],
        ]
    )
    weights = planes.reshape(2, 16).T.reshape(16, 2, 1)
    scores = score("mean_abs", weights, 2)[None]
    expected = [0.85, 0.15, 0.15, 0.7, 0.04, 0.55, 0.55, 0.15, 0.15, 0.35, 0.75, 0.03, 0.6, 0.15, 0.1, 0.95]
    assert scores[0].tolist() == pytest.approx(expected)
    whole = Mask.whole(2, 1, "output_channels")
    assert prune_lowest(whole, scores, 2, count=3).pruned() == [[4, 11, 14]]
    assert prune_below(whole, scores, 2, threshold=0.05, at_most=8).pruned() == [[4, 11]]


def test_w5_the_lower_the_threshold_the_fewer_positions_are_pruned() -> None:
    scores = torch.rand(1, 36, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    whole = Mask.whole(4, 1, "output_channels")
    before: set[int] = set()
    for threshold in (0.0, 0.1, 0.2, 0.3):
        mask = prune_below(whole, scores, 4, threshold=threshold, at_most=18)
        pruned = set(mask.pruned()[0])
        assert pruned == {p for p in range(36) if scores[0, p] < threshold}
        assert before <= pruned
        before = pruned


def test_w5_step_prunes_positions_below_a_multiple_of_the_mean_score(network: ModelGraph, images: Tensor) -> None:
    result = run(network, images, select="threshold", threshold=0.8, score="mean_abs", tile=2, rounds=1)
    for layer in result.layers:
        scores = np.array(layer.scores[0])
        assert 0 < len(layer.pruned[0]) < 8
        assert layer.pruned[0] == np.flatnonzero(scores < 0.8 * scores.mean()).tolist()


@pytest.mark.parametrize("options", [{"tile": 2}, {"tile": 4}, {"tile": 6}, {"groups": 2}, {"groups": 4}])
@pytest.mark.parametrize("group_by", ["output_channels", "input_channels"])
def test_w6_network_without_pruned_positions_is_the_network_with_zeros_there(
    network: ModelGraph, images: Tensor, options: dict[str, int], group_by: str
) -> None:
    tile = options.get("tile", 4)
    converted = to_winograd(network, {"first": tile, "second": tile})
    masks = {}
    for seed, name in enumerate(("first", "second")):
        whole = Mask.whole(tile, options.get("groups", 1), group_by)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(whole.kept.shape, generator=generator, dtype=torch.float64)
        masks[name] = prune_lowest(whole, scores, tile, count=(tile + 2) ** 2 // 3)
        set_parameter(converted, f"{name}.weight", masks[name].apply(parameter(converted, f"{name}.weight").detach()))
    expected = outputs(converted, images)
    found = outputs(without_pruned(converted, masks), images)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize(("tile", "tolerance"), [(2, 1e-5), (4, 1e-4), (6, 1e-3)])
def test_w7_without_pruning_the_network_gives_what_it_gave(
    network: ModelGraph, images: Tensor, tile: int, tolerance: float
) -> None:
    result = run(network, images, select="count", count=0, tile=tile)
    before = outputs(network, images)
    assert float((outputs(result.graph, images) - before).abs().max()) < tolerance * float(before.abs().max())
    assert result.accuracy_after == 100


def test_w8_executed_multiplications_are_those_of_the_formula(network: ModelGraph, images: Tensor) -> None:
    result = run(network, images, select="rate", rate=1 / 3, tile=4, rounds=1)
    one = images[:1]
    with torch.inference_mode(), winograd.count_operations() as counted:
        result.graph(one)
    assert counted.gemms == 2 * 24
    tiles = tiles_of(4, (10, 9))
    assert tiles == 9
    assert counted.multiplications == tiles * 24 * (8 * 4 + 8 * 8)
    assert counted.multiplications == sum(layer.multiplications for layer in result.layers)
    assert all(layer.multiplications_winograd == layer.multiplications * 36 // 24 for layer in result.layers)
    assert [layer.multiplications_direct for layer in result.layers] == [90 * 9 * 32, 90 * 9 * 64]
    others = result.multiplications_direct - sum(layer.multiplications_direct for layer in result.layers)
    assert result.multiplications == others + counted.multiplications


def test_w9_training_sees_the_network_without_the_pruned_weights(network: ModelGraph, images: Tensor) -> None:
    seen = []

    def train(graph: ModelGraph, number: int) -> ModelGraph:
        seen.append({layer.name: layer.weight_shape[0] for layer in layers(graph)})
        for layer in layers(graph):
            set_parameter(graph, layer.weight, parameter(graph, layer.weight).detach() * 1.01)
        return graph

    result = run(network, images, train=train, training={}, select="count", count=12, tile=4, rounds=3)
    assert [kept["second"] for kept in seen] == [32, 28, 24]
    assert result.is_trained
    for layer in layers(result.graph):
        if layer.kind == "winograd_conv2d":
            assert layer.weight_shape[0] == 24


def test_w10_groups_of_kernels_have_positions_of_their_own(network: ModelGraph, images: Tensor) -> None:
    result = run(network, images, select="count", count=4, tile=2, groups=2, score="max_abs", rounds=1)
    assert all(len(layer.pruned) == 2 for layer in result.layers)
    assert all(len(group) == 4 for layer in result.layers for group in layer.pruned)
    assert any(layer.pruned[0] != layer.pruned[1] for layer in result.layers)
    second = next(layer for layer in layers(result.graph) if layer.name == "second")
    assert len(second.positions) == 24
    assert "can't be divided" in run(network, images, groups=8, group_by="input_channels").skipped["first"]


def test_w11_a_round_that_costs_too_much_is_taken_back_bit_for_bit(network: ModelGraph, images: Tensor) -> None:
    accepted: list[Tensor] = []

    def train(graph: ModelGraph, number: int) -> ModelGraph:
        scale = 1.0 if number == 1 else -3.0  # from the second round on, training ruins the network
        for layer in layers(graph):
            set_parameter(graph, layer.weight, parameter(graph, layer.weight).detach() * scale)
        if number == 1:
            accepted.append(parameter(graph, "second.weight").detach().clone())
        return graph

    result = run(
        network, images, train=train, training={}, select="count", count=8, tile=2, rounds=4, max_drop_pp=60,
        compensate=False,
    )  # fmt: skip
    assert [done.ended for done in result.rounds] == ["kept", "taken_back", "taken_back"]
    assert result.ended_because == "accuracy_fell"
    assert torch.equal(parameter(result.graph, "second.weight").detach(), accepted[0])
    assert result.accuracy_after >= result.accuracy_before - 60
    assert [layer.pruned[0] != [] for layer in result.layers] == [True, True]


def test_w11_without_training_pruning_goes_as_far_as_accuracy_allows(network: ModelGraph, images: Tensor) -> None:
    result = run(network, images, max_drop_pp=10, score="energy", rounds=5)
    assert result.accuracy_after >= 90
    assert any(done.ended == "kept" for done in result.rounds) or result.ended_because == "accuracy_fell"
    assert any("Nothing was trained" in warning for warning in result.warnings)
    assert result.allocation is not None
    assert result.multiplications < result.multiplications_direct


def test_w12_layers_are_pruned_at_their_own_rates(network: ModelGraph, images: Tensor) -> None:
    result = run(network, images, select="rate", rate=0.25, rates={"second": 0.5}, tile=2, rounds=2)
    assert {layer.layer: len(layer.pruned[0]) for layer in result.layers} == {"first": 4, "second": 8}
    with pytest.raises(RecipeRefused, match="no layer called 'third'"):
        run(network, images, rates={"third": 0.5})


@pytest.mark.parametrize("tile", [2, 4, 6])
def test_no_output_is_left_without_positions(tile: int) -> None:
    whole = Mask.whole(tile, 1, "output_channels")
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(whole.kept.shape, generator=generator, dtype=torch.float64)
        mask = prune_lowest(whole, scores, tile, count=(tile + 2) ** 2)
        assert mask.kept.any()
        assert leaves_all_outputs(mask.kept[0], tile)
        assert not any(
            leaves_all_outputs(mask.kept[0] & (torch.arange((tile + 2) ** 2) != p), tile) for p in mask.positions()[0]
        )


@pytest.mark.parametrize("groups", [1, 2])
def test_fitted_weights_lose_less_of_the_output_than_weights_left_as_they_were(
    network: ModelGraph, images: Tensor, groups: int
) -> None:
    cut = images[:, :, :8, :8]
    converted = to_winograd(network, {"first": 4})
    moments = measure_moments(converted, ["first"], [cut])["first"]
    weights = parameter(converted, "first.weight").detach()
    whole_mask = Mask.whole(4, groups, "output_channels")
    chunks = zip(whole_mask.chunks(weights), whole_mask.chunks(moments.energy_of(weights)), strict=True)
    scores = torch.stack([score("energy", u, 4, e) for u, e in chunks])
    mask = prune_lowest(whole_mask, scores, 4, count=12)
    fitted, error = compensated(weights, mask, moments)
    assert torch.equal(fitted != 0, mask.apply(torch.ones_like(weights)) != 0)
    positions = list(range(36))
    target = winograd.conv2d(cut, weights, positions, 4, 1).double()

    def lost(candidate: Tensor) -> float:
        return float((winograd.conv2d(cut, candidate, positions, 4, 1).double() - target).square().sum())

    assert lost(fitted) < 0.8 * lost(mask.apply(weights))
    assert lost(fitted) / float(target.square().sum()) == pytest.approx(error, rel=1e-3)
    nudged = fitted + 1e-2 * mask.apply(torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
    assert lost(fitted) < lost(nudged)


def test_layers_are_measured_on_as_many_images_as_their_rows_need(
    network: ModelGraph, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few tiles an image and many rows want more images; whoever has enough is left alone, and nothing is computed in vain."""
    monkeypatch.setattr("workers.compression.winograd_moments.ENOUGH_IMAGES", 8)
    monkeypatch.setattr("workers.compression.winograd_moments.ENOUGH_TILES", 1)
    converted, images = to_winograd(network, {"first": 4, "second": 4}), torch.cat([images, images.flip(0)])
    tiles = tiles_of(4, (10, 9))
    needed = {"first": 36 * 4 / tiles, "second": 36 * 8 / tiles}
    read = 0

    def batches() -> Iterator[Tensor]:
        nonlocal read
        for batch in images.split(4):
            read += len(batch)
            yield batch

    moments = measure_moments(converted, needed, batches())
    for name, count in needed.items():
        assert moments[name].images == 4 * ceil(max(count, 8) / 4) < len(images)
    assert read <= moments["second"].images + 4
    alone = measure_moments(converted, ["first"], [images[: moments["first"].images]])["first"]
    assert torch.allclose(moments["first"].energy, alone.energy)
    target_moments, _ = measure_target("second", *frontiers(converted, converted, images.split(4)))
    assert target_moments.images == moments["second"].images


def test_w4_fit_takes_away_the_position_that_the_others_can_best_make_up_for(
    network: ModelGraph, images: Tensor
) -> None:
    converted = to_winograd(network, {"second": 2})
    moments = measure_moments(converted, ["second"], [images])["second"]
    weights = parameter(converted, "second.weight").detach()
    mask = Mask.whole(2, 1, "output_channels")
    scores = elimination_scores(weights, mask, moments)
    order = scores[0].argsort().tolist()
    rows = weights.transpose(1, 2).flatten(0, 1).double()
    energy = float((rows * (moments.gram[0] @ rows)).sum())  # type: ignore[index]
    for taken in range(4):
        errors = {}
        for position in order[taken:]:
            kept = mask.kept.clone()
            kept[0, [*order[:taken], position]] = False
            errors[position] = compensated(weights, Mask(kept, mask.group_by), moments)[1]
        assert min(errors, key=errors.__getitem__) == order[taken]
        assert float(scores[0, order[taken]]) == pytest.approx(errors[order[taken]] * energy, rel=2e-2)


@pytest.mark.parametrize("group_by", ["output_channels", "input_channels"])
def test_w10_fit_scores_groups_apart_and_what_is_gone_lowest(
    network: ModelGraph, images: Tensor, group_by: str
) -> None:
    converted = to_winograd(network, {"second": 2})
    moments = measure_moments(converted, ["second"], [images])["second"]
    weights = parameter(converted, "second.weight").detach()
    mask = Mask.whole(2, 2, group_by)  # type: ignore[arg-type]
    first = prune_lowest(mask, elimination_scores(weights, mask, moments), 2, count=3)
    assert first.pruned()[0] != first.pruned()[1]
    fitted, _ = compensated(weights, first, moments)
    scores = elimination_scores(fitted, first, moments)
    assert float(scores[~first.kept].max()) == 0 < float(scores[first.kept].min())
    second = prune_lowest(first, scores, 2, count=5)
    assert all(set(a) < set(b) for a, b in zip(first.pruned(), second.pruned(), strict=True))


def test_w4_without_a_matrix_fit_is_energy(
    network: ModelGraph, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.compression.winograd_moments.MOST_ROWS", 1)
    options = {"select": "count", "count": 4, "tile": 2, "rounds": 1}
    fit, energy = (run(network, images, score=score, **options) for score in ("fit", "energy"))
    assert [layer.pruned for layer in fit.layers] == [layer.pruned for layer in energy.layers]


@pytest.mark.parametrize("tile", [2, 4])
def test_what_a_layer_gives_is_its_own_target(network: ModelGraph, images: Tensor, tile: int) -> None:
    converted = to_winograd(network, {"second": tile})
    moments, target = measure_target("second", *frontiers(converted, converted, images.split(8)))
    weights = parameter(converted, "second.weight").detach()
    rows = weights.transpose(1, 2).flatten(0, 1).double()
    expected = moments.gram[0] @ rows  # type: ignore[index]
    assert float((target.common[0] - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert target.energy == pytest.approx(float((rows * expected).sum()), rel=1e-5)
    fitted, error = compensated(weights, Mask.whole(tile, 1, "output_channels"), moments, target)
    assert float((fitted - weights).abs().max()) < 1e-3 * float(weights.abs().max())
    assert error < 1e-5


def test_layers_make_up_for_what_those_before_them_have_lost(images: Tensor) -> None:
    """The fit of the second layer on what the pruned first one gives is nearer to its outputs than a fit of its own."""
    cut = images[:, :, :8, :8]  # whole tiles, of which nothing is cut off
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    chain = graph_of(module.eval(), cut[:1])
    names = ["0", "2"]
    converted = to_winograd(chain, dict.fromkeys(names, 4))
    moments = measure_moments(converted, names, cut.split(8))
    apart, masks = copy_graph(converted), {}
    for name in names:
        weights = parameter(converted, f"{name}.weight").detach()
        whole = Mask.whole(4, 1, "output_channels")
        masks[name] = prune_lowest(whole, elimination_scores(weights, whole, moments[name]), 4, count=12)
        set_parameter(apart, f"{name}.weight", compensated(weights, masks[name], moments[name])[0])
    in_order = copy_graph(apart)
    seen, target = measure_target("2", *frontiers(apart, converted, cut.split(8)))
    fitted, error = compensated(parameter(converted, "2.weight").detach(), masks["2"], seen, target)
    set_parameter(in_order, "2.weight", fitted)
    expected = outputs(converted, cut).double()

    def lost(candidate: ModelGraph) -> float:
        return float((outputs(candidate, cut) - expected).square().sum() / expected.square().sum())

    bias = parameter(converted, "2.bias").detach()[:, None, None]
    energy = float((expected - bias).square().sum() / expected.square().sum())
    assert lost(in_order) == pytest.approx(error * energy, rel=1e-2)
    assert lost(in_order) < 0.95 * lost(apart)
    result = run(chain, cut, select="count", count=12, tile=4, rounds=1)
    assert lost(result.graph) == pytest.approx(lost(in_order), rel=1e-2)


def test_tile_with_the_fewest_multiplications_is_chosen() -> None:
    assert [best_tile(sides) for sides in ((32, 32), (8, 8), (56, 56), (7, 7), (2, 2))] == [4, 4, 6, 4, 2]


def test_allocation_gives_up_most_where_it_moves_the_scores_least(network: ModelGraph, images: Tensor) -> None:
    result = run(network, images, rounds=1)
    allocation = result.allocation
    assert allocation is not None
    cost = [one.divergence / one.saved for one in allocation.increments]
    assert cost == sorted(cost)
    nothing, predicted = allocation.counts(0.0)
    assert set(nothing.values()) == {0}
    assert predicted == 0
    everything, _ = allocation.counts(1.0)
    assert everything == {"first": 32, "second": 32}


def test_predicted_drop_is_read_off_probes_that_moved_the_scores_as_far() -> None:
    probes = [
        Sensitivity(f"layer{number}", 4, divergence, drop_pp, saved=1.0)
        for number, (divergence, drop_pp) in enumerate([(0.001, 0.0)] * 20 + [(0.1, 4.0)] * 9)
    ]
    few, many = (
        Allocation(512, tuple(probes), tuple(Increment(one.layer, 4, one.divergence, 1.0) for one in chosen))
        for chosen in (probes[:2], probes[20:22])
    )
    assert few.counts(1.0)[1] == 0
    assert many.counts(1.0)[1] == pytest.approx(8.0)  # two layers of 0.1 nats, at 4 pp for each 0.1
    assert many.counts(0.5)[1] == pytest.approx(4.0)


def test_rounds_that_are_taken_back_are_not_measured_again(
    network: ModelGraph, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[ModelGraph] = []

    def counted(graph: ModelGraph, *rest: Any) -> Any:
        measured.append(graph)
        return measure_moments(graph, *rest)

    monkeypatch.setattr("workers.compression.prune_winograd.measure_moments", counted)

    def train(graph: ModelGraph, number: int) -> ModelGraph:
        if number > 1:
            for layer in layers(graph):
                set_parameter(graph, layer.weight, parameter(graph, layer.weight).detach() * -3.0)
        return graph

    result = run(network, images, train=train, training={}, select="count", count=8, tile=2, rounds=4, max_drop_pp=60)
    assert [done.ended for done in result.rounds] == ["kept", "taken_back", "taken_back"]
    assert len(measured) == 2  # before anything was pruned, and after the round that was kept


def test_the_target_ends_the_step(network: ModelGraph, images: Tensor) -> None:
    result = run(
        network,
        images,
        select="rate",
        rate=0.5,
        tile=4,
        rounds=6,
        target_reduction=1.2,
        training={},
        train=lambda graph, _: graph,
    )
    assert result.ended_because == "target_reduction"
    assert result.multiplications_direct >= 1.2 * result.multiplications


@pytest.mark.parametrize("train", [None, lambda graph, _: graph], ids=["untrained", "trained"])
def test_no_position_is_pruned_beyond_the_target(network: ModelGraph, images: Tensor, train: Train | None) -> None:
    """The way is 18 of 36 positions in each layer; one round would go all of it."""
    options: dict[str, Any] = {"select": "rate", "rate": 0.5, "tile": 4, "rounds": 1}
    if train is not None:
        options |= {"train": train, "training": {}}
    whole = run(network, images, **options)
    direct, layers_at_36 = whole.multiplications_direct, 2 * sum(layer.multiplications for layer in whole.layers)
    others = whole.multiplications - layers_at_36 // 2
    wanted = direct / (others + layers_at_36 * 25.5 / 36)  # met by 25 of 36 positions, missed by 26
    result = run(network, images, **options, target_reduction=wanted)
    assert result.ended_because == "target_reduction"
    assert [len(layer.pruned[0]) for layer in result.layers] == [11, 11]


FIRST, SECOND = Shape(4, 8, 10, 9), Shape(8, 8, 10, 9)  # of the network's two layers, on one image


def test_fastest_tiles_are_taken_and_layers_left_where_direct_convolution_is(
    network: ModelGraph, images: Tensor, measure: Measure
) -> None:
    measure({FIRST: {"direct": 1, "m2": 2, "m4": 2, "m6": 2}, SECOND: {"direct": 4, "m2": 2, "m4": 3, "m6": 3}})
    result = run(network, images, select="count", count=0, tile="fastest")
    assert [(layer.layer, layer.tile) for layer in result.layers] == [("second", 2)]
    assert result.skipped["first"] == DIRECT_IS_FASTER
    assert result.as_details()["modelled_speedup"] == pytest.approx(2)


def test_tiles_are_those_that_are_fastest_on_the_target(network: ModelGraph, images: Tensor, measure: Measure) -> None:
    alone, crowd = replace(SECOND, batch=1), replace(SECOND, batch=64)
    measure({alone: {"direct": 4, "m2": 2, "m4": 3, "m6": 3}, crowd: {"direct": 4, "m2": 3, "m4": 3, "m6": 2}})
    for load, tile in ((Load(batch_size=1), 2), (Load(batch_size=64), 6)):
        result = run(network, images, select="count", count=0, tile="fastest", exclude=["first"], load=load)
        assert result.layers[0].tile == tile


def test_network_that_is_fastest_as_it_is_is_refused(network: ModelGraph, images: Tensor, measure: Measure) -> None:
    measure({shape: {"direct": 1, "m2": 2, "m4": 2, "m6": 2} for shape in (FIRST, SECOND)})
    with pytest.raises(RecipeRefused, match="No layer of this model would be faster"):
        run(network, images, tile="fastest")


@pytest.mark.parametrize("slow", ["first", "second"])
def test_allocation_by_time_goes_first_where_time_is_lost(
    network: ModelGraph, images: Tensor, measure: Measure, slow: str
) -> None:
    """The order of positions turns with the measured times; that by multiplications knows nothing of them."""
    ms = {"first": 1e-3, "second": 1e-3, slow: 1e3}
    measure({FIRST: {"m4": ms["first"]}, SECOND: {"m4": ms["second"]}})
    by_time, by_count = (run(network, images, tile=4, rounds=1, saves=unit) for unit in ("time", "multiplications"))
    assert by_time.allocation is not None
    assert by_count.allocation is not None
    assert by_time.allocation.increments[0].layer == slow
    saved = sum(one.saved for one in by_time.allocation.increments if one.layer == slow)
    layer = next(one for one in by_time.layers if one.layer == slow)
    assert saved == pytest.approx(layer.modelled_us_winograd - layer.modelled_us, rel=1e-3)
    whole, left = (
        sum(getattr(one, name) for one in by_count.layers) for name in ("multiplications_winograd", "multiplications")
    )
    assert sum(one.saved for one in by_count.allocation.increments) == pytest.approx(whole - left)


def test_modelled_times_of_each_layer_are_reported(network: ModelGraph, images: Tensor, measure: Measure) -> None:
    measure({FIRST: {"direct": 2, "m4": 1}, SECOND: {"direct": 4, "m4": 1}})
    result = run(network, images, select="rate", rate=0.5, tile=4, rounds=1, train=lambda graph, _: graph)
    assert [layer.modelled_us_direct for layer in result.layers] == [2000, 4000]
    assert [layer.modelled_us_winograd for layer in result.layers] == [1000, 1000]
    assert all(0 < layer.modelled_us < 1000 for layer in result.layers)
    details = result.as_details()
    assert details["modelled_us_direct"] == 6000
    assert details["modelled_us"] == pytest.approx(sum(layer.modelled_us for layer in result.layers), rel=1e-3)
    assert details["modelled_for"] == {
        "batch_size": 1,
        "threads": 1,
        "runtime": "torch with winograd.load",
        "machine": "made up",
        "date": "",
    }


def test_the_target_in_time_ends_the_step(network: ModelGraph, images: Tensor, measure: Measure) -> None:
    measure({FIRST: {"direct": 2, "m4": 1}, SECOND: {"direct": 2, "m4": 1}})
    options = {"select": "rate", "rate": 0.5, "tile": 4, "training": {}, "train": lambda graph, _: graph}
    all_the_way = run(network, images, **options)
    furthest = all_the_way.modelled_us_direct / all_the_way.modelled_us
    assert furthest > 2
    result = run(network, images, **options, target_speedup=(2 + furthest) / 2)
    assert result.ended_because == "target_speedup"
    assert (2 + furthest) / 2 <= result.modelled_us_direct / result.modelled_us < furthest


def test_filters_are_transformed_in_double_precision() -> None:
    filters = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    exact = winograd.transform_filters(filters.double(), list(range(36)), 4)
    assert torch.equal(transformed(filters, 4), exact.float())


@pytest.mark.parametrize(
    "options",
    [
        {"select": "count"},
        {"rate": 0.2},
        {"select": "rate", "rate": 0.7},
        {"groups": 2, "group_by": "input_channels", "training": {"domain": "spatial"}},
        {"select": "rate", "rate": 0.2, "saves": "time"},
        {"target_speedup": 1},
        {"tile": 3},
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PruneWinograd.model_validate({"kind": "prune_winograd", **options})


@pytest.mark.parametrize("domain", ["winograd", "spatial"])
def test_training_starts_from_the_network_that_the_step_was_given(
    network: ModelGraph, images: Tensor, domain: str
) -> None:
    """Not from the uploaded one, which only teaches: at a rate of next to nothing the outputs stay what they were."""
    given = copy_graph(network)
    set_parameter(given, "second.weight", 1.5 * parameter(network, "second.weight").detach())
    learned = TrainingImages(len(images), lambda wanted: images.numpy()[wanted], torch.from_numpy, None)
    options = WinogradTraining.model_validate({"domain": domain, "learning_rate": 1e-9, "epochs": 1})
    trainer = Trainer(learned, options, 0, given, network, lambda *_: None)
    converted = to_winograd(given, {"first": 4, "second": 4})
    trained = trainer(converted, 1)
    before, after = parameter(converted, "second.weight").detach(), parameter(trained, "second.weight").detach()
    assert float((after - before).abs().max()) < 1e-5


@pytest.mark.parametrize("tile", [2, 4])
def test_w9_weights_of_positions_move_as_filters_would_move_them(
    network: ModelGraph, images: Tensor, tile: int
) -> None:
    """From the same start, training either comes to the same weights, unless gradients are so long that they are shortened."""
    learned = TrainingImages(
        len(images), lambda wanted: images.numpy()[wanted], torch.from_numpy, np.arange(len(images)) % 5
    )
    masks = {}
    for seed, name in enumerate(("first", "second")):
        scores = torch.rand(1, (tile + 2) ** 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        masks[name] = prune_lowest(Mask.whole(tile, 1, "output_channels"), scores, tile, count=(tile + 2) ** 2 // 3)
    smaller = without_pruned(to_winograd(network, dict.fromkeys(masks, tile)), masks)
    trained = {}
    for domain in ("winograd", "spatial"):
        options = WinogradTraining.model_validate(
            {
                "domain": domain,
                "learning_rate": 0.01,
                "epochs": 3,
                "batch_size": 8,
                "loss": "labels",
                "augment": "none",
                "max_gradient_norm": 1e9,
            }
        )
        trained[domain] = Trainer(learned, options, 0, network, network, lambda *_: None)(smaller, 1)
    for name in ("first.weight", "second.weight"):
        before = parameter(smaller, name).detach()
        moved = {domain: parameter(graph, name).detach() - before for domain, graph in trained.items()}
        assert float(moved["spatial"].abs().max()) > 0
        assert float((moved["winograd"] - moved["spatial"]).norm()) < 1e-2 * float(moved["spatial"].norm())


@pytest.mark.parametrize("domain", ["winograd", "spatial"])
def test_w9_training_leaves_statistics_of_batch_normalisation(network: ModelGraph, images: Tensor, domain: str) -> None:
    learned = TrainingImages(len(images), lambda wanted: images.numpy()[wanted], torch.from_numpy, None)
    options = WinogradTraining.model_validate({"domain": domain, "epochs": 1})
    converted = to_winograd(network, {"first": 4, "second": 4})
    trained = Trainer(learned, options, 0, network, network, lambda *_: None)(converted, 1)
    for name, before in converted.module.named_buffers():
        assert torch.equal(parameter(trained, name), before)


def test_a_count_beyond_the_largest_rate_is_warned_of(network: ModelGraph, images: Tensor) -> None:
    result = run(network, images, select="count", count=12, tile=2, rounds=1)
    assert all(len(layer.pruned[0]) <= 8 for layer in result.layers)
    assert any("max_rate 0.5 allows less than 12 positions" in warning for warning in result.warnings)
