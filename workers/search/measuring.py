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
from workers.search.front import objective
from workers.steps import run_steps

LATENCY_SECONDS = 1.0
_FLOAT_BITS = 32
_EQUAL = 1e-9  # percentages are fractions of a number of images: what differs by less is equal


class TimeIsUpError(Exception):
    """The search has no more time; whatever it was trying is abandoned."""


class Measuring:
    """Tries recipes for one job. `check_time` raises `TimeIsUpError`, and is told what goes on."""

    def __init__(
        self, job: Compress, goal: Goal, bench: Bench, folder: Path, check_time: Callable[[str], None]
    ) -> None:
        self._job = job
        self._goal = goal
        self._bench = bench
        self._folder = folder
        self._check_time = check_time
        self.times_latency = goal.minimise == "latency" or goal.constraints.max_latency_ms is not None
        folder.mkdir(parents=True, exist_ok=True)

    def original(self) -> Candidate:
        """The uploaded model, as Winnow writes it."""
        return self.measured((), number=0, predicted_drop_pp=None)

    def measured(self, recipe: tuple[Step, ...], *, number: int, predicted_drop_pp: float | None) -> Candidate:
        """What the recipe comes to. Raises `TimeIsUpError`, and whatever its steps refuse."""
        folder = self.folder_of(recipe)
        try:
            return Candidate.model_validate_json((folder / "candidate.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        state, _ = self.run(recipe, Phases(lambda progress: self._check_time(_told(number, progress))))
        output = opened_format(self._job.target.runtime, self._job.outputs, state)
        path = folder / FILE_NAMES[output]
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
            seconds=time.monotonic() - started,
            meets_goal=False,
        )
        candidate = candidate.model_copy(update={"meets_goal": not shortfalls(candidate, self._goal)})
        path.unlink()
        write_atomically(folder / "candidate.json", candidate.model_dump_json())
        return candidate

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
        )


def shortfalls(candidate: Candidate, goal: Goal) -> list[tuple[str, float]]:
    """What the candidate misses of the goal, and by how much, relative to what is allowed."""
    limits = goal.constraints
    found = []
    excess = candidate.drop_bound_pp - goal.max_accuracy_drop_pp
    if excess > _EQUAL:
        found.append(("accuracy", excess / max(goal.max_accuracy_drop_pp, 0.1)))
    if limits.max_bytes is not None and candidate.bytes > limits.max_bytes:
        found.append(("bytes", candidate.bytes / limits.max_bytes - 1))
    latency = candidate.latency_ms
    if limits.max_latency_ms is not None and latency is not None and latency > limits.max_latency_ms:
        found.append(("latency", latency / limits.max_latency_ms - 1))
    return found


def best_of(candidates: list[Candidate], goal: Goal) -> Candidate:
    """The best that meets the goal; where none does, the one that misses it by least."""
    meeting = [each for each in candidates if each.meets_goal]
    if meeting:
        return min(meeting, key=lambda each: (objective(each, goal), each.drop_pp, each.number))
    return min(candidates, key=lambda each: (sum(share for _, share in shortfalls(each, goal)), each.number))


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


def _told(number: int, progress: Progress) -> str:
    return f"Candidate {number}: {progress.message or progress.phase}"
