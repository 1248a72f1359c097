"""Writes the canonical graph as a `.pt2` file that plain `torch.export.load` reads.

torch makes the archive; then it is written anew without what doesn't belong to the network: sample inputs (a pickle), places in
source files, guards (code), times. What is left depends on the network alone, so the same network gives the same bytes.
"""

import io
import json
import zipfile
import zlib
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram

from jobs.errors import VerificationFailed
from workers.models.deflate import deflated
from workers.models.graph import BATCH, ModelGraph
from workers.models.shapes import concrete_shape

ROOT = "network"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that zip knows
LARGEST_DEFLATED = 2**30  # bytes; of more than 2 GB zip writes other headers
SMALLEST_GAIN = 0.98  # a weight that packing hardly shrinks is stored as it is, which loads faster


def write_pt2(graph: ModelGraph, path: Path, *, pack_zeros: bool) -> None:
    """Write `graph` to `path`; with `pack_zeros`, weights are compressed, so that zeros take next to no bytes."""
    stream_of_torch = io.BytesIO()
    torch.export.save(exported(graph), stream_of_torch)
    with zipfile.ZipFile(stream_of_torch) as source, path.open("wb") as stream, zipfile.ZipFile(stream, "w") as target:
        for entry in source.infolist():
            place = entry.filename.partition("/")[2]
            content = source.read(entry)
            if place.startswith("data/sample_inputs/"):
                content = b""  # torch.export.load wants the entry, but nothing in it
            elif place == "models/model.json":
                content = _without_traces(content)
            elif place == ".data/serialization_id":
                content = b"0" * len(content)
            _add(target, f"{ROOT}/{place}", content, compress=pack_zeros and _is_data(place))


def exported(graph: ModelGraph) -> ExportedProgram:
    """`graph` as torch.export gives networks; sizes that may vary still may. Raises `VerificationFailed` where torch fixes one."""
    example = tuple(torch.zeros(concrete_shape(spec, batch=3), dtype=spec.dtype) for spec in graph.inputs)
    batch = Dim(BATCH, min=1)
    shapes = tuple(
        # Limits of other sizes follow from the network; torch works them out if it may.
        {place: batch if size == BATCH else Dim.AUTO for place, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in graph.inputs
    )
    program = torch.export.export(_as_users_call_it(graph), example, dynamic_shapes=shapes)
    _check_open_sizes(graph, program)
    return program


def _as_users_call_it(graph: ModelGraph) -> fx.GraphModule:
    """The network, returning its only output as it is and not in a tuple, as networks do."""
    module = deepcopy(graph.module)
    if len(graph.outputs) == 1:
        output = module.graph.output_node()
        output.args = (output.all_input_nodes[0],)
        module.recompile()
    return module


def _check_open_sizes(graph: ModelGraph, program: ExportedProgram) -> None:
    given = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"}
    for spec, name in zip(graph.inputs, program.graph_signature.user_inputs, strict=True):
        for declared, size in zip(spec.shape, given[str(name)], strict=True):
            if isinstance(declared, str) and isinstance(size, int):
                raise VerificationFailed(
                    f"torch.export fixes the size {declared} of the input {spec.name} at {size}", input=spec.name
                )


def _without_traces(content: bytes) -> bytes:
    program: dict[str, Any] = json.loads(content)  # Any: torch wrote it a moment ago
    for node in program["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    program["guards_code"] = []
    return json.dumps(program, separators=(",", ":")).encode()


def _is_data(place: str) -> bool:
    return place.startswith(("data/weights/", "data/constants/", "models/"))


def _add(target: zipfile.ZipFile, name: str, content: bytes, *, compress: bool) -> None:
    entry = zipfile.ZipInfo(name, date_time=EPOCH)
    short = deflated(content) if compress else content
    if len(short) >= SMALLEST_GAIN * len(content):
        target.writestr(entry, content)
    elif len(content) > LARGEST_DEFLATED:
        target.writestr(entry, content, zipfile.ZIP_DEFLATED, compresslevel=9)
    else:
        _add_deflated(target, entry, content, short)


def _add_deflated(target: zipfile.ZipFile, entry: zipfile.ZipInfo, content: bytes, short: bytes) -> None:
    """zipfile takes nothing that is deflated already: it is told to store it, and what that was is put right afterwards."""
    target.writestr(entry, short)
    entry.compress_type, entry.file_size, entry.CRC = zipfile.ZIP_DEFLATED, len(content), zlib.crc32(content)
    assert target.fp is not None, "it is open"
    target.fp.seek(entry.header_offset)
    # Of the same length; for the next entry zipfile itself goes to the end.
    target.fp.write(entry.FileHeader(zip64=False))
