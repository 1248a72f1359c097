"""Uploads of any size in constant memory: bytes go to the storage as they arrive, hashed on the way.

While a thread hashes and writes one batch, the event loop receives the next. Whatever goes wrong, be it that the digest
is not the announced one or that the client goes away, nothing stays behind.
"""

import asyncio
import errno
import unicodedata
from collections.abc import AsyncIterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from fastapi import Request

from jobs.storage import Blob, BlobWriter, Storage
from service.headers import digest_to_check
from service.json_body import check_encoding, declared_length, media_type
from service.multipart import FilePart
from service.refusals import BodyTooLarge, DigestMismatch, EmptyUpload, StorageFull, WrongMediaType

BATCH_BYTES = 4 * 1024 * 1024
MULTIPART_FRAME_BYTES = 64 * 1024  # what a multipart body may add to the file in it
LONGEST_FILENAME = 255

RAW, MULTIPART = "application/octet-stream", "multipart/form-data"

_DISK_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class UploadLimits:
    max_bytes: int
    min_free_bytes: int


@dataclass(frozen=True)
class Received:
    """A file that is in the storage now, and what its sender called it."""

    blob: Blob
    filename: str | None


async def receive_upload(request: Request, storage: Storage, threads: Executor, limits: UploadLimits) -> Received:
    """Store the request's body, or the file in it if it is a multipart one."""
    check_encoding(request)
    content_type = request.headers.get("content-type")
    part: FilePart | None = None
    if media_type(content_type) == MULTIPART:
        part = FilePart(content_type or "")
    elif content_type is not None and media_type(content_type) != RAW:
        raise WrongMediaType(content_type, [RAW, MULTIPART])
    announced = digest_to_check(request.headers.get("repr-digest"))
    length = declared_length(request)
    if length is not None:
        _check_length(length, storage, limits, is_framed=part is not None)

    batches = _batches(request) if part is None else _batches_of_part(request, part)
    blob = await _store(batches, storage, threads, limits, announced)
    return Received(blob=blob, filename=None if part is None else part.filename)


def display_name(name: str | None, fallback: str) -> str:
    """A sender's filename, fit to be shown: no folders, nothing invisible, not too long. Never used to find a file."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    # C*: controls, direction marks, surrogates, unassigned; Zl and Zp: line ends
    visible = "".join(
        sign for sign in last if unicodedata.category(sign)[0] != "C" and unicodedata.category(sign) not in ("Zl", "Zp")
    )
    return visible.strip()[-LONGEST_FILENAME:] or fallback


def _check_length(length: int, storage: Storage, limits: UploadLimits, *, is_framed: bool) -> None:
    if length > limits.max_bytes + (MULTIPART_FRAME_BYTES if is_framed else 0):
        raise BodyTooLarge(limits.max_bytes)
    if storage.free_bytes() - length < limits.min_free_bytes:
        raise StorageFull


async def _batches(request: Request) -> AsyncIterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        batch.append(chunk)
        size += len(chunk)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


async def _batches_of_part(request: Request, part: FilePart) -> AsyncIterator[list[bytes]]:
    async for chunk in request.stream():
        part.feed(chunk)
        if part.waiting_bytes >= BATCH_BYTES:
            yield part.take()
    part.finish()
    yield part.take()


async def _store(
    batches: AsyncIterator[list[bytes]],
    storage: Storage,
    threads: Executor,
    limits: UploadLimits,
    announced: str | None,
) -> Blob:
    writer = storage.new_blob()
    writing: Future[None] = threads.submit(_write, writer, [], storage, limits)
    finishing: Future[Blob] | None = None
    try:
        async for batch in batches:
            await asyncio.wrap_future(writing)
            writing = threads.submit(_write, writer, batch, storage, limits)
        await asyncio.wrap_future(writing)
        finishing = threads.submit(_finish, writer, announced)
        return await asyncio.wrap_future(finishing)
    finally:
        # After what may still be running; not awaited, because this task may be being cancelled.
        (finishing or writing).add_done_callback(lambda _: writer.discard())


def _write(writer: BlobWriter, batch: list[bytes], storage: Storage, limits: UploadLimits) -> None:
    data = b"".join(batch)
    if writer.size_bytes + len(data) > limits.max_bytes:
        raise BodyTooLarge(limits.max_bytes)
    if storage.free_bytes() - len(data) < limits.min_free_bytes:
        raise StorageFull
    try:
        writer.write(data)
    except OSError as error:
        raise _disk_trouble(error) from error


def _finish(writer: BlobWriter, announced: str | None) -> Blob:
    if writer.size_bytes == 0:
        raise EmptyUpload
    actual = writer.digest()
    if announced is not None and actual != announced:
        raise DigestMismatch(f"The SHA-256 of what arrived is {actual}, but Repr-Digest announced {announced}.")
    try:
        return writer.finish()
    except OSError as error:
        raise _disk_trouble(error) from error


def _disk_trouble(error: OSError) -> Exception:
    return StorageFull() if error.errno in _DISK_IS_FULL else error
