"""The operators: numbers within what rounding allows, gradients, layouts, refusals, tracing; on every implementation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor, nn
from torch.nn import functional
from winograd.matrices import MATRICES

import winograd
from tests.winograd.problems import (
    Operands,
    Problem,
    every_position,
    exact_output,
    gradient_bounds,
    gradients_by_definition,
    problems,
    rounding_bound,
)
from winograd import registration

pytestmark = pytest.mark.usefixtures("implementation")

PRUNED = Problem(
    2, 4, 6, 5, 7, 2, (1, 0), (0, 3, 5, 9, 1, 4, 5, 8),
    kernel_groups=2, groups=2, bias=True, residual=True, activation="relu",
)  # fmt: skip
DENSE = Problem(1, 3, 2, 6, 5, 4, (1, 1), every_position(4))


# ---- Numbers ---------------------------------------------------------------------------------------------------------------


def run_conv2d(problem: Problem, operands: Operands) -> Tensor:
    return winograd.conv2d(
        operands.x, operands.weights, problem.positions, problem.m, problem.padding,
        bias=operands.bias, residual=operands.residual, activation=problem.activation, groups=problem.groups,
    )  # fmt: skip


def run_packed(problem: Problem, operands: Operands) -> Tensor:
    packed = winograd.pack_weights(operands.weights, problem.positions, problem.m, groups=problem.groups)
    return convolve_packed(problem, operands, packed)


def run_packed_filters(problem: Problem, operands: Operands) -> Tensor:
    packed = winograd.pack_filters(
        operands.filters, problem.positions, problem.m, kernel_groups=problem.kernel_groups, groups=problem.groups
    )
    return convolve_packed(problem, operands, packed)


def convolve_packed(problem: Problem, operands: Operands, packed: winograd.Packed) -> Tensor:
    return winograd.conv2d_packed(
        operands.x, packed, problem.padding,
        bias=operands.bias, residual=operands.residual, activation=problem.activation,
    )  # fmt: skip


ALL_WAYS = {"conv2d": run_conv2d, "packed": run_packed, "packed-filters": run_packed_filters}
every_way = pytest.mark.parametrize("run", ALL_WAYS.values(), ids=ALL_WAYS.keys())


@every_way
@given(problem=problems())
@example(problem=Problem(1, 64, 64, 8, 8, 4, (1, 1), every_position(4), channels_last=True))
@example(problem=Problem(1, 40, 96, 23, 31, 6, (1, 1), every_position(6), bias=True, activation="relu"))
@settings(max_examples=80, deadline=None)
def test_w6_every_convolution_is_within_its_rounding_bound(run: Callable[..., Tensor], problem: Problem) -> None:
    operands = problem.operands()

    output = run(problem, operands)

    assert output.shape == problem.output_shape
    assert output.dtype == torch.float32
    error = (output.double() - exact_output(problem)).abs()
    assert bool((error <= rounding_bound(problem, from_filters=run is run_packed_filters)).all())


# Largest error over largest output. The root mean square of errors, over that of outputs, is 1.9e-7, 5.8e-7, 2.6e-6 and 6e-6
# for C = 64 (docs/winograd.md). The largest of 10^5 errors is about 4.5 times theirs, the largest output about 4 times its, so
# the quotient of the two is near these numbers; 5 to 15 times that leaves room for other orders of summation.
TOLERANCE = {2: 1e-6, 4: 5e-6, 6: 4e-5, 7: 1e-4}


@every_way
@pytest.mark.parametrize("m", MATRICES)
@pytest.mark.parametrize("size", [7, 14, 28])
def test_w7_dense_is_as_exact_as_the_tile_allows(run: Callable[..., Tensor], m: int, size: int) -> None:
    """Rectified input, filters as Kaiming initialises them, against torch's convolution in float64."""
    problem = Problem(1, 64, 64, size, size, m, (1, 1), every_position(m))
    operands = problem.operands()
    x, filters = operands.x.relu(), operands.filters * (2 / (9 * 64)) ** 0.5
    weights = winograd.transform_filters(filters, problem.positions, m)

    output = run(problem, replace(operands, x=x, filters=filters, weights=weights))

    expected = functional.conv2d(x.double(), filters.double(), padding=1)
    error = (output.double() - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[m]


@pytest.mark.parametrize("m", MATRICES)
def test_float64_is_exact(m: int) -> None:
    problem = Problem(2, 5, 4, 9, 10, m, (1, 1), every_position(m), channels_last=True)
    operands = problem.operands(torch.float64)
    weights = winograd.transform_filters(operands.filters, problem.positions, m)

    output = run_conv2d(problem, replace(operands, weights=weights))

    assert output.dtype == torch.float64
    torch.testing.assert_close(output, functional.conv2d(operands.x, operands.filters, padding=1), atol=1e-9, rtol=0)


def test_blocks_change_nothing_but_rounding() -> None:
    problem = Problem(1, 32, 64, 20, 20, 4, (1, 1), every_position(4))
    packed = winograd.pack_weights(problem.operands().weights, problem.positions, 4)

    outputs = [
        winograd.conv2d_packed(problem.operands().x, packed, 1, blocking=blocking)
        for blocking in ([], [8, 32, 0], [16, 64, 1], [0, 0, -1])
    ]

    bound = rounding_bound(problem)
    assert all(bool(((output - outputs[0]).abs() <= 2 * bound).all()) for output in outputs)


# ---- Layouts and special values ---------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [1, 4])
def test_output_keeps_the_memory_format(run: Callable[..., Tensor], layout: torch.memory_format, channels: int) -> None:
    problem = Problem(2, channels, 6, 5, 7, 2, (1, 0), every_position(2), channels_last=layout == torch.channels_last)

    output = run(problem, problem.operands())

    # With one channel both formats are the same memory.
    assert output.is_contiguous(memory_format=layout if channels > 1 else torch.contiguous_format)


@every_way
def test_operands_need_not_be_contiguous(run: Callable[..., Tensor]) -> None:
    operands = PRUNED.operands()
    assert operands.bias is not None
    assert operands.residual is not None
    strided = Operands(
        operands.x.repeat_interleave(2, dim=3)[..., ::2],
        operands.filters.transpose(2, 3).contiguous().transpose(2, 3),
        operands.weights.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        operands.bias.repeat_interleave(3)[::3],
        operands.residual.transpose(1, 2).contiguous().transpose(1, 2),
    )

    output = run(PRUNED, strided)

    assert not any(
        x.is_contiguous() for x in (strided.x, strided.filters, strided.weights, strided.bias, strided.residual)
    )
    assert torch.equal(output, run(PRUNED, operands))


def test_residual_may_lie_in_another_order_of_memory() -> None:
    operands = PRUNED.operands()
    assert operands.residual is not None
    other = replace(operands, residual=operands.residual.contiguous(memory_format=torch.channels_last))

    assert torch.equal(run_conv2d(PRUNED, other), run_conv2d(PRUNED, operands))


@every_way
def test_empty_batch_gives_an_empty_output(run: Callable[..., Tensor]) -> None:
    problem = replace(PRUNED, batch=0)

    assert run(problem, problem.operands()).shape == problem.output_shape


@every_way
def test_nan_reaches_the_outputs_that_read_it(run: Callable[..., Tensor]) -> None:
    """As in any convolution, up to whole tiles: neighbours in a tile share sums."""
    problem = Problem(1, 2, 3, 12, 12, 4, (1, 1), every_position(4), activation="relu")
    operands = problem.operands()
    operands.x[0, 1, 1, 2] = torch.nan

    output = run(problem, operands)

    assert bool(output[0, :, :3, 1:4].isnan().all())
    assert not bool(output[0, :, 4:, :].isnan().any())


@every_way
def test_operands_are_left_as_they_were(run: Callable[..., Tensor]) -> None:
    operands, before = PRUNED.operands(), PRUNED.operands()

    run(PRUNED, operands)

    for name in ("x", "filters", "weights", "bias", "residual"):
        assert torch.equal(getattr(operands, name), getattr(before, name))


# ---- Gradients --------------------------------------------------------------------------------------------------------------

GRADIENT_CASES = {
    "dense-2": replace(DENSE, m=2, positions=every_position(2)),
    "dense-4": DENSE,
    "pruned-4": replace(DENSE, positions=(0, 7, 8, 14, 21, 28, 35)),
    "pruned-6": replace(DENSE, m=6, positions=(0, 9, 18, 27, 36, 63)),
    "groups-bias-residual-relu": replace(PRUNED, batch=1, height=4, width=5),
    "kernel-groups": replace(DENSE, filters=4, positions=(0, 7, 9, 1, 8, 10), kernel_groups=2, bias=True),
    "groups-of-one-kernel-group": replace(
        DENSE, channels=4, filters=4, positions=(0, 7, 9), groups=4, activation="relu"
    ),
}


@pytest.mark.parametrize("problem", GRADIENT_CASES.values(), ids=GRADIENT_CASES.keys())
def test_gradients_are_right(problem: Problem) -> None:
    operands = problem.operands(torch.float64)
    leaves = [x for x in (operands.x, operands.weights, operands.bias, operands.residual) if x is not None]

    def run(x: Tensor, weights: Tensor, *epilogue: Tensor) -> Tensor:
        bias = epilogue[0] if problem.bias else None
        residual = epilogue[-1] if problem.residual else None
        return run_conv2d(problem, Operands(x, operands.filters, weights, bias, residual))

    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@given(problem=problems())
@example(problem=Problem(1, 64, 64, 8, 8, 4, (1, 1), every_position(4), channels_last=True))
@example(problem=Problem(2, 40, 96, 23, 31, 6, (1, 1), every_position(6)))
@settings(max_examples=30, deadline=None)
def test_w9_gradients_of_every_convolution_are_within_their_rounding_bound(problem: Problem) -> None:
    operands = problem.operands()
    output_gradient = torch.randn(problem.output_shape, generator=torch.Generator().manual_seed(problem.seed + 1))
    convolution = (
        output_gradient,
        operands.x,
        operands.weights,
        problem.positions,
        problem.m,
        problem.padding,
        problem.groups,
    )

    found = torch.ops.winograd.conv2d_gradients(*convolution, True, True)

    wanted = gradients_by_definition(problem, problem.operands(torch.float64), output_gradient.double())
    for ours, exact, bound in zip(found, wanted, gradient_bounds(problem, output_gradient), strict=True):
        assert ours.shape == exact.shape
        assert bool(((ours.double() - exact).abs() <= bound).all())
    of_input, nothing = torch.ops.winograd.conv2d_gradients(*convolution, True, False)
    assert torch.equal(of_input, found[0]) and nothing.numel() == 0
    nothing, of_weights = torch.ops.winograd.conv2d_gradients(*convolution, False, True)
    assert torch.equal(of_weights, found[1]) and nothing.numel() == 0


def test_gradients_are_the_same_for_every_order_of_memory() -> None:
    plain = replace(DENSE, channels=20, filters=18)
    operands, last = plain.operands(), replace(plain, channels_last=True).operands()
    gradient = torch.randn(plain.output_shape, generator=torch.Generator().manual_seed(3))
    found = [
        torch.ops.winograd.conv2d_gradients(
            gradient, given.x, given.weights, plain.positions, plain.m, plain.padding, 1, True, True
        )
        for given in (operands, last)
    ]
    assert found[1][0].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_gradients_of_nonsense_are_refused() -> None:
    operands = DENSE.operands()
    right = torch.zeros(DENSE.output_shape)

    def gradients(output_gradient: Tensor = right, positions: Any = DENSE.positions, **spoiled: Tensor) -> object:
        given = {"input": operands.x, "weights": operands.weights, **spoiled}
        return torch.ops.winograd.conv2d_gradients(
            output_gradient, given["input"], given["weights"], positions, DENSE.m, DENSE.padding, 1, True, True
        )

    gradients()
    for spoiled in (
        {"output_gradient": right[:, :1]},
        {"output_gradient": right[0]},
        {"positions": DENSE.positions[:-1]},
        {"weights": operands.weights[:, :, :1]},
        {"weights": operands.weights.double()},
        {"input": operands.x[:, :2]},
    ):
        with pytest.raises((ValueError, RuntimeError), match=r"[a-z]{4}"):
            gradients(**spoiled)


def test_gradients_in_float32_are_close_to_those_in_float64() -> None:
    def gradients(operands: Operands) -> tuple[Tensor, ...]:
        leaves = operands.x.requires_grad_(), operands.weights.requires_grad_()
        return torch.autograd.grad(run_conv2d(PRUNED, operands).square().sum(), leaves)

    found, expected = gradients(PRUNED.operands()), gradients(PRUNED.operands(torch.float64))

    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("run", [run_packed, run_packed_filters])
def test_packed_weights_say_that_they_have_no_gradients(run: Callable[..., Tensor]) -> None:
    operands = PRUNED.operands()
    operands.x.requires_grad_()

    with pytest.raises(NotImplementedError, match=r"call winograd\.conv2d with the weights themselves"):
        run(PRUNED, operands).sum().backward()


# ---- What torch expects of an operator ----------------------------------------------------------------------------------------


def arguments_of(name: str, problem: Problem, operands: Operands, *, prefix: str = "") -> tuple[Any, ...]:
    positions, padding = list(problem.positions), list(problem.padding)
    weights = (operands.weights, positions, problem.m, problem.groups)
    filters = (operands.filters, positions, problem.m, problem.kernel_groups, problem.groups)
    epilogue = (operands.bias, operands.residual, problem.activation, problem.groups)
    by_group = torch.tensor(positions, dtype=torch.int32).reshape(problem.kernel_groups, -1)
    if name == "conv2d":
        return operands.x, operands.weights, positions, problem.m, padding, *epilogue
    if name == "conv2d_gradients":
        output_gradient = torch.ones(problem.output_shape)
        return output_gradient, operands.x, operands.weights, positions, problem.m, padding, problem.groups, True, True
    if name.startswith("pack"):
        return weights if name == "pack_weights" else filters
    pack, given = ("pack_filters", filters) if name.endswith("filters") else ("pack_weights", weights)
    packed = getattr(torch.ops.winograd, prefix + pack)(*given)
    return operands.x, packed, by_group, problem.filters, problem.m, *padding, *epilogue


@pytest.mark.parametrize("prefix", ["", "reference_"], ids=["active", "reference"])
@pytest.mark.parametrize("name", [name for name in registration.SCHEMAS if "network" not in name])
@pytest.mark.parametrize("problem", [PRUNED, replace(DENSE, channels_last=True)], ids=["pruned", "dense-channels-last"])
def test_operator_passes_opcheck(name: str, prefix: str, problem: Problem) -> None:
    operator = getattr(torch.ops.winograd, prefix + name)

    torch.library.opcheck(operator, arguments_of(name, problem, problem.operands(), prefix=prefix))


def test_operator_passes_opcheck_with_gradients() -> None:
    operands = PRUNED.operands(torch.float64)
    for x in (operands.x, operands.weights, operands.bias, operands.residual):
        assert x is not None
        x.requires_grad_()

    torch.library.opcheck(torch.ops.winograd.conv2d, arguments_of("conv2d", PRUNED, operands))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@every_way
def test_autocast_computes_in_float32(run: Callable[..., Tensor], dtype: torch.dtype) -> None:
    operands = PRUNED.operands()
    low = replace(operands, x=operands.x.to(dtype))

    with torch.autocast("cpu", torch.bfloat16):
        output = run(PRUNED, low)

    assert output.dtype == torch.float32
    assert torch.equal(output, run(PRUNED, replace(operands, x=low.x.float())))


def test_autocast_passes_gradients_in_the_dtype_of_the_input() -> None:
    operands = DENSE.operands()
    x = operands.x.bfloat16().requires_grad_()

    with torch.autocast("cpu", torch.bfloat16):
        run_conv2d(DENSE, replace(operands, x=x)).sum().backward()

    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_way
def test_halves_are_stored_and_computed_in_float32(run: Callable[..., Tensor], dtype: torch.dtype) -> None:
    operands = PRUNED.operands()
    half = replace(operands, **{name: x.to(dtype) for name, x in vars(operands).items() if isinstance(x, Tensor)})
    back = replace(half, **{name: x.float() for name, x in vars(half).items() if isinstance(x, Tensor)})

    output = run(PRUNED, half)

    assert output.dtype == dtype
    assert torch.equal(output, run(PRUNED, back).to(dtype))


def test_halves_have_gradients_in_their_dtype() -> None:
    operands = DENSE.operands()
    half = operands.x.bfloat16().requires_grad_()
    single = half.detach().float().requires_grad_()
    weights = operands.weights.bfloat16()

    winograd.conv2d(half, weights, DENSE.positions, DENSE.m, DENSE.padding).sum().backward()
    winograd.conv2d(single, weights.float(), DENSE.positions, DENSE.m, DENSE.padding).sum().backward()

    assert half.grad is not None
    assert single.grad is not None
    assert torch.equal(half.grad, single.grad.bfloat16())


class Layer(nn.Module):
    """A convolution with a trained copy of filters, transformed in the call."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.filters = nn.Parameter(problem.operands().filters)

    def forward(self, x: Tensor) -> Tensor:
        problem = self.problem
        weights = winograd.transform_filters(
            self.filters, problem.positions, problem.m, kernel_groups=problem.kernel_groups
        )
        return winograd.conv2d(x, weights, problem.positions, problem.m, problem.padding, activation="relu") + 1


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch, of itself
@pytest.mark.parametrize(
    ("backend", "dynamic"),
    [("aot_eager", False), ("aot_eager", True), pytest.param("inductor", False, marks=pytest.mark.slow)],
    ids=["static", "dynamic", "inductor"],
)
def test_compiled_model_gives_the_same(backend: str, dynamic: bool) -> None:
    problem = Problem(2, 3, 4, 9, 8, 2, (1, 1), (0, 5, 6, 15, 1, 2, 3, 4), kernel_groups=2)
    layer, x = Layer(problem), problem.operands().x
    torch.compiler.reset()
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=dynamic)

    output = compiled(x)
    (gradient,) = torch.autograd.grad(output.sum(), layer.filters)

    torch.testing.assert_close(output, layer(x))
    torch.testing.assert_close(gradient, torch.autograd.grad(layer(x).sum(), layer.filters)[0])


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch, of itself
@pytest.mark.parametrize("pack", [winograd.pack_weights, winograd.pack_filters])
def test_packed_weights_can_be_compiled(pack: Callable[..., winograd.Packed]) -> None:
    operands = DENSE.operands()
    given = operands.weights if pack is winograd.pack_weights else operands.filters
    packed = pack(given, DENSE.positions, DENSE.m)
    torch.compiler.reset()

    def layer(x: Tensor) -> Tensor:
        return winograd.conv2d_packed(x, packed, DENSE.padding) + 1

    output = torch.compile(layer, backend="aot_eager", fullgraph=True)(operands.x)

    torch.testing.assert_close(output, layer(operands.x))


def test_exported_model_takes_any_size() -> None:
    layer = Layer(Problem(2, 3, 4, 9, 8, 2, (1, 1), every_position(2)))
    sizes = {0: torch.export.Dim("n", min=1), 2: torch.export.Dim("h", min=1), 3: torch.export.Dim("w", min=1)}

    exported = torch.export.export(layer, (torch.randn(2, 3, 9, 8),), dynamic_shapes=(sizes,))

    called = [node.target for node in exported.graph.nodes]
    assert torch.ops.winograd.conv2d.default in called
    x = torch.randn(3, 3, 17, 4, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(exported.module()(x), layer(x))


# ---- Refusals ----------------------------------------------------------------------------------------------------------------


def given_to_conv2d(**changes: Any) -> dict[str, Any]:
    given = {
        "input": torch.zeros(1, 4, 5, 5),
        "weights": torch.zeros(3, 6, 4),
        "positions": [0, 5, 15],
        "m": 2,
        "padding": [1, 1],
    }
    return {**given, **changes}


WRONG_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "input-without-batch": ({"input": torch.zeros(4, 5, 5)}, r"input has shape \[4, 5, 5\]; pass \[N, C, H, W\]"),
    "other-channels": ({"input": torch.zeros(1, 3, 5, 5)}, "input has 3 channels, the weights are for 4"),
    "weights-of-two-dimensions": ({"weights": torch.zeros(3, 6)}, r"pass \[P, K, C/g\]"),
    "no-channels": ({"weights": torch.zeros(3, 6, 0), "input": torch.zeros(1, 0, 5, 5)}, "at least one channel"),
    "no-filters": ({"weights": torch.zeros(3, 0, 4)}, "0 filters can't be divided"),
    "nothing-kept": ({"weights": torch.zeros(0, 6, 4), "positions": []}, "keep at least one"),
    "fewer-positions": ({"positions": [0, 5]}, "weights have 3 kept positions and 2 positions were given"),
    "position-outside": ({"positions": [0, 5, 16]}, r"\[0, 5, 16\] are not ascending, different and from 0 to 15"),
    "position-negative": ({"positions": [-1, 5, 15]}, "are not ascending"),
    "position-doubled": ({"positions": [0, 5, 5]}, "are not ascending"),
    "positions-unsorted": ({"positions": [5, 0, 15]}, "are not ascending"),
    "second-group-unsorted": ({"positions": [0, 5, 15, 1, 0, 2]}, r"\[1, 0, 2\] are not ascending"),
    "kernel-groups-not-dividing": ({"positions": [0, 5, 15] * 4}, "both numbers must divide"),
    "groups-not-dividing": ({"groups": 4}, "both numbers must divide"),
    "no-groups": ({"groups": 0}, "0 groups of the convolution"),
    "straddling": ({"groups": 3, "positions": [0, 5, 15] * 2}, "would straddle the 3 groups"),
    "m": ({"m": 3}, "m is 3; choose 2, 4, 6, 7"),
    "padding-negative": ({"padding": [-1, 1]}, r"padding is \[-1, 1\]"),
    "padding-of-three": ({"padding": [1, 1, 1]}, r"padding is \[1, 1, 1\]"),
    "output-empty": (
        {"input": torch.zeros(1, 4, 2, 5), "padding": 0},
        "2x5 with padding .* is smaller than the 3x3 filter",
    ),
    "bias-of-other-length": ({"bias": torch.zeros(4)}, "one number for each of the 6 filters"),
    "residual-of-other-shape": ({"residual": torch.zeros(1, 6, 5, 4)}, r"shaped like the output, \[1, 6, 5, 5\]"),
    "residual-to-broadcast": ({"residual": torch.zeros(1, 1, 1, 1)}, "shaped like the output"),
    "activation": ({"activation": "gelu"}, "activation is 'gelu'; choose one of none, relu"),
    "device": ({"bias": torch.zeros(6, device="meta")}, "bias is on meta: move all of them to one device"),
}
WRONG_DTYPES: dict[str, tuple[dict[str, Any], str]] = {
    "integers": ({"input": torch.zeros(1, 4, 5, 5, dtype=torch.int32)}, "input has dtype torch.int32; pass float32"),
    "half-mixture": ({"input": torch.zeros(1, 4, 5, 5).bfloat16()}, "convert all of them to one dtype"),
    "complex-weights": ({"weights": torch.zeros(3, 6, 4) * 1j}, "weights has dtype torch.complex64"),
    "mixture": ({"input": torch.zeros(1, 4, 5, 5).double()}, "input is torch.float64, weights is torch.float32"),
    "bias-mixture": ({"bias": torch.zeros(6).double()}, "convert all of them to one dtype"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG_VALUES.values(), ids=WRONG_VALUES.keys())
def test_wrong_value_is_refused_with_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        winograd.conv2d(**given_to_conv2d(**changes))


@pytest.mark.parametrize(("changes", "message"), WRONG_DTYPES.values(), ids=WRONG_DTYPES.keys())
def test_wrong_dtype_is_refused_with_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        winograd.conv2d(**given_to_conv2d(**changes))


@pytest.mark.parametrize("changes", [change for change, _ in WRONG_VALUES.values()], ids=WRONG_VALUES.keys())
def test_raw_operator_refuses_it_too(changes: dict[str, Any]) -> None:
    """Which type of error depends on who notices; that nothing crashes does not."""
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        torch.ops.winograd.conv2d(**given_to_conv2d(**changes))


def packed_by(operator: str) -> winograd.Packed:
    if operator == "pack_weights":
        return winograd.pack_weights(torch.zeros(3, 6, 4), [0, 5, 15], 2)
    return winograd.pack_filters(torch.zeros(6, 4, 3, 3), [0, 5, 15], 2)


def by_group(*positions: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor([positions], dtype=dtype)


WRONG_PACKED: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"numbers": torch.zeros(3, 6, 4)}, "it is 1-D as pack_weights"),
    "positions-flat": ({"positions": by_group(0, 5, 15)[0]}, r"pass \[kernel groups, P\] of int32"),
    "positions-of-int64": ({"positions": by_group(0, 5, 15, dtype=torch.int64)}, "of int32"),
    "positions-elsewhere": ({"positions": by_group(0, 5, 15).to("meta")}, "on the CPU wherever"),
    "positions-unsorted": ({"positions": by_group(5, 0, 15)}, "are not ascending"),
    "positions-outside": ({"positions": by_group(0, 5, 16)}, "are not ascending, different and from 0 to 15"),
    "positions-of-no-group": ({"positions": by_group()[:0]}, "0 positions were given for 0 groups of filters"),
    "nothing-kept": ({"positions": by_group()}, "0 positions were given for 1 groups of filters"),
    "no-filters": ({"filters": 0}, "0 filters can't be divided"),
    "m": ({"m": 3}, "m is 3; choose 2, 4, 6, 7"),
    "channels": ({"groups": 3}, "positive multiple of groups = 3"),
}
WRONG_PACKED_CALLS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "input-without-batch": ({"input": torch.zeros(4, 5, 5)}, ValueError, r"pass \[N, C, H, W\]"),
    "input-of-integers": (
        {"input": torch.zeros(1, 4, 5, 5, dtype=torch.int32)},
        TypeError,
        "convert all of them|pass float32",
    ),
    "input-of-float64": ({"input": torch.zeros(1, 4, 5, 5).double()}, TypeError, "convert all of them to one dtype"),
    "bias-of-other-length": ({"bias": torch.zeros(4)}, ValueError, "one number for each of the 6 filters"),
    "bias-of-float64": ({"bias": torch.zeros(6).double()}, TypeError, "convert all of them to one dtype"),
    "bias-elsewhere": ({"bias": torch.zeros(6, device="meta")}, ValueError, "move all of them to one device"),
    "residual-to-broadcast": ({"residual": torch.zeros(1, 1, 1, 1)}, ValueError, "shaped like the output"),
    "activation": ({"activation": "gelu"}, ValueError, "activation is 'gelu'; choose one of none, relu"),
    "padding-negative": ({"padding": [-1, 1]}, ValueError, r"padding is \[-1, 1\]"),
    "padding-of-three": ({"padding": [1, 1, 1]}, ValueError, r"padding is \[1, 1, 1\]"),
    "blocking-of-two": ({"blocking": [1, 32]}, ValueError, r"blocking is \[1, 32\]"),
    "blocking-negative": ({"blocking": [-1, 32, 0]}, ValueError, r"blocking is \[-1, 32, 0\]"),
    "blocking-not-of-32": ({"blocking": [1, 33, 0]}, ValueError, "a multiple of 32"),
    "blocking-shared": ({"blocking": [1, 32, 2]}, ValueError, "1, 0, or -1 to choose"),
    "blocking-shared-negative": ({"blocking": [1, 32, -2]}, ValueError, "1, 0, or -1 to choose"),
}
every_packing = pytest.mark.parametrize("pack", ["pack_weights", "pack_filters"])


@every_packing
@pytest.mark.parametrize(("changes", "message"), WRONG_PACKED.values(), ids=WRONG_PACKED.keys())
def test_spoiled_packed_weights_are_refused(pack: str, changes: dict[str, Any], message: str) -> None:
    packed = replace(packed_by(pack), **changes)

    with pytest.raises(ValueError, match=message):
        winograd.conv2d_packed(torch.zeros(1, 4, 5, 5), packed, 1)


@every_packing
@pytest.mark.parametrize(("changes", "error", "message"), WRONG_PACKED_CALLS.values(), ids=WRONG_PACKED_CALLS.keys())
def test_wrong_packed_call_is_refused(pack: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"input": torch.zeros(1, 4, 5, 5), "packed": packed_by(pack), "padding": 1, **changes}

    with pytest.raises(error, match=message):
        winograd.conv2d_packed(**given)


@every_packing
@pytest.mark.parametrize("numbers", [torch.zeros(7), torch.zeros(0)], ids=["other", "none"])
def test_weights_packed_for_another_convolution_are_refused(pack: str, numbers: Tensor) -> None:
    with pytest.raises((ValueError, RuntimeError), match="pack"):
        winograd.conv2d_packed(torch.zeros(1, 4, 5, 5), replace(packed_by(pack), numbers=numbers), 1)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
def test_packed_weights_compute_the_same_in_every_mode_of_gradients(grad: bool) -> None:
    operands = PRUNED.operands()
    with torch.inference_mode():
        expected = run_packed(PRUNED, operands)

    with torch.set_grad_enabled(grad):
        output = run_packed(PRUNED, operands)

    assert torch.equal(output, expected)
    assert not output.requires_grad
    assert not output.is_inference()


@pytest.mark.parametrize(
    "filters",
    [torch.zeros(6, 4, 5, 5), torch.zeros(6, 4, 3), torch.zeros(6, 0, 3, 3)],
    ids=["5x5", "three-dimensions", "no-channels"],
)
def test_filters_of_other_shapes_are_refused(filters: Tensor) -> None:
    for refuse in (winograd.pack_filters, winograd.transform_filters):
        with pytest.raises(ValueError, match=r"pass \[K, C/g, 3, 3\]"):
            refuse(filters, [0, 5, 15], 2)
