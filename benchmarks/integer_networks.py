"""How fast is a network in integers as one operator of `winograd`, against the float network and against integers elsewhere?

    python -m benchmarks.integer_networks --network resnet20 --batch 1 8 64 --threads 1 2 --passes 4
    python -m benchmarks.integer_networks --network resnet18

ResNet-20 on CIFAR-10 as it was trained, which needs the folder of models and images that WINNOW_DATA names; or the shape of
ResNet-18 at 224x224 with random weights and images, for speed alone. Quantized by method F to 8 bits, rounded to the nearest.
Engines take turns in processes of their own (benchmarks/winograd/turns.py): the float network in ONNX Runtime, OpenVINO and torch,
the integer .onnx file in ONNX Runtime and OpenVINO, and the .pt2 file with the operator, on each instruction set of this
processor. Medians over passes; ratios are the float network's in ONNX Runtime over each. OpenVINO is measured where
PEERS_PYTHON names a virtual environment that has it.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

import winograd
from benchmarks.material import CIFAR_PREPROCESS, cifar_selection, cifar_test, data_folder
from benchmarks.tables import table
from benchmarks.winograd import networks
from benchmarks.winograd.engines import Runnable
from benchmarks.winograd.problems import Material, Problem
from benchmarks.winograd.turns import Runner, Timing, processes, take_turns
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

FLOAT_IN_TORCH = "torch, float"
CALIBRATION = {"resnet20": 200, "resnet18": 8}


def main() -> None:
    options = _options()
    runners = [
        Runner("onnxruntime", ""),
        Runner("onnxruntime", "integers"),
        *(Runner("openvino", variant) for variant in ("", "integers") if options.peers_python),
        Runner("integers", FLOAT_IN_TORCH),
        *(Runner("integers", name) for name in implementations()),
    ]
    print(f"tile registers: {library.has_tiles()}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="winnow-") as name:
        folder = Path(name)
        images = _write_files(options.network, folder)
        for path in sorted(folder.iterdir()):
            print(f"{path.name}: {path.stat().st_size:,} bytes")
        pythons = dict.fromkeys(("onnxruntime", "integers"), sys.executable) | {"openvino": options.peers_python}
        for threads in options.threads:
            with processes(list(dict.fromkeys(runner.engine for runner in runners)), threads, pythons) as started:
                for batch in options.batch:
                    _write_problem(options.network, images[:batch], folder)
                    timings = take_turns(started, runners, folder, passes=options.passes, seconds=options.seconds)
                    rows.append([f"{batch}, {threads}", *(_cell(timings, runner) for runner in runners)])
    print(table(["batch, threads", *(_name(runner) for runner in runners)], rows))


def build(material: Material, threads: int, variant: str) -> Runnable:
    """Called in the engine's process."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    images, folder = torch.from_numpy(material.images), material.onnx.parent
    if variant == FLOAT_IN_TORCH:
        network: Callable[[Tensor], Tensor] = torch.export.load(folder / "model.pt2").module()
        return Runnable(lambda: network(images), lambda: network(images).numpy())
    with implementations()[variant]():
        integers = winograd.load(str(folder / "integers.pt2"))

    def run() -> Tensor:
        with implementations()[variant]():
            output: Tensor = integers(images)
            return output

    return Runnable(run, lambda: run().numpy(), exact=np.load(folder / "integers.npy")[material.problem.checked_images])


def implementations() -> dict[str, Callable[[], AbstractContextManager[None]]]:
    """By name, what sets an implementation of the operator."""
    found: dict[str, Callable[[], AbstractContextManager[None]]] = {}
    for name in library.variants():
        if name == "avx512" and library.has_tiles():
            found |= {"tile registers": nullcontext, "avx512": library.without_tiles}
        else:
            found[name] = lambda name=name: library.force(name)  # type: ignore[misc]  # its default
    return found


def _name(runner: Runner) -> str:
    return runner.variant if runner.engine == "integers" else f"{runner.engine}, {runner.variant or 'float'}"


def _cell(timings: dict[str, Timing], runner: Runner) -> str:
    timing, basis = timings[runner.name], timings["onnxruntime"]
    if timing.refused is not None:
        return timing.refused
    middle = median(timing.medians)
    return f"{middle:.3f} (n = {timing.runs}, +{100 * timing.spread:.0f} %), {median(basis.medians) / middle:.2f}"


def _write_files(network: str, folder: Path) -> Tensor:
    """Write the float network and its integers in each form, and what the integers are; returns images."""
    if network == "resnet20":
        graph = read_model(data_folder() / "models" / "cifar10_resnet20.onnx")
        transform = InputTransform(Preprocess.model_validate(CIFAR_PREPROCESS), graph.inputs[0])
        images = transform(cifar_test()[0][:64])
        calibration = transform(cifar_selection(CALIBRATION[network])[0])
    else:
        networks.write_network(networks.network_problem(network, 224, 1), folder)
        graph = read_model(folder / "model.onnx")
        images = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        calibration = torch.randn(CALIBRATION[network], 3, 224, 224, generator=torch.Generator().manual_seed(1))
    write_onnx(graph, folder / "model.onnx", pack_zeros=False)
    write_pt2(graph, folder / "model.pt2", pack_zeros=False)
    result = _quantized(graph, calibration)
    write_qdq(result.network, result.graph, folder / "integers.onnx", pack_int4=True)
    write_pt2(with_program(result.graph, result.network), folder / "integers.pt2", pack_zeros=True)
    runner = IntegerRunner(result.network)
    np.save(folder / "integers.npy", runner.scores(runner.run(runner.quantize_input(images))).numpy())
    return images


def _write_problem(network: str, images: Tensor, folder: Path) -> None:
    """Write what the engines' processes read."""
    problem = Problem(network, 3, 0, images.shape[-1], len(images), chain=0)
    (folder / "problem.json").write_text(json.dumps(asdict(problem)))
    np.save(folder / "images.npy", images.numpy())
    with torch.inference_mode():
        outputs = torch.export.load(folder / "model.pt2").module()(images)
    np.save(folder / "exact.npy", outputs.double().numpy()[problem.checked_images])


def _quantized(graph: ModelGraph, images: Tensor) -> FixedPointResult:
    def batches(_: ModelGraph, count: int) -> Iterator[Tensor]:
        yield from torch.split(images[:count], 50)

    options = {"kind": "quantize_fixed_point", "calibration_images": len(images), "rounding": "nearest"}
    step = QuantizeFixedPoint.model_validate(options)
    return quantize_fixed_point(graph, step, Surroundings(batches, lambda _: 0.0), lambda *_: None)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=tuple(CALIBRATION), default="resnet20")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn")
    parser.add_argument("--peers-python", default=os.environ.get("PEERS_PYTHON"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
