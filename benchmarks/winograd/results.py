"""What was measured, kept as JSON and shown as Markdown."""

import json
import math
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.tables import table
from benchmarks.winograd import roofline
from benchmarks.winograd.ours import parse, selected
from benchmarks.winograd.problems import Problem
from benchmarks.winograd.roofline import Peak
from benchmarks.winograd.turns import Timing


@dataclass(frozen=True)
class Cell:
    """One problem with that many threads: the timing of each runner by its name."""

    problem: Problem
    threads: int
    timings: dict[str, Timing]

    def best(self, names: Iterable[str]) -> tuple[str, float] | None:
        """The fastest of those that were measured, and its milliseconds."""
        measured = [
            (self.timings[name].best, name) for name in names if name in self.timings and self.timings[name].medians
        ]
        if not measured:
            return None
        milliseconds, name = min(measured)
        return name, milliseconds


@dataclass
class Measurement:
    """All cells of a run, and how they came about."""

    command: str
    date: str
    processor: str
    versions: dict[str, str]
    peers: list[str]
    ours: list[str]
    load_before: float
    load_after: float = 0.0
    peaks: list[Peak] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    peers_from: str | None = None  # when peers were not measured now but taken from a file: its date and command

    def peak(self, threads: int) -> Peak | None:
        return next((peak for peak in self.peaks if peak.threads == threads), None)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))


def begin(peers: Sequence[str], ours: Sequence[str], versions: Mapping[str, str]) -> Measurement:
    command = "python -m benchmarks.winograd " + shlex.join(sys.argv[1:])
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    return Measurement(command, date, processor(), dict(versions), list(peers), list(ours), load())


def read(path: Path) -> Measurement:
    stored = json.loads(path.read_text())
    stored["peaks"] = [Peak(**peak) for peak in stored["peaks"]]
    stored["cells"] = [
        Cell(
            Problem(**cell["problem"]),
            cell["threads"],
            {name: Timing(**timing) for name, timing in cell["timings"].items()},
        )
        for cell in stored["cells"]
    ]
    return Measurement(**stored)


def with_stored_peers(measured: Measurement, stored: Measurement) -> None:
    """Fill in the peers' timings of a run made before, for the same problems and threads."""
    known = {(cell.problem, cell.threads): cell for cell in stored.cells}
    for cell in measured.cells:
        before = known.get((cell.problem, cell.threads))
        if before:
            cell.timings.update({name: before.timings[name] for name in stored.peers if name in before.timings})
    measured.peers, measured.peers_from = stored.peers, f"{stored.date}, {stored.command}, on {stored.processor}"


def report(measured: Measurement) -> str:
    """Everything as Markdown: one table of times, one of ratios, one of errors for each number of threads and batch."""
    parts = [_head(measured)]
    groups = dict.fromkeys((cell.threads, cell.problem.batch, cell.problem.chain) for cell in measured.cells)
    for threads, batch, chain in groups:
        cells = [c for c in measured.cells if (c.threads, c.problem.batch, c.problem.chain) == (threads, batch, chain)]
        layers = f", chains of {chain} layers" if chain > 1 else ""
        parts.append(f"### {threads} thread{'s' * (threads > 1)}, batch {batch}{layers}")
        parts += [_times(measured, cells), _ratios(measured, cells), _errors(measured, cells)]
    parts.append(_means(measured, measured.cells))
    refusals = {f"{name}: {t.refused}" for cell in measured.cells for name, t in cell.timings.items() if t.refused}
    parts += [f"Not run: {refusal}" for refusal in sorted(refusals)]
    return "\n\n".join(parts)


def report_of_networks(measured: Measurement) -> str:
    """One table of times, of how many times faster ours is than the fastest other, and of errors."""
    names, rows, errors = [*measured.peers, *measured.ours], [], []
    for cell in measured.cells:
        head = f"{cell.problem.layer}@{cell.problem.size}, batch {cell.problem.batch}, {cell.threads} thread(s)"
        ratio = _ratio(cell.best(measured.peers), cell.best(measured.ours))
        rows.append((head, *(_time(cell.timings.get(name)) for name in names), ratio))
        errors.append((head, *(_error(cell.timings.get(name)) for name in names)))
    times = "Milliseconds:\n\n" + table(("network", *names, "times faster"), rows)
    deviations = "Deviation from float64, L2 / largest over the largest output:\n\n" + table(
        ("network", *names), errors
    )
    refusals = sorted(
        {f"Not run: {name}: {t.refused}" for c in measured.cells for name, t in c.timings.items() if t.refused}
    )
    return "\n\n".join([_head(measured), times, deviations, *refusals])


def _head(measured: Measurement) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in measured.versions.items())
    passes = max((len(t.medians) for cell in measured.cells for t in cell.timings.values()), default=0)
    runs = [t.runs for cell in measured.cells for t in cell.timings.values() if t.runs]
    lines = [
        f"`{measured.command}` ({measured.date} UTC, load {measured.load_before:.1f} before, {measured.load_after:.1f} after).",
        f"{measured.processor}; {versions}.",
        f"Least of the medians of {passes} passes, {min(runs, default=0)} to {max(runs, default=0)} runs; in brackets how much "
        "longer the slowest pass took. Engines took turns, each in a process of its own, the others stopped.",
    ]
    if measured.peers_from:
        lines.append(f"Peers were not measured now; their figures are of {measured.peers_from}.")
    lines += [
        f"Peak with {peak.threads} thread(s): {peak.gflops:.0f} GFLOP/s; reads: last cache {peak.cache_gbs:.0f} GB/s, "
        f"memory {peak.memory_gbs:.0f} GB/s."
        for peak in measured.peaks
    ]
    return "\n".join(lines)


