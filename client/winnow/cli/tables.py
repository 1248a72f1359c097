"""Lists and reports, for reading."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from winnow.errors import FieldError
from winnow.resources import Document, Job, Upload

Number = int | float

MOST_CANDIDATES: Final = 15  # rows of a search


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
    estimate = {name: value for name, value in (answer["estimate"] or {}).items() if value is not None}
    lines += [f"{name.replace('_', ' ')}: {_estimated(value)}" for name, value in estimate.items()]
    return Text("\n".join(lines))


def _estimated(value: Any) -> str:  # whatever JSON can say
    match value:
        case bool():
            return "yes" if value else "no"
        case {"at_least": least, "at_most": most}:
            return f"{least:,} to {most:,}"
        case _:
            return str(value)


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
    """The report as one page: verdict, before and after, files, the search if there was one, steps, warnings."""
    parts: list[RenderableType] = [Text(report["verdict"]["sentence"], style="bold"), Text()]
    parts += [Text(f"missed: {missed}", style="red") for missed in report["verdict"]["missed"]]
    parts += [_before_after(report), Text(), _files(report), Text()]
    if report.get("search"):
        parts += [*_search(report["search"]), Text()]
    parts.append(_steps(report))
    notes = [f"{file['name']}: {note}" for file in report["files"] for note in file["notes"]]
    warnings = [*notes, *report["warnings"]]
    warnings += [f"{data['role']} data: {warning}" for data in report["data"] for warning in data["warnings"]]
    warnings += [f"{step['kind']}: {warning}" for step in report["steps"] for warning in step["warnings"]]
    warnings += [f"search: {abandoned}" for abandoned in (report.get("search") or {}).get("abandoned", ())]
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


def _search(search: Document) -> list[RenderableType]:
    """What was tried: the uploaded model, then those that no other beats, then as many others as fit on a page."""
    endings = {
        "exhausted": "until nothing was left to try",
        "deadline": "until time was up",
        "finished": "until it was told to finish",
    }
    ending = endings[search["ended"]]
    tried = [candidate for candidate in search["candidates"] if candidate["number"] != search["original"]["number"]]
    shown = _worth_showing(search, tried)
    confirming = search.get("confirming_images", 0)
    table = _table(
        ">tried",
        "steps",
        ">drop",
        *([">confirming"] if confirming else []),
        ">bytes",
        ">median ms",
        ">bit operations",
        "",
    )
    for candidate in [search["original"], *shown]:
        table.add_row(
            str(candidate["number"]),
            Text(_recipe_words(candidate["recipe"])),
            f"{candidate['drop_pp']:.2f} pp",
            *([_or_dash(candidate["confirming_drop_pp"], "{:.2f} pp")] if confirming else []),
            f"{candidate['bytes']:,}",
            _or_dash(candidate["latency_ms"], "{:.3f}"),
            f"{candidate['operations']:,}",
            _marks(candidate, search),
        )
    heading = Text(
        f"Search: {len(tried)} recipes tried in {search['seconds']:.0f} s, {ending}; drops on selection images"
        + (f", of which {confirming:,} were kept back to confirm" if confirming else "")
    )
    left_out = len(tried) - len(shown)
    return [heading, table, *([Text(f"and {left_out} more in the report as JSON")] if left_out else [])]


def _worth_showing(search: Document, tried: list[Document]) -> list[Document]:
    """The delivered one and the front first, the others as they were tried; not more than a page holds."""
    front = [search["delivered"], *search["front"]]
    ordered = sorted(tried, key=lambda candidate: (candidate["number"] not in front, candidate["number"]))
    kept = sorted(ordered, key=lambda candidate: candidate["number"] != search["delivered"])[: MOST_CANDIDATES - 1]
    return [candidate for candidate in ordered if candidate in kept]


def _marks(candidate: Document, search: Document) -> str:
    number = candidate["number"]
    marks = {
        "delivered": number == search["delivered"],
        "front": number in search["front"],
        "not confirmed": number in search.get("unconfirmed", ()),
        "misses the goal": not candidate["meets_goal"] and number not in search.get("unconfirmed", ()),
    }
    return ", ".join(mark for mark, is_set in marks.items() if is_set)


def _recipe_words(recipe: list[Document]) -> str:
    return ", then ".join(map(_step_words, recipe)) or "the uploaded model"


def _step_words(step: Document) -> str:
    """A step by the settings that tell most about it, such as `quantize_fixed_point 8 bits`."""
    words = [step["kind"]]
    match step:
        case {"kind": "quantize_fixed_point"}:
            words.append(_weight_bits_words(step.get("weight_bits", 8), (step.get("layer_bits") or {}).values()))
        case {"kind": "assign_precision", "bits": bits}:
            words.append("/".join(map(str, bits)) + " bits")
        case {"stop": {"target_sparsity": float(sparsity)}}:
            words.append(f"{sparsity:.0%} zeros")
        case {"rate": float(rate)}:
            words.append(f"{rate:.0%} of positions")
        case {"max_drop_pp": drop}:
            words.append(f"{drop} pp")
        case {"epochs": epochs}:
            words.append(f"{epochs} epochs")
    return " ".join(words) + (" + training" if step.get("training") else "")


def _weight_bits_words(of_most: int, of_single_layers: Iterable[int]) -> str:
    """Such as `8 bits, 4 in 12 layers, 2 in 3 layers`."""
    counts = sorted(Counter(of_single_layers).items(), reverse=True)
    exceptions = (f"{bits} in {count} layer{'s' if count > 1 else ''}" for bits, count in counts)
    return ", ".join([f"{of_most} bits", *exceptions])


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
