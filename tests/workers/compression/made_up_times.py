"""A table of winograd's times in which every figure is the test's own."""

from collections.abc import Callable, Mapping

from winograd.selection import Coefficients, Measured, Row, Shape, Table

Measure = Callable[..., None]  # milliseconds by candidate, by shape, and threads: from now on that is what was measured

COEFFICIENTS = Coefficients(
    call=5000.0, direct_vector=0.3, multiply_vector=0.3, transform_vector=0.3, weight_byte=0.01, image_byte=0.01
)


def table_of(milliseconds: Mapping[Shape, Mapping[str, float]], *, threads: int = 1) -> Table:
    """A table that knows these shapes, and nothing else but a model."""
    rows = (
        Row(threads, shape, {name: Measured(ms) for name, ms in by_name.items()})
        for shape, by_name in milliseconds.items()
    )
    return Table("cpu", "made up", "", COEFFICIENTS, tuple(rows))
