"""A network that only teaches gives the answers that it would give anyway, faster."""

import pytest
import torch
from torch import Tensor, nn
from winograd.prepare import PreparedNetwork

import winograd
from tests.workers.networks import graph_of, small_cnn
from winograd import library
from workers.compression.teacher import WORTH_PREPARING, answers_of

needs_compiled_code = pytest.mark.skipif(not library.variants(), reason="plain torch computes")

IMAGES = torch.randn(21, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Normed(nn.Module):
    """A layer norm is nothing that one call computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm((8, 8))

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.norm(self.second(torch.relu(self.conv(image)))).mean((2, 3))
        return result


@needs_compiled_code
@pytest.mark.parametrize("batch_size", [1, 8, 21])
def test_answers_are_the_networks_own_up_to_rounding(batch_size: int) -> None:
    network = graph_of(small_cnn(), IMAGES[:1])
    answers = answers_of(network, WORTH_PREPARING)
    assert isinstance(answers, PreparedNetwork)
    with torch.no_grad():
        for part in IMAGES.split(batch_size):
            torch.testing.assert_close(answers(part), network(part)[0], rtol=1e-5, atol=1e-5)


@needs_compiled_code
def test_its_convolutions_are_winograd_ones() -> None:
    answers = answers_of(graph_of(small_cnn(), IMAGES[:1]), WORTH_PREPARING)
    with winograd.count_operations() as counted:
        answers(IMAGES[:1])
    assert counted.gemms == 36  # the second layer; filters of the first read one channel each


def test_for_few_images_nothing_is_prepared() -> None:
    network = graph_of(small_cnn(), IMAGES[:1])
    answers = answers_of(network, WORTH_PREPARING - 1)
    assert not isinstance(answers, PreparedNetwork)
    assert torch.equal(answers(IMAGES), network(IMAGES)[0])


def test_what_is_no_single_call_stays_as_it_is() -> None:
    network = graph_of(Normed(), IMAGES[:1])
    answers = answers_of(network, WORTH_PREPARING)
    assert not isinstance(answers, PreparedNetwork)
    assert torch.equal(answers(IMAGES), network(IMAGES)[0])
