"""Writes the delivered files, reloads each in a fresh process and measures it there. The test images are first looked at here."""

import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import numpy as np
import torch

from jobs.errors import RecipeRefused, VerificationFailed
from jobs.folder import Compress
from jobs.preflight import OPENED_FORMATS
from jobs.report import Accuracy, DeliveredFile, ExecutedOperations, IntegerNetworkReport, MemoryUse
from jobs.request import OutputFormat
from workers.bench import Bench
from workers.checkpoints import State, sha256_of
from workers.datasets.roles import Part
from workers.fixed_point.compile_c import find_compiler
from workers.fixed_point.network import InputTransform, IntegerNetwork
from workers.fixed_point.pack_weights import with_stored_integers
from workers.fixed_point.program_graph import with_program
from workers.fixed_point.run import IntegerRunner
from workers.fixed_point.write_c import write_c
from workers.fixed_point.write_qdq import QdqReport, write_qdq
from workers.measurement.accuracy import Right, accuracy, accuracy_change
from workers.measurement.operations import winograd_gemms
from workers.measurement.outputs import batch_size_of, network_outputs
from workers.measurement.size import file_size
from workers.measurement.verify import RUNTIMES as RUNTIMES
from workers.measurement.verify import Conditions, Original, Verified, classes, verify_file
from workers.measurement.verify_c import run_c_source
from workers.models.graph import ModelGraph
from workers.models.lower_winograd import has_winograd, lower_winograd
from workers.models.tail import logits_of, without_tail
from workers.models.write_onnx import write_onnx
from workers.models.write_pt2 import write_pt2

Format = Literal["onnx", "pt2"]  # what a runtime opens

LATENCY_SECONDS = 2.0
MEDIA_TYPES: dict[OutputFormat, str] = {
    "onnx": "application/onnx",
    "pt2": "application/zip",
    "pt2_standard": "application/zip",
    "pt2_integers": "application/zip",
    "c": "application/zip",
}
FILE_NAMES: dict[OutputFormat, str] = {
    "onnx": "model.onnx",
    "pt2": "model.pt2",
    "pt2_standard": "model.standard.pt2",
    "pt2_integers": "model.integers.pt2",
    "c": "model.c.zip",
}


def write_model(graph: ModelGraph, path: Path, form: Format, *, pack_zeros: bool) -> None:
    """Write a floating-point network as a file of this format."""
    match form:
        case "onnx":
            write_onnx(graph, path, pack_zeros=pack_zeros)
        case "pt2":
            write_pt2(graph, path, pack_zeros=pack_zeros)
        case _:
            assert_never(form)


@dataclass(frozen=True)
class Written:
    """What there is to say of a file from its writing."""

    memory: MemoryUse | None = None
    notes: tuple[str, ...] = ()


def write_state(state: State, path: Path, form: OutputFormat, *, pack_zeros: bool) -> Written:
    """Write what the recipe has led to."""
    integers = state.integers
    if integers is None:
        assert form != "c" and form != "pt2_integers", "preflight asks for integers"
        if form == "pt2_standard":
            write_pt2(lower_winograd(state.graph), path, pack_zeros=pack_zeros)
        else:
            write_model(state.graph, path, form, pack_zeros=pack_zeros)
        return Written()
    match form:
        case "onnx":
            made = write_qdq(integers, state.graph, path, pack_int4=True)
            return Written(notes=(*_notes_on_kernels(made), *_notes_on_tiles(integers)))
        case "pt2" | "pt2_standard":
            write_pt2(with_stored_integers(state.graph, integers), path, pack_zeros=True)
            return Written()
        case "pt2_integers":
            write_pt2(with_program(state.graph, integers), path, pack_zeros=True)
            return Written()
        case "c":
            source = write_c(integers, path, name="model", example=None)
            return Written(MemoryUse(flash_bytes=source.flash_bytes, ram_bytes=source.ram_bytes))
        case _:
            assert_never(form)


def write_all(
    state: State, outputs: Sequence[OutputFormat], folder: Path, *, pack_zeros: bool
) -> tuple[dict[OutputFormat, Written], list[str]]:
    """Write all these files, and what is to be said of those that this network can't be.

    Whether integers can be one operator shows only once there are any; the other files are delivered then. Raises
    `RecipeRefused` where there are no others.
    """
    written: dict[OutputFormat, Written] = {}
    missing: list[str] = []
    for form in outputs:
        try:
            written[form] = write_state(state, folder / FILE_NAMES[form], form, pack_zeros=pack_zeros)
        except RecipeRefused as refused:
            if len(outputs) == 1:
                raise
            missing.append(f"{FILE_NAMES[form]} was asked for, but not written. {refused}")
    return written, missing


def opened_format(runtime: str, outputs: Sequence[OutputFormat], state: State) -> OutputFormat:
    """What the target runtime opens of a network: in torch, the file that computes in integers where there is one."""
    if runtime == "torch" and state.integers is not None and "pt2_integers" in outputs:
        return "pt2_integers"
    return OPENED_FORMATS[runtime]


