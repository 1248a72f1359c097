"""A network that has been computed up to some place, on all of its batches.

Where layers are changed one after another, and each change is to be fitted to what the layers before it make by now, computing
every layer's input from the image on would take as many passes as there are layers. A frontier takes one.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx

from workers.models.graph import ModelGraph, parameter

Values = dict[fx.Node, Any]  # of one batch, those that are still wanted


class Frontier:
    """Goes on through `graph` with `batches` of its first input; weights may change where it has not been yet."""

    def __init__(self, graph: ModelGraph, batches: Iterable[Tensor]) -> None:
        self.graph = graph
        nodes = list(graph.module.graph.nodes)
        self._nodes: list[fx.Node] = [node for node in nodes if node.op == "call_function"]
        self._place = {node.name: place for place, node in enumerate(self._nodes)}
        self._last_used: dict[fx.Node, list[fx.Node]] = {}
        for node in nodes:
            if node.op != "output" and node.users:
                self._last_used.setdefault(max(node.users), []).append(node)
        image = next(node for node in nodes if node.op == "placeholder")
        self._batches: list[Values] = [{image: batch} for batch in batches]
        self._next = 0

    def inputs_of(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """What the nodes called `names`, none of them behind the frontier, read in each batch. It stops before the first."""
        self._go_on_to(min(self._place[name] for name in names))
        for values in self._batches:
            yield self._seen(names, dict(values))

    def peak_bytes(self) -> int:
        """Goes on to the end, and says what it has held at the most."""
        peak = 0
        for place in range(self._next, len(self._nodes) + 1):
            self._go_on_to(place)
            held = [value for values in self._batches for value in values.values() if isinstance(value, Tensor)]
            peak = max(peak, sum(value.nbytes for value in held))
        return peak

    @torch.inference_mode()
    def _go_on_to(self, place: int) -> None:
        for values in self._batches:
            for node in self._nodes[self._next : place]:
                self._compute(node, values)
        self._next = place

    @torch.inference_mode()
    def _seen(self, names: Sequence[str], values: Values) -> dict[str, Tensor]:
        """A layer that is used more than once is seen with the weights that it has, which is not what remains of them."""
        seen: dict[str, Tensor] = {}
        for node in self._nodes[self._next :]:
            if node.name in names:
                seen[node.name] = self._argument(node.args[0], values)
            if len(seen) == len(names):
                break
            self._compute(node, values)
        return seen

    def _compute(self, node: fx.Node, values: Values) -> None:
        assert callable(node.target)
        arguments, options = fx.node.map_arg((node.args, node.kwargs), lambda each: self._argument(each, values))
        values[node] = node.target(*arguments, **options)
        for spent in self._last_used.get(node, ()):
            values.pop(spent, None)

    def _argument(self, node: object, values: Values) -> Any:
        """A tensor, or a tuple of tensors on its way to an element of it."""
        assert isinstance(node, fx.Node)
        if node.op == "get_attr":
            return parameter(self.graph, str(node.target))
        return values[node]


def batches_within(most_bytes: int, graph: ModelGraph, batches: Iterable[Tensor]) -> list[Tensor]:
    """As many of `batches`, at least one, as a frontier of `graph` can hold in so much memory, whatever its place."""
    given = iter(batches)
    first = next(given)
    return [first, *islice(given, max(1, most_bytes // max(1, Frontier(graph, [first]).peak_bytes())) - 1)]
