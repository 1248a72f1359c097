"""Jobs: asked for, watched, cancelled, finished early, retried, and what they delivered."""

from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse
from sqlalchemy.orm import Session

from jobs.database import now
from jobs.report import Report
from jobs.repository.lifecycle import request_cancel, request_finish
from jobs.repository.queries import artifacts_of, find_job, jobs_ahead, jobs_page
from jobs.request import JobRequest
from jobs.states import FINAL, JobState
from jobs.tables import JobRow
from service import refusals
from service.conditional import etag, json_unless_seen, matches
from service.content import StoredFile, file_response
from service.declarations import CONTENT_HEADERS, ETAG, LOCATION, PREFERENCE_APPLIED, REPLAYED, RETRY_AFTER
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
from service.events import event_page, event_stream, nothing_follows
from service.headers import preference_applied, preferred_wait
from service.idempotency import Answer, CreatingRequest
from service.json_body import read_json
from service.paging import first_id_before, split_page, token_after
from service.presentation import shown_artifact, shown_job
from service.schemas import (
    DATASET_ID,
    JOB_ID,
    MODEL_ID,
    ArtifactList,
    Job,
    JobEventPage,
    JobFault,
    JobPage,
    Validation,
)
from service.submission import accept, estimated_cost, judge, touched_layers

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[Depends(refuse_unknown_parameters)])

POLL_SECONDS = 1
PATH = "/v1/jobs"
EVENT_STREAM = "text/event-stream"

JobId = Annotated[str, id_path("job", "job_id", JOB_ID)]

_REQUEST_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/JobRequest"},
            "examples": {
                "prune": {
                    "summary": "Prune until one percentage point of accuracy is spent",
                    "value": {
                        "model": MODEL_ID,
                        "data": {"selection": DATASET_ID},
                        "recipe": [{"kind": "prune_weights", "max_drop_pp": 1.0}],
                        "limits": {"max_accuracy_drop_pp": 1.0},
                    },
                },
                "goal": {
                    "summary": "Search for the fastest network of at most 100 kB that loses at most one percentage point",
                    "value": {
                        "model": MODEL_ID,
                        "data": {"selection": DATASET_ID},
                        "goal": {
                            "max_accuracy_drop_pp": 1.0,
                            "minimise": "latency",
                            "constraints": {"max_bytes": 100_000},
                            "deadline_seconds": 600,
                        },
                        "outputs": ["onnx"],
                        "target": {"runtime": "onnxruntime", "threads": 1, "batch_size": 1},
                    },
                },
            },
        }
    },
}
_LINKS = {
    name: {"operationId": name, "parameters": {"job_id": "$response.body#/id"}}
    for name in ("show_job", "cancel_job", "finish_job", "retry_job", "list_events", "show_report", "list_artifacts")
}
_ACCEPTED = {
    "description": "The job waits for a worker.",
    "headers": LOCATION | RETRY_AFTER | REPLAYED,
    "links": _LINKS,
}
_SUBMISSION = (refusals.ResourceNotFound, refusals.UploadNotReady, refusals.KeyInFlight, refusals.UploadRejected,
               refusals.RecipeImpossible, refusals.KeyReused)  # fmt: skip


