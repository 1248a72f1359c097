"""`winograd.prepare` and `winograd.load`: the same numbers as the exported network, on packed weights, in fused calls."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from winograd.fuse_epilogues import CONV2D
from winograd.prepare import check_sizes

import winograd
from tests.winograd.exported_networks import (
    BATCH,
    KEPT,
    Computes,
    Residual,
    exported,
    images,
    winograd_conv2d,
)
from winograd import PackedConv2d, PreparedNetwork, library


def convolutions(prepared: PreparedNetwork) -> list[PackedConv2d]:
    return [part for part in prepared.network.modules() if isinstance(part, PackedConv2d)]


def called_operators(prepared: PreparedNetwork) -> list[object]:
    return [
        node.target
        for node in prepared.network.graph.nodes
        if node.op == "call_function" and node.target is not check_sizes
    ]


def assert_same(network: nn.Module, *inputs: Tensor) -> PreparedNetwork:
    """Prepared, it gives what it gave, in one call where it can be; returned operator by operator, to look into."""
    original = exported(network, *inputs)
    expected = original(*(x.clone() for x in inputs))
    prepared = winograd.prepare(original, in_one_call=False)
    for either in (winograd.prepare(original), prepared):
        for mode in (torch.inference_mode(), torch.no_grad(), torch.enable_grad()):
            with mode:
                torch.testing.assert_close(either(*(x.clone() for x in inputs)), expected, atol=1e-4, rtol=1e-4)
    return prepared


# ---- A whole network ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("implementation")
def test_prepared_network_gives_the_same_with_every_implementation() -> None:
    prepared = assert_same(Residual(), images())

    assert CONV2D not in called_operators(prepared)
    assert torch.ops.aten.add.Tensor not in called_operators(prepared)
    assert {(one.activation, one.bias is None) for one in convolutions(prepared)} == {("relu", False), ("relu", True)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_prepared_network_gives_the_same_in_other_types(dtype: torch.dtype) -> None:
    original = exported(Residual(dtype), images(dtype=dtype))
    prepared = winograd.prepare(original)

    with torch.inference_mode():
        x = images(dtype=dtype)
        torch.testing.assert_close(prepared(x), original(x), atol=200 * torch.finfo(dtype).eps, rtol=0)


def test_any_batch_can_be_run() -> None:
    original = exported(Residual(), images())
    prepared = winograd.prepare(original)

    x = torch.randn(5, 4, 9, 9)
    torch.testing.assert_close(prepared(x), original(x), atol=1e-4, rtol=1e-4)


def test_prepared_network_compiles_as_one_graph() -> None:
    prepared = winograd.prepare(exported(Residual(), images()))
    compiled = torch.compile(prepared, fullgraph=True, backend="aot_eager")

    for x in (images(), torch.randn(5, 4, 9, 9)):
        with torch.inference_mode():
            torch.testing.assert_close(compiled(x), prepared(x), atol=1e-4, rtol=1e-4)


def test_w8_prepared_network_executes_the_same_multiplications() -> None:
    original = exported(Residual(), images())
    prepared = winograd.prepare(original, in_one_call=False)

    with winograd.count_operations() as before:
        original(images())
    with winograd.count_operations() as after:
        prepared(images())

    assert (after.gemms, after.multiplications) == (before.gemms, before.multiplications)
    assert after.gemms == 4 * len(KEPT)


def test_the_network_that_was_prepared_stays_as_it_is() -> None:
    original = exported(Residual(), images())
    code, names = original.code, [name for name, _ in original.named_parameters()]
    expected = original(images())

    winograd.prepare(original)

    assert (original.code, [name for name, _ in original.named_parameters()]) == (code, names)
    assert original.down.weight.is_contiguous()
    assert torch.equal(original(images()), expected)


def test_weights_that_were_packed_are_not_kept_a_second_time() -> None:
    prepared = winograd.prepare(exported(Residual(), images()), in_one_call=False)

    held = {name for name, _ in prepared.network.named_parameters()}
    assert held == {"down.weight", "down.bias", "past.weight", "past.bias", "scores.weight", "scores.bias"}
    assert not [name for name in prepared.state_dict() if "numbers" in name]


def test_gradients_do_not_flow() -> None:
    prepared = winograd.prepare(exported(Residual(), images()))

    assert not prepared(images().requires_grad_()).requires_grad
    assert not any(parameter.requires_grad for parameter in prepared.parameters())


def test_prepared_network_can_be_put_into_evaluation_but_not_trained() -> None:
    prepared = winograd.prepare(exported(Residual(), images()))

    assert prepared.eval() is prepared
    with pytest.raises(NotImplementedError, match="prepared for inference"):
        prepared.train()


def test_other_sizes_than_were_exported_are_refused() -> None:
    prepared = winograd.prepare(exported(Residual(), images()))

    with pytest.raises(
        ValueError, match=r"x has shape \[2, 4, 8, 9\], but the network was exported for \[any, 4, 9, 9\]"
    ):
        prepared(torch.zeros(2, 4, 8, 9))


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Residual is no graph; pass what torch\.export gives"):
        winograd.prepare(Residual())


@pytest.mark.skipif(not library.variants(), reason=f"plain torch computes: {library.info().why}")
def test_packed_weights_are_refused_by_another_implementation() -> None:
    prepared = winograd.prepare(exported(Residual(), images()), in_one_call=False)

    with library.force("reference"), pytest.raises(Exception, match="pack again"):
        prepared(images())


# ---- Which additions and activations become part of the call -----------------------------------------------------------------

ADDED = {
    "relu": lambda n, x, y: n.conv(x).relu(),
    "relu_": lambda n, x, y: n.conv(x).relu_(),
    "add": lambda n, x, y: n.conv(x) + y,
    "add from the left": lambda n, x, y: y + n.conv(x),
    "add_": lambda n, x, y: n.conv(x).add_(y),
    "add, relu": lambda n, x, y: (y + n.conv(x)).relu(),
    "add_, relu_": lambda n, x, y: n.conv(x).add_(y).relu_(),
    "added to its own input": lambda n, x, y: (n.conv(x) + x).relu(),
}


@pytest.mark.parametrize("name", ADDED)
def test_what_follows_is_fused(name: str) -> None:
    prepared = assert_same(Computes(ADDED[name]), images(), images() - 1)

    [conv] = convolutions(prepared)
    assert conv.activation == ("relu" if "relu" in name or "own" in name else "none")
    assert set(called_operators(prepared)) <= {torch.ops.aten.contiguous.default}


# And the operator that is left.
ALONE: dict[str, tuple[Callable[..., Any], object]] = {
    "read twice": (lambda n, x, y: twice(n.conv(x)), torch.ops.aten.relu.default),
    "addition read twice": (lambda n, x, y: twice(n.conv(x) + y), torch.ops.aten.relu.default),
    "twice the residual": (lambda n, x, y: torch.add(n.conv(x), y, alpha=2), torch.ops.aten.add.Tensor),
    "a number": (lambda n, x, y: n.conv(x) + 2, torch.ops.aten.add.Tensor),
    "broadcast": (lambda n, x, y: n.conv(x) + y[:, :, :1, :1], torch.ops.aten.add.Tensor),
    "of another type": (lambda n, x, y: n.conv(x) + y.double(), torch.ops.aten.add.Tensor),
    "written into the residual": (lambda n, x, y: added_into(x * 2, n.conv(x)), torch.ops.aten.add_.Tensor),
    "relu before the addition": (lambda n, x, y: n.conv(x).relu() + y, torch.ops.aten.add.Tensor),
    "itself": (lambda n, x, y: doubled(n.conv(x)), torch.ops.aten.add.Tensor),
    "another activation": (lambda n, x, y: n.conv(x).sigmoid(), torch.ops.aten.sigmoid.default),
    "written in between": (lambda n, x, y: written_in_between(n.conv, x * 2, y), torch.ops.aten.add.Tensor),
}


def twice(x: Tensor) -> Tensor:
    return x * x.relu()


def doubled(x: Tensor) -> Tensor:
    return x + x


def added_into(other: Tensor, output: Tensor) -> Tensor:
    other += output
    return other


def written_in_between(conv: nn.Module, a: Tensor, y: Tensor) -> Tensor:
    output = conv(a)
    a.mul_(3)  # what the convolution has read before must be what it reads now
    total: Tensor = output + y
    return total


@pytest.mark.parametrize("name", ALONE)
def test_what_a_call_cannot_do_stays(name: str) -> None:
    function, left = ALONE[name]
    prepared = assert_same(Computes(function), images(), images() - 1)

    assert left in called_operators(prepared)


def test_of_two_convolutions_that_are_added_one_takes_the_other() -> None:
    network = Computes(
        lambda n, x: (n.conv(x) + n.second(x) + n.third(x)).relu(),
        second=winograd_conv2d(4, 4),
        third=winograd_conv2d(4, 4),
    )
    prepared = assert_same(network, images())

    assert sorted(conv.activation for conv in convolutions(prepared)) == ["none", "none", "relu"]
    assert torch.ops.aten.add.Tensor not in called_operators(prepared)


@pytest.mark.usefixtures("implementation")
def test_fused_call_gives_the_bits_of_the_operator() -> None:
    conv = winograd_conv2d(4, 4)
    x, y = (given.contiguous(memory_format=torch.channels_last) for given in (images(), images() - 1))
    original = exported(Computes(lambda n, x, y: (n.conv(x) + y).relu(), conv=conv), x, y)

    prepared = winograd.prepare(original)

    weights, bias = conv.weights.detach(), conv.bias
    assert bias is not None
    expected = winograd.conv2d(x, weights, KEPT, 4, 1, bias=bias.detach(), residual=y, activation="relu")
    assert torch.equal(prepared(x, y), expected)


def test_what_is_fused_already_stays_fused() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = winograd_conv2d(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            call = {"bias": self.conv.bias, "residual": x, "activation": "relu"}
            return winograd.conv2d(x, self.conv.weights, KEPT, 4, 1, **call) + x

    prepared = assert_same(Fused(), images())

    [conv] = convolutions(prepared)
    assert conv.activation == "relu"
    assert torch.ops.aten.add.Tensor in called_operators(prepared)


def test_dead_code_is_no_reader() -> None:
    original = exported(Computes(lambda n, x: n.conv(x).relu()), images())
    relu = next(node for node in original.graph.nodes if node.target is torch.ops.aten.relu.default)
    with original.graph.inserting_before(relu):
        original.graph.call_function(torch.ops.aten.neg.default, (relu.args[0],))
    original.recompile()

    prepared = winograd.prepare(original, in_one_call=False)

    [conv] = convolutions(prepared)
    assert conv.activation == "relu"
    torch.testing.assert_close(prepared(images()), original(images()), atol=1e-5, rtol=1e-5)


# ---- Weights ----------------------------------------------------------------------------------------------------------------


def test_weights_of_two_convolutions_are_packed_once() -> None:
    prepared = assert_same(Computes(lambda n, x, y: n.conv(n.conv(x).relu()) + y), images(), images() - 1)

    first, second = convolutions(prepared)
    assert first.numbers is second.numbers
    assert (first.activation, second.activation) == ("relu", "none")


def test_weights_that_are_computed_stay_with_the_operator() -> None:
    def computed(n: Any, x: Tensor) -> Tensor:
        return winograd.conv2d(x, n.conv.weights * 2, KEPT, 4, 1).relu()

    prepared = assert_same(Computes(computed), images())

    assert convolutions(prepared) == []
    assert CONV2D in called_operators(prepared)
    assert torch.ops.aten.relu.default not in called_operators(prepared)


# ---- The order of images in memory ----------------------------------------------------------------------------------------


def contiguous_calls(prepared: PreparedNetwork) -> list[str]:
    calls = prepared.network.graph.find_nodes(op="call_function", target=torch.ops.aten.contiguous.default)
    return [str(call.kwargs["memory_format"]) for call in calls]


def test_images_change_their_order_once() -> None:
    prepared = winograd.prepare(exported(Residual(), images()), in_one_call=False)

    assert contiguous_calls(prepared) == ["torch.channels_last"]
    assert prepared.network.down.weight.is_contiguous(memory_format=torch.channels_last)


def test_images_are_returned_in_their_order() -> None:
    prepared = assert_same(Computes(lambda n, x: n.conv(x)), images())

    assert prepared(images()).is_contiguous()


def test_images_may_be_viewed_as_vectors() -> None:
    network = Computes(lambda n, x: n.conv(x).relu().view(-1, 4 * 81) @ n.scores.weight.T, scores=nn.Linear(4 * 81, 3))

    assert_same(network, images())


@pytest.mark.parametrize(
    "function",
    [
        lambda n, x: torch.as_strided(n.conv(x), (2, 9), (4 * 81, 9)),
        lambda n, x: written_into_view(n.conv(x) * 2),
    ],
    ids=["as_strided", "a view that is written into"],
)
def test_networks_that_count_on_the_order_keep_it(function: Callable[..., Any]) -> None:
    prepared = assert_same_at_one_batch(Computes(function), images())

    assert contiguous_calls(prepared) == []


def written_into_view(x: Tensor) -> Tensor:
    x.view(-1).mul_(3)
    return x


def assert_same_at_one_batch(network: nn.Module, x: Tensor) -> PreparedNetwork:
    original = torch.export.export(network.eval(), (x,)).module()
    prepared = winograd.prepare(original, in_one_call=False)
    torch.testing.assert_close(prepared(x), original(x), atol=1e-4, rtol=1e-4)
    return prepared


def test_networks_without_winograd_convolutions_run_as_they_are() -> None:
    prepared = assert_same(Computes(lambda n, x: n.direct(x).relu(), direct=nn.Conv2d(4, 4, 3)), images())

    assert called_operators(prepared) == [torch.ops.aten.conv2d.default, torch.ops.aten.relu.default]


def test_nested_inputs_and_outputs_keep_their_structure() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = winograd_conv2d(4, 4)

        def forward(self, pair: tuple[Tensor, Tensor], *, scale: Tensor) -> dict[str, Any]:
            x, y = pair
            return {"scaled": self.conv(x).relu() * scale, "rest": [y]}

    x, scale = images(), torch.tensor(2.0)
    original = torch.export.export(Nested().eval(), ((x, x),), {"scale": scale}).module()

    prepared = winograd.prepare(original)

    torch.testing.assert_close(prepared((x, x), scale=scale), original((x, x), scale=scale), atol=1e-4, rtol=1e-4)


# ---- Files --------------------------------------------------------------------------------------------------------------------


def test_file_is_loaded_prepared(tmp_path: Path) -> None:
    program = torch.export.export(Residual().eval(), (images(),), dynamic_shapes=({0: BATCH},))
    torch.export.save(program, tmp_path / "model.pt2")

    prepared = winograd.load(tmp_path / "model.pt2", in_one_call=False)

    assert len(convolutions(prepared)) == 4
    torch.testing.assert_close(prepared(images()), program.module()(images()), atol=1e-4, rtol=1e-4)


def test_what_can_be_read_can_be_loaded() -> None:
    stream = io.BytesIO()
    torch.export.save(torch.export.export(Residual().eval(), (images(),)), stream)
    stream.seek(0)

    assert len(convolutions(winograd.load(stream, in_one_call=False))) == 4
