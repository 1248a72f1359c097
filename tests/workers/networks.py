"""Small networks for tests, built in the same form that uploads have."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.export import Dim

from workers.models.graph import ModelGraph
from workers.models.read_pt2 import read_pt2


class SmallCnn(nn.Module):
    """1x8x8 images, two convolutions with batch normalisation and a shortcut around the second, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4 * 4, 10)

    def forward(self, image: Tensor) -> Tensor:
        first = torch.relu(self.bn1(self.conv1(image)))
        second = torch.relu(self.bn2(self.conv2(first)) + first)
        features = nn.functional.max_pool2d(second, 2)
        logits: Tensor = self.fc(features.flatten(1))
        return logits


def small_cnn(seed: int = 0) -> nn.Module:
    """A `SmallCnn` with seeded weights and batch statistics that are not the trivial ones, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    network = SmallCnn()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var") or (name.startswith("bn") and name.endswith(".weight")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 10
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
    return network.eval()


def save_pt2(module: nn.Module, example: Tensor, path: Path, *, dynamic_batch: bool = True) -> Path:
    """Write `module` to `path` as stock torch does."""
    shapes = ({0: Dim("batch", min=1, max=4096)},) if dynamic_batch else None
    batch = torch.cat([example, example]) if dynamic_batch and example.shape[0] == 1 else example
    torch.export.save(torch.export.export(module, (batch,), dynamic_shapes=shapes), path)
    return path


def graph_of(module: nn.Module, example: Tensor) -> ModelGraph:
    """`module` as Winnow reads it from a file that stock torch wrote."""
    with TemporaryDirectory() as folder:
        return read_pt2(save_pt2(module, example, Path(folder) / "network.pt2"))
