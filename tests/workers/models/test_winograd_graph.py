"""Winograd convolutions are layers of the graph like others, and computing them in standard operators gives the same."""

import pytest
import torch
from torch import Tensor, nn

import winograd
from tests.workers.models.winograd_networks import (
    PROBLEMS,
    Problem,
    WinogradNetwork,
    expected,
    expected_directly,
    winograd_graph,
)
from tests.workers.networks import graph_of
from workers.compression.program import compile_graph, multiply_adds
from workers.measurement.operations import winograd_gemms
from workers.models.graph import BATCH, OPERATORS, ModelGraph, TensorSpec, layers, winograd_conv2d
from workers.models.inspect_model import describe
from workers.models.lower_winograd import has_winograd, lower_winograd
from workers.models.shapes import infer_shapes, macs

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")

# Rounding grows with the tile: relative to the largest output, as measured with some room (single precision).
TOLERANCE = {2: 1e-6, 4: 4e-6, 6: 4e-5, 7: 2e-4}


def assert_close(found: Tensor, wanted: Tensor, problem: Problem) -> None:
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=scale * TOLERANCE[problem.m])


def test_a_winograd_convolution_is_listed_as_a_layer() -> None:
    problem = PROBLEMS["kernel groups within groups"]
    (layer,) = layers(winograd_graph(problem))
    assert (layer.name, layer.kind, layer.weight, layer.bias) == (
        "conv", "winograd_conv2d", "conv.weight", "conv.bias",
    )  # fmt: skip
    assert layer.weight_shape == (19, 8, 3)
    assert (layer.stride, layer.padding, layer.dilation, layer.groups) == ((1, 1), (1, 1), (1, 1), 2)
    assert (layer.m, list(layer.positions)) == (4, problem.positions())


@pytest.mark.parametrize("name", PROBLEMS)
def test_macs_and_gemms_are_those_that_the_operator_executes(name: str) -> None:
    problem = PROBLEMS[name]
    graph = winograd_graph(problem)
    with winograd.count_operations() as counted:
        graph(problem.images(1))
    assert counted.multiplications == problem.multiplications
    assert macs(graph) == {"conv": problem.multiplications}
    assert counted.gemms == winograd_gemms(graph) == problem.gemms


def test_multiply_adds_of_an_operation_are_those_of_the_layer() -> None:
    problem = PROBLEMS["groups"]
    graph = winograd_graph(problem)
    program = compile_graph(graph.module)
    values = {number: graph.module.get_parameter(name) for number, name in program.parameters.items()}
    values[program.inputs[0]] = problem.images(3)
    for operation in program.operations:
        values[operation.number] = operation.run(values)
    assert sum(multiply_adds(operation, values) for operation in program.operations) == 3 * problem.multiplications


def test_the_inspection_shows_kind_shapes_and_work() -> None:
    problem = PROBLEMS["f4"]
    found = describe(winograd_graph(problem), "pt2")
    (layer,) = found.layers
    assert (layer.kind, layer.weight_shape, layer.output_shape) == ("winograd_conv2d", (24, 8, 6), (8, 13, 10))
    assert (layer.parameters, layer.macs, found.macs) == (24 * 8 * 6 + 8, problem.multiplications, layer.macs)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", PROBLEMS)
def test_standard_operators_compute_the_same(name: str, batch: int) -> None:
    problem = PROBLEMS[name]
    lowered = lower_winograd(winograd_graph(problem))
    images = problem.images(batch)
    assert_close(lowered(images)[0], expected(problem, images), problem)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("m", [2, 4, 6])
def test_with_all_positions_it_is_the_direct_convolution(m: int, groups: int) -> None:
    problem = Problem(m=m, groups=groups)
    graph = winograd_graph(problem)
    images = problem.images(3)
    for network in (graph, lower_winograd(graph)):
        assert_close(network(images)[0], expected_directly(problem, images), problem)


def test_the_lowered_network_has_only_other_operators_and_the_same_parameters() -> None:
    graph = winograd_graph(PROBLEMS["kernel groups"])
    lowered = lower_winograd(graph)
    targets = {node.target for node in lowered.module.graph.nodes if node.op == "call_function"}
    assert has_winograd(graph)
    assert not has_winograd(lowered)
    assert targets <= OPERATORS - {winograd_conv2d}
    assert [name for name, _ in lowered.module.named_parameters()] == ["conv.weight", "conv.bias"]
    assert all(
        torch.equal(one, other)
        for one, other in zip(graph.module.parameters(), lowered.module.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", ["f4", "groups", "kernel groups within groups", "groups within kernel groups"])
def test_only_kept_positions_are_multiplied(name: str) -> None:
    """The convolution in the middle does the multiplications of the operator, no more."""
    problem = PROBLEMS[name]
    lowered = lower_winograd(winograd_graph(problem))
    shapes = infer_shapes(lowered)
    middle = [
        node for node in lowered.module.graph.nodes
        if node.op == "call_function" and node.target is torch.ops.aten.conv2d.default
        and shapes[node.args[1].name][2:] == (1, 1)
    ]  # fmt: skip
    assert len(middle) == 1
    filters = shapes[middle[0].args[1].name]
    assert torch.Size(shapes[middle[0].name]).numel() * filters[1] == problem.multiplications
    assert middle[0].args[6] == problem.gemms


@pytest.mark.parametrize("name", ["f4", "groups", "kernel groups"])
def test_open_sizes_stay_open(name: str) -> None:
    problem = PROBLEMS[name]
    graph = open_graph(problem)
    lowered = lower_winograd(graph)
    for height, width in ((13, 10), (16, 8), (5, 23), (1, 4)):
        images = torch.randn(2, problem.channels, height, width)
        assert_close(lowered(images)[0], expected(problem, images), problem)


def open_graph(problem: Problem) -> ModelGraph:
    """The network, for images of any size."""
    sizes: tuple[int | str, ...] = (BATCH, problem.channels, "h", "w")
    output = TensorSpec("output", torch.float32, (BATCH, problem.filters, "h", "w"))
    module = winograd_graph(problem).module
    return ModelGraph(module, (TensorSpec("image", torch.float32, sizes),), (output,), batch_size=None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_single_precision(dtype: torch.dtype) -> None:
    problem = PROBLEMS["f6"]
    network = WinogradNetwork(problem).to(dtype).eval()
    images = problem.images(2).to(dtype)
    graph = graph_of(network, images)
    found = lower_winograd(graph)(images)[0]
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), graph(images)[0].float(), rtol=4 * torch.finfo(dtype).eps, atol=1e-3)


def test_weights_at_the_top_of_a_network_are_lowered_too() -> None:
    """A parameter that no submodule holds, and two convolutions that share it."""
    problem = Problem(channels=4, filters=4, pruned=10, bias=False)
    positions = problem.positions()

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = WinogradNetwork(problem).conv.weight

        def forward(self, x: Tensor) -> Tensor:
            once = winograd.conv2d(x, self.kernel, positions, problem.m, 1)
            return winograd.conv2d(once, self.kernel, positions, problem.m, 1)

    graph = graph_of(Shared().eval(), problem.images())
    (layer,) = layers(graph)
    assert (layer.name, len(layer.used_by)) == ("kernel", 2)
    assert macs(graph) == {"kernel": 2 * problem.multiplications}
    torch.testing.assert_close(
        lower_winograd(graph)(problem.images())[0], graph(problem.images())[0], rtol=1e-4, atol=1e-4
    )


def test_a_lowered_graph_is_well_formed() -> None:
    lowered = lower_winograd(winograd_graph(PROBLEMS["f4"]))
    lowered.module.graph.lint()
