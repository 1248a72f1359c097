"""Counting the multiplications that Winograd convolutions really executed (claim element W-8 of the method).

A pruned position saves a matrix multiplication only if that multiplication is not run. So nothing here is computed from
sizes of layers: the plain-torch implementation reports each batch of matrices where it multiplies them, and the compiled
library counts in its own loops.

    with winograd.count_operations() as counted:
        model(images)
    print(counted.gemms, counted.multiplications)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor


@dataclass(frozen=True)
class Operations:
    """Executed matrix multiplications, and the scalar multiplications inside them.

    One matrix multiplication is [K, C] x [C, tiles]: one for each call, group of the convolution (or group of filters with
    positions of its own, where those are more) and kept position. Transforms are not counted.
    """

    gemms: int = 0
    multiplications: int = 0

    def __sub__(self, other: "Operations") -> "Operations":
        return Operations(self.gemms - other.gemms, self.multiplications - other.multiplications)


@dataclass
class CountedOperations:
    """What ran since the block began: up to now inside of it, up to its end afterwards."""

    _start: Operations
    _end: Operations | None = field(default=None)

    @property
    def gemms(self) -> int:
        """Matrix multiplications."""
        return self._so_far().gemms

    @property
    def multiplications(self) -> int:
        """Scalar multiplications inside the matrix multiplications."""
        return self._so_far().multiplications

    def _so_far(self) -> Operations:
        return (self._end or _executed_operations()) - self._start


@contextmanager
def count_operations() -> Iterator[CountedOperations]:
    """Count the operations of all Winograd convolutions (not of their gradients) in this process during a block."""
    counted = CountedOperations(_executed_operations())
    try:
        yield counted
    finally:
        counted._end = _executed_operations()


def multiply_counted(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix products a [..., K, C] @ b [..., C, tiles], and count them."""
    product = torch.matmul(a, b)
    if product.numel() > 0 and not torch.compiler.is_compiling():
        count_executed(gemms=product.shape[:-2].numel(), multiplications=product.numel() * a.shape[-1])
    return product


def count_executed(*, gemms: int, multiplications: int) -> None:
    """Count what has been executed elsewhere than in the library for CPU, which counts by itself."""
    _executed.add(gemms=gemms, multiplications=multiplications)


class _Counter:
    """What torch and the library for CUDA have executed since the process began."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.executed = Operations()

    def add(self, *, gemms: int, multiplications: int) -> None:
        with self._lock:
            done = self.executed
            self.executed = Operations(done.gemms + gemms, done.multiplications + multiplications)


_executed = _Counter()


def _executed_operations() -> Operations:
    from winograd import library  # here, because the library is loaded after the operators are defined

    gemms, multiplications = library.native_operation_counts()
    executed = _executed.executed
    return Operations(executed.gemms + gemms, executed.multiplications + multiplications)
