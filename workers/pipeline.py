"""A compression job from the uploaded files to the delivered ones, as one straight line.

read the model and the data, assign roles, check that the recipe can run
baseline on the selection images
each step of the recipe, kept as a checkpoint
write the files, reload each in a fresh process, measure it there
accuracy on the test images, looked at here for the first time
report
"""

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, assert_never

import torch

from jobs.errors import RecipeRefused
from jobs.folder import Compress, Outcome, OutputFile, write_atomically
from jobs.inspection import DatasetInspection, ModelInspection
from jobs.preflight import Role, check_recipe, learns
from jobs.recipe import Finetune, PruneWeights, PruneWinograd, Step
from jobs.report import LayerReport, Provenance, Report, StepReport
from workers.bench import Bench
from workers.checkpoints import Checkpoints
from workers.compression.finetune import finetune
from workers.compression.prune_weights import prune_weights
from workers.compression.prune_winograd import Surroundings, prune_winograd
from workers.compression.suffix_evaluator import SuffixEvaluator
from workers.compression.winograd_moments import measure_moments
from workers.compression.winograd_training import Trainer
from workers.datasets.dataset import Dataset
from workers.datasets.preprocess import fit_dataset
from workers.datasets.read_dataset import read_dataset
from workers.datasets.roles import RoleFile, assign_roles
from workers.delivery import MEDIA_TYPES, RUNTIMES, Delivery, device_name, write_model
from workers.measurement.size import file_size, nonzeros, totals
from workers.models.graph import ModelGraph, layers, parameter
from workers.models.inspect_model import describe
from workers.models.read_model import model_format, read_model
from workers.models.shapes import macs as multiply_adds
from workers.progress import Phases, ReportProgress, StepProgress
from workers.verdict import judge, notes_on_zeros

ZEROS_ARE_NOT_SPEED = "unstructured zeros do not speed up dense kernels"

# Where the phases of a job begin and end in its progress; the steps share the middle by number.
_STEPS_BEGIN, _STEPS_END, _VERIFYING = 0.05, 0.85, 0.87


def run_job(job: Compress, folder: Path, report_progress: ReportProgress) -> Outcome:
    """Run the job laid out in `folder` and leave its files and report in `outputs/`."""
    phases = Phases(report_progress)
    work, outputs, upload = folder / "work", folder / "outputs", folder / job.model.path
    for place in (work, outputs):
        place.mkdir(exist_ok=True)

    with phases("reading", 0.0):
        uploaded = read_model(upload)
        inspection = describe(uploaded, model_format(upload))
        given: dict[Role, Dataset] = {
            role: fit_dataset(read_dataset(folder / file.path, scratch=work), job.preprocess)
            for role, file in job.data.items()
        }
        _refuse_what_cannot_run(job, given, inspection)
        files = {role: RoleFile(dataset, job.data[role].sha256) for role, dataset in given.items()}
        parts = assign_roles(files, learns=learns(job.recipe), seed=job.seed)

    with phases("baseline", 0.02):
        bench = Bench(job, uploaded, inspection, parts)
        warnings = bench.health_warnings()

    graph, steps = _run_steps(job, uploaded, bench, Checkpoints(work / "checkpoints", job), phases)

    macs = {layer.name: layer.macs for layer in inspection.layers}
    before, after = totals(uploaded, macs), totals(graph, multiply_adds(graph))
    with phases("writing", _STEPS_END):
        for form in job.outputs:
            # Zeros are packed only where that makes the file smaller.
            write_model(graph, outputs / f"model.{form}", form, pack_zeros=after.bitmap_bytes < after.dense_bytes)

    with phases("verifying", _VERIFYING):
        delivery = Delivery(job, folder, uploaded, graph, bench)
        delivered = []
        for number, form in enumerate(job.outputs):
            phases.report("verifying", _VERIFYING + (1 - _VERIFYING) * number / len(job.outputs), f"model.{form}")
            delivered.append(delivery.measure(outputs / f"model.{form}", form))
        delivery.clean_up()

    judged = next((file for file in delivered if RUNTIMES[file.format] == job.target.runtime), delivered[0])
    original_size = file_size(upload)
    verdict = judge(
        before=delivery.accuracy_before,
        after=judged.accuracy,
        change=judged.change,
        original=original_size,
        original_format=inspection.format,
        delivered=judged,
        limits=job.limits,
        why_not_faster=ZEROS_ARE_NOT_SPEED if after.nonzeros < before.nonzeros else None,
    )
    report = Report(
        verdict=verdict,
        measure=bench.measure,
        accuracy_before=delivery.accuracy_before,
        accuracy_after=judged.accuracy,
        change=judged.change,
        before=before,
        after=after,
        original_size=original_size,
        files=tuple(delivered),
        steps=tuple(steps),
        layers=_layer_reports(graph, inspection),
        data=tuple(part.as_report() for part in parts.values()),
        provenance=_provenance(job, phases),
        warnings=(*inspection.warnings, *warnings, *notes_on_zeros(before, after, original_size, delivered)),
    )
    write_atomically(outputs / "report.json", canonical_json(report))
    phases.event("finished", 1.0)
    models = (OutputFile(path=f"model.{form}", kind="model", media_type=MEDIA_TYPES[form]) for form in job.outputs)
    report_file = OutputFile(path="report.json", kind="report", media_type="application/json")
    return Outcome(outputs=(*models, report_file), verdict=verdict.sentence)


def canonical_json(report: Report) -> str:
    """The same report as the same bytes: keys in order, no NaN."""
    return json.dumps(report.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)


