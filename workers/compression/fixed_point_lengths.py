"""Fractional lengths of weights and biases from the result of the convolution (METHODS 5.3 F3; claims 3 and 4).

FL_mac[o, i] = FL_in[i] + FL_w[o, i]           the length of a product                      (F-5)
FL_b[o]      = max over i of FL_mac[o, i]      the bias's and the accumulator's             (F-6)
FL_w'[o, i]  = FL_b[o] - FL_in[i]              the weight's, so that partial sums meet      (F-7)
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workers.compression.fixed_point_rules import Expression
from workers.compression.fixed_point_statistics import ChannelStatistics
from workers.fixed_point.coding import exp2, highest, lowest, round_half_up

Granularity = Literal["per_output_channel", "per_plane", "per_layer"]
Align = Literal["shift", "retune", "retune_opt"]

FARTHEST_SHIFT = 30  # of 32-bit accumulators


@dataclass(frozen=True)
class Lengths:
    """Of one layer, int64. A weight is stored at `grid`, and meets the accumulator after a shift to the left."""

    inputs: Tensor  # FL_in [K, C/g]
    weights: Tensor  # FL_w [K, C/g], as the weights' own distribution has them
    products: Tensor  # FL_mac [K, C/g]
    bias: Tensor  # FL_b [K], of bias and accumulator
    grid: Tensor  # [K, C/g]
    shifts: Tensor  # [K, C/g], none negative; grid + shifts = bias - inputs
    capped: Tensor  # [K], bits that FL_b was lowered by, so that bias and accumulator fit

    @property
    def tuned(self) -> Tensor:
        """FL_w' [K, C/g]."""
        return self.bias[:, None] - self.inputs

    def lowered(self, bits: Tensor) -> "Lengths":
        """With FL_b lower by so many bits [K]: products that are finer than that are rounded to it."""
        shifts = self.shifts - bits[:, None]
        return Lengths(
            inputs=self.inputs,
            weights=self.weights,
            products=self.products,
            bias=self.bias - bits,
            grid=self.grid + shifts.clamp(max=0),
            shifts=shifts.clamp(min=0),
            capped=self.capped + bits,
        )


def weight_lengths(weight: Tensor, expression: Expression, granularity: Granularity) -> Tensor:
    """FL_w [K, C/g] of weights [K, C/g, R, S], from their distribution."""
    outputs, inputs = weight.shape[:2]
    match granularity:
        case "per_output_channel":
            channels = weight.transpose(0, 1)
        case "per_plane":
            channels = weight.reshape(1, outputs * inputs, *weight.shape[2:])
        case "per_layer":
            channels = weight.reshape(1, 1, *weight.shape[1:-1], -1)
    found = ChannelStatistics.of(channels)
    errors = expression.errors(channels, found) if expression.rule == "empirical_mse" else None
    lengths = expression.lengths(found, errors)
    if granularity == "per_plane":
        return lengths.reshape(outputs, inputs)
    return lengths.reshape(-1, 1).expand(outputs, inputs).clone()


def align(weight: Tensor, own: Tensor, inputs: Tensor, how: Align, *, weight_bits: int, input_power: Tensor) -> Lengths:
    """The lengths of a layer with weights [K, C/g, R, S] whose own lengths are `own` [K, C/g], its inputs' `inputs` [K, C/g].

    `input_power` [K, C/g] is E[x^2] of what each plane reads; retune_opt weighs errors by it.
    """
    products = inputs + own  # F-5
    bias = products.amax(1)  # F-6
    if how == "retune_opt":
        bias = _best_bias_lengths(weight, products, inputs, weight_bits, input_power)
    tuned = bias[:, None] - inputs  # F-7
    shifts = tuned - own if how == "shift" else torch.zeros_like(own)
    return Lengths(inputs, own, products, bias, tuned - shifts, shifts, torch.zeros_like(bias))


def quantized_weights(weight: Tensor, grid: Tensor, bits: int) -> Tensor:
    """Each weight of [K, C/g, R, S] rounded by itself to its plane's grid; int64."""
    integers = round_half_up(weight.double() * exp2(grid)[:, :, None, None])
    return integers.clamp(lowest(bits, signed=True), highest(bits, signed=True)).long()


def quantized_bias(bias: Tensor, lengths: Tensor, bits: int) -> Tensor:
    """Biases [K] at their lengths, int64."""
    integers = round_half_up(bias.double() * exp2(lengths))
    return integers.clamp(lowest(bits, signed=True), highest(bits, signed=True)).long()


def excess_of_bias(lengths: Lengths, bias: Tensor, bias_bits: int, output: Tensor | None) -> Tensor:
    """By how much FL_b [K] is too long for the biases, or for the shift to the output's lengths."""
    longest = bias_bits - 1 - torch.ceil(torch.log2(bias.double().abs().clamp_min(2.0**-30))).long()
    excess = (lengths.bias - longest).clamp(min=0)
    if output is not None:
        excess = torch.maximum(excess, lengths.bias - output - FARTHEST_SHIFT)
    return excess


def excess_of_accumulator(bounds: Tensor, bits: int) -> Tensor:
    """By how many bits accumulators that may reach `bounds` [K] are too large."""
    return torch.ceil(torch.log2((bounds.double() + 1) / 2.0 ** (bits - 1))).clamp(min=0).long()


def _best_bias_lengths(weight: Tensor, products: Tensor, inputs: Tensor, bits: int, power: Tensor) -> Tensor:
    """FL_b [K] of the smallest error sum over i of E[x_i^2] |w[o, i] - Q(w[o, i])|^2."""
    exact = weight.double()
    low, high = int(products.min()) - 2, int(products.max()) + 2
    candidates = torch.arange(low, high + 1)
    errors = torch.stack([
        ((_on_grid(exact, length - inputs, bits) - exact).square().sum((2, 3)) * power).sum(1) for length in candidates
    ])  # fmt: skip
    # Only within reach of the layer's own lengths: the candidates of other outputs are no better than those.
    reach = (candidates[:, None] < products.amin(1) - 2) | (candidates[:, None] > products.amax(1) + 2)
    return candidates[errors.masked_fill(reach, torch.inf).argmin(0)]


def _on_grid(weight: Tensor, grid: Tensor, bits: int) -> Tensor:
    return quantized_weights(weight, grid, bits) / exp2(grid)[:, :, None, None]