@router.post(
    "",
    status_code=202,
    operation_id="submit_job",
    summary="Submit a job",
    description="Give a `recipe` to say what is done, step by step, or a `goal` to have the steps searched for. With "
    "`validate_only=true` nothing is submitted: the answer says whether the job could run, and whether its goal looks reachable.",
    response_model=Job,
    responses={
        200: {"model": Validation, "description": "With `validate_only=true`: whether the job could run."},
        202: _ACCEPTED,
        **problems(
            refusals.MalformedJson, refusals.BodyTooLarge, refusals.WrongMediaType, refusals.EncodedBody, *_SUBMISSION
        ),
    },
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def submit_job(
    request: Request,
    parts: TheParts,
    validate_only: Annotated[bool, Query(description="Only say whether the job could run.")] = False,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    wanted = await read_json(request, JobRequest, alternatives=("recipe", "goal"))
    if validate_only:
        validation = await anyio.to_thread.run_sync(_validate, parts, wanted)
        return Response(validation.model_dump_json(), media_type="application/json")
    creating = creating_request(request, idempotency_key, parts.settings, wanted.model_dump(mode="json"))
    return await anyio.to_thread.run_sync(_submit, parts, creating, wanted, None)


@router.get(
    "",
    operation_id="list_jobs",
    summary="List jobs, newest first",
    responses=problems(refusals.PageNotFound),
)
def list_jobs(
    parts: TheParts,
    state: Annotated[
        list[JobState] | None, Query(max_length=6, description="Only jobs in one of these states.")
    ] = None,
    model: Annotated[str | None, Query(max_length=64, description="Only jobs on this model.")] = None,
    parent: Annotated[str | None, Query(max_length=64, description="Only retries of this job.")] = None,
    page_size: PageSize = 50,
    page_token: PageToken = None,
) -> JobPage:
    states = sorted(set(state or ()))
    filters: dict[str, object] = {"state": states, "model": model, "parent": parent}
    before = first_id_before(page_token, "job", filters)
    with parts.database.reading() as session:
        rows = jobs_page(
            session,
            before=before,
            limit=page_size + 1,
            states=states,
            model_id=_storable(model),
            parent_id=_storable(parent),
        )
        page, last = split_page(rows, page_size)
        items = [_shown(session, row) for row in page]
    return JobPage(items=items, next_page_token=token_after(last.id if last else None, "job", filters))


@router.get(
    "/{job_id}",
    operation_id="show_job",
    summary="Show a job",
    description="Poll it with `If-None-Match`, which costs next to nothing, or wait with `Prefer: wait=N` until it changes "
    "from what `If-None-Match` names (without that: from what it is now). A job that has ended is answered at once.",
    response_model=Job,
    responses={
        200: {"headers": ETAG | RETRY_AFTER | PREFERENCE_APPLIED},
        304: {"description": "The client has this already."},
        **problems(refusals.ResourceNotFound),
    },
)
async def show_job(
    job_id: JobId, parts: TheParts, if_none_match: IfNoneMatch = None, prefer: Prefer = None
) -> Response:
    check_id(job_id, "job", "job")
    shown, version = await anyio.to_thread.run_sync(_load, parts, job_id)
    seconds = preferred_wait(prefer)
    is_news = if_none_match is not None and not matches(if_none_match, etag(version))
    if seconds is not None and shown.state not in FINAL and not is_news:
        await parts.watcher.wait_for_change("job", job_id, version, timeout_seconds=seconds)
        shown, version = await anyio.to_thread.run_sync(_load, parts, job_id)
    headers = polling_headers(version, is_final=shown.state in FINAL) | preference_applied(seconds)
    return json_unless_seen(shown, headers, if_none_match)


@router.post(
    "/{job_id}/cancel",
    operation_id="cancel_job",
    summary="Cancel a job",
    description="A waiting job is cancelled at once (200). A running one is asked to stop (202): its state is `cancelling` "
    "until it has. Asking again is harmless.",
    response_model=Job,
    responses={
        200: {"description": "The job is cancelled."},
        202: {"model": Job, "description": "The job is asked to stop.", "headers": RETRY_AFTER},
        **problems(refusals.ResourceNotFound, refusals.JobNotCancellable),
    },
)
def cancel_job(job_id: JobId, response: Response, parts: TheParts) -> Job:
    check_id(job_id, "job", "job")
    with parts.database.writing() as session:
        _find(session, job_id)
        job = request_cancel(session, job_id)
        assert job is not None
        shown = _shown(session, job)
    return _accepted_unless_final(shown, response)


@router.post(
    "/{job_id}/finish",
    operation_id="finish_job",
    summary="Finish a search early",
    description="The best that a job with a goal has found so far is delivered, verified like any other result; what it is "
    "trying right now is given up (202). A waiting job does so as soon as it runs. Asking again is harmless, also once the "
    "job has succeeded (200).",
    response_model=Job,
    responses={
        200: {"description": "The job has succeeded since it was first asked."},
        202: {"model": Job, "description": "The job is asked to finish.", "headers": RETRY_AFTER},
        **problems(refusals.ResourceNotFound, refusals.NotASearch, refusals.JobNotFinishable),
    },
)
def finish_job(job_id: JobId, response: Response, parts: TheParts) -> Job:
    check_id(job_id, "job", "job")
    with parts.database.writing() as session:
        if _find(session, job_id).request.get("goal") is None:
            raise refusals.NotASearch
        job = request_finish(session, job_id)
        assert job is not None
        shown = _shown(session, job)
    return _accepted_unless_final(shown, response)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    operation_id="retry_job",
    summary="Retry a job that has ended",
    description="A new job that asks for the same; its `parent` is the old one.",
    response_model=Job,
    responses={202: _ACCEPTED, **problems(refusals.JobNotRetryable, *_SUBMISSION)},
)
def retry_job(request: Request, job_id: JobId, parts: TheParts, idempotency_key: IdempotencyKey = None) -> Response:
    check_id(job_id, "job", "job")
    with parts.database.reading() as session:
        job = _find(session, job_id)
    if job.state not in FINAL:
        raise refusals.JobNotRetryable(f"The job has not ended: it is {job.state}.", state=job.state)
    creating = creating_request(request, idempotency_key, parts.settings, {"retry": job_id})
    return _submit(parts, creating, JobRequest.model_validate(job.request), job_id)


@router.get(
    "/{job_id}/events",
    operation_id="list_events",
    summary="What happened to a job",
    description="A page of events, or, with `Accept: text/event-stream`, each as it happens until the job has ended: "
    "`id` is the event's number, `event` its type, `data` the event. After a break, `Last-Event-ID` goes on where it was; "
    "204 says that the job has ended and nothing follows.",
    response_model=JobEventPage,
    responses={
        200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}},
        204: {"description": "Only with `Accept: text/event-stream`: nothing follows any more."},
        **problems(refusals.ResourceNotFound),
    },
)
async def list_events(
    request: Request,
    job_id: JobId,
    parts: TheParts,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Number of the last event that the client has.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many events to show at most.")] = 100,
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            pattern="^[0-9]{1,9}$",
            description="Sent by browsers when they reconnect; stands for `after`.",
        ),
    ] = None,
) -> object:
    check_id(job_id, "job", "job")
    if not _wants_stream(request.headers.get("accept", "")):
        return await anyio.to_thread.run_sync(event_page, parts.database, job_id, after, limit)
    if last_event_id is not None:
        after = int(last_event_id)
    if await anyio.to_thread.run_sync(nothing_follows, parts.database, job_id, after):
        return Response(status_code=204)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return EventSourceResponse(event_stream(parts.database, parts.watcher, job_id, after), headers=headers)


