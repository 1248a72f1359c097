"""How fast is a network in integers as one operator of `winograd`, against the float network and against integer ONNX?

    python -m benchmarks.integer_networks --batch 1 8 64 --threads 1 2 --seconds 2

ResNet-20 on CIFAR-10, quantized by method F to 8 bits. Needs the folder of models and images that WINNOW_DATA names. All take
turns: the float network in ONNX Runtime and in torch, the integer file in ONNX Runtime, and `model.integers.pt2` as
`winograd.load` opens it, on each instruction set of this processor. Medians; ratios are the float network's in ONNX Runtime over
each.
Logits of test images are held against those of the reference runner first.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import onnxruntime
import torch
from torch import Tensor

import winograd
from benchmarks.material import CIFAR_PREPROCESS, cifar_selection, cifar_test, data_folder
from benchmarks.tables import table
from jobs.recipe import QuantizeFixedPoint
from jobs.request import Preprocess
from winograd import library
from workers.compression.quantize_fixed_point import FixedPointResult, Surroundings, quantize_fixed_point
from workers.datasets.preprocess import InputTransform
from workers.fixed_point.program_graph import with_program
from workers.fixed_point.run import IntegerRunner
from workers.fixed_point.write_qdq import write_qdq
from workers.models.graph import ModelGraph
from workers.models.read_model import read_model
from workers.models.write_onnx import write_onnx
from workers.models.write_pt2 import write_pt2

Run = Callable[[Tensor], object]
Setting = Callable[[], AbstractContextManager[None]]
WARM_UP = 5


def main() -> None:
    options = _options()
    onnxruntime.set_default_logger_severity(3)
    graph = read_model(data_folder() / "models" / "cifar10_resnet20.onnx")
    transform = InputTransform(Preprocess.model_validate(CIFAR_PREPROCESS), graph.inputs[0])
    test = transform(cifar_test()[0][: options.images])
    result = _quantized(graph, transform(cifar_selection(200)[0]))
    print(f"{winograd.info()}; tile registers: {'yes' if library.has_tiles() else 'no'}")
    with tempfile.TemporaryDirectory(prefix="winnow-") as name, torch.inference_mode():
        folder = Path(name)
        write_onnx(graph, folder / "float.onnx", pack_zeros=False)
        write_pt2(graph, folder / "float.pt2", pack_zeros=False)
        write_qdq(result.network, result.graph, folder / "integers.onnx", pack_int4=True)
        write_pt2(with_program(result.graph, result.network), folder / "integers.pt2", pack_zeros=False)
        for path in sorted(folder.iterdir()):
            print(f"{path.name}: {path.stat().st_size:,} bytes")
        for implementation in _implementations():
            with implementation():
                _check_logits(result, winograd.load(str(folder / "integers.pt2")), test)
        rows = []
        for threads in options.threads:
            torch.set_num_threads(threads)
            rows += [
                [f"{batch}, {threads}", *_times(folder, test[:batch], threads, options.seconds)]
                for batch in options.batch
            ]
    head = [
        "batch, threads",
        "ONNX Runtime, float, ms",
        "torch, float",
        "ONNX Runtime, integers",
        *_implementations().values(),
    ]
    print(table(head, rows))


def _implementations() -> dict[Setting, str]:
    """What sets an implementation of the operator, and its name."""
    found: dict[Setting, str] = {}
    for name in library.variants():
        if name == "avx512" and library.has_tiles():
            found[lambda: nullcontext()] = "winograd, tile registers"
            found[library.without_tiles] = "winograd, avx512"
        else:
            found[lambda name=name: library.force(name)] = f"winograd, {name}"  # type: ignore[misc]  # its default
    return found


def _times(folder: Path, images: Tensor, threads: int, seconds: float) -> list[str]:
    """Milliseconds of a batch, all taking turns, and how many times faster than the float network in ONNX Runtime."""
    runs: list[tuple[Setting, Run]] = [
        (nullcontext, _in_onnxruntime(folder / "float.onnx", threads)),
        (nullcontext, torch.export.load(folder / "float.pt2").module()),
        (nullcontext, _in_onnxruntime(folder / "integers.onnx", threads)),
    ]
    for implementation in _implementations():
        with implementation():
            runs.append((implementation, winograd.load(str(folder / "integers.pt2"))))
    times: list[list[float]] = [[] for _ in runs]
    ends = perf_counter() + seconds * len(runs)
    while perf_counter() < ends or len(times[0]) < 2 * WARM_UP:
        for (implementation, run), taken in zip(runs, times, strict=True):
            with ExitStack() as stack:
                stack.enter_context(implementation())
                run(images)  # brings its weights back into the caches, as a service that runs one network has them
                started = perf_counter()
                run(images)
                taken.append(perf_counter() - started)
    medians = [1e3 * median(taken[WARM_UP:]) for taken in times]
    return [f"{medians[0]:.3f} (n = {len(times[0]) - WARM_UP})"] + [
        f"{each:.3f}, {medians[0] / each:.2f}" for each in medians[1:]
    ]


def _in_onnxruntime(path: Path, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.numpy()})


def _check_logits(result: FixedPointResult, model: Run, images: Tensor) -> None:
    runner = IntegerRunner(result.network)
    wanted = runner.scores(runner.run(runner.quantize_input(images)))
    given = model(images)
    assert isinstance(given, Tensor)
    if not torch.equal(given.double(), wanted.reshape(given.shape)):
        raise SystemExit("The operator gives other logits than the reference runner.")


def _quantized(graph: ModelGraph, images: Tensor) -> FixedPointResult:
    def batches(_: ModelGraph, count: int) -> Iterator[Tensor]:
        yield from torch.split(images[:count], 50)

    step = QuantizeFixedPoint.model_validate(
        {"kind": "quantize_fixed_point", "calibration_images": len(images), "rounding": "nearest"}
    )
    return quantize_fixed_point(graph, step, Surroundings(batches, lambda _: 0.0), lambda *_: None)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2, help="of each of those that take turns")
    parser.add_argument("--images", type=int, default=200, help="test images whose logits are compared")
    return parser.parse_args()


if __name__ == "__main__":
    main()
