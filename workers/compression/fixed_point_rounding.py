"""Rounding a layer's weights so that its output on real images, not each weight, is kept.

Weights are rounded one input after the other, and what is lost on one is made up for by those that are still free, in the metric of
the inputs' covariance (Frantar et al. 2022, after Hassibi and Stork 1993). Targets are the outputs of the floating-point
network, inputs those of the integer network, so that a layer also makes up for the errors of the layers before it. Biases
take what is left of the mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.fixed_point.coding import exp2, highest, lowest, round_half_up

MOST_ROWS = 4608  # weights of one output up to which their covariance is held
RIDGE = 0.01  # of the mean variance, added to all: keeps weights that images hardly excite where they were
_NOISE = 1e-5  # the same, of the mean square


@dataclass
class Geometry:
    """Which inputs a layer's outputs read."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def patches(self, images: Tensor) -> Tensor:
        """[N, C, H, W] as what outputs read, [g, C/g * R * S, N * OH * OW]."""
        columns = functional.unfold(images, self.kernel, self.dilation, self.padding, self.stride)  # [N, C*R*S, L]
        n, rows, places = columns.shape
        by_group = columns.reshape(n, self.groups, rows // self.groups, places)
        return by_group.permute(1, 2, 0, 3).reshape(self.groups, rows // self.groups, n * places)


@dataclass
class InputMoments:
    """Of what a layer reads, in the integer network (x) and in the floating-point one (t): per group, rows C/g * R * S."""

    mean: Tensor  # of x, [g, D]
    target_mean: Tensor  # of t
    power: Tensor  # mean squares of x
    covariance: Tensor | None  # of x, [g, D, D]; None where it would be too large
    cross: Tensor | None  # of t with x, [g, D, D]


def measure(
    pairs: Iterable[tuple[Tensor, Tensor]], geometry: Geometry, rows: int, *, with_covariance: bool
) -> InputMoments:
    """The moments of pairs of inputs (integer network's, floating-point network's), both as numbers [N, C, H, W]."""
    shape = (geometry.groups, rows)
    sums, target_sums, power = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    is_held = with_covariance and rows <= MOST_ROWS
    squares, crosses = (torch.zeros(*shape, rows if is_held else 0, dtype=torch.float64) for _ in range(2))
    count = 0
    for given, wanted in pairs:
        x, t = geometry.patches(given.float()), geometry.patches(wanted.float())
        count += x.shape[2]
        sums += x.sum(2)
        target_sums += t.sum(2)
        if is_held:
            squares += x @ x.transpose(1, 2)
            crosses += t @ x.transpose(1, 2)
        else:
            power += x.square().sum(2)
    if is_held:
        power = squares.diagonal(dim1=1, dim2=2).clone()
    mean, target_mean, power = (total / max(1, count) for total in (sums, target_sums, power))
    if not is_held:
        return InputMoments(mean, target_mean, power, None, None)
    covariance = squares / max(1, count) - mean[:, :, None] * mean[:, None, :]
    cross = crosses / max(1, count) - target_mean[:, :, None] * mean[:, None, :]
    return InputMoments(mean, target_mean, power, covariance, cross)


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
