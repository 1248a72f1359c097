"""Datasets in safetensors files: tensors `x` and `y`, which are read in place."""

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.errors import DatasetRefused
from workers.datasets.arrays import check_images, check_labels
from workers.datasets.dataset import Dataset, HeldFile, StoredImages, refusing_broken_files

MAX_HEADER_BYTES = 2**20
_DTYPES = {
    "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8",
    "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int
    size: int


def looks_like_safetensors(start: bytes) -> bool:
    """Eight bytes of header length, then JSON."""
    return len(start) >= 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= 2**40


def read_safetensors(file: HeldFile) -> Dataset:
    """The images `x` and labels `y` of an open safetensors file."""
    with refusing_broken_files("The header of the safetensors file"):
        tensors = _tensors(file)
    if "x" not in tensors:
        names = ", ".join(sorted(tensors)[:10]) or "none"
        raise DatasetRefused(
            f"The safetensors file has no tensor 'x'; its tensors: {names}.",
            hint="Save {'x': images, 'y': labels}: images (N, C, H, W), labels (N,).",
        )
    x = tensors["x"]
    check_images(x.dtype, x.shape)
    labels = None
    if "y" in tensors:
        y = tensors["y"]
        file.seek(y.offset)
        labels = check_labels(np.frombuffer(file.read(y.size), y.dtype).reshape(y.shape), x.shape[0])
    return Dataset("safetensors", StoredImages(file, x.offset, x.dtype, x.shape), labels)


def _tensors(file: HeldFile) -> dict[str, StoredTensor]:
    size = file.seek(0, 2)
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER_BYTES or 8 + length > size:
        raise ValueError(f"it claims to have {length:,} bytes")
    header = json.loads(file.read(length), object_pairs_hook=_without_doubles)
    if not isinstance(header, dict):
        raise TypeError("it is no JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.size)):
        if tensor.offset != end:
            raise ValueError("its tensors overlap or leave a hole")
        end += tensor.size
    if end != size:
        raise ValueError(f"its tensors end at byte {end:,}, but the file at byte {size:,}")
    return tensors


def _tensor(name: str, entry: Any, data: int) -> StoredTensor:  # Any: anything that JSON can hold
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    if entry["dtype"] not in _DTYPES:
        if name in ("x", "y"):
            hint = "Store images as U8, F16, F32 or F64 and labels as integers."
            raise DatasetRefused(f"The tensor {name!r} is of type {entry['dtype']!r}.", hint=hint)
        raise ValueError(f"tensor {name!r} is of the unknown type {entry['dtype']!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"the shape or place of tensor {name!r} is not well formed")
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    expected = dtype.itemsize
    for side in shape:
        expected *= side
    if offsets[1] - offsets[0] != expected:
        raise ValueError(f"tensor {name!r} needs {expected:,} bytes but has {offsets[1] - offsets[0]:,}")
    return StoredTensor(dtype, tuple(shape), data + offsets[0], expected)


def _are_counts(value: Any) -> bool:  # Any: anything that JSON can hold
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**62 for item in value)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it names a tensor twice")
    return found
