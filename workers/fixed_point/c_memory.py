"""Where tensors and scratch memory lie: offsets fixed ahead of time, shared by what is never needed at the same time.

Numbers of 8 and 16 bits share one arena. Those of 32 and of 64 bits have one each, because C forbids reading memory as another
type than it was written as, except bytewise; they are few.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from workers.fixed_point.c_types import INT16, INT32, INT64, CType

ALIGNMENT_BYTES = 16  # lets vector loads of most processors start at the beginning of each buffer


@dataclass(frozen=True)
class Buffer:
    """Memory that is needed from operation `first` to operation `last`, both included."""

    name: str
    type: CType
    count: int
    first: int
    last: int

    @property
    def size_bytes(self) -> int:
        return self.type.size_bytes * self.count

    @property
    def arena(self) -> CType:
        """The element type of the arena that it lies in."""
        return CType(max(16, self.type.bits), True)

    def meets(self, other: "Buffer") -> bool:
        """Whether both are needed at some time."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Each buffer's offset in bytes within its arena."""

    buffers: dict[str, Buffer]
    offsets: dict[str, int]

    @property
    def arena_bytes(self) -> dict[CType, int]:
        """The size of each arena that is needed."""
        sizes: dict[CType, int] = {}
        for arena in (INT16, INT32, INT64):
            ends = [
                self.offsets[name] + buffer.size_bytes for name, buffer in self.buffers.items() if buffer.arena == arena
            ]
            if ends:
                sizes[arena] = -(-max(ends) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return sizes

    @property
    def ram_bytes(self) -> int:
        return sum(self.arena_bytes.values())


def plan_memory(buffers: Sequence[Buffer]) -> MemoryPlan:
    """Each buffer into the smallest gap that holds it (greedy by size: Pisarchyk & Lee 2020, section 5.2).

    The largest come first; or those that stay for long and then the largest, if that takes less memory. The latter keeps the
    scratch memory of one operation from breaking up the space that tensors share.
    """
    by_size = _place(sorted(buffers, key=lambda buffer: (-buffer.size_bytes, buffer.first, buffer.name)))
    staying_first = _place(
        sorted(buffers, key=lambda buffer: (buffer.first == buffer.last, -buffer.size_bytes, buffer.first, buffer.name))
    )
    return min(by_size, staying_first, key=lambda plan: plan.ram_bytes)


def _place(buffers: Sequence[Buffer]) -> MemoryPlan:
    """Offsets given in this order."""
    placed: list[Buffer] = []
    offsets: dict[str, int] = {}
    for buffer in buffers:
        neighbours = [other for other in placed if other.arena == buffer.arena and other.meets(buffer)]
        offsets[buffer.name] = _smallest_gap(buffer.size_bytes, neighbours, offsets)
        placed.append(buffer)
    return MemoryPlan({buffer.name: buffer for buffer in buffers}, offsets)


def _smallest_gap(size_bytes: int, neighbours: list[Buffer], offsets: dict[str, int]) -> int:
    end, best, best_gap = 0, None, 0
    for other in sorted(neighbours, key=lambda other: offsets[other.name]):
        gap = offsets[other.name] - end
        if gap >= size_bytes and (best is None or gap < best_gap):
            best, best_gap = end, gap
        after = offsets[other.name] + other.size_bytes
        end = max(end, -(-after // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
    return end if best is None else best


def live_bytes(buffers: Sequence[Buffer], operation: int) -> int:
    """What is needed while operation `operation` runs."""
    return sum(buffer.size_bytes for buffer in buffers if buffer.first <= operation <= buffer.last)
