"""Networks and images that the tests of compression share."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from winograd.selection import Shape

from tests.workers.compression.made_up_times import Measure, table_of
from tests.workers.networks import graph_of, small_cnn
from workers.compression.examples import Examples
from workers.models.graph import ModelGraph, copy_graph


class ThreeLinears(nn.Module):
    """Layers A, B and C of 1000 weights each, all of different size."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.B, self.C = nn.Linear(25, 40), nn.Linear(40, 25), nn.Linear(25, 40)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for layer in (self.A, self.B, self.C):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.C(self.B(self.A(features)))
        return result


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only lose time when threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def _three_layers() -> ModelGraph:
    return graph_of(ThreeLinears(), torch.zeros(1, 25))


@pytest.fixture(scope="session")
def _small_network() -> ModelGraph:
    return graph_of(small_cnn(), torch.zeros(1, 1, 8, 8))


@pytest.fixture
def three_layers(_three_layers: ModelGraph) -> ModelGraph:
    """Layers A, B and C of 1000 weights each."""
    return copy_graph(_three_layers)


@pytest.fixture
def small_network(_small_network: ModelGraph) -> ModelGraph:
    """Two convolutions with batch normalisation and a shortcut, and a linear layer."""
    return copy_graph(_small_network)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Takes the place of winograd's measurements, which change with every tuning."""

    def measure(milliseconds: Mapping[Shape, Mapping[str, float]], *, threads: int = 1) -> None:
        monkeypatch.setattr("winograd.selection_table.CPU", table_of(milliseconds, threads=threads))

    return measure


@pytest.fixture
def examples_of() -> Callable[..., Examples]:
    """Random images for a network, each with the class that the network itself gives, some of them made wrong."""

    def make(graph: ModelGraph, *, count: int = 150, wrong: int = 10, seed: int = 0) -> Examples:
        generator = torch.Generator().manual_seed(seed)
        shape = [count, *(int(side) for side in graph.inputs[0].shape[1:])]
        pixels = torch.randn(shape, generator=generator).to(graph.inputs[0].dtype)
        size = graph.batch_size or count
        scores = torch.cat([graph(part)[0].reshape(len(part), -1) for part in torch.split(pixels, size)])
        targets = scores.argmax(dim=1)
        targets[:wrong] = (targets[:wrong] + 1) % scores.shape[1]
        images = pixels.numpy()
        return Examples(lambda indices: images[indices], torch.from_numpy, targets.numpy().astype(np.int64))

    return make