def _run_steps(
    job: Compress, uploaded: ModelGraph, bench: Bench, checkpoints: Checkpoints, phases: Phases
) -> tuple[ModelGraph, list[StepReport]]:
    """The network after all steps, and what each has to report; steps that an earlier attempt finished are not done again."""
    graph, reports = uploaded, list[StepReport]()
    share = (_STEPS_END - _STEPS_BEGIN) / len(job.recipe)
    for index, step in enumerate(job.recipe):
        begin = _STEPS_BEGIN + share * index
        with phases(step.kind, begin, step=index):
            done = checkpoints.load(index, uploaded)
            if done is None:
                before = reports[-1].accuracy_after if reports else bench.selection_accuracy(uploaded)
                started = time.monotonic()
                result = _run_step(step, graph, bench, phases.within(step.kind, index, begin, begin + share))
                report = StepReport(
                    kind=step.kind,
                    seconds=time.monotonic() - started,
                    accuracy_before=before,
                    accuracy_after=bench.selection_accuracy(result.graph),
                    predicted_change_pp=result.predicted_change_pp,
                    measured_change_pp=result.measured_change_pp,
                    details=result.details,
                    warnings=result.warnings,
                )
                done = checkpoints.save(index, result.graph, report, uploaded), report
            graph, report = done
            reports.append(report)
    return graph, reports


@dataclass(frozen=True)
class _StepResult:
    graph: ModelGraph
    predicted_change_pp: float | None
    measured_change_pp: float | None
    details: dict[str, Any]
    warnings: tuple[str, ...]


def _run_step(step: Step, graph: ModelGraph, bench: Bench, on_progress: StepProgress) -> _StepResult:
    match step:
        case PruneWeights():
            return _prune_weights(step, graph, bench, on_progress)
        case PruneWinograd():
            return _prune_winograd(step, graph, bench, on_progress)
        case Finetune():
            return _finetune(step, graph, bench, on_progress)
        case _:
            assert_never(step)


def _prune_weights(step: PruneWeights, graph: ModelGraph, bench: Bench, on_progress: StepProgress) -> _StepResult:
    examples = bench.pruning_examples(step.images_per_class)
    result = prune_weights(
        graph,
        step,
        evaluator_of=lambda network: SuffixEvaluator(network, examples, cache_mib=step.cache_mib),
        on_progress=on_progress,
    )
    return _StepResult(
        result.graph, result.predicted_change_pp, result.measured_change_pp, result.as_details(), result.warnings
    )


def _prune_winograd(step: PruneWinograd, graph: ModelGraph, bench: Bench, on_progress: StepProgress) -> _StepResult:
    train = None
    if step.training is not None:
        train = Trainer(bench.training_images(), step.training, bench.job.seed, graph, bench.uploaded, on_progress)
    examples = bench.pruning_examples(step.images_per_class)
    surroundings = Surroundings(
        measure=lambda network, names: measure_moments(network, names, bench.calibration_batches(network)),
        evaluator_of=lambda network: SuffixEvaluator(network, examples, cache_mib=step.cache_mib),
        evaluate=bench.selection_percent,
        train=train,
        seed=bench.job.seed,
    )
    result = prune_winograd(graph, step, surroundings, on_progress)
    return _StepResult(
        result.graph, result.predicted_change_pp, result.measured_change_pp, result.as_details(), result.warnings
    )


def _finetune(step: Finetune, graph: ModelGraph, bench: Bench, on_progress: StepProgress) -> _StepResult:
    result = finetune(
        graph,
        bench.training_images(),
        step,
        seed=bench.job.seed,
        teacher=bench.uploaded,
        evaluate=bench.selection_percent if "selection" in bench.parts else None,
        on_progress=on_progress,
    )
    change = None
    if result.accuracy_before is not None and result.accuracy_after is not None and not result.is_restored:
        change = result.accuracy_after - result.accuracy_before
    restored = ("Training made the network worse on the selection images, so it was left as it was.",)
    return _StepResult(result.graph, None, change, result.as_details(), restored if result.is_restored else ())


def _refuse_what_cannot_run(job: Compress, given: Mapping[Role, Dataset], inspection: ModelInspection) -> None:
    described = {
        role: DatasetInspection(
            format=dataset.format,
            images=len(dataset),
            shape=dataset.images.shape,
            dtype=dataset.images.dtype,
            labelled=dataset.labels is not None,
            class_counts=dataset.class_counts(),
        )
        for role, dataset in given.items()
    }
    problems = check_recipe(job.recipe, described, inspection, job.preprocess)
    if problems:
        first = problems[0]
        raise RecipeRefused(first.message, hint=first.hint, pointer=first.pointer)


def _layer_reports(graph: ModelGraph, inspection: ModelInspection) -> tuple[LayerReport, ...]:
    known, work = {layer.name: layer for layer in inspection.layers}, multiply_adds(graph)
    reports = []
    for layer in layers(graph):
        weight, info = parameter(graph, layer.weight), known.get(layer.name)
        reports.append(
            LayerReport(
                name=layer.name,
                kind=layer.kind,
                weight_shape=layer.weight_shape,
                weights=weight.numel(),
                nonzeros=nonzeros(weight),
                sparsity=1 - nonzeros(weight) / weight.numel(),
                bits=8 * weight.element_size(),
                macs=work[layer.name],
                eligible={} if info is None else {kind: found.reason for kind, found in info.steps.items()},
            )
        )
    return tuple(reports)


def _provenance(job: Compress, phases: Phases) -> Provenance:
    usage = os.times()
    return Provenance(
        input_sha256=job.model.sha256,
        seed=job.seed,
        recipe=[step.model_dump(mode="json") for step in job.recipe],
        versions={
            "winnow": version("winnow-server"),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
        },
        device=device_name(),
        threads=torch.get_num_threads(),
        sandbox=job.sandbox,
        wall_seconds=phases.seconds,
        cpu_seconds=usage.user + usage.system + usage.children_user + usage.children_system,
    )
