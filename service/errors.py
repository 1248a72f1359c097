"""What each refusal is in HTTP: the only place with status codes of errors, all of them RFC 9457 problem documents."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from starlette.exceptions import HTTPException
from starlette.types import Scope

from jobs.repository.lifecycle import IllegalTransition
from jobs.states import JobState
from jobs.storage import BlobMissing
from service import refusals
from service.refusals import MOST_FAULTS, Fault, InvalidRequest, RequestRefused

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class ProblemType:
    """One kind of problem, at the address `/problems/{slug}`."""

    status: int
    slug: str
    title: str


PROBLEM_TYPES: Mapping[type[RequestRefused], ProblemType] = {
    refusals.MalformedJson: ProblemType(400, "malformed-json", "Malformed JSON"),
    refusals.MalformedUpload: ProblemType(400, "malformed-upload", "Malformed upload"),
    refusals.AddressNotFound: ProblemType(404, "address-not-found", "Nothing at this address"),
    refusals.ResourceNotFound: ProblemType(404, "not-found", "No such resource"),
    refusals.PageNotFound: ProblemType(404, "page-not-found", "No such page"),
    refusals.ReportMissing: ProblemType(404, "no-report", "No report"),
    refusals.MethodNotAllowed: ProblemType(405, "method-not-allowed", "Method not allowed"),
    refusals.ResourceInUse: ProblemType(409, "in-use", "In use"),
    refusals.UploadNotReady: ProblemType(409, "not-ready", "Not inspected yet"),
    refusals.JobNotCancellable: ProblemType(409, "not-cancellable", "Job has ended"),
    refusals.NotASearch: ProblemType(409, "not-a-search", "Not a search"),
    refusals.JobNotFinishable: ProblemType(409, "not-finishable", "Job can't be finished early"),
    refusals.JobNotRetryable: ProblemType(409, "not-retryable", "Job has not ended"),
    refusals.ReportNotReady: ProblemType(409, "no-report-yet", "No report yet"),
    refusals.KeyInFlight: ProblemType(409, "request-in-flight", "First request still in flight"),
    refusals.BodyTooLarge: ProblemType(413, "too-large", "Body too large"),
    refusals.WrongMediaType: ProblemType(415, "wrong-media-type", "Wrong media type"),
    refusals.EncodedBody: ProblemType(415, "content-encoding", "Content-Encoding not taken"),
    refusals.RangeUnsatisfiable: ProblemType(416, "range-not-satisfiable", "Range not satisfiable"),
    refusals.InvalidRequest: ProblemType(422, "invalid-request", "Invalid request"),
    refusals.EmptyUpload: ProblemType(422, "empty-upload", "Empty upload"),
    refusals.DigestMismatch: ProblemType(422, "digest-mismatch", "Digest mismatch"),
    refusals.UploadRejected: ProblemType(422, "upload-rejected", "Upload was rejected"),
    refusals.RecipeImpossible: ProblemType(422, "recipe-refused", "Job can't run"),
    refusals.KeyReused: ProblemType(422, "key-reused", "Idempotency-Key reused"),
    refusals.InternalError: ProblemType(500, "internal", "Internal error"),
    refusals.FileLost: ProblemType(500, "file-lost", "Stored file lost"),
    refusals.DatabaseUnavailable: ProblemType(503, "database-unavailable", "Database unavailable"),
    refusals.ServiceNotReady: ProblemType(503, "service-not-ready", "Service not ready"),
    refusals.StorageFull: ProblemType(507, "storage-full", "Not enough disk"),
}


class ProblemFault(BaseModel):
    """One thing that is wrong with the request."""

    detail: str
    pointer: str | None = Field(default=None, description="JSON Pointer into the request's body, as a URI fragment.")
    parameter: str | None = Field(default=None, description="Name of the query parameter or header.")
    hint: str | None = None


class Problem(BaseModel):
    """An RFC 9457 problem document: what happened, and what to do about it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "/problems/not-found",
                    "title": "No such resource",
                    "status": 404,
                    "detail": "There is no job job_01kb2xv6w8e7r0c3f5m9n1p4qs.",
                    "instance": "/v1/jobs/job_01kb2xv6w8e7r0c3f5m9n1p4qs",
                    "hint": "Check the id. Deleted models and datasets can't be found any more.",
                    "request_id": "9d2b6f0c4e8a4f7d",
                }
            ]
        }
    )

    type: str = Field(description="Address of a page about this kind of problem.")
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path that was asked for.")
    hint: str | None = Field(default=None, description="What to do.")
    errors: list[ProblemFault] | None = Field(default=None, description="Each single thing that is wrong.")
    where: dict[str, Any] | None = Field(default=None, description="Whatever else is known about the cause.")
    request_id: str | None = Field(default=None, description="What the service's log calls this request.")


def problem_response(refusal: RequestRefused, scope: Scope) -> Response:
    """The problem document for one refused request."""
    kind = PROBLEM_TYPES[type(refusal)]
    problem = Problem(
        type=f"/problems/{kind.slug}",
        title=kind.title,
        status=kind.status,
        detail=str(refusal),
        instance=scope["path"],
        hint=refusal.hint,
        errors=[_problem_fault(fault) for fault in refusal.faults[:MOST_FAULTS]] or None,
        where=refusal.where or None,
        request_id=scope.get("state", {}).get("request_id"),
    )
    headers = {"Cache-Control": "no-store"}
    if refusal.retry_after_seconds is not None:
        headers["Retry-After"] = str(refusal.retry_after_seconds)
    if isinstance(refusal, refusals.RangeUnsatisfiable):
        headers["Content-Range"] = f"bytes */{refusal.size_bytes}"
    if isinstance(refusal, refusals.MethodNotAllowed):
        headers["Allow"] = refusal.allowed
    content = problem.model_dump_json(exclude_none=True)
    return Response(content, status_code=kind.status, headers=headers, media_type=MEDIA_TYPE)


