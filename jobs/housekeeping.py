"""What must happen now and then, whoever does it: every part may run in several processes at once and be repeated."""

import structlog

from jobs.database import Database
from jobs.messages import JobQueue, QueueUnavailable
from jobs.repository.idempotency import forget_old_answers
from jobs.repository.lifecycle import reap_lost_jobs
from jobs.repository.outbox import forget_hint, owed_hints, remind_of_waiting_jobs
from jobs.repository.uploads import is_blob_referenced
from jobs.storage import LocalStorage

log = structlog.get_logger()

ABANDONED_UPLOAD_SECONDS = 3600.0


def reap(database: Database, *, retry_delay_seconds: float) -> None:
    """Take jobs from workers that fell silent."""
    with database.writing() as session:
        lost = [
            (job.id, job.state, job.attempt) for job in reap_lost_jobs(session, retry_delay_seconds=retry_delay_seconds)
        ]
    for job_id, state, attempt in lost:
        log.warning("job.worker_lost", job_id=job_id, state=state, attempt=attempt)


def remind(database: Database, *, reminder_seconds: float) -> None:
    """Owe a second message for jobs whose first one seems to be lost."""
    with database.writing() as session:
        reminded = remind_of_waiting_jobs(session, reminder_seconds=reminder_seconds)
    if reminded:
        log.info("outbox.reminded", jobs=reminded)


def send_owed_hints(database: Database, queue: JobQueue) -> bool:
    """Send what the outbox holds. False if the broker can't be reached; everything stays owed then."""
    with database.reading() as session:
        hints = owed_hints(session)
    for hint in hints:
        try:
            queue.send_hint(hint.job_id)
        except QueueUnavailable as unavailable:
            log.warning("outbox.broker_unavailable", reason=str(unavailable), owed=len(hints))
            return False
        with database.writing() as session:
            forget_hint(session, hint.id)
    return True


def collect_garbage(database: Database, storage: LocalStorage, *, keep_blobs_seconds: float) -> None:
    """Remove remembered answers that expired, uploads that broke off, and files that nothing refers to."""
    with database.writing() as session:
        forget_old_answers(session)
    storage.sweep_incoming(older_than_seconds=ABANDONED_UPLOAD_SECONDS)
    for sha256 in storage.old_blobs(older_than_seconds=keep_blobs_seconds):
        with database.reading() as session:
            referenced = is_blob_referenced(session, sha256)
        if not referenced and storage.collect(sha256, older_than_seconds=keep_blobs_seconds):
            log.info("storage.collected", sha256=sha256)
