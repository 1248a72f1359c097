"""The Celery configuration that sender and worker share."""

from celery import Celery
from celery.app.defaults import NAMESPACES, flatten

from jobs.messages import RUN_JOB, celery_settings


def test_a_hint_reaches_the_queue_as_json_and_is_acknowledged_before_it_runs(redis_url: str) -> None:
    app = Celery(set_as_current=False)
    app.config_from_object(celery_settings(redis_url, "test-messages"))
    app.send_task(RUN_JOB, args=["job_1"])
    with app.connection_for_read() as connection, connection.SimpleQueue("test-messages") as queue:
        message = queue.get(timeout=5)
        message.ack()
    app.close()
    assert message.content_type == "application/json"
    assert message.headers["task"] == RUN_JOB
    assert message.payload[0] == ["job_1"]
    assert not app.conf.task_acks_late
    assert app.conf.worker_disable_prefetch


def test_every_setting_is_one_that_celery_knows() -> None:
    known = {name for name, _ in flatten(NAMESPACES)}
    assert celery_settings("redis://broker", "winnow").keys() <= known
