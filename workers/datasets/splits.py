"""Random choices of images that treat every class alike and can be repeated from a seed."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from workers.datasets.dataset import Indices

Name = TypeVar("Name", bound=str)


def sample_per_class(labels: Indices, per_class: int, seed: int) -> Indices:
    """The numbers of exactly `per_class` images of each class, drawn at random without replacement, in ascending order.

    This is the pruning data set of claim element P-4: a predetermined number of data randomly extracted from each class.
    """
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    if per_class > smallest:
        raise ValueError(f"the smallest class has {smallest} images, so {per_class} can't be drawn from each")
    chosen = [members[:per_class] for members in _shuffled_classes(labels, seed)]
    return np.sort(np.concatenate(chosen))


def split_by_class(labels: Indices, fractions: Mapping[Name, float], seed: int) -> dict[Name, Indices]:
    """All images in parts named by `fractions`, each part holding its fraction of every class (to within one image)."""
    assert abs(sum(fractions.values()) - 1) < 1e-9
    parts: dict[Name, list[Indices]] = {name: [] for name in fractions}
    ends = np.cumsum(list(fractions.values()))
    for members in _shuffled_classes(labels, seed):
        # Rounding the ends, not the sizes, loses no image and gives none twice.
        cuts = np.floor(ends * len(members) + 0.5).astype(np.int64)[:-1]
        for name, piece in zip(fractions, np.split(members, cuts), strict=True):
            parts[name].append(piece)
    return {name: np.sort(np.concatenate(pieces)) for name, pieces in parts.items()}


def _shuffled_classes(labels: Indices, seed: int) -> list[Indices]:
    generator = np.random.default_rng(seed)
    classes = np.unique(labels)
    return [generator.permutation(np.flatnonzero(labels == label)) for label in classes]