def runtime_form(output: OutputFormat) -> Format:
    """As what a runtime opens a file."""
    assert output != "c", "source is compiled"
    return "onnx" if output == "onnx" else "pt2"


def tolerance_of(state: State, output: OutputFormat) -> float | None:
    """How far outputs may be from the simulation's, relative to the largest; None for the tolerance of their precision."""
    if state.integers is None:
        return None
    if output == "onnx":
        # Some sums ONNX Runtime rounds in its own way, and on some processors it lets products saturate.
        return math.inf
    if output == "pt2_integers" and logits_of(state.graph) in state.graph.module.graph.output_node().all_input_nodes:
        return 0.0
    return None  # what comes after the logits is computed in floating point


def _notes_on_kernels(made: QdqReport) -> Iterator[str]:
    """Which layers ONNX Runtime's integer kernels take, and where their results depend on the processor."""
    layers = made.convolutions
    in_integers = sum(layer.integer for layer in layers)
    yield f"{in_integers} of {len(layers)} layers run in ONNX Runtime's integer kernels."
    if in_integers < len(layers):
        yield (
            "The others run in floating point, on the same integers, because their weights, shifted to meet partial sums, or their "
            "inputs need more than 8 bits; align retune_opt keeps weights narrow."
        )
    if any(layer.needs_vnni for layer in layers):
        yield (
            "On x86 processors without VNNI, sums of products of 8-bit numbers can saturate in ONNX Runtime's kernels: measure "
            "there, or ask for 7-bit weights."
        )


def _notes_on_tiles(network: IntegerNetwork) -> Iterator[str]:
    """What Winograd convolutions in integers are for, and what not."""
    count = sum(isinstance(operation, InputTransform) for operation in network.operations)
    if count:
        yield (
            f"{count} of the layers are Winograd convolutions in integers. They make fewer multiplications, as the C source does; "
            "ONNX Runtime has no kernel for them, and took longer than for direct ones wherever it was measured."
        )


