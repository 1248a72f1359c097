"""Steps that are done, kept in the job folder, so that an attempt after a lost one goes on where that stopped.

A checkpoint is the network after a step (`step-0.pt2`) and a manifest beside it, written last, that names the network's digest, the
step's report, and a digest of everything that led to it. Whatever doesn't fit together is ignored and done again.

Every attempt goes on from the checkpoint's file, also the one that wrote it: so an interrupted job ends in the same bytes
as an undisturbed one.
"""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ValidationError

from jobs.errors import ModelRefused
from jobs.folder import Compress, write_atomically
from jobs.report import StepReport
from workers.models.graph import ModelGraph
from workers.models.read_model import read_model
from workers.models.write_pt2 import write_pt2


class Manifest(BaseModel):
    made_from: str
    sha256: str
    report: StepReport


class Checkpoints:
    """The checkpoints of one job under `folder`."""

    def __init__(self, folder: Path, job: Compress) -> None:
        self._folder = folder
        self._job = job
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, index: int, uploaded: ModelGraph) -> tuple[ModelGraph, StepReport] | None:
        """The network and report of a step that was done before, or None."""
        try:
            manifest = Manifest.model_validate_json(self._manifest(index).read_bytes())
            if manifest.made_from != self._made_from(index) or manifest.sha256 != sha256_of(self._network(index)):
                return None
            return self._read(index, uploaded), manifest.report
        except (FileNotFoundError, ValidationError, ModelRefused):
            return None

    def save(self, index: int, graph: ModelGraph, report: StepReport, uploaded: ModelGraph) -> ModelGraph:
        """Keep a finished step, and return its network as it will be read again."""
        partial = self._network(index).with_suffix(".partial")
        write_pt2(graph, partial, pack_zeros=False)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(self._network(index))
        manifest = Manifest(made_from=self._made_from(index), sha256=sha256_of(self._network(index)), report=report)
        write_atomically(self._manifest(index), manifest.model_dump_json())
        return self._read(index, uploaded)

    def _read(self, index: int, uploaded: ModelGraph) -> ModelGraph:
        graph = read_model(self._network(index))
        # What the file can't say of itself: it comes from the upload.
        return replace(graph, producer=uploaded.producer, opset=uploaded.opset, warnings=uploaded.warnings)

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

    def _manifest(self, index: int) -> Path:
        return self._folder / f"step-{index}.json"


def sha256_of(path: Path) -> str:
    """The hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
