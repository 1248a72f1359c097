"""The steps of a recipe, one after the other, each kept as a checkpoint: what a step takes from its job, and what it leaves."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from jobs.estimates import WINOGRAD_PROBING_IMAGES
from jobs.recipe import (
    AssignPrecision,
    Finetune,
    PruneWeights,
    PruneWinograd,
    QuantizeFixedPoint,
    Step,
    TrainingOptions,
)
from jobs.report import StepReport
from jobs.request import Target
from workers.bench import Bench
from workers.checkpoints import Checkpoints, State
from workers.compression.assign_precision import Surroundings as PrecisionSurroundings
from workers.compression.assign_precision import assign_precision
from workers.compression.finetune import AfterStep, finetune
from workers.compression.learning_device import learning_device, name_of
from workers.compression.prune_weights import prune_weights
from workers.compression.prune_winograd import Surroundings, prune_winograd
from workers.compression.quantize_fixed_point import Surroundings as FixedPointSurroundings
from workers.compression.quantize_fixed_point import quantize_fixed_point
from workers.compression.suffix_evaluator import SuffixEvaluator
from workers.compression.winograd_times import Load
from workers.compression.winograd_training import Trainer
from workers.fixed_point.network import IntegerNetwork
from workers.models.graph import ModelGraph
from workers.progress import Phases, StepProgress


def run_steps(
    recipe: Sequence[Step], bench: Bench, checkpoints: Checkpoints, phases: Phases, *, begin: float, end: float
) -> tuple[State, list[StepReport]]:
    """What is left after all steps, and what each has to report; steps that an earlier attempt finished are not done again.

    `begin` and `end` are the part of the job's progress that the steps fill.
    """
    uploaded = bench.uploaded
    state, reports = State(uploaded), list[StepReport]()
    share = (end - begin) / max(1, len(recipe))
    for index, step in enumerate(recipe):
        begin_of_step = begin + share * index
        with phases(step.kind, begin_of_step, step=index):
            done = checkpoints.load(index, uploaded)
            if done is None:
                before = reports[-1].accuracy_after if reports else bench.selection_accuracy(uploaded)
                started = time.monotonic()
                on_progress = phases.within(step.kind, index, begin_of_step, begin_of_step + share)
                result = _run_step(step, state, recipe[index + 1 :], bench, on_progress)
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
    train, device = None, learning_device(graph)
    if step.training is not None:
        images = bench.training_images()
        train = Trainer(images, step.training, bench.job.seed, graph, bench.uploaded, on_progress, device)
    # Right answers are counted in whole images; how far scores move, each image tells.
    enough = None if step.score == "accuracy" else WINOGRAD_PROBING_IMAGES
    examples = bench.pruning_examples(step.images_per_class, enough=enough)
    surroundings = Surroundings(
        calibration=bench.calibration_batches,
        evaluator_of=lambda network: SuffixEvaluator(network, examples, cache_mib=step.cache_mib),
        evaluate=bench.selection_percent,
        train=train,
        seed=bench.job.seed,
        load=Load(graph.batch_size or bench.job.target.batch_size, bench.job.target.threads),
    )
    result = prune_winograd(graph, step, surroundings, on_progress)
    return _StepResult(
        result.graph,
        result.predicted_change_pp,
        result.measured_change_pp,
        {**result.as_details(), "learned_on": name_of(device) if train else None},
        (*result.warnings, *_time_warnings(step, bench.job.target)),
    )


def _time_warnings(step: PruneWinograd, target: Target) -> tuple[str, ...]:
    """Modelled times are of winograd's own kernels, which ONNX Runtime has nothing of."""
    goes_by_time = step.tile == "fastest" or step.saves == "time" or step.target_speedup is not None
    if not goes_by_time or target.runtime == "torch":
        return ()
    return (
        f"prune_winograd went by times of torch with winograd.load, but the target is {target.runtime}, where they may be "
        "others; its latency in this report is measured.",
    )


def _assign_precision(
    step: AssignPrecision, quantization: QuantizeFixedPoint, graph: ModelGraph, bench: Bench, on_progress: StepProgress
) -> _StepResult:
    def learn(network: ModelGraph, after_step: AfterStep) -> ModelGraph:
        # Learning to give the answers that the network gives already would move nothing: it learns them as labels.
        images = bench.training_images(answers_of=bench.uploaded)
        result = finetune(
            network, images, step.learning, seed=bench.job.seed, teacher=None, evaluate=None, on_progress=on_progress,
            learns_statistics=False, after_step=after_step, device=learning_device(network),
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
    def trained(network: ModelGraph, options: TrainingOptions) -> ModelGraph:
        # Whether the result is kept is for the step to judge, so nothing is evaluated here.
        result = finetune(
            network, bench.training_images(), options, seed=bench.job.seed, teacher=bench.uploaded, evaluate=None,
            on_progress=on_progress,
        )  # fmt: skip
        return result.graph

    pretraining, training = step.pretraining, step.training
    surroundings = FixedPointSurroundings(
        calibration=bench.calibration_batches,
        evaluate=bench.selection_percent,
        pretrain=None if pretraining is None else lambda network: trained(network, pretraining),
        retrain=None if training is None else lambda network: trained(network, training),
        preparations=bench.preparations,
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
        device=learning_device(graph),
    )
    change = None
    if result.accuracy_before is not None and result.accuracy_after is not None and not result.is_restored:
        change = result.accuracy_after - result.accuracy_before
    restored = ("Training made the network worse on the selection images, so it was left as it was.",)
    return _StepResult(result.graph, None, change, result.as_details(), restored if result.is_restored else ())
