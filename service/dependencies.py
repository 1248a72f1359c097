"""What endpoints are given: the parts of the running service, and the parameters that several of them take."""

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request

from jobs.database import Database
from jobs.identifiers import Prefix, is_id
from jobs.repository.polling import JobGlances
from jobs.settings import Settings
from jobs.storage import LocalStorage
from service.housekeeping import Housekeeper
from service.idempotency import CreatingRequest, KeysInFlight, fingerprint
from service.job_queue import Broker
from service.refusals import Fault, InvalidRequest, ResourceNotFound
from service.watching import Watcher


@dataclass(frozen=True)
class Parts:
    """What the service is made of; put together in `app.py`."""

    settings: Settings
    database: Database
    storage: LocalStorage
    broker: Broker
    housekeeper: Housekeeper
    watcher: Watcher
    glances: JobGlances
    keys_in_flight: KeysInFlight
    upload_threads: Executor


async def parts_of(request: Request) -> Parts:
    parts = request.app.state.parts
    assert isinstance(parts, Parts)
    return parts


async def refuse_unknown_parameters(request: Request) -> None:
    """A misspelt query parameter is an error and not a default."""
    if not request.query_params:
        return
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        listed = f"It takes {', '.join(sorted(known))}." if known else "It takes none."
        faults = [Fault(parameter=name[:100], message="There is no such query parameter.") for name in unknown[:20]]
        raise InvalidRequest(f"This address has no query parameter {unknown[0][:100]!r}.", hint=listed, faults=faults)


TheParts = Annotated[Parts, Depends(parts_of)]


def id_path(prefix: Prefix, name: str, example: str) -> object:
    """A path parameter that names a resource. Whatever else stands there is not found, and no other error."""
    pattern = f"^{prefix}_[0-9a-z]{{26}}$"
    return Path(alias=name, json_schema_extra={"pattern": pattern}, examples=[example])


IfNoneMatch = Annotated[
    str | None, Header(alias="If-None-Match", description="ETag of what the client has; 304 if that is still so.")
]
Prefer = Annotated[
    str | None,
    Header(
        alias="Prefer",
        description="`wait=N` (RFC 7240): answer when something has changed, at the latest after N seconds (60 at most).",
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[!-~]+$",
        max_length=255,
        description="Anything unique, such as a UUID. The same request with the same key is done once, "
        "and answered each time with the first answer and `Idempotency-Replayed: true`.",
    ),
]
PageSize = Annotated[int, Query(ge=1, le=500, description="How many items to show at most.")]
PageToken = Annotated[
    str | None,
    Query(
        pattern=r"^[0-9a-z]{26}\.[0-9a-f]{16}$",
        description="`next_page_token` of the page before, asked for with the same filters.",
    ),
]


def check_id(resource_id: str, prefix: Prefix, noun: str) -> None:
    """Refuse what is no identifier of this kind, before anything else sees it."""
    if not is_id(resource_id, prefix):
        raise ResourceNotFound(noun, resource_id)


def creating_request(
    request: Request, key: str | None, settings: Settings, asks_for: dict[str, object]
) -> CreatingRequest:
    """This request as its repetitions are recognised."""
    return CreatingRequest(
        route=f"POST {request.url.path}",
        key=_bare(key),
        fingerprint=fingerprint(asks_for),
        keep_seconds=settings.idempotency_seconds,
    )


def _bare(key: str | None) -> str | None:
    """The draft standard writes keys as quoted strings, most clients write them bare."""
    if key is not None and len(key) > 2 and key[0] == key[-1] == '"':
        return key[1:-1]
    return key
