"""Hints go out through Celery: the task is sent by name, so that nothing of the workers is ever loaded here."""

from typing import Protocol

from celery import Celery
from kombu.exceptions import OperationalError

from jobs.messages import RUN_JOB, JobQueue, QueueUnavailable, celery_settings

# A worker waits for its broker as long as it takes; here the outbox remembers what is owed, and tries again by itself.
_ONE_ATTEMPT = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}


class Broker(JobQueue, Protocol):
    """A queue that can be asked whether it works."""

    def ping(self) -> None:
        """Raises `QueueUnavailable` if the broker can't be reached."""

    def close(self) -> None:
        """Let the connections go."""


class CeleryJobQueue:
    """Sends hints to the Celery workers. Gives up after some seconds: whoever has to, sends again."""

    def __init__(self, redis_url: str, queue: str) -> None:
        self._celery = Celery("winnow", set_as_current=False)
        settings = celery_settings(redis_url, queue)
        settings["broker_transport_options"] = {**settings["broker_transport_options"], **_ONE_ATTEMPT}
        self._celery.conf.update(settings)

    def send_hint(self, job_id: str) -> None:
        try:
            self._celery.send_task(RUN_JOB, args=[job_id], ignore_result=True, retry=False)
        except (OperationalError, OSError) as unreachable:
            raise QueueUnavailable(str(unreachable)) from unreachable

    def ping(self) -> None:
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(timeout=1, **_ONE_ATTEMPT)
        except (OperationalError, OSError) as unreachable:
            raise QueueUnavailable(str(unreachable)) from unreachable

    def close(self) -> None:
        self._celery.close()
