"""The store keeps what it may and never more than its bound."""

import torch
from torch import Tensor

from workers.compression.activation_store import ActivationStore

KIB = 1024
NUMBERS = frozenset({1, 2})


def kib(count: int) -> Tensor:
    return torch.zeros(count * KIB, dtype=torch.uint8)


def test_the_head_keeps_the_first_batches_and_the_focus_one_layer_of_the_others() -> None:
    store = ActivationStore(20 * KIB)
    store.reserve_head(10, batch_bytes=4 * KIB)  # two batches in half of the memory
    store.focus_on(frozenset({1}))
    for batch in range(4):
        for number in (1, 2):
            store.offer(batch, number, kib(2))
    assert [sorted(store.held(batch)) for batch in range(4)] == [[1, 2], [1, 2], [1], [1]]


def test_the_bound_is_never_passed() -> None:
    store = ActivationStore(20 * KIB)
    store.reserve_head(100, batch_bytes=4 * KIB)
    store.focus_on(NUMBERS)
    for batch in range(100):
        for number in NUMBERS:
            store.offer(batch, number, kib(2))
    assert store.bytes_held() == 20 * KIB


def test_everything_is_head_if_everything_fits() -> None:
    store = ActivationStore(40 * KIB)
    store.reserve_head(10, batch_bytes=4 * KIB)
    assert all(store.in_head(batch) for batch in range(10))


def test_a_store_of_no_bytes_keeps_nothing() -> None:
    store = ActivationStore(0)
    store.reserve_head(10, batch_bytes=4)
    store.focus_on(NUMBERS)
    store.offer(0, 1, kib(1))
    assert store.bytes_held() == 0


def test_a_new_focus_makes_room_for_itself() -> None:
    store = ActivationStore(8 * KIB)
    store.focus_on(frozenset({1}))
    for batch in range(9):
        store.offer(batch, 1, kib(1))
    store.focus_on(frozenset({2}))
    store.offer(8, 2, kib(1))
    assert [dict(store.held(0)), sorted(store.held(8))] == [{}, [2]]


def test_stale_values_are_forgotten_everywhere() -> None:
    store = ActivationStore(8 * KIB)
    store.reserve_head(4, batch_bytes=4 * KIB)
    store.focus_on(NUMBERS)
    for batch in (0, 1):
        for number in NUMBERS:
            store.offer(batch, number, kib(1))
    store.drop({2})
    assert [sorted(store.held(batch)) for batch in (0, 1)] == [[1], [1]]
    store.offer(1, 2, kib(1))
    assert sorted(store.held(1)) == [1, 2]


def test_a_view_does_not_keep_the_tensor_it_looks_into() -> None:
    store = ActivationStore(8 * KIB)
    store.focus_on(frozenset({1}))
    store.offer(0, 1, kib(64)[:KIB])
    value = store.held(0)[1]
    assert isinstance(value, Tensor)
    assert value.untyped_storage().nbytes() == KIB
