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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, assert_never

import torch

from jobs.errors import RecipeRefused
from jobs.folder import Compress, Outcome, OutputFile, write_atomically
from jobs.inspection import DatasetInspection, ModelInspection
from jobs.preflight import Role, check_recipe, learns
from jobs.recipe import (
    AssignPrecision,
    Finetune,
    PruneWeights,
    PruneWinograd,
    QuantizeFixedPoint,
    Step,
    TrainingOptions,
)
from jobs.report import DeliveredFile, LayerReport, Provenance, Report, StepReport, Totals
from workers.bench import Bench
from workers.checkpoints import Checkpoints, State
from workers.compression.assign_precision import Surroundings as PrecisionSurroundings
from workers.compression.assign_precision import assign_precision
from workers.compression.finetune import AfterStep, finetune
from workers.compression.prune_weights import prune_weights
from workers.compression.prune_winograd import Surroundings, prune_winograd
from workers.compression.quantize_fixed_point import Surroundings as FixedPointSurroundings
from workers.compression.quantize_fixed_point import quantize_fixed_point
from workers.compression.suffix_evaluator import SuffixEvaluator
from workers.compression.winograd_training import Trainer
from workers.datasets.dataset import Dataset
from workers.datasets.preprocess import fit_dataset
from workers.datasets.read_dataset import read_dataset
from workers.datasets.roles import RoleFile, assign_roles
from workers.delivery import FILE_NAMES, MEDIA_TYPES, RUNTIMES, Delivery, device_name, write_state
from workers.fixed_point.network import IntegerNetwork
from workers.measurement.size import file_size, nonzeros, totals
from workers.models.graph import ModelGraph, layers, parameter
from workers.models.inspect_model import describe
from workers.models.read_model import model_format, read_model
from workers.models.shapes import macs as multiply_adds
from workers.progress import Phases, ReportProgress, StepProgress
from workers.verdict import judge, notes_on_zeros

ZEROS_ARE_NOT_SPEED = "unstructured zeros do not speed up dense kernels"
FLOATS_ARE_NOT_FASTER = "in torch, integers are computed as the floating-point numbers that they stand for"

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

    state, steps = _run_steps(job, uploaded, bench, Checkpoints(work / "checkpoints", job), phases)
    graph = state.graph

    macs = {layer.name: layer.macs for layer in inspection.layers}
    bits = {layer.layer: layer.weight_bits for layer in state.integers.convolutions} if state.integers else {}
    before, after = totals(uploaded, macs), totals(graph, multiply_adds(graph), bits)
    with phases("writing", _STEPS_END):
        # Zeros are packed only where that makes the file smaller.
        pays = after.bitmap_bytes < after.dense_bytes
        written = {form: write_state(state, outputs / FILE_NAMES[form], form, pack_zeros=pays) for form in job.outputs}

    with phases("verifying", _VERIFYING):
        delivery = Delivery(job, folder, uploaded, state, bench)
        integers = delivery.check_integers()
        delivered = []
        for number, form in enumerate(job.outputs):
            name = FILE_NAMES[form]
            phases.report("verifying", _VERIFYING + (1 - _VERIFYING) * number / len(job.outputs), name)
            delivered.append(delivery.measure(outputs / name, form, written[form]))
        delivery.clean_up()

    judged = next((file for file in delivered if RUNTIMES.get(file.format) == job.target.runtime), delivered[0])
    original_size = file_size(upload)
    verdict = judge(
        before=delivery.accuracy_before,
        after=judged.accuracy,
        change=judged.change,
        original=original_size,
        original_format=inspection.format,
        delivered=judged,
        limits=job.limits,
        why_not_faster=_why_not_faster(state, judged, before, after),
    )
    # Integers that happen to be zero are no pruning.
    zeros = notes_on_zeros(before, after, original_size, delivered) if state.integers is None else []
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
        layers=_layer_reports(graph, inspection, bits),
        integers=integers,
        data=tuple(part.as_report() for part in parts.values()),
        provenance=_provenance(job, phases),
        warnings=(*inspection.warnings, *warnings, *zeros),
    )
    write_atomically(outputs / "report.json", canonical_json(report))
    phases.event("finished", 1.0)
    models = (OutputFile(path=FILE_NAMES[form], kind="model", media_type=MEDIA_TYPES[form]) for form in job.outputs)
    report_file = OutputFile(path="report.json", kind="report", media_type="application/json")
    return Outcome(outputs=(*models, report_file), verdict=verdict.sentence)


def canonical_json(report: Report) -> str:
    """The same report as the same bytes: keys in order, no NaN."""
    return json.dumps(report.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)


