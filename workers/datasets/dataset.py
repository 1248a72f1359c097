"""What a dataset is once its file has been read: images that can be picked by number, and perhaps labels.

Nothing here holds pixels; they are read from the file when they are asked for, so a dataset may be larger than memory.
"""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from jobs.errors import DatasetRefused

Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.generic]  # (n, C, H, W), uint8 or floating point

CHUNK_BYTES = 2**20  # so that a chunk and what is computed from it stay in the cache
MAX_CLASSES = 100_000

# The machine's own troubles: not the file's fault, so never reported as a refused file.
_MACHINE_TROUBLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES}
)


class Images(Protocol):
    """A numbered collection of images."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Of one image, channels first; a string where images differ."""
        ...

    def __len__(self) -> int: ...

    def pick(self, indices: Indices) -> Pixels:
        """The images with these numbers, (n, C, H, W)."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Images with or without labels, as one file holds them."""

    format: Literal["npz", "image_folder", "safetensors"]
    images: Images
    labels: Indices | None
    class_names: tuple[str, ...] = ()  # by label; empty where the file names no classes
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def class_name(self, label: int) -> str:
        return self.class_names[label] if self.class_names else str(label)

    def class_counts(self, indices: Indices | None = None) -> dict[str, int]:
        """Images by class in the order of the labels; empty without labels."""
        if self.labels is None:
            return {}
        labels, counts = np.unique(self.labels if indices is None else self.labels[indices], return_counts=True)
        return {self.class_name(int(label)): int(count) for label, count in zip(labels, counts, strict=True)}


class HeldFile(io.BufferedReader):
    """An open file that closes itself when the last one who reads from it is gone; several may share it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(io.FileIO(descriptor, "rb"))

    def __del__(self) -> None:
        self.close()


class StoredImages:
    """An array of images that lies uncompressed in an open file at some offset."""

    def __init__(self, file: HeldFile, offset: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
        self._file = file
        self._offset = offset
        self._stored = dtype
        self._count = shape[0]
        self._image = shape[1:]
        self._image_bytes = int(np.prod(self._image, dtype=np.int64)) * dtype.itemsize

    @property
    def dtype(self) -> str:
        return self._stored.newbyteorder("=").name

    @property
    def shape(self) -> tuple[int | str, ...]:
        return self._image

    def __len__(self) -> int:
        return self._count

    def pick(self, indices: Indices) -> Pixels:
        picked = np.empty((len(indices), *self._image), self._stored)
        flat = memoryview(picked.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # ndarray is a buffer
        for place, first, count in _runs(indices):
            start = place * self._image_bytes
            self._read_into(flat[start : start + count * self._image_bytes], first)
        native = picked.astype(self._stored.newbyteorder("="), copy=False)
        if native.dtype.kind == "f":
            self._refuse_not_finite(native, indices)
        return native

    def _read_into(self, destination: memoryview, first: int) -> None:
        position = self._offset + first * self._image_bytes
        while destination:
            read = os.preadv(self._file.fileno(), [destination], position)
            if read == 0:
                raise DatasetRefused("The dataset ends before its last image.", hint="Upload the whole file again.")
            destination, position = destination[read:], position + read

    def _refuse_not_finite(self, images: Pixels, indices: Indices) -> None:
        finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)
        if not finite.all():
            image = int(indices[int(np.argmin(finite))])
            raise DatasetRefused(
                f"Image {image} holds values that are not finite (NaN or infinity).",
                hint="Remove or repair such images; np.isfinite(x).all() must be true.",
                image=image,
            )


def chunks(dataset: Dataset, indices: Indices | None = None, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Indices]:
    """The numbers of all images (or of `indices`), cut into pieces whose pixels take about `chunk_bytes`."""
    wanted = np.arange(len(dataset), dtype=np.int64) if indices is None else indices
    sizes = [side if isinstance(side, int) else 512 for side in dataset.images.shape]
    at_once = max(1, chunk_bytes // max(1, int(np.prod(sizes)) * np.dtype(dataset.images.dtype).itemsize))
    for start in range(0, len(wanted), at_once):
        yield wanted[start : start + at_once]


@contextmanager
def refusing_broken_files(what: str) -> Iterator[None]:
    """Turn whatever a parser throws at hostile bytes into one refusal that says which part is broken.

    Parsers of zip, LZMA and images raise a dozen kinds of exceptions on damaged input, and new ones with each release;
    so this catches them all, except those that are the machine's fault.
    """
    try:
        yield
    except (DatasetRefused, MemoryError):
        raise
    except OSError as error:
        if error.errno in _MACHINE_TROUBLE:
            raise
        raise _broken(what, error) from error
    except Exception as error:
        raise _broken(what, error) from error


def _broken(what: str, error: Exception) -> DatasetRefused:
    reason = str(error).split("\n", maxsplit=1)[0][:200] or type(error).__name__
    return DatasetRefused(f"{what} is broken: {reason}.", hint="Check that the upload is complete, and make it anew.")


def _runs(indices: Indices) -> Iterator[tuple[int, int, int]]:
    """Where consecutive numbers start: (place in `indices`, first number, how many)."""
    if not len(indices):
        return
    starts = np.flatnonzero(np.diff(indices) != 1) + 1
    for piece in np.split(np.arange(len(indices)), starts):
        yield int(piece[0]), int(indices[piece[0]]), len(piece)
