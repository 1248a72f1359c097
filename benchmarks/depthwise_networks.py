"""Method F on depthwise convolutions: a network like MobileNet, learned here from CIFAR-10; lengths per channel and per layer.

    python -m benchmarks.depthwise_networks train build/depthwise       learns and writes cifar10_depthwise.pt2 there
    python -m benchmarks.depthwise_networks quantize build/depthwise    accuracy and SQNR, lengths per channel and per layer

It learns 25,000 training images on one thread in 12 to 22 minutes. Images for calibration and decisions are others of the
training set; the 5,000 test images only measure. Needs the folder of images that WINNOW_DATA names. Other quantizers do the same
with `python -m benchmarks.quantize_fixed_point rivals --model FOLDER/cifar10_depthwise.pt2`, or `elsewhere`.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cifar_networks import Trained
from benchmarks.material import CIFAR_PREPROCESS, cifar_learning, cifar_selection
from benchmarks.quantize_fixed_point import NAIVE, ONE_LENGTH, PLAIN, Bench
from jobs.request import Preprocess
from workers.compression.augment import flip_and_crop
from workers.datasets.preprocess import InputTransform
from workers.models.graph import TensorSpec
from workers.models.read_model import read_model

FILE = "cifar10_depthwise.pt2"
BLOCKS = ((16, 32, 2), (32, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1), (128, 128, 1))
BATCH = 128
WEIGHT_DECAY = 3e-4

_WEIGHTS_BY_CHANNEL = {"activation_lengths": "per_layer", "align": "shift"}
SETTINGS: dict[str, dict[str, Any]] = {
    "activations by channel, weights aligned to them (retune_opt), nearest": PLAIN,
    "activations by channel, weights by channel (shift), nearest": {"align": "shift", **PLAIN},
    "activations by layer, weights by channel, nearest": {**_WEIGHTS_BY_CHANNEL, **PLAIN},
    "activations by layer, weights by layer, nearest": {**ONE_LENGTH, **PLAIN},
    "activations by layer, weights by layer, nearest, largest value fits (max_abs)": NAIVE,
    "activations by channel, weights aligned to them, nearest, bias corrected": {"rounding": "nearest"},
    "activations by channel, weights aligned to them, compensated (defaults)": {},
    "activations by channel, weights aligned to them, compensated, max_abs": {"rule": "max_abs"},
    "activations by channel, weights by channel (shift), compensated": {"align": "shift"},
    "activations by layer, weights by channel, compensated": _WEIGHTS_BY_CHANNEL,
    "activations by layer, weights by layer, compensated": ONE_LENGTH,
    "activations by layer, weights by layer, compensated, max_abs": {**ONE_LENGTH, "rule": "max_abs"},
}


class DepthwiseNetwork(nn.Module):
    """MobileNet's blocks (Howard et al. 2017), ReLU6 behind every normalisation; 6.3 million multiply-adds an image."""

    def __init__(self) -> None:
        super().__init__()
        first = BLOCKS[0][0]
        self.stem = nn.Sequential(nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU6())
        self.blocks = nn.Sequential(*(_block(*sizes) for sizes in BLOCKS))
        self.fc = nn.Linear(BLOCKS[-1][1], 10)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.adaptive_avg_pool2d(self.blocks(self.stem(image)), 1)
        scores: Tensor = self.fc(x.flatten(1))
        return scores


def _block(channels: int, filters: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels), nn.ReLU6(),
        nn.Conv2d(channels, filters, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU6(),
    )  # fmt: skip


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    if options.what == "train":
        _train(options)
    else:
        _quantize(options)


def _train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    network = DepthwiseNetwork().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its types lack it
    x, y = cifar_learning(options.images)
    transform = InputTransform(
        Preprocess.model_validate(CIFAR_PREPROCESS), TensorSpec("image", torch.float32, ("batch", 3, 32, 32))
    )
    steps = options.epochs * (len(x) // BATCH)
    optimiser = torch.optim.SGD(
        network.parameters(), options.learning_rate, 0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.learning_rate, total_steps=steps, pct_start=0.15, cycle_momentum=False
    )
    started = time.monotonic()
    for epoch in range(options.epochs):
        total = 0.0
        order = torch.randperm(len(x), generator=generator).numpy()
        for start in range(0, len(x) // BATCH * BATCH, BATCH):
            chosen = order[start : start + BATCH]
            images = transform(flip_and_crop(x[chosen], generator)).to(memory_format=torch.channels_last)
            loss = functional.cross_entropy(network(images), torch.from_numpy(y[chosen]))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
            optimiser.step()
            schedule.step()
            total += loss.item()
        mean = total / (len(x) // BATCH)
        print(f"epoch {epoch + 1}: loss {mean:.3f}, {time.monotonic() - started:.0f} s", flush=True)
    network.eval()
    decided, labels = cifar_selection(2000, options.seed)
    right = _answers(network, transform, decided) == labels
    options.folder.mkdir(parents=True, exist_ok=True)
    program = torch.export.export(
        network.to(memory_format=torch.contiguous_format),
        (torch.zeros(2, 3, 32, 32),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    torch.export.save(program, options.folder / FILE)
    print(f"{100 * right.mean():.2f} % of 2,000 training images that it didn't learn; {options.folder / FILE}")


def _quantize(options: argparse.Namespace) -> None:
    network = Trained(read_model(options.folder / FILE), CIFAR_PREPROCESS)
    bench = Bench(network, images=2000, calibration=500, learning_images=0, seed=options.seed)
    print(
        f"{100 * bench.right_before.mean():.2f} % in floating point. SQNR is of layers' outputs; changes have 95 % intervals.\n"
    )
    print(
        "| bits | options | test % | change, pp | SQNR, median | SQNR, least | its layer | weight bits stored | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for bits in options.bits:
        weights, activations = (int(each) for each in bits.split("/"))
        for name, step in SETTINGS.items():
            measured = bench.measure(weights, activations, step)
            found = measured.result.layers
            worst = min(found, key=lambda layer: layer.output_sqnr_db)
            sqnr = f"{median(layer.output_sqnr_db for layer in found):.1f} dB | {worst.output_sqnr_db:.1f} dB | {worst.layer}"
            stored = max(layer.stored_bits for layer in found)
            print(
                f"| {bits} | {name} | {bench.accuracy(measured.right)} | {sqnr} | {stored} | {measured.seconds:.0f} |",
                flush=True,
            )


@torch.inference_mode()
def _answers(network: nn.Module, transform: InputTransform, x: NDArray[np.uint8]) -> NDArray[np.int64]:
    parts = [network(transform(x[start : start + BATCH])).argmax(1).numpy() for start in range(0, len(x), BATCH)]
    return np.concatenate(parts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "quantize"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=25_000, help="that it learns from")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--bits", nargs="+", default=["8/8", "6/8", "4/8"], help="of weights/activations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
