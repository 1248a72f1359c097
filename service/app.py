"""The HTTP front, put together: `uvicorn --factory service.app:create_app`, or `winnow-server up`."""

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from jobs.database import Database
from jobs.repository.polling import JobGlances
from jobs.settings import Settings
from jobs.storage import LocalStorage
from service.dependencies import Parts
from service.endpoints import artifacts, datasets, health, jobs, models, problems, steps
from service.errors import install_error_handlers
from service.housekeeping import Housekeeper
from service.idempotency import KeysInFlight
from service.job_queue import Broker, CeleryJobQueue
from service.openapi import DESCRIPTION, TAGS, describe
from service.polling import PollingShortcut
from service.request_log import RequestLog, configure_logging
from service.watching import Watcher

UPLOAD_THREADS = 16


def create_app() -> FastAPI:
    """The service as the environment describes it."""
    configure_logging()
    settings = Settings()
    return build_app(settings, CeleryJobQueue(settings.redis_url, settings.queue))


def build_app(settings: Settings, broker: Broker) -> FastAPI:
    """The service with these settings and this broker. The database must have its tables already."""
    database = Database(settings.database_url)
    storage = LocalStorage(settings.storage_folder)
    parts = Parts(
        settings=settings,
        database=database,
        storage=storage,
        broker=broker,
        housekeeper=Housekeeper(database, storage, broker, settings),
        watcher=Watcher(database),
        glances=JobGlances(database),
        keys_in_flight=KeysInFlight(),
        upload_threads=ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="upload"),
    )
    app = FastAPI(
        title="Winnow",
        version=version("winnow-server"),
        summary="CNN compression over HTTP",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.parts = parts
    app.openapi = _openapi_of(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    for module in (models, datasets, jobs, artifacts, steps, health, problems):
        app.include_router(module.router)
    install_error_handlers(app)
    app.add_middleware(PollingShortcut, glances=parts.glances)
    app.add_middleware(RequestLog)  # added last: it is the outermost
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    parts: Parts = app.state.parts
    parts.housekeeper.start()
    yield
    await parts.watcher.close()
    parts.housekeeper.stop()
    parts.upload_threads.shutdown()
    parts.glances.close()
    parts.database.close()
    parts.broker.close()


def _openapi_of(app: FastAPI) -> Callable[[], dict[str, Any]]:
    return lambda: describe(app)
