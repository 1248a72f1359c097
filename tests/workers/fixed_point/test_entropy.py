"""Bits of weights, told without deflating them."""

import pytest
import torch

from workers.fixed_point.entropy import entropy_bits
from workers.models.deflate import deflated


def test_equally_frequent_values_take_their_number_of_bits_and_equal_ones_none() -> None:
    assert entropy_bits(torch.arange(8).repeat(100)) == pytest.approx(3 * 800)
    assert entropy_bits(torch.zeros(3, 5, dtype=torch.int64)) == 0


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
def test_files_take_little_more(bits: int) -> None:
    largest = 2 ** (bits - 1)
    numbers = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(0)) * largest / 3
    weights = numbers.round().clamp(-largest, largest - 1).to(torch.int8)
    taken = 8 * len(deflated(weights.numpy().tobytes()))
    assert entropy_bits(weights) < taken < 1.2 * entropy_bits(weights)
