"""Header fields that several endpoints read or write, each parsed in one place."""

import base64
import binascii
import re
from collections.abc import Iterator
from urllib.parse import quote

from service.refusals import Fault, InvalidRequest

LONGEST_WAIT_SECONDS = 60


def preferred_wait(prefer: str | None) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240), at most a minute; whatever can't be understood is no preference."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait" and re.fullmatch(r'\s*"?[0-9]{1,9}"?\s*', value, re.ASCII):
            return min(int(value.strip().strip('"')), LONGEST_WAIT_SECONDS)
    return None


def preference_applied(seconds: int | None) -> dict[str, str]:
    """What the answer to a request with that preference says of it."""
    return {} if seconds is None else {"Preference-Applied": f"wait={seconds}"}


def repr_digest(sha256: str) -> str:
    """RFC 9530's way to write a digest."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def digest_to_check(header: str | None) -> str | None:
    """The SHA-256 that `Repr-Digest` announces, in hexadecimal; None if it announces none."""
    for name, value in _dictionary(header or ""):
        if name == "sha-256":
            try:
                digest = base64.b64decode(value, validate=True)
            except binascii.Error:
                digest = b""
            if len(digest) != 32:
                raise InvalidRequest(
                    "Repr-Digest has no valid SHA-256.",
                    hint="Write it as `sha-256=:…:` with the 32 bytes in base64.",
                    faults=[Fault(parameter="Repr-Digest", message="not 32 bytes in base64 between colons")],
                )
            return digest.hex()
    return None


def content_disposition(filename: str) -> str:
    """Save under this name (RFC 6266, RFC 8187)."""
    plain = re.sub(r'[^ -~]|["\\%]', "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def _dictionary(header: str) -> Iterator[tuple[str, str]]:
    for member in header.split(","):
        name, _, value = member.strip().partition("=")
        yield name.strip().lower(), value.strip().removeprefix(":").removesuffix(":")
