"""Cross-layer equalisation: what it scales, what it leaves, and what integers gain by it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.workers.integer_networks import quantized
from tests.workers.networks import graph_of
from workers.compression.equalise_layers import equalise_layers
from workers.compression.winograd_layers import to_winograd
from workers.models.graph import ModelGraph, layers, parameter


class Chain(nn.Module):
    """Channels spread by powers of two that ReLU and pooling let through; a shortcut that nobody may scale."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.two = nn.Conv2d(16, 8, 3, padding=1)
        self.three = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.clamped = nn.Conv2d(8, 8, 1)
        self.hidden = nn.Linear(8, 12)
        self.fc = nn.Linear(12, 4)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for first, second in ((self.one, self.depthwise), (self.depthwise, self.two)):
                scales = 2.0 ** (spread * torch.randn(16, generator=generator))
                first.weight *= scales.reshape(-1, 1, 1, 1)
                assert first.bias is not None
                first.bias *= scales
                shape = (-1, 1, 1, 1) if second is self.depthwise else (1, -1, 1, 1)
                second.weight /= scales.reshape(shape)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.one(image))))
        x = torch.relu(self.two(functional.max_pool2d(x, 2)))
        x = torch.relu(self.three(x) + x)
        x = functional.relu6(self.clamped(x)).mean((2, 3))
        result: Tensor = self.fc(torch.relu(self.hidden(x)))
        return result


@pytest.fixture
def images() -> Tensor:
    return torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def chain(images: Tensor, spread: float = 3.0) -> ModelGraph:
    torch.manual_seed(3)
    return graph_of(Chain(spread).eval(), images[:2])


def weights_of(graph: ModelGraph) -> dict[str, Tensor]:
    return {layer.name: parameter(graph, layer.weight) for layer in layers(graph)}


def test_network_computes_the_same_to_the_last_bit(images: Tensor) -> None:
    graph = chain(images)
    equalised = equalise_layers(graph)
    assert torch.equal(graph(images)[0], equalised(images)[0])
    before, after = weights_of(graph), weights_of(equalised)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # Outputs that are read twice stay, and so do those that a clamp cuts off at six.
    assert changed == {"one", "depthwise", "two", "hidden", "fc"}


def test_ranges_are_within_a_factor_of_two_afterwards(images: Tensor) -> None:
    after = weights_of(equalise_layers(chain(images)))
    given, read = after["depthwise"].abs().amax((1, 2, 3)), after["two"].abs().amax((0, 2, 3))
    assert float((given / read).log2().abs().max()) <= 1.0
    before = weights_of(chain(images))
    spread = (before["depthwise"].abs().amax((1, 2, 3)) / before["two"].abs().amax((0, 2, 3))).log2()
    assert float(spread.abs().max()) > 4


def test_winograd_convolutions_are_equalised_too(images: Tensor) -> None:
    graph = to_winograd(chain(images), {"one": 2, "two": 2})
    equalised = equalise_layers(graph)
    torch.testing.assert_close(equalised(images)[0], graph(images)[0], rtol=1e-5, atol=1e-6)
    before, after = weights_of(graph), weights_of(equalised)
    assert not torch.equal(before["one"], after["one"])
    assert not torch.equal(before["two"], after["two"])


@pytest.mark.parametrize(
    "options", [{"activation_lengths": "per_layer", "weight_lengths": "per_layer"}, {"align": "shift"}], ids=str
)
def test_one_length_a_layer_gains_and_so_do_shifted_weights(images: Tensor, options: dict[str, str]) -> None:
    graph = chain(images)
    wanted = graph(images)[0]
    without, evened = (
        quantized(graph, images, rounding="nearest", equalise=equalise, **options).graph(images)[0] - wanted
        for equalise in (False, True)
    )
    assert float(evened.norm()) < float(without.norm()) / 2


def test_tuned_lengths_of_channels_do_it_by_themselves(images: Tensor) -> None:
    graph = chain(images)
    without, evened = (
        quantized(graph, images, rounding="nearest", equalise=equalise).graph(images)[0] for equalise in (False, True)
    )
    assert torch.equal(without, evened)