class Delivery:
    """Tries delivered files on the images that the report's figures are taken on."""

    def __init__(self, job: Compress, folder: Path, uploaded: ModelGraph, state: State, bench: Bench) -> None:
        self._job = job
        self._uploaded = uploaded
        self._state = state
        self._graph = state.graph
        self._integers = state.integers
        self._upload = folder / job.model.path
        self._work = folder / "work"
        self._bench = bench
        part = bench.parts[bench.final_role]
        uploaded_answers = classes(bench.outputs(uploaded, part))
        self._targets = part.labels if bench.measure == "top1" and part.labels is not None else uploaded_answers
        self._right_before: Right = uploaded_answers == self._targets
        self.accuracy_before = self._accuracy(self._right_before)
        self._expected = bench.outputs(state.graph, part)
        self._inputs = self._work / "verify.inputs.npy"
        self._write_inputs(part)

    def check_integers(self) -> IntegerNetworkReport | None:
        """Run the integer network on the same images; raises `VerificationFailed` where its simulation gives other logits (F-8)."""
        if self._integers is None:
            return None
        runner, simulation = IntegerRunner(self._integers), without_tail(self._graph)
        differing, logits = 0, []
        for batch in self._bench.batches(self._uploaded, self._bench.parts[self._bench.final_role]):
            given = runner.run(runner.quantize_input(batch))
            wanted = torch.from_numpy(network_outputs(simulation, [batch])).double().reshape(given.shape)
            differing += int((runner.scores(given) != wanted).sum())
            logits.append(given.to(torch.int32).numpy())
        self._logits = np.concatenate(logits)
        overflows = runner.executed.overflows
        if differing or overflows:
            raise VerificationFailed(
                f"The integer network gives {differing} logits that its simulation doesn't, and {overflows} of its accumulators "
                "leave 32 bits."
            )
        network = self._integers
        taken, first = network.values[network.input].coding, network.values[network.convolutions[0].output].coding
        return IntegerNetworkReport(
            images=runner.executed.images,
            differing_logits=differing,
            overflows=overflows,
            activation_bits=min(first.bits, taken.bits),
            weight_bits=max(layer.weight_bits for layer in network.convolutions),
            input_signed=taken.signed,
            input_lengths=taken.lengths,
            logit_length=network.values[network.output].coding.lengths[0],
        )

    def measure(self, path: Path, output: OutputFormat, written: Written = Written()) -> DeliveredFile:
        """The file's figures, all of them from a fresh process; raises `VerificationFailed` if it doesn't behave."""
        if output == "c":
            return self._measure_c(path, written.memory)
        form = runtime_form(output)
        counts_gemms = output == "pt2" and has_winograd(self._graph)
        found, notes = None, list(written.notes)
        if form == "onnx" and self._bench.uploaded_format == "onnx":
            found = self._verify(path, output, original=self._upload, counts_gemms=counts_gemms)
            if found.original_error is None:
                notes.append("Latency is compared with the uploaded file itself.")
            else:
                notes.append(f"The uploaded file itself could not be timed: {found.original_error}")
        # An uploaded .pt2 is never opened by torch, which would run code that it may hold; Winnow's own copy is.
        if found is None or found.original_error is not None:
            found = self._verify(path, output, original=self._rewritten(form), counts_gemms=counts_gemms)
            uploaded_form = self._bench.uploaded_format
            notes.append(f"Latency is compared with the uploaded {uploaded_form} model as Winnow writes it to {form}.")
        if output == "pt2_integers":
            notes.append(_on_integers(found.max_abs_difference))
        if counts_gemms or output == "pt2_integers":
            notes.append(_how_to_run(path.name))
        if self._latency_batch_size != self._job.target.batch_size:
            notes.append(f"The model takes batches of {self._latency_batch_size} only, so latency is of those.")
        notes += [f"The original could not be compared with: {error}" for error in found.comparison_errors]
        return self._delivered(path, output, found, notes, executed=found.executed if counts_gemms else None)

    @property
    def _latency_batch_size(self) -> int:
        return self._uploaded.batch_size or self._job.target.batch_size

    def _verify(self, path: Path, output: OutputFormat, *, original: Path, counts_gemms: bool) -> Verified:
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
            runtime_form(output),
            inputs=self._inputs,
            expected=self._expected,
            original=original,
            conditions=conditions,
            scratch=self._work,
            gemms=winograd_gemms(self._graph) if counts_gemms else None,
            tolerance=tolerance_of(self._state, output),
            compared_with=self._originals(output, original),
        )

    def _originals(self, output: OutputFormat, original: Path) -> list[Original]:
        """The uploaded model in every runtime that matters, on one and on all threads, where speed is what was changed."""
        if output != "pt2_integers" and not has_winograd(self._graph):
            return []
        form = runtime_form(output)
        files = [(original, form)]
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
        for path in (self._inputs, *(self._work / f"original.{form}" for form in RUNTIMES)):
            path.unlink(missing_ok=True)

    def _measure_c(self, path: Path, memory: MemoryUse | None) -> DeliveredFile:
        """Compile the source and run it on all images: it must give the integer network's logits to the last bit."""
        assert self._integers is not None
        notes = [
            "Compile it with any C99 compiler, such as cc -std=c99 -O2; README.txt in the archive says how to call it."
        ]
        compiler = find_compiler()
        if compiler is None:
            notes.append("It was not compiled here, where there is no C compiler: main.c tests it on an example.")
            return self._c_file(path, memory, None, None, notes)
        runner = IntegerRunner(self._integers)
        inputs = np.load(self._inputs, mmap_mode="r", allow_pickle=False)
        size = batch_size_of(self._uploaded)
        parts = [torch.from_numpy(np.array(inputs[start : start + size])) for start in range(0, len(inputs), size)]
        integers = np.concatenate([runner.quantize_input(part).numpy() for part in parts])
        compiled = run_c_source(path, integers, scratch=self._work, compiler=compiler)
        if not np.array_equal(compiled.logits, self._logits):
            different = int((compiled.logits != self._logits).any(axis=1).sum())
            raise VerificationFailed(
                f"{path.name} gives other logits than the integer network on {different} of {len(integers)} images.",
                file=path.name,
            )
        notes.append(
            f"Compiled here without a warning ({compiled.command}); its logits are those of the integer network on all "
            f"{len(integers):,} images, {compiled.milliseconds:.3f} ms each on one core."
        )
        return self._c_file(path, memory, classes(compiled.logits) == self._targets, 100.0, notes)

    def _c_file(
        self, path: Path, memory: MemoryUse | None, right: Right | None, agreement: float | None, notes: list[str]
    ) -> DeliveredFile:
        return DeliveredFile(
            name=path.name,
            format="c",
            sha256=sha256_of(path),
            size=file_size(path),
            accuracy=None if right is None else self._accuracy(right),
            change=None if right is None else accuracy_change(self._right_before, right),
            max_abs_difference=0.0,
            agreement_percent=agreement,
            latency=None,
            latency_original=None,
            speedup=None,
            memory=memory,
            notes=tuple(notes),
        )

    def _delivered(
        self,
        path: Path,
        output: OutputFormat,
        found: Verified,
        notes: list[str],
        *,
        executed: ExecutedOperations | None,
    ) -> DeliveredFile:
        right = classes(found.outputs) == self._targets
        return DeliveredFile(
            name=path.name,
            format=output,
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
            executed=executed,
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


def _on_integers(largest_difference: float) -> str:
    """What the file computes, and how near to the network in memory."""
    if largest_difference == 0:
        return "It computes in 8-bit integers, and its outputs are those of the network in memory to the last bit."
    return (
        "It computes in 8-bit integers; what comes after the logits is in floating point, and differs from the network in memory "
        f"by up to {largest_difference:.3g}."
    )


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
