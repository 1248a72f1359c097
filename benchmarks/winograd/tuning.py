"""Finds the best blocking of every candidate at every shape, fits the cost model, and writes winograd/selection_table.py.

Layers are timed in chains of four with weights of their own, as in a network: called over and over, a layer would find its weights
in the caches, and tiles of many positions would look better than they are. Before each run of a layer of a large network, so many
other bytes are read as such a network reads between two uses of a weight. Rows of the same processor that are not measured again
stay. Blockings are tried one size after the other, beginning
with what the library chooses by itself. Then all candidates take turns, each with its best blocking and with the library's, so that
a machine that is busy for a while treats them alike; a blocking that is not at least 5 % faster is not worth an entry. Coefficients
are fitted to the relative error, so that small layers count as much as large ones.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from winograd.selection import CANDIDATES, Coefficients, Measured, Row, Shape, Table, default_table, work

from benchmarks.winograd import results
from benchmarks.winograd.problems import LAYERS, SMALL_LAYERS, Problem, problem, write_problem
from benchmarks.winograd.turns import REPOSITORY, Process

TABLE = REPOSITORY / "winograd" / "winograd" / "selection_table.py"
CHAIN = 4  # layers
SWEEP = (
    100_000_000  # bytes: about the transformed weights of ResNet-18; those of a network for CIFAR-10 stay in the caches
)
MOST_OPERATIONS = 8_000_000_000  # of one layer
TILES, FILTERS, SHARED = (14, 28, 112, 448), (32, 256), (0, 1)
WORTH_AN_ENTRY = 0.95
TURNS = 5  # of which the fastest counts: a busy machine takes up to twice as long
GUESSED = Coefficients(5000.0, 0.3, 0.3, 0.3, 0.01, 0.01)
PULL = 0.3  # of the guess, against the relative error of one measurement


Blocking = tuple[int, int, int]
OWN_CHOICE = (0, 0, -1)


class Measure(Protocol):
    """Milliseconds of a layer by those variants that can run, which take so many turns."""

    def __call__(self, variants: Sequence[str], turns: int = 1) -> dict[str, float]: ...


def tune(
    threads: Sequence[int], batches: Sequence[int], layers: Sequence[str] | None, seconds: float, path: Path
) -> None:
    rows = []
    for count in threads:
        process = Process("winograd", count, sys.executable)
        with tempfile.TemporaryDirectory() as name:
            for one in _problems(layers or [*LAYERS, *SMALL_LAYERS], batches):
                write_problem(one, Path(name), onnx=False)
                sweep = 0 if one.layer in SMALL_LAYERS else SWEEP
                measure = _measure(process, Path(name), seconds, one.chain, sweep)
                searched = {name: _blockings(measure, name, count) for name in CANDIDATES}
                found = _by_turns(measure, searched)
                shape = Shape(one.channels, one.filters, one.size, one.size, batch=one.batch)
                rows.append(Row(count, shape, found))
                print(f"{one.layer}, batch {one.batch}, {count} threads: {found}", file=sys.stderr, flush=True)
        process.close()
    _write(rows, path)


def _problems(layers: Sequence[str], batches: Sequence[int]) -> Iterator[Problem]:
    """Chains where the filters of a layer can be the next one's channels; what is too large is left to the model."""
    for layer in layers:
        for batch in batches:
            alone = problem(layer, batch)
            if alone.operations <= MOST_OPERATIONS:
                yield problem(layer, batch, CHAIN) if alone.channels == alone.filters else alone


def _measure(process: Process, folder: Path, seconds: float, layers: int, sweep: int) -> Measure:
    def measure(variants: Sequence[str], turns: int = 1) -> dict[str, float]:
        answers = process.ask({"prepare": str(folder), "variants": list(variants)})
        able = [variant for variant in variants if not answers[variant].get("refused")]
        taken: dict[str, list[float]] = {variant: [] for variant in able}
        for variant in able * turns:
            answer = process.ask({"time": variant, "seconds": seconds, "sweep": sweep})
            taken[variant].append(median(answer["milliseconds"]))
        return {variant: min(milliseconds) / layers for variant, milliseconds in taken.items()}

    return measure


