"""How long method F takes on networks of real size, and how much memory.

    python -m benchmarks.fixed_point_cost --network resnet50 --images 100 500

The shape of ResNet-18 or ResNet-50 at 224x224 with seeded weights, random images: what a network has learned changes neither.
Each row is a process of its own, because memory is what the process had at most; before the step it has torch and the network.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.winograd import networks
from jobs.recipe import QuantizeFixedPoint
from workers.compression.quantize_fixed_point import Surroundings, quantize_fixed_point
from workers.models.graph import ModelGraph
from workers.models.read_model import read_model

SIDE = 224
BATCH = 10


def main() -> None:
    options = _options()
    if options.alone:
        print(_row(options.network, options.images[0], options.threads), flush=True)
        return
    print("| network | calibration images | images that weights are rounded for | seconds | GiB before | GiB at most |")
    print("|---|---|---|---|---|---|", flush=True)
    for count in options.images:
        arguments = ["--network", options.network, "--images", str(count), "--threads", str(options.threads), "--alone"]
        subprocess.run([sys.executable, "-m", "benchmarks.fixed_point_cost", *arguments], check=True)


def _row(network: str, count: int, threads: int) -> str:
    torch.set_num_threads(threads)
    step = QuantizeFixedPoint(kind="quantize_fixed_point", calibration_images=count)
    graph = _graph(network)
    before = _gib()
    started = time.monotonic()
    result = quantize_fixed_point(graph, step, Surroundings(_images, lambda _: 0.0), lambda *_: None)
    seconds = time.monotonic() - started
    return f"| {network} | {count} | {result.rounding_images} | {seconds:.0f} | {before:.2f} | {_gib():.2f} |"


def _graph(name: str) -> ModelGraph:
    torch.manual_seed(0)
    network = networks.NETWORKS[name]().eval().requires_grad_(False)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (torch.zeros(2, 3, SIDE, SIDE),), dynamic_shapes=shapes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt2"
        torch.export.save(program, path)
        return read_model(path)


def _images(_: ModelGraph, count: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, BATCH):
        yield torch.randn(min(BATCH, count - start), 3, SIDE, SIDE, generator=generator)


def _gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("resnet18", "resnet50"), default="resnet50")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 500], help="to calibrate with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="one row, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
