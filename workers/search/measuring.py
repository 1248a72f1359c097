"""One recipe tried: its steps run as in any job, its file written, and both measured on the selection images.

Everything that is found is kept in a folder of the recipe's own, so that a search that was interrupted goes on where it was.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from jobs.folder import Compress, Progress, write_atomically
from jobs.recipe import Step
from jobs.report import Candidate, StepReport
from jobs.request import Goal, OutputFormat
from workers.bench import Bench
from workers.checkpoints import Checkpoints, State
from workers.delivery import (
    FILE_NAMES,
    device_name,
    opened_format,
    runtime_form,
    tolerance_of,
    write_model,
    write_state,
)
from workers.measurement.accuracy import least_change_pp
from workers.measurement.outputs import batch_size_of, network_outputs
from workers.measurement.size import totals
from workers.measurement.verify import Conditions, Verified, verify_file
from workers.models.shapes import macs
from workers.progress import Phases
from workers.search.choosing import shortfalls
from workers.search.confirming import NOTHING_LOST, Sealed, seal, sealed
from workers.steps import run_steps

LATENCY_SECONDS = 1.0
_FLOAT_BITS = 32


class TimeIsUpError(Exception):
    """The search has no more time; whatever it was trying is abandoned."""


class Measuring:
    """Tries recipes for one job. `check_time` raises `TimeIsUpError`, and is told what goes on.

    Candidates are compared on the images of `bench`; what those that meet the goal there lose on `confirming` is sealed.
    """

    def __init__(
        self,
        job: Compress,
        goal: Goal,
        bench: Bench,
        folder: Path,
        check_time: Callable[[str], None],
        *,
        confirming: Bench | None = None,
    ) -> None:
        self._job = job
        self._goal = goal
        self._bench = bench
        self._folder = folder
        self._check_time = check_time
        self._confirming = confirming
        self.times_latency = goal.minimise == "latency" or goal.constraints.max_latency_ms is not None
        folder.mkdir(parents=True, exist_ok=True)

    def original(self) -> Candidate:
        """The uploaded model, as Winnow writes it."""
        return self.measured((), number=0, predicted_drop_pp=None)

    def measured(self, recipe: tuple[Step, ...], *, number: int, predicted_drop_pp: float | None) -> Candidate:
        """What the recipe comes to. Raises `TimeIsUpError`, and whatever its steps refuse."""
        known = self._known(recipe)
        if known is not None:
            return known
        folder = self.folder_of(recipe)
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        state, _ = self.run(recipe, Phases(lambda progress: self._check_time(_told(number, progress))))
        output = opened_format(self._job.target.runtime, self._job.outputs, state)
        path = folder / FILE_NAMES[output]
        if recipe:
            self._check_time(f"Candidate {number}: Writing its file")  # which may take long, and isn't interrupted
        write_state(state, path, output, pack_zeros=_pays(state))
        before, after = (self._bench.selection_right(graph) for graph in (self._bench.uploaded, state.graph))
        latency_ms = self._latency_ms(recipe, state, path, output) if self.times_latency else None
        candidate = Candidate(
            number=number,
            recipe=[step.model_dump(mode="json") for step in recipe],
            predicted_drop_pp=predicted_drop_pp,
            drop_pp=100 * float(before.mean() - after.mean()),
            drop_bound_pp=-least_change_pp(before, after, self._goal.confidence) if recipe else 0.0,
            bytes=path.stat().st_size,
            latency_ms=latency_ms,
            operations=bit_operations(state),
            seconds=0.0,
            meets_goal=False,
        )
        candidate = candidate.model_copy(update={"meets_goal": not shortfalls(candidate, self._goal)})
        if self._confirming is not None and _wants_confirming(candidate):
            seal(folder, self._confirming, state.graph, self._goal)
        path.unlink()
        candidate = candidate.model_copy(update={"seconds": time.monotonic() - started})
        write_atomically(folder / "candidate.json", candidate.model_dump_json())
        return candidate

    def _known(self, recipe: tuple[Step, ...]) -> Candidate | None:
        """What was found before, if all of it is there."""
        folder = self.folder_of(recipe)
        try:
            candidate = Candidate.model_validate_json((folder / "candidate.json").read_bytes())
            if self._confirming is not None and _wants_confirming(candidate):
                sealed(folder)
        except (FileNotFoundError, ValidationError):
            return None
        return candidate

    def sealed(self, recipe: tuple[Step, ...]) -> Sealed:
        """What a recipe that met the goal loses on the confirming images: for when the search is over."""
        return sealed(self.folder_of(recipe)) if recipe else NOTHING_LOST

    def run(
        self, recipe: tuple[Step, ...], phases: Phases, *, begin: float = 0.0, end: float = 1.0
    ) -> tuple[State, list[StepReport]]:
        """The network that a recipe makes; steps that were done before are not done again."""
        job = self._job.model_copy(update={"recipe": recipe})
        checkpoints = Checkpoints(self.folder_of(recipe) / "checkpoints", job)
        return run_steps(recipe, self._bench, checkpoints, phases, begin=begin, end=end)

    def folder_of(self, recipe: tuple[Step, ...]) -> Path:
        steps = json.dumps([step.model_dump(mode="json") for step in recipe], sort_keys=True)
        return self._folder / hashlib.sha256(steps.encode()).hexdigest()[:16]

    def _latency_ms(self, recipe: tuple[Step, ...], state: State, path: Path, output: OutputFormat) -> float | None:
        """What the original took once, over how many times faster this file is by turns with it.

        So candidates can be compared, however busy the machine was with others when each was timed. It is the fastest tenth of
        the runs that is compared: others at work interrupt long runs more than short ones, so that among medians a candidate
        looks better the busier its time was.
        """
        found = self._verification(state, path, output)
        if not recipe:
            return None if found.latency is None else found.latency.median_ms
        original = self.original().latency_ms
        if original is None or found.latency is None or found.latency_original is None:
            return None
        return original * found.latency.p10_ms / found.latency_original.p10_ms

    def _verification(self, state: State, path: Path, output: OutputFormat) -> Verified:
        """In a fresh process, by turns with the original, as the delivered file will be."""
        bench, work = self._bench, self._folder
        form = runtime_form(output)
        original = work / f"original.{form}"
        if not original.exists():
            write_model(bench.uploaded, original, form, pack_zeros=False)
        batch = next(bench.batches(bench.uploaded, bench.parts["selection"]))
        np.save(work / "inputs.npy", batch.numpy())
        target = self._job.target
        return verify_file(
            path,
            form,
            inputs=work / "inputs.npy",
            expected=network_outputs(state.graph, [batch]),
            original=original,
            conditions=Conditions(
                threads=target.threads,
                batch_size=batch_size_of(bench.uploaded),
                latency_batch_size=bench.uploaded.batch_size or target.batch_size,
                latency_seconds=LATENCY_SECONDS,
                device=device_name(),
                seed=self._job.seed,
            ),
            scratch=work,
            tolerance=tolerance_of(state, output),
            while_waiting=bench.check_wanted,
        )


def bit_operations(state: State) -> int:
    """Multiplications of one image by weights that aren't zero, each times the bits of both factors."""
    if state.integers is None:
        return totals(state.graph, macs(state.graph)).effective_multiplications * _FLOAT_BITS**2
    network = state.integers
    work = macs(state.graph)
    return sum(
        round(work[layer.layer] * float((layer.weight != 0).double().mean()))
        * layer.weight_bits
        * network.values[layer.source].coding.bits
        for layer in network.convolutions
    )


def _pays(state: State) -> bool:
    found = totals(state.graph, macs(state.graph))
    return found.bitmap_bytes < found.dense_bytes


def _wants_confirming(candidate: Candidate) -> bool:
    """The uploaded model needs none, and what breaks the limit already isn't looked at any further."""
    return candidate.meets_goal and bool(candidate.recipe)


def _told(number: int, progress: Progress) -> str:
    return f"Candidate {number}: {progress.message or progress.phase}"
