"""A small CNN for handwritten digits, trained in seconds, and the files that a Winnow user would bring.

    python -m demo.digits FOLDER

writes digits.onnx and digits.pt2 (PyTorch's own exporters), and train.npz, selection.npz and test.npz, which share no image.
"""

import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

SCALE = 1 / 16  # stored pixels go from 0 to 16
SELECTION_IMAGES = TEST_IMAGES = 400
EPOCHS = 16
BATCHES = 32


class DigitsNet(nn.Module):
    """Three convolutions, one of them with a shortcut around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(1, 32)
        self.down = _convolution(32, 64, stride=2)
        self.block = _convolution(64, 64)
        self.classes = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.down(self.stem(images))  # (N, 64, 4, 4)
        features = features + self.block(features)
        scores: Tensor = self.classes(features.mean(dim=(2, 3)))
        return scores


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


@dataclass(frozen=True)
class Images:
    """Pictures as they are stored (uint8, N×1×8×8), and their classes."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """What the network takes."""
        return torch.from_numpy(self.x).float() * SCALE, torch.from_numpy(self.y)


@dataclass(frozen=True)
class Files:
    """Where everything was written, and how good the network is on the test images."""

    onnx: Path
    pt2: Path
    train: Path
    selection: Path
    test: Path
    test_accuracy: float


def make_files(folder: Path) -> Files:
    """Train the network and write it and its data into `folder`."""
    torch.set_num_threads(1)  # the same network comes out on every machine of a kind, and small ones train no faster
    folder.mkdir(parents=True, exist_ok=True)
    parts = split_digits()
    network = train(parts["train"])
    for name, images in parts.items():
        np.savez(folder / f"{name}.npz", x=images.x, y=images.y)
    export(network, folder)
    return Files(
        onnx=folder / "digits.onnx",
        pt2=folder / "digits.pt2",
        train=folder / "train.npz",
        selection=folder / "selection.npz",
        test=folder / "test.npz",
        test_accuracy=accuracy(network, parts["test"]),
    )


def split_digits() -> dict[str, Images]:
    """scikit-learn's 1797 digits in three parts without a common image, shuffled the same way every time."""
    digits = load_digits()
    x = digits.images.astype(np.uint8)[:, None]
    y = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    test, selection, train_part = np.split(order, [TEST_IMAGES, TEST_IMAGES + SELECTION_IMAGES])
    parts = {"train": train_part, "selection": selection, "test": test}
    return {name: Images(x=np.ascontiguousarray(x[part]), y=y[part]) for name, part in parts.items()}


def train(images: Images) -> DigitsNet:
    """A network that has seen these images and no others."""
    torch.manual_seed(0)
    network = DigitsNet().train()
    x, y = images.tensors()
    # A high rate and strong decay, over few steps: what a long training does to the weights that aren't needed.
    optimiser = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9, nesterov=True, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.5, total_steps=EPOCHS * BATCHES)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).chunk(BATCHES):
            loss = functional.cross_entropy(network(x[batch]), y[batch])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, images: Images) -> float:
    """Part of the images whose class is found, in percent."""
    x, y = images.tensors()
    return 100.0 * float((network(x).argmax(dim=1) == y).float().mean())


def export(network: DigitsNet, folder: Path) -> None:
    """digits.pt2 and digits.onnx by PyTorch's own exporters, for any batch size."""
    example = (torch.zeros(2, 1, 8, 8),)
    any_batch = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(network, example, dynamic_shapes=any_batch)
    torch.export.save(program, folder / "digits.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals, and logs that torchvision is missing
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            network, example, folder / "digits.onnx", dynamo=True, dynamic_shapes=any_batch,
            input_names=["images"], output_names=["scores"], external_data=False, verbose=False,
        )  # fmt: skip


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit((__doc__ or "").strip())
    files = make_files(Path(sys.argv[1]))
    print(f"{files.onnx} is right about {files.test_accuracy:.2f} % of {files.test}")


if __name__ == "__main__":
    main()
