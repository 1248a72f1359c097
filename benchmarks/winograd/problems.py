"""What is measured: chains of 3x3 convolutions, their seeded data, and what float64 says the result is."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Channels (= filters) and size of VGG- and ResNet-like layers.
LAYERS = {
    f"{channels}@{size}": (channels, channels, size)
    for channels, size in (
        (64, 56),
        (64, 224),
        (128, 28),
        (128, 112),
        (256, 14),
        (256, 56),
        (512, 7),
        (512, 14),
        (512, 28),
    )
}
# Those of the networks for CIFAR-10.
SMALL_LAYERS = {
    f"{channels}-{filters}@{size}": (channels, filters, size)
    for channels, filters, size in (
        (3, 16, 32),
        (3, 64, 32),
        (16, 16, 32),
        (32, 32, 16),
        (32, 32, 32),
        (64, 64, 8),
        (64, 64, 32),
    )
}


@dataclass(frozen=True)
class Problem:
    """`chain` convolutions with distinct weights, one after the other; stride 1, padding 1, bias, float32."""

    layer: str
    channels: int
    filters: int
    size: int
    batch: int
    chain: int = 1

    @property
    def operations(self) -> int:
        """Multiplications and additions of the direct convolution."""
        return 2 * 9 * self.chain * self.batch * self.channels * self.filters * self.size**2

    @property
    def checked_images(self) -> list[int]:
        """The images compared with float64: the first and the last."""
        return sorted({0, self.batch - 1})


def problem(layer: str, batch: int, chain: int = 1) -> Problem:
    channels, filters, size = (LAYERS | SMALL_LAYERS)[layer]
    return Problem(layer, channels, filters, size, batch, chain)


def write_problem(given: Problem, folder: Path, *, onnx: bool) -> None:
    """Write what the engines' processes read: the problem, its data, float64's answer, and an ONNX file where one is wanted."""
    random = np.random.default_rng(0)
    shape = (given.batch, given.channels, given.size, given.size)
    images = np.maximum(random.standard_normal(shape, dtype=np.float32), 0)
    scale = math.sqrt(2 / (9 * given.channels))
    weights = [
        (random.standard_normal((given.filters, given.channels, 3, 3)) * scale).astype(np.float32)
        for _ in range(given.chain)
    ]
    biases = [random.standard_normal(given.filters).astype(np.float32) * np.float32(0.1) for _ in range(given.chain)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "problem.json").write_text(json.dumps(asdict(given)))
    np.save(folder / "images.npy", images)
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        np.save(folder / f"weight{number}.npy", weight)
        np.save(folder / f"bias{number}.npy", bias)
    np.save(folder / "exact.npy", _convolved_exactly(images[given.checked_images], weights, biases))
    if onnx:
        _write_onnx(given, weights, biases, folder / "model.onnx")


@dataclass(frozen=True)
class Material:
    """A problem as an engine's process reads it."""

    problem: Problem
    images: NDArray[np.float32]
    weights: list[NDArray[np.float32]]
    biases: list[NDArray[np.float32]]
    exact: NDArray[np.float64]  # of the checked images
    onnx: Path


def read_problem(folder: Path) -> Material:
    given = Problem(**json.loads((folder / "problem.json").read_text()))
    return Material(
        problem=given,
        images=np.load(folder / "images.npy"),
        weights=[np.load(folder / f"weight{number}.npy") for number in range(given.chain)],
        biases=[np.load(folder / f"bias{number}.npy") for number in range(given.chain)],
        exact=np.load(folder / "exact.npy"),
        onnx=folder / "model.onnx",
    )


@dataclass(frozen=True)
class Deviation:
    """How far an answer is from the exact one: in the L2 norm, and the largest difference over the largest value."""

    l2: float
    largest: float


def deviation(answer: NDArray[np.float32], exact: NDArray[np.float64]) -> Deviation:
    difference = answer.astype(np.float64) - exact
    return Deviation(
        l2=float(np.linalg.norm(difference) / np.linalg.norm(exact)),
        largest=float(np.abs(difference).max() / np.abs(exact).max()),
    )


def _convolved_exactly(
    images: NDArray[np.float32], weights: Sequence[NDArray[np.float32]], biases: Sequence[NDArray[np.float32]]
) -> NDArray[np.float64]:
    import torch

    flow = torch.from_numpy(images).double()
    for weight, bias in zip(weights, biases, strict=True):
        tensors = torch.from_numpy(weight).double(), torch.from_numpy(bias).double()
        flow = torch.nn.functional.conv2d(flow, *tensors, padding=1)
    exact: NDArray[np.float64] = flow.numpy()
    return exact


def _write_onnx(
    given: Problem, weights: Sequence[NDArray[np.float32]], biases: Sequence[NDArray[np.float32]], path: Path
) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [], []
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        operands = [f"flow{number}", f"weight{number}", f"bias{number}"]
        nodes.append(helper.make_node("Conv", operands, [f"flow{number + 1}"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        constants += [numpy_helper.from_array(weight, operands[1]), numpy_helper.from_array(bias, operands[2])]
    ends = [
        helper.make_tensor_value_info(
            f"flow{number}", TensorProto.FLOAT, [given.batch, channels, given.size, given.size]
        )
        for number, channels in ((0, given.channels), (given.chain, given.filters))
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
