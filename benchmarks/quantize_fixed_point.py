"""Method F on real networks: accuracy by bit width, rule and way to align, against other quantizers.

    python -m benchmarks.quantize_fixed_point widths      table 1: bit widths, ways to align, what recovery without labels adds
    python -m benchmarks.quantize_fixed_point rules       table 2: rules and distributions for fractional lengths
    python -m benchmarks.quantize_fixed_point training    table 3: retraining with the lengths as they are
    python -m benchmarks.quantize_fixed_point rivals      table 4: one power of two a tensor, and ONNX Runtime's own quantization
    python -m benchmarks.quantize_fixed_point elsewhere   the same for NNCF and torchao, in an environment of their own
    python -m benchmarks.quantize_fixed_point spread      table 5: SQNR where channels differ, per channel and per layer
    python -m benchmarks.quantize_fixed_point additions   table 6: additions of residuals with and without shifts

ResNet-20 on CIFAR-10, or another network with --network or --model. Needs the folder of models and images that WINNOW_DATA names.
Calibration images, and those that decisions are made on, come from the training set; the 5,000 test images only measure. Changes
are paired, with 95 % intervals.

NNCF and torchao are asked where they are installed (requirements-quantizers.txt); QUANTIZERS_PYTHON (or --quantizers-python) names
the interpreter of that virtual environment.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.cifar_networks import NETWORKS, Trained, trained
from benchmarks.material import CIFAR_PREPROCESS, cifar_learning, cifar_selection, cifar_test, data_folder
from benchmarks.quantizers import QUANTIZERS
from jobs.recipe import QuantizeFixedPoint, RecoveryTraining
from jobs.request import Preprocess
from workers.compression.finetune import TrainingImages, finetune
from workers.compression.quantize_fixed_point import FixedPointResult, Surroundings, quantize_fixed_point
from workers.datasets.preprocess import InputTransform
from workers.measurement.accuracy import accuracy_change
from workers.models.graph import ModelGraph, layers, parameter, set_parameter
from workers.models.read_model import model_format, read_model
from workers.models.write_onnx import write_onnx

BATCH = 100
WIDTHS = ((8, 8), (6, 6), (5, 8), (4, 8), (4, 4))  # weights, activations
PLAIN = {"rounding": "nearest", "correct_bias": False}
# `retune_opt` would choose a length for every output channel.
ONE_LENGTH = {"activation_lengths": "per_layer", "weight_lengths": "per_layer", "align": "shift"}
NAIVE = {**ONE_LENGTH, "rule": "max_abs", **PLAIN}
ROOT = Path(__file__).parents[1]


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    network = trained(options.network, folded=options.folded)
    if options.model:
        network = Trained(read_model(options.model), CIFAR_PREPROCESS)
    if options.table == "spread":
        _spread_channels(network.graph, options.spread, options.seed)
    bench = Bench(network, options.images, options.calibration, options.learning_images, options.seed)
    print("| weights | activations | options | test % | change, pp | weight bits stored | accumulator bits | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    if options.table == "elsewhere":
        for name in QUANTIZERS:
            started = time.monotonic()
            right = bench.right_elsewhere(name, _exported_program(options), options.quantizers_python, options.threads)
            _print(bench, 8, 8, name, right, f"8 | – | {time.monotonic() - started:.0f}")
        return
    if options.table == "rivals":
        for is_folded, is_per_channel in itertools.product((False, True), (True, False)):
            started = time.monotonic()
            right = bench.right_in_onnxruntime(is_folded=is_folded, is_per_channel=is_per_channel)
            shown = f"ONNX Runtime static, {'per channel' if is_per_channel else 'per tensor'} weights, free scales"
            shown += ", batch norms folded in before" if is_folded else ""
            _print(bench, 8, 8, shown, right, f"8 | 32 | {time.monotonic() - started:.0f}")
    tables = {"widths": _widths, "rules": _rules, "training": _training, "rivals": _rivals, "spread": _spread}
    tables["additions"] = _additions
    for weights, activations, step in tables[options.table](options):
        if options.bits and f"{weights}/{activations}" not in options.bits:
            continue
        _print_row(bench, weights, activations, step, shows_sqnr=options.table == "spread")


def _widths(_: argparse.Namespace) -> Iterator[tuple[int, int, dict[str, Any]]]:
    per_layer = {"activation_lengths": "per_layer", "align": "shift"}
    for weights, activations in WIDTHS:
        for align in ("shift", "retune_opt", "retune"):
            yield weights, activations, {"align": align, **PLAIN}
        yield weights, activations, {**per_layer, **PLAIN}
        yield weights, activations, {"align": "retune_opt", "rounding": "nearest"}
        yield weights, activations, {"align": "shift"}
        yield weights, activations, {"align": "retune_opt"}
        yield weights, activations, per_layer


def _rules(_: argparse.Namespace) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for weights, activations in ((8, 8), (4, 8), (4, 4)):
        for rule in ("empirical_mse", "max_abs", "k_sigma"):
            yield weights, activations, {"rule": rule}
        for pdf in ("auto", "gaussian", "logistic", "hypsecant", "laplace", "uniform", "supercauchy"):
            yield weights, activations, {"rule": "pdf_sqnr", "pdf": pdf}


def _training(options: argparse.Namespace) -> Iterator[tuple[int, int, dict[str, Any]]]:
    training = {"epochs": options.epochs, "learning_rate": options.learning_rate, "augment": "flip_crop"}
    for weights, activations in ((8, 8), (4, 8), (4, 4), (3, 8), (2, 8)):
        for loss in ("labels", "distillation"):
            yield weights, activations, {"training": {**training, "loss": loss}}


def _rivals(_: argparse.Namespace) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for options in (NAIVE, {}):
        for weights in (8, 4):
            yield weights, 8, options


def _spread(_: argparse.Namespace) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for lengths in ("per_channel", "per_layer"):
        yield 8, 8, {"activation_lengths": lengths, "align": "retune_opt", **PLAIN}
        for planes in ("per_output_channel", "per_plane"):
            yield 8, 8, {"activation_lengths": lengths, "weight_lengths": planes, "align": "shift", **PLAIN}
        yield 8, 8, {"activation_lengths": lengths, "align": "retune_opt", "equalise": True, **PLAIN}
        yield 8, 8, {"activation_lengths": lengths, "align": "shift", "equalise": True, **PLAIN}


def _additions(_: argparse.Namespace) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for weights, activations in ((8, 8), (4, 8), (4, 4)):
        for lengths in ("per_channel", "per_layer"):
            for additions in ("shift", "tie"):
                yield weights, activations, {"additions": additions, "activation_lengths": lengths}


@dataclass(frozen=True)
class Measured:
    """What one run of the step came to."""

    step: QuantizeFixedPoint
    result: FixedPointResult
    right: NDArray[np.bool_]  # one entry a test image
    seconds: float  # of the step


class Bench:
    """A network, its images, and what comes of quantizing it."""

    def __init__(self, network: Trained, images: int, calibration: int, learning_images: int, seed: int) -> None:
        self._graph = network.graph
        self._transform = InputTransform(Preprocess.model_validate(network.preprocess), self._graph.inputs[0])
        self._selection = cifar_selection(images, seed)
        self._test = cifar_test()
        self._calibration = calibration
        self._learning_images = learning_images
        self._seed = seed
        self.right_before = self._answers(self._graph, self._test[0]) == self._test[1]

    def measure(self, weights: int, activations: int, options: dict[str, Any]) -> Measured:
        """The step with these bits and options."""
        step = QuantizeFixedPoint.model_validate(
            {
                "kind": "quantize_fixed_point",
                "weight_bits": weights,
                "activation_bits": activations,
                "calibration_images": self._calibration,
                **options,
            }
        )
        started = time.monotonic()
        result = self._run(step)
        seconds = time.monotonic() - started
        return Measured(step, result, self._answers(result.graph, self._test[0]) == self._test[1], seconds)

    def accuracy(self, right: NDArray[np.bool_]) -> str:
        """Two cells of a table: test accuracy, and its change against floating point with the 95 % interval."""
        change = accuracy_change(self.right_before, right)
        low, high = change.interval_pp
        return f"{100 * right.mean():.2f} | {change.change_pp:+.2f} [{low:+.2f}, {high:+.2f}]"

    def right_in_onnxruntime(self, *, is_folded: bool, is_per_channel: bool) -> NDArray[np.bool_]:
        """What a user has without Winnow: ONNX Runtime's static quantization, free scales."""
        from onnxruntime import InferenceSession
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        x = self._selection[0][: self._calibration]
        batches = [self._transform(x[start : start + 1]).numpy() for start in range(len(x))]

        class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
            def __init__(self, name: str) -> None:
                self._rest = iter([{name: batch} for batch in batches])

            def get_next(self) -> dict[str, Any] | None:
                return next(self._rest, None)

        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
            (self._write_folded if is_folded else self._write)(given)
            name = InferenceSession(str(given)).get_inputs()[0].name
            quantize_static(
                str(given), str(made), Reader(name), quant_format=QuantFormat.QDQ, per_channel=is_per_channel,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
            session = InferenceSession(str(made))
        answers = [
            session.run(None, {name: self._transform(self._test[0][start : start + BATCH]).numpy()})[0].argmax(1)
            for start in range(0, len(self._test[0]), BATCH)
        ]
        right: NDArray[np.bool_] = np.concatenate(answers) == self._test[1]
        return right

    def right_elsewhere(self, name: str, program: Path, python: str, threads: int) -> NDArray[np.bool_]:
        """The same for one of `QUANTIZERS`, run by another interpreter; `program` is the network as torch exported it."""
        with tempfile.TemporaryDirectory() as name_of_folder:
            folder = Path(name_of_folder)
            self._write_folded(folder / "network.onnx")
            _copy_without_pickle(program, folder / "network.pt2")
            for file, x in (("calibration", self._selection[0][: self._calibration]), ("test", self._test[0])):
                np.savez(folder / f"{file}.npz", x=self._transform(x).numpy())
            command = [python, "-m", "benchmarks.quantizers", name, str(folder)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr}")
            answers: NDArray[np.int64] = np.load(folder / "answers.npy", allow_pickle=False)
        right: NDArray[np.bool_] = answers == self._test[1]
        return right

    def _write(self, path: Path) -> None:
        write_onnx(self._graph, path, pack_zeros=False)

    def _write_folded(self, path: Path) -> None:
        """With batch norms folded in, by what ONNX Runtime advises to do before quantizing."""
        from onnxruntime.quantization.shape_inference import quant_pre_process

        given = path.with_name("given.onnx")
        self._write(given)
        quant_pre_process(str(given), str(path), skip_symbolic_shape=True)

    def _run(self, step: QuantizeFixedPoint) -> FixedPointResult:
        x, y = self._selection
        training = step.training
        surroundings = Surroundings(
            calibration=lambda graph, count: (
                self._transform(x[n : min(n + BATCH, count)]) for n in range(0, min(count, len(x)), BATCH)
            ),
            evaluate=lambda graph: 100 * float((self._answers(graph, x) == y).mean()),
            retrain=None if training is None else lambda graph: self._trained(graph, training),
        )
        return quantize_fixed_point(self._graph, step, surroundings, lambda *_: None)

    @cached_property
    def _learning(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return cifar_learning(self._learning_images)

    def _trained(self, graph: ModelGraph, training: RecoveryTraining) -> ModelGraph:
        x, y = self._learning
        images = TrainingImages(len(x), lambda wanted: x[wanted], self._transform, y)
        result = finetune(
            graph, images, training, seed=self._seed, teacher=self._graph, evaluate=None, on_progress=lambda *_: None,
        )  # fmt: skip
        return result.graph

    @torch.inference_mode()
    def _answers(self, graph: ModelGraph, x: NDArray[np.uint8]) -> NDArray[np.int64]:
        parts = [
            graph(self._transform(x[start : start + BATCH]))[0].argmax(1).numpy() for start in range(0, len(x), BATCH)
        ]
        return np.concatenate(parts)


def _exported_program(options: argparse.Namespace) -> Path:
    """The network's file as torch exported it: torchao finds nothing to quantize in files that Winnow wrote."""
    path: Path = options.model or data_folder() / "models" / "cifar10_resnet20.pt2"
    if model_format(path) != "pt2" or (options.network != NETWORKS[0] and not options.model):
        sys.exit("elsewhere needs resnet20, or a .pt2 file as --model")
    return path


def _copy_without_pickle(program: Path, copy: Path) -> None:
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(copy, "w") as target:
        for entry in source.infolist():
            is_sample = "/data/sample_inputs/" in entry.filename  # a pickle; torch wants the entry, but nothing in it
            target.writestr(entry.filename, b"" if is_sample else source.read(entry))


def _print_row(bench: Bench, weights: int, activations: int, options: dict[str, Any], *, shows_sqnr: bool) -> None:
    measured = bench.measure(weights, activations, options)
    step, result = measured.step, measured.result
    shown = ", ".join(f"{name}: {value}" for name, value in options.items() if name != "training") or "defaults"
    if step.training is not None:
        assert result.training is not None
        shown += f", {step.training.epochs} epochs of {step.training.loss}"
        shown += "" if result.training.is_kept else " (not kept)"
    if shows_sqnr:
        shown += f", SQNR {np.mean([layer.output_sqnr_db for layer in result.layers]):.1f} dB"
    if "additions" in options:
        assert result.additions is not None
        shown += f", {result.additions.shifted_channels} of {result.additions.channels} added channels shifted"
    stored, accumulator = (
        max(getattr(each, name) for each in result.layers) for name in ("stored_bits", "accumulator_bits")
    )
    _print(bench, weights, activations, shown, measured.right, f"{stored} | {accumulator} | {measured.seconds:.0f}")


def _print(bench: Bench, weights: int, activations: int, shown: str, right: NDArray[np.bool_], rest: str) -> None:
    print(f"| {weights} | {activations} | {shown} | {bench.accuracy(right)} | {rest} |", flush=True)


def _spread_channels(graph: ModelGraph, deviations: float, seed: int) -> None:
    """Scale the channels inside of every block by powers of two that the next layer takes back: the same function."""
    generator = torch.Generator().manual_seed(seed)
    found = {layer.name: layer for layer in layers(graph)}
    norms = {name for name, _ in graph.module.named_parameters()}
    for name, layer in found.items():
        following = found.get(name.replace("conv1", "conv2"))
        norm = name.replace("conv1", "bn1")
        if following is None or following is layer or f"{norm}.weight" not in norms:
            continue
        scales = torch.exp2(torch.round(deviations * torch.randn(layer.weight_shape[0], generator=generator)))
        for parameter_name in (f"{norm}.weight", f"{norm}.bias"):
            set_parameter(graph, parameter_name, parameter(graph, parameter_name).detach() * scales)
        weight: Tensor = parameter(graph, following.weight).detach()
        set_parameter(graph, following.weight, weight / scales.reshape(1, -1, *[1] * (weight.dim() - 2)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("widths", "rules", "training", "rivals", "elsewhere", "spread", "additions"))
    parser.add_argument(
        "--images", type=int, default=2000, help="that decisions are made on, and calibration images among them"
    )
    parser.add_argument("--bits", nargs="+", help="of weights/activations, such as 4/8; all of the table if not given")
    parser.add_argument("--calibration", type=int, default=500)
    parser.add_argument("--learning-images", type=int, default=25_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument(
        "--spread", type=float, default=2.0, help="standard deviation of the channels' log2 scales (spread)"
    )
    parser.add_argument("--network", choices=NETWORKS, default=NETWORKS[0])
    parser.add_argument("--model", type=Path, help="a file in place of it, which takes images as resnet20 does")
    parser.add_argument("--quantizers-python", default=os.environ.get("QUANTIZERS_PYTHON", sys.executable))
    parser.add_argument("--folded", action="store_true", help="resnet20 with batch normalisation folded in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
