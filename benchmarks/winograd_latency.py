"""How fast files with Winograd convolutions run, beside the file that they were made from.

    python -m benchmarks.winograd_latency --network resnet20 --threads 1 --batch 1 8 64
    python -m benchmarks.winograd_latency --network resnet18 --threads 1 --batch 1

The original: .pt2 in torch, the same compiled, .onnx in ONNX Runtime. Every 3x3 layer of stride 1 as F(4x4) or F(2x2), with all
positions or with as many random ones gone (speed doesn't depend on which): .pt2 opened by torch.export.load alone, by
winograd.load, which makes one call of it, and by the same operator by operator; .onnx in ONNX Runtime. ResNet-20 is the one of the
folder that WINNOW_DATA names, ResNet-18 has random weights.

Runtimes have processes of their own; who doesn't have the turn is stopped. Images lie as users have them, channels first. What is
printed are medians over passes of ratios within a pass, and the range of these.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.material import data_folder
from benchmarks.tables import table
from benchmarks.winograd import networks, results
from benchmarks.winograd.engines import Runnable
from benchmarks.winograd.problems import Material, Problem
from benchmarks.winograd.turns import Runner, Timing, processes, take_turns

TORCH, ONNX = "files", "files_onnxruntime"  # the engines
LOADED, BY_OPERATOR = "winograd.load", "operators"
SIZES = {"resnet20": 32, "resnet18": 224}


@dataclass(frozen=True)
class Kept:
    """So many positions of F(m x m, 3x3) in each layer."""

    m: int
    positions: int

    @property
    def file(self) -> str:
        return f"F({self.m})-{self.positions}"


KEPT = {"resnet20": (Kept(4, 36), Kept(4, 24), Kept(2, 16), Kept(2, 12)), "resnet18": (Kept(4, 36), Kept(4, 24))}


def main() -> None:
    options = _options()
    print(f"`python -m benchmarks.winograd_latency {' '.join(sys.argv[1:])}`, load {results.load():.1f} before.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(options.network, folder)
        for threads in options.threads:
            with processes([TORCH, ONNX], threads, {TORCH: sys.executable, ONNX: sys.executable}) as started:
                for batch in options.batch:
                    _write_problem(options.network, batch, folder)
                    timings = take_turns(
                        started, runners(options), folder, passes=options.passes, seconds=options.seconds
                    )
                    print(
                        f"\n### {options.network}, batch {batch}, {threads} thread(s)\n\n{report(timings)}", flush=True
                    )
    print(f"\nLoad {results.load():.1f} after.")


def runners(options: argparse.Namespace) -> list[Runner]:
    """What is timed, as FILE.FORMAT WAY."""
    originals = [Runner(TORCH, "original.pt2 torch"), Runner(ONNX, "original.onnx")]
    if options.compile:
        originals.append(Runner(TORCH, "original.pt2 compiled"))
    ours = [(TORCH, ".pt2 torch"), (TORCH, f".pt2 {LOADED}"), (TORCH, f".pt2 {BY_OPERATOR}"), (ONNX, ".onnx")]
    return originals + [Runner(engine, kept.file + way) for kept in KEPT[options.network] for engine, way in ours]


def report(timings: dict[str, Timing]) -> str:
    """Milliseconds, and how many times as fast as the original in torch and in ONNX Runtime."""
    rows, refused = [], []
    torch_original, onnx_original = (_named(timings, name) for name in ("original.pt2 torch", "original.onnx"))
    for name, timing in timings.items():
        if timing.refused:
            refused.append(f"Not run: {name}: {timing.refused}")
            continue
        times = [_times(original, timing) for original in (torch_original, onnx_original)]
        rows.append((_shown(name), f"{median(timing.medians):.3f}", *times, f"{timing.largest:.0e}"))
    head = ("file", "ms", "as fast as the original in torch", "in ONNX Runtime", "largest deviation")
    return "\n\n".join([table(head, rows), *refused])


def _shown(name: str) -> str:
    return name.removeprefix(f"{ONNX} ").removeprefix(f"{TORCH} ")


def _named(timings: dict[str, Timing], name: str) -> Timing:
    return next(timing for key, timing in timings.items() if _shown(key) == name)


def _times(original: Timing, timing: Timing) -> str:
    """Medians are of a pass; a pass lasts seconds, in which the machine is about equally busy for all."""
    ratios = [a / b for a, b in zip(original.medians, timing.medians, strict=True)]
    return f"{median(ratios):.2f} [{min(ratios):.2f} – {max(ratios):.2f}]"


# ---- The files ------------------------------------------------------------------------------------------------------------


def write_files(network: str, folder: Path) -> None:
    """The network as it is and with Winograd convolutions, each as .pt2 and .onnx."""
    from workers.compression.fold_batchnorm import fold_batchnorm
    from workers.compression.winograd_layers import Mask, to_winograd, why_not_winograd, without_pruned
    from workers.models.graph import layers, parameter
    from workers.models.read_model import read_model
    from workers.models.write_onnx import write_onnx
    from workers.models.write_pt2 import write_pt2

    uploaded = read_model(
        _resnet18(folder) if network == "resnet18" else data_folder() / "models" / "cifar10_resnet20.pt2"
    )
    graphs = {"original": uploaded}
    folded = fold_batchnorm(uploaded)
    able = [one for one in layers(folded) if why_not_winograd(one, parameter(folded, one.weight).dtype) is None]
    for kept in KEPT[network]:
        whole = to_winograd(folded, {layer.name: kept.m for layer in able})
        masks = {}
        for number, layer in enumerate(able):
            mask = Mask.whole(kept.m, 1, "output_channels")
            size = mask.kept.shape[1]
            mask.kept[0, random.Random(number).sample(range(size), size - kept.positions)] = False
            masks[layer.name] = mask
        graphs[kept.file] = without_pruned(whole, masks)
    for name, graph in graphs.items():
        write_pt2(graph, folder / f"{name}.pt2", pack_zeros=False)
        write_onnx(graph, folder / f"{name}.onnx", pack_zeros=False)


def _resnet18(folder: Path) -> Path:
    import torch

    torch.manual_seed(0)
    network = networks.resnet18().eval().requires_grad_(False)
    program = torch.export.export(
        network, (torch.zeros(2, 3, 224, 224),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, folder / "resnet18.pt2")
    return folder / "resnet18.pt2"


def _write_problem(network: str, batch: int, folder: Path) -> None:
    given = Problem(network, 3, 0, SIZES[network], batch, chain=0)
    images = np.random.default_rng(0).standard_normal((batch, 3, given.size, given.size), dtype=np.float32)
    (folder / "problem.json").write_text(json.dumps(asdict(given)))
    np.save(folder / "images.npy", images)
    np.save(folder / "exact.npy", np.zeros(1))  # files are compared with themselves in torch


# ---- In the processes of the engines ----------------------------------------------------------------------------------------


def build_torch(material: Material, threads: int, variant: str) -> Runnable:
    import torch

    torch.set_num_threads(threads)
    file, way = variant.split(" ")
    path = material.onnx.parent / file
    network, images = _in_torch(path, way), torch.from_numpy(material.images)

    def run() -> Any:
        with torch.inference_mode():
            return network(images)

    return Runnable(run, lambda: run().numpy(), _exact(material, path))


def build_onnx(material: Material, threads: int, variant: str) -> Runnable:
    import onnxruntime

    path = material.onnx.parent / variant
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: material.images}
    exact = _exact(material, path.with_suffix(".pt2"))
    return Runnable(lambda: session.run(None, inputs), lambda: session.run(None, inputs)[0], exact)


@cache
def _in_torch(path: Path, way: str) -> Callable[..., Any]:
    import torch

    import winograd

    if way in (LOADED, BY_OPERATOR):
        return winograd.load(path, in_one_call=way == LOADED)
    network = torch.export.load(path).module()
    if way == "compiled":
        torch._inductor.config.freezing = True
        return torch.compile(network, dynamic=False)
    return network


def _exact(material: Material, path: Path) -> NDArray[np.float64]:
    """What the file gives in torch; that torch computes in float32 is part of the deviation."""
    import torch

    with torch.inference_mode():
        images = torch.from_numpy(material.images[material.problem.checked_images])
        exact: NDArray[np.float64] = _in_torch(path, "torch")(images).double().numpy()
    return exact


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=tuple(SIZES), default="resnet20")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each turn")
    parser.add_argument(
        "--compile", action="store_true", help="also the original by torch.compile, which takes a minute"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
