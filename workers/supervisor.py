"""Runs one job: claims it, gives it to a runner in a sandbox, watches over that, and commits what came of it.

    claim ─► lay out the folder ─► start the runner ─► watch ─► check and store the outputs ─► commit ─► remove the folder
             └── at any time: lease lost, cancel, worker stopping, deadline; while watching also: stalled, too much memory

A wish to finish a search is no ending: it is passed on to the runner, which then ends by itself.

Three threads: this one waits and decides, `Lease` renews the lease, `ProgressReporter` forwards progress. Only this one
ends a job, in one transaction that names the lease's token, so a job ends once whatever dies on the way.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import assert_never

import structlog
from sqlalchemy.orm import Session

from jobs.database import Database, now
from jobs.errors import ErrorCode
from jobs.repository.lifecycle import (
    LeaseLost,
    claim_job,
    fail_job,
    finish_cancel,
    give_back_job,
    lose_attempt,
    succeed_job,
)
from jobs.repository.queries import inputs_of
from jobs.repository.worker_queries import is_over
from jobs.settings import Settings
from jobs.states import FINAL
from jobs.storage import Storage
from jobs.tables import DatasetRow, JobRow, ModelRow
from workers.endings import (
    DISK_FULL,
    OUR_MISTAKE,
    AttemptLost,
    Cancelled,
    Ending,
    Failed,
    Fenced,
    GivenBack,
    OwnEnding,
    Succeeded,
    crashed,
    deadline_exceeded,
    out_of_memory,
    result_refused,
    stalled,
)
from workers.job_folder import (
    DISK_FULL_ERRORS,
    CannotLayOut,
    NoResult,
    ResultRefused,
    Upload,
    Work,
    ask_to_finish,
    jobs_with_folders,
    lay_out,
    read_outcome,
    remove_folders_of,
    store_outputs,
)
from workers.lease import DATABASE_AWAY, Lease
from workers.process import RunnerProcess
from workers.progress_reporter import ProgressReporter
from workers.sandbox import Isolation

log = structlog.get_logger()

LOOK_SECONDS = 0.05
MEMORY_CHECK_SECONDS = 0.25
DATABASE_RETRY_SECONDS = 0.5


class Interrupted(Exception):
    """The job has to end before its runner has started."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(type(ending).__name__)
        self.ending = ending


@dataclass(frozen=True)
class Claim:
    """A job that is ours for now."""

    work: Work
    token: str
    deadline_seconds: float
    ends_at: float  # on the monotonic clock


def ignore(_moment: str) -> None:
    """What is done at the named moments of a job's life, except in tests that crash there."""


