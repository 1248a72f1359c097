"""Where files are kept: content-addressed, so that the same bytes are stored once and a name can't lead anywhere.

    storage/
      incoming/         uploads that are still arriving; swept when they are old
      sha256/ab/cd/…    finished files under their digest

A file becomes visible by one rename, after its bytes were flushed to disk. Collecting unreferenced files and storing
new ones exclude each other by a lock, so that a file is never collected between being stored and being referred to.
"""

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

CHUNK_BYTES = 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Blob:
    sha256: str
    size_bytes: int


class BlobWriter(Protocol):
    """A file that is arriving. Leave without `finish` and nothing stays behind."""

    size_bytes: int

    def write(self, chunk: bytes | memoryview) -> None: ...
    def digest(self) -> str: ...
    def finish(self) -> Blob: ...
    def discard(self) -> None: ...


class Storage(Protocol):
    """What the service and the workers ask of the place where files are kept."""

    def new_blob(self) -> BlobWriter: ...
    def add_file(self, path: Path) -> Blob: ...
    def open(self, sha256: str) -> BinaryIO: ...
    def size(self, sha256: str) -> int: ...
    def free_bytes(self) -> int: ...


class BlobMissing(Exception):
    """The stored file is gone."""


class LocalStorage:
    """Files in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # what users upload is nobody else's business
        self._incoming.mkdir(exist_ok=True)

    def new_blob(self) -> "LocalBlobWriter":
        return LocalBlobWriter(self, self._incoming / secrets.token_hex(16))

    def add_file(self, path: Path) -> Blob:
        """Store a copy of the file at `path`."""
        writer = self.new_blob()
        try:
            with path.open("rb") as source:
                while chunk := source.read(CHUNK_BYTES):
                    writer.write(chunk)
            return writer.finish()
        finally:
            writer.discard()

    def open(self, sha256: str) -> BinaryIO:
        try:
            return self._path(sha256).open("rb")
        except FileNotFoundError as missing:
            raise BlobMissing(sha256) from missing

    def size(self, sha256: str) -> int:
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError as missing:
            raise BlobMissing(sha256) from missing

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._folder).free

    def sweep_incoming(self, *, older_than_seconds: float) -> int:
        """Remove what uploads left behind when their process was killed. Returns how many files."""
        removed = 0
        for path in self._incoming.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > older_than_seconds:
                    path.unlink()
                    removed += 1
        return removed

    def old_blobs(self, *, older_than_seconds: float) -> Iterator[str]:
        """Digests of the files that have been here, untouched, for longer than that."""
        for path in (self._folder / "sha256").glob("??/??/*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > older_than_seconds:
                    yield path.name

    def collect(self, sha256: str, *, older_than_seconds: float) -> bool:
        """Remove a file, unless somebody stored the same bytes again in the meantime."""
        path = self._path(sha256)
        with self._locked(), suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > older_than_seconds:
                path.unlink()
                return True
        return False

    def _publish(self, partial: Path, sha256: str) -> None:
        final = self._path(sha256)
        with self._locked():
            _make_folder(final.parent)
            os.utime(partial)  # its age counts from now, however long it took to arrive
            partial.replace(final)  # also over the same bytes: that makes the file young again
        _flush_folder(final.parent)

    def _path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{sha256!r} is no digest")
        return self._folder / "sha256" / sha256[:2] / sha256[2:4] / sha256

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _make_folder(folder: Path) -> None:
    """Make a folder so that it is still there after a power cut."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalBlobWriter:
    def __init__(self, storage: LocalStorage, path: Path) -> None:
        self._storage = storage
        self._path = path
        self._file = path.open("xb", buffering=0)
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Append; raises OSError (ENOSPC) when the disk is full."""
        self._digest.update(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._file.write(rest) :]
        self.size_bytes += len(chunk)

    def digest(self) -> str:
        """SHA-256 of what has been written so far, in hexadecimal."""
        return self._digest.hexdigest()

    def finish(self) -> Blob:
        os.fsync(self._file.fileno())
        self._file.close()
        blob = Blob(sha256=self.digest(), size_bytes=self.size_bytes)
        self._storage._publish(self._path, blob.sha256)
        return blob

    def discard(self) -> None:
        """Leave nothing behind; harmless after `finish`."""
        self._file.close()
        self._path.unlink(missing_ok=True)
