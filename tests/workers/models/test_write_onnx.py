"""What is written runs in plain ONNX Runtime, computes the same, keeps its names, and zeros pay in bytes."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests.workers.models.example_networks import FUNCTIONS, LAYERS, Applied, Wide, image, with_zeros
from tests.workers.models.onnx_files import run_onnx
from tests.workers.networks import graph_of, small_cnn
from workers.models.graph import OPERATORS, ModelGraph, layers, parameter, winograd_conv2d
from workers.models.onnx_operators import WRITABLE
from workers.models.onnx_zeros import bitmap_bytes
from workers.models.read_onnx import read_onnx
from workers.models.write_onnx import write_onnx

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]


@pytest.fixture(scope="module")
def wide() -> ModelGraph:
    torch.manual_seed(0)
    return graph_of(Wide().eval(), image())


def test_every_operator_of_the_graph_can_be_written() -> None:
    assert WRITABLE | {winograd_conv2d} == OPERATORS  # test_winograd_files.py has the other one


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_written_as_it_is(name: str, tmp_path: Path) -> None:
    graph = graph_of(Applied(FUNCTIONS[name]), image())
    write_onnx(graph, tmp_path / "n.onnx", pack_zeros=False)
    given = image(3, 4, 8, 8)
    for again in (run_onnx(tmp_path / "n.onnx", given), read_onnx(tmp_path / "n.onnx")(given)):
        torch.testing.assert_close(again[0], graph(given)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_written_as_it_is(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = graph_of(nn.Sequential(LAYERS[name]()).eval(), image())
    write_onnx(graph, tmp_path / "n.onnx", pack_zeros=False)
    given = image(3, 4, 8, 8)
    for again in (run_onnx(tmp_path / "n.onnx", given), read_onnx(tmp_path / "n.onnx")(given)):
        torch.testing.assert_close(again[0].detach(), graph(given)[0].detach(), rtol=1e-5, atol=1e-5)


def test_names_are_kept(wide: ModelGraph, tmp_path: Path) -> None:
    write_onnx(wide, tmp_path / "n.onnx", pack_zeros=True)
    again = read_onnx(tmp_path / "n.onnx")
    assert (again.inputs, again.outputs) == (wide.inputs, wide.outputs)
    assert list(again.module.state_dict()) == list(wide.module.state_dict())
    assert [layer.name for layer in layers(again)] == [layer.name for layer in layers(wide)]


def test_an_output_may_be_an_input_or_another_output(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = torch.relu(x)
            return y, x, y

    graph = graph_of(Odd(), image())
    write_onnx(graph, tmp_path / "n.onnx", pack_zeros=False)
    for found, expected in zip(run_onnx(tmp_path / "n.onnx", image()), graph(image()), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_same_network_gives_the_same_bytes(wide: ModelGraph, tmp_path: Path) -> None:
    for pack in (False, True):
        write_onnx(with_zeros(wide, 0.5), tmp_path / "a.onnx", pack_zeros=pack)
        write_onnx(with_zeros(wide, 0.5), tmp_path / "b.onnx", pack_zeros=pack)
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_file_tells_nothing_about_this_machine(wide: ModelGraph, tmp_path: Path) -> None:
    write_onnx(wide, tmp_path / "n.onnx", pack_zeros=True)
    assert str(Path.cwd()).encode() not in (tmp_path / "n.onnx").read_bytes()


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.9, 1.0])
def test_packed_zeros_give_the_same_results_to_the_bit(sparsity: float, wide: ModelGraph, tmp_path: Path) -> None:
    graph = with_zeros(wide, sparsity)
    for pack in (False, True):
        write_onnx(graph, tmp_path / f"{pack}.onnx", pack_zeros=pack)
    dense, packed = (run_onnx(tmp_path / f"{pack}.onnx", image())[0] for pack in (False, True))
    assert torch.equal(dense, packed)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.7, 0.9])
def test_zeros_pay_in_bytes(sparsity: float, wide: ModelGraph, tmp_path: Path) -> None:
    """A file is never larger for packing, and close to a bitmap and the values that are not zero."""
    graph = with_zeros(wide, sparsity)
    for pack in (False, True):
        write_onnx(graph, tmp_path / f"{pack}.onnx", pack_zeros=pack)
    dense, packed = ((tmp_path / f"{pack}.onnx").stat().st_size for pack in (False, True))
    weights = [parameter(graph, layer.weight) for layer in layers(graph)]
    ideal = dense - sum(4 * weight.numel() for weight in weights) + sum(bitmap_bytes(weight) for weight in weights)
    assert packed <= dense
    assert packed <= max(ideal + 1500, 0) or sparsity == 0.0


def test_packed_weights_are_read_back_to_the_bit(wide: ModelGraph, tmp_path: Path) -> None:
    graph = with_zeros(wide, 0.6)
    write_onnx(graph, tmp_path / "n.onnx", pack_zeros=True)
    again = read_onnx(tmp_path / "n.onnx").module.state_dict()
    for name, tensor in graph.module.state_dict().items():
        assert torch.equal(again[name], tensor), name


def test_onnx_runtime_folds_the_packing_away(wide: ModelGraph, tmp_path: Path) -> None:
    """After it has opened the file, the network is the one that the dense file gives: same operators, same fusions."""
    graph = with_zeros(wide, 0.8)
    found = []
    for pack in (False, True):
        write_onnx(graph, tmp_path / "n.onnx", pack_zeros=pack)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"optimised_{pack}.onnx")
        onnxruntime.InferenceSession(tmp_path / "n.onnx", options, providers=["CPUExecutionProvider"])
        found.append(Counter(node.op_type for node in onnx.load(tmp_path / f"optimised_{pack}.onnx").graph.node))
    assert found[0] == found[1]
    assert "Gather" not in found[1]


def test_small_tensors_are_left_as_they_are(tmp_path: Path) -> None:
    write_onnx(with_zeros(graph_of(small_cnn(), torch.rand(2, 1, 8, 8)), 0.5), tmp_path / "n.onnx", pack_zeros=True)
    names = {tensor.name for tensor in onnx.load(tmp_path / "n.onnx").graph.initializer}
    assert "conv1.weight" in names
    assert "conv2.weight" not in names


def test_weights_larger_than_one_group_are_packed(
    monkeypatch: pytest.MonkeyPatch, wide: ModelGraph, tmp_path: Path
) -> None:
    monkeypatch.setattr("workers.models.onnx_zeros.GROUP_ELEMENTS", 1000)
    graph = with_zeros(wide, 0.7)
    write_onnx(graph, tmp_path / "n.onnx", pack_zeros=True)
    torch.testing.assert_close(
        run_onnx(tmp_path / "n.onnx", image())[0], graph(image())[0].detach(), rtol=1e-5, atol=1e-5
    )


def test_float16_weights_are_packed(wide: ModelGraph, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = with_zeros(graph_of(Wide().eval().half(), image().half()), 0.7)
    for pack in (False, True):
        write_onnx(graph, tmp_path / f"{pack}.onnx", pack_zeros=pack)
    dense, packed = (run_onnx(tmp_path / f"{pack}.onnx", image().half())[0] for pack in (False, True))
    assert torch.equal(dense, packed)
    assert (tmp_path / "True.onnx").stat().st_size < 0.7 * (tmp_path / "False.onnx").stat().st_size


def test_a_bitmap_is_one_bit_an_element_and_the_values() -> None:
    assert (
        bitmap_bytes(torch.tensor(np.array([0, 1, 0, 2, 0, 0, 0, 0, 3], dtype=np.float32))) == math.ceil(9 / 8) + 3 * 4
    )