@router.get(
    "/{job_id}/report",
    operation_id="show_report",
    summary="Show the report of a job that succeeded",
    response_model=Report,
    responses={
        200: {"headers": CONTENT_HEADERS},
        206: {"description": "The bytes that Range asked for.", "content": {"application/json": {}}},
        304: {"description": "The client has this already."},
        **problems(
            refusals.ResourceNotFound,
            refusals.ReportMissing,
            refusals.ReportNotReady,
            refusals.RangeUnsatisfiable,
            refusals.FileLost,
        ),
    },
)
def show_report(request: Request, job_id: JobId, parts: TheParts) -> Response:
    check_id(job_id, "job", "job")
    with parts.database.reading() as session:
        job = _find(session, job_id)
        report = next((row for row in artifacts_of(session, job_id) if row.kind == "report"), None)
    if report is not None:
        file = StoredFile(report.sha256, report.size_bytes, report.name, "application/json")
        return file_response(request, parts.storage, file)
    if job.state not in FINAL:
        raise refusals.ReportNotReady(f"The job is {job.state}; the report comes with its end.", state=job.state)
    raise refusals.ReportMissing(f"The job is {job.state}, and has no report.", state=job.state, error=job.error)


@router.get(
    "/{job_id}/artifacts",
    operation_id="list_artifacts",
    summary="List what a job delivered",
    responses=problems(refusals.ResourceNotFound),
)
def list_artifacts(job_id: JobId, parts: TheParts) -> ArtifactList:
    check_id(job_id, "job", "job")
    with parts.database.reading() as session:
        _find(session, job_id)
        return ArtifactList(items=[shown_artifact(row) for row in artifacts_of(session, job_id)])


def polling_headers(version: int, *, is_final: bool) -> dict[str, str]:
    """What every answer about a job says, also when it is only that nothing has changed."""
    headers = {"ETag": etag(version), "Cache-Control": "no-cache"}
    return headers if is_final else {**headers, "Retry-After": str(POLL_SECONDS)}


def _accepted_unless_final(shown: Job, response: Response) -> Job:
    if shown.state not in FINAL:
        response.status_code = 202
        response.headers["Retry-After"] = str(POLL_SECONDS)
    return shown


def _submit(parts: Parts, creating: CreatingRequest, wanted: JobRequest, parent_id: str | None) -> Response:
    with parts.database.writing() as session:

        def make() -> Answer:
            job = accept(session, wanted, parts.settings, parent_id=parent_id)
            headers = {"Location": f"{PATH}/{job.id}", "Retry-After": str(POLL_SECONDS)}
            return Answer(status=202, body=_shown(session, job).model_dump(mode="json"), headers=headers)

        response = creating.create(session, make)
    parts.housekeeper.nudge()
    return response


def _validate(parts: Parts, wanted: JobRequest) -> Validation:
    with parts.database.reading() as session:
        judgement = judge(session, wanted)
    errors = [
        JobFault(pointer=f"#{fault.pointer}", detail=fault.message, hint=fault.hint) for fault in judgement.faults
    ]
    return Validation(
        valid=not errors,
        errors=errors,
        touched_layers=touched_layers(wanted, judgement.model),
        estimate=None if errors else estimated_cost(wanted, judgement),
    )


def _load(parts: Parts, job_id: str) -> tuple[Job, int]:
    with parts.database.reading() as session:
        job = _find(session, job_id)
        return _shown(session, job), job.version


def _find(session: Session, job_id: str) -> JobRow:
    job = find_job(session, job_id)
    if job is None:
        raise refusals.ResourceNotFound("job", job_id)
    return job


def _shown(session: Session, job: JobRow) -> Job:
    ahead = jobs_ahead(session, job) if job.state == JobState.QUEUED else None
    return shown_job(job, jobs_ahead=ahead, moment=now(session))


def _storable(text: str | None) -> str | None:
    """No id has a NUL, and PostgreSQL will not even look for one."""
    return None if text is None else text.replace("\0", "?")


def _wants_stream(accept: str) -> bool:
    return any(part.partition(";")[0].strip().lower() == EVENT_STREAM for part in accept.split(","))
