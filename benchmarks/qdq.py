"""How fast is the ONNX file of an integer network in ONNX Runtime, against the float network's, and does it give its integers?

    python -m benchmarks.qdq --seconds 4

ResNet-20 on CIFAR-10, quantized by method F. Needs the folder of models and images that WINNOW_DATA names. Both files run by turns
with one thread each; the ratio is that of the medians, with its 95 % interval over rounds. Logits of test images are held against
those of the reference runner.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from benchmarks.material import CIFAR_PREPROCESS, cifar_selection, cifar_test, data_folder
from benchmarks.tables import table
from jobs.recipe import QuantizeFixedPoint
from jobs.request import Preprocess
from workers.compression.quantize_fixed_point import FixedPointResult, Surroundings, quantize_fixed_point
from workers.datasets.preprocess import InputTransform
from workers.fixed_point.run import IntegerRunner
from workers.fixed_point.write_qdq import QdqReport, write_qdq
from workers.measurement.latency import alternate, speedup
from workers.models.graph import ModelGraph
from workers.models.read_model import read_model
from workers.models.write_onnx import write_onnx

BATCHES = (1, 8)
# weight bits, options of the step, whether weights of 4 bits are packed
VARIANTS: tuple[tuple[int, dict[str, Any], bool], ...] = (
    (8, {"align": "retune_opt"}, False),
    (8, {"align": "shift"}, False),
    (8, {"align": "shift", "activation_lengths": "per_layer"}, False),
    (4, {"align": "retune_opt"}, False),
    (4, {"align": "retune_opt"}, True),
)


def main() -> None:
    options = _options()
    onnxruntime.set_default_logger_severity(3)
    torch.set_num_threads(1)
    graph = read_model(data_folder() / "models" / "cifar10_resnet20.onnx")
    transform = InputTransform(Preprocess.model_validate(CIFAR_PREPROCESS), graph.inputs[0])
    test = transform(cifar_test()[0][: options.images])
    calibration = transform(cifar_selection(options.calibration)[0])
    rows = []
    with tempfile.TemporaryDirectory(prefix="winnow-") as name:
        plain, written = Path(name) / "float.onnx", Path(name) / "integers.onnx"
        write_onnx(graph, plain, pack_zeros=False)
        for bits, choices, is_packed in VARIANTS:
            result = _quantized(graph, calibration, {"weight_bits": bits, "rounding": "nearest", **choices})
            report = write_qdq(result.network, result.graph, written, pack_int4=is_packed)
            what = ", ".join([f"{bits} bits", *(str(choice) for choice in choices.values())])
            rows.append(
                [
                    what + (", packed" if is_packed else ""),
                    _integer_of(report),
                    _differing(result, written, test),
                    f"{report.size_bytes / 1e3:.0f} of {plain.stat().st_size / 1e3:.0f}",
                    *(_ratio(plain, written, test[:batch], options.seconds) for batch in BATCHES),
                ]
            )
            print(what, dict(Counter(_optimised(written, Path(name) / "optimised.onnx"))))
    head = ["weights", "convolutions in integers", "logits that differ", "kB", *(f"ratio, batch {n}" for n in BATCHES)]
    print(table(head, rows))


def _quantized(graph: ModelGraph, images: Tensor, options: dict[str, Any]) -> FixedPointResult:
    def batches(_: ModelGraph, count: int) -> Iterator[Tensor]:
        yield from torch.split(images[:count], 50)

    step = QuantizeFixedPoint.model_validate(
        {"kind": "quantize_fixed_point", "calibration_images": len(images), **options}
    )
    return quantize_fixed_point(graph, step, Surroundings(batches, lambda _: 0.0), lambda *_: None)


def _integer_of(report: QdqReport) -> str:
    """How many convolutions are computed in integers, of how many; whether the file claims to be exact."""
    count = sum(each.integer for each in report.convolutions)
    return f"{count} of {len(report.convolutions)}" + ("" if report.is_exact else ", not exact")


def _differing(result: FixedPointResult, path: Path, images: Tensor) -> str:
    """How many of the logits aren't those of the reference runner, of how many."""
    session = _session(path)
    given = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    runner = IntegerRunner(result.network)
    wanted = runner.scores(runner.run(runner.quantize_input(images)))
    return f"{int((given.double() != wanted.reshape(given.shape)).sum())} of {given.numel()}"


def _ratio(plain: Path, written: Path, images: Tensor, seconds: float) -> str:
    sessions = [_session(path) for path in (plain, written)]
    feed = {sessions[0].get_inputs()[0].name: images.numpy()}
    before, after = alternate(*((lambda s=s: s.run(None, feed)) for s in sessions), seconds=seconds)
    ratio, (low, high) = speedup(before, after, seed=0)
    medians = [sorted(times)[len(times) // 2] for times in (before, after)]
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}], {medians[0]:.2f} / {medians[1]:.2f} ms"


def _optimised(path: Path, optimised: Path) -> list[str]:
    """The operators that ONNX Runtime makes of the file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(optimised).graph.node]


def _session(path: Path) -> Any:  # Any: onnxruntime has no types
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="of each comparison")
    parser.add_argument("--calibration", type=int, default=200, help="images that lengths are taken from")
    parser.add_argument("--images", type=int, default=200, help="test images whose logits are compared")
    return parser.parse_args()


if __name__ == "__main__":
    main()
