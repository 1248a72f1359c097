"""What may be chosen, what is known exactly, and how estimates behave between what is known."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from winograd.selection import (
    CANDIDATES,
    DEFAULT_MAX_RELATIVE_ERROR,
    ERROR_BOUNDS,
    Choice,
    Coefficients,
    Measured,
    Row,
    Shape,
    Table,
    allowed_candidates,
    blocking,
    default_table,
    error_bound,
    estimated_ms,
    modelled_ms,
    select,
    work,
)
from winograd.selection_table import CPU

MODEL = Coefficients(5000.0, 0.3, 0.3, 0.3, 0.01, 0.01)
UNMEASURED = Table("cpu", "a model", "", MODEL)
MEASURED_SHAPE = Shape(64, 64, 56, 56)
SHAPES = st.builds(
    lambda c, k, h, w, n, g: Shape(c * g, k * g, h, w, n, g),
    *[
        st.integers(1, 600),
        st.integers(1, 600),
        st.integers(1, 224),
        st.integers(1, 224),
        st.integers(1, 64),
        st.integers(1, 4),
    ],
)
NAMES = st.sampled_from(sorted(CANDIDATES))


def table_with(**measured: Measured) -> Table:
    return replace(UNMEASURED, rows=(Row(2, MEASURED_SHAPE, measured),))


@given(SHAPES, st.integers(1, 64), st.sampled_from([0.0, 1e-6, 5e-6, 4e-5, 1e-4, 1.0]))
def test_something_within_the_error_is_always_chosen(shape: Shape, threads: int, error: float) -> None:
    choice = select(shape, threads=threads, max_relative_error=error)

    assert choice.m is None or error_bound(choice.m, shape.channels // shape.groups) <= error


@pytest.mark.parametrize(("error", "largest"), [(9e-7, None), (1e-6, 2), (5e-6, 4), (4e-5, 6), (1e-4, 7)])
def test_error_decides_the_largest_tile(error: float, largest: int | None) -> None:
    tiles = [CANDIDATES[name].m for name in allowed_candidates(512, error) if name != "direct"]

    assert max(tiles, default=None) == largest


def test_default_error_allows_tiles_of_four_and_none_larger() -> None:
    assert {CANDIDATES[name].m for name in allowed_candidates(64, DEFAULT_MAX_RELATIVE_ERROR)} == {0, 2, 4}


def test_error_bound_grows_beyond_the_channels_it_was_measured_for() -> None:
    assert [error_bound(4, c) for c in (1, 512, 2048)] == [ERROR_BOUNDS[4], ERROR_BOUNDS[4], 2 * ERROR_BOUNDS[4]]


@given(SHAPES, st.floats(0, 1e-3), st.floats(0, 1e-3))
def test_more_error_allowed_is_never_slower(shape: Shape, one: float, other: float) -> None:
    strict, loose = (
        min(estimated_ms(shape, name) for name in allowed_candidates(shape.channels, error))
        for error in sorted((one, other))
    )

    assert loose <= strict


@given(SHAPES, NAMES, st.sampled_from(["channels", "filters", "height", "width", "batch"]))
def test_model_grows_with_every_size(shape: Shape, name: str, size: str) -> None:
    larger = replace(shape, **{size: getattr(shape, size) + shape.groups})

    assert modelled_ms(larger, name, 1, MODEL) >= modelled_ms(shape, name, 1, MODEL)


@given(SHAPES, NAMES, st.integers(1, 32))
def test_model_never_slows_down_with_threads(shape: Shape, name: str, threads: int) -> None:
    assert modelled_ms(shape, name, threads + 1, MODEL) <= modelled_ms(shape, name, threads, MODEL)


@given(SHAPES, NAMES)
def test_groups_are_convolutions_side_by_side(shape: Shape, name: str) -> None:
    one = replace(shape, channels=shape.channels // shape.groups, filters=shape.filters // shape.groups, groups=1)

    call, *rest = zip(work(shape, name, 1), work(one, name, 1), strict=True)

    assert call == (1, 1)
    assert all(math.isclose(whole, shape.groups * part) for whole, part in rest)


@given(SHAPES, st.sampled_from(sorted(name for name in CANDIDATES if name.startswith("m"))), st.floats(0.1, 1))
def test_kept_positions_are_multiplied_and_their_weights_read(shape: Shape, name: str, kept: float) -> None:
    _, _, multiply, transform, weight_bytes, image_bytes = work(shape, name, 1)

    assert work(shape, name, 1, kept=kept) == pytest.approx(
        (1, 0, kept * multiply, transform, kept * weight_bytes, image_bytes)
    )


@given(SHAPES, st.floats(0.1, 1))
def test_direct_convolution_has_no_positions_to_prune(shape: Shape, kept: float) -> None:
    assert work(shape, "direct", 1, kept=kept) == work(shape, "direct", 1)


def test_pruned_weights_are_corrected_by_what_was_measured_of_whole_ones() -> None:
    table = table_with(m4=Measured(0.25))
    share = modelled_ms(MEASURED_SHAPE, "m4", 2, MODEL, kept=0.5) / modelled_ms(MEASURED_SHAPE, "m4", 2, MODEL)

    assert share < 1
    assert estimated_ms(MEASURED_SHAPE, "m4", 2, table, kept=0.5) == pytest.approx(0.25 * share)


def test_measured_shape_takes_what_was_measured() -> None:
    table = table_with(m4=Measured(0.25), direct=Measured(0.5))

    assert estimated_ms(MEASURED_SHAPE, "m4", 2, table) == pytest.approx(0.25)


def test_fastest_measured_candidate_is_chosen_with_its_blocking() -> None:
    slow = {name: Measured(1.0) for name in CANDIDATES}
    table = table_with(**slow | {"f2": Measured(0.2, (48, 64, 1)), "m6": Measured(0.1)})

    assert select(MEASURED_SHAPE, threads=2, table=table) == Choice("filters", 2, (48, 64, 1))


def test_neighbour_of_a_measured_shape_is_corrected_by_it() -> None:
    near, modelled = replace(MEASURED_SHAPE, height=60), modelled_ms(MEASURED_SHAPE, "m4", 2, MODEL)
    table = table_with(m4=Measured(3 * modelled))

    estimate = estimated_ms(near, "m4", 2, table)

    assert 2 < estimate / modelled_ms(near, "m4", 2, MODEL) < 3


def test_far_shape_is_estimated_by_the_model_alone() -> None:
    far, table = Shape(512, 512, 7, 7), table_with(m4=Measured(100.0, (48, 64, 1)))

    assert estimated_ms(far, "m4", 2, table) == modelled_ms(far, "m4", 2, MODEL)
    assert blocking(far, "m4", threads=2, table=table) == ()


def test_one_channel_is_convolved_directly() -> None:
    assert select(Shape(1, 1, 32, 32), table=UNMEASURED) == Choice("direct")


def test_many_channels_are_not_convolved_directly() -> None:
    assert select(Shape(256, 256, 56, 56), table=UNMEASURED).variant == "weights"


def test_single_tile_with_many_weights_transforms_them_in_each_call() -> None:
    dear_bytes = replace(UNMEASURED, coefficients=replace(MODEL, weight_byte=1.0, direct_vector=3.0))

    assert select(Shape(512, 512, 4, 4), table=dear_bytes).variant == "filters"


def test_a_gpu_has_a_table_of_its_own() -> None:
    deep = Shape(512, 512, 28, 28, batch=8)
    assert select(deep, device="sm_90") == Choice("weights", 4)
    assert select(deep, device="sm_90", max_relative_error=1e-6) == Choice("weights", 2)
    assert select(Shape(16, 16, 32, 32), device="sm_90") == Choice("direct"), "over before the next call is made"
    assert select(Shape(16, 4000, 300, 7), device="sm_90") == Choice("direct"), "nothing near was measured"


@pytest.mark.parametrize("device", ["cuda", "sm_90 with TF32", "sm_86"])
def test_of_other_gpus_nothing_is_known(device: str) -> None:
    assert select(Shape(512, 512, 28, 28, batch=8), device=device) == Choice("direct")


def test_nothing_that_was_measured_on_a_gpu_is_slower_than_the_direct_convolution() -> None:
    table = default_table("sm_90")
    for row in table.rows:
        choice = select(row.shape, device="sm_90", max_relative_error=1.0)
        chosen = "direct" if choice.variant == "direct" else f"m{choice.m}"
        assert row.measured[chosen].milliseconds <= row.measured["direct"].milliseconds


@pytest.mark.parametrize("given", [{"device": "cuda"}, {"dtype": "bfloat16"}, {"dtype": "float64"}], ids=str)
def test_what_was_not_measured_is_convolved_directly(given: dict[str, str]) -> None:
    assert select(Shape(256, 256, 56, 56), **given) == Choice("direct")


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="must divide"):
        Shape(10, 12, 8, 8, groups=4)


def test_every_measurement_in_the_table_is_of_a_candidate_and_positive() -> None:
    entries = [(name, entry.milliseconds) for row in CPU.rows for name, entry in row.measured.items()]

    assert all(name in CANDIDATES and milliseconds > 0 for name, milliseconds in entries)
