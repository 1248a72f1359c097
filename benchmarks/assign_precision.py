"""Method Q on a real network: does the patents' order find the layers that bear fewer bits, and with which normalisation?

    python -m benchmarks.assign_precision curves      accuracy against average bits, every order at every number of layers
    python -m benchmarks.assign_precision budgets     what the step reaches at 0.2, 0.5 and 1 pp, and retraining after it

ResNet-20 on CIFAR-10. Needs the folder of models and images that WINNOW_DATA names. The network learns from, and is fitted to,
images of its training set, which it knows by heart; so decisions are made on the first test images, and the others only measure.
One table a seed, which learning and random orders follow.
"""

import argparse
import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.material import CIFAR_PREPROCESS, cifar_learning, cifar_test, data_folder
from jobs.recipe import AssignPrecision, LearningStatistics, QuantizeFixedPoint, RecoveryTraining
from jobs.request import Preprocess
from workers.compression.assign_precision import Surroundings, assign_precision
from workers.compression.finetune import AfterStep, TrainingImages, finetune
from workers.compression.precision_orders import LayerStatistics, Orders
from workers.compression.quantize_fixed_point import Surroundings as FixedPointSurroundings
from workers.compression.quantize_fixed_point import quantize_fixed_point
from workers.compression.second_networks import SecondNetworks
from workers.compression.weight_differences import DifferenceRecorder
from workers.datasets.preprocess import InputTransform
from workers.measurement.accuracy import accuracy_change
from workers.models.graph import ModelGraph, layers, parameter
from workers.models.read_model import read_model

BATCH = 100
BUDGETS = (0.2, 0.5, 1.0)
RANDOM_ORDERS = 5
QUANTIZATION = QuantizeFixedPoint(kind="quantize_fixed_point")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    for seed in options.seeds:
        bench = _Bench(options, seed)
        if options.table == "curves":
            bench.print_curves()
        else:
            bench.print_budgets()


