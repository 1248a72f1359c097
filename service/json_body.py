"""JSON bodies: measured before they are read, parsed once and strictly, refused with a pointer to what is wrong."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

from service.refusals import (
    MOST_FAULTS,
    BodyTooLarge,
    EncodedBody,
    Fault,
    InvalidRequest,
    MalformedJson,
    WrongMediaType,
)
from service.settings import MAX_JSON_BYTES

Body = TypeVar("Body", bound=BaseModel)

_LONGEST_MESSAGE = 500
_LARGE_BYTES = 64 * 1024  # what takes long to parse must not hold up the event loop


async def read_json(request: Request, schema: type[Body], *, alternatives: Sequence[str] = ()) -> Body:
    """The request's body as a value of `schema`, which wants one of the fields `alternatives`: where a body has none or several
    of them, the refusal points at the first that it has.
    """
    check_encoding(request)
    content_type = request.headers.get("content-type")
    if media_type(content_type) != "application/json":
        raise WrongMediaType(content_type, ["application/json"])
    text = await _read_all(request, MAX_JSON_BYTES)
    if len(text) < _LARGE_BYTES:
        return parse_json(text, schema, alternatives)
    return await anyio.to_thread.run_sync(parse_json, text, schema, alternatives)


def parse_json(text: bytes, schema: type[Body], alternatives: Sequence[str] = ()) -> Body:
    """Strictly: "1" is no number, and a field that the schema does not have is an error."""
    try:
        body = _validate(text, schema)
    except _Invalid as invalid:
        if all(detail["type"] != "int_type" for detail in invalid.details):
            raise _refusal(_faults(invalid.details, text, alternatives)) from invalid
        # To JSON, 23.0 is as good an integer as 23.
        text = to_json(_with_whole_numbers(from_json(text)))
        try:
            body = _validate(text, schema)
        except _Invalid as still_invalid:
            raise _refusal(_faults(still_invalid.details, text, alternatives)) from still_invalid
    faults = [
        Fault(pointer=pointer, message="NUL characters can't be stored.", hint="Leave them away.")
        for pointer in _pointers_to_nul("", body.model_dump(mode="json"))
    ]
    if faults:
        raise _refusal(faults)
    return body


def media_type(content_type: str | None) -> str | None:
    """`Application/JSON; charset=utf-8` is `application/json`."""
    return None if content_type is None else content_type.partition(";")[0].strip().lower()


def check_encoding(request: Request) -> None:
    """Refuse compressed bodies: what a small body unfolds to is not known before it is too late."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise EncodedBody


def declared_length(request: Request) -> int | None:
    """The body's length as its head gives it; None for a chunked one."""
    length = request.headers.get("content-length", "")
    return int(length) if re.fullmatch(r"[0-9]{1,18}", length, re.ASCII) else None


async def _read_all(request: Request, limit_bytes: int) -> bytes:
    if (declared_length(request) or 0) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise BodyTooLarge(limit_bytes)
    return bytes(body)


class _Invalid(Exception):
    """What pydantic found, taken out of it once: that is slow where it found much."""

    def __init__(self, details: list[ErrorDetails]) -> None:
        super().__init__(f"{len(details)} faults")
        self.details = details


def _validate(text: bytes, schema: type[Body]) -> Body:
    try:
        return schema.model_validate_json(text, strict=True)
    except ValidationError as invalid:
        details = invalid.errors(include_url=False, include_context=False, include_input=False)
        if details[0]["type"] == "json_invalid":
            raise MalformedJson(details[0]["msg"][:_LONGEST_MESSAGE]) from invalid
        raise _Invalid(details) from invalid


def _with_whole_numbers(node: Any) -> Any:  # any JSON value
    if isinstance(node, float) and node.is_integer():
        return int(node)
    if isinstance(node, dict):
        return {key: _with_whole_numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_whole_numbers(value) for value in node]
    return node


def _refusal(faults: Sequence[Fault]) -> InvalidRequest:
    message = faults[0].message if len(faults) == 1 else f"{len(faults)} things are wrong with the request."
    return InvalidRequest(message, faults=faults)


def _faults(details: list[ErrorDetails], text: bytes, alternatives: Sequence[str]) -> list[Fault]:
    document = from_json(text)
    # Only a body that is an object and right in every field is judged as a whole.
    whole = [name for name in alternatives if isinstance(document, dict) and name in document][:1]
    return [
        Fault(pointer=_pointer(detail["loc"] or whole, document), message=_message(detail))
        for detail in _causes(details[:MOST_FAULTS])
    ]


def _message(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ")[:_LONGEST_MESSAGE]


def _causes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without "too few items" where the items are there but wrong themselves."""
    places = [detail["loc"] for detail in details]
    return [
        detail
        for detail in details
        if detail["type"] != "too_short"
        or not any(place != detail["loc"] and place[: len(detail["loc"])] == detail["loc"] for place in places)
    ]


def _pointer(location: Sequence[str | int], document: object) -> str:
    """Pydantic's location as a JSON Pointer: without the names of union members and the marks of dictionary keys."""
    pointer, node = "", document
    for part in location:
        if isinstance(node, dict) and part not in node and (part == node.get("kind") or part == "[key]"):
            continue
        if part == "[key]":
            continue
        pointer += "/" + _escaped(part)
        if isinstance(node, dict) and isinstance(part, str):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            node = None
    return pointer[:_LONGEST_MESSAGE]


def _escaped(part: str | int) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")


def _pointers_to_nul(pointer: str, node: Any) -> Iterator[str]:  # any JSON value
    if isinstance(node, str):
        if "\0" in node:
            yield pointer
    elif isinstance(node, dict):
        for key, value in node.items():
            if "\0" in key:
                yield f"{pointer}/{_escaped(key)}"
            yield from _pointers_to_nul(f"{pointer}/{_escaped(key)}", value)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _pointers_to_nul(f"{pointer}/{index}", value)
