"""The one task: a hint that a job may be waiting."""

from jobs.identifiers import is_id
from jobs.messages import RUN_JOB
from workers import celery_app
from workers.celery_app import app


@app.task(name=RUN_JOB)  # type: ignore[untyped-decorator]  # Celery has no types
def run_job(job_id: str) -> None:
    """Run the job if it is there to be claimed. Whoever reaches the broker can send anything, so only ids pass."""
    if is_id(job_id, "job"):
        celery_app.this_supervisor().run_job(job_id)
