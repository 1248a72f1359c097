"""Zip and tar archives as lists of plain files, with everything refused that could lead outside or blow up.

The tar index is our own, because all that is needed is where each file starts: nothing is ever extracted by name, sparse and
linked entries have no place here, and a header can't make it jump backwards.
"""

import errno
import gzip
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jobs.errors import DatasetRefused
from workers.datasets.dataset import HeldFile, refusing_broken_files

MAX_ENTRIES = 5_000_000
MAX_UNPACKED_BYTES = 64 * 2**30
MAX_LZMA_DICTIONARY_BYTES = 256 * 2**20
# A file may claim to unpack to much more than its size only while that stays harmless.
HARMLESS_BYTES = 2**30
MAX_RATIO = 1100  # deflate can't do more than 1032

_BLOCK = 512
_PIECE = 2**20
_READABLE = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}


@dataclass(frozen=True)
class Entry:
    """A file in an archive: where it starts, and for zip archives how it is packed."""

    name: str
    size: int
    offset: int = 0
    packed: zipfile.ZipInfo | None = None


def open_zip(file: HeldFile) -> tuple[zipfile.ZipFile, list[Entry]]:
    """The archive and its files; folders are left out."""
    with refusing_broken_files("The zip archive"):
        _refuse_huge_directory(file)
        archive = zipfile.ZipFile(file)
        infos = archive.infolist()
    for info in infos:
        _refuse_unreadable(info)
    _refuse_overlaps(infos, _size(file))
    entries = [Entry(info.filename, info.file_size, packed=info) for info in infos if not info.is_dir()]
    _refuse_names(entries)
    _refuse_bomb(sum(entry.size for entry in entries), _size(file))
    return archive, entries


def read_entry(file: HeldFile, archive: zipfile.ZipFile | None, entry: Entry) -> bytes:
    """The content of one file; a zip archive's checksum is checked."""
    with refusing_broken_files(f"The file {entry.name!r} in the archive"):
        if entry.packed is None or archive is None:
            file.seek(entry.offset)
            content = file.read(entry.size)
        else:
            _refuse_lzma_dictionary(file, entry.packed)
            with archive.open(entry.packed) as member:
                content = member.read(entry.size)
                member.read(1)  # at its end the checksum is compared
        if len(content) != entry.size:
            raise EOFError("it ends too early")
    return content


def unpack_entry(file: HeldFile, archive: zipfile.ZipFile, entry: Entry, scratch: Path) -> tuple[HeldFile, int]:
    """An open file in which the entry lies uncompressed, and at which offset. Stored entries are left where they are."""
    assert entry.packed is not None
    _refuse_lzma_dictionary(file, entry.packed)
    with refusing_broken_files(f"The file {entry.name!r} in the archive"), archive.open(entry.packed) as member:
        if entry.packed.compress_type == zipfile.ZIP_STORED:
            while member.read(_PIECE):  # to the end, where the checksum is compared
                pass
            return file, _data_offset(file, entry.packed)
        return _copy(iter(lambda: member.read(_PIECE), b""), scratch, limit=entry.size), 0


def unpack_gzip(path: Path, scratch: Path) -> HeldFile:
    """An anonymous file with the unpacked content, which never grows beyond what is harmless for its packed size."""
    limit = min(MAX_UNPACKED_BYTES, max(HARMLESS_BYTES, path.stat().st_size * MAX_RATIO))
    with refusing_broken_files("The gzip file"), gzip.open(path) as packed:
        return _copy(iter(lambda: packed.read(_PIECE), b""), scratch, limit=limit)


def index_tar(file: HeldFile) -> list[Entry]:
    """The regular files of an uncompressed tar archive; folders are left out."""
    with refusing_broken_files("The tar archive"):
        entries = _tar_entries(file)
    _refuse_names(entries)
    return entries


