"""The kinds of steps that a recipe can have, documented by the classes that check them."""

import inspect

from fastapi import APIRouter, Depends

from jobs.data_roles import NEEDS
from jobs.recipe import STEP_KINDS, Schema
from service.dependencies import refuse_unknown_parameters
from service.errors import problems
from service.schemas import StepKind, StepKindList

router = APIRouter(prefix="/v1/steps", tags=["steps"], dependencies=[Depends(refuse_unknown_parameters)])


@router.get("", operation_id="list_steps", summary="List the kinds of steps", responses=problems())
async def list_steps() -> StepKindList:
    return StepKindList(items=[_shown(kind, schema) for kind, schema in STEP_KINDS.items()])


def _shown(kind: str, schema: type[Schema]) -> StepKind:
    role, reason = NEEDS[kind]
    defaults = schema.model_validate({"kind": kind}).model_dump(mode="json")
    return StepKind(
        kind=kind,
        description=inspect.cleandoc(schema.__doc__ or ""),
        needs=f"{role}: it {reason}",
        defaults=defaults,
        json_schema=schema.model_json_schema(),
    )