def _times(measured: Measurement, cells: Sequence[Cell]) -> str:
    names = [*measured.peers, *measured.ours]
    rows = [(cell.problem.layer, *(_time(cell.timings.get(name)) for name in names)) for cell in cells]
    return "Milliseconds:\n\n" + table(("layer", *names), rows)


def _ratios(measured: Measurement, cells: Sequence[Cell]) -> str:
    """Times of the best peer over ours, and how near the fastest of each kind is to its roofline."""
    classes = _classes(measured)
    rows = []
    for cell in cells:
        peer, ours = cell.best(measured.peers), [cell.best(names) for _, names in classes]
        ratios = [_ratio(peer, one) for one in ours]
        nearness = [_percent_of_roofline(cell, one, measured.peak(cell.threads)) for one in ours]
        rows.append((cell.problem.layer, peer[0] if peer else "–", *ratios, *nearness))
    rows.append(("geometric mean", "", *_mean_ratios(measured, cells), *[""] * len(classes)))
    heads = [head for head, _ in classes]
    head = ("layer", "best peer", *heads, *(f"{head}: of its roofline" for head in heads))
    return "Times faster than the best peer, and by which variant:\n\n" + table(head, rows)


def _errors(measured: Measurement, cells: Sequence[Cell]) -> str:
    names = [*measured.peers, *measured.ours]
    rows = [(cell.problem.layer, *(_error(cell.timings.get(name)) for name in names)) for cell in cells]
    return "Deviation from float64, L2 / largest over the largest output:\n\n" + table(("layer", *names), rows)


def _means(measured: Measurement, cells: Sequence[Cell]) -> str:
    """Geometric means over all cells: against the best peer, and against oneDNN with prepacked weights."""
    rows = [("best peer", *_mean_ratios(measured, cells))]
    if "onednn" in measured.peers:
        rows.append(("onednn", *_mean_ratios(measured, cells, peers=["onednn"])))
    heads = [head for head, _ in _classes(measured)]
    return f"### Geometric means over all {len(cells)} cells\n\n" + table(("times faster than", *heads), rows)


def _classes(measured: Measurement) -> list[tuple[str, list[str]]]:
    """What is compared: groups of variants, of which the fastest counts in each cell."""
    winograd = [(name, parse(name)) for name in measured.ours if name not in ("direct", "selection")]

    def those(percent: int, *, largest: int) -> list[str]:
        return [name for name, variant in winograd if variant.pruned_percent == percent and variant.m <= largest]

    classes = [
        ("selection", [name for name in measured.ours if name == "selection"]),
        ("F2/F4", those(0, largest=4)),
        ("any m", those(0, largest=7)),
        ("F2/F4, 25 % pruned", those(25, largest=4)),
        ("F2/F4, 50 % pruned", those(50, largest=4)),
    ]
    return [(head, names) for head, names in classes if names]


def _mean_ratios(measured: Measurement, cells: Sequence[Cell], peers: Sequence[str] | None = None) -> list[str]:
    means = []
    for _, names in _classes(measured):
        pairs = [(cell.best(peers or measured.peers), cell.best(names)) for cell in cells]
        ratios = [peer[1] / ours[1] for peer, ours in pairs if peer and ours]
        means.append(f"**{geometric_mean(ratios):.2f}**" if ratios else "–")
    return means


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _percent_of_roofline(cell: Cell, ours: tuple[str, float] | None, peak: Peak | None) -> str:
    if peak is None or ours is None:
        return "–"
    name, milliseconds = ours
    if name == "selection":
        name = selected(cell.problem, cell.threads)
    if name == "direct":
        return f"{100 * roofline.direct_ms(cell.problem, peak) / milliseconds:.0f} %"
    variant = parse(name)
    pruned = variant.pruned_percent / 100
    least = roofline.winograd_ms(cell.problem, variant.m, peak, pruned=pruned, from_filters=variant.from_filters)
    return f"{100 * least / milliseconds:.0f} %"


def _ratio(peer: tuple[str, float] | None, ours: tuple[str, float] | None) -> str:
    return f"{peer[1] / ours[1]:.2f} ({ours[0]})" if peer and ours else "–"


def _time(timing: Timing | None) -> str:
    return f"{timing.best:.3f} (+{100 * timing.spread:.0f} %)" if timing and timing.medians else "–"


def _error(timing: Timing | None) -> str:
    return f"{timing.l2:.0e} / {timing.largest:.0e}" if timing and timing.l2 is not None else "–"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            fields = dict(_fields())
            return f"{line.split(':')[1].strip()} (family {fields.get('cpu family')}, model {fields.get('model')})"
    return platform.processor()


def _fields() -> Iterable[tuple[str, str]]:
    for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


def load() -> float:
    return float(Path("/proc/loadavg").read_text().split()[0])
