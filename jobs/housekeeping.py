"""What must happen now and then, whoever does it: every part may run in several processes at once and be repeated."""

from itertools import islice

import structlog

from jobs.database import Database
from jobs.messages import JobQueue, QueueUnavailable
from jobs.repository.idempotency import forget_old_answers
from jobs.repository.lifecycle import reap_lost_jobs
from jobs.repository.outbox import OwedHint, forget_hints, owed_hints, remind_of_waiting_jobs
from jobs.repository.uploads import referenced_blobs
from jobs.storage import LocalStorage

log = structlog.get_logger()

ABANDONED_UPLOAD_SECONDS = 3600.0
BLOBS_AT_ONCE = 500


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
    """Send what the outbox holds. False if the broker can't be reached; everything unsent stays owed then."""
    while hints := _owed_hints(database):
        sent: list[int] = []
        try:
            for hint in hints:
                queue.send_hint(hint.job_id)
                sent.append(hint.id)
        except QueueUnavailable as unavailable:
            log.warning("outbox.broker_unavailable", reason=str(unavailable), owed=len(hints) - len(sent))
            return False
        finally:
            if sent:
                with database.writing() as session:
                    forget_hints(session, sent)
    return True


def collect_garbage(database: Database, storage: LocalStorage, *, keep_blobs_seconds: float) -> None:
    """Remove remembered answers that expired, uploads that broke off, and files that nothing refers to."""
    with database.writing() as session:
        forget_old_answers(session)
    storage.sweep_incoming(older_than_seconds=ABANDONED_UPLOAD_SECONDS)
    old_blobs = storage.old_blobs(older_than_seconds=keep_blobs_seconds)
    while candidates := set(islice(old_blobs, BLOBS_AT_ONCE)):
        with database.reading() as session:
            candidates -= referenced_blobs(session, candidates, keep_seconds=keep_blobs_seconds)
        for sha256 in candidates:
            # Whoever stored the same bytes since then made the file young again, and it stays.
            if storage.collect(sha256, older_than_seconds=keep_blobs_seconds):
                log.info("storage.collected", sha256=sha256)


def _owed_hints(database: Database) -> list[OwedHint]:
    with database.reading() as session:
        return owed_hints(session)
