"""What benchmarks work on: real images and models from the folder WINNOW_DATA."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.datasets.splits import sample_per_class

CIFAR_PREPROCESS: dict[str, Any] = {
    "scale": 1 / 255,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def data_folder() -> Path:
    """The collection of real models and images; ends the program with advice where it is missing."""
    folder = Path(os.environ.get("WINNOW_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "MANIFEST.md").is_file():
        sys.exit(f"no model and image collection at {folder}; set WINNOW_DATA to its folder")
    return folder


def cifar_selection(images: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`images` CIFAR-10 training images, equally many of each class, drawn with `seed`: (n, 3, 32, 32) and labels."""
    return _sampled(data_folder() / "images" / "cifar10_train_25000_39999.npz", images, seed)


def cifar_learning(images: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first `images` of 25,000 CIFAR-10 training images; none of them is ever in `cifar_selection`."""
    with np.load(data_folder() / "images" / "cifar10_train_00000_24999.npz") as stored:
        return stored["x"][:images], stored["y"][:images].astype(np.int64)


def cifar_test() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first 5,000 CIFAR-10 test images."""
    with np.load(data_folder() / "images" / "cifar10_test_0000_4999.npz") as stored:
        return stored["x"], stored["y"].astype(np.int64)


def _sampled(path: Path, images: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with np.load(path) as stored:
        x, y = stored["x"], stored["y"].astype(np.int64)
    chosen = sample_per_class(y, images // len(np.unique(y)), seed)
    return x[chosen], y[chosen]
