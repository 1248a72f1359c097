"""Folding changes no output beyond rounding, and folds only where that is true."""

import pytest
import torch
from torch import Tensor, nn

from tests.workers.networks import graph_of
from workers.compression.fold_batchnorm import fold_batchnorm
from workers.models.graph import ModelGraph, aten


def with_statistics(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    with torch.no_grad():
                        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.3)
    return network.eval()


def count_norms(graph: ModelGraph) -> int:
    return sum(node.target is aten.batch_norm.default for node in graph.module.graph.nodes)


FOLDABLE = {
    "conv2d": (nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)), (2, 3, 7, 7)),
    "conv2d with bias": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), (2, 3, 7, 7)),
    "grouped": (nn.Sequential(nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8)), (2, 6, 7, 7)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (2, 4, 5, 5)),
    "without affine": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)), (2, 3, 7, 7)),
    "linear": (nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8)), (2, 5)),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_folding_keeps_the_outputs_up_to_rounding(name: str) -> None:
    network, shape = FOLDABLE[name]
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    graph = graph_of(with_statistics(network), image[:1])
    assert count_norms(graph) == 1
    folded = fold_batchnorm(graph)
    assert count_norms(folded) == 0
    torch.testing.assert_close(folded(image)[0], graph(image)[0], rtol=1e-5, atol=1e-5)


def test_nothing_unread_is_left_and_the_original_is_untouched(small_network: ModelGraph) -> None:
    before = {name: tensor.clone() for name, tensor in small_network.module.state_dict().items()}
    folded = fold_batchnorm(small_network)
    assert sorted(folded.module.state_dict()) == [
        "conv1.bias", "conv1.weight", "conv2.bias", "conv2.weight", "fc.bias", "fc.weight",
    ]  # fmt: skip
    after = small_network.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert count_norms(small_network) == 2


class ReadTwice(nn.Module):
    """The convolution's output is read before the normalisation as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image: Tensor) -> Tensor:
        features = self.conv(image)
        result: Tensor = self.norm(features) + features
        return result


class SharedWeights(nn.Module):
    """One convolution, two normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.other(self.conv(self.one(self.conv(image))))
        return result


class LinearOverTokens(nn.Module):
    """The normalised channels are not the linear layer's outputs, though there are as many."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.norm(self.linear(tokens))
        return result


@pytest.mark.parametrize(
    ("network", "shape"),
    [(ReadTwice(), (1, 2, 5, 5)), (SharedWeights(), (1, 2, 5, 5)), (LinearOverTokens(), (1, 4, 6))],
)
def test_what_cannot_be_folded_stays(network: nn.Module, shape: tuple[int, ...]) -> None:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    graph = graph_of(with_statistics(network), image)
    folded = fold_batchnorm(graph)
    assert count_norms(folded) == count_norms(graph) > 0
    assert torch.equal(folded(image)[0], graph(image)[0])
