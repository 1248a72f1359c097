"""Identifiers of resources: a prefix that tells the kind, then 26 characters that sort by time of creation (ULID, lower case)."""

import re
import secrets
import time
from typing import Literal

Prefix = Literal["mdl", "dst", "job", "art"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_PATTERN = re.compile(r"(mdl|dst|job|art)_[0-9a-z]{26}", re.ASCII)


def new_id(prefix: Prefix) -> str:
    """A fresh identifier: 48 bits of milliseconds, 80 random bits."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return prefix + "_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def is_id(text: str, prefix: Prefix) -> bool:
    """Whether `text` has the form of an identifier of this kind, so that nothing else ever reaches a query or a path."""
    return text.startswith(prefix + "_") and _PATTERN.fullmatch(text) is not None
