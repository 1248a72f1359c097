"""Bytes: of files on disk, and of a network's weights in the usual ways to store zeros."""

import zlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from jobs.report import FileSize, Totals
from workers.measurement.operations import count_operations
from workers.models.graph import ModelGraph, layers, parameter

_PIECE = 2**20


def file_size(path: Path) -> FileSize:
    """The bytes of a file, and what zip compression would make of them."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    size = deflated = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            size += len(piece)
            deflated += len(deflate.compress(piece))
    return FileSize(bytes=size, deflated_bytes=deflated + len(deflate.flush()))


def totals(graph: ModelGraph, macs: Mapping[str, int], bits_of: Mapping[str, int] | None = None) -> Totals:
    """Size and work of a network; `macs` by layer name, for one image, and `bits_of` a weight where it isn't its number's.

    Only the weights of layers are counted as sparse; all else is stored as it is.
    """
    sparse = {layer.weight: parameter(graph, layer.weight) for layer in layers(graph)}
    bits = {
        layer.weight: (bits_of or {}).get(layer.name, 8 * sparse[layer.weight].element_size())
        for layer in layers(graph)
    }
    others = [value for name, value in graph.module.named_parameters() if name not in sparse]
    rest = sum(value.numel() * value.element_size() for value in others)
    operations = count_operations(graph, macs)
    return Totals(
        parameters=sum(value.numel() for value in [*sparse.values(), *others]),
        nonzeros=sum(nonzeros(value) for value in [*sparse.values(), *others]),
        weight_bits=sum(bits[name] * value.numel() for name, value in sparse.items()),
        multiplications=sum(count.dense for count in operations.values()),
        effective_multiplications=sum(count.effective for count in operations.values()),
        dense_bytes=rest + sum(_bytes(bits[name] * value.numel()) for name, value in sparse.items()),
        bitmap_bytes=rest + sum(bitmap_bytes(value, bits[name]) for name, value in sparse.items()),
        csr_bytes=rest + sum(csr_bytes(value, bits[name]) for name, value in sparse.items()),
    )


def nonzeros(weight: Tensor) -> int:
    return int(weight.count_nonzero())


def bitmap_bytes(weight: Tensor, bits: int | None = None) -> int:
    """One bit a weight says whether it is zero; the others follow each other, each of `bits` or as they are."""
    return _bytes(weight.numel()) + _bytes(nonzeros(weight) * (bits or 8 * weight.element_size()))


def csr_bytes(weight: Tensor, bits: int | None = None) -> int:
    """Compressed sparse rows of the matrix (K, C*R*S): values, column indices of the fewest bytes, 4-byte row starts."""
    rows = weight.shape[0]
    columns = weight.numel() // max(1, rows)
    index_bytes = 1 if columns <= 2**8 else 2 if columns <= 2**16 else 4
    of_values = _bytes(nonzeros(weight) * (bits or 8 * weight.element_size()))
    return of_values + nonzeros(weight) * index_bytes + 4 * (rows + 1)


def _bytes(bits: int) -> int:
    return -(-bits // 8)
