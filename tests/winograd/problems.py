"""Convolutions to test with: sizes drawn by hypothesis, operands drawn from a seed, and how far rounding may lead."""

from dataclasses import dataclass

import torch
from hypothesis import strategies
from torch import Tensor
from winograd.matrices import MATRICES, Matrix

from winograd import reference

UNIT_ROUNDOFF = 2.0**-24  # of float32


@dataclass(frozen=True)
class Problem:
    """One convolution, its operands made from `seed`."""

    batch: int
    channels: int
    filters: int
    height: int
    width: int
    m: int
    padding: tuple[int, int]
    positions: tuple[int, ...]
    kernel_groups: int = 1
    groups: int = 1
    bias: bool = False
    residual: bool = False
    activation: str = "none"
    channels_last: bool = False
    seed: int = 0

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        pad_height, pad_width = self.padding
        return self.batch, self.filters, self.height + 2 * pad_height - 2, self.width + 2 * pad_width - 2

    def operands(self, dtype: torch.dtype = torch.float32) -> "Operands":
        """Standard normal input, filters, bias and residual, the same numbers (rounded to float32) in every dtype."""
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        x = random(self.batch, self.channels, self.height, self.width)
        filters = random(self.filters, self.channels // self.groups, 3, 3)
        weights = reference.transform_filters(filters, self.positions, self.m, kernel_groups=self.kernel_groups)
        bias = random(self.filters) if self.bias else None
        residual = random(*self.output_shape) if self.residual else None
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return Operands(
            x.to(dtype).contiguous(memory_format=layout),
            filters.to(dtype),
            weights.to(dtype),
            None if bias is None else bias.to(dtype),
            None if residual is None else residual.to(dtype).contiguous(memory_format=layout),
        )


@dataclass(frozen=True)
class Operands:
    """Tensors of a problem, of one dtype."""

    x: Tensor
    filters: Tensor
    weights: Tensor
    bias: Tensor | None
    residual: Tensor | None


def every_position(m: int) -> tuple[int, ...]:
    """All positions of the tile of m."""
    return tuple(range(MATRICES[m].t ** 2))


@strategies.composite
def problems(draw: strategies.DrawFn) -> Problem:
    """Small convolutions of all kinds: any sizes, tails, paddings, groupings, and kept positions."""
    m = draw(strategies.sampled_from(sorted(MATRICES)))
    groups, kernel_groups = draw(
        strategies.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (2, 4), (4, 2), (3, 1)])
    )
    padding = draw(strategies.tuples(strategies.integers(0, 3), strategies.integers(0, 3)))
    size = MATRICES[m].t ** 2
    kept = draw(strategies.sampled_from([1, 2, size // 2, size - 2, size]))
    runs = [sorted(draw(strategies.permutations(range(size)))[:kept]) for _ in range(kernel_groups)]
    return Problem(
        batch=draw(strategies.integers(0, 3)),
        channels=groups * draw(strategies.sampled_from([1, 2, 3, 5, 16, 17])),
        filters=max(groups, kernel_groups) * draw(strategies.sampled_from([1, 2, 3, 8, 16, 33])),
        height=draw(strategies.integers(max(1, 3 - 2 * padding[0]), 19)),
        width=draw(strategies.integers(max(1, 3 - 2 * padding[1]), 19)),
        m=m,
        padding=padding,
        positions=tuple(position for run in runs for position in run),
        kernel_groups=kernel_groups,
        groups=groups,
        bias=draw(strategies.booleans()),
        residual=draw(strategies.booleans()),
        activation=draw(strategies.sampled_from(["none", "relu"])),
        channels_last=draw(strategies.booleans()),
        seed=draw(strategies.integers(0, 2**16)),
    )


def exact_output(problem: Problem) -> Tensor:
    """The output for the operands as float32 holds them, by the definition, in float64."""
    output = by_definition(problem, problem.operands(torch.float64))
    return output.relu() if problem.activation == "relu" else output


def by_definition(
    problem: Problem, given: Operands, weights: Tensor | None = None, *, absolute: bool = False
) -> Tensor:
    """A^T [sum over channels of U . (B^T d B)] A + bias + residual with all t x t positions, pruned ones being zero.

    Shares no code with the library but its matrices; `absolute` takes the absolute values of everything instead.
    """
    n, k, height, width = problem.output_shape
    m, t = problem.m, MATRICES[problem.m].t
    rows, columns = -(-height // m), -(-width // m)

    def values(x: Tensor) -> Tensor:
        return x.abs() if absolute else x

    bt, at = (values(floats(matrix)) for matrix in (MATRICES[m].bt, MATRICES[m].at))
    padded = torch.zeros(n, problem.channels, rows * m + 2, columns * m + 2, dtype=torch.float64)
    top, left = problem.padding
    padded[:, :, top : top + problem.height, left : left + problem.width] = values(given.x)
    y = torch.zeros(n, k, rows * m, columns * m, dtype=torch.float64)
    u = values(at_every_position(problem, given.weights if weights is None else weights))
    for row in range(rows):
        for column in range(columns):
            d = padded[:, :, row * m : row * m + t, column * m : column * m + t]
            v = torch.einsum("ai,ncij,bj->abnc", bt, d, bt)
            tile = torch.einsum("pa,abkc,abnc,qb->nkpq", at, u, v, at)
            y[:, :, row * m : row * m + m, column * m : column * m + m] = tile
    y = y[:, :, :height, :width]
    y = y if given.bias is None else y + values(given.bias)[:, None, None]
    return y if given.residual is None else y + values(given.residual)


def at_every_position(problem: Problem, weights: Tensor) -> Tensor:
    """Weights [P, K, C/g] as [t, t, K, C]: zero where they are pruned, and for channels of other groups."""
    t = MATRICES[problem.m].t
    kept, filters, channels = weights.shape
    u = weights.new_zeros(t, t, filters, problem.channels)
    for k in range(filters):
        run = k * problem.kernel_groups // filters
        first = k * problem.groups // filters * channels
        positions = list(problem.positions[run * kept : (run + 1) * kept])
        u.view(t * t, filters, problem.channels)[positions, k, first : first + channels] = weights[:, k]
    return u


def rounding_bound(problem: Problem, *, from_filters: bool = False) -> Tensor:
    """How far from the exact output float32 may lead, for each of its elements.

    The output is a sum of products A[.] U[.] B[.] d[.], plus bias and residual. If no product or sum on the way is rounded
    more than n times, it is off by at most

        gamma(n) * (sum of |A[.]| |U[.]| |B[.]| |d[.]| + |bias| + |residual|),    gamma(n) = n u / (1 - n u),  u = 2^-24

    (Higham 2002, section 3.1), whatever the order of the sums, and also where rows of B^T share their even and odd halves: a
    row's coefficients are those of both, so nothing cancels between them. A transform as one matrix takes t*t products and
    sums, as two passes 2t; the sum over the channels takes C/g. So n = 2 t*t + C/g + 8 suffices, the last for coefficients,
    the weights themselves, bias and residual. ReLU brings numbers only closer. `from_filters`: the weights are made in the
    call, in float32, from 9 products for each, so |U| becomes |G| |w| |G^T| and n grows by 12.
    """
    given = problem.operands(torch.float64)
    t = MATRICES[problem.m].t
    n = 2 * t * t + problem.channels // problem.groups + 8 + (12 if from_filters else 0)
    weights = _magnitudes_of_transformed(problem, given.filters) if from_filters else None
    u = UNIT_ROUNDOFF
    return n * u / (1 - n * u) * by_definition(problem, given, weights, absolute=True)


def gradients_by_definition(
    problem: Problem, given: Operands, output_gradient: Tensor, *, absolute: bool = False
) -> tuple[Tensor, Tensor]:
    """Of input and weights, from that of A^T [sum over channels of U . (B^T d B)] A: the same sums, taken the other way.

    Without bias, residual and activation; `absolute` takes the absolute values of everything instead.
    """
    _, _, height, width = problem.output_shape
    m, t = problem.m, MATRICES[problem.m].t
    rows, columns = -(-height // m), -(-width // m)

    def values(x: Tensor) -> Tensor:
        return x.abs() if absolute else x

    bt, at = (values(floats(matrix)) for matrix in (MATRICES[m].bt, MATRICES[m].at))
    top, left = problem.padding
    padded = torch.zeros(problem.batch, problem.channels, rows * m + 2, columns * m + 2, dtype=torch.float64)
    inside = (..., slice(top, top + problem.height), slice(left, left + problem.width))
    padded[inside] = values(given.x)
    whole = torch.zeros(problem.batch, problem.filters, rows * m, columns * m, dtype=torch.float64)
    whole[..., :height, :width] = values(output_gradient)
    u = values(at_every_position(problem, given.weights))
    of_padded, of_u = torch.zeros_like(padded), torch.zeros_like(u)
    for row in range(rows):
        for column in range(columns):
            tile = (..., slice(row * m, row * m + t), slice(column * m, column * m + t))
            y = whole[:, :, row * m : row * m + m, column * m : column * m + m]
            products = torch.einsum("pa,nkpq,qb->abkn", at, y, at)
            of_u += products @ torch.einsum("ai,ncij,bj->abnc", bt, padded[tile], bt)
            of_padded[tile] += torch.einsum("ai,abcn,bj->ncij", bt, u.mT @ products, bt)
    return of_padded[inside], _at_kept_positions(problem, of_u)


def _at_kept_positions(problem: Problem, u: Tensor) -> Tensor:
    """The reverse of at_every_position: [t, t, K, C] as [P, K, C/g]."""
    kept, channels = len(problem.positions) // problem.kernel_groups, problem.channels // problem.groups
    found = u.new_zeros(kept, problem.filters, channels)
    for k in range(problem.filters):
        run = k * problem.kernel_groups // problem.filters
        first = k * problem.groups // problem.filters * channels
        positions = list(problem.positions[run * kept : (run + 1) * kept])
        found[:, k] = u.flatten(0, 1)[positions, k, first : first + channels]
    return found


def gradient_bounds(problem: Problem, output_gradient: Tensor) -> tuple[Tensor, Tensor]:
    """How far from the exact gradients float32 may lead, for each element: as `rounding_bound`, of the sums taken the other way.

    A gradient of an input is a sum over the filters that read it, and the tiles that overlap there; one of a weight over all
    tiles. So n = 2 t*t + K/g + t*t + 8, and 2 t*t + tiles + 8.
    """
    given, t = problem.operands(torch.float64), MATRICES[problem.m].t
    of_input, of_weights = gradients_by_definition(problem, given, output_gradient.double(), absolute=True)
    batch, _, height, width = problem.output_shape
    tiles = batch * -(-height // problem.m) * -(-width // problem.m)

    def gamma(n: int) -> float:
        return n * UNIT_ROUNDOFF / (1 - n * UNIT_ROUNDOFF)

    return gamma(3 * t * t + problem.filters // problem.groups + 8) * of_input, gamma(
        2 * t * t + tiles + 8
    ) * of_weights


def _magnitudes_of_transformed(problem: Problem, filters: Tensor) -> Tensor:
    """|G| |w| |G^T| at the kept positions, [P, K, C/g]."""
    g = floats(MATRICES[problem.m].g).abs()
    u = torch.einsum("ar,kcrs,bs->abkc", g, filters.abs(), g).flatten(0, 1)
    runs = torch.tensor(problem.positions).reshape(problem.kernel_groups, -1)
    parts = u.chunk(problem.kernel_groups, dim=1)
    return torch.cat([part[run] for part, run in zip(parts, runs, strict=True)], dim=1)


def floats(matrix: Matrix) -> Tensor:
    """An exact matrix in float64."""
    return torch.tensor([[float(x) for x in row] for row in matrix], dtype=torch.float64)
