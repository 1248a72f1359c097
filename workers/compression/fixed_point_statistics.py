"""Distributions of a channel's values, taken as they pass by: count, moments to the fourth, least and largest (F-1).

Batches are merged by the update formulas of Chan et al. (1979) and Pébay (2008), so memory doesn't grow with the images.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from workers.models.graph import LAYER_OPERATORS, ModelGraph, aten, copy_graph, parameter, set_parameter


@dataclass
class ChannelStatistics:
    """Of a tensor's channels, each float64 [C]. `nonzero_*` are over the values that aren't zero, as ReLU leaves many that are."""

    count: int
    mean: Tensor
    m2: Tensor  # sums of powers of the distance from the mean
    m3: Tensor
    m4: Tensor
    minimum: Tensor
    maximum: Tensor
    nonzero_count: Tensor
    nonzero_square: Tensor  # sums of powers of the values
    nonzero_fourth: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "ChannelStatistics":
        """Of one batch [N, C, ...]."""
        rows = values.detach().double().transpose(0, 1).flatten(1)  # [C, n]
        mean = rows.mean(1)
        away = rows - mean[:, None]
        square = away.square()
        raw = rows.square()
        return cls(
            count=rows.shape[1],
            mean=mean,
            m2=square.sum(1),
            m3=(square * away).sum(1),
            m4=square.square().sum(1),
            minimum=rows.amin(1),
            maximum=rows.amax(1),
            nonzero_count=(rows != 0).sum(1).double(),
            nonzero_square=raw.sum(1),
            nonzero_fourth=raw.square().sum(1),
        )

    def merged(self, other: "ChannelStatistics") -> "ChannelStatistics":
        """Of the values of both."""
        a, b = self.count, other.count
        n = a + b
        d = other.mean - self.mean
        m4 = (
            self.m4
            + other.m4
            + d**4 * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * d**2 * (a * a * other.m2 + b * b * self.m2) / n**2
            + 4 * d * (a * other.m3 - b * self.m3) / n
        )
        m3 = self.m3 + other.m3 + d**3 * (a * b * (a - b) / n**2) + 3 * d * (a * other.m2 - b * self.m2) / n
        return ChannelStatistics(
            count=n,
            mean=self.mean + d * (b / n),
            m2=self.m2 + other.m2 + d**2 * (a * b / n),
            m3=m3,
            m4=m4,
            minimum=torch.minimum(self.minimum, other.minimum),
            maximum=torch.maximum(self.maximum, other.maximum),
            nonzero_count=self.nonzero_count + other.nonzero_count,
            nonzero_square=self.nonzero_square + other.nonzero_square,
            nonzero_fourth=self.nonzero_fourth + other.nonzero_fourth,
        )

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def variance(self) -> Tensor:
        return self.m2 / self.count

    @property
    def mean_square(self) -> Tensor:
        return self.variance + self.mean.square()

    @property
    def rms(self) -> Tensor:
        return self.mean_square.sqrt()

    @property
    def max_abs(self) -> Tensor:
        return torch.maximum(self.minimum.abs(), self.maximum.abs())

    @property
    def skewness(self) -> Tensor:
        return (self.m3 / self.count) / self.variance.clamp_min(1e-300) ** 1.5

    @property
    def kurtosis(self) -> Tensor:
        return (self.m4 / self.count) / self.variance.clamp_min(1e-300).square()

    @property
    def nonzero_rms(self) -> Tensor:
        return (self.nonzero_square / self.nonzero_count.clamp_min(1)).sqrt()

    @property
    def spread(self) -> Tensor:
        """E[x^4] / E[x^2]^2 of the values that aren't zero: the kurtosis of the distribution and its mirror image."""
        count = self.nonzero_count.clamp_min(1)
        return (self.nonzero_fourth / count) / (self.nonzero_square / count).clamp_min(1e-300).square()

    def pooled(self) -> "ChannelStatistics":
        """Of all channels together, as one channel."""
        total = None
        for channel in range(self.channels):
            one = ChannelStatistics(
                self.count, *(getattr(self, name)[channel : channel + 1] for name in _TENSORS)
            )  # fmt: skip
            total = one if total is None else total.merged(one)
        assert total is not None
        return total

    def profile(self) -> dict[str, list[float]]:
        """The channel profile for the report."""
        shown = ("mean", "variance", "skewness", "kurtosis", "minimum", "maximum", "rms")
        return {name: [float(f"{x:.5g}") for x in getattr(self, name).tolist()] for name in shown}


_TENSORS = (
    "mean", "m2", "m3", "m4", "minimum", "maximum", "nonzero_count", "nonzero_square", "nonzero_fourth",
)  # fmt: skip


class Observer:
    """Takes the statistics of nodes' values while a network runs, on calibration or training images."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self.found: dict[str, ChannelStatistics] = {}

    def see(self, name: str, values: Tensor) -> None:
        """Add a batch."""
        batch = ChannelStatistics.of(values)
        self.found[name] = self.found[name].merged(batch) if name in self.found else batch


@dataclass(frozen=True, eq=False)
class Place:
    """Where a tensor is seen in a network that learns: behind a node of it, as it is or after `view`."""

    node: str
    name: str  # the tensor's, for the observer
    view: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class _Watch:
    """Stands behind a node of a network that learns, and shows an observer what passes."""

    observer: Observer
    places: tuple[Place, ...]

    @property
    def __name__(self) -> str:  # fx calls nodes after their functions
        return "watch"

    def __call__(self, values: Tensor) -> Tensor:
        for place in self.places:
            self.observer.see(place.name, values if place.view is None else place.view(values.detach()))
        return values


def observed_while(
    train: Callable[[ModelGraph], ModelGraph], graph: ModelGraph, observer: Observer, places: Sequence[Place] = ()
) -> ModelGraph:
    """What `train` makes of `graph`, with the observer seeing what passes through the network while it learns (F-2).

    The observer, or `places`, name nodes of the network with folded batch norms: where a layer's is still there, it is that
    one's output.
    """
    wanted: dict[str, list[Place]] = {}
    for place in places or (Place(name, name) for name in observer.names):
        wanted.setdefault(place.node, []).append(place)
    watched = copy_graph(graph)
    for node in list(watched.module.graph.nodes):
        if node.name not in wanted:
            continue
        users = list(node.users)
        is_folded = node.target in LAYER_OPERATORS and len(users) == 1 and users[0].target is aten.batch_norm.default
        last = users[0] if is_folded else node
        with watched.module.graph.inserting_after(last):
            watch = watched.module.graph.call_function(_Watch(observer, tuple(wanted[node.name])), ())
        last.replace_all_uses_with(watch)
        watch.args = (last,)
    watched.module.recompile()
    learned, result = train(watched), copy_graph(graph)
    for name, _ in (*graph.module.named_parameters(), *graph.module.named_buffers()):
        set_parameter(result, name, parameter(learned, name).detach())
    return result


@torch.inference_mode()
def observe(
    graph: ModelGraph, batches: Iterable[Tensor], see: Callable[[str, Tensor], None], names: Iterable[str]
) -> int:
    """Run `graph` on every batch, showing `see` the values of the nodes called `names`; returns how many images there were."""
    wanted = frozenset(names)
    images = 0

    class _Listener(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:  # fx's values
            value = super().run_node(n)
            if n.name in wanted:
                see(n.name, value)
            return value

    listener = _Listener(graph.module)
    for batch in batches:
        images += len(batch)
        listener.run(batch)
    return images
