"""Networks with Winograd convolutions as files: with our operator, in standard operators, and in ONNX; and hostile ones."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import winograd
from jobs.errors import ModelRefused
from tests.workers.models.onnx_files import run_onnx
from tests.workers.models.test_hostile_pt2 import MODEL, Entries, archive, changed, nodes
from tests.workers.models.test_winograd_graph import assert_close, open_graph
from tests.workers.models.test_write_pt2 import run_in_plain_torch
from tests.workers.models.winograd_networks import PROBLEMS, Problem, WinogradLayer, expected, winograd_graph
from tests.workers.networks import graph_of, save_pt2
from workers.models.graph import layers
from workers.models.lower_winograd import lower_winograd
from workers.models.onnx_winograd import DOMAIN
from workers.models.read_pt2 import read_pt2
from workers.models.write_onnx import write_onnx
from workers.models.write_pt2 import write_pt2

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")

RUN_WITH_WINOGRAD = """
import sys, torch, winograd
network = torch.export.load(sys.argv[1]).module()
with winograd.count_operations() as counted:
    found = network(torch.load(sys.argv[2]))
torch.save((found, counted.gemms, counted.multiplications), sys.argv[3])
"""


def model_json(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as file:
        document: dict[str, Any] = json.loads(file.read(MODEL))
    return document


# ---- .pt2 with our operator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["f4", "groups", "kernel groups", "no bias"])
def test_torch_and_winograd_run_the_file_and_skip_what_is_pruned(name: str, tmp_path: Path) -> None:
    problem = PROBLEMS[name]
    write_pt2(winograd_graph(problem), tmp_path / "n.pt2", pack_zeros=False)
    images = problem.images(1)
    torch.save(images, tmp_path / "given")
    arguments = [str(tmp_path / file) for file in ("n.pt2", "given", "found")]
    subprocess.run([sys.executable, "-W", "error", "-c", RUN_WITH_WINOGRAD, *arguments], check=True)
    found, gemms, multiplications = torch.load(tmp_path / "found")
    assert_close(found, expected(problem, images), problem)
    assert (gemms, multiplications) == (problem.gemms, problem.multiplications)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_file_is_read_back_as_it_was(name: str, tmp_path: Path) -> None:
    problem = PROBLEMS[name]
    graph = winograd_graph(problem)
    write_pt2(graph, tmp_path / "n.pt2", pack_zeros=False)
    assert "torch.ops.winograd.conv2d.default" in {node["target"] for node in nodes(model_json(tmp_path / "n.pt2"))}
    again = read_pt2(tmp_path / "n.pt2")
    assert again.batch_size is None
    for one, other in zip(layers(again), layers(graph), strict=True):
        assert (one.name, one.kind, one.weight_shape) == (other.name, other.kind, other.weight_shape)
        assert (one.m, one.positions, one.padding, one.groups) == (
            other.m,
            other.positions,
            other.padding,
            other.groups,
        )
    assert all(torch.equal(tensor, graph.module.state_dict()[key]) for key, tensor in again.module.state_dict().items())
    assert torch.equal(again(problem.images())[0], graph(problem.images())[0])


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    graph = winograd_graph(PROBLEMS["kernel groups"])
    for name in ("a", "b"):
        write_pt2(graph, tmp_path / f"{name}.pt2", pack_zeros=True)
        write_onnx(graph, tmp_path / f"{name}.onnx", pack_zeros=True)
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_residual_and_activation_of_an_upload_become_nodes_of_their_own(tmp_path: Path) -> None:
    problem = Problem(channels=4, filters=4, pruned=6)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = WinogradLayer(problem)

        def forward(self, x: Tensor) -> Tensor:
            conv = self.conv
            return winograd.conv2d(
                x, conv.weight, positions, problem.m, 1, bias=conv.bias, residual=x, activation="relu"
            )

    positions = problem.positions()
    block = Block().eval()
    graph = graph_of(block, problem.images())
    targets = [str(node.target) for node in graph.module.graph.nodes if node.op == "call_function"]
    assert targets == ["winograd.conv2d.default", "aten.add.Tensor", "aten.relu.default"]
    torch.testing.assert_close(graph(problem.images())[0], block(problem.images()).detach(), rtol=1e-5, atol=1e-5)


# ---- .pt2 in standard operators -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["f2", "f6", "groups within kernel groups", "kernel groups within groups"])
def test_torch_alone_runs_the_lowered_file(name: str, tmp_path: Path) -> None:
    problem = PROBLEMS[name]
    write_pt2(lower_winograd(winograd_graph(problem)), tmp_path / "n.pt2", pack_zeros=False)
    assert "winograd.conv2d" not in json.dumps(model_json(tmp_path / "n.pt2"))
    batches = [problem.images(1), problem.images(3)]
    for found, images in zip(run_in_plain_torch(tmp_path / "n.pt2", *batches), batches, strict=True):
        assert_close(found, expected(problem, images), problem)


def test_the_lowered_file_is_read_back(tmp_path: Path) -> None:
    problem = PROBLEMS["kernel groups"]
    write_pt2(lower_winograd(winograd_graph(problem)), tmp_path / "n.pt2", pack_zeros=False)
    again = read_pt2(tmp_path / "n.pt2")
    assert_close(again(problem.images())[0], expected(problem, problem.images()), problem)


@pytest.mark.parametrize("lowered", [False, True], ids=["winograd", "lowered"])
def test_open_sizes_stay_open_in_the_file(lowered: bool, tmp_path: Path) -> None:
    problem = PROBLEMS["f4"]
    graph = open_graph(problem)
    write_pt2(lower_winograd(graph) if lowered else graph, tmp_path / "n.pt2", pack_zeros=False)
    for height, width in ((13, 10), (16, 9)):
        images = torch.randn(2, problem.channels, height, width)
        network = torch.export.load(tmp_path / "n.pt2").module()
        assert_close(network(images), expected(problem, images), problem)


# ---- ONNX -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", PROBLEMS)
def test_plain_onnx_runtime_runs_the_file(name: str, batch: int, tmp_path: Path) -> None:
    problem = PROBLEMS[name]
    write_onnx(winograd_graph(problem), tmp_path / "n.onnx", pack_zeros=False)
    images = problem.images(batch)
    assert_close(run_onnx(tmp_path / "n.onnx", images)[0], expected(problem, images), problem)
    optimised = onnxruntime.InferenceSession(tmp_path / "n.onnx", providers=["CPUExecutionProvider"])
    found = optimised.run(None, {optimised.get_inputs()[0].name: images.numpy()})[0]
    assert_close(torch.from_numpy(np.asarray(found)), expected(problem, images), problem)


@pytest.mark.parametrize("name", ["f4", "groups", "kernel groups"])
def test_open_sizes_stay_open_in_onnx(name: str, tmp_path: Path) -> None:
    problem = PROBLEMS[name]
    write_onnx(open_graph(problem), tmp_path / "n.onnx", pack_zeros=False)
    for height, width in ((13, 10), (16, 8), (1, 4)):
        images = torch.randn(2, problem.channels, height, width)
        assert_close(run_onnx(tmp_path / "n.onnx", images)[0], expected(problem, images), problem)


def test_a_convolution_is_a_call_that_says_what_it_is(tmp_path: Path) -> None:
    problem = PROBLEMS["groups"]
    write_onnx(winograd_graph(problem), tmp_path / "n.onnx", pack_zeros=False)
    model = onnx.load(tmp_path / "n.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, {entry.domain: entry.version for entry in model.opset_import}) == (8, {"": 18, DOMAIN: 1})
    call = model.graph.node[0]
    assert (call.domain, call.op_type) == ("ai.winnow", "WinogradConv2d_1")
    assert list(call.input)[1:] == ["conv.weight", "conv.bias"]
    attributes = {given.name: onnx.helper.get_attribute_value(given) for given in call.attribute}
    assert attributes == {"m": 4, "positions": problem.positions(), "padding": [1, 1], "groups": 2}
    (function,) = model.functions
    assert list(function.input) == ["image", "weights", "bias"]
    assert {node.domain for node in function.node} == {""}
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert stored == {"conv.weight": (25, 8, 3), "conv.bias": (8,)}


def test_convolutions_that_differ_in_weights_alone_share_a_function(tmp_path: Path) -> None:
    same = Problem(channels=4, filters=4, pruned=9)
    other = Problem(channels=4, filters=4, pruned=10)
    network = nn.Sequential(WinogradLayer(same), WinogradLayer(same), WinogradLayer(other)).eval()
    graph = graph_of(network, same.images())
    write_onnx(graph, tmp_path / "n.onnx", pack_zeros=False)
    model = onnx.load(tmp_path / "n.onnx")
    assert [node.op_type for node in model.graph.node] == ["WinogradConv2d_1", "WinogradConv2d_1", "WinogradConv2d_2"]
    assert [function.name for function in model.functions] == ["WinogradConv2d_1", "WinogradConv2d_2"]
    torch.testing.assert_close(
        run_onnx(tmp_path / "n.onnx", same.images())[0], graph(same.images())[0].detach(), rtol=1e-4, atol=1e-4
    )


def test_onnx_runtime_brings_the_weights_into_order_once(tmp_path: Path) -> None:
    """Nothing is left of reshaping weights and bias once the file is open, and padding is part of the convolution."""
    write_onnx(winograd_graph(PROBLEMS["kernel groups"]), tmp_path / "n.onnx", pack_zeros=False)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(tmp_path / "n.onnx", options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert found[:2] == ["Reshape", "Conv"]
    assert (found.count("Conv"), found.count("Transpose"), found.count("ConvTranspose")) == (2, 2, 1)


# ---- Hostile .pt2 ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Entries:
    """The entries of a good file."""
    problem = PROBLEMS["f4"]
    path = tmp_path_factory.mktemp("clean") / "network.pt2"
    save_pt2(nn.Sequential(WinogradLayer(problem)).eval(), problem.images(), path)
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def argument(name: str, value: object) -> Callable[[Any], None]:
    """Give the convolution another argument."""

    def change(document: Any) -> None:
        (node,) = nodes(document)
        node["inputs"] = [given for given in node["inputs"] if given["name"] != name]
        node["inputs"].append({"name": name, "arg": value, "kind": 1})

    return change


def target(name: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        (node,) = nodes(document)
        node["target"] = name

    return change


HOSTILE = {
    "positions beyond the tile": (argument("positions", {"as_ints": [*range(23), 36]}), "not ascending, different and"),
    "negative positions": (argument("positions", {"as_ints": [-1, *range(23)]}), "not ascending, different and"),
    "positions twice": (argument("positions", {"as_ints": [0, *range(23)]}), "not ascending, different and"),
    "positions of a huge number": (argument("positions", {"as_ints": [*range(23), 2**70]}), "inputs don't fit|Overflow"),
    "too few positions": (argument("positions", {"as_ints": [*range(23)]}), "24 kept positions and 23 positions"),
    "no positions": (argument("positions", {"as_ints": []}), "24 kept positions and 0 positions"),
    "a million positions": (argument("positions", {"as_ints": [0] * 24 * 40_000}), "not ascending, different and"),
    "positions that are no numbers": (argument("positions", {"as_ints": [True] * 24}), "positions is not of type"),
    "positions that are text": (argument("positions", {"as_string": "__import__('os')"}), "positions is not of type"),
    "positions of tensors": (argument("positions", {"as_tensors": []}), "24 kept positions and 0 positions"),
    "m of another algorithm": (argument("m", {"as_int": 3}), "m is 3"),
    "m is huge": (argument("m", {"as_int": 2**62}), f"m is {2**62}"),
    "m is no integer": (argument("m", {"as_float": 4.0}), "m is not of type int"),
    "m is true": (argument("m", {"as_bool": True}), "m is not of type int"),
    "negative padding": (argument("padding", {"as_ints": [-1, 1]}), "neither negative"),
    "three paddings": (argument("padding", {"as_ints": [1, 1, 1]}), "one or two whole numbers"),
    "a padding as large as memory": (argument("padding", {"as_ints": [2**20, 2**20]}), "more than 2147483648 elements"),
    "groups that don't divide": (argument("groups", {"as_int": 3}), "can't be divided into 3 groups"),
    "no groups": (argument("groups", {"as_int": 0}), "can't be divided into 0 groups"),
    "an unknown activation": (argument("activation", {"as_string": "__import__('os')"}), "can be none or relu"),
    "a residual of another shape": (
        argument("residual", {"as_tensor": {"name": "p_getattr_l__self___0___bias"}}), "residual is not shaped|nothing is called",
    ),
    "an argument that the operator lacks": (argument("blocking", {"as_ints": [1, 1, 1]}), "no argument called 'blocking'"),
    "another operator of the library": (target("torch.ops.winograd.conv2d_packed.default"), "doesn't know this operator"),
    "another overload": (target("torch.ops.winograd.conv2d.out"), "doesn't know this operator"),
    "the operator under the name of another": (
        target("torch.ops.aten.winograd::conv2d.default"), "doesn't know this operator",
    ),
    "a name without namespace": (target("winograd::conv2d.default"), "doesn't know this operator"),
    "a path into the module": (target("torch.ops.winograd.conv2d.__class__"), "doesn't know this operator"),
}  # fmt: skip


def test_the_clean_file_is_read(clean: Entries, tmp_path: Path) -> None:
    (layer,) = layers(read_pt2(archive(clean, tmp_path)))
    assert layer.kind == "winograd_conv2d"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_convolution_is_refused(name: str, clean: Entries, tmp_path: Path) -> None:
    change, message = HOSTILE[name]
    with pytest.raises(ModelRefused, match=message) as refused:
        read_pt2(archive(changed(clean, MODEL, change), tmp_path))
    assert refused.value.where.get("node") or refused.value.where.get("operator")


def test_weights_that_are_computed_are_refused(tmp_path: Path) -> None:
    problem = PROBLEMS["f4"]
    positions = problem.positions()

    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = WinogradLayer(problem)

        def forward(self, x: Tensor) -> Tensor:
            return winograd.conv2d(x, self.conv.weight * x.mean(), positions, problem.m, 1)

    path = save_pt2(Computed().eval(), problem.images(), tmp_path / "n.pt2")
    with pytest.raises(ModelRefused, match="its weight is computed while the network runs"):
        read_pt2(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    problem = PROBLEMS["f4"]
    network = nn.Sequential(WinogradLayer(problem)).eval()
    with torch.no_grad():
        next(network.parameters())[3, 2, 1] = float("nan")
    path = save_pt2(network, problem.images(), tmp_path / "n.pt2")
    with pytest.raises(ModelRefused, match=r"1 of the 1152 values of 0\.weight are NaN"):
        read_pt2(path)
