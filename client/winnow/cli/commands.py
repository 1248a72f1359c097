"""What each command does. Results go to standard output; progress and errors to standard error."""

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from rich.console import Console

from winnow.cli import tables
from winnow.cli.progress import show_job, transfer
from winnow.cli.requests import Uploader, request_of
from winnow.client import Client
from winnow.errors import FileMissing, WinnowError
from winnow.resources import Document, Job, Kind, Upload


class ExitCode(IntEnum):
    """How a command ended, for scripts."""

    OK = 0
    JOB_FAILED = 1  # or was cancelled; or an upload was rejected; or a download arrived damaged
    USAGE = 2
    REFUSED = 3
    NO_SERVER = 4
    LIMIT_MISSED = 5  # the job succeeded, but a limit was not kept
    INTERRUPTED = 130


@dataclass(frozen=True)
class Session:
    """What every command needs."""

    client: Client
    out: Console
    progress: Console
    as_json: bool

    def show(self, document: Any, readable: Callable[[], Any]) -> None:  # JSON; what rich can print
        """Print for a program, or for a person."""
        if self.as_json:
            self.print_line(document)
        else:
            tables.print_page(self.out, readable())

    def print_line(self, document: Any) -> None:  # JSON
        """One JSON document, on one line of standard output."""
        self.out.print(json.dumps(document), markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Tell a person what goes on, on standard error."""
        self.progress.print(text, markup=False, highlight=False, soft_wrap=True)


Command = Callable[[Session, argparse.Namespace], ExitCode]


def upload(session: Session, arguments: argparse.Namespace) -> ExitCode:
    kind: Kind = "model" if arguments.kind == "model" else "dataset"
    uploaded = _upload(session, kind, arguments.file)
    if arguments.wait:
        uploaded = session.client.wait_ready(uploaded)
    session.show(uploaded.document, lambda: tables.upload_summary(uploaded))
    return ExitCode.OK


def models(session: Session, _arguments: argparse.Namespace) -> ExitCode:
    return _list_uploads(session, session.client.models())


def datasets(session: Session, _arguments: argparse.Namespace) -> ExitCode:
    return _list_uploads(session, session.client.datasets())


def jobs(session: Session, _arguments: argparse.Namespace) -> ExitCode:
    found = list(session.client.jobs())
    session.show([job.document for job in found], lambda: tables.jobs_table(found))
    return ExitCode.OK


def steps(session: Session, _arguments: argparse.Namespace) -> ExitCode:
    document = session.client.steps()
    session.show(document, lambda: tables.steps_table(document))
    return ExitCode.OK


def check(session: Session, arguments: argparse.Namespace) -> ExitCode:
    answer = session.client.check(_ready_request(session, arguments))
    session.show(answer, lambda: tables.check_view(answer))
    return ExitCode.OK if answer["valid"] else ExitCode.REFUSED


def submit(session: Session, arguments: argparse.Namespace) -> ExitCode:
    return _started(session, arguments, session.client.submit(_ready_request(session, arguments)))


def retry(session: Session, arguments: argparse.Namespace) -> ExitCode:
    return _started(session, arguments, session.client.retry(arguments.job))


def follow(session: Session, arguments: argparse.Namespace) -> ExitCode:
    return _follow_to_end(session, session.client.job(arguments.job), arguments)


def cancel(session: Session, arguments: argparse.Namespace) -> ExitCode:
    job = session.client.cancel(arguments.job)
    session.show(job.document, lambda: f"{job.id} is {job.state}")
    return ExitCode.OK


def finish(session: Session, arguments: argparse.Namespace) -> ExitCode:
    job = session.client.finish(arguments.job)
    ending = job.state if job.is_final else f"{job.state}, and ends with the best that it has found"
    session.show(job.document, lambda: f"{job.id} is {ending}")
    return ExitCode.OK


def download(session: Session, arguments: argparse.Namespace) -> ExitCode:
    paths = _download(session, arguments.job, arguments.output)
    session.show([str(path) for path in paths], lambda: "\n".join(map(str, paths)))
    return ExitCode.OK


def report(session: Session, arguments: argparse.Namespace) -> ExitCode:
    document = session.client.report(arguments.job)
    session.show(document, lambda: tables.report_view(document))
    return _kept(document)


def compress(session: Session, arguments: argparse.Namespace) -> ExitCode:
    """Everything in one go: upload, submit, follow, download, report."""
    wanted = request_of(arguments)
    job = session.client.submit(_with_ids(session, wanted))
    session.say(f"job {job.id}")
    job = _follow(session, job, arguments)
    if job.state != "succeeded":
        session.show({"job": job.document}, lambda: _ending(job))
        return ExitCode.JOB_FAILED
    output = arguments.output or Path(f"{Path(wanted['model']).stem}-compressed")
    paths = _download(session, job.id, output)
    document = session.client.report(job.id)
    session.show(
        {"job": job.document, "report": document, "files": [str(path) for path in paths]},
        lambda: tables.report_view(document),
    )
    session.say(f"saved in {output}")
    return _kept(document)


def _upload(session: Session, kind: Kind, path: Path) -> Upload:
    if not path.is_file():
        raise FileMissing(path)
    send = session.client.upload_model if kind == "model" else session.client.upload_dataset
    with transfer(session.progress, f"uploading {path.name}") as on_progress:
        return send(path, on_progress)


def _list_uploads(session: Session, uploads: Iterable[Upload]) -> ExitCode:
    found = list(uploads)
    session.show([upload.document for upload in found], lambda: tables.uploads_table(found))
    return ExitCode.OK


def _ready_request(session: Session, arguments: argparse.Namespace) -> Document:
    return _with_ids(session, request_of(arguments))


def _with_ids(session: Session, wanted: Document) -> Document:
    """The request with every file uploaded and read by a worker."""
    uploader = Uploader(lambda kind, path: _upload(session, kind, path))
    request = uploader.resolved(wanted)
    for uploaded in uploader.uploads:
        ready = session.client.wait_ready(uploaded)
        session.say(tables.upload_summary(ready))
    return request


def _started(session: Session, arguments: argparse.Namespace, job: Job) -> ExitCode:
    if not arguments.follow:
        session.show(job.document, lambda: job.id)
        return ExitCode.OK
    session.say(f"job {job.id}")
    return _follow_to_end(session, job, arguments)


def _follow(session: Session, job: Job, arguments: argparse.Namespace) -> Job:
    """Show the job until it has ended. It goes on when the user leaves, unless they asked for the opposite."""
    try:
        return show_job(session.progress, session.client.watch(job.id))
    except KeyboardInterrupt:
        _leave(session, job, cancel=arguments.cancel_on_interrupt)
        raise


def _list_events(session: Session, job: Job, arguments: argparse.Namespace) -> Job:
    """Print the job's events, a JSON object a line, until it has ended."""
    try:
        for event in session.client.follow(job.id):
            session.print_line({"event": asdict(event)})
    except KeyboardInterrupt:
        _leave(session, job, cancel=arguments.cancel_on_interrupt)
        raise
    return session.client.job(job.id)


def _leave(session: Session, job: Job, *, cancel: bool) -> None:
    if cancel:
        session.client.cancel(job.id)
        session.say(f"cancelled {job.id}")
        return
    ways = [f"see it with `winnow follow {job.id}`", f"stop it with `winnow cancel {job.id}`"]
    if job.document["request"].get("goal"):
        ways.append(f"have the best that it has found with `winnow finish {job.id}`")
    session.say(f"{job.id} goes on: {', '.join(ways)}")


def _follow_to_end(session: Session, job: Job, arguments: argparse.Namespace) -> ExitCode:
    if session.as_json:
        job = _list_events(session, job, arguments)
        session.print_line({"job": job.document})
    else:
        job = _follow(session, job, arguments)
        session.show(job.document, lambda: _ending(job))
    return _kept(session.client.report(job.id)) if job.state == "succeeded" else ExitCode.JOB_FAILED


def _ending(job: Job) -> str:
    error = job.error or {}
    reason = "\n".join(filter(None, (error.get("message"), error.get("hint"))))
    return job.verdict or f"{job.id} {job.state}" + (f": {reason}" if reason else "")


def _kept(report: Document) -> ExitCode:
    return ExitCode.OK if report["verdict"]["limits_kept"] else ExitCode.LIMIT_MISSED


def _download(session: Session, job_id: str, folder: Path | None) -> list[Path]:
    folder = folder or Path(job_id)
    paths = []
    for artifact in session.client.artifacts(job_id):
        path = folder / plain_name(artifact.name)
        with transfer(session.progress, f"downloading {artifact.name}") as on_progress:
            paths.append(session.client.download(artifact, path, on_progress))
    return paths


def plain_name(name: str) -> str:
    """The artifact's name. Whatever a server says, nothing is written outside the folder that the user named."""
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise WinnowError(f"the server calls an artifact {name!r}, which is no name of a file")
    return name
