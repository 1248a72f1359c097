"""Finetuning learns, keeps zeros, repeats itself, and gives back what it was given where it did harm."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jobs.errors import RecipeRefused
from jobs.recipe import Finetune
from tests.workers.networks import graph_of
from workers.compression.augment import blended, flip_and_crop
from workers.compression.finetune import FinetuneResult, TrainingImages, finetune
from workers.datasets.dataset import Pixels
from workers.models.graph import ModelGraph, aten, copy_graph, parameter

COUNT = 96


def stripes(*, labelled: bool = True, seed: int = 0) -> TrainingImages:
    """Noisy images of two classes that differ in where they are bright."""
    generator = np.random.default_rng(seed)
    labels = np.arange(COUNT) % 2
    pixels = generator.normal(size=(COUNT, 1, 8, 8)).astype(np.float32) * 0.3
    pixels[labels == 1, :, :4] += 1.0
    pixels[labels == 0, :, 4:] += 1.0
    return TrainingImages(COUNT, lambda indices: pixels[indices], torch.from_numpy, labels if labelled else None)


def run(graph: ModelGraph, images: TrainingImages | None = None, **options: Any) -> FinetuneResult:
    outside = {name: options.pop(name) for name in ("teacher", "evaluate", "seed") if name in options}
    step = Finetune.model_validate({"kind": "finetune", "batch_size": 16, "epochs": 3, **options})
    return finetune(
        graph,
        images or stripes(),
        step,
        on_progress=lambda *_: None,
        **{"seed": 0, "teacher": None, "evaluate": None, **outside},
    )


def with_zeros(graph: ModelGraph) -> ModelGraph:
    pruned = copy_graph(graph)
    with torch.no_grad():
        for name in ("conv1.weight", "conv2.weight", "fc.weight"):
            weight = parameter(pruned, name)
            weight[weight.abs() < weight.abs().median()] = 0
    return pruned


def test_the_loss_falls(small_network: ModelGraph) -> None:
    losses = [epoch.loss for epoch in run(small_network).epochs]
    assert len(losses) == 3
    assert losses[2] < losses[0] / 2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_zeros_stay_exactly_zero_through_momentum_and_weight_decay(small_network: ModelGraph, momentum: float) -> None:
    pruned = with_zeros(small_network)
    result = run(pruned, momentum=momentum, weight_decay=0.01)
    for name in ("conv1.weight", "conv2.weight", "fc.weight"):
        before, after = parameter(pruned, name), parameter(result.graph, name)
        assert torch.equal(before == 0, after == 0)
        assert not torch.equal(before, after)
    assert result.kept_zeros == sum(
        int((parameter(pruned, name) == 0).sum()) for name in ("conv1.weight", "conv2.weight", "fc.weight")
    )


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(small_network: ModelGraph) -> None:
    one, again, other = (run(small_network, seed=seed, augment="flip_crop") for seed in (1, 1, 2))
    weights = [result.graph.module.state_dict() for result in (one, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["conv2.weight"], weights[2]["conv2.weight"])
    assert one.epochs == again.epochs


def test_batch_statistics_move_and_the_network_comes_back_in_evaluation_form(small_network: ModelGraph) -> None:
    result = run(small_network)
    name = "bn1.running_mean"
    assert not torch.equal(parameter(result.graph, name), parameter(small_network, name))
    norms = [node for node in result.graph.module.graph.nodes if node.target is aten.batch_norm.default]
    assert [node.args[5] for node in norms] == [False, False]
    image = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(result.graph(image)[0][:1], result.graph(image[:1])[0])


def test_the_given_network_is_not_changed(small_network: ModelGraph) -> None:
    before = {name: tensor.clone() for name, tensor in small_network.module.state_dict().items()}
    run(small_network)
    after = small_network.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in small_network.module.parameters())


def test_without_labels_the_network_learns_its_teachers_outputs(small_network: ModelGraph) -> None:
    pruned = with_zeros(small_network)
    images = stripes(labelled=False)
    every = images.to_input(images.pick(np.arange(COUNT)))
    result = run(pruned, images, teacher=small_network, epochs=16)
    assert result.loss == "distillation"

    def distance(graph: ModelGraph) -> float:
        with torch.no_grad():
            return float((graph(every)[0].softmax(1) - small_network(every)[0].softmax(1)).abs().sum())

    assert distance(result.graph) < distance(pruned) / 2


def test_what_it_has_nothing_to_learn_from_is_refused(small_network: ModelGraph) -> None:
    with pytest.raises(RecipeRefused, match="the training data have none"):
        run(small_network, stripes(labelled=False), loss="labels", teacher=small_network)
    with pytest.raises(RecipeRefused, match="there is none"):
        run(small_network, loss="distillation")


def test_labels_beyond_the_outputs_are_refused(small_network: ModelGraph) -> None:
    images = stripes()
    assert images.labels is not None
    images.labels[5] = 10
    with pytest.raises(RecipeRefused, match="label 10, but the network gives 10 scores"):
        run(small_network, images)


def test_divergence_is_said_with_what_to_do(small_network: ModelGraph) -> None:
    broken = stripes()
    images = TrainingImages(COUNT, broken.pick, lambda pixels: torch.from_numpy(pixels) * float("inf"), broken.labels)
    with pytest.raises(RecipeRefused, match="Training diverged") as refusal:
        run(small_network, images)
    assert "learning_rate" in str(refusal.value.hint)


def test_training_that_does_harm_is_undone_bit_for_bit(small_network: ModelGraph) -> None:
    accuracies = iter([90.0, 89.9])
    result = run(small_network, evaluate=lambda _: next(accuracies))
    assert result.is_restored
    assert (result.accuracy_before, result.accuracy_after) == (90.0, 89.9)
    given, kept = small_network.module.state_dict(), result.graph.module.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in given.items())
    assert result.as_details()["is_restored"] is True


def test_training_that_helps_is_kept(small_network: ModelGraph) -> None:
    accuracies = iter([90.0, 90.0])
    result = run(small_network, evaluate=lambda _: next(accuracies))
    assert not result.is_restored
    assert not torch.equal(parameter(result.graph, "fc.weight"), parameter(small_network, "fc.weight"))


def test_only_convolution_and_linear_weights_decay(small_network: ModelGraph) -> None:
    """With inputs of zero and one class nothing but the decay and the biases can change."""
    images = TrainingImages(32, lambda i: np.zeros((len(i), 1, 8, 8), np.float32), torch.from_numpy, np.zeros(32, int))
    decayed = run(small_network, images, weight_decay=1.0, learning_rate=0.001, momentum=0.0)
    plain = run(small_network, images, weight_decay=0.0, learning_rate=0.001, momentum=0.0)
    assert parameter(decayed.graph, "conv1.weight").norm() < parameter(plain.graph, "conv1.weight").norm()
    assert torch.equal(parameter(plain.graph, "conv1.weight"), parameter(small_network, "conv1.weight"))
    assert torch.equal(parameter(decayed.graph, "bn1.weight"), parameter(plain.graph, "bn1.weight"))


def test_a_network_that_ends_in_softmax_learns_from_its_scores() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    scores, probabilities = (
        graph_of(network.eval(), torch.zeros(1, 1, 8, 8))
        for network in (plain, nn.Sequential(plain, nn.Softmax(dim=1)))
    )
    one, other = run(scores), run(probabilities)
    assert [epoch.loss for epoch in other.epochs] == pytest.approx([epoch.loss for epoch in one.epochs])
    (output,) = other.graph(torch.zeros(3, 1, 8, 8))
    torch.testing.assert_close(output.sum(dim=1), torch.ones(3))


def test_half_precision_weights_learn_in_single_precision_and_come_back_in_half() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).half().eval()
    graph = graph_of(network, torch.zeros(1, 1, 8, 8, dtype=torch.float16))
    single = stripes()
    images = TrainingImages(COUNT, single.pick, lambda pixels: torch.from_numpy(pixels).half(), single.labels)
    result = run(graph, images)
    assert result.epochs[-1].loss < result.epochs[0].loss
    assert {tensor.dtype for tensor in result.graph.module.state_dict().values()} == {torch.float16}


@pytest.mark.parametrize("count", [1, 2, 17, 33])
def test_any_number_of_images_can_be_learnt_from(small_network: ModelGraph, count: int) -> None:
    images = stripes()
    few = TrainingImages(count, images.pick, images.to_input, images.labels)
    result = run(small_network, few, learning_rate=0.001)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.graph.module.state_dict().values())


def test_progress_rises_to_one(small_network: ModelGraph) -> None:
    shares: list[float] = []
    step = Finetune(kind="finetune", epochs=2, batch_size=32)
    finetune(
        small_network,
        stripes(),
        step,
        seed=0,
        teacher=None,
        evaluate=None,
        on_progress=lambda share, _message, _figures: shares.append(share),
    )
    assert shares == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])


def test_flips_and_crops_only_move_pixels() -> None:
    pixels: Pixels = np.arange(1, 4 * 3 * 8 * 8 + 1, dtype=np.float32).reshape(4, 3, 8, 8)
    moved = flip_and_crop(pixels, torch.Generator().manual_seed(0))
    assert (moved.shape, moved.dtype) == (pixels.shape, pixels.dtype)
    for before, after in zip(pixels, moved, strict=True):
        candidates = []
        padded = np.pad(before, ((0, 0), (1, 1), (1, 1)))
        for top in range(3):
            for left in range(3):
                crop = padded[:, top : top + 8, left : left + 8]
                candidates += [crop, crop[:, :, ::-1]]
        assert any(np.array_equal(after, candidate) for candidate in candidates)
    assert not np.array_equal(moved, pixels)


def test_steps_are_no_longer_than_the_largest_gradient_allowed(small_network: ModelGraph) -> None:
    options = {"kind": "finetune", "momentum": 0, "weight_decay": 0, "epochs": 1, "batch_size": COUNT // 3}
    step = Finetune.model_validate({**options, "learning_rate": 1.0, "max_gradient_norm": 1e-3})
    result = finetune(small_network, stripes(), step, seed=0, teacher=None, evaluate=None, on_progress=lambda *_: None)
    moved = sum(
        float((parameter(result.graph, name).detach() - before.detach()).square().sum())
        for name, before in small_network.module.named_parameters()
    )
    assert 1e-4 < moved**0.5 <= 3 * 1e-3 * 1.001


def test_blends_are_of_pairs_of_images(small_network: ModelGraph) -> None:
    """Every image is a x + (1 - a) y of itself and another, told apart here by where they are bright."""
    batch = torch.eye(16)[:, :, None].expand(16, 16, 3).contiguous()
    found = blended(batch, torch.Generator().manual_seed(0))
    assert torch.allclose(found.sum(1), torch.ones(16, 3))
    shares = found[:, :, 0].diagonal()
    assert int((found[:, :, 0] > 0).sum(1).max()) == 2
    assert 0.2 < float(shares.mean()) < 0.8
    assert torch.equal(found, blended(batch, torch.Generator().manual_seed(0)))
    assert blended(batch.half(), torch.Generator()).dtype == torch.float16


def test_images_are_blended_only_where_outputs_are_learned(small_network: ModelGraph) -> None:
    """A blend has no label."""
    teacher = run(small_network).graph

    def weights(**options: Any) -> torch.Tensor:
        result = run(small_network, teacher=teacher, **options)
        return parameter(result.graph, "conv2.weight")

    assert torch.equal(weights(loss="labels", mix=True), weights(loss="labels"))
    assert not torch.equal(weights(loss="distillation", mix=True), weights(loss="distillation"))
