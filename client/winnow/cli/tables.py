"""Lists and reports, for reading."""

import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from winnow.errors import FieldError
from winnow.resources import Document, Job, Upload

Number = int | float


def uploads_table(uploads: Iterable[Upload]) -> Table:
    table = _table("id", "state", "file", ">bytes", "uploaded")
    for upload in uploads:
        table.add_row(
            upload.id, upload.state, Text(upload.filename), f"{upload.size_bytes:,}", _moment(upload.document)
        )
    return table


def jobs_table(jobs: Iterable[Job]) -> Table:
    table = _table("id", "state", ">done", "submitted", "verdict or error")
    for job in jobs:
        ending = job.verdict or (job.error or {}).get("message") or ""
        table.add_row(job.id, job.state, f"{job.progress:.0%}", _moment(job.document), Text(ending))
    return table


def steps_table(steps: Document) -> Table:
    table = _table("step", "needs", "what it does", "options and their defaults")
    for step in steps["items"]:
        defaults = (f"{name}={json.dumps(value)}" for name, value in step["defaults"].items())
        table.add_row(step["kind"], step["needs"], Text(step["description"]), Text("\n".join(defaults)))
    return table


def check_view(answer: Document) -> RenderableType:
    """Whether a job could run, what it would touch, and roughly what it would need."""
    if not answer["valid"]:
        faults = (FieldError.from_document(fault) for fault in answer["errors"])
        return Group(Text("This job can't run:"), *(Text(f"  {fault}") for fault in faults))
    lines = ["This job can run."]
    lines += [f"{kind} may change {', '.join(layers)}" for kind, layers in answer["touched_layers"].items()]
    lines += [f"{name.replace('_', ' ')}: {value}" for name, value in (answer["estimate"] or {}).items()]
    return Text("\n".join(lines))


def upload_summary(upload: Upload) -> str:
    """One upload in a line: what a worker found in it."""
    found = upload.document.get("inspection") or {}
    if "layers" in found:
        text = f"{len(found['layers'])} layers, {found['parameters']:,} parameters, {found['macs']:,} multiply-adds"
    elif "images" in found:
        shape = "×".join(map(str, found["shape"]))
        text = f"{found['images']:,} images of {shape} {found['dtype']}, {'labelled' if found['labelled'] else 'no labels'}"
    else:
        text = upload.state
    return f"{upload.id}  {upload.filename}: {text}"


def report_view(report: Document) -> RenderableType:
    """The report as one page: verdict, before and after, files, steps, warnings."""
    parts: list[RenderableType] = [Text(report["verdict"]["sentence"], style="bold"), Text()]
    parts += [Text(f"missed: {missed}", style="red") for missed in report["verdict"]["missed"]]
    parts += [_before_after(report), Text(), _files(report), Text(), _steps(report)]
    notes = [f"{file['name']}: {note}" for file in report["files"] for note in file["notes"]]
    warnings = [*notes, *report["warnings"]]
    warnings += [f"{data['role']} data: {warning}" for data in report["data"] for warning in data["warnings"]]
    warnings += [f"{step['kind']}: {warning}" for step in report["steps"] for warning in step["warnings"]]
    if warnings:
        parts += [Text(), Text("Notes and warnings"), *(Text(f"- {warning}") for warning in warnings)]
    return Group(*parts)


def _before_after(report: Document) -> Table:
    table = _table("", ">before", ">after", ">change")
    before, after, change = report["accuracy_before"], report["accuracy_after"], report["change"]
    if before and after:
        label = {"top1": "accuracy", "agreement": "agreement"}[after["measure"]]
        table.add_row(
            f"{label} ({after['role']}, n={after['images']:,})",
            f"{before['percent']:.2f} %",
            f"{after['percent']:.2f} %",
            _change(change) if change else "",
        )
    for file in report["files"]:
        table.add_row(Text(f"{file['name']}, bytes"), *_pair(report["original_size"]["bytes"], file["size"]["bytes"]))
    rows = {
        "parameters": "parameters",
        "nonzeros": "non-zero parameters",
        "weight_bits": "bits of weights",
        "multiplications": "multiplications",
        "effective_multiplications": "multiplications by non-zeros",
        "bitmap_bytes": "weights as bitmap, bytes",
        "csr_bytes": "weights as CSR, bytes",
    }
    for field, label in rows.items():
        table.add_row(label, *_pair(report["before"][field], report["after"][field]))
    return table


def _files(report: Document) -> Table:
    table = _table("file", ">bytes", ">accuracy", ">same class", ">median ms", ">original ms", ">speed-up")
    for file in report["files"]:
        accuracy, latency, original = file["accuracy"], file["latency"], file["latency_original"]
        table.add_row(
            Text(file["name"]),
            f"{file['size']['bytes']:,}",
            f"{accuracy['percent']:.2f} %" if accuracy else "–",
            _or_dash(file["agreement_percent"], "{:.2f} %"),
            f"{latency['median_ms']:.3f}" if latency else "–",
            f"{original['median_ms']:.3f}" if original else "–",
            _or_dash(file["speedup"], "{:.2f}×"),
        )
    return table


def _steps(report: Document) -> Table:
    table = _table("step", ">seconds", ">before", ">after", ">predicted", ">measured")
    for step in report["steps"]:
        before, after = step["accuracy_before"], step["accuracy_after"]
        table.add_row(
            step["kind"],
            f"{step['seconds']:.1f}",
            f"{before['percent']:.2f} %" if before else "–",
            f"{after['percent']:.2f} %" if after else "–",
            _or_dash(step["predicted_change_pp"], "{:+.2f} pp"),
            _or_dash(step["measured_change_pp"], "{:+.2f} pp"),
        )
    return table


def _table(*headings: str) -> Table:
    """A table; headings that begin with > stand over numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        is_number = heading.startswith(">")
        table.add_column(
            heading.removeprefix(">"),
            justify="right" if is_number else "left",
            no_wrap=is_number or heading in ("id", "state"),
            overflow="fold",
        )
    return table


def _change(change: Document) -> str:
    low, high = change["interval_pp"]
    return f"{change['change_pp']:+.2f} pp [{low:+.2f}, {high:+.2f}]"


def _pair(before: Number, after: Number) -> tuple[str, str, str]:
    change = "same" if after == before else f"{(after - before) / before:+.1%}" if before else ""
    return f"{before:,}", f"{after:,}", change


def _or_dash(value: Any, pattern: str) -> str:  # a number, or null
    return "–" if value is None else pattern.format(value)


def _moment(document: Document) -> str:
    return str(document.get("created_at", ""))[:19].replace("T", " ")


def print_page(console: Console, content: RenderableType) -> None:
    """Print for reading; wide tables keep their width in a file or pipe."""
    console.print(content, soft_wrap=not console.is_terminal)