def problems(*expected: type[RequestRefused]) -> dict[int | str, dict[str, Any]]:
    """What an endpoint declares of its errors: the given ones, and those that every endpoint can have."""
    always = (refusals.MethodNotAllowed, refusals.InvalidRequest, refusals.InternalError, refusals.DatabaseUnavailable)
    by_status: dict[int | str, list[type[RequestRefused]]] = {}
    for refusal in dict.fromkeys((*expected, *always)):
        by_status.setdefault(PROBLEM_TYPES[refusal].status, []).append(refusal)
    return {status: _declared(kinds) for status, kinds in sorted(by_status.items())}


def problem_page(slug: str) -> str | None:
    """What `/problems/{slug}` shows, or None if there is no such problem."""
    for refusal, kind in PROBLEM_TYPES.items():
        if kind.slug == slug:
            return (
                f"<!doctype html><meta charset=utf-8><title>{escape(kind.title)}</title>"
                f"<h1>{escape(kind.title)} <small>{kind.status}</small></h1>"
                f"<p>{escape(_sentence(refusal))}</p><p>{escape(refusal.hint or 'The response says what to do.')}</p>\n"
            )
    return None


def install_error_handlers(app: FastAPI) -> None:
    """Make every error that an endpoint or the framework raises a problem document."""
    app.add_exception_handler(RequestRefused, _answer_refusal)
    app.add_exception_handler(RequestValidationError, _answer_invalid_parameters)
    app.add_exception_handler(HTTPException, _answer_framework_error)
    app.add_exception_handler(IllegalTransition, _answer_illegal_transition)
    app.add_exception_handler(BlobMissing, _answer_missing_blob)
    app.add_exception_handler(DBAPIError, _answer_database_error)
    app.add_exception_handler(PoolExhausted, _answer_database_error)


def _answer_refusal(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, RequestRefused)
    return problem_response(refusal, request.scope)


def _answer_invalid_parameters(request: Request, invalid: Exception) -> Response:
    assert isinstance(invalid, RequestValidationError)
    faults = [
        Fault(parameter=str(error["loc"][1])[:200], message=str(error["msg"])[:500]) for error in invalid.errors()
    ]
    return problem_response(InvalidRequest(_count_faults(faults), faults=faults), request.scope)


def _answer_framework_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = _allowed_methods(request)
        refusal: RequestRefused = refusals.MethodNotAllowed(request.scope["path"], request.method, allowed)
    elif error.status_code == 404:
        refusal = refusals.AddressNotFound()
    else:  # the framework found the request malformed before any endpoint saw it
        refusal = refusals.MalformedUpload(str(error.detail))
    return problem_response(refusal, request.scope)


def _answer_illegal_transition(request: Request, error: Exception) -> Response:
    assert isinstance(error, IllegalTransition)
    if error.wanted == JobState.CANCELLED:
        refusal: RequestRefused = refusals.JobNotCancellable(
            f"The job has already ended: it is {error.state}.", state=error.state
        )
    else:
        refusal = refusals.JobNotFinishable(
            f"The job can't be finished early any more: it is {error.state}.", state=error.state
        )
    return problem_response(refusal, request.scope)


def _answer_missing_blob(request: Request, error: Exception) -> Response:
    log.error("storage.file_lost", reason=str(error))
    return problem_response(refusals.FileLost(), request.scope)


def _answer_database_error(request: Request, error: Exception) -> Response:
    log.error("request.database_failed", reason=str(error).partition("\n")[0])
    return problem_response(refusals.DatabaseUnavailable(), request.scope)


def _allowed_methods(request: Request) -> str:
    """Every method of this path; the framework itself names only those of the first route that has the path."""
    for template, operations in request.app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template), request.scope["path"]):
            return ", ".join(sorted(method.upper() for method in operations))
    return "GET"  # pages that the document does not have, such as itself


def _problem_fault(fault: Fault) -> ProblemFault:
    pointer = None if fault.pointer is None else f"#{fault.pointer}"
    return ProblemFault(detail=fault.message, pointer=pointer, parameter=fault.parameter, hint=fault.hint)


def _count_faults(faults: list[Fault]) -> str:
    return f"{len(faults)} things are wrong with the request." if len(faults) > 1 else faults[0].message


def _declared(kinds: list[type[RequestRefused]]) -> dict[str, Any]:
    examples = {PROBLEM_TYPES[refusal].slug: {"value": _example(refusal)} for refusal in kinds}
    return {
        "description": " ".join(_sentence(refusal) for refusal in kinds),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
    }


def _example(refusal: type[RequestRefused]) -> dict[str, Any]:
    kind = PROBLEM_TYPES[refusal]
    example = Problem(
        type=f"/problems/{kind.slug}",
        title=kind.title,
        status=kind.status,
        detail=_sentence(refusal),
        instance="/v1/jobs",
        hint=refusal.hint,
        request_id="9d2b6f0c4e8a4f7d",
    )
    return example.model_dump(exclude_none=True)


def _sentence(refusal: type[RequestRefused]) -> str:
    return (refusal.__doc__ or "").strip().splitlines()[0]
