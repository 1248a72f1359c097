"""Every statement that reads or writes the database, one function a question, each inside the caller's transaction.

* `uploads`      models and datasets
* `lifecycle`    the guarded updates by which a job changes its state
* `queries`      what clients read: jobs, events, artifacts
* `polling`      the one question that must cost next to nothing
* `worker_queries`  what workers ask besides
* `outbox`       messages owed to the broker
* `idempotency`  answers remembered for repeated requests
"""
