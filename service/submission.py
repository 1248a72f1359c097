"""Whether a job can be accepted, judged by what is known of its model and data; and accepting it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from jobs.data_roles import ROLES, Role
from jobs.eligibility import searched_layers
from jobs.estimates import estimate, estimate_goal
from jobs.inspection import DatasetInspection, ModelInspection
from jobs.preflight import check_request
from jobs.recipe import Step
from jobs.repository.lifecycle import submit_job
from jobs.repository.uploads import find_upload
from jobs.request import JobRequest
from jobs.settings import Settings
from jobs.states import UploadState
from jobs.tables import DatasetRow, JobRow, ModelRow
from service.refusals import Fault, RecipeImpossible, ResourceNotFound, UploadNotReady, UploadRejected

Row = TypeVar("Row", ModelRow, DatasetRow)


@dataclass(frozen=True)
class Judgement:
    """What speaks against a job, and what it would work on."""

    faults: tuple[Fault, ...]
    model: ModelInspection
    data: Mapping[Role, DatasetInspection]


def judge(session: Session, request: JobRequest) -> Judgement:
    """Look at the model and data that a job names. Raises if they are unknown, not inspected yet, or rejected."""
    model = _ready(find_upload(session, ModelRow, request.model), "model", request.model, "/model")
    rows = {
        role: _ready(find_upload(session, DatasetRow, dataset), "dataset", dataset, f"/data/{role}")
        for role, dataset in _roles(request).items()
    }
    inspected = ModelInspection.model_validate(model.inspection)
    data = {role: DatasetInspection.model_validate(row.inspection) for role, row in rows.items()}
    problems = check_request(request, data, inspected)
    faults = [Fault(pointer=found.pointer, message=found.message, hint=found.hint) for found in problems]
    return Judgement(faults=(*_mixed_roles(rows), *faults), model=inspected, data=data)


def accept(session: Session, request: JobRequest, settings: Settings, *, parent_id: str | None = None) -> JobRow:
    """The new job, or a refusal that says what is wrong with it."""
    judgement = judge(session, request)
    if judgement.faults:
        faults = judgement.faults
        message = faults[0].message if len(faults) == 1 else f"{len(faults)} things speak against this job."
        raise RecipeImpossible(message, faults=faults)
    return submit_job(
        session,
        kind="compress",
        request=request.model_dump(mode="json"),
        model_id=request.model,
        inputs=dict(_roles(request).items()),
        deadline_seconds=request.limits.deadline_seconds,
        max_attempts=settings.max_attempts,
        parent_id=parent_id,
    )


def touched_layers(request: JobRequest, model: ModelInspection) -> dict[str, list[str]]:
    """By step kind, the layers that the recipe, or the search for a goal, may change."""
    if request.goal is not None:
        return searched_layers(model)
    touched: dict[str, dict[str, None]] = {}
    for step in request.recipe:
        touched.setdefault(step.kind, {}).update(dict.fromkeys(_layers_of(step, model)))
    return {kind: list(layers) for kind, layers in touched.items()}


def estimated_cost(request: JobRequest, judgement: Judgement) -> dict[str, Any]:
    """Roughly what the job would need, and whether its goal looks reachable."""
    if request.goal is not None:
        return estimate_goal(request.goal, judgement.data, judgement.model, runtime=request.target.runtime)
    return estimate(request.recipe, judgement.data, judgement.model)


def _roles(request: JobRequest) -> dict[Role, str]:
    given: dict[Role, str | None] = {role: getattr(request.data, role) for role in ROLES}
    return {role: dataset for role, dataset in given.items() if dataset is not None}


def _layers_of(step: Step, model: ModelInspection) -> list[str]:
    excluded = getattr(step, "exclude", ())
    eligible = {layer.name: layer.steps.get(step.kind) for layer in model.layers if layer.name not in excluded}
    return [name for name, eligibility in eligible.items() if eligibility is None or eligibility.eligible]


def _ready(row: Row | None, noun: str, upload_id: str, pointer: str) -> Row:
    if row is None:
        raise ResourceNotFound(noun, upload_id, pointer=pointer)
    if row.state == UploadState.READY:
        return row
    if row.state == UploadState.INSPECTING:
        message = f"The {noun} {upload_id} is still being inspected."
        raise UploadNotReady(message, faults=[Fault(pointer=pointer, message=message)])
    error = row.error or {}
    message = f"The {noun} {upload_id} was rejected: {error.get('message', 'its inspection failed.')}"
    raise UploadRejected(message, hint=error.get("hint"), faults=[Fault(pointer=pointer, message=message)], error=error)


def _mixed_roles(rows: Mapping[Role, DatasetRow]) -> list[Fault]:
    """Images that a decision was made with say nothing about images that are new."""
    faults = []
    first_role: dict[str, Role] = {}
    for role, row in rows.items():
        other = first_role.setdefault(row.sha256, role)
        if other != role:
            message = f"The same data can't be both {other} and {role}."
            hint = f"Give other images for {role}, or only one dataset, which is then split by class."
            faults.append(Fault(pointer=f"/data/{role}", message=message, hint=hint))
    return faults
