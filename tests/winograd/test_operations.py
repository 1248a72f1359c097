"""W-8: the count of operations decreases because multiplications of pruned positions are not executed."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from winograd.matrices import MATRICES

import winograd

pytestmark = pytest.mark.usefixtures("implementation")


def convolve(x: Tensor, weights: Tensor, positions: Sequence[int], m: int, *, groups: int = 1) -> Tensor:
    return winograd.conv2d(x, weights, positions, m, 1, groups=groups)


def convolve_packed(x: Tensor, weights: Tensor, positions: Sequence[int], m: int, *, groups: int = 1) -> Tensor:
    packed = winograd.pack_weights(weights, positions, m, groups=groups)
    return winograd.conv2d_packed(x, packed, 1)


every_way = pytest.mark.parametrize("run", [convolve, convolve_packed], ids=["conv2d", "packed"])


@every_way
@pytest.mark.parametrize(
    ("pruned", "gemms", "multiplications"), [((), 16, 3072), ((5, 10), 14, 2688)], ids=["dense", "two-pruned"]
)
def test_w8_pruned_positions_are_not_multiplied(
    run: Callable[..., Tensor], pruned: tuple[int, ...], gemms: int, multiplications: int
) -> None:
    """One image, 4 channels, 3 filters, 8x8 outputs, m = 2: 16 tiles; the direct convolution takes 6912 multiplications."""
    positions = [position for position in range(16) if position not in pruned]

    with winograd.count_operations() as counted:
        run(torch.ones(1, 4, 8, 8), torch.ones(len(positions), 3, 4), positions, 2)

    assert counted.gemms == gemms
    assert counted.multiplications == multiplications


@every_way
@pytest.mark.parametrize("m", MATRICES)
@pytest.mark.parametrize("dropped", [0, 1, 5])
def test_w8_count_falls_with_every_position(run: Callable[..., Tensor], m: int, dropped: int) -> None:
    """N * tiles * K * C * P, also where the last tiles reach beyond the image."""
    positions = list(range(MATRICES[m].t ** 2))[dropped:]

    with winograd.count_operations() as counted:
        run(torch.ones(2, 3, 9, 15), torch.ones(len(positions), 5, 3), positions, m)

    tiles = 2 * -(-9 // m) * -(-15 // m)
    assert counted.gemms == len(positions)
    assert counted.multiplications == tiles * 5 * 3 * len(positions)


@every_way
@pytest.mark.parametrize(
    ("groups", "kernel_groups", "gemms"), [(1, 1, 3), (2, 1, 6), (1, 2, 6), (2, 2, 6), (2, 4, 12), (4, 2, 12)], ids=str
)
def test_groups_multiply_on_their_own(run: Callable[..., Tensor], groups: int, kernel_groups: int, gemms: int) -> None:
    with winograd.count_operations() as counted:
        run(torch.ones(1, 8, 4, 4), torch.ones(3, 8, 8 // groups), [0, 5, 15] * kernel_groups, 4, groups=groups)

    assert counted.gemms == gemms
    assert counted.multiplications == 3 * 8 * (8 // groups)  # one tile


def test_counts_inside_and_after_the_block() -> None:
    x, weights = torch.ones(1, 1, 4, 4), torch.ones(2, 1, 1)
    with winograd.count_operations() as outer:
        convolve(x, weights, [0, 1], 2)
        with winograd.count_operations() as inner:
            convolve(x, weights, [0, 1], 2)
            assert inner.gemms == 2
        convolve(x, weights, [0, 1], 2)
    convolve(x, weights, [0, 1], 2)

    assert (outer.gemms, inner.gemms) == (6, 2)
    assert (outer.multiplications, inner.multiplications) == (24, 8)


def test_empty_batch_multiplies_nothing() -> None:
    with winograd.count_operations() as counted:
        convolve(torch.ones(0, 1, 4, 4), torch.ones(2, 1, 1), [0, 1], 2)

    assert counted.gemms == 0
    assert counted.multiplications == 0


def test_gradients_are_not_counted() -> None:
    weights = torch.ones(2, 1, 1, requires_grad=True)
    with winograd.count_operations() as counted:
        convolve(torch.ones(1, 1, 4, 4), weights, [0, 1], 2).sum().backward()

    assert counted.gemms == 2


def test_block_that_fails_still_says_what_ran() -> None:
    found = []

    def fail_while_counting() -> None:
        with winograd.count_operations() as counted:
            found.append(counted)
            convolve(torch.ones(1, 1, 4, 4), torch.ones(2, 1, 1), [0, 1], 2)
            raise KeyError

    with pytest.raises(KeyError):
        fail_while_counting()

    assert found[0].gemms == 2
