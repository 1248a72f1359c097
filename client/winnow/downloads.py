"""Fetching an artifact: what is there already is kept across interruptions, and only the right bytes get the file's name."""

import base64
import binascii
import os
import re
from pathlib import Path

import httpx2

from winnow.connection import Connection, Patience
from winnow.errors import ApiProblem, ConnectionLost, DigestMismatch, WinnowError
from winnow.resources import Artifact
from winnow.uploads import OnProgress, sha256_of


def download_artifact(
    connection: Connection, artifact: Artifact, path: Path, *, on_progress: OnProgress | None = None
) -> Path:
    """Save the artifact at `path`, going on where an earlier attempt was cut off.

    Until it is whole, the file is `<name>.<digest>.part` beside `path`; it takes its name after its digest was checked.
    """
    if path.is_file() and sha256_of(path).hex() == artifact.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{artifact.sha256[:16]}.part")
    goes_on = _size(part) > 0
    try:
        _complete(connection, artifact, part, on_progress)
    except DigestMismatch:
        if not goes_on:
            raise
        # Perhaps only the piece from last time was bad, and that is gone now.
        _complete(connection, artifact, part, on_progress)
    part.replace(path)
    return path


def _complete(connection: Connection, artifact: Artifact, part: Path, on_progress: OnProgress | None) -> None:
    """Bring `part` to its full length and check it; a wrong one is removed."""
    try:
        _fetch(connection, artifact, part, on_progress)
        _check_digest(artifact, sha256_of(part).hex())
    except DigestMismatch:
        part.unlink()
        raise


def _fetch(connection: Connection, artifact: Artifact, part: Path, on_progress: OnProgress | None) -> None:
    """Over as many connections as it takes; patience runs out when none of them brings anything."""
    patience = Patience(connection.patience_seconds)
    have = _size(part)
    while have < artifact.size_bytes or not part.exists():
        try:
            _fetch_rest(connection, artifact, part, on_progress)
            failure: WinnowError = ConnectionLost(connection.base_url, "the download ended early")
        except (httpx2.TransportError, ApiProblem) as broken:
            failure = connection.judged(broken)
        had, have = have, _size(part)
        if have >= artifact.size_bytes:
            return
        if have > had:
            patience.renew()
        patience.wait(failure)


def _fetch_rest(connection: Connection, artifact: Artifact, part: Path, on_progress: OnProgress | None) -> None:
    """Append what is missing, over one connection."""
    with part.open("ab") as file:
        offset = file.tell()
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if offset:
            headers |= {"Range": f"bytes={offset}-", "If-Range": f'"{artifact.sha256}"'}
        with connection.stream(f"/v1/artifacts/{artifact.id}/content", headers=headers) as response:
            _check_announced_digest(artifact, response)
            if offset and not _continues_at(offset, response):
                file.truncate(offset := 0)
            for chunk in response.iter_raw():
                file.write(chunk)
                offset += len(chunk)
                if on_progress:
                    on_progress(offset, artifact.size_bytes)
        file.flush()
        os.fsync(file.fileno())


def _continues_at(offset: int, response: httpx2.Response) -> bool:
    """Whether the server sends the rest; the alternative is that it sends everything."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status_code == httpx2.codes.PARTIAL_CONTENT and found is not None and int(found[1]) == offset


def _check_announced_digest(artifact: Artifact, response: httpx2.Response) -> None:
    """Don't fetch gigabytes of something else."""
    found = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", response.headers.get("Repr-Digest", ""))
    if found is not None:
        _check_digest(artifact, _decoded(found[1]))


def _check_digest(artifact: Artifact, actual: str) -> None:
    if actual != artifact.sha256:
        raise DigestMismatch(artifact.name, artifact.sha256, actual)


def _decoded(base64_text: str) -> str:
    try:
        return base64.b64decode(base64_text, validate=True).hex()
    except binascii.Error:
        return base64_text


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