def _tar_entries(file: HeldFile) -> list[Entry]:
    entries: list[Entry] = []
    total, position, long_name, extended = _size(file), 0, "", {"path": "", "size": ""}
    while position + _BLOCK <= total:
        file.seek(position)
        header = file.read(_BLOCK)
        if header == bytes(_BLOCK):
            return entries
        _check_header(header)
        kind, size = header[156:157], _tar_number(header[124:136])
        if extended["size"]:
            size = int(extended["size"])
        data = position + _BLOCK
        if data + size > total:
            raise EOFError("it ends in the middle of a file")
        position = data + -(-size // _BLOCK) * _BLOCK
        if kind in (b"L", b"x", b"g"):
            if size > 2**20:
                raise ValueError("a header is larger than 1 MiB")
            content = file.read(size)
            if kind == b"L":
                long_name = content.rstrip(b"\0").decode()
            elif kind == b"x":
                extended = _extended_header(content)
            continue
        name = extended["path"] or long_name or _tar_name(header)
        long_name, extended = "", {"path": "", "size": ""}
        if kind == b"5":
            continue
        if kind not in (b"0", b"\0", b"7"):
            raise DatasetRefused(
                f"The archive's entry {name!r} is a link, a device or another special file.",
                hint="Pack plain files only, for instance with tar --dereference.",
                entry=name,
            )
        entries.append(Entry(name, size, offset=data))
        if len(entries) > MAX_ENTRIES:
            raise DatasetRefused(f"The archive holds more than {MAX_ENTRIES:,} files.")
    return entries


def _check_header(header: bytes) -> None:
    expected = _tar_number(header[148:156])
    if sum(header[:148]) + 8 * ord(" ") + sum(header[156:]) != expected:
        raise ValueError("the checksum of a header is wrong")


def _tar_number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, for sizes from 8 GiB; a set sign bit would be negative
        if field[0] != 0x80:
            raise ValueError("a header holds a negative number")
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits and not re.fullmatch(rb"[0-7]+", digits):
        raise ValueError("a header holds no number where one must stand")
    return int(digits or b"0", 8)


def _tar_name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0].decode()
    prefix = header[345:500].split(b"\0", 1)[0].decode() if header[257:262] == b"ustar" else ""
    return f"{prefix}/{name}" if prefix else name


def _extended_header(content: bytes) -> dict[str, str]:
    """The two records of a pax header that matter here."""
    found = {"path": "", "size": ""}
    position = 0
    while position < len(content):
        length, _, _ = content[position : position + 20].partition(b" ")
        if not length.isdigit() or int(length) < 5 or position + int(length) > len(content):
            raise ValueError("an extended header is not well formed")
        key, _, value = content[position + len(length) + 1 : position + int(length) - 1].decode().partition("=")
        if key.startswith("GNU.sparse"):
            raise ValueError("sparse files are not supported")
        if key in found:
            found[key] = value
        position += int(length)
    if found["size"] and not re.fullmatch(r"[0-9]{1,18}", found["size"]):
        raise ValueError("an extended header holds no number where one must stand")
    return found


def _copy(pieces: Iterable[bytes], scratch: Path, *, limit: int) -> HeldFile:
    """The pieces in an anonymous file under `scratch`, which vanishes when it is closed."""
    free = shutil.disk_usage(scratch).free
    descriptor, name = tempfile.mkstemp(dir=scratch)
    Path(name).unlink()
    copy = HeldFile(descriptor)
    written = 0
    for piece in pieces:
        written += len(piece)
        if written > limit:
            raise DatasetRefused(f"The archive unpacks to more than {limit:,} bytes.", hint="Split the dataset.")
        if written > free:
            raise OSError(errno.ENOSPC, f"unpacking the dataset needs more than the {free:,} bytes that are free")
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    return copy


def _size(file: HeldFile) -> int:
    return file.seek(0, 2)


