"""Methods W and F together: Winograd convolutions F(2x2, 3x3) in integers, with all positions and with some pruned in every layer.

    python -m benchmarks.integer_winograd accuracy --counts 0 2 4 --bits 8/8 6/8 4/8
    python -m benchmarks.integer_winograd source --counts 0 4 --rounds 15
    python -m benchmarks.integer_winograd operator --counts 0 4 --rounds 40

ResNet-20 on CIFAR-10, nothing trained. `accuracy` prints what the 5,000 test images make of the float network without these
positions and of its integers, and the change between the two, with paired intervals of 95 %; `--images` training images decide,
others are fitted to. `source` compiles the C source of direct and of Winograd integers, and runs the programs by turns. `operator`
runs both as one operator of `winograd`, on each instruction set of this processor, and the direct integers' .onnx file in ONNX
Runtime, by turns as well; it first requires the same integers of every implementation.
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.c_source import timed_sources
from benchmarks.integer_networks import implementations
from benchmarks.material import CIFAR_PREPROCESS, cifar_learning, cifar_selection, cifar_test, data_folder
from benchmarks.tables import table
from jobs.recipe import PruneWinograd, QuantizeFixedPoint
from jobs.request import Preprocess
from winograd import integer_reference
from workers.compression.examples import Examples
from workers.compression.fixed_point_plan import make_plan
from workers.compression.fold_batchnorm import fold_batchnorm
from workers.compression.prune_winograd import Surroundings as PruningSurroundings
from workers.compression.prune_winograd import prune_winograd
from workers.compression.quantize_fixed_point import Surroundings, quantize_fixed_point
from workers.compression.suffix_evaluator import SuffixEvaluator
from workers.datasets.preprocess import InputTransform
from workers.datasets.splits import sample_per_class
from workers.fixed_point.compile_c import find_compiler
from workers.fixed_point.network import IntegerNetwork
from workers.fixed_point.write_program import integer_program
from workers.fixed_point.write_qdq import write_qdq
from workers.measurement.accuracy import accuracy_change
from workers.models.graph import ModelGraph
from workers.models.read_model import read_model
from workers.models.shapes import macs

BATCH = 250
CALIBRATION = 500  # images that are fitted to
PROBING = 512
IMAGES = 20  # of each program in each round
SECONDS = 0.05  # of each turn of an operator
FLAGS = ("-O3", "-march=native")
Implementation = Callable[[], AbstractContextManager[None]]


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    bench = _Bench(options.images)
    if options.what == "accuracy":
        _print_accuracy(bench, options.counts, options.bits)
    elif options.what == "source":
        _print_source(bench, options.counts, options.rounds)
    else:
        _print_operator(bench, options)


class _Bench:
    """ResNet-20, its images, and what a recipe makes of it."""

    def __init__(self, images: int) -> None:
        self.graph = read_model(data_folder() / "models" / "cifar10_resnet20.pt2")
        self._transform = InputTransform(Preprocess.model_validate(CIFAR_PREPROCESS), self.graph.inputs[0])
        self._selection = cifar_selection(images)
        self._learning = cifar_learning(CALIBRATION)[0]
        self.test, self.labels = cifar_test()

    def pruned(self, count: int) -> ModelGraph:
        """Without `count` of the 16 positions in every layer, the others fitted; nothing is trained."""
        selected = {"select": "count", "count": count, "max_drop_pp": 100, "rounds": 1}
        step = PruneWinograd.model_validate({"kind": "prune_winograd", "tile": 2, **selected})
        x, y = self._selection
        probed = sample_per_class(y, PROBING // 10, 0)
        examples = Examples(lambda wanted: x[probed[wanted]], self._transform, y[probed])
        around = PruningSurroundings(
            calibration=lambda _: self._batches(CALIBRATION),
            evaluator_of=lambda graph: SuffixEvaluator(graph, examples, cache_mib=2048),
            evaluate=lambda graph: 100 * float((self.answers(graph, x) == y).mean()),
            train=None,
            seed=0,
        )
        return prune_winograd(self.graph, step, around, lambda *_: None).graph

    def integers(self, graph: ModelGraph, weights: int, activations: int) -> tuple[IntegerNetwork, ModelGraph]:
        step = QuantizeFixedPoint.model_validate(
            {"kind": "quantize_fixed_point", "weight_bits": weights, "activation_bits": activations}
        )
        around = Surroundings(calibration=lambda _, count: self._batches(count), evaluate=lambda _: 0.0)
        result = quantize_fixed_point(graph, step, around, lambda *_: None)
        return result.network, result.graph

    def images(self, count: int) -> Tensor:
        return self._transform(self.test[:count])

    @torch.inference_mode()
    def answers(self, graph: ModelGraph, x: NDArray[np.uint8]) -> NDArray[np.int64]:
        parts = [graph(self._transform(x[at : at + BATCH]))[0].argmax(1).numpy() for at in range(0, len(x), BATCH)]
        return np.concatenate(parts)

    def _batches(self, count: int) -> Iterator[Tensor]:
        x = self._learning[:count]
        return (self._transform(x[at : at + BATCH]) for at in range(0, len(x), BATCH))


def _print_accuracy(bench: _Bench, counts: list[int], bits: list[str]) -> None:
    head = ("positions pruned", "weights/activations", "multiplications, times fewer", "float %", "integers %", "change, pp",
            "seconds")  # fmt: skip
    direct = sum(macs(bench.graph).values())
    rows = []
    for count in (None, *counts):
        graph = bench.graph if count is None else bench.pruned(count)
        work = sum(macs(make_plan(fold_batchnorm(graph)).graph).values())
        right = bench.answers(graph, bench.test) == bench.labels
        for given in bits:
            weights, activations = map(int, given.split("/"))
            begun = time.monotonic()
            _, simulated = bench.integers(graph, weights, activations)
            seconds = time.monotonic() - begun
            found = bench.answers(simulated, bench.test) == bench.labels
            change = accuracy_change(right, found)
            low, high = change.interval_pp
            rows.append((
                "direct" if count is None else count, given, f"{direct / work:.2f}", f"{100 * right.mean():.2f}",
                f"{100 * found.mean():.2f}", f"{change.change_pp:+.2f} [{low:+.2f}, {high:+.2f}]", f"{seconds:.0f}",
            ))  # fmt: skip
            print(table(head, rows[-1:]), flush=True)
    print(table(head, rows))


def _print_source(bench: _Bench, counts: list[int], rounds: int) -> None:
    compiler = find_compiler()
    assert compiler is not None, "no C compiler is on the PATH"
    with tempfile.TemporaryDirectory(prefix="winnow-") as name:
        programs, sizes = {}, {}
        for number, count in enumerate((None, *counts)):
            what = "direct" if count is None else f"Winograd, {count} positions pruned"
            network, _ = bench.integers(bench.graph if count is None else bench.pruned(count), 8, 8)
            source, files = timed_sources(network, Path(name) / str(number))
            programs[what] = Path(name) / f"program{number}"
            subprocess.run([compiler, "-std=c99", *FLAGS, "-o", programs[what], *files], check=True)
            sizes[what] = source.flash_bytes, source.ram_bytes
        times: dict[str, list[float]] = {what: [] for what in programs}
        for _ in range(rounds):
            for what, program in programs.items():
                output = subprocess.run([program, str(IMAGES)], capture_output=True, text=True, check=True).stdout
                times[what].append(float(output))
    first = next(iter(times))
    rows = [
        (what, f"{flash:,}", f"{ram:,}", f"{median(times[what]):.2f} ({min(times[what]):.2f}-{max(times[what]):.2f})",
         f"{median(a / b for a, b in zip(times[first], times[what], strict=True)):.2f}")
        for what, (flash, ram) in sizes.items()
    ]  # fmt: skip
    head = (f"cc {' '.join(FLAGS)}, {rounds} rounds", "flash, bytes", "RAM, bytes", "ms an image", "times faster")
    print(table(head, rows))


def _print_operator(bench: _Bench, options: argparse.Namespace) -> None:
    direct, simulated = bench.integers(bench.graph, 8, 8)
    networks = {"direct": direct}
    for count in options.counts:
        networks[f"Winograd, {count} positions pruned"] = bench.integers(bench.pruned(count), 8, 8)[0]
    for batch in options.batch:
        images = bench.images(batch)
        calls = {"ONNX Runtime, direct": _onnxruntime_call(direct, simulated, images, options.threads)}
        for what, network in networks.items():
            calls |= {f"{name}, {what}": call for name, call in _operator_calls(network, images).items()}
        times = _times_by_turns(calls, options.rounds)
        head = (f"batch {batch}, {options.threads} thread(s)", "ms a batch (middle half)", "times as fast as ONNX Runtime",
                "as its own direct integers")  # fmt: skip
        print(table(head, [_operator_row(name, times) for name in times]), flush=True)


def _operator_calls(network: IntegerNetwork, images: Tensor) -> dict[str, Callable[[], object]]:
    """By implementation of the operator, one call of the prepared network; all must give what the reference gives."""
    program = integer_program(network)
    size = program.values[program.output].size
    expected = integer_reference.run(program, images)
    calls: dict[str, Callable[[], object]] = {}
    for name, implementation in implementations().items():
        with implementation():
            prepared = torch.ops.winograd.prepare_integer_network(program.to_tensor())

        def call(prepared: Tensor = prepared, implementation: Implementation = implementation) -> Tensor:
            with implementation():
                output: Tensor = torch.ops.winograd.integer_network_prepared(images, prepared, size)
                return output

        assert torch.equal(call(), expected), f"{name} gives other integers than the reference"
        calls[name] = call
    return calls


def _onnxruntime_call(
    network: IntegerNetwork, simulated: ModelGraph, images: Tensor, threads: int
) -> Callable[[], object]:
    with tempfile.TemporaryDirectory(prefix="winnow-") as name:
        path = Path(name) / "integers.onnx"
        write_qdq(network, simulated, path, pack_int4=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def _times_by_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """By call, how many milliseconds it took in each round: the median of the calls that `SECONDS` have room for."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):  # the first warms up
        for name, call in calls.items():
            taken: list[float] = []
            end = time.perf_counter() + SECONDS
            while not taken or time.perf_counter() < end:
                begun = time.perf_counter()
                call()
                taken.append(1000 * (time.perf_counter() - begun))
            if number > 0:
                times[name].append(median(taken))
    return times


def _operator_row(name: str, times: dict[str, list[float]]) -> tuple[str, ...]:
    low, middle, high = quantiles(times[name], n=4)
    ratios = [
        f"{median(a / b for a, b in zip(times[other], times[name], strict=True)):.2f}"
        for other in (next(iter(times)), f"{name.split(', ')[0]}, direct")
    ]
    return (name, f"{middle:.3f} ({low:.3f}-{high:.3f})", *ratios)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("accuracy", "source", "operator"))
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 2, 4, 6], help="positions pruned in every layer")
    parser.add_argument("--bits", nargs="+", default=["8/8", "4/8"], help="of weights and activations")
    parser.add_argument("--images", type=int, default=2000, help="that decide")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images that an operator takes at once")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
