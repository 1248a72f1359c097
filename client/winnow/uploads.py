"""Sending a file of any size: hashed first, then streamed, never held in memory whole."""

import base64
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from winnow.connection import Connection
from winnow.errors import FileMissing
from winnow.resources import Document

CHUNK_BYTES: Final = 1024 * 1024
# Storing many gigabytes safely on a slow disk takes the server a while after the last byte.
ANSWER_SECONDS: Final = 600.0

OnProgress = Callable[[int, int], None]  # bytes so far, bytes in all


def send_file(
    connection: Connection, route: str, path: Path, *, idempotency_key: str, on_progress: OnProgress | None
) -> Document:
    """POST the file as the request's body. The server refuses bytes that differ from the digest sent ahead of them."""
    if not path.is_file():
        raise FileMissing(path)
    size = path.stat().st_size
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(size),
        "Repr-Digest": f"sha-256=:{base64.b64encode(sha256_of(path)).decode()}:",
        "Idempotency-Key": idempotency_key,
    }

    def body() -> Iterator[bytes]:
        sent = 0
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
                sent += len(chunk)
                if on_progress:
                    on_progress(sent, size)

    response = connection.call(
        "POST", route, params={"filename": path.name}, headers=headers, body=body, timeout_seconds=ANSWER_SECONDS
    )
    document: Document = response.json()
    return document


def sha256_of(path: Path) -> bytes:
    """The file's SHA-256 digest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
