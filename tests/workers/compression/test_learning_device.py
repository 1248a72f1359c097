"""Networks learn on a GPU where there is one, and come to what they come to on the CPU."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jobs.recipe import Finetune, LearningCycles, WinogradTraining
from tests.winograd.gpu import needs_gpu
from tests.workers.networks import graph_of, small_cnn
from workers.compression.finetune import FinetuneResult, TrainingImages, finetune
from workers.compression.learning_device import CPU, learning_device
from workers.compression.weight_differences import DifferenceRecorder
from workers.compression.winograd_layers import Mask, to_winograd, without_pruned
from workers.compression.winograd_positions import prune_lowest
from workers.compression.winograd_training import Trainer
from workers.models.graph import ModelGraph, layers, parameter

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as runners have it

COUNT = 64
SIZES = (1, 8, 8)


class Pooled(nn.Module):
    """A convolution whose output is averaged over parts of the image, whose gradients have no fixed order on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        pooled: Tensor = nn.functional.adaptive_avg_pool2d(self.conv(image), 4)
        return pooled


@pytest.fixture
def repeatable() -> Iterator[None]:
    """torch as runners set it up, in float32 alone: TF32 would be another arithmetic than the CPU's."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.use_deterministic_algorithms(False)


def network() -> ModelGraph:
    return graph_of(small_cnn(), torch.zeros(1, *SIZES))


def images() -> TrainingImages:
    pixels = np.random.default_rng(0).normal(size=(COUNT, *SIZES)).astype(np.float32)
    labels = (pixels.mean((1, 2, 3)) > 0).astype(np.int64)
    return TrainingImages(COUNT, lambda wanted: pixels[wanted], torch.from_numpy, labels)


def learned(graph: ModelGraph, device: str, loss: str) -> FinetuneResult:
    step = Finetune.model_validate({"kind": "finetune", "batch_size": 16, "epochs": 2, "loss": loss})
    return finetune(
        graph, images(), step, seed=0, teacher=network(), evaluate=None, on_progress=lambda *_: None, device=torch.device(device)
    )  # fmt: skip


def state(graph: ModelGraph) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in graph.module.state_dict().items()}


def assert_alike(one: ModelGraph, other: ModelGraph, start: ModelGraph) -> None:
    """Both on the CPU, and as far from where they began as from each other a thousand times over."""
    mine, theirs, before = state(one), state(other), state(start)
    for name, tensor in mine.items():
        assert tensor.device == theirs[name].device == CPU
        moved = float((theirs[name].double() - before[name].double()).norm())
        assert float((tensor.double() - theirs[name].double()).norm()) <= 1e-3 * moved + 1e-6, name


def test_a_gpu_is_taken_where_its_gradients_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = graph_of(Pooled(), torch.zeros(1, *SIZES))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert learning_device(network()) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert learning_device(network()) == torch.device("cuda")
    assert learning_device(pooled) == CPU


def test_the_report_says_where_a_network_learned() -> None:
    assert learned(network(), "cpu", "labels").as_details()["learned_on"] == "cpu"


@needs_gpu
@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("loss", ["labels", "distillation"])
def test_a_network_learns_on_a_gpu_what_it_learns_on_the_cpu(loss: str) -> None:
    on_gpu, on_cpu = (learned(network(), device, loss) for device in ("cuda", "cpu"))
    assert_alike(on_gpu.graph, on_cpu.graph, network())
    assert on_gpu.learned_on == torch.cuda.get_device_name()


@needs_gpu
@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("domain", ["winograd", "spatial"])
def test_w9_winograd_networks_learn_on_a_gpu_what_they_learn_on_the_cpu(domain: str) -> None:
    graph = network()
    masks = {}
    for name in ("conv1", "conv2"):
        scores = torch.rand(1, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        masks[name] = prune_lowest(Mask.whole(4, 1, "output_channels"), scores, 4, count=12)
    start = without_pruned(to_winograd(graph, dict.fromkeys(masks, 4)), masks)
    options = WinogradTraining.model_validate({"domain": domain, "epochs": 2, "batch_size": 16, "learning_rate": 0.01})
    trained = [
        Trainer(images(), options, 0, graph, graph, lambda *_: None, torch.device(device))(start, 1)
        for device in ("cuda", "cuda", "cpu")
    ]
    assert_alike(trained[0], trained[2], start)
    for name, tensor in state(trained[0]).items():
        assert torch.equal(tensor, state(trained[1])[name]), "the same request gives the same bytes"


@needs_gpu
@pytest.mark.usefixtures("repeatable")
def test_q2_weight_differences_are_taken_of_weights_that_learn_on_a_gpu() -> None:
    graph = network()
    found = []
    for device in ("cuda", "cpu"):
        weights = {layer.name: parameter(graph, layer.weight) for layer in layers(graph)}
        step = LearningCycles.model_validate(
            {"batch_size": 16, "augment": "none", "loss": "labels", "learning_rate": 0.01}
        )
        recorder = DifferenceRecorder(weights, step)
        finetune(
            graph, images(), step, seed=0, teacher=None, evaluate=None, on_progress=lambda *_: None,
            after_step=recorder.after_step, device=torch.device(device),
        )  # fmt: skip
        found.append(recorder.statistics())
    on_gpu, on_cpu = found
    for mine, theirs in zip(on_gpu.cycles, on_cpu.cycles, strict=True):
        for name, change in mine.items():
            assert change.initial == pytest.approx(theirs[name].initial, rel=1e-2)
            assert change.cycle_start == pytest.approx(theirs[name].cycle_start, rel=1e-2)
