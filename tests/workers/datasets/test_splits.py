"""Random choices of images: exact per class, repeatable, without overlap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.datasets.splits import sample_per_class, split_by_class

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [40, 25, 30, 21, 60]))


def test_sample_has_exactly_as_many_of_each_class() -> None:
    chosen = sample_per_class(LABELS, 20, seed=3)
    assert np.unique(LABELS[chosen], return_counts=True)[1].tolist() == [20] * 5
    assert len(np.unique(chosen)) == 100


def test_sample_is_repeated_by_its_seed_and_by_no_other() -> None:
    np.testing.assert_array_equal(sample_per_class(LABELS, 10, seed=3), sample_per_class(LABELS, 10, seed=3))
    assert sample_per_class(LABELS, 10, seed=3).tolist() != sample_per_class(LABELS, 10, seed=4).tolist()


def test_sample_larger_than_the_smallest_class_is_refused() -> None:
    with pytest.raises(ValueError, match="the smallest class has 21 images, so 22"):
        sample_per_class(LABELS, 22, seed=0)


@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=80),
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_split_gives_every_image_once_and_each_class_in_proportion(
    labels: list[int], weights: list[int], seed: int
) -> None:
    array = np.array(labels, np.int64)
    fractions = {f"part{index}": weight / sum(weights) for index, weight in enumerate(weights)}
    parts = split_by_class(array, fractions, seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
    for name, fraction in fractions.items():
        for label in set(labels):
            expected = fraction * labels.count(label)
            assert abs(int((array[parts[name]] == label).sum()) - expected) <= 1
