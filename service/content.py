"""Stored files as responses: whole or one range, with the digest that a client can check them by."""

import re
from dataclasses import dataclass

import anyio.to_thread
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from jobs.storage import Storage
from service.conditional import matches, strongly_equals
from service.headers import content_disposition, repr_digest
from service.refusals import RangeUnsatisfiable

CHUNK_BYTES = 512 * 1024


@dataclass(frozen=True)
class StoredFile:
    sha256: str
    size_bytes: int
    filename: str
    media_type: str

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'


def file_response(request: Request, storage: Storage, file: StoredFile) -> Response:
    """The answer to GET or HEAD: 200, 206 or 304. Raises `RangeUnsatisfiable`, and `BlobMissing` if it is lost."""
    size = storage.size(file.sha256)
    headers = {
        "ETag": file.etag,
        "Repr-Digest": repr_digest(file.sha256),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",  # what an id names never changes
        "Content-Disposition": content_disposition(file.filename),
        "X-Content-Type-Options": "nosniff",
    }
    if matches(request.headers.get("if-none-match"), file.etag):
        return Response(status_code=304, headers=headers)
    wanted = _wanted_range(request, file.etag, size)
    if wanted is None:
        return _Stream(storage, file, 0, size, status=200, headers=headers)
    first, last = wanted
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return _Stream(storage, file, first, last + 1, status=206, headers=headers)


class _Stream(Response):
    """The bytes from `start` up to, not including, `end`."""

    def __init__(
        self, storage: Storage, file: StoredFile, start: int, end: int, *, status: int, headers: dict[str, str]
    ) -> None:
        super().__init__(status_code=status, headers=headers, media_type=file.media_type)
        self._storage, self._sha256, self._start, self._end = storage, file.sha256, start, end
        self.headers["Content-Length"] = str(end - start)

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        rest = 0 if scope["method"] == "HEAD" else self._end - self._start
        if rest:
            source = await anyio.to_thread.run_sync(self._storage.open, self._sha256)
            try:
                await anyio.to_thread.run_sync(source.seek, self._start)
                while rest:
                    chunk = await anyio.to_thread.run_sync(source.read, min(CHUNK_BYTES, rest))
                    if not chunk:
                        raise OSError(f"the stored file {self._sha256} is shorter than it should be")
                    rest -= len(chunk)
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            finally:
                source.close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _wanted_range(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """First and last byte of the one range that is asked for; None where the whole file is the answer (RFC 9110, 14.2)."""
    if_range = request.headers.get("if-range")
    if if_range is not None and not strongly_equals(if_range, etag):
        return None
    found = re.fullmatch(
        r"\s*bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*", request.headers.get("range", ""), re.I | re.A
    )
    if found is None or found.group(1, 2) == ("", ""):
        return None  # another unit, several ranges, or nonsense: a server may ignore them
    first, last = found.groups()
    if not first:
        if int(last) == 0 or size == 0:
            raise RangeUnsatisfiable(size)
        return max(0, size - int(last)), size - 1
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise RangeUnsatisfiable(size)
    return int(first), min(int(last), size - 1) if last else size - 1
