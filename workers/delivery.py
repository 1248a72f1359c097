"""Writes the delivered files, reloads each in a fresh process and measures it there. The test images are first looked at here."""

import os
import platform
from pathlib import Path
from typing import Literal, assert_never

import numpy as np

from jobs.folder import Compress
from jobs.report import Accuracy, DeliveredFile
from workers.bench import Bench
from workers.checkpoints import sha256_of
from workers.datasets.roles import Part
from workers.measurement.accuracy import Right, accuracy, accuracy_change
from workers.measurement.operations import winograd_gemms
from workers.measurement.outputs import batch_size_of
from workers.measurement.size import file_size
from workers.measurement.verify import RUNTIMES as RUNTIMES
from workers.measurement.verify import Conditions, Original, Verified, classes, verify_file
from workers.models.graph import ModelGraph
from workers.models.lower_winograd import has_winograd
from workers.models.write_onnx import write_onnx
from workers.models.write_pt2 import write_pt2

Format = Literal["onnx", "pt2"]

LATENCY_SECONDS = 2.0
MEDIA_TYPES: dict[Format, str] = {"onnx": "application/onnx", "pt2": "application/zip"}


def write_model(graph: ModelGraph, path: Path, form: Format, *, pack_zeros: bool) -> None:
    """Write the network as a file of this format."""
    match form:
        case "onnx":
            write_onnx(graph, path, pack_zeros=pack_zeros)
        case "pt2":
            write_pt2(graph, path, pack_zeros=pack_zeros)
        case _:
            assert_never(form)


class Delivery:
    """Tries delivered files on the images that the report's figures are taken on."""

    def __init__(self, job: Compress, folder: Path, uploaded: ModelGraph, graph: ModelGraph, bench: Bench) -> None:
        self._job = job
        self._uploaded = uploaded
        self._graph = graph
        self._upload = folder / job.model.path
        self._work = folder / "work"
        self._bench = bench
        part = bench.parts[bench.final_role]
        uploaded_answers = classes(bench.outputs(uploaded, part))
        self._targets = part.labels if bench.measure == "top1" and part.labels is not None else uploaded_answers
        self._right_before: Right = uploaded_answers == self._targets
        self.accuracy_before = self._accuracy(self._right_before)
        self._expected = bench.outputs(graph, part)
        self._inputs = self._work / "verify.inputs.npy"
        self._write_inputs(part)

    def measure(self, path: Path, form: Format) -> DeliveredFile:
        """The file's figures, all of them from a fresh process; raises `VerificationFailed` if it doesn't behave."""
        found, notes = None, []
        if form == "onnx" and self._bench.uploaded_format == "onnx":
            found = self._verify(path, form, original=self._upload)
            if found.original_error is None:
                notes = ["Latency is compared with the uploaded file itself."]
            else:
                notes = [f"The uploaded file itself could not be timed: {found.original_error}"]
        # An uploaded .pt2 is never opened by torch, which would run code that it may hold; Winnow's own copy is.
        if found is None or found.original_error is not None:
            found = self._verify(path, form, original=self._rewritten(form))
            uploaded_form = self._bench.uploaded_format
            notes.append(f"Latency is compared with the uploaded {uploaded_form} model as Winnow writes it to {form}.")
        if form == "pt2" and has_winograd(self._graph):
            notes.append(_how_to_run(path.name))
        if self._latency_batch_size != self._job.target.batch_size:
            notes.append(f"The model takes batches of {self._latency_batch_size} only, so latency is of those.")
        notes += [f"The original could not be compared with: {error}" for error in found.comparison_errors]
        return self._delivered(path, form, found, notes)

    @property
    def _latency_batch_size(self) -> int:
        return self._uploaded.batch_size or self._job.target.batch_size

    def _verify(self, path: Path, form: Format, *, original: Path) -> Verified:
        conditions = Conditions(
            threads=self._job.target.threads,
            batch_size=batch_size_of(self._uploaded),
            latency_batch_size=self._latency_batch_size,
            latency_seconds=LATENCY_SECONDS,
            device=device_name(),
            seed=self._job.seed,
        )
        return verify_file(
            path,
            form,
            inputs=self._inputs,
            expected=self._expected,
            original=original,
            conditions=conditions,
            scratch=self._work,
            gemms=winograd_gemms(self._graph) if form == "pt2" else None,
            compared_with=self._originals(form, original),
        )

    def _originals(self, form: Format, original: Path) -> list[Original]:
        """The uploaded model in every runtime that matters, on one and on all threads, where speed is what was changed."""
        if not has_winograd(self._graph):
            return []
        files: list[tuple[Path, Format]] = [(original, form)]
        if form == "pt2":
            files.append((self._upload if self._bench.uploaded_format == "onnx" else self._rewritten("onnx"), "onnx"))
        all_threads = len(os.sched_getaffinity(0))
        return [Original(*file, threads) for file in files for threads in sorted({1, all_threads})]

    def _rewritten(self, form: Format) -> Path:
        """The uploaded model as Winnow writes it."""
        path = self._work / f"original.{form}"
        write_model(self._uploaded, path, form, pack_zeros=False)
        return path

    def clean_up(self) -> None:
        """Remove what only the verification needed."""
        for path in (self._inputs, *(self._work / f"original.{form}" for form in MEDIA_TYPES)):
            path.unlink(missing_ok=True)

    def _delivered(self, path: Path, form: Format, found: Verified, notes: list[str]) -> DeliveredFile:
        right = classes(found.outputs) == self._targets
        return DeliveredFile(
            name=path.name,
            format=form,
            sha256=sha256_of(path),
            size=file_size(path),
            accuracy=self._accuracy(right),
            change=accuracy_change(self._right_before, right),
            max_abs_difference=found.max_abs_difference,
            agreement_percent=found.agreement_percent,
            latency=found.latency,
            latency_original=found.latency_original,
            speedup=found.speedup,
            speedup_interval=found.speedup_interval,
            comparisons=found.comparisons,
            executed=found.executed,
            notes=tuple(notes),
        )

    def _accuracy(self, right: Right) -> Accuracy:
        return accuracy(right, measure=self._bench.measure, role=self._bench.final_role)

    def _write_inputs(self, part: Part) -> None:
        batches = self._bench.batches(self._uploaded, part)
        first = next(batches).numpy()
        shape = (len(part), *first.shape[1:])
        stored = np.lib.format.open_memmap(self._inputs, mode="w+", dtype=first.dtype, shape=shape)
        stored[: len(first)] = first
        filled = len(first)
        for batch in batches:
            stored[filled : filled + len(batch)] = batch.numpy()
            filled += len(batch)
        stored.flush()


def _how_to_run(name: str) -> str:
    return (
        f'Run it as it was run here: `pip install ./winograd` once, then `import winograd; model = winograd.load("{name}")`. '
        "Opened by torch.export.load alone, it packs its weights again in every call, which is slower."
    )


def device_name() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
