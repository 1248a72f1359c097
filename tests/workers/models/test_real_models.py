"""Real networks of many exporters: read, written, and read again, they compute what they computed before."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from workers.models.graph import ModelGraph, layers
from workers.models.inspect_model import describe
from workers.models.read_model import read_model
from workers.models.write_onnx import write_onnx
from workers.models.write_pt2 import write_pt2

pytestmark = pytest.mark.data

GOLDEN = [
    "ultraface_slim_320_nopost", "yunet_n_320", "prisma_portrait_seg", "squeezenet_fp16_imagenet", "mnist_cntk",
    "cifar10_winml_tutorial", "light_squeezenet", "light_resnet50", "espcn_subpixel", "ppocr_cls_opset11",
    "mnist_tf2onnx_nhwc", "unet_edge_dynamic",
]  # fmt: skip
# Of the largest value that the network returns. Half precision has 11 bits, and 26 layers follow each other.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EXPECTED_ACCURACY = 91.50


@pytest.fixture(scope="module")
def golden(data_folder: Path) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((data_folder / "onnx_golden.json").read_text())["models"]
    return recorded


def golden_inputs(recorded: dict[str, Any]) -> list[Tensor]:
    """The recipe of the golden file: one seeded generator, in order of the inputs."""
    random = np.random.default_rng(20240)
    return [
        torch.from_numpy(random.random(given["shape"], np.float32).astype(given["dtype"]))
        for given in recorded["inputs"].values()
    ]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_results_are_reproduced(name: str, golden: dict[str, Any], data_folder: Path, tmp_path: Path) -> None:
    recorded = golden[name]
    path = data_folder / "onnx" / f"{name}.onnx"
    graph, given = read_model(path), golden_inputs(recorded)
    assert graph.batch_size is None
    assert [spec.name for spec in graph.outputs] == list(recorded["outputs"])
    write_onnx(graph, tmp_path / "again.onnx", pack_zeros=True)
    again = read_model(tmp_path / "again.onnx")
    assert [layer.name for layer in layers(again)] == [layer.name for layer in layers(graph)]
    assert (again.inputs, again.outputs) == (graph.inputs, graph.outputs)
    with torch.no_grad():
        original, written = (in_onnx_runtime(file)(*given) for file in (path, tmp_path / "again.onnx"))
        for results in (graph(*given), written, again(*given)):
            _check_golden(results, original, recorded)


def _check_golden(results: tuple[Tensor, ...], original: tuple[Tensor, ...], recorded: dict[str, Any]) -> None:
    for found, reference, expected in zip(results, original, recorded["outputs"].values(), strict=True):
        assert list(found.shape) == expected["shape"]
        values = found.double()
        scale = max(0.1, float(reference.double().abs().max()))
        tolerance = TOLERANCE[found.dtype] * scale
        assert float((values - reference.double()).abs().max()) < tolerance
        assert (
            float((values.reshape(-1)[:8] - torch.tensor(expected["first8"][: values.numel()])).abs().max()) < tolerance
        )
        assert abs(float(values.mean()) - expected["mean"]) < tolerance
        assert abs(float(values.std(correction=0)) - expected["std"]) < tolerance


def in_onnx_runtime(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    weights = {tensor.name for tensor in session.get_overridable_initializers()}
    names = [given.name for given in session.get_inputs() if given.name not in weights]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(value) for value in session.run(None, feeds))

    return run


@pytest.fixture(scope="module")
def test_images(data_folder: Path) -> tuple[Tensor, Tensor]:
    """The 5,000 test images as the network takes them, and their labels."""
    with np.load(data_folder / "images" / "cifar10_test_0000_4999.npz") as archive:
        pixels, labels = torch.from_numpy(archive["x"]), torch.from_numpy(archive["y"]).long()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std, labels


@pytest.fixture(scope="module", params=["onnx", "pt2"])
def resnet(request: pytest.FixtureRequest, data_folder: Path) -> ModelGraph:
    return read_model(data_folder / "models" / f"cifar10_resnet20.{request.param}")


@pytest.fixture(scope="module")
def original_logits(data_folder: Path, test_images: tuple[Tensor, Tensor]) -> Tensor:
    """What the file that torch exported says, in ONNX Runtime."""
    return in_batches(in_onnx_runtime(data_folder / "models" / "cifar10_resnet20.onnx"), test_images[0])


def in_batches(network: Callable[..., tuple[Tensor, ...]], images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(batch)[0] for batch in images.split(250)])


def check_logits(logits: Tensor, original: Tensor, labels: Tensor) -> None:
    assert float((logits - original).abs().max()) < 1e-4
    accuracy = 100 * float((logits.argmax(1) == labels).float().mean())
    assert accuracy == pytest.approx(EXPECTED_ACCURACY, abs=1e-4)


def test_the_graph_has_the_accuracy_of_the_file(
    resnet: ModelGraph, original_logits: Tensor, test_images: tuple[Tensor, Tensor]
) -> None:
    check_logits(in_batches(resnet, test_images[0]), original_logits, test_images[1])


def test_onnx_runtime_has_it_after_a_round_trip(
    resnet: ModelGraph, original_logits: Tensor, test_images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    write_onnx(resnet, tmp_path / "again.onnx", pack_zeros=True)
    check_logits(in_batches(in_onnx_runtime(tmp_path / "again.onnx"), test_images[0]), original_logits, test_images[1])


PLAIN_TORCH = """
import sys, torch
network = torch.export.load(sys.argv[1]).module()
with torch.no_grad():
    torch.save(torch.cat([network(batch) for batch in torch.load(sys.argv[2]).split(250)]), sys.argv[3])
"""


def test_plain_torch_has_it_after_a_round_trip(
    resnet: ModelGraph, original_logits: Tensor, test_images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    write_pt2(resnet, tmp_path / "again.pt2", pack_zeros=True)
    torch.save(test_images[0], tmp_path / "images")
    files = [str(tmp_path / name) for name in ("again.pt2", "images", "logits")]
    subprocess.run([sys.executable, "-I", "-c", PLAIN_TORCH, *files], check=True)
    check_logits(torch.load(tmp_path / "logits"), original_logits, test_images[1])


def test_inspection_lists_every_layer_of_the_resnet(resnet: ModelGraph) -> None:
    found = describe(resnet, "onnx")
    assert len(found.layers) == 20
    assert found.layers[0].name == "conv1"
    assert found.layers[-1].name == "linear"
    assert (found.classes, found.macs) == (10, 40_551_040)
    assert sum(int(np.prod(layer.weight_shape)) for layer in found.layers) == 268_336
    assert all(layer.steps["prune_weights"].eligible for layer in found.layers)
