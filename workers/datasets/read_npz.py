"""Datasets in numpy's `.npz`: a zip archive of `.npy` files, of which `x` and `y` are read.

Nothing is ever unpickled: the header of each array is taken apart with patterns, and an array of objects is refused.
"""

import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.errors import DatasetRefused
from workers.datasets.archives import Entry, open_zip, read_entry, unpack_entry
from workers.datasets.arrays import check_images, check_labels
from workers.datasets.dataset import Dataset, HeldFile, StoredImages, refusing_broken_files

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 10_000
_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])")


@dataclass(frozen=True)
class ArrayHeader:
    """What stands at the beginning of a `.npy` file, and how long it is."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    length: int

    @property
    def data_bytes(self) -> int:
        count = 1
        for side in self.shape:
            count *= side  # Python's integers: a hostile shape must not wrap around
        return count * self.dtype.itemsize


def is_npz(entries: list[Entry]) -> bool:
    """Whether an archive holds arrays rather than images."""
    return any(entry.name.endswith(".npy") and "/" not in entry.name for entry in entries)


def read_npz(file: HeldFile, scratch: Path) -> Dataset:
    """The images `x` and labels `y` of an open `.npz` file; packed pixels are unpacked into `scratch`."""
    archive, entries = open_zip(file)
    arrays = {entry.name.removesuffix(".npy"): entry for entry in entries if entry.name.endswith(".npy")}
    if "x" not in arrays:
        names = ", ".join(sorted(arrays)[:10]) or "none"
        raise DatasetRefused(
            f"The .npz file has no array 'x'; its arrays: {names}.",
            hint="Save with np.savez(path, x=images, y=labels): images (N, C, H, W), labels (N,).",
        )
    images = _images(file, archive, arrays["x"], scratch)
    labels = None
    if "y" in arrays:
        header, values = _array(file, archive, arrays["y"])
        labels = check_labels(np.frombuffer(values, header.dtype).reshape(header.shape), len(images))
    return Dataset("npz", images, labels)


def _images(file: HeldFile, archive: zipfile.ZipFile, entry: Entry, scratch: Path) -> StoredImages:
    unpacked, offset = unpack_entry(file, archive, entry, scratch)
    unpacked.seek(offset)
    header = _header(unpacked.read(_MAX_HEADER_BYTES + 12), entry)
    check_images(header.dtype, header.shape)
    return StoredImages(unpacked, offset + header.length, header.dtype, header.shape)


def _array(file: HeldFile, archive: zipfile.ZipFile, entry: Entry) -> tuple[ArrayHeader, bytes]:
    content = read_entry(file, archive, entry)
    header = _header(content, entry)
    return header, content[header.length :]


def _header(content: bytes, entry: Entry) -> ArrayHeader:
    with refusing_broken_files(f"The array {entry.name!r}"):
        header = _parse_header(content, entry.name)
        if header.length + header.data_bytes != entry.size:
            raise ValueError(
                f"its header speaks of {header.data_bytes:,} bytes, but {entry.size - header.length:,} are there"
            )
    return header


def _parse_header(content: bytes, name: str) -> ArrayHeader:
    if content[:6] != _MAGIC or content[6] not in (1, 2, 3):
        raise ValueError("it doesn't begin like a .npy file")
    form = "<H" if content[6] == 1 else "<I"
    start = 8 + struct.calcsize(form)
    (length,) = struct.unpack(form, content[8:start])
    if length > _MAX_HEADER_BYTES or start + length > len(content):
        raise ValueError("its header is too long")
    text = content[start : start + length].decode("utf-8")
    descr = re.search(r"'descr':\s*(\[|'([^']*)')", text)
    order = re.search(r"'fortran_order':\s*(True|False)", text)
    shape = re.search(r"'shape':\s*\(\s*((?:\d{1,18}\s*,?\s*)*)\)", text)
    if descr is None or order is None or shape is None:
        raise ValueError("its header is not well formed")
    if descr.group(2) is None or not _DTYPE.fullmatch(descr.group(2)):
        kind = "Python objects (a pickle)" if descr.group(2) in ("|O", "O") else f"type {descr.group(2) or 'record'}"
        raise DatasetRefused(
            f"The array {name!r} holds {kind}.",
            hint="Store images as uint8, float16, float32 or float64 and labels as integers.",
        )
    if order.group(1) == "True":
        raise DatasetRefused(
            f"The array {name!r} is stored in Fortran order.", hint="Save np.ascontiguousarray(array) instead."
        )
    sides = tuple(int(side) for side in re.findall(r"\d+", shape.group(1)))
    return ArrayHeader(np.dtype(descr.group(2)), sides, start + length)
