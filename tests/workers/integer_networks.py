"""A network of every kind of operation that integers can do, and integer networks made of it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.recipe import QuantizeFixedPoint
from tests.workers.networks import graph_of
from workers.compression.quantize_fixed_point import FixedPointResult, Surroundings, quantize_fixed_point
from workers.models.graph import ModelGraph


class EveryOperation(nn.Module):
    """4x12x12 images, five classes as log probabilities (METHODS 5.6)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_before = nn.BatchNorm2d(4)  # can't be folded
        self.first = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.strided = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.joined = nn.Conv2d(24, 8, 1)
        self.hidden = nn.Linear(8 * 3 * 3, 16)
        self.fc = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(self.norm_before(image))))  # 12x12
        x = functional.hardswish(self.strided(x)) + functional.pad(x[:, :, ::2, ::2][:, 2:6], (0, 0, 0, 0, 2, 2))
        y = functional.relu6(self.dilated(x))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        z = torch.relu(self.grouped(y) + x)
        small = functional.max_pool2d(z, 2)  # 3x3
        large = functional.interpolate(functional.avg_pool2d(z, 3), scale_factor=3.0)
        wide = torch.cat([self.depthwise(z), y, large], 1)
        joined = torch.tanh(self.joined(functional.avg_pool2d(wide, 2)))
        flat = (joined + small).flatten(1)
        result: Tensor = self.fc(torch.relu(self.hidden(flat)))
        return functional.log_softmax(result, 1)


def example_images() -> Tensor:
    """40 of them, their channels spread."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 4, 12, 12, generator=generator) * torch.tensor([0.2, 1.0, 2.0, 0.5]).reshape(1, 4, 1, 1)


def every_operation() -> ModelGraph:
    """An `EveryOperation` with seeded weights and the batch statistics of `example_images`."""
    torch.manual_seed(3)
    module, images = EveryOperation(), example_images()
    module.train()
    with torch.no_grad():
        for _ in range(20):
            module(images)
    return graph_of(module.eval(), images[:2])


def recipe(**options: Any) -> QuantizeFixedPoint:
    return QuantizeFixedPoint.model_validate({"kind": "quantize_fixed_point", **options})


def around(network: ModelGraph, images: Tensor, **more: Any) -> Surroundings:
    """Accuracy is the agreement with `network`."""
    wanted = network(images)[0].argmax(1)

    def batches(_: ModelGraph, count: int) -> Iterator[Tensor]:
        yield from torch.split(images[:count], 16)

    def evaluate(graph: ModelGraph) -> float:
        return 100 * float((graph(images)[0].argmax(1) == wanted).double().mean())

    return Surroundings(batches, evaluate, **more)


def quantized(
    network: ModelGraph, images: Tensor, *, precision: dict[str, int] | None = None, **options: Any
) -> FixedPointResult:
    return quantize_fixed_point(network, recipe(**options), around(network, images), lambda *_: None, precision)
