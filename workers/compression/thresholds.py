"""Weight thresholds from the distribution of a trained network's weights (docs/methods.md, P-1 and P-2).

Under the patent's model the weights of a layer are normal: `z = (w - mu) / sigma ~ N(0, 1)`. A share `p` of them then lies within
`z(p) = Phi^-1((1 + p) / 2)` standard deviations, so `T = sigma * z(p)` is the threshold that prunes that share.
The distribution is taken once, from the weights as they were trained, and only from those that are not zero already.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from workers.models.graph import LayerKind

Scope = Literal["layer", "global"]
Shape = Literal["normal", "empirical"]

_STANDARD_NORMAL = NormalDist()


def z_of_rate(rate: float) -> float:
    """How many standard deviations around the mean hold the share `rate` of a normal distribution."""
    return _STANDARD_NORMAL.inv_cdf((1.0 + rate) / 2.0) if rate < 1.0 else float("inf")


@dataclass(frozen=True)
class WeightDistribution:
    """What is known of the nonzero weights of one layer, or of all layers together."""

    count: int
    mean: float
    sigma: float
    centre: float  # thresholds are distances from here: the mean, or zero
    shape: Shape
    magnitudes: Tensor  # (count,) sorted distances from the centre; empty for the normal shape, which needs none

    def threshold(self, rate: float) -> float:
        """The distance from the centre below which the share `rate` of the weights lies."""
        if self.shape == "normal":
            return self.sigma * z_of_rate(rate)
        pruned = round(rate * self.count)
        return float(self.magnitudes[pruned]) if pruned < self.count else float("inf")


def layer_distributions(
    weights: Mapping[str, Tensor], *, scope: Scope, shape: Shape, center: bool
) -> dict[str, WeightDistribution]:
    """The distribution that each layer's threshold comes from; with scope global it is one for all of them."""
    if scope == "layer":
        return {name: _distribution([weight], shape, center) for name, weight in weights.items()}
    shared = _distribution(list(weights.values()), shape, center)
    return dict.fromkeys(weights, shared)


def pruned(weight: Tensor, threshold: float, centre: float = 0.0) -> Tensor:
    """A copy of `weight` with zeros where it lies closer to `centre` than `threshold`; the others keep their bits."""
    near = (weight.to(torch.float64) - centre).abs() < threshold
    return torch.where(near, torch.zeros_like(weight), weight)


def with_channels_kept(before: Tensor, after: Tensor, *, kind: LayerKind, groups: int) -> Tensor:
    """`after`, but every output channel that had a nonzero weight keeps at least its largest one."""
    by_channel_before = _by_output_channel(before, kind, groups)
    by_channel = _by_output_channel(after, kind, groups).clone()
    largest = by_channel_before.abs().argmax(dim=1, keepdim=True)  # (K, 1)
    emptied = (by_channel != 0).sum(dim=1, keepdim=True) == 0  # (K, 1)
    restored = torch.where(emptied, by_channel_before.gather(1, largest), by_channel.gather(1, largest))
    by_channel.scatter_(1, largest, restored)
    return _from_output_channel(by_channel, after.shape, kind, groups)


def _distribution(weights: list[Tensor], shape: Shape, center: bool) -> WeightDistribution:
    # Double precision: half-precision layers must not lose their sigma to rounding.
    values = torch.cat([weight.detach().to(torch.float64).flatten() for weight in weights])
    values = values[values != 0]
    if values.numel() == 0:
        return WeightDistribution(0, 0.0, 0.0, 0.0, shape, values)
    mean = float(values.mean())
    centre = mean if center else 0.0
    magnitudes = (values - centre).abs().sort().values if shape == "empirical" else values[:0]
    return WeightDistribution(values.numel(), mean, float(values.std(unbiased=False)), centre, shape, magnitudes)


def _by_output_channel(weight: Tensor, kind: LayerKind, groups: int) -> Tensor:
    """(K, weights of one output channel). A transposed convolution stores (C, K/groups, R, S)."""
    if kind != "conv_transpose2d":
        return weight.reshape(weight.shape[0], -1)
    inputs, outputs, *window = weight.shape
    grouped = weight.reshape(groups, inputs // groups, outputs, *window).transpose(1, 2)
    return grouped.reshape(groups * outputs, -1)


def _from_output_channel(by_channel: Tensor, shape: torch.Size, kind: LayerKind, groups: int) -> Tensor:
    if kind != "conv_transpose2d":
        return by_channel.reshape(shape)
    inputs, outputs, *window = shape
    grouped = by_channel.reshape(groups, outputs, inputs // groups, *window).transpose(1, 2)
    return grouped.reshape(shape)
