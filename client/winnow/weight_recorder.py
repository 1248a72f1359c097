"""Records how far the weights of a PyTorch network move while you train it, for Winnow's step `assign_precision`.

    recorder = WeightRecorder(model)
    for epoch in range(epochs):
        train_one_epoch(model)
        recorder.end_cycle()
    recorder.save("statistics.json")

The file holds a few numbers for each layer and cycle, and none of your weights. A job that is given it needs no training data.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from winnow.errors import WinnowError
from winnow.resources import Document

if TYPE_CHECKING:
    from torch import Tensor, nn


class WeightRecorder:
    """Takes, for every convolution and linear layer and every learning cycle, the mean square of the weights' differences: from
    the start of the cycle, and from the weights before the first one.

    Layers are called as in the model, which is how they are called in files that torch.export and torch.onnx.export write of it.
    torch is imported from your own environment; raises `WinnowError` where the model has no such layers.
    """

    def __init__(self, model: "nn.Module") -> None:
        from torch import nn

        kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
        self._weights = {name: module.weight for name, module in model.named_modules() if isinstance(module, kinds)}
        if not self._weights:
            raise WinnowError("the model has no convolutions or linear layers whose weights could be recorded")
        self._initial = self._snapshot()
        self._start = self._initial
        self._cycles: list[dict[str, dict[str, float]]] = []
        self._learning_rates: list[float] = []

    def end_cycle(self, learning_rate: float | None = None) -> None:
        """Compare the weights with those before: after every epoch, or as often as you like.

        Give the cycle's `learning_rate` where it changes from cycle to cycle, then in every call: differences grow with it.
        """
        if (learning_rate is None) != (not self._learning_rates) and self._cycles:
            raise WinnowError("give the learning rate in every call of end_cycle, or in none")
        weights = self._snapshot()
        self._cycles.append(
            {
                name: {
                    "cycle_start": _mean_square(weight - self._start[name]),
                    "initial": _mean_square(weight - self._initial[name]),
                }
                for name, weight in weights.items()
            }
        )
        if learning_rate is not None:
            self._learning_rates.append(learning_rate)
        self._start = weights

    def statistics(self) -> Document:
        """What `save` writes: the field `statistics` of the step. Raises `WinnowError` before the first cycle has ended."""
        if not self._cycles:
            raise WinnowError("nothing is recorded yet: call end_cycle after each epoch")
        return {
            "version": 1,
            "cycles": self._cycles,
            "variances": {name: float(weight.var(correction=0)) for name, weight in self._start.items()},
            "learning_rates": self._learning_rates or None,
        }

    def save(self, path: str | Path) -> None:
        """Write the statistics as JSON."""
        Path(path).write_text(json.dumps(self.statistics(), indent=1) + "\n", encoding="utf-8")

    def _snapshot(self) -> "dict[str, Tensor]":
        import torch

        return {name: weight.detach().to("cpu", torch.float64, copy=True) for name, weight in self._weights.items()}


def _mean_square(differences: "Tensor") -> float:
    return float(differences.square().mean())
