"""Bilinear resizing in integers: where numbers lie, how weights are rounded, and how far it is from floating point."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.workers.fixed_point.networks import RandomNetwork
from workers.fixed_point.interpolation import ONE, Sampling
from workers.fixed_point.network import BilinearResize, Shape
from workers.fixed_point.run import IntegerRunner

IMAGE: Shape = (2, 5, 7)
SIZES = [(10, 14), (20, 28), (3, 4), (1, 1), (5, 7), (7, 3), (13, 6), (2, 25)]


def resized(images: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """By torch, in double precision."""
    return functional.interpolate(images.double(), size=size, mode="bilinear", align_corners=align_corners)


@pytest.mark.parametrize("align_corners", [False, True], ids=["half pixels", "corners"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_integers_are_as_near_to_floating_point_as_is_said(size: tuple[int, int], align_corners: bool) -> None:
    random = RandomNetwork(IMAGE)
    random.resize("image", size, align_corners=align_corners)
    images = random.images(20)
    made = IntegerRunner(random.made()).run_all(images)[random.made().output]
    downwards, sideways = (
        functional.max_pool2d(images.diff(dim=axis).abs().double(), images.shape[2:], ceil_mode=True).amax((2, 3), True)
        for axis in (2, 3)
    )
    error = (made - resized(images, size, align_corners=align_corners)).abs()
    assert bool((error <= 0.5 + (downwards + sideways) / 256 + 1e-9).all())
    assert bool((made >= images.amin((2, 3), keepdim=True)).all())
    assert bool((made <= images.amax((2, 3), keepdim=True)).all())


@pytest.mark.parametrize("factor", [2, 4, 8, 64])
def test_powers_of_two_are_exact_but_for_the_rounding_of_the_result(factor: int) -> None:
    random = RandomNetwork(IMAGE)
    size = (factor * IMAGE[1], factor * IMAGE[2])
    random.resize("image", size)
    images = random.images(3)
    made = IntegerRunner(random.made()).run_all(images)[random.made().output]
    assert torch.equal(made.double(), torch.floor(resized(images, size, align_corners=False) + 0.5))
    assert Sampling.of(5, 5 * factor, align_corners=False, scale=None).is_exact


@settings(max_examples=100, deadline=None, derandomize=True)
@given(before=st.integers(1, 40), after=st.integers(1, 90), align_corners=st.booleans())
def test_taps_are_the_places_of_torch(before: int, after: int, align_corners: bool) -> None:
    places = resized(torch.arange(before).reshape(1, 1, 1, -1), (1, after), align_corners=align_corners).flatten()
    taps = Sampling.of(before, after, align_corners=align_corners, scale=None).taps()
    for place, (first, weight) in zip(places.tolist(), taps, strict=True):
        assert abs(first + weight / ONE - place) <= 2.0**-8 + 1e-12
        assert 0 <= weight < ONE
        assert 0 <= first < before - (weight > 0)  # nothing is read from beyond the end


@pytest.mark.parametrize("scale", [1.5, 0.7, 2.3, 2.0])
def test_scale_that_was_asked_for_is_not_that_of_the_sizes(scale: float) -> None:
    """11 numbers times 1.5 are 16, and torch then still takes steps of 1/1.5."""
    numbers = torch.arange(11).reshape(1, 1, 1, -1).double()
    places = functional.interpolate(numbers, scale_factor=(1.0, scale), mode="bilinear").flatten()
    sampling = Sampling.of(11, len(places), align_corners=False, scale=scale)
    found = torch.tensor([first + weight / ONE for first, weight in sampling.taps()], dtype=torch.float64)
    torch.testing.assert_close(found, places, rtol=0, atol=2.0**-8 + 1e-12)
    assert sampling.step == 1 / Fraction(scale)


def test_weights_are_rounded_half_up_and_a_whole_one_belongs_to_the_next_number() -> None:
    halves = Sampling(4, 4, Fraction(1, 256), Fraction(1, 2))  # each place halfway between two weights
    assert halves.taps() == ((0, 1), (0, 65), (1, 1), (1, 65))
    nearly = Sampling(4, 2, Fraction(1023, 1024), Fraction(1))
    assert nearly.taps() == ((1, 0), (2, 0))
    beyond = Sampling(4, 3, Fraction(-1), Fraction(9, 2))
    assert beyond.taps() == ((0, 0), (3, 0), (3, 0))


def test_runner_gives_the_sums_of_the_definition() -> None:
    random = RandomNetwork(IMAGE, bits=16, signed=False)
    random.resize("image", (8, 4), align_corners=True)
    (operation,) = random.operations
    assert isinstance(operation, BilinearResize)
    images = random.images(2)
    made = IntegerRunner(random.made()).run_all(images)[operation.output]
    for p, (i, down) in enumerate(operation.rows):
        for q, (j, across) in enumerate(operation.columns):
            for n in range(2):
                for c in range(2):
                    total = 1 << 13
                    for y, u in ((i, 128 - down), (i + 1, down)):
                        for x, v in ((j, 128 - across), (j + 1, across)):
                            total += u * v * int(images[n, c, y, x]) if u * v else 0
                    assert int(made[n, c, p, q]) == total >> 14
    assert operation.accumulator_bound(random.values["image"].coding) < 2**31  # 16 bits meet 32


def test_sums_of_8_bits_are_small_enough_for_single_precision_to_round() -> None:
    random = RandomNetwork(IMAGE, signed=False)
    random.resize("image", (8, 4))
    (operation,) = random.operations
    assert isinstance(operation, BilinearResize)
    assert operation.accumulator_bound(random.values["image"].coding) < 2**22
