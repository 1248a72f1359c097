"""Whether the service lives, whether it can work, and what it is."""

import asyncio
import platform
from collections.abc import Callable
from importlib.metadata import version

from fastapi import APIRouter, Depends
from sqlalchemy.exc import SQLAlchemyError

from jobs.database import now
from jobs.messages import QueueUnavailable
from migrations.upgrade import current_and_head
from service import refusals
from service.dependencies import Parts, TheParts, refuse_unknown_parameters
from service.errors import problems
from service.schemas import Alive, Check, Readiness, Version

router = APIRouter(tags=["health"], dependencies=[Depends(refuse_unknown_parameters)])

BROKER_SECONDS = 1.0
CHECK_SECONDS = 5.0


@router.get("/livez", operation_id="livez", summary="Whether the process answers", responses=problems())
async def livez() -> Alive:
    return Alive()


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Whether everything that the service needs works",
    responses=problems(refusals.ServiceNotReady),
)
async def readyz(parts: TheParts) -> Readiness:
    names = ("database", "migrations", "broker", "disk")
    checks = dict(
        zip(
            names,
            await asyncio.gather(
                _check(_check_database, parts, CHECK_SECONDS),
                _check(_check_migrations, parts, CHECK_SECONDS),
                _check(_check_broker, parts, BROKER_SECONDS),
                _check(_check_disk, parts, CHECK_SECONDS),
            ),
            strict=True,
        )
    )
    failed = [name for name, check in checks.items() if not check.ok]
    if failed:
        shown = {name: check.model_dump() for name, check in checks.items()}
        raise refusals.ServiceNotReady(f"This does not work: {', '.join(failed)}.", checks=shown)
    return Readiness(checks=checks)


@router.get("/version", operation_id="version", summary="What is running", responses=problems())
async def show_version() -> Version:
    return Version(version=version("winnow-server"), python=platform.python_version())


async def _check(question: Callable[[Parts], str | None], parts: Parts, seconds: float) -> Check:
    """A check is failed if it has something to say, or has not answered in time."""
    try:
        trouble = await asyncio.wait_for(asyncio.to_thread(question, parts), seconds)
    except TimeoutError:
        trouble = f"no answer within {seconds:g} s"
    return Check(ok=trouble is None, detail=trouble)


def _check_database(parts: Parts) -> str | None:
    try:
        with parts.database.reading() as session:
            now(session)
            session.connection()
    except SQLAlchemyError as error:
        return f"{type(error).__name__}: it can't be reached or is busy"
    return None


def _check_migrations(parts: Parts) -> str | None:
    try:
        revisions = current_and_head(parts.database.url)
    except SQLAlchemyError as error:
        return f"{type(error).__name__}: the revision can't be read"
    if revisions.is_current:
        return None
    return f"the database has revision {revisions.current}, this version needs {revisions.head}; run `winnow-server migrate`"


def _check_broker(parts: Parts) -> str | None:
    try:
        parts.broker.ping()
    except QueueUnavailable:
        return "the broker can't be reached; jobs are accepted and wait"
    return None


def _check_disk(parts: Parts) -> str | None:
    free, wanted = parts.storage.free_bytes(), parts.settings.min_free_bytes
    return None if free >= wanted else f"{free} bytes are free, {wanted} are to stay free"
