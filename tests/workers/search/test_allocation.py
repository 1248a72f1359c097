"""Bits for layers: the allocations that no other one beats, as far as errors add up."""

import itertools

import numpy as np
import pytest

from workers.search.allocation import Sensitivity, allocations, lower_hull, measured_sensitivities

WIDTHS = (8, 4, 2)


def layer(*errors: float, cost: int = 10) -> list[Sensitivity]:
    return [Sensitivity(bits, error, bits * cost) for bits, error in zip(WIDTHS, errors, strict=True)]


def test_ladder_goes_from_the_widest_to_the_narrowest_one_layer_at_a_time() -> None:
    found = allocations({"robust": layer(0, 0.1, 0.5), "fragile": layer(0, 4, 20)})
    assert found == [
        {"robust": 8, "fragile": 8},
        {"robust": 4, "fragile": 8},
        {"robust": 2, "fragile": 8},
        {"robust": 2, "fragile": 4},
        {"robust": 2, "fragile": 2},
    ]


def test_large_layers_come_first_where_errors_are_alike() -> None:
    found = allocations({"small": layer(0, 1, 2, cost=1), "large": layer(0, 1, 2, cost=100)})
    assert found[1] == {"small": 8, "large": 4}


def test_widths_that_no_price_favours_are_left_out() -> None:
    assert [each.bits for each in lower_hull(layer(0, 3, 3.5))] == [8, 2]  # 4 bits save little of the error
    assert [each.bits for each in lower_hull(layer(0, 0, 1))] == [4, 2]  # 8 bits save none of it
    assert [each.bits for each in lower_hull(layer(0, 1, 9))] == [8, 4, 2]


def test_widths_that_save_nothing_are_left_out() -> None:
    found = [Sensitivity(8, 0.0, 40), Sensitivity(4, 1.0, 30), Sensitivity(3, 2.0, 30), Sensitivity(2, 9.0, 31)]
    assert [each.bits for each in lower_hull(found)] == [8, 4]


@pytest.mark.parametrize("seed", range(20))
def test_no_allocation_of_the_same_cost_has_a_smaller_error(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    layers = {
        f"layer{n}": layer(0, *sorted(numbers.exponential(size=2)), cost=int(numbers.integers(1, 50))) for n in range(4)
    }

    def totals(bits: dict[str, int]) -> tuple[int, float]:
        chosen = [next(each for each in found if each.bits == bits[name]) for name, found in layers.items()]
        return sum(each.cost for each in chosen), sum(each.error for each in chosen)

    every = [totals(dict(zip(layers, bits, strict=True))) for bits in itertools.product(WIDTHS, repeat=len(layers))]
    ladder = [totals(bits) for bits in allocations(layers)]
    assert [cost for cost, _ in ladder] == sorted((cost for cost, _ in ladder), reverse=True)
    for cost, error in ladder:
        assert min(other for each, other in every if each <= cost) >= error - 1e-12


def test_each_layer_is_tried_alone_at_every_lower_width() -> None:
    asked: list[dict[str, int]] = []

    def error_of(bits: object) -> float:
        assert isinstance(bits, dict)
        asked.append(bits)
        return 1.0

    costs = {"a": 3, "b": 5}
    found = measured_sensitivities(WIDTHS, costs, lambda name, bits: costs[name] * bits, error_of)
    assert asked == [{"a": 4}, {"a": 2}, {"b": 4}, {"b": 2}]
    assert found["b"] == [Sensitivity(8, 0.0, 40), Sensitivity(4, 1.0, 20), Sensitivity(2, 1.0, 10)]
