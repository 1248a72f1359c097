"""A compression job from the uploaded files to the delivered ones, as one straight line.

read the model and the data, assign roles, check that the recipe can run
baseline on the selection images
each step of the recipe, kept as a checkpoint; or a search for the recipe that serves the goal best
write the files, reload each in a fresh process, measure it there
accuracy on the test images, looked at here for the first time
report
"""

import json
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from jobs.data_roles import Role, may_learn
from jobs.errors import RecipeRefused
from jobs.folder import FINISH, Compress, Outcome, OutputFile, write_atomically
from jobs.inspection import DatasetInspection, ModelInspection
from jobs.preflight import check_request
from jobs.report import DeliveredFile, LayerReport, Provenance, Report, Totals
from workers.bench import Bench
from workers.checkpoints import Checkpoints, State
from workers.datasets.dataset import Dataset
from workers.datasets.preprocess import fit_dataset
from workers.datasets.read_dataset import read_dataset
from workers.datasets.roles import RoleFile, assign_roles
from workers.delivery import FILE_NAMES, MEDIA_TYPES, Delivery, device_name, opened_format, write_all
from workers.measurement.size import file_size, nonzeros, totals
from workers.models.graph import ModelGraph, layers, parameter
from workers.models.inspect_model import describe
from workers.models.read_model import model_format, read_model
from workers.models.shapes import macs as multiply_adds
from workers.progress import Phases, ReportProgress
from workers.search.search import search
from workers.steps import run_steps
from workers.verdict import judge, notes_on_zeros

ZEROS_ARE_NOT_SPEED = "unstructured zeros do not speed up dense kernels"
FLOATS_ARE_NOT_FASTER = (
    "in torch's own operators, integers are computed as the floating-point numbers that they stand for; pt2_integers is computed "
    "in integers"
)

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
        parts = assign_roles(files, learns=may_learn(job), seed=job.seed)

    with phases("baseline", 0.02):
        bench = Bench(job, uploaded, inspection, parts)
        warnings = bench.health_warnings()

    found = None
    if job.goal is not None:
        with phases("searching", _STEPS_BEGIN):
            kept = work / "checkpoints" / "search"
            found = search(job, bench, inspection, kept, _searching(phases), is_finish_wanted=(folder / FINISH).exists)
            state, steps = found.measuring.run(found.recipe, Phases(lambda _: None))
        job = job.model_copy(update={"recipe": found.recipe, "outputs": found.outputs})
    else:
        checkpoints = Checkpoints(work / "checkpoints", job)
        state, steps = run_steps(job.recipe, bench, checkpoints, phases, begin=_STEPS_BEGIN, end=_STEPS_END)
    graph = state.graph

    macs = {layer.name: layer.macs for layer in inspection.layers}
    bits = {layer.layer: layer.weight_bits for layer in state.integers.convolutions} if state.integers else {}
    before, after = totals(uploaded, macs), totals(graph, multiply_adds(graph), bits)
    with phases("writing", _STEPS_END):
        # Zeros are packed only where that makes the file smaller.
        pays = after.bitmap_bytes < after.dense_bytes
        written, missing = write_all(state, job.outputs, outputs, pack_zeros=pays)

    with phases("verifying", _VERIFYING):
        delivery = Delivery(job, folder, uploaded, state, bench)
        integers = delivery.check_integers()
        delivered = []
        for number, (form, said) in enumerate(written.items()):
            name = FILE_NAMES[form]
            phases.report("verifying", _VERIFYING + (1 - _VERIFYING) * number / len(written), name)
            delivered.append(delivery.measure(outputs / name, form, said))
        delivery.clean_up()

    opened = opened_format(job.target.runtime, tuple(written), state)
    judged = next((file for file in delivered if file.format == opened), delivered[0])
    original_size = file_size(upload)
    verdict = judge(
        before=delivery.accuracy_before,
        after=judged.accuracy,
        change=judged.change,
        original=original_size,
        original_format=inspection.format,
        delivered=judged,
        limits=job.limits,
        goal=job.goal,
        remark=None if found is None else found.remark(),
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
        search=None if found is None else found.report,
        data=tuple(part.as_report() for part in parts.values()),
        provenance=_provenance(job, phases),
        warnings=(*inspection.warnings, *warnings, *(found.warnings() if found else ()), *missing, *zeros),
    )
    write_atomically(outputs / "report.json", canonical_json(report))
    phases.event("finished", 1.0)
    models = (OutputFile(path=FILE_NAMES[form], kind="model", media_type=MEDIA_TYPES[form]) for form in written)
    others = [OutputFile(path="report.json", kind="report", media_type="application/json")]
    if found is not None:
        (outputs / "front.svg").write_text(found.drawing(), encoding="utf-8")
        others.append(OutputFile(path="front.svg", kind="figure", media_type="image/svg+xml"))
    return Outcome(outputs=(*models, *others), verdict=verdict.sentence)


def _searching(phases: Phases) -> Callable[[float, str], None]:
    def tell(share: float, message: str) -> None:
        phases.report("searching", _STEPS_BEGIN + (_STEPS_END - _STEPS_BEGIN) * min(1.0, share), message)

    return tell


def canonical_json(report: Report) -> str:
    """The same report as the same bytes: keys in order, no NaN."""
    return json.dumps(report.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)


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
    problems = check_request(job, described, inspection)
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
