"""In what order layers are given fewer bits: by the statistic of their weights' differences, or by what it is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from jobs.recipe import AssignPrecision, LearningStatistics
from workers.compression.fixed_point_lengths import weight_lengths
from workers.compression.fixed_point_rules import Expression
from workers.fixed_point.coding import exp2
from workers.models.graph import ModelGraph, layers, parameter

EMA_WEIGHT = 0.5  # of the newest cycle

Normalisation = Literal["none", "var", "step"]
OrderName = Literal["differences", "reversed", "random", "parameters", "quantization_error"]
FIXED_ORDERS: tuple[OrderName, ...] = ("differences", "reversed", "parameters", "quantization_error")


class LayerStatistics:
    """One number for each layer of `graph`, by name, from the mean squares of its weights' differences."""

    def __init__(self, graph: ModelGraph, recorded: LearningStatistics, step: AssignPrecision) -> None:
        self._recorded = recorded
        self._step = step
        self.weights = {layer.name: parameter(graph, layer.weight).detach() for layer in layers(graph)}
        self.mean_squares = {name: self._mean_squares(name) for name in self.weights}
        self.raw = {name: aggregated(squares, step.aggregate) for name, squares in self.mean_squares.items()}
        self.sorted_by = self.normalised(step.normalise)

    def normalised(self, how: Normalisation) -> dict[str, float]:
        """The statistics as they are, over the variance of the weights, or over the square of their quantization step."""
        match how:
            case "none":
                return dict(self.raw)
            case "var":
                return {name: _over(raw, self._recorded.variances[name]) for name, raw in self.raw.items()}
            case "step":
                lower = self._step.bits[1]
                return {name: _over(raw, squared_step(self.weights[name], lower)) for name, raw in self.raw.items()}

    def left_out(self) -> dict[str, str]:
        """Layers that keep the first precision whatever a search finds, and why."""
        found = dict.fromkeys(self._step.exclude, "excluded")
        if self._step.frozen == "exclude":
            found = {name: "its weights never moved" for name, raw in self.raw.items() if raw == 0} | found
        rest = [name for name in self.ascending() if name not in found]
        if self._step.exclude_smallest and rest:
            found[rest[0]] = "it has the smallest statistic"  # US11625577B2, claim 7
        return found

    def ascending(self, left_out: Mapping[str, str] = {}) -> list[str]:
        """Layers by statistic, the smallest first."""
        return sorted((name for name in self.weights if name not in left_out), key=lambda name: self.sorted_by[name])

    def _mean_squares(self, name: str) -> list[float]:
        rates = self._recorded.learning_rates or (1.0,) * len(self._recorded.cycles)
        changes = (cycle[name] for cycle in self._recorded.cycles)
        return [getattr(change, self._step.reference) / rate**2 for change, rate in zip(changes, rates, strict=True)]


@dataclass(frozen=True)
class Orders:
    """The layers that may have fewer bits, in the patents' order and in others."""

    differences: list[str]
    weights: Mapping[str, Tensor]
    errors: Mapping[str, float]  # relative ones of weights at the lower precision

    def named(self, name: OrderName, seed: int) -> list[str]:
        """`seed` is for the random order."""
        match name:
            case "differences":
                return list(self.differences)
            case "reversed":
                return self.differences[::-1]
            case "random":
                shuffled = np.random.default_rng(seed).permutation(len(self.differences))
                return [self.differences[place] for place in shuffled]
            case "parameters":
                return sorted(self.differences, key=lambda layer: -self.weights[layer].numel())
            case "quantization_error":
                return sorted(self.differences, key=lambda layer: self.errors[layer])


def aggregated(squares: Sequence[float], how: Literal["mean", "sum", "max", "last", "ema"]) -> float:
    """The mean squares of all cycles as one number."""
    match how:
        case "mean":
            return sum(squares) / len(squares)
        case "sum":
            return sum(squares)
        case "max":
            return max(squares)
        case "last":
            return squares[-1]
        case "ema":
            result = squares[0]
            for square in squares[1:]:
                result += EMA_WEIGHT * (square - result)
            return result


def squared_step(weight: Tensor, bits: int) -> float:
    """Mean over a layer's filters of the squared quantization step at so many bits, with method F's lengths."""
    weight = weight.detach().double().reshape(*weight.shape, *[1] * (4 - weight.dim()))
    lengths = weight_lengths(weight, Expression(bits, True, "empirical_mse"), "per_output_channel")
    return float(exp2(-2 * lengths).mean())


def _over(statistic: float, divisor: float) -> float:
    return statistic / max(divisor, 1e-30)  # weights that are all alike have no spread to compare with
