"""Weights of a `.pt2` archive: raw little-endian bytes, given a type and a shape by the configuration beside them."""

import re

import torch
from torch import Tensor

from jobs.errors import ModelRefused
from workers.models.graph_builder import Constant
from workers.models.pt2_archive import Pt2Archive
from workers.models.pt2_schema import DTYPES, STRIDED, Payload, PayloadConfig, Tagged, TensorMeta, parsed

MAX_DIMENSIONS = 8
MAX_STORAGE_BYTES = 4 * 2**30

# Configuration and folder of weights, then of constants: only what the first lacks is taken from the second.
_CONFIGURATIONS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_FILE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)


def read_weights(archive: Pt2Archive) -> dict[str, Constant]:
    """Every tensor of the archive by its name."""
    weights: dict[str, Constant] = {}
    tensors: dict[tuple[str, str], Tensor] = {}  # weights that share a file and layout share a tensor
    for entry in _CONFIGURATIONS:
        if entry not in archive:
            continue
        folder = entry.rpartition("/")[0]
        for name, payload in parsed(PayloadConfig, archive.read_json(entry), entry).config.items():
            key = (f"{folder}/{payload.path_name}", str(payload.tensor_meta))
            if key not in tensors:
                tensors[key] = _read_tensor(archive, folder, name, payload)
            weights.setdefault(name, Constant(tensors[key], name, trainable=payload.is_param))
    return weights


def _read_tensor(archive: Pt2Archive, folder: str, name: str, payload: Payload) -> Tensor:
    entry = f"{folder}/{payload.path_name}"
    if payload.use_pickle or payload.tensor_meta is None:
        raise ModelRefused(
            f"{name} is stored as a pickle, which can run code; Winnow never opens it",
            hint="Export with torch.export.save of torch 2.13, without custom objects or tensor subclasses.",
            entry=entry,
            parameter=name,
        )
    if not _FILE_NAME.fullmatch(payload.path_name):
        raise ModelRefused(f"{name} is stored under an unsafe path: {payload.path_name[:128]!r}", parameter=name)
    meta = payload.tensor_meta
    if meta.dtype not in DTYPES or meta.layout != STRIDED:
        raise ModelRefused(f"{name} has an element type or layout that Winnow doesn't read", parameter=name)
    dtype = DTYPES[meta.dtype]
    content = archive.read(entry, limit=MAX_STORAGE_BYTES)
    if len(content) % dtype.itemsize:
        raise ModelRefused(
            f"{name} has {len(content)} bytes, which is no whole number of elements", entry=entry, parameter=name
        )
    storage = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return _laid_out(storage, meta, name, entry)


def _laid_out(storage: Tensor, meta: TensorMeta, name: str, entry: str) -> Tensor:
    sizes, strides = (tuple(_number(item, name) for item in items) for items in (meta.sizes, meta.strides))
    offset = _number(meta.storage_offset, name)
    if len(sizes) != len(strides) or len(sizes) > MAX_DIMENSIONS:
        raise ModelRefused(f"{name} has {len(sizes)} sizes and {len(strides)} strides", entry=entry, parameter=name)
    elements = 1
    for size in sizes:
        elements *= size
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    # A stride of zero repeats elements: harmless to read, but it could claim any size. Nothing may be larger than what is stored.
    if elements > storage.numel() or (elements and last >= storage.numel()):
        raise ModelRefused(
            f"{name} of shape {sizes} needs more than the {storage.numel()} elements that are stored",
            entry=entry,
            parameter=name,
        )
    return (
        torch.as_strided(storage, sizes, strides, offset).contiguous()
        if elements
        else torch.empty(sizes, dtype=storage.dtype)
    )


def _number(tagged: Tagged, name: str) -> int:
    number = tagged.get("as_int")
    if len(tagged) != 1 or not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**40:
        raise ModelRefused(f"a size or stride of {name} is not a plain number", parameter=name)
    return number
