"""Which variant of a 3x3 convolution to run, and how to cut it up: pure functions of its shape.

    choice = select(Shape(256, 256, 14, 14), threads=2)        # Choice(variant="weights", m=4, blocking=(28, 64, 0))

The bound on the error decides which F(m x m, 3x3) may be chosen, and the estimated time which of those is. An estimate is a small
model (multiplications, transforms, bytes moved), corrected by what was measured at the nearest shape in `selection_table.py`;
at a measured shape it is the measurement. Where nothing was measured for a device, the direct convolution is chosen.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

Variant = Literal["direct", "weights", "filters"]
Blocking = tuple[int, int, int] | tuple[()]

# Largest error over largest output, for up to 512 channels of a group; beyond them it grows with the root of their number.
ERROR_BOUNDS = {2: 1e-6, 4: 5e-6, 6: 4e-5, 7: 1e-4}
CHANNELS_OF_ERROR_BOUNDS = 512
DEFAULT_MAX_RELATIVE_ERROR = 5e-6

# Vector operations of the input, output and filter transform of one tile, for 16 channels.
TRANSFORM_OPERATIONS = {2: (32, 24, 28), 4: (144, 120, 66), 6: (416, 280, 120), 7: (648, 560, 153)}
LANES = 16
FILTERS_OF_PANEL = 32  # the micro-kernel multiplies with so many filters at once; fewer are filled up with zeros
TILES_PER_FILTER_TRANSFORM = 64  # filters are transformed once for about so many tiles
FARTHEST_NEIGHBOUR = (
    1.5  # doublings, summed over all sizes, up to which a measurement says something about another shape
)


@dataclass(frozen=True)
class Shape:
    """A convolution with C channels and K filters; height and width are those of the output."""

    channels: int
    filters: int
    height: int
    width: int
    batch: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        sizes = (self.channels, self.filters, self.height, self.width, self.batch, self.groups)
        if min(sizes) < 1 or self.channels % self.groups or self.filters % self.groups:
            raise ValueError(f"{self}: every size must be positive, and groups must divide channels and filters.")

    def tiles(self, m: int) -> int:
        return self.batch * -(-self.height // m) * -(-self.width // m)


@dataclass(frozen=True)
class Choice:
    """What to run: the direct convolution; or F(m x m, 3x3), its weights transformed before ("weights") or in each call
    ("filters"), with that blocking of the operators, empty where the library should choose."""

    variant: Variant
    m: int | None = None
    blocking: Blocking = ()


@dataclass(frozen=True)
class Candidate:
    variant: Variant
    m: int = 0


# By their names in the table; in the order in which equally fast ones are preferred.
CANDIDATES = {
    "direct": Candidate("direct"),
    "m2": Candidate("weights", 2),
    "m4": Candidate("weights", 4),
    "m6": Candidate("weights", 6),
    "m7": Candidate("weights", 7),
    "f2": Candidate("filters", 2),
    "f4": Candidate("filters", 4),
}


@dataclass(frozen=True)
class Measured:
    """Milliseconds of a candidate, and the blocking that reached them."""

    milliseconds: float
    blocking: Blocking = ()


@dataclass(frozen=True)
class Row:
    """What was measured at one shape with that many threads, by name of the candidate."""

    threads: int
    shape: Shape
    measured: Mapping[str, Measured]


@dataclass(frozen=True)
class Coefficients:
    """Nanoseconds of each kind of work, on one thread; bytes are moved by all threads together."""

    call: float
    direct_vector: float  # multiply-adds of 16 lanes in the direct convolution
    multiply_vector: float
    transform_vector: float
    weight_byte: float
    image_byte: float

    def as_tuple(self) -> tuple[float, ...]:
        return (
            self.call,
            self.direct_vector,
            self.multiply_vector,
            self.transform_vector,
            self.weight_byte,
            self.image_byte,
        )


@dataclass(frozen=True)
class Table:
    """What is known of one kind of machine. `machine` and `date` say where it comes from.

    `device` is "cpu", or the architecture of a CUDA device whose direct convolution may not use TF32, like "sm_90".
    """

    device: str
    machine: str
    date: str
    coefficients: Coefficients
    rows: tuple[Row, ...] = field(default=(), repr=False)
    only_near: bool = False  # the model alone, far from everything measured, is not to be trusted


def select(
    shape: Shape,
    *,
    threads: int = 1,
    device: str = "cpu",
    dtype: str = "float32",
    max_relative_error: float = DEFAULT_MAX_RELATIVE_ERROR,
    variants: Collection[Variant] = ("direct", "weights", "filters"),
    table: Table | None = None,
) -> Choice:
    """Return the fastest of `variants`, as far as is known, whose error bound is at most `max_relative_error`.

    The direct convolution is always one of them. device: see `Table`; of others nothing is known.
    """
    table = table or default_table(device)
    if device != table.device or dtype != "float32":
        return Choice("direct")
    if table.only_near and _nearest(shape, "direct", threads, table)[0] is None:
        return Choice("direct")
    allowed = allowed_candidates(shape.channels // shape.groups, max_relative_error)
    measured = {name for row in table.rows for name in row.measured}
    able = [name for name in allowed if name in measured or not table.only_near]
    names = [name for name in able if CANDIDATES[name].variant in {"direct", *variants}]
    fastest = min(names, key=lambda name: estimated_ms(shape, name, threads, table))
    candidate = CANDIDATES[fastest]
    if candidate.variant == "direct":
        return Choice("direct")
    return Choice(candidate.variant, candidate.m, blocking(shape, fastest, threads=threads, table=table))


def allowed_candidates(channels: int, max_relative_error: float) -> list[str]:
    """The candidates within the error for that many channels of a group; the direct convolution always is."""
    return [
        name
        for name, candidate in CANDIDATES.items()
        if candidate.variant == "direct" or error_bound(candidate.m, channels) <= max_relative_error
    ]


def error_bound(m: int, channels: int) -> float:
    """The largest error of F(m x m, 3x3) in float32, over the largest output."""
    return ERROR_BOUNDS[m] * math.sqrt(max(1.0, channels / CHANNELS_OF_ERROR_BOUNDS))


def blocking(shape: Shape, name: str, *, threads: int = 1, table: Table | None = None) -> Blocking:
    """The blocking that was best at the nearest measured shape, also for pruned weights; empty where none is near."""
    row, _ = _nearest(shape, name, threads, table or default_table())
    return row.measured[name].blocking if row else ()


@cache
def default_blocking(shape: Shape, m: int, threads: int) -> Blocking:
    """What `blocking` says of weights transformed before, remembered: it is asked before every call."""
    return blocking(shape, f"m{m}", threads=threads)


def estimated_ms(shape: Shape, name: str, threads: int = 1, table: Table | None = None, *, kept: float = 1.0) -> float:
    """The time that a candidate is expected to take; of pruned weights, with that part of the positions kept."""
    table = table or default_table()
    modelled = modelled_ms(shape, name, threads, table.coefficients, kept=kept)
    row, distance = _nearest(shape, name, threads, table)
    if row is None:
        return modelled
    correction = row.measured[name].milliseconds / modelled_ms(row.shape, name, row.threads, table.coefficients)
    return modelled * math.pow(correction, 1 - distance / FARTHEST_NEIGHBOUR)


def modelled_ms(shape: Shape, name: str, threads: int, coefficients: Coefficients, *, kept: float = 1.0) -> float:
    """The time by the model alone."""
    pairs = zip(work(shape, name, threads, kept=kept), coefficients.as_tuple(), strict=True)
    return 1e-6 * sum(amount * nanoseconds for amount, nanoseconds in pairs)


def work(shape: Shape, name: str, threads: int, *, kept: float = 1.0) -> tuple[float, ...]:
    """How much a candidate does of each kind, in the order of `Coefficients`; of computing, the part of each thread.

    Where only part of the positions is kept, only these are multiplied and their weights read. Transforms count whole: what they
    are spared depends on whether pruned positions fill rows.
    """
    candidate, m = CANDIDATES[name], CANDIDATES[name].m
    c, k = shape.channels // shape.groups, shape.filters // shape.groups
    pixels = shape.batch * shape.height * shape.width
    image_bytes = 4.0 * pixels * (shape.channels + shape.filters)
    filter_bytes = 4.0 * 9 * shape.filters * c
    if candidate.variant == "direct":
        vectors = shape.groups * pixels * 9 * c * _filled_up(k, LANES) / LANES
        return 1.0, vectors / threads, 0.0, 0.0, filter_bytes, image_bytes
    positions = kept * (m + 2) ** 2
    tiles = shape.tiles(m)
    per_input, per_output, per_filter = TRANSFORM_OPERATIONS[m]
    multiply = shape.groups * positions * tiles * c * _filled_up(k, FILTERS_OF_PANEL) / LANES
    blocks = tiles * shape.groups / LANES
    transform = blocks * (_filled_up(c, LANES) * per_input + _filled_up(k, LANES) * per_output)
    weight_bytes = positions / 9 * filter_bytes
    if candidate.variant == "filters":
        transform += math.ceil(tiles / TILES_PER_FILTER_TRANSFORM) * shape.filters * c / LANES * per_filter
        weight_bytes = filter_bytes
    return 1.0, 0.0, multiply / threads, transform / threads, weight_bytes, image_bytes


def _nearest(shape: Shape, name: str, threads: int, table: Table) -> tuple[Row | None, float]:
    """The nearest row that has the candidate, and how far it is; none beyond the farthest neighbour."""
    distances = [(_distance(shape, threads, row), row) for row in table.rows if name in row.measured]
    distance, row = min(distances, key=lambda pair: pair[0], default=(math.inf, None))
    return (row, distance) if distance < FARTHEST_NEIGHBOUR else (None, distance)


def _distance(shape: Shape, threads: int, row: Row) -> float:
    """Doublings from one to the other, summed over all sizes. More threads cut the work up differently: they count."""
    ours, theirs = (*_sizes(shape), threads), (*_sizes(row.shape), row.threads)
    return sum(abs(math.log2(a / b)) for a, b in zip(ours, theirs, strict=True))


def _sizes(shape: Shape) -> tuple[int, ...]:
    g = shape.groups
    return shape.channels // g, shape.filters // g, shape.height, shape.width, shape.batch, g


def _filled_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def default_table(device: str = "cpu") -> Table:
    """What is known of a device where no other table is given; of the CPU, where nothing is known of it."""
    from winograd.selection_table import CPU  # here, because tables are written with the classes of this module
    from winograd.selection_table_sm_90 import SM_90

    return SM_90 if device == SM_90.device else CPU
