"""Finds the best blocking of every candidate at every shape, fits the cost model, and writes winograd/selection_table.py.

Blockings are tried one size after the other, beginning with what the library chooses by itself; one that is not at least 2 %
faster is not worth an entry. Coefficients are fitted to the relative error, so that small layers count as much as large ones.
"""

import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from winograd.selection import CANDIDATES, Coefficients, Measured, Row, Shape, Table, work

from benchmarks.winograd import results
from benchmarks.winograd.problems import LAYERS, SMALL_LAYERS, problem, write_problem
from benchmarks.winograd.turns import REPOSITORY, Process

TABLE = REPOSITORY / "winograd" / "winograd" / "selection_table.py"
TILES, FILTERS, SHARED = (14, 28, 56, 112, 224, 448), (32, 64, 128, 256), (0, 1)
WORTH_AN_ENTRY = 0.98
DIRECT_TURNS = 5  # oneDNN's times come in two kinds, one twice the other, when its threads have just been woken up
GUESSED = Coefficients(5000.0, 0.3, 0.3, 0.3, 0.01, 0.01)
PULL = 0.3  # of the guess, against the relative error of one measurement

Measure = Callable[[Sequence[str]], dict[str, float]]  # milliseconds of those variants that can run
Blocking = tuple[int, int, int]
OWN_CHOICE = (0, 0, -1)


def tune(
    threads: Sequence[int], batches: Sequence[int], layers: Sequence[str] | None, seconds: float, path: Path
) -> None:
    rows = []
    for count in threads:
        process = Process("winograd", count, sys.executable)
        with tempfile.TemporaryDirectory() as name:
            for one in (problem(layer, batch) for layer in layers or (LAYERS | SMALL_LAYERS) for batch in batches):
                write_problem(one, Path(name), onnx=False)
                measure = _measure(process, Path(name), seconds)
                best = {candidate: _best_blocking(measure, candidate, count) for candidate in CANDIDATES}
                found = {candidate: measured for candidate, measured in best.items() if measured}
                shape = Shape(one.channels, one.filters, one.size, one.size, batch=one.batch)
                rows.append(Row(count, shape, found))
                print(f"{one.layer}, batch {one.batch}, {count} threads: {found}", file=sys.stderr, flush=True)
        process.close()
    _write(rows, path)


def _measure(process: Process, folder: Path, seconds: float) -> Measure:
    def measure(variants: Sequence[str]) -> dict[str, float]:
        answers = process.ask({"prepare": str(folder), "variants": list(variants)})
        able = [variant for variant in variants if not answers[variant].get("refused")]
        return {variant: median(process.ask({"time": variant, "seconds": seconds})["milliseconds"]) for variant in able}

    return measure


def _best_blocking(measure: Measure, candidate: str, threads: int) -> Measured | None:
    """The least milliseconds and their blocking, empty where the library's own choice is as good; None if it can't run."""
    if candidate == "direct":
        turns = [answer[candidate] for answer in (measure([candidate]) for _ in range(DIRECT_TURNS)) if answer]
        return Measured(round(min(turns), 4)) if turns else None

    def fastest(blockings: Sequence[Blocking]) -> tuple[float, Blocking]:
        names = {f"{candidate}@{','.join(map(str, blocking))}": blocking for blocking in blockings}
        return min(((ms, names[name]) for name, ms in measure(list(names)).items()), default=(math.inf, OWN_CHOICE))

    own, _ = fastest([OWN_CHOICE])
    first = fastest([(tiles, 0, shared) for tiles in TILES for shared in (SHARED if threads > 1 else (0,))])
    tiles, _, shared = min(first, (own, OWN_CHOICE))[1]
    second = fastest([(tiles, filters, shared) for filters in FILTERS])
    milliseconds, blocking = min(first, second)
    if milliseconds < WORTH_AN_ENTRY * own:
        return Measured(round(milliseconds, 4), blocking)
    return Measured(round(own, 4)) if own < math.inf else None


def _write(rows: Sequence[Row], path: Path) -> None:
    coefficients = _fitted(rows)
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    table = Table("cpu", results.processor(), date, coefficients, tuple(rows))
    path.write_text(_source(table))


def _fitted(rows: Sequence[Row]) -> Coefficients:
    """Coefficients with the least relative errors; what the rows say little about stays near what was guessed."""
    guessed = np.array(GUESSED.as_tuple())
    amounts = [
        np.array(work(row.shape, name, row.threads)) / (1e6 * measured.milliseconds)
        for row in rows
        for name, measured in row.measured.items()
    ]
    a = np.concatenate([amounts, PULL * np.diag(1 / guessed)])
    b = np.concatenate([np.ones(len(amounts)), PULL * np.ones(len(guessed))])
    fitted = least_squares_without_negatives(a, b)
    return Coefficients(*map(float, np.maximum(fitted, 0.01 * guessed)))


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


def _source(table: Table) -> str:
    lines = [
        '"""What selection.py knows. Written by `python -m benchmarks.winograd tune`; edit nothing by hand."""',
        "",
        "from winograd.selection import Coefficients, Measured, Row, Shape, Table",
        "",
        "# fmt: off",
        "CPU = Table(",
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
    return "\n".join([*lines, "    ),", ")", ""])
