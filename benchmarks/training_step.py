"""How long a step of training a pruned Winograd network takes, and the gradients of its convolutions.

    python -m benchmarks.training_step layers --threads 1 2     gradients of input and weights of one convolution, float32
    python -m benchmarks.training_step network --threads 1 2    ResNet-20 with 24 of F(4x4, 3x3)'s 36 positions in every layer

By turns: compiled code, what plain torch makes of the same sums, and, for layers, torch's gradients of the direct convolution.
A network learns from its uploaded form, 128 random images a step; "plain torch" is without compiled code throughout, the answers
of the uploaded network included. Figures are medians over rounds. The network comes from the folder that WINNOW_DATA names.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import torch
from winograd.matrices import MATRICES

from benchmarks.cifar_networks import trained
from benchmarks.tables import table
from jobs.recipe import WinogradTraining
from winograd import library, reference
from workers.compression.finetune import Stepped, TrainingImages, finetune
from workers.compression.winograd_layers import Mask, to_winograd, why_not_winograd, without_pruned
from workers.compression.winograd_positions import prune_lowest
from workers.models.graph import ModelGraph, layers, parameter

M, BATCH = 4, 128
LAYERS = (
    (128, 16, 32),
    (128, 32, 16),
    (128, 64, 8),
    (8, 64, 56),
    (8, 128, 28),
    (8, 256, 14),
    (8, 512, 7),
)  # N, C = K, H = W
KEPT = (36, 24)
SECONDS = 0.3  # of each turn of a layer
STEPS = 40  # of each turn of the network, for which preparing the teacher is worth it
SETTLING = 5  # steps before those that count
Timed = Callable[[], object]


def main() -> None:
    options = _options()
    rows = _of_layers if options.what == "layers" else _of_network
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"\n{threads} thread{'s' if threads > 1 else ''}, {options.rounds} rounds\n")
        head = ["N × C = K @ H = W", "positions"] if options.what == "layers" else ["network"]
        print(table([*head, "compiled, ms", "plain torch, ms", "as fast", *(["direct, ms", "as fast"] if len(head) > 1 else [])],
                    rows(options.rounds)), flush=True)  # fmt: skip


def _of_layers(rounds: int) -> Iterator[tuple[object, ...]]:
    for images, channels, side in LAYERS:
        for kept in KEPT:
            ours, plain, direct = _by_turns(_gradients_of(images, channels, side, kept), rounds)
            yield (
                f"{images} × {channels}@{side}", f"{kept} of 36",
                f"{ours:.2f}", f"{plain:.2f}", f"{plain / ours:.1f}", f"{direct:.2f}", f"{direct / ours:.1f}",
            )  # fmt: skip


def _gradients_of(images: int, channels: int, side: int, kept: int) -> list[Timed]:
    generator = torch.Generator().manual_seed(0)
    positions = sorted(torch.randperm(MATRICES[M].t ** 2, generator=generator)[:kept].tolist())
    x = torch.randn(images, channels, side, side, generator=generator)
    filters = torch.randn(channels, channels, 3, 3, generator=generator) / channels
    weights = reference.transform_filters(filters, positions, M)
    convolution = torch.randn(x.shape, generator=generator), x, weights, positions, M, [1, 1], 1, True, True
    winograd = torch.ops.winograd
    found, expected = winograd.conv2d_gradients(*convolution), winograd.reference_conv2d_gradients(*convolution)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
    sizes = [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    return [
        lambda: winograd.conv2d_gradients(*convolution),
        lambda: winograd.reference_conv2d_gradients(*convolution),
        lambda: torch.ops.aten.convolution_backward(convolution[0], x, filters, None, *sizes),
    ]


def _by_turns(runs: list[Timed], rounds: int) -> list[float]:
    """Milliseconds of one call of each."""
    for run in runs:
        run()
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, samples in zip(runs, taken, strict=True):
            started, count = time.perf_counter(), 0
            while time.perf_counter() - started < SECONDS:
                run()
                count += 1
            samples.append(1e3 * (time.perf_counter() - started) / count)
    return [median(samples) for samples in taken]


def _of_network(rounds: int) -> Iterator[tuple[object, ...]]:
    network = trained("resnet20").graph
    pruned = _pruned(network)
    compiled, in_plain_torch = [], []
    for _ in range(rounds):
        compiled.append(_milliseconds_of_a_step(pruned, network))
        with library.force(library.REFERENCE):
            in_plain_torch.append(_milliseconds_of_a_step(pruned, network))
    ours, plain = median(compiled), median(in_plain_torch)
    yield "ResNet-20, F(4), 24 of 36", f"{ours:.0f}", f"{plain:.0f}", f"{plain / ours:.1f}"


def _pruned(network: ModelGraph) -> ModelGraph:
    """At random; which positions doesn't matter for time."""
    masks = {}
    for number, layer in enumerate(layers(network)):
        if why_not_winograd(layer, parameter(network, layer.weight).dtype) is None:
            scores = torch.rand(1, 36, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            masks[layer.name] = prune_lowest(Mask.whole(M, 1, "output_channels"), scores, M, count=12)
    return without_pruned(to_winograd(network, dict.fromkeys(masks, M)), masks)


def _milliseconds_of_a_step(pruned: ModelGraph, teacher: ModelGraph) -> float:
    pixels = np.random.default_rng(0).normal(size=(STEPS * BATCH, 3, 32, 32)).astype(np.float32)
    ends: list[float] = []

    def after_step(_: Stepped) -> None:
        ends.append(time.perf_counter())

    options = WinogradTraining.model_validate({"epochs": 1, "batch_size": BATCH, "learning_rate": 1e-4})
    images = TrainingImages(len(pixels), lambda wanted: pixels[wanted], torch.from_numpy, None)
    finetune(
        pruned, images, options, seed=0, teacher=teacher, evaluate=None, on_progress=lambda *_: None,
        learns_statistics=False, after_step=after_step,
    )  # fmt: skip
    return 1e3 * median(np.diff(ends[SETTLING:]).tolist())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layers", "network"))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