def _refuse_huge_directory(file: HeldFile) -> None:
    """Refuse a directory of entries that would not fit in memory, before zipfile reads it whole."""
    size = _size(file)
    file.seek(max(0, size - 65_557 - 20))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + 22 > len(tail):
        raise zipfile.BadZipFile("it has no directory at its end, so it was cut off or is no zip archive")
    entries, directory_bytes = struct.unpack("<HI", tail[end + 10 : end + 16])
    locator = tail.rfind(b"PK\x06\x07", 0, end)
    if locator >= 0 and (entries == 0xFFFF or directory_bytes == 0xFFFFFFFF):
        (record,) = struct.unpack("<Q", tail[locator + 8 : locator + 16])
        if record + 56 > size:
            raise zipfile.BadZipFile("its directory lies outside the file")
        file.seek(record)
        entries, directory_bytes = struct.unpack("<32xQQ8x", file.read(56))
    if entries > MAX_ENTRIES or directory_bytes > MAX_ENTRIES * 256:
        raise DatasetRefused(f"The archive holds more than {MAX_ENTRIES:,} files.")


def _refuse_unreadable(info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 0x1:
        raise DatasetRefused(f"The archive's entry {info.filename!r} is encrypted.", hint="Pack without a password.")
    if info.compress_type not in _READABLE:
        raise DatasetRefused(
            f"The archive's entry {info.filename!r} is packed by method {info.compress_type}.",
            hint="Use stored, deflate, bzip2 or LZMA.",
        )
    mode = info.external_attr >> 16
    if info.create_system == 3 and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DatasetRefused(
            f"The archive's entry {info.filename!r} is a link, a device or another special file.",
            hint="Pack plain files only.",
            entry=info.filename,
        )


def _refuse_overlaps(infos: list[zipfile.ZipInfo], size: int) -> None:
    # A zip bomb without great ratios lets thousands of entries share the same packed bytes.
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise DatasetRefused(f"The archive's entry {info.filename!r} overlaps another one.")
        end = info.header_offset + 30 + info.compress_size
    if end > size:
        raise DatasetRefused("The zip archive is broken: an entry reaches beyond the end of the file.")


def _refuse_bomb(unpacked: int, packed: int) -> None:
    if unpacked > MAX_UNPACKED_BYTES or unpacked > max(HARMLESS_BYTES, packed * MAX_RATIO):
        raise DatasetRefused(
            f"The archive of {packed:,} bytes claims to unpack to {unpacked:,}.",
            hint=f"At most {MAX_UNPACKED_BYTES:,} bytes, and not over {MAX_RATIO} times the archive's size.",
        )


def _refuse_names(entries: list[Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        name = entry.name
        if not name or "\0" in name or "\\" in name or re.match(r"[A-Za-z]:", name):
            raise DatasetRefused(f"The archive's entry {name!r} has a name that is no plain path.", entry=name)
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DatasetRefused(
                f"The archive's entry {name!r} leads outside the archive.",
                hint="Pack with relative names and without '..'.",
                entry=name,
            )
        if name in seen:
            raise DatasetRefused(f"The archive holds the entry {name!r} twice.", entry=name)
        seen.add(name)


def _refuse_lzma_dictionary(file: HeldFile, info: zipfile.ZipInfo) -> None:
    if info.compress_type != zipfile.ZIP_LZMA:
        return
    with refusing_broken_files(f"The file {info.filename!r} in the archive"):
        file.seek(_data_offset(file, info))
        # version (2), size of the properties (2), lc/lp/pb (1), dictionary size (4)
        (dictionary_bytes,) = struct.unpack("<5xI", file.read(9))
    if dictionary_bytes > MAX_LZMA_DICTIONARY_BYTES:
        raise DatasetRefused(f"The archive's entry {info.filename!r} needs {dictionary_bytes:,} bytes to unpack.")


def _data_offset(file: HeldFile, info: zipfile.ZipInfo) -> int:
    """Where an entry's bytes start: after its local header, whose lengths may differ from the directory's."""
    file.seek(info.header_offset)
    signature, name, extra = struct.unpack("<4s22xHH", file.read(30))
    if signature != b"PK\x03\x04":
        raise DatasetRefused(f"The zip archive is broken: entry {info.filename!r} has no header.")
    return info.header_offset + 30 + int(name) + int(extra)
