"""Rounding a layer's weights so that its output on real images, not each weight, is kept.

Weights are rounded one input after the other, and what is lost on one is made up for by those that are still free, in the metric of
the inputs' covariance (Frantar et al. 2022, after Hassibi and Stork 1993). Targets are the outputs of the floating-point
network, inputs those of the integer network, so that a layer also makes up for the errors of the layers before it. Biases
take what is left of the mean.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.fixed_point.coding import exp2, highest, lowest, round_half_up

MOST_ROWS = 4608  # weights of one output up to which their covariance is held
RIDGE = 0.01  # of the mean variance, added to all: keeps weights that images hardly excite where they were
_NOISE = 1e-5  # the same, of the mean square
PLACES_PER_ROW = 64  # places of the output that are looked at for each weight of one output, where there are so many


@dataclass
class Geometry:
    """Which inputs a layer's outputs read."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def patches(self, images: Tensor, spacing: int = 1, offset: tuple[int, int] = (0, 0)) -> Tensor:
        """[N, C, H, W] as what outputs read at every `spacing`-th place, from `offset` on: [g, C/g * R * S, N * places]."""
        (top, left), (down, right) = self.padding, self.stride
        padded = functional.pad(images, (left, left, top, top))[:, :, offset[0] * down :, offset[1] * right :]
        strides = (spacing * down, spacing * right)
        columns = functional.unfold(padded, self.kernel, self.dilation, 0, strides)  # [N, C*R*S, L]
        n, rows, places = columns.shape
        by_group = columns.reshape(n, self.groups, rows // self.groups, places)
        return by_group.permute(1, 2, 0, 3).reshape(self.groups, rows // self.groups, n * places)

    def places(self, images: Tensor) -> tuple[int, int]:
        """How many outputs there are, one below the other and side by side."""
        sides = zip(images.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = (
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, padding, dilation in sides
        )
        return height, width


@dataclass
class InputMoments:
    """Of what a layer reads, in the integer network (x) and in the floating-point one (t): per group, rows C/g * R * S."""

    mean: Tensor  # of x, [g, D]
    target_mean: Tensor  # of t
    power: Tensor  # mean squares of x
    covariance: Tensor | None  # of x, [g, D, D]; None where it would be too large
    cross: Tensor | None  # of t with x, [g, D, D]


def measure(
    pairs: Iterable[tuple[Tensor, Tensor]], geometry: Geometry, rows: int, *, images: int, with_covariance: bool
) -> InputMoments:
    """The moments of pairs of inputs (integer network's, floating-point network's), both as numbers [N, C, H, W].

    Means are those of all places. Neighbouring places of large images say nearly the same, so covariances are those of a
    grid of places that moves from batch to batch; `images` is how many come in all.
    """
    mean, target_mean, power = (torch.zeros(geometry.groups, rows, dtype=torch.float64) for _ in range(3))
    covariances = _Covariances(geometry.groups, rows) if with_covariance and rows <= MOST_ROWS else None
    count = 0
    for number, (given, wanted) in enumerate(pairs):
        x, t = given.float(), wanted.float()
        places = geometry.places(x)
        count += len(x) * places[0] * places[1]
        for total, values in ((mean, x), (target_mean, t), (power, x.square())):
            total += geometry.patches(values.sum(0, keepdim=True, dtype=torch.float64)).sum(2)
        if covariances is not None:
            spacing = _spacing(places, images, rows)
            # Every row and every column has its turn in as many batches as they are apart.
            offset = (number % spacing, (number // spacing - number) % spacing)
            covariances.add(*(geometry.patches(values, spacing, offset) for values in (x, t)))
    for total in (mean, target_mean, power):
        total /= max(1, count)
    if covariances is None:
        return InputMoments(mean, target_mean, power, None, None)
    return InputMoments(mean, target_mean, power, *covariances.found())


def _spacing(places: tuple[int, int], images: int, rows: int) -> int:
    """How far apart places may be for `images` to have PLACES_PER_ROW of them for each row; a power of two."""
    spacing = 1
    while 2 * spacing <= min(places) and images * math.prod(places) >= PLACES_PER_ROW * rows * (2 * spacing) ** 2:
        spacing *= 2
    return spacing


class _Covariances:
    """Of x with itself and of t with x, from patches [g, D, places] of both."""

    def __init__(self, groups: int, rows: int) -> None:
        self._count = 0
        self._x, self._t = (torch.zeros(groups, rows, dtype=torch.float64) for _ in range(2))
        self._xx, self._tx = (torch.zeros(groups, rows, rows, dtype=torch.float64) for _ in range(2))

    def add(self, x: Tensor, t: Tensor) -> None:
        self._count += x.shape[2]
        self._x += x.sum(2)
        self._t += t.sum(2)
        self._xx += x @ x.transpose(1, 2)
        self._tx += t @ x.transpose(1, 2)

    def found(self) -> tuple[Tensor, Tensor]:
        count = max(1, self._count)
        x, t = self._x / count, self._t / count
        return self._xx / count - x[:, :, None] * x[:, None, :], self._tx / count - t[:, :, None] * x[:, None, :]


def compensated(weight: Tensor, grid: Tensor, bits: int, moments: InputMoments) -> Tensor:
    """Weights [K, C/g, R, S] on the grids [K, C/g] of their planes, as integers (int64)."""
    assert moments.covariance is not None
    assert moments.cross is not None
    outputs, area = weight.shape[0], weight[0, 0].numel()
    rows = weight.double().reshape(outputs, -1)  # [K, D]
    lengths = grid.repeat_interleave(area, dim=1)  # [K, D]
    per_group = outputs // len(moments.covariance)
    integers = torch.empty_like(lengths)
    for group, (covariance, cross) in enumerate(zip(moments.covariance, moments.cross, strict=True)):
        chosen = slice(group * per_group, (group + 1) * per_group)
        # Sums in single precision leave the variance of a constant input a little below zero.
        ridge = RIDGE * covariance.diagonal().mean().clamp_min(0) + _NOISE * moments.power[group].mean() + 1e-12
        integers[chosen] = _rounded(rows[chosen], lengths[chosen], bits, covariance, cross, ridge)
    return integers.reshape(weight.shape)


def corrected_bias(weight: Tensor, bias: Tensor, quantized: Tensor, moments: InputMoments) -> Tensor:
    """The bias [K] that makes the mean of every output what it is in the floating-point network; float64."""
    outputs = weight.shape[0]
    of_group = torch.arange(outputs) // (outputs // len(moments.mean))
    wanted = (weight.double().reshape(outputs, -1) * moments.target_mean[of_group]).sum(1)
    given = (quantized.double().reshape(outputs, -1) * moments.mean[of_group]).sum(1)
    return bias.double() + wanted - given


def _rounded(weight: Tensor, lengths: Tensor, bits: int, covariance: Tensor, cross: Tensor, strength: Tensor) -> Tensor:
    size = len(covariance)
    ridge = strength * torch.eye(size, dtype=torch.float64)
    damped = covariance + ridge
    factor = torch.linalg.cholesky(damped)
    # The weights that best give the wanted output from the inputs as they are; the ridge draws them to the given ones.
    free = torch.cholesky_solve((weight @ (cross + ridge)).T, factor).T
    # Those whose inputs vary the most go first, while many others can still make up for them.
    order = damped.diagonal().argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    free, scales = free[:, order].clone(), exp2(lengths[:, order])
    low, high = lowest(bits, signed=True), highest(bits, signed=True)
    found = torch.empty_like(free)
    is_zero = (weight == 0)[:, order]  # pruned ones stay so
    for column in range(size):
        rounded = round_half_up(free[:, column] * scales[:, column]).clamp(low, high)
        found[:, column] = rounded.masked_fill(is_zero[:, column], 0.0)
        error = (free[:, column] - found[:, column] / scales[:, column]) / upper[column, column]
        free[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :]
    integers = torch.empty_like(found)
    integers[:, order] = found
    return integers.long()
