"""The zip archive of a `.pt2` file: opened with suspicion, read entry by entry, nothing in it ever executed.

NAME/models/model.json                          the graph
NAME/data/weights/model_weights_config.json     what each weight is called, its type and shape
NAME/data/weights/weight_N                      raw little-endian bytes
NAME/data/constants/…                           the same for constants
NAME/data/sample_inputs/…                       a pickle, which is never opened
"""

import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jobs.errors import ModelRefused

MAX_ENTRIES = 65_536
MAX_TOTAL_BYTES = 4 * 2**30
MAX_JSON_BYTES = 64 * 2**20
# Weights that are mostly zeros shrink a lot, but a small file that claims to be a huge one is a bomb.
MAX_EXPANSION = 250
ALWAYS_ALLOWED_BYTES = 64 * 2**20

_ENCRYPTED = 0x1
_LOCAL_HEADER_BYTES = 30
# All that `zipfile` and what it stands on raise on broken files.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, IndexError, OverflowError,
)  # fmt: skip


class Pt2Archive:
    """The entries of one archive by their path below its one top folder."""

    def __init__(self, file: zipfile.ZipFile, size_bytes: int) -> None:
        self._file = file
        self._entries = _checked_entries(file, size_bytes)

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def size_bytes(self, path: str) -> int:
        return self._entry(path).file_size

    def folders(self) -> set[str]:
        """The folders two levels down, such as `data/weights`."""
        return {"/".join(path.split("/")[:2]) for path in self._entries if path.count("/") >= 2}

    def read(self, path: str, *, limit: int) -> bytes:
        """All bytes of an entry, which may be no more than `limit`."""
        entry = self._entry(path)
        if entry.file_size > limit:
            raise ModelRefused(
                f"the entry {path} has {entry.file_size} bytes; at most {limit} are accepted", entry=path
            )
        try:
            with self._file.open(entry) as stream:
                content = stream.read(limit + 1)
        except _BROKEN as error:
            raise ModelRefused(f"the entry {path} is damaged: {error}", entry=path) from error
        if len(content) != entry.file_size:
            raise ModelRefused(f"the entry {path} is not as long as the archive says", entry=path)
        return content

    def read_json(self, path: str) -> object:
        content = self.read(path, limit=MAX_JSON_BYTES)
        try:
            parsed: object = json.loads(content)
        except (ValueError, RecursionError) as error:  # a RecursionError is json's own limit of nesting
            raise ModelRefused(f"the entry {path} is not valid JSON: {error}", entry=path) from error
        return parsed

    def _entry(self, path: str) -> zipfile.ZipInfo:
        if path not in self._entries:
            raise ModelRefused(f"the archive has no entry {path}", entry=path)
        return self._entries[path]


@contextmanager
def open_archive(path: Path) -> Iterator[Pt2Archive]:
    """The archive at `path` for as long as the block runs."""
    with path.open("rb") as stream:
        file = _open_zip(stream)
        with file:
            yield Pt2Archive(file, path.stat().st_size)


def _open_zip(stream: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(stream)
    except _BROKEN as error:
        raise ModelRefused(f"the archive is damaged: {error}") from error


def _checked_entries(file: zipfile.ZipFile, size_bytes: int) -> dict[str, zipfile.ZipInfo]:
    infos = file.infolist()
    if len(infos) > MAX_ENTRIES:
        raise ModelRefused(f"the archive has {len(infos)} entries; at most {MAX_ENTRIES} are accepted")
    total = sum(info.file_size for info in infos)
    limit = min(MAX_TOTAL_BYTES, ALWAYS_ALLOWED_BYTES + MAX_EXPANSION * size_bytes)
    if total > limit:
        raise ModelRefused(f"the archive unpacks to {total} bytes; at most {limit} are accepted for a file of its size")
    _check_overlaps(infos, size_bytes)
    roots = {info.filename.split("/")[0] for info in infos}
    if len(roots) != 1:
        raise ModelRefused("the archive has not exactly one top folder")
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        _check_entry(info)
        below = info.filename.partition("/")[2]
        if below in entries:
            raise ModelRefused(f"the archive holds {info.filename} twice", entry=info.filename)
        entries[below] = info
    return entries


def _check_entry(info: zipfile.ZipInfo) -> None:
    name = info.filename
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or ".." in parts or "." in parts or "\0" in info.orig_filename:
        raise ModelRefused(f"the archive holds an unsafe path: {name!r}", entry=name)
    if info.flag_bits & _ENCRYPTED:
        raise ModelRefused(f"the entry {name} is encrypted", entry=name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ModelRefused(f"the entry {name} is compressed by a method that Winnow doesn't read", entry=name)
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        raise ModelRefused(f"the sizes of the entry {name} contradict each other", entry=name)


def _check_overlaps(infos: list[zipfile.ZipInfo], size_bytes: int) -> None:
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise ModelRefused(f"the entry {info.filename} overlaps another one", entry=info.filename)
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
    if end > size_bytes:
        raise ModelRefused("the archive is shorter than its directory says")
