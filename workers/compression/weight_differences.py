"""How far the weights of every layer move in every learning cycle (Q-2, Q-3; METHODS 4.3).

MS_l^(c) = mean over i of (w_l,i^(c) - ref)^2, where ref is the weight at the start of the cycle, or before all of them
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from jobs.errors import RecipeRefused
from jobs.recipe import LayerChange, LearningCycles, LearningStatistics
from workers.compression.finetune import Stepped


class DifferenceRecorder:
    """Takes the mean squares while a network learns. Weights are compared in float64."""

    def __init__(self, weights: Mapping[str, Tensor], learning: LearningCycles) -> None:
        self._learning = learning
        self._initial = _snapshot(weights)
        self._start = self._initial
        self._last = self._initial
        self._cycles: list[dict[str, LayerChange]] = []
        self._of_cycle: list[float] = []  # the losses of its steps
        self.losses: list[float] = []  # mean of every cycle

    def after_step(self, stepped: Stepped) -> None:
        """To be called after every optimiser step: ends a cycle where it is due."""
        self._of_cycle.append(stepped.loss)
        iterations = self._learning.iterations
        if stepped.ends_epoch if iterations is None else len(self._of_cycle) == iterations:
            self.losses.append(sum(self._of_cycle) / len(self._of_cycle))
            self._of_cycle = []
            self.end_cycle(stepped.weights)

    def end_cycle(self, weights: Mapping[str, Tensor]) -> None:
        """Compare the weights with those at the start of the cycle and of all cycles."""
        self._last = _snapshot(weights)
        self._cycles.append(
            {
                name: LayerChange(
                    cycle_start=_mean_square(weight - self._start[name]),
                    initial=_mean_square(weight - self._initial[name]),
                )
                for name, weight in self._last.items()
            }
        )
        self._start = self._last

    def statistics(self) -> LearningStatistics:
        """Those of the cycles after the warm-up. Raises `RecipeRefused` where there are none."""
        warmup = self._learning.warmup_cycles
        if len(self._cycles) <= warmup:
            raise RecipeRefused(
                f"The network learned for {len(self._cycles)} whole cycles, but {warmup + 1} are needed: the first {warmup} don't "
                "count.",
                hint="Lower iterations or warmup_cycles, or raise epochs.",
                step="assign_precision",
            )
        return LearningStatistics(
            cycles=tuple(self._cycles[warmup:]),
            variances={name: float(weight.var(correction=0)) for name, weight in self._last.items()},
        )


def _snapshot(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().to("cpu", torch.float64, copy=True) for name, weight in weights.items()}


def _mean_square(differences: Tensor) -> float:
    return float(differences.square().mean())