def _blockings(measure: Measure, candidate: str, threads: int) -> list[Blocking]:
    """The library's choice and the fastest that was found; nothing if the candidate can't run."""
    if candidate == "direct":
        return [OWN_CHOICE]

    def timed(blockings: Sequence[Blocking]) -> dict[Blocking, float]:
        names = {_named(candidate, blocking): blocking for blocking in blockings}
        return {names[name]: milliseconds for name, milliseconds in measure(list(names)).items()}

    found = timed([OWN_CHOICE])
    if not found:
        return []
    found |= timed([(tiles, 0, shared) for tiles in TILES for shared in (SHARED if threads > 1 else (0,))])
    tiles, _, shared = min(found, key=found.__getitem__)
    found |= timed([(tiles, filters, shared) for filters in FILTERS])
    return list(dict.fromkeys([OWN_CHOICE, min(found, key=found.__getitem__)]))


def _by_turns(measure: Measure, searched: Mapping[str, Sequence[Blocking]]) -> dict[str, Measured]:
    variants = {
        (name, blocking): _named(name, blocking) for name, blockings in searched.items() for blocking in blockings
    }
    milliseconds = measure(list(variants.values()), TURNS)
    found = {}
    for name, blockings in searched.items():
        taken = {blocking: milliseconds[variants[name, blocking]] for blocking in blockings}
        if taken:
            own, best = taken[OWN_CHOICE], min(taken, key=taken.__getitem__)
            is_worth_it = taken[best] < WORTH_AN_ENTRY * own
            found[name] = Measured(round(taken[best], 4), best) if is_worth_it else Measured(round(own, 4))
    return found


def _named(candidate: str, blocking: Blocking) -> str:
    return candidate if candidate == "direct" else f"{candidate}@{','.join(map(str, blocking))}"


def _write(rows: Sequence[Row], path: Path) -> None:
    before, processor = default_table(), results.processor()
    kept = before.rows if before.machine == processor else ()
    measured = {(row.threads, row.shape): row for row in (*kept, *rows)}
    coefficients = fitted(list(measured.values()))
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    table = Table("cpu", processor, date, coefficients, tuple(measured.values()))
    path.write_text(source("CPU", table, "benchmarks.winograd tune"))


def fitted(rows: Sequence[Row], guess: Coefficients = GUESSED) -> Coefficients:
    """Coefficients with the least relative errors; what the rows say little about stays near what was guessed."""
    guessed = np.array(guess.as_tuple())
    amounts = [
        np.array(work(row.shape, name, row.threads)) / (1e6 * measured.milliseconds)
        for row in rows
        for name, measured in row.measured.items()
    ]
    a = np.concatenate([amounts, PULL * np.diag(1 / guessed)])
    b = np.concatenate([np.ones(len(amounts)), PULL * np.ones(len(guessed))])
    found = least_squares_without_negatives(a, b)
    return Coefficients(*map(float, np.maximum(found, 0.01 * guessed)))


def least_squares_without_negatives(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x >= 0 for which |a x - b| is least, by descending one coordinate after the other."""
    scale = np.linalg.norm(a, axis=0)
    scale[scale == 0] = 1
    scaled = a / scale
    gram, right = scaled.T @ scaled, scaled.T @ b
    x = np.zeros(a.shape[1])
    for _ in range(20_000):
        for i in range(len(x)):
            if gram[i, i] > 0:
                x[i] = max(0.0, x[i] + (right[i] - gram[i] @ x) / gram[i, i])
    solution: NDArray[np.float64] = x / scale
    return solution


def source(name: str, table: Table, command: str) -> str:
    """The module that defines a table."""
    lines = [
        f'"""What selection.py knows of {table.device}. Written by `python -m {command}`; edit nothing by hand."""',
        "",
        "from winograd.selection import Coefficients, Measured, Row, Shape, Table",
        "",
        "# fmt: off",
        f"{name} = Table(",
        f"    device={table.device!r},",
        f"    machine={table.machine!r},",
        f"    date={table.date!r},",
        "    coefficients=Coefficients(",
        *(f"        {name}={value:.4g}," for name, value in vars(table.coefficients).items()),
        "    ),",
        "    rows=(",
    ]
    for row in table.rows:
        s = row.shape
        lines.append(
            f"        Row({row.threads}, Shape({s.channels}, {s.filters}, {s.height}, {s.width}, {s.batch}), {{"
        )
        for name, measured in row.measured.items():
            blocking = f", {measured.blocking}" if measured.blocking else ""
            lines.append(f'            "{name}": Measured({measured.milliseconds:g}{blocking}),')
        lines.append("        }),")
    lines.append("    ),")
    lines += ["    only_near=True,"] if table.only_near else []
    return "\n".join([*lines, ")", ""])
