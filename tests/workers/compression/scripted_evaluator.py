"""An evaluator whose accuracies are written down, and that remembers everything it was asked."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.compression.evaluator import Probe, ProbingCost
from workers.models.graph import Layer, ModelGraph, layers, parameter

DropOf = Callable[[dict[str, float]], float]  # (share of zeros by layer) -> accuracy lost, in percentage points


@dataclass(frozen=True)
class Call:
    """One question: `probe`, `expect` or `accept`, of which layer, with what share of zeros."""

    what: str
    layer: str
    zeros: float = 0.0
    is_zero: Tensor = field(default_factory=lambda: torch.empty(0), compare=False)


@dataclass
class ScriptedEvaluator:
    """Starts at 100 % and loses what `drop_of` says. So many images that every drop of the tests is a whole number of them."""

    graph: ModelGraph
    drop_of: DropOf
    images: int = 1_000_000
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rates = {layer.name: _zeros(parameter(self.graph, layer.weight)) for layer in layers(self.graph)}

    @property
    def correct(self) -> int:
        return self._correct(dict.fromkeys(self.rates, 0.0))

    def probe(self, layer: Layer, weight: Tensor, *, at_least: int) -> Probe:
        self.calls.append(Call("probe", layer.name, _zeros(weight), weight == 0))
        correct = self._correct({**self.rates, layer.name: _zeros(weight)})
        if correct < at_least:
            return Probe(at_least - 1, is_exact=False, images=self.images // 2, lost=0, gained=0)
        return Probe(correct, is_exact=True, images=self.images, lost=self.images - correct, gained=0)

    def expect(self, layer: Layer) -> None:
        self.calls.append(Call("expect", layer.name))

    def accept(self, layer: Layer, weight: Tensor) -> None:
        self.calls.append(Call("accept", layer.name, _zeros(weight)))
        self.rates[layer.name] = _zeros(weight)

    def cost(self) -> ProbingCost:
        probes = sum(call.what == "probe" for call in self.calls)
        return ProbingCost(probes, 0, probes * self.images, 0, 0, 0, 0, 0, 0)

    def _correct(self, rates: dict[str, float]) -> int:
        return round(self.images * (1 - self.drop_of(rates) / 100))


def _zeros(weight: Tensor) -> float:
    return float((weight == 0).double().mean())
