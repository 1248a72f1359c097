"""The side that does the work: Celery tasks, the supervisor that guards a job, and the runner that compresses a model."""
