"""Why the service can't do what a request asks, as values without HTTP: `errors.py` alone knows their status codes."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.errors import Refusal

MOST_FAULTS = 50  # whoever made more will find the others after correcting these


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a request: `pointer` into its JSON body, or the `parameter` of its URL or head."""

    message: str
    pointer: str | None = None
    parameter: str | None = None
    hint: str | None = None


class RequestRefused(Refusal):
    """The request can't be served."""

    retry_after_seconds: int | None = None

    def __init__(
        self, message: str | None = None, *, hint: str | None = None, faults: Sequence[Fault] = (), **where: object
    ) -> None:
        super().__init__(message, hint=hint, **where)
        self.faults = tuple(faults)


class MalformedJson(RequestRefused):
    """The body is not JSON."""

    hint = "Send one JSON object in UTF-8; the message says where reading it failed."


class MalformedUpload(RequestRefused):
    """The multipart body can't be read."""

    hint = "Send multipart/form-data with one part named `file`, or the bare bytes as application/octet-stream."


class InvalidRequest(RequestRefused):
    """The request is well-formed, but something in it is not allowed."""

    hint = "Correct what `errors` lists; /openapi.json says what is allowed."


class WrongMediaType(RequestRefused):
    """The body's media type is not one that this address takes."""

    def __init__(self, sent: str | None, accepted: Sequence[str]) -> None:
        listed = " or ".join(accepted)
        super().__init__(
            f"Content-Type is {sent[:200] if sent else 'missing'}; this address takes {listed}.",
            hint=f"Send the header `Content-Type: {accepted[0]}`.",
        )


class EncodedBody(RequestRefused):
    """The body has a Content-Encoding, and none is taken."""

    hint = "Send the bytes as they are, without Content-Encoding."


class BodyTooLarge(RequestRefused):
    """The body is larger than this address takes."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The body is larger than {limit_bytes} bytes, which is the most that this address takes.")
        self.hint = "Send a smaller body. The limit of uploads is the setting WINNOW_MAX_UPLOAD_BYTES."


class StorageFull(RequestRefused):
    """There is not enough disk left to keep this upload."""

    hint = "Delete models and datasets that are no longer needed, or give the service more disk, and upload again."


class EmptyUpload(RequestRefused):
    """The uploaded file has no bytes."""

    hint = "Check the path of the file; with curl it is `--data-binary @FILE` or `-F file=@FILE`."


class DigestMismatch(RequestRefused):
    """The bytes that arrived are not those that Repr-Digest speaks of."""

    hint = "The file changed or was damaged on its way: compute the digest again, and upload again."


class ResourceNotFound(RequestRefused):
    """There is no such resource."""

    hint = "Check the id. Deleted models and datasets can't be found any more."

    def __init__(self, noun: str, resource_id: str, *, pointer: str | None = None) -> None:
        message = f"There is no {noun} {resource_id[:100]!r}."
        super().__init__(message, faults=[Fault(pointer=pointer, message=message)] if pointer else ())


class PageNotFound(RequestRefused):
    """There is no such page: the page_token belongs to another list, or to other filters."""

    hint = "Repeat the filters of the request that gave you the token, or start again without a token."


class AddressNotFound(RequestRefused):
    """There is nothing at this address."""

    hint = "/openapi.json lists every address."


class MethodNotAllowed(RequestRefused):
    """This address does not take this method."""

    hint = "The Allow header lists the methods that it takes."

    def __init__(self, path: str, method: str, allowed: str) -> None:
        super().__init__(f"{path[:200]} takes {allowed}, not {method[:40]}.")
        self.allowed = allowed


class ResourceInUse(RequestRefused):
    """A job that has not ended works on this resource."""

    hint = "Wait for the job to end, or cancel it."
    retry_after_seconds = 10


class UploadNotReady(RequestRefused):
    """The upload is still being inspected."""

    hint = "Wait until its `state` is `ready`: GET it with `Prefer: wait=60`."
    retry_after_seconds = 1


class UploadRejected(RequestRefused):
    """The upload was rejected when it was inspected, so no job can work on it."""


class RecipeImpossible(RequestRefused):
    """This recipe can't run, or this goal can't be searched for, on this model and data."""

    hint = "Correct what `errors` lists, or ask with `validate_only=true` until nothing is listed."


class JobNotCancellable(RequestRefused):
    """The job has already ended."""

    hint = "Nothing is left to cancel; its results stay as they are."


class NotASearch(RequestRefused):
    """The job follows a recipe, and only a search, which is a job with a goal, can be finished early."""

    hint = "Wait for the job's end, or stop it with `POST …/cancel`, which keeps nothing of it."


class JobNotFinishable(RequestRefused):
    """The job has ended, or is being cancelled."""

    hint = "Nothing is left to finish. If it was cancelled or has failed, retry it."


class JobNotRetryable(RequestRefused):
    """The job has not ended."""

    hint = "Wait for its end, or cancel it first."


class ReportNotReady(RequestRefused):
    """The job has not ended, so there is no report yet."""

    hint = "GET the job with `Prefer: wait=60` until its `state` is `succeeded`."
    retry_after_seconds = 2


class ReportMissing(RequestRefused):
    """The job ended without a report."""

    hint = "The job's `error` says why it ended; correct that, and retry it."


class RangeUnsatisfiable(RequestRefused):
    """The Range lies outside the file."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"The Range lies outside the file, which has {size_bytes} bytes.")
        self.hint = "Ask for bytes that exist, or leave Range away."
        self.size_bytes = size_bytes


class KeyReused(RequestRefused):
    """This Idempotency-Key was used before, for a different request."""

    hint = "Use a new key for a new request; repeat a request with exactly what it had before."


class KeyInFlight(RequestRefused):
    """The first request with this Idempotency-Key is still being served."""

    hint = "Wait, and send it again: you will get the first one's answer."
    retry_after_seconds = 2


class DatabaseUnavailable(RequestRefused):
    """The database can't be reached, or is busy."""

    hint = "Send the request again in a moment. Nothing of it was done."
    retry_after_seconds = 2


class FileLost(RequestRefused):
    """The stored file is gone or damaged."""

    hint = "Tell whoever runs this service: its storage lost a file that its database still knows."


class ServiceNotReady(RequestRefused):
    """Something that the service needs does not work."""

    hint = "`checks` says what; jobs that were accepted are kept, and go on when it works again."
    retry_after_seconds = 5


class InternalError(RequestRefused):
    """The service failed while it served this request."""

    hint = "It is not your request's fault. Tell whoever runs this service the `request_id`: its log says more."
