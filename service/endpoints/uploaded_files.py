"""What models and datasets have in common: they arrive as files, are inspected by a worker, and are shown, listed, deleted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel

from jobs.identifiers import Prefix
from jobs.repository.lifecycle import submit_job
from jobs.repository.uploads import add_upload, delete_upload, find_upload, is_in_use, uploads_page
from jobs.states import UploadState
from jobs.storage import Blob
from jobs.tables import DatasetRow, ModelRow
from service import refusals
from service.conditional import etag, json_unless_seen
from service.content import StoredFile, file_response
from service.declarations import ETAG, LOCATION, PREFERENCE_APPLIED, REPLAYED, RETRY_AFTER, declare_content
from service.dependencies import (
    IdempotencyKey,
    IfNoneMatch,
    PageSize,
    PageToken,
    Parts,
    Prefer,
    TheParts,
    check_id,
    creating_request,
    id_path,
    refuse_unknown_parameters,
)
from service.errors import problems
from service.headers import preference_applied, preferred_wait
from service.idempotency import Answer, CreatingRequest
from service.paging import first_id_before, split_page, token_after
from service.uploads import MULTIPART, RAW, UploadLimits, display_name, receive_upload

Row = TypeVar("Row", ModelRow, DatasetRow)
InspectionKind = Literal["inspect_model", "inspect_dataset"]

POLL_SECONDS = 1


@dataclass(frozen=True)
class UploadKind(Generic[Row]):
    """What differs between models and datasets."""

    noun: Literal["model", "dataset"]
    prefix: Prefix
    table: type[Row]
    inspection: InspectionKind
    schema: type[BaseModel]
    page_schema: type[BaseModel]
    show: Callable[[Row], BaseModel]
    example_id: str
    formats: str

    @property
    def path(self) -> str:
        return f"/v1/{self.noun}s"

    @property
    def id_path(self) -> str:
        return f"/{{{self.noun}_id}}"


def upload_router(kind: UploadKind[Row]) -> APIRouter:
    """The endpoints of one kind of upload."""
    router = APIRouter(prefix=kind.path, tags=[f"{kind.noun}s"], dependencies=[Depends(refuse_unknown_parameters)])
    TheId = Annotated[str, id_path(kind.prefix, f"{kind.noun}_id", kind.example_id)]  # noqa: N806  # a type

    @router.post(
        "",
        status_code=201,
        operation_id=f"upload_{kind.noun}",
        summary=f"Upload a {kind.noun}",
        description=f"Takes {kind.formats}: as multipart/form-data with one part `file`, or as a bare body with "
        f"`?filename=`. A worker then inspects the file: its state is `inspecting` until that is done.",
        response_model=kind.schema,
        responses={
            201: {"headers": LOCATION | RETRY_AFTER | REPLAYED, "links": _links(kind)},
            **problems(
                refusals.MalformedUpload, refusals.KeyInFlight, refusals.BodyTooLarge, refusals.WrongMediaType,
                refusals.EncodedBody, refusals.EmptyUpload, refusals.DigestMismatch, refusals.KeyReused,
                refusals.StorageFull,
            ),
        },
        openapi_extra={"requestBody": _UPLOAD_BODY},
    )  # fmt: skip
    async def upload(
        request: Request,
        parts: TheParts,
        filename: Annotated[str | None, Query(description="What to call a bare body.")] = None,
        repr_digest: Annotated[
            str | None,
            Header(
                alias="Repr-Digest",
                description="`sha-256=:…:` (RFC 9530): the upload is refused if other bytes arrive.",
            ),
        ] = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        settings = parts.settings
        asks_for: dict[str, object] = {
            "filename": filename,
            "digest": repr_digest,
            "length": request.headers.get("content-length"),
            "type": request.headers.get("content-type", "").partition(";")[0],
        }
        creating = creating_request(request, idempotency_key, settings, asks_for)
        with parts.keys_in_flight.holding(creating):
            earlier = await anyio.to_thread.run_sync(_earlier_answer, parts, creating)
            if earlier is not None:
                return earlier.response(replayed=True)
            limits = UploadLimits(max_bytes=settings.max_upload_bytes, min_free_bytes=settings.min_free_bytes)
            received = await receive_upload(request, parts.storage, parts.upload_threads, limits)
            name = display_name(received.filename or filename, kind.noun)
            response = await anyio.to_thread.run_sync(_register, parts, kind, creating, received.blob, name)
        parts.housekeeper.nudge()
        return response

    @router.get(
        "",
        operation_id=f"list_{kind.noun}s",
        summary=f"List {kind.noun}s, newest first",
        response_model=kind.page_schema,
        responses=problems(refusals.PageNotFound),
    )
    def show_page(
        parts: TheParts,
        state: UploadState | None = None,
        page_size: PageSize = 50,
        page_token: PageToken = None,
    ) -> dict[str, Any]:
        filters: dict[str, object] = {"state": state}
        before = first_id_before(page_token, kind.prefix, filters)
        with parts.database.reading() as session:
            rows = uploads_page(session, kind.table, before=before, limit=page_size + 1, state=state)
        page, last = split_page(rows, page_size)
        token = token_after(last.id if last else None, kind.prefix, filters)
        return {"items": [kind.show(row) for row in page], "next_page_token": token}

    @router.get(
        kind.id_path,
        operation_id=f"show_{kind.noun}",
        summary=f"Show a {kind.noun}",
        description="With `Prefer: wait=N` the answer waits until the inspection is done.",
        response_model=kind.schema,
        responses={
            200: {"headers": ETAG | RETRY_AFTER | PREFERENCE_APPLIED},
            304: {"description": "The client has this already."},
            **problems(refusals.ResourceNotFound),
        },
    )
    async def show(
        upload_id: TheId, parts: TheParts, if_none_match: IfNoneMatch = None, prefer: Prefer = None
    ) -> Response:
        check_id(upload_id, kind.prefix, kind.noun)
        row = await anyio.to_thread.run_sync(_find, parts, kind, upload_id)
        seconds = preferred_wait(prefer)
        if seconds is not None and row.state == UploadState.INSPECTING:
            await parts.watcher.wait_for_change(kind.noun, row.id, row.version, timeout_seconds=seconds)
            row = await anyio.to_thread.run_sync(_find, parts, kind, upload_id)
        headers = {"ETag": etag(row.version), "Cache-Control": "no-cache", **preference_applied(seconds)}
        if row.state == UploadState.INSPECTING:
            headers["Retry-After"] = str(POLL_SECONDS)
        return json_unless_seen(kind.show(row), headers, if_none_match)

    @router.delete(
        kind.id_path,
        status_code=204,
        operation_id=f"delete_{kind.noun}",
        summary=f"Delete a {kind.noun}",
        description="Its bytes are removed some time later. Jobs that have ended keep their artifacts.",
        responses=problems(refusals.ResourceNotFound, refusals.ResourceInUse),
    )
    def delete(upload_id: TheId, parts: TheParts) -> None:
        check_id(upload_id, kind.prefix, kind.noun)
        with parts.database.writing() as session:
            if is_in_use(session, kind.table, upload_id):
                raise refusals.ResourceInUse(f"A job that has not ended works on the {kind.noun} {upload_id}.")
            if not delete_upload(session, kind.table, upload_id):
                raise refusals.ResourceNotFound(kind.noun, upload_id)

    def content(request: Request, upload_id: TheId, parts: TheParts) -> Response:
        check_id(upload_id, kind.prefix, kind.noun)
        row = _find(parts, kind, upload_id)
        return file_response(request, parts.storage, StoredFile(row.sha256, row.size_bytes, row.filename, RAW))

    declare_content(router, f"{kind.id_path}/content", content, name=f"{kind.noun}_content", noun=f"{kind.noun}'s file")
    return router


def _find(parts: Parts, kind: UploadKind[Row], upload_id: str) -> Row:
    with parts.database.reading() as session:
        row = find_upload(session, kind.table, upload_id)
    if row is None:
        raise refusals.ResourceNotFound(kind.noun, upload_id)
    return row


def _earlier_answer(parts: Parts, creating: CreatingRequest) -> Answer | None:
    if creating.key is None:
        return None
    with parts.database.writing() as session:
        return creating.earlier_answer(session)


def _register(parts: Parts, kind: UploadKind[Row], creating: CreatingRequest, blob: Blob, filename: str) -> Response:
    """Write the upload down, and give a worker the job of inspecting it."""
    with parts.database.writing() as session:

        def make() -> Answer:
            row = add_upload(session, kind.table, filename=filename, size_bytes=blob.size_bytes, sha256=blob.sha256)
            submit_job(
                session,
                kind=kind.inspection,
                request={},
                model_id=row.id if kind.noun == "model" else None,
                dataset_id=row.id if kind.noun == "dataset" else None,
                inputs={},
                deadline_seconds=parts.settings.inspection_deadline_seconds,
                max_attempts=parts.settings.max_attempts,
            )
            headers = {"Location": f"{kind.path}/{row.id}", "Retry-After": str(POLL_SECONDS)}
            return Answer(status=201, body=kind.show(row).model_dump(mode="json"), headers=headers)

        return creating.create(session, make)


def _links(kind: UploadKind[Any]) -> dict[str, Any]:
    return {
        verb: {"operationId": f"{verb}_{kind.noun}", "parameters": {f"{kind.noun}_id": "$response.body#/id"}}
        for verb in ("show", "delete")
    }


_UPLOAD_BODY = {
    "required": True,
    "content": {
        RAW: {"schema": {"type": "string", "format": "binary", "minLength": 1}},
        MULTIPART: {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "string", "format": "binary", "minLength": 1}},
                "required": ["file"],
                "additionalProperties": False,
            }
        },
    },
}
