"""Retraining with the fractional lengths as constraints (F-10, claim 10): weights and biases learn, lengths stay.

Forward, every number is rounded just as the integers are; backward, roundings are passed as if they weren't there, and values
that were cut off learn nothing (straight-through estimator, Bengio et al. 2013). Pruned weights stay zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from workers.compression.fixed_point_lengths import quantized_bias, quantized_weights
from workers.compression.fixed_point_plan import Plan, Planned
from workers.compression.fixed_point_simulation import Simulation, grid_of, node_of
from workers.fixed_point.coding import along_channels, exp2, highest, lowest
from workers.fixed_point.network import Convolution, IntegerNetwork, Operation, OutputTransform
from workers.models.graph import ModelGraph, parameter

_FLOAT_BITS = 25  # of a signed number that single precision holds exactly


class _Rounding(torch.autograd.Function):
    """`clamp(floor(x * scale + 0.5), low, high) / scale`; gradients pass where nothing was cut off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:  # torch's context has no type
        scaled = torch.floor(x * scale + 0.5)
        ctx.save_for_backward((scaled >= low) & (scaled <= high))
        return scaled.clamp(low, high) / scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (is_inside,) = ctx.saved_tensors
        return gradient * is_inside, None, None, None


class TrainingNetwork(Simulation):
    """The simulation with roundings that gradients pass, and weights and biases that are rounded in every pass."""

    def _layer(self, node: fx.Node, operation: Convolution, known: dict[fx.Node, fx.Node]) -> fx.Node:
        weight, bias = (node_of(node.args[place]) for place in (1, 2))
        is_kept = parameter(self.made, str(weight.target)).detach() != 0
        self.set_parameters(node, operation, torch.float32)
        scale = exp2(grid_of(operation, self.coding(operation.source)))[:, :, None, None].float()
        rounder = _Rounder.to(operation.weight_bits, scale.flatten(1) if operation.is_linear else scale)
        made = {
            weight: self.call(replace(rounder, kept=is_kept.float()), self.graph.get_attr(str(weight.target))),
            # Single precision has no more bits than that, and sums of so many are cut off nowhere.
            bias: self.call(
                _Rounder.to(min(operation.bias_bits, _FLOAT_BITS), exp2(operation.lengths).float()),
                self.graph.get_attr(str(bias.target)),
            ),
        }
        return self.copied(node, {**known, **made})

    def _add_rounded(self, node: fx.Node, name: str) -> None:
        coding = self.coding(name)
        scale = exp2(along_channels(coding.lengths_tensor(), self._ranks[name])).float()
        rounder = _Rounder(scale, float(coding.lowest), float(coding.highest))
        self._stored[name] = self.call(rounder, node)


@dataclass(frozen=True, eq=False)
class _Rounder:
    """Rounds to one coding."""

    scale: Tensor
    low: float
    high: float
    kept: Tensor | None = None  # zero where numbers stay zero

    @classmethod
    def to(cls, bits: int, scale: Tensor) -> "_Rounder":
        return cls(scale, float(lowest(bits, signed=True)), float(highest(bits, signed=True)))

    @property
    def __name__(self) -> str:  # fx calls nodes after their functions
        return "rounded"

    def __call__(self, x: Tensor) -> Tensor:
        if self.kept is not None:
            x = x * self.kept
        result = _Rounding.apply(x, self.scale, self.low, self.high)  # type: ignore[no-untyped-call]
        assert isinstance(result, Tensor)
        return result.float()


def retrained(plan: Plan, network: IntegerNetwork, train: Callable[[ModelGraph], ModelGraph]) -> IntegerNetwork:
    """`network` with the weights and biases that `train` leads to, on the same grids; all lengths are the same."""
    planned = plan.by_output()
    pruned = {
        output: parameter(plan.graph, str(node_of(each.main.args[1]).target)).detach() == 0
        for output, each in planned.items()
        if each.kind in ("convolution", "linear")
    }
    learned = train(TrainingNetwork(plan, network).made)
    operations: list[Operation] = []
    for operation in network.operations:
        match operation:
            case Convolution():
                made = _learned_layer(learned, planned[operation.output], operation, network)
                is_pruned = pruned[operation.output].reshape(made.weight.shape)
                operations.append(replace(made, weight=made.weight.masked_fill(is_pruned, 0)))
            case OutputTransform():
                operations.append(_learned_transform(learned, planned[operation.output], operation, network))
            case _:
                operations.append(operation)
    return replace(network, operations=tuple(operations))


def _learned_layer(
    learned: ModelGraph, planned: Planned, operation: Convolution, network: IntegerNetwork
) -> Convolution:
    weight, bias = (parameter(learned, str(node_of(node).target)).detach() for node in planned.main.args[1:3])
    grid = grid_of(operation, network.values[operation.source].coding)
    return replace(
        operation,
        weight=quantized_weights(weight.reshape(operation.weight.shape), grid, operation.weight_bits),
        bias=quantized_bias(bias, operation.lengths, operation.bias_bits),
    )


def _learned_transform(
    learned: ModelGraph, planned: Planned, operation: OutputTransform, network: IntegerNetwork
) -> OutputTransform:
    assert planned.tiles is not None
    if planned.tiles.bias is None:
        return operation
    bias = parameter(learned, planned.tiles.bias).detach()
    lengths = operation.lengths(network.values[operation.source].coding)
    integers = quantized_bias(bias, lengths, network.layer_behind(operation.source).bias_bits)
    return replace(operation, bias=tuple(integers.tolist()))
