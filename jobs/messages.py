"""The one message on the broker: "this job may be waiting". A hint, never the truth; a lost or doubled one harms nothing."""

from typing import Any, Protocol

RUN_JOB = "winnow.run_job"  # the Celery task's name; its only argument is a job id


class JobQueue(Protocol):
    """Where hints go."""

    def send_hint(self, job_id: str) -> None:
        """Tell the workers that `job_id` may be waiting. Raises `QueueUnavailable` if the broker can't be reached."""


class QueueUnavailable(Exception):
    """The broker can't be reached; the job stays queued and is sent later."""


def celery_settings(redis_url: str, queue: str) -> dict[str, Any]:  # values as Celery defines them
    """The Celery configuration that sender and worker share; docs/architecture.md has the reasons."""
    return {
        "broker_url": redis_url,
        "task_default_queue": queue,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": False,
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_publish_retry": False,
        "broker_transport_options": {
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
    }