def _run_steps(
    job: Compress, uploaded: ModelGraph, bench: Bench, checkpoints: Checkpoints, phases: Phases
) -> tuple[State, list[StepReport]]:
    """What is left after all steps, and what each has to report; steps that an earlier attempt finished are not done again."""
    state, reports = State(uploaded), list[StepReport]()
    share = (_STEPS_END - _STEPS_BEGIN) / len(job.recipe)
    for index, step in enumerate(job.recipe):
        begin = _STEPS_BEGIN + share * index
        with phases(step.kind, begin, step=index):
            done = checkpoints.load(index, uploaded)
            if done is None:
                before = reports[-1].accuracy_after if reports else bench.selection_accuracy(uploaded)
                started = time.monotonic()
                result = _run_step(
                    step, state, job.recipe[index + 1 :], bench, phases.within(step.kind, index, begin, begin + share)
                )
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
                left = State(result.graph, result.integers, result.precision or state.precision)
                done = checkpoints.save(index, left, report, uploaded), report
            state, report = done
            reports.append(report)
    return state, reports


@dataclass(frozen=True)
class _StepResult:
    graph: ModelGraph
    predicted_change_pp: float | None
    measured_change_pp: float | None
    details: dict[str, Any]
    warnings: tuple[str, ...]
    integers: IntegerNetwork | None = None
    precision: Mapping[str, int] | None = None


def _run_step(step: Step, state: State, later: Sequence[Step], bench: Bench, on_progress: StepProgress) -> _StepResult:
    graph = state.graph
    match step:
        case PruneWeights():
            return _prune_weights(step, graph, bench, on_progress)
        case PruneWinograd():
            return _prune_winograd(step, graph, bench, on_progress)
        case AssignPrecision():
            quantization = next(each for each in later if isinstance(each, QuantizeFixedPoint))
            return _assign_precision(step, quantization, graph, bench, on_progress)
        case QuantizeFixedPoint():
            return _quantize_fixed_point(step, state, bench, on_progress)
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
        calibration=bench.calibration_batches,
        evaluator_of=lambda network: SuffixEvaluator(network, examples, cache_mib=step.cache_mib),
        evaluate=bench.selection_percent,
        train=train,
        seed=bench.job.seed,
    )
    result = prune_winograd(graph, step, surroundings, on_progress)
    return _StepResult(
        result.graph, result.predicted_change_pp, result.measured_change_pp, result.as_details(), result.warnings
    )


def _assign_precision(
    step: AssignPrecision, quantization: QuantizeFixedPoint, graph: ModelGraph, bench: Bench, on_progress: StepProgress
) -> _StepResult:
    def learn(network: ModelGraph, after_step: AfterStep) -> ModelGraph:
        # Learning to give the answers that the network gives already would move nothing: it learns them as labels.
        images = bench.training_images(answers_of=bench.uploaded)
        result = finetune(
            network, images, step.learning, seed=bench.job.seed, teacher=None, evaluate=None, on_progress=on_progress,
            learns_statistics=False, max_gradient_norm=step.learning.max_gradient_norm, after_step=after_step,
        )  # fmt: skip
        return result.graph

    surroundings = PrecisionSurroundings(
        calibration=bench.calibration_batches,
        evaluate=bench.selection_percent,
        quantization=quantization,
        learn=learn,
        seed=bench.job.seed,
    )
    result = assign_precision(graph, step, surroundings, on_progress)
    return _StepResult(
        result.graph,
        result.predicted_change_pp,
        result.measured_change_pp,
        result.as_details(),
        result.warnings,
        precision=result.precision,
    )


def _quantize_fixed_point(
    step: QuantizeFixedPoint, state: State, bench: Bench, on_progress: StepProgress
) -> _StepResult:
    def trained(network: ModelGraph, options: TrainingOptions, norm: float | None = None) -> ModelGraph:
        # Whether the result is kept is for the step to judge, so nothing is evaluated here.
        result = finetune(
            network, bench.training_images(), options, seed=bench.job.seed, teacher=bench.uploaded, evaluate=None,
            on_progress=on_progress, max_gradient_norm=norm,
        )  # fmt: skip
        return result.graph

    pretraining, training = step.pretraining, step.training
    surroundings = FixedPointSurroundings(
        calibration=bench.calibration_batches,
        evaluate=bench.selection_percent,
        pretrain=None if pretraining is None else lambda network: trained(network, pretraining),
        retrain=None if training is None else lambda network: trained(network, training, training.max_gradient_norm),
    )
    result = quantize_fixed_point(state.graph, step, surroundings, on_progress, state.precision)
    return _StepResult(
        result.graph, None, result.measured_change_pp, result.as_details(), result.warnings, result.network
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
    problems = check_recipe(job.recipe, described, inspection, job.preprocess, job.outputs)
    if problems:
        first = problems[0]
        raise RecipeRefused(first.message, hint=first.hint, pointer=first.pointer)


def _why_not_faster(state: State, judged: DeliveredFile, before: Totals, after: Totals) -> str | None:
    if state.integers is not None:
        return FLOATS_ARE_NOT_FASTER if judged.format == "pt2" else None
    return ZEROS_ARE_NOT_SPEED if after.nonzeros < before.nonzeros else None


def _layer_reports(graph: ModelGraph, inspection: ModelInspection, bits: Mapping[str, int]) -> tuple[LayerReport, ...]:
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
                bits=bits.get(layer.name, 8 * weight.element_size()),
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
