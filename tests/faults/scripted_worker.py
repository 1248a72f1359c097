"""The real Celery worker, but with the scripted runner, and able to crash at a named moment of a job's life, once.

CRASH_FILE is a file that holds the moment's name (see `reached` in workers/supervisor.py); it is gone when it has happened.
"""

import functools
import os
import signal
from pathlib import Path

from tests.faults.installation import SCRIPTED_RUNNER
from workers import celery_app

app = celery_app.app


def crash_once(moment: str) -> None:
    wish = Path(os.environ.get("CRASH_FILE", "/nonexistent"))
    if wish.is_file() and wish.read_text() == moment:
        wish.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


celery_app.this_supervisor = functools.cache(
    lambda: celery_app.make_supervisor(runner=SCRIPTED_RUNNER, reached=crash_once)
)
