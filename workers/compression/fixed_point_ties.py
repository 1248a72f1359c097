"""Additions without shifts: the two operands of each get one length a channel (METHODS 5.6, `tie`).

An operand that is moved on its way (pooled, cut, padded, repeated, resized) has the lengths of the tensor that it was moved from,
channel for channel, so that one is tied. A tie takes the shortest of its lengths: none of the numbers is cut off that wasn't
before, and the finer operand loses bits of its fraction.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace

from workers.compression.fixed_point_moves import Channel, channels_of
from workers.compression.fixed_point_plan import Plan
from workers.fixed_point.coding import Coding


def tied(plan: Plan, codings: dict[str, Coding], pooled: Collection[str]) -> dict[str, Coding]:
    """The codings with one length for the channels that any addition adds up; those of `pooled` tensors keep one for all."""
    ties = _Ties()
    for name in pooled:
        for channel in range(1, len(codings[name].lengths)):
            ties.tie((name, 0), (name, channel))
    for a, b in _added_channels(plan):
        if a[0] in codings and b[0] in codings:
            ties.tie(a, b)
    shortest: dict[Channel, int] = {}
    for name, coding in codings.items():
        for channel, length in enumerate(coding.lengths):
            root = ties.root((name, channel))
            shortest[root] = min(shortest.get(root, length), length)
    return {
        name: replace(coding, lengths=tuple(shortest[ties.root((name, c))] for c in range(len(coding.lengths))))
        for name, coding in codings.items()
    }


def _added_channels(plan: Plan) -> Iterator[tuple[Channel, Channel]]:
    """For each channel of each addition, where its two operands have their lengths from; zeros of a padding have none."""
    for planned in plan.operations:
        if planned.kind == "add":
            for a, b in zip(*(channels_of(plan, source) for source in planned.sources), strict=True):
                if a is not None and b is not None:
                    yield a, b


class _Ties:
    """Disjoint sets of channels."""

    def __init__(self) -> None:
        self._above: dict[Channel, Channel] = {}

    def root(self, channel: Channel) -> Channel:
        """What stands for the set of this channel."""
        while (above := self._above.get(channel)) is not None:
            channel = above
        return channel

    def tie(self, a: Channel, b: Channel) -> None:
        a, b = self.root(a), self.root(b)
        if a != b:
            self._above[b] = a
