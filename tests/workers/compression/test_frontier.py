"""A network that is computed once, layer by layer, while its layers change."""

import pytest
import torch
from torch import Tensor, nn

from tests.workers.networks import graph_of
from workers.compression.frontier import Frontier, batches_within
from workers.models.graph import ModelGraph, layers, parameter, set_parameter


class Residual(nn.Module):
    """Two layers, the second of them used twice, and a way around them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        inner = torch.relu(self.first(image))
        left, right = torch.split(self.second(torch.relu(self.second(inner))) + inner, 4, dim=1)
        result: Tensor = self.last(torch.cat([right, left], 1))
        return result


@pytest.fixture
def network() -> ModelGraph:
    torch.manual_seed(0)
    return graph_of(Residual().eval(), torch.zeros(2, 3, 6, 6))


@pytest.fixture
def batches() -> list[Tensor]:
    return list(torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(1)).split(4))


def inputs(graph: ModelGraph, name: str) -> tuple[str, ...]:
    return next(layer.used_by for layer in layers(graph) if layer.name == name)


def test_layers_see_what_those_before_them_make_by_now(network: ModelGraph, batches: list[Tensor]) -> None:
    frontier = Frontier(network, batches)
    (name,) = inputs(network, "first")
    assert all(torch.equal(seen[name], batch) for seen, batch in zip(frontier.inputs_of([name]), batches, strict=True))
    set_parameter(network, "first.weight", 2 * parameter(network, "first.weight").detach())
    once, twice = inputs(network, "second")
    for seen, batch in zip(frontier.inputs_of([once, twice]), batches, strict=True):
        read = torch.relu(
            nn.functional.conv2d(batch, parameter(network, "first.weight"), parameter(network, "first.bias"), padding=1)
        )
        assert torch.allclose(seen[once], read, atol=1e-6)
        weight, bias = parameter(network, "second.weight"), parameter(network, "second.bias")
        assert torch.allclose(seen[twice], torch.relu(nn.functional.conv2d(read, weight, bias, padding=1)), atol=1e-5)
    # What was seen of the second use was made with weights that the first is about to lose.
    set_parameter(network, "second.weight", 0.5 * parameter(network, "second.weight").detach())
    (last,) = inputs(network, "last")
    found = [seen[last] for seen in frontier.inputs_of([last])]
    weight, bias = parameter(network, "last.weight"), parameter(network, "last.bias")
    for read, batch in zip(found, batches, strict=True):
        assert torch.allclose(nn.functional.conv2d(read, weight, bias), network(batch)[0], atol=1e-5)


def test_what_nobody_reads_any_more_is_let_go(network: ModelGraph, batches: list[Tensor]) -> None:
    """At the most the split's input and its parts, or two tensors of 8 channels beside what is made of them."""
    peak = Frontier(network, batches[:1]).peak_bytes()
    assert 2 <= peak / (4 * 8 * 6 * 6 * 4) <= 3.5


def test_batches_are_as_many_as_memory_holds(network: ModelGraph, batches: list[Tensor]) -> None:
    one = Frontier(network, batches[:1]).peak_bytes()
    assert len(batches_within(0, network, iter(batches))) == 1
    assert len(batches_within(2 * one, network, iter(batches))) == 2
    assert len(batches_within(100 * one, network, iter(batches))) == len(batches)
