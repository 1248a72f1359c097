"""The trained CIFAR-10 networks of the collection that WINNOW_DATA names, as a user would upload them."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.material import CIFAR_PREPROCESS, data_folder
from workers.models.graph import ModelGraph
from workers.models.read_model import read_model

NETWORKS = ("resnet20", "resnet20b", "resnet8")
WIDTHS = (16, 32, 64)


@dataclass(frozen=True)
class Trained:
    """A network with what it takes to be given images of unsigned bytes."""

    graph: ModelGraph
    preprocess: dict[str, Any]


def trained(name: str, *, folded: bool = False) -> Trained:
    """One of `NETWORKS`; `resnet20` with batch normalisation folded in if asked."""
    match name:
        case "resnet20":
            path = data_folder() / "models" / f"cifar10_resnet20.{'onnx' if folded else 'pt2'}"
            return Trained(read_model(path), CIFAR_PREPROCESS)
        case "resnet20b":
            module = _with_weights(ResNet20b(), "cifar10_resnet20b_distiller_dense")
            return Trained(_exported(module), {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3})
        case "resnet8":
            return Trained(_exported(_with_weights(ResNet8(), "cifar10_resnet8_mlperf_tiny")), {"scale": 1.0})
        case _:
            raise ValueError(f"no network called {name!r}")


class ResNet20b(nn.Module):
    """ResNet-20 whose shortcuts between stages are convolutions (He et al. 2015, shortcut B)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(_Block(WIDTHS[max(0, stage - (place == 0))], filters) for place in range(3)))
            for stage, filters in enumerate(WIDTHS)
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


class _Block(nn.Module):
    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        stride = filters // channels
        self.conv1, self.bn1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters)
        self.conv2, self.bn2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters)
        self.downsample = nn.Sequential()
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(inner + self.downsample(x))


class ResNet8(nn.Module):
    """MLPerf Tiny's network for image classification; TensorFlow's padding, to the right and below where it strides."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, 16, 3, 1), (16, 16, 3, 1), (16, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1), (16, 32, 1, 2)]
        sizes += [(32, 64, 3, 2), (64, 64, 3, 1), (32, 64, 1, 2)]
        self.conv = nn.ModuleList(
            nn.Conv2d(channels, filters, size, stride, padding=1 if (size, stride) == (3, 1) else 0)
            for channels, filters, size, stride in sizes
        )
        self.bn = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-3) for width in (16, 16, 16, 32, 32, 64, 64))
        self.fc = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        conv, bn = self.conv, self.bn
        x = functional.relu(bn[0](conv[0](image)))
        x = functional.relu(bn[2](conv[2](functional.relu(bn[1](conv[1](x))))) + x)
        for first, norm in ((3, 3), (6, 5)):
            inner = functional.relu(bn[norm](conv[first](functional.pad(x, (0, 1, 0, 1)))))
            x = functional.relu(bn[norm + 1](conv[first + 1](inner)) + conv[first + 2](x))
        scores: Tensor = self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


def _with_weights(module: nn.Module, name: str) -> nn.Module:
    module.load_state_dict(load_file(data_folder() / "weights" / f"{name}.safetensors"), strict=False)
    return module.eval()


def _exported(module: nn.Module) -> ModelGraph:
    """By torch's stock exporter, and read again like an upload."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt2"
        torch.export.save(program, path)
        return read_model(path)
