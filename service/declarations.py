"""What endpoints declare in the OpenAPI document beside their schemas: response headers, and the shape of downloads."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response

from service import refusals
from service.errors import problems

Headers = dict[str, dict[str, Any]]

_TEXT = {"schema": {"type": "string"}}

LOCATION: Headers = {"Location": {**_TEXT, "description": "Address of what was created."}}
RETRY_AFTER: Headers = {
    "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds; only while there is something to wait for."}
}
REPLAYED: Headers = {
    "Idempotency-Replayed": {**_TEXT, "description": "`true` if this is the answer to an earlier request."}
}
ETAG: Headers = {"ETag": {**_TEXT, "description": "Changes with every change that a client can see."}}
PREFERENCE_APPLIED: Headers = {"Preference-Applied": {**_TEXT, "description": "The `Prefer` that was followed."}}
CONTENT_HEADERS: Headers = {
    "ETag": {**_TEXT, "description": "The file's SHA-256 in hexadecimal; strong."},
    "Repr-Digest": {**_TEXT, "description": "The whole file's SHA-256 (RFC 9530)."},
    "Accept-Ranges": _TEXT,
    "Content-Disposition": _TEXT,
}
BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def declare_content(router: APIRouter, path: str, endpoint: Callable[..., Response], *, name: str, noun: str) -> None:
    """GET and HEAD of a stored file."""
    refused = problems(refusals.ResourceNotFound, refusals.RangeUnsatisfiable, refusals.FileLost)
    for method, verb in (("GET", "download"), ("HEAD", "describe")):
        body = {"content": BINARY} if method == "GET" else {}
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            operation_id=f"{verb}_{name}",
            summary=f"{verb.capitalize()} the {noun}",
            description="Takes `Range` (one range), `If-Range` and `If-None-Match`. "
            "The ETag is the SHA-256 of the file, which `Repr-Digest` has too.",
            response_class=Response,
            responses={
                200: {"description": "The file.", "headers": CONTENT_HEADERS, **body},
                206: {"description": "The bytes that Range asked for.", "headers": CONTENT_HEADERS, **body},
                304: {"description": "The client has this already."},
                **refused,
            },
        )
