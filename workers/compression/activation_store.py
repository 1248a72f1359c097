"""Activations of the current network that are kept between probes, within a bound of memory.

Half of the memory is the head's: the first batches, which hold the most fragile images and where nearly every race is decided,
keep all that any probe starts from. The other half is the focus: one layer that is being probed again and again
keeps what its probes start from, for as many batches as fit.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

Value = Tensor | int  # a network may compute with sizes as well


class ActivationStore:
    """Values by batch and number. Whatever is not kept can be computed again, so nothing depends on what it holds."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._head_batches = 0
        self._head_bytes = 0
        self._head: dict[int, dict[int, Value]] = {}
        self._focus: dict[int, dict[int, Value]] = {}
        self._focus_numbers: frozenset[int] = frozenset()
        self._focus_bytes = 0

    def reserve_head(self, batches: int, *, batch_bytes: int) -> None:
        """Give the head as many batches of that size as half of the memory holds, or all if all of them fit."""
        share = self._budget_bytes if batches * batch_bytes <= self._budget_bytes else self._budget_bytes // 2
        self._head_batches = min(batches, share // max(1, batch_bytes))
        self._head_bytes = self._head_batches * batch_bytes

    def in_head(self, batch: int) -> bool:
        return batch < self._head_batches

    def focus_on(self, numbers: frozenset[int]) -> None:
        """From now on the focus keeps these values; what it held besides is dropped."""
        self._focus_numbers = numbers
        self._retain_in_focus(numbers)

    def held(self, batch: int) -> Mapping[int, Value]:
        """All values kept of a batch, by number."""
        return (self._head if self.in_head(batch) else self._focus).get(batch, {})

    def worth_keeping(self, batch: int, head_numbers: frozenset[int]) -> frozenset[int]:
        """Which values of a batch to offer, if they are computed anyway."""
        return head_numbers if self.in_head(batch) else self._focus_numbers

    def offer(self, batch: int, number: int, value: Value) -> None:
        """Keep a value if there is room for it."""
        if self.in_head(batch):
            self._head.setdefault(batch, {})[number] = _owned(value)
        elif number in self._focus_numbers and number not in self._focus.get(batch, {}):
            size = bytes_of(value)
            if self._head_bytes + self._focus_bytes + size <= self._budget_bytes:
                self._focus_bytes += size
                self._focus.setdefault(batch, {})[number] = _owned(value)

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget values that are no longer those of the current network."""
        stale = frozenset(numbers)
        for of_batch in self._head.values():
            for number in stale & of_batch.keys():
                del of_batch[number]
        self._retain_in_focus(self._focus_numbers - stale)

    def bytes_held(self) -> int:
        return sum(
            bytes_of(value) for region in (self._head, self._focus) for of in region.values() for value in of.values()
        )

    def _retain_in_focus(self, numbers: frozenset[int]) -> None:
        for of_batch in self._focus.values():
            for number in of_batch.keys() - numbers:
                self._focus_bytes -= bytes_of(of_batch.pop(number))


def bytes_of(value: Value) -> int:
    return value.nbytes if isinstance(value, Tensor) else 0


def _owned(value: Value) -> Value:
    """A view is copied: keeping it would keep the whole tensor that it looks into."""
    if isinstance(value, Tensor) and value.untyped_storage().nbytes() != value.nbytes:
        return value.clone()
    return value
