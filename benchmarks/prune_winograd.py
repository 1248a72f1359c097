"""Method W on a real network: accuracy against pruned positions, with and without training, by score.

    python -m benchmarks.prune_winograd scores      table 1: the same number of positions in every layer, by --scores
    python -m benchmarks.prune_winograd training    table 2: the same, trained
    python -m benchmarks.prune_winograd allocation  table 3: positions given up across layers, down to a budget, or --reductions

ResNet-20 on CIFAR-10. Needs the folder of models and images that WINNOW_DATA names: images for learning and 5,000 others for
decisions come from the training set (the network was trained on all of it, so decisions are on images that it knows), the
5,000 test images only measure. Figures go to standard output as Markdown.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.material import CIFAR_PREPROCESS, cifar_learning, cifar_selection, cifar_test, data_folder
from jobs.estimates import WINOGRAD_PROBING_IMAGES
from jobs.recipe import PruneWinograd
from jobs.request import Preprocess
from workers.compression.examples import Examples
from workers.compression.finetune import TrainingImages
from workers.compression.learning_device import learning_device
from workers.compression.prune_winograd import Surroundings, WinogradResult, prune_winograd
from workers.compression.suffix_evaluator import SuffixEvaluator
from workers.compression.winograd_training import Trainer
from workers.datasets.preprocess import InputTransform
from workers.datasets.splits import sample_per_class
from workers.models.graph import ModelGraph
from workers.models.read_model import read_model

SCORES = ("mean_abs", "energy_white", "energy", "fit", "random")
COUNTS = {2: (0, 2, 4, 6, 8), 4: (0, 6, 12, 18)}
BATCH = 50
CALIBRATION = 2048


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    bench = _Bench(options)
    print("| tile | pruned | score | fitted | trained | fewer multiplications | selection % | test % | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in {"scores": _scores, "training": _training, "allocation": _allocation}[options.table](options):
        bench.print_row(row)


def _scores(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for tile, count in _counts(options):
        for score in (options.scores or SCORES) if count else SCORES[:1]:
            for compensate in (False, True) if count else (False,):
                yield _at_once(options, tile=tile, count=count, score=score, compensate=compensate)


def _training(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for tile, count in _counts(options):
        for score in (options.scores or ("fit",)) if count else ():
            for domain in options.domains:
                yield {
                    **_at_once(options, tile=tile, count=count, score=score, compensate=True),
                    "training": {**_training_options(options), "domain": domain},
                }


def _allocation(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    training = _training_options(options)
    for reduction in options.reductions:
        at_once = {"target_reduction": reduction, "max_drop_pp": 100, "rounds": 1, "max_rate": 0.7}
        yield {**at_once, "training": training} if training else at_once
    for budget in options.budgets if not options.reductions else ():
        yield {"max_drop_pp": budget}
        if options.epochs != 0:
            yield {"max_drop_pp": budget, "rounds": 4, "max_rate": 0.7, "training": training}


def _counts(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    for tile in options.tiles:
        for count in options.counts or COUNTS[tile]:
            yield tile, count


def _training_options(options: argparse.Namespace) -> dict[str, Any]:
    """What was given; the step's defaults for the rest."""
    given = {"epochs": options.epochs, "learning_rate": options.learning_rate}
    return {name: value for name, value in given.items() if value}


def _at_once(options: argparse.Namespace, *, count: int, **others: Any) -> dict[str, Any]:
    return {"select": "count", "count": count, "rounds": 1, "max_drop_pp": 100, "max_rate": 0.6, **others}


class _Bench:
    """The network, its images, and what one run of the step comes to."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._graph = read_model(data_folder() / "models" / f"cifar10_resnet20.{options.format}")
        self._transform = InputTransform(Preprocess.model_validate(CIFAR_PREPROCESS), self._graph.inputs[0])
        self._selection = cifar_selection(options.images, options.seed)
        self._test = cifar_test()
        self._learning = cifar_learning(options.learning_images)

    def print_row(self, step_options: dict[str, Any]) -> None:
        step = PruneWinograd.model_validate({"kind": "prune_winograd", **step_options})
        started = time.monotonic()
        result = self._run(step)
        seconds = time.monotonic() - started
        asked = f"{step.max_drop_pp} pp" if step.target_reduction is None else f"to {step.target_reduction}x"
        pruned = asked if step.count is None else step.count
        fitted = step.compensate and (step.training is None or step.training.domain == "winograd")
        trained = "no" if step.training is None else f"{step.training.domain}, {step.training.epochs} epochs"
        cells = [
            step.tile, pruned, step.score, "yes" if fitted else "no", trained,
            f"{result.multiplications_direct / result.multiplications:.2f}x", f"{result.accuracy_after:.2f}",
            f"{self._percent(result.graph, *self._test):.2f}", f"{seconds:.0f}",
        ]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)

    def _run(self, step: PruneWinograd) -> WinogradResult:
        train = None
        if step.training is not None:
            train = Trainer(
                self._training_images(),
                step.training,
                self._options.seed,
                self._graph,
                self._graph,
                lambda *_: None,
                learning_device(self._graph),
            )
        x, y = self._selection
        probed = sample_per_class(y, min(len(y), WINOGRAD_PROBING_IMAGES) // 10, self._options.seed)
        examples = Examples(lambda wanted: x[probed[wanted]], self._transform, y[probed])
        surroundings = Surroundings(
            calibration=lambda _graph: self._calibration(),
            evaluator_of=lambda graph: SuffixEvaluator(graph, examples, cache_mib=2048),
            evaluate=lambda graph: self._percent(graph, x, y),
            train=train,
            seed=self._options.seed,
        )
        return prune_winograd(self._graph, step, surroundings, lambda *_: None)

    def _calibration(self) -> Iterator[Tensor]:
        x = self._learning[0][:CALIBRATION]
        return (self._transform(x[start : start + BATCH]) for start in range(0, len(x), BATCH))

    def _training_images(self) -> TrainingImages:
        x, y = self._learning
        return TrainingImages(len(x), lambda wanted: x[wanted], self._transform, y)

    @torch.inference_mode()
    def _percent(self, graph: ModelGraph, x: NDArray[np.uint8], y: NDArray[np.int64]) -> float:
        right = 0
        for start in range(0, len(x), BATCH):
            scores = graph(self._transform(x[start : start + BATCH]))[0]
            right += int((scores.argmax(1).numpy() == y[start : start + BATCH]).sum())
        return 100 * right / len(x)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("scores", "training", "allocation"))
    parser.add_argument("--images", type=int, default=5000, help="selection images, the same number of each class")
    parser.add_argument("--learning-images", type=int, default=25_000)
    parser.add_argument("--tiles", nargs="+", type=int, default=list(COUNTS), choices=COUNTS)
    parser.add_argument(
        "--counts", nargs="+", type=int, help="positions to prune; default: a few numbers for each tile"
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="percentage points")
    parser.add_argument(
        "--reductions",
        type=float,
        nargs="+",
        default=[],
        help="times fewer multiplications, whatever they cost, instead of budgets",
    )
    parser.add_argument("--epochs", type=int, help="default: the step's; 0 for no training, in the table of allocation")
    parser.add_argument("--learning-rate", type=float, help="default: the step's")
    parser.add_argument("--scores", nargs="+", choices=SCORES, help="default: all, or fit where the network is trained")
    parser.add_argument("--domains", nargs="+", default=["winograd"], choices=("winograd", "spatial"))
    parser.add_argument("--format", choices=("pt2", "onnx"), default="pt2", help="with batch normalisation, or folded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
