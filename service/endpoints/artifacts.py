"""Artifacts: the files that jobs deliver."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from jobs.repository.queries import find_artifact
from service import refusals
from service.content import StoredFile, file_response
from service.declarations import declare_content
from service.dependencies import TheParts, check_id, id_path, refuse_unknown_parameters
from service.schemas import ARTIFACT_ID

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"], dependencies=[Depends(refuse_unknown_parameters)])


def content(
    request: Request, artifact_id: Annotated[str, id_path("art", "artifact_id", ARTIFACT_ID)], parts: TheParts
) -> Response:
    check_id(artifact_id, "art", "artifact")
    with parts.database.reading() as session:
        row = find_artifact(session, artifact_id)
    if row is None:
        raise refusals.ResourceNotFound("artifact", artifact_id)
    return file_response(request, parts.storage, StoredFile(row.sha256, row.size_bytes, row.name, row.media_type))


declare_content(router, "/{artifact_id}/content", content, name="artifact", noun="artifact")