class _Bench:
    """The network, its images, and one seed."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self._options = options
        self._seed = seed
        self._graph = read_model(data_folder() / "models" / "cifar10_resnet20.pt2")
        self._transform = InputTransform(Preprocess.model_validate(CIFAR_PREPROCESS), self._graph.inputs[0])
        x, y = cifar_test()
        self._selection, self._test = (
            (x[: options.images], y[: options.images]),
            (x[options.images :], y[options.images :]),
        )
        self._learning = cifar_learning(options.learning_images)
        self._right_before = self._answers(self._graph, self._test[0]) == self._test[1]

    # ---- Curves -----------------------------------------------------------------------------------------------------

    def print_curves(self) -> None:
        """The largest prefix of each order within each budget, as average bits; and accuracy halfway in bits."""
        step = self._step(bits=self._options.bits)
        recorded = self._recorded(step)
        lower = step.bits[1]
        networks = SecondNetworks(self._graph, QUANTIZATION, step.bits, self._calibration, lambda *_: None)
        known: dict[frozenset[str], float] = {}

        def accuracy_of(chosen: list[str]) -> float:
            key = frozenset(chosen)
            if key not in known:
                known[key] = self._selection_percent(networks.simulated(dict.fromkeys(chosen, lower)))
            return known[key]

        print(f"\nSeed {self._seed}: {lower} bits, drops in pp on {len(self._selection[0])} selection images")
        print(
            f"| order | {' | '.join(f'average bits at {budget} pp' for budget in BUDGETS)} | mean drop of all prefixes |"
        )
        print("|---|" + "---|" * (len(BUDGETS) + 1))
        first = accuracy_of([])
        for name, order in self._orders(recorded, networks, step).items():
            drops = [first - accuracy_of(order[:count]) for count in range(len(order) + 1)]
            bits = [self._average_bits(dict.fromkeys(order[:count], lower), step) for count in range(len(order) + 1)]
            reached = [
                min(b for b, drop in zip(bits, drops, strict=True) if drop <= budget + 1e-9) for budget in BUDGETS
            ]
            # The area under drop by average bits, so that orders that begin with large layers aren't better for that alone.
            area = -np.trapezoid(drops, bits) / (bits[0] - bits[-1])
            print(f"| {name} | {' | '.join(f'{each:.2f}' for each in reached)} | {area:.2f} |", flush=True)

    def _orders(
        self, recorded: LearningStatistics, networks: SecondNetworks, step: AssignPrecision
    ) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for reference in ("cycle_start", "initial"):
            for normalise in ("none", "var", "step"):
                asked = step.model_copy(update={"reference": reference, "normalise": normalise})
                statistics = LayerStatistics(self._graph, recorded, asked)
                found[f"differences, {reference}, {normalise}"] = statistics.ascending()
        statistics = LayerStatistics(self._graph, recorded, step)
        orders = Orders(statistics.ascending(), statistics.weights, networks.relative_errors(step.bits[1]))
        found["reversed"] = orders.named("reversed", 0)
        found["most weights first"] = orders.named("parameters", 0)
        found["fewest weights first"] = found["most weights first"][::-1]
        found["smallest quantization error first"] = orders.named("quantization_error", 0)
        for number in range(RANDOM_ORDERS):
            found[f"random {number}"] = orders.named("random", 100 * self._seed + number)
        return found

    def _recorded(self, step: AssignPrecision) -> LearningStatistics:
        weights = {layer.name: parameter(self._graph, layer.weight) for layer in layers(self._graph)}
        recorder = DifferenceRecorder(weights, step.learning)
        learned = self._learn(self._graph, recorder.after_step, step)
        losses = ", ".join(f"{loss:.4f}" for loss in recorder.losses)
        print(f"\nLearned: losses {losses}; {self._selection_percent(learned):.2f} % on the selection images")
        return recorder.statistics()

    def _average_bits(self, precision: Mapping[str, int], step: AssignPrecision) -> float:
        sizes = {layer.name: parameter(self._graph, layer.weight).numel() for layer in layers(self._graph)}
        return sum(precision.get(name, step.bits[0]) * size for name, size in sizes.items()) / sum(sizes.values())

    # ---- Budgets ----------------------------------------------------------------------------------------------------

    def print_budgets(self) -> None:
        """The step with its defaults, and method F's network with the bits that it assigned."""
        print(f"\nSeed {self._seed}")
        print(
            "| bits | budget, pp | average bits | layers chosen | selection drop, pp | test %, change | retrained | seconds |"
        )
        print("|---|---|---|---|---|---|---|---|")
        recorded = self._recorded(self._step())
        for bits in ((8, 4), (8, 4, 2)):
            for budget in BUDGETS:
                step = self._step(bits=bits, max_drop_pp=budget, statistics=recorded, controls=0)
                started = time.monotonic()
                result = assign_precision(self._graph, step, self._surroundings(step), lambda *_: None)
                seconds = time.monotonic() - started
                plain = self._quantized(result.precision, None)
                training = RecoveryTraining(epochs=self._options.epochs)
                retrained = self._quantized(result.precision, training)
                print(
                    f"| {'/'.join(map(str, bits))} | {budget} | {result.average_bits:.2f} | "
                    f"{', '.join(str(each.chosen) for each in result.passes)} of {len(result.order)} | "
                    f"{result.accuracy_first - result.accuracy_second:.2f} | {plain} | {retrained} | {seconds:.0f} |",
                    flush=True,
                )

    def _quantized(self, precision: dict[str, int], training: RecoveryTraining | None) -> str:
        surroundings = FixedPointSurroundings(
            calibration=self._calibration,
            evaluate=self._selection_percent,
            retrain=None if training is None else lambda graph: self._retrained(graph, training),
        )
        result = quantize_fixed_point(self._graph, QUANTIZATION, surroundings, lambda *_: None, precision)
        right = self._answers(result.graph, self._test[0]) == self._test[1]
        change = accuracy_change(self._right_before, right)
        low, high = change.interval_pp
        kept = "" if result.training is None or result.training.is_kept else " (training not kept)"
        return f"{100 * right.mean():.2f}, {change.change_pp:+.2f} [{low:+.2f}, {high:+.2f}]{kept}"

    # ---- What a job would give --------------------------------------------------------------------------------------

    def _step(self, **options: object) -> AssignPrecision:
        learning = {
            "epochs": self._options.learning_epochs,
            "learning_rate": self._options.learning_rate,
            "iterations": self._options.iterations,
        }
        return AssignPrecision.model_validate({"kind": "assign_precision", "learning": learning, **options})

    def _surroundings(self, step: AssignPrecision) -> Surroundings:
        return Surroundings(
            calibration=self._calibration,
            evaluate=self._selection_percent,
            quantization=QUANTIZATION,
            learn=lambda graph, after_step: self._learn(graph, after_step, step),
            seed=self._seed,
        )

    def _learn(self, graph: ModelGraph, after_step: AfterStep, step: AssignPrecision) -> ModelGraph:
        result = finetune(
            graph, self._images(), step.learning, seed=self._seed, teacher=None, evaluate=None,
            on_progress=lambda *_: None, learns_statistics=False,
            after_step=after_step,
        )  # fmt: skip
        return result.graph

    def _retrained(self, graph: ModelGraph, training: RecoveryTraining) -> ModelGraph:
        result = finetune(
            graph, self._images(), training, seed=self._seed, teacher=self._graph, evaluate=None,
            on_progress=lambda *_: None,
        )  # fmt: skip
        return result.graph

    def _images(self) -> TrainingImages:
        x, y = self._learning
        return TrainingImages(len(x), lambda wanted: x[wanted], self._transform, y)

    def _calibration(self, _: ModelGraph, count: int) -> Iterator[Tensor]:
        x = self._learning[0][:count]
        return (self._transform(x[start : start + BATCH]) for start in range(0, len(x), BATCH))

    def _selection_percent(self, graph: ModelGraph) -> float:
        x, y = self._selection
        return 100 * float((self._answers(graph, x) == y).mean())

    @torch.inference_mode()
    def _answers(self, graph: ModelGraph, x: NDArray[np.uint8]) -> NDArray[np.int64]:
        parts = [
            graph(self._transform(x[start : start + BATCH]))[0].argmax(1).numpy() for start in range(0, len(x), BATCH)
        ]
        return np.concatenate(parts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("curves", "budgets"))
    parser.add_argument(
        "--images", type=int, default=2000, help="that decisions are made on; the other test images measure"
    )
    parser.add_argument("--bits", type=int, nargs=2, default=[8, 2], help="first and lower precision (curves)")
    parser.add_argument("--learning-images", type=int, default=10_000)
    parser.add_argument("--learning-epochs", type=int, default=3)
    parser.add_argument("--iterations", type=int, help="optimiser steps of a cycle; an epoch if not given")
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--epochs", type=int, default=2, help="of retraining in integers (budgets)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
