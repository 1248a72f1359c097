"""What there is to say of a dataset before any model is known: counts, statistics, and what looks odd.

Every image is looked at once, in chunks, so the memory needed depends neither on the number of images nor on their size
but for eight bytes an image by which doubles are found.
"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.inspection import DatasetInspection
from workers.datasets.dataset import Dataset, Indices, Pixels, chunks
from workers.datasets.read_dataset import read_dataset
from workers.datasets.read_image_folder import FolderImages

Hashes = npt.NDArray[np.uint64]

UNEVEN_RATIO = 10


def inspect_dataset(path: Path, *, scratch: Path | None = None) -> DatasetInspection:
    """Read all of the dataset in the file at `path` and say what is in it. Raises `DatasetRefused`."""
    dataset = read_dataset(path, scratch=scratch)
    statistics = _Statistics()
    for images in _all_images(dataset):
        statistics.add(images)
    counts = dataset.class_counts()
    return DatasetInspection(
        format=dataset.format,
        images=len(dataset),
        shape=dataset.images.shape,
        dtype=dataset.images.dtype,
        labelled=dataset.labels is not None,
        class_counts=counts,
        channel_mean=tuple(float(mean) for mean in statistics.mean),
        channel_std=tuple(float(std) for std in statistics.std),
        warnings=(*dataset.warnings, *_label_warnings(dataset, counts), *statistics.warnings(dataset.images.dtype)),
    )


def image_hashes(dataset: Dataset, indices: Indices) -> Hashes:
    """One number for each of these images, equal for equal pixels; for image files, which it would take long to decode,
    equal for equal files."""
    if isinstance(dataset.images, FolderImages):
        return _hashes(dataset.images.content(int(index)) for index in indices)
    return np.concatenate([_hashes(dataset.images.pick(piece)) for piece in chunks(dataset, indices)])


def _hashes(images: Iterable[bytes | Pixels]) -> Hashes:
    digests = (blake2b(image, digest_size=8).digest() for image in images)  # type: ignore[arg-type]  # arrays are buffers
    return np.frombuffer(b"".join(digests), np.uint64)


def _all_images(dataset: Dataset) -> Iterator[Pixels]:
    if isinstance(dataset.images, FolderImages):  # of different sizes, so one by one
        for index in range(len(dataset)):
            yield dataset.images.decode(index)[None]
        return
    for piece in chunks(dataset):
        yield dataset.images.pick(piece)


class _Statistics:
    """Running figures over chunks of images."""

    def __init__(self) -> None:
        self._pixels = 0
        self._mean: npt.NDArray[np.float64] = np.zeros(1)
        self._squares: npt.NDArray[np.float64] = np.zeros(1)  # sum of squared differences from the mean
        self._least, self._most = np.inf, -np.inf
        self._constant = 0
        self._hashes: list[Hashes] = []

    def add(self, images: Pixels) -> None:
        # Chan, Golub and LeVeque's way to join the moments of two samples: no cancellation, whatever the mean.
        values = images.transpose(1, 0, 2, 3).reshape(images.shape[1], -1).astype(np.float64)
        count, mean = values.shape[1], values.mean(axis=1)
        squares = ((values - mean[:, None]) ** 2).sum(axis=1)
        total, delta = self._pixels + count, mean - self._mean
        self._squares = self._squares + squares + delta**2 * self._pixels * count / total
        self._mean = self._mean + delta * count / total
        self._pixels = total
        flat = images.reshape(len(images), -1)
        least, most = flat.min(axis=1), flat.max(axis=1)
        self._least, self._most = min(self._least, float(least.min())), max(self._most, float(most.max()))
        self._constant += int((least == most).sum())
        self._hashes.append(_hashes(images))

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        return self._mean

    @property
    def std(self) -> npt.NDArray[np.float64]:
        return np.asarray(np.sqrt(self._squares / self._pixels))

    def warnings(self, dtype: str) -> list[str]:
        hashes = np.concatenate(self._hashes)
        doubled = len(hashes) - len(np.unique(hashes))
        found = []
        if self._constant:
            found.append(f"{self._constant} images are of one single value.")
        if doubled:
            found.append(f"{doubled} images are exact copies of others.")
        if dtype == "uint8" and self._most <= 1:
            found.append("All pixels are 0 or 1: were values between 0 and 1 stored as uint8?")
        if dtype != "uint8" and self._least >= 0 and 1 < self._most <= 255:
            found.append(
                f"The values reach from {self._least:g} to {self._most:g}: if the model expects normalised input, "
                'give "scale", "mean" and "std" in the job\'s preprocess.'
            )
        return found


def _label_warnings(dataset: Dataset, counts: dict[str, int]) -> list[str]:
    if dataset.labels is None:
        return []
    if len(counts) == 1:
        return [f"All images are of the one class {next(iter(counts))!r}."]
    found = []
    fewest, most = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    if counts[most] >= UNEVEN_RATIO * counts[fewest]:
        found.append(f"The classes are very uneven: {counts[most]} images of {most!r}, {counts[fewest]} of {fewest!r}.")
    classes = len(dataset.class_names) or int(dataset.labels.max()) + 1
    if classes > len(counts):
        found.append(f"{classes - len(counts)} of the {classes} classes have no image.")
    return found
