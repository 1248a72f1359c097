"""What winograd's table and its cost model say of a network's layers; the table is made up here."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from winograd.selection import Shape

from tests.workers.compression.made_up_times import Measure
from tests.workers.networks import graph_of
from workers.compression.winograd_layers import GroupBy, Mask, output_sides
from workers.compression.winograd_times import Load, ModelledTimes
from workers.models.graph import layers

SHAPE = Shape(64, 64, 56, 56, batch=8)
TIMES = ModelledTimes(SHAPE, threads=2, uses=1)


def whole(groups: int = 1, group_by: GroupBy = "output_channels") -> Mask:
    return Mask.whole(4, groups, group_by)


def without(mask: Mask, group: int, count: int) -> Mask:
    kept = mask.kept.clone()
    kept[group, :count] = False
    return Mask(kept, mask.group_by)


class Shared(nn.Module):
    """Grouped filters, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.conv(torch.relu(self.conv(image)))
        return result


def test_shape_of_a_layer_is_what_it_computes_for_one_batch_of_the_target() -> None:
    graph = graph_of(Shared().eval(), torch.zeros(1, 8, 12, 10))
    (layer,) = layers(graph)
    times = ModelledTimes.of(layer, output_sides(graph)["conv"], Load(batch_size=4, threads=3))
    assert times == ModelledTimes(Shape(8, 8, 12, 10, batch=4, groups=2), threads=3, uses=2)


def test_measured_times_are_taken_as_they_are_for_each_use(measure: Measure) -> None:
    measure({SHAPE: {"direct": 3, "m4": 1}}, threads=2)
    assert TIMES.direct_us == pytest.approx(3000)
    assert TIMES.winograd_us(4, whole()) == pytest.approx(1000)
    assert ModelledTimes(SHAPE, threads=2, uses=3).winograd_us(4, whole()) == pytest.approx(3000)


@pytest.mark.parametrize("group_by", ["output_channels", "input_channels"])
def test_every_position_that_is_gone_saves_the_same_time(group_by: GroupBy) -> None:
    us = [TIMES.winograd_us(4, without(whole(2, group_by), group=1, count=count)) for count in (0, 6, 12, 18)]
    saved = [before - after for before, after in pairwise(us)]
    assert saved == pytest.approx([saved[0]] * 3)
    assert saved[0] > 0


def test_groups_of_input_channels_are_convolutions_of_their_own() -> None:
    half = ModelledTimes(Shape(32, 64, 56, 56, batch=8), threads=2, uses=1)
    assert TIMES.winograd_us(4, whole(2, "input_channels")) == pytest.approx(2 * half.winograd_us(4, whole()))


@pytest.mark.parametrize(
    ("ms", "tile"),
    [
        ({"direct": 9, "m2": 3, "m4": 2, "m6": 4}, 4),
        ({"direct": 9, "m2": 3, "m4": 4, "m6": 2}, 6),
        ({"direct": 9, "m2": 2, "m4": 4, "m6": 3}, 2),
        ({"direct": 2, "m2": 3, "m4": 4, "m6": 3}, None),
    ],
)
def test_fastest_tile_is_that_of_the_smallest_time_unless_direct_convolution_takes_less(
    measure: Measure, ms: dict[str, float], tile: int | None
) -> None:
    measure({SHAPE: ms}, threads=2)
    assert TIMES.fastest_tile() == tile


def test_shape_that_nobody_measured_is_left_to_the_model(measure: Measure) -> None:
    measure({Shape(512, 512, 7, 7): {"direct": 1, "m2": 2, "m4": 2, "m6": 2}})
    assert TIMES.fastest_tile() is not None
    assert ModelledTimes(Shape(1, 1, 8, 8), threads=1, uses=1).fastest_tile() is None
