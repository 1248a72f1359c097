"""Steps that are done, kept in the job folder, so that an attempt after a lost one goes on where that stopped.

A checkpoint is the network after a step (`step-0.pt2`, and `step-0.npz` if it is one of integers) and a manifest beside it, written
last, that names the digests of both, the step's report, and a digest of everything that led to it. Whatever doesn't fit together
is ignored and done again.

Every attempt goes on from the checkpoint's file, also the one that wrote it: so an interrupted job ends in the same bytes
as an undisturbed one.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ValidationError

from jobs.errors import ModelRefused
from jobs.folder import Compress, write_atomically
from jobs.report import StepReport
from workers.fixed_point.network import IntegerNetwork
from workers.fixed_point.storage import load_network, save_network
from workers.models.graph import ModelGraph
from workers.models.read_model import read_model
from workers.models.write_pt2 import write_pt2


@dataclass(frozen=True)
class State:
    """What a step leaves to the next: the network, and where it is one of integers, these; the network is then their simulation.

    `precision` has the bits that were assigned to the weights of layers, by name.
    """

    graph: ModelGraph
    integers: IntegerNetwork | None = None
    precision: Mapping[str, int] | None = None


class Manifest(BaseModel):
    made_from: str
    sha256: str
    integers_sha256: str | None = None
    precision: dict[str, int] | None = None
    report: StepReport


class Checkpoints:
    """The checkpoints of one job under `folder`."""

    def __init__(self, folder: Path, job: Compress) -> None:
        self._folder = folder
        self._job = job
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, index: int, uploaded: ModelGraph) -> tuple[State, StepReport] | None:
        """What was left by, and the report of, a step that was done before, or None."""
        try:
            manifest = Manifest.model_validate_json(self._manifest(index).read_bytes())
            if manifest.made_from != self._made_from(index) or manifest.sha256 != sha256_of(self._network(index)):
                return None
            is_integers = manifest.integers_sha256 is not None
            if is_integers and manifest.integers_sha256 != self._digest_of_integers(index):
                return None
            return self._read(index, uploaded, manifest), manifest.report
        except (FileNotFoundError, ValidationError, ModelRefused):
            return None

    def save(self, index: int, state: State, report: StepReport, uploaded: ModelGraph) -> State:
        """Keep what a finished step left, and return it as it will be read again."""
        self._write(self._network(index), lambda path: write_pt2(state.graph, path, pack_zeros=False))
        if (integers := state.integers) is not None:
            self._write(self._integers(index), lambda path: save_network(integers, path))
        manifest = Manifest(
            made_from=self._made_from(index),
            sha256=sha256_of(self._network(index)),
            integers_sha256=None if integers is None else self._digest_of_integers(index),
            precision=None if state.precision is None else dict(state.precision),
            report=report,
        )
        write_atomically(self._manifest(index), manifest.model_dump_json())
        return self._read(index, uploaded, manifest)

    def _write(self, path: Path, write: Callable[[Path], None]) -> None:
        partial = path.with_suffix(".partial")
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)

    def _read(self, index: int, uploaded: ModelGraph, manifest: Manifest) -> State:
        graph = read_model(self._network(index))
        # What the file can't say of itself: it comes from the upload.
        graph = replace(graph, producer=uploaded.producer, opset=uploaded.opset, warnings=uploaded.warnings)
        is_integers = manifest.integers_sha256 is not None
        return State(graph, load_network(self._integers(index)) if is_integers else None, manifest.precision)

    def _made_from(self, index: int) -> str:
        """A digest of all that decides what the network after this step is."""
        job = self._job
        decisive = {
            "model": job.model.sha256,
            "data": {role: file.sha256 for role, file in sorted(job.data.items())},
            "preprocess": None if job.preprocess is None else job.preprocess.model_dump(mode="json"),
            "recipe": [step.model_dump(mode="json") for step in job.recipe[: index + 1]],
            # Whether any step learns decides how a lone dataset is split.
            "kinds": sorted({step.kind for step in job.recipe}),
            "seed": job.seed,
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def _network(self, index: int) -> Path:
        return self._folder / f"step-{index}.pt2"

    def _integers(self, index: int) -> Path:
        return self._folder / f"step-{index}.npz"

    def _digest_of_integers(self, index: int) -> str:
        return sha256_of(self._integers(index))

    def _manifest(self, index: int) -> Path:
        return self._folder / f"step-{index}.json"


def sha256_of(path: Path) -> str:
    """The hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