class Supervisor:
    """One slot for jobs on this machine."""

    def __init__(
        self,
        *,
        database: Database,
        storage: Storage,
        settings: Settings,
        isolation: Isolation,
        worker: str,
        runner: Sequence[str],
        reached: Callable[[str], None] = ignore,
    ) -> None:
        self._database = database
        self._storage = storage
        self._settings = settings
        self._isolation = isolation
        self._worker = worker
        self._runner = runner
        self._reached = reached
        self._stopping = threading.Event()
        self._is_busy = False
        self._idle_since = time.monotonic()
        settings.jobs_folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def idle_seconds(self) -> float:
        """How long this slot has had nothing to do."""
        return 0.0 if self._is_busy else time.monotonic() - self._idle_since

    def drain(self) -> None:
        """Claim nothing any more; stop the runner and give its job back."""
        self._stopping.set()

    def run_job(self, job_id: str) -> None:
        """Run the job to its end, or do nothing if it is not there to be claimed."""
        self._is_busy = True
        try:
            with structlog.contextvars.bound_contextvars(job_id=job_id):
                claim = self._claim(job_id)
                if claim is not None:
                    self._run(claim)
        finally:
            self._idle_since = time.monotonic()
            self._is_busy = False

    def sweep(self) -> None:
        """Remove the folders of jobs that are over; a worker that was killed leaves them behind."""
        for job_id in jobs_with_folders(self._settings.jobs_folder):
            with self._database.reading() as session:
                over = is_over(session, job_id)
            if over:
                remove_folders_of(self._settings.jobs_folder, job_id)
                log.info("job.folder_swept", job_id=job_id)

    # -- the stations of a job --------------------------------------------------------------------------------------

    def _claim(self, job_id: str) -> Claim | None:
        if self._stopping.is_set():
            log.info("job.left_in_queue")
            return None
        try:
            with self._database.writing() as session:
                job = claim_job(session, job_id, worker=self._worker, lease_seconds=self._settings.lease_seconds)
                claim = None if job is None else _as_claim(session, job)
        except DATABASE_AWAY as away:  # the message is gone, but the job gets another one
            log.warning("job.not_claimed", reason=type(away).__name__)
            return None
        if claim is None:
            log.info("job.not_claimed", reason="it is not waiting")
            return None
        log.info("job.claimed", kind=claim.work.kind, attempt=claim.work.attempt)
        self._reached("claimed")
        return claim

    def _run(self, claim: Claim) -> None:
        lease = Lease(
            self._database,
            claim.work.job_id,
            claim.token,
            lease_seconds=self._settings.lease_seconds,
            heartbeat_seconds=self._settings.heartbeat_seconds,
        )
        with lease.kept():
            try:
                ending = self._attempt(claim, lease)
            except Exception:  # a mistake of ours must not leave the job running until its lease is over
                log.exception("job.supervisor_failed")
                ending = AttemptLost(OUR_MISTAKE)
            self._conclude(claim, lease, ending)

    def _attempt(self, claim: Claim, lease: Lease) -> Ending:
        def check() -> None:
            if interruption := self._interruption(claim, lease):
                raise Interrupted(interruption)

        sandbox = {**self._isolation.for_report(), "memory_limit_bytes": self._settings.memory_limit_bytes}
        try:
            folder = lay_out(self._settings.jobs_folder, claim.work, self._storage, sandbox=sandbox, check=check)
            check()
        except Interrupted as interrupted:
            return interrupted.ending
        except CannotLayOut as reason:
            return Failed(reason.error)
        self._reached("laid_out")
        return self._run_in(folder, claim, lease)

    def _run_in(self, folder: Path, claim: Claim, lease: Lease) -> Ending:
        runner = RunnerProcess(
            self._runner,
            folder,
            isolation=self._isolation,
            largest_file_bytes=self._settings.disk_limit_bytes,
        )
        try:
            log.info("runner.started", pid=runner.pid)
            progress = ProgressReporter(runner.progress, self._database, lease)
            ending = self._watch(runner, folder, progress, claim, lease)
            if isinstance(ending, Cancelled | GivenBack):
                runner.ask_to_end(grace_seconds=self._settings.cancel_grace_seconds)
            runner.kill()  # also what a runner that ended by itself left running
            progress.close()
            if ending is not None:
                return ending
            self._reached("runner_ended")
            return self._judge(folder, claim, runner)
        finally:
            runner.kill()
            runner.close()

    def _watch(
        self, runner: RunnerProcess, folder: Path, progress: ProgressReporter, claim: Claim, lease: Lease
    ) -> Ending | None:
        """Wait for a reason to end the runner; None if it ends by itself."""
        check_memory_at = 0.0
        is_told_to_finish = False
        while runner.wait(LOOK_SECONDS) is None:
            if interruption := self._interruption(claim, lease):
                return interruption
            if lease.finish_requested and not is_told_to_finish:
                is_told_to_finish = ask_to_finish(folder)
            if progress.silent_seconds > self._settings.stall_seconds:
                return Failed(stalled(self._settings.stall_seconds))
            if time.monotonic() >= check_memory_at:
                check_memory_at = time.monotonic() + MEMORY_CHECK_SECONDS
                runner.trim_log()
                if runner.resident_bytes() > self._settings.memory_limit_bytes:
                    return Failed(out_of_memory(self._settings.memory_limit_bytes))
        return None

    def _interruption(self, claim: Claim, lease: Lease) -> Ending | None:
        """Why the job has to end now, the weightiest reason first."""
        if lease.is_lost:
            return Fenced()
        if lease.cancel_requested:
            return Cancelled()
        if self._stopping.is_set():
            return GivenBack()
        if time.monotonic() > claim.ends_at:
            return Failed(deadline_exceeded(claim.deadline_seconds))
        return None

    def _judge(self, folder: Path, claim: Claim, runner: RunnerProcess) -> Ending:
        """What a runner that ended by itself has come to."""
        code = runner.exit_code
        try:
            if code < 0:
                raise NoResult  # noqa: TRY301 - whatever it wrote before it was killed doesn't count
            outcome = read_outcome(folder, claim.work.kind)
            if outcome.error is not None:
                if outcome.error.code == ErrorCode.INTERNAL:
                    log.warning("runner.failed", log_tail=runner.log_tail())
                return Failed(outcome.error)
            artifacts = store_outputs(folder, outcome.outputs, self._storage, max_bytes=self._settings.disk_limit_bytes)
        except NoResult:
            log.warning("runner.crashed", exit_code=code, log_tail=runner.log_tail())
            return AttemptLost(crashed(code))
        except ResultRefused as reason:
            log.warning("runner.result_refused", reason=str(reason), log_tail=runner.log_tail())
            return Failed(result_refused(reason))
        except OSError as full:
            if full.errno not in DISK_FULL_ERRORS:
                raise
            log.warning("job.outputs_not_stored", reason=full.strerror)
            return Failed(DISK_FULL)
        self._reached("artifacts_stored")
        return Succeeded(outcome, artifacts)

    def _conclude(self, claim: Claim, lease: Lease, ending: Ending) -> None:
        """Write the ending, unless the job is not ours any more; keep trying while it is and the database is away."""
        job_id = claim.work.job_id
        while not (isinstance(ending, Fenced) or lease.is_lost):
            try:
                with self._database.writing() as session:
                    state = self._record(session, job_id, claim.token, ending).state
            except LeaseLost:
                break
            except DATABASE_AWAY as away:
                log.warning("job.end_not_written", reason=type(away).__name__)
                time.sleep(DATABASE_RETRY_SECONDS)
                continue
            log.info("job.attempt_ended", ending=type(ending).__name__, state=state)
            self._reached("committed")
            if state in FINAL:
                remove_folders_of(self._settings.jobs_folder, job_id)
            return
        log.warning("job.lease_lost", ending=type(ending).__name__)

    def _record(self, session: Session, job_id: str, token: str, ending: OwnEnding) -> JobRow:
        match ending:
            case Succeeded(outcome, artifacts):
                found = outcome.model or outcome.dataset
                inspection = None if found is None else found.model_dump(mode="json")
                return succeed_job(
                    session, job_id, token, artifacts=artifacts, verdict=outcome.verdict, inspection=inspection
                )
            case Failed(error):
                return fail_job(session, job_id, token, error)
            case AttemptLost(error):
                delay = self._settings.retry_delay_seconds
                return lose_attempt(session, job_id, token, error, retry_delay_seconds=delay)
            case Cancelled():
                return finish_cancel(session, job_id, token)
            case GivenBack():
                return give_back_job(session, job_id, token)
            case _:
                assert_never(ending)


def _as_claim(session: Session, job: JobRow) -> Claim:
    model, datasets = inputs_of(session, job)
    assert job.lease_token is not None and job.started_at is not None  # just claimed
    ends = job.started_at + timedelta(seconds=job.deadline_seconds)  # counted from the first attempt's start
    return Claim(
        work=Work(
            job_id=job.id,
            attempt=job.attempt,
            kind=job.kind,
            request=job.request,
            model=None if model is None else _as_upload(model),
            datasets={role: _as_upload(row) for role, row in datasets.items()},
        ),
        token=job.lease_token,
        deadline_seconds=job.deadline_seconds,
        ends_at=time.monotonic() + (ends - now(session)).total_seconds(),
    )


def _as_upload(row: ModelRow | DatasetRow) -> Upload:
    return Upload(sha256=row.sha256, filename=row.filename)
