"""Conditional requests (RFC 9110, section 13): who has a thing already need not be sent it again."""

import re
from collections.abc import Mapping

from fastapi import Response
from pydantic import BaseModel


def etag(version: int) -> str:
    """Weak: the same version can be shown with different queue positions and estimates."""
    return f'W/"{version}"'


def matches(if_none_match: str | None, tag: str) -> bool:
    """Whether the client already has what `tag` stands for (RFC 9110, weak comparison)."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or _opaque(tag) in {
        _opaque(given) for given in re.findall(r'(?:W/)?"[^"]*"', if_none_match)
    }


def strongly_equals(given: str, tag: str) -> bool:
    """What If-Range asks for."""
    return given.strip() == tag and not tag.startswith("W/")


def json_unless_seen(document: BaseModel, headers: Mapping[str, str], if_none_match: str | None) -> Response:
    """The document, or 304 if the client has what `headers["ETag"]` stands for."""
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(document.model_dump_json(), headers=headers, media_type="application/json")


def _opaque(tag: str) -> str:
    return tag.removeprefix("W/")
