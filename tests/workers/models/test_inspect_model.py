"""Inspection says what the API needs to judge a recipe without the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from jobs.recipe import STEP_KINDS
from tests.workers.models.onnx_files import node, onnx_model, save
from tests.workers.networks import save_pt2, small_cnn
from workers.models.inspect_model import inspect_model
from workers.models.read_model import read_model
from workers.models.write_onnx import write_onnx


def test_a_pt2_file_is_described(tmp_path: Path) -> None:
    found = inspect_model(save_pt2(small_cnn(), torch.rand(1, 1, 8, 8), tmp_path / "n.pt2"))
    assert (found.format, found.classes, found.batch_size, found.opset) == ("pt2", 10, None, None)
    assert found.producer is not None
    assert found.producer.startswith("torch 2.13")
    assert found.inputs[0].shape == ("batch", 1, 8, 8)
    assert found.parameters == sum(parameter.numel() for parameter in small_cnn().parameters())
    assert found.macs == sum(layer.macs for layer in found.layers)
    assert found.operators["aten.conv2d.default"] == 2
    assert [layer.name for layer in found.layers] == ["conv1", "conv2", "fc"]
    conv = found.layers[1]
    assert (conv.output_shape, conv.parameters, conv.stride, conv.padding) == ((8, 8, 8), 576, (1, 1), (1, 1))
    assert found.layers[2].parameters == 1290


def test_an_onnx_file_is_described_alike(tmp_path: Path) -> None:
    path = save_pt2(small_cnn(), torch.rand(1, 1, 8, 8), tmp_path / "n.pt2")
    write_onnx(read_model(path), tmp_path / "n.onnx", pack_zeros=False)
    pt2, onnx = inspect_model(path), inspect_model(tmp_path / "n.onnx")
    assert (onnx.format, onnx.opset, onnx.producer) == ("onnx", 18, "winnow")
    assert onnx.layers == pt2.layers
    assert (onnx.macs, onnx.parameters, onnx.classes) == (pt2.macs, pt2.parameters, pt2.classes)


def test_every_step_kind_says_whether_it_can_work_on_each_layer(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(64, 3))
    found = inspect_model(save_pt2(network.eval(), torch.rand(1, 1, 8, 8), tmp_path / "n.pt2"))
    assert all(set(layer.steps) == set(STEP_KINDS) for layer in found.layers)
    small, large = (layer.steps["prune_weights"] for layer in found.layers)
    assert not small.eligible
    assert small.reason == "it has only 1 weights; a threshold needs at least 16"
    assert large.eligible
    assert large.reason is None


@pytest.mark.parametrize(
    ("operators", "classes"),
    [(["GlobalAveragePool", "Flatten"], 3), (["GlobalAveragePool"], 3), (["Relu"], None), (["Flatten"], 48)],
)
def test_classes_are_those_of_a_score_per_image(operators: list[str], classes: int | None, tmp_path: Path) -> None:
    names = ["x", *(f"v{place}" for place in range(len(operators) - 1)), "y"]
    nodes = [node(operator, [names[place]], [names[place + 1]]) for place, operator in enumerate(operators)]
    path = save(onnx_model(nodes, inputs={"x": ["n", 3, 4, 4]}), tmp_path / "m.onnx")
    assert inspect_model(path).classes == classes


def test_assumed_sizes_are_said(tmp_path: Path) -> None:
    program = torch.export.export(
        nn.Conv2d(3, 2, 1), (torch.rand(2, 3, 8, 12),), dynamic_shapes=({0: Dim("n"), 2: Dim("h"), 3: Dim("w")},)
    )
    torch.export.save(program, tmp_path / "n.pt2")
    assert "= 224, which the model leaves open" in inspect_model(tmp_path / "n.pt2").warnings[0]


def test_whole_numbers_as_weights_are_no_parameters(tmp_path: Path) -> None:
    model = onnx_model(
        [node("Reshape", ["x", "s"])], inputs={"x": ["n", 4]}, weights={"s": np.array([-1, 2, 2], dtype=np.int64)}
    )
    assert inspect_model(save(model, tmp_path / "m.onnx")).parameters == 0
