"""The Celery application: where a worker process starts, reads its settings and puts its parts together.

    celery -A workers.celery_app worker -P threads -c 1 --without-mingle --without-gossip

One thread is one slot: the supervisor only waits. Stopping the worker (SIGTERM) stops the runner, gives the job back
without spending an attempt, and ends.
"""

import functools
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from celery import Celery
from celery.signals import setup_logging, worker_init, worker_ready, worker_shutting_down

from jobs.database import Database
from jobs.messages import celery_settings
from jobs.settings import Settings
from jobs.storage import LocalStorage
from workers.logs import log_as_json
from workers.sandbox import NO_ISOLATION, detect
from workers.supervisor import Supervisor, ignore
from workers.watchdog import Watchdog

RUNNER = (sys.executable, "-m", "workers.runner")

log = structlog.get_logger()

settings = Settings()
app = Celery("winnow", include=["workers.tasks"])
app.conf.update(celery_settings(settings.redis_url, settings.queue))


def make_supervisor(*, runner: Sequence[str] = RUNNER, reached: Callable[[str], None] = ignore) -> Supervisor:
    """A slot as the settings describe it."""
    isolation = detect() if settings.sandbox else NO_ISOLATION
    log.info("worker.sandbox", **isolation.for_report())
    return Supervisor(
        database=Database(settings.database_url),
        storage=LocalStorage(settings.storage_folder),
        settings=settings,
        isolation=isolation,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        runner=runner,
        reached=reached,
    )


@functools.cache
def this_supervisor() -> Supervisor:
    """The one slot of this process."""
    return make_supervisor()


def _log(**_signal: Any) -> None:  # Celery's signals carry what they like
    log_as_json()


def _begin(**_signal: Any) -> None:
    log_as_json()
    supervisor = this_supervisor()
    Watchdog(supervisor, Database(settings.database_url), waiting_seconds=3 * settings.reminder_seconds).start()


def _tell(**_signal: Any) -> None:
    log.info("worker.ready", queue=settings.queue)


def _end(**_signal: Any) -> None:
    this_supervisor().drain()


setup_logging.connect(_log)
worker_init.connect(_begin)
worker_ready.connect(_tell)
worker_shutting_down.connect(_end)
