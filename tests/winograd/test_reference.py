"""The plain-torch implementation, against the definition and against torch's convolution, in float64."""

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional
from winograd.matrices import MATRICES

from tests.winograd.problems import Problem, at_every_position, by_definition, every_position, floats, problems
from winograd import reference

DENSE = 1e-9  # float64 leaves seven digits of room, whatever m


@pytest.mark.parametrize("m", MATRICES)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (14, 13)], ids=str)
def test_w7_dense_equals_convolution(m: int, groups: int, size: tuple[int, int]) -> None:
    problem = Problem(2, 6, 9, *size, m, (1, 2), every_position(m), groups=groups)
    operands = problem.operands(torch.float64)
    weights = reference.transform_filters(operands.filters, problem.positions, m)

    output = reference.conv2d(operands.x, weights, problem.positions, m, problem.padding, groups=groups)

    torch.testing.assert_close(
        output, functional.conv2d(operands.x, operands.filters, padding=(1, 2), groups=groups), atol=DENSE, rtol=0
    )


@given(problem=problems())
@settings(max_examples=60, deadline=None)
def test_w6_every_convolution_follows_the_definition(problem: Problem) -> None:
    """Pruned weights are zeros of all kernels, groups have positions of their own, and nothing depends on sizes."""
    operands = problem.operands(torch.float64)

    output = run(problem, operands.x, operands.weights, operands.bias, operands.residual)

    expected = by_definition(problem, operands)
    expected = expected.relu() if problem.activation == "relu" else expected
    assert output.shape == problem.output_shape
    torch.testing.assert_close(output, expected, atol=DENSE, rtol=0)


@pytest.mark.parametrize("m", MATRICES)
def test_w2_position_is_row_times_t_plus_column(m: int) -> None:
    t = MATRICES[m].t
    filters = torch.randn(2, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    g = floats(MATRICES[m].g)
    u = torch.einsum("ar,kcrs,bs->abkc", g, filters, g)

    kept = reference.transform_filters(filters, [1, t, 2 * t - 1], m)

    torch.testing.assert_close(kept, torch.stack([u[0, 1], u[1, 0], u[1, t - 1]]))


def test_w3_pruned_position_is_common_to_all_kernels_of_a_group() -> None:
    problem = Problem(1, 3, 4, 6, 6, 2, (1, 1), (0, 3, 5, 1, 2, 15), kernel_groups=2)
    weights = problem.operands().weights

    u = at_every_position(problem, weights).flatten(0, 1)

    for run_of_filters, positions in ((slice(0, 2), {0, 3, 5}), (slice(2, 4), {1, 2, 15})):
        assert {p for p in range(16) if bool(u[p, run_of_filters].any())} == positions
        assert all(bool(u[p, run_of_filters].all()) for p in positions)


@pytest.mark.parametrize("m", MATRICES)
def test_weights_are_rounded_once(m: int) -> None:
    filters = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(2))

    weights = reference.transform_filters(filters, every_position(m), m)

    in_float64 = reference.transform_filters(filters.double(), every_position(m), m)
    assert torch.equal(weights, in_float64.float())


@given(problem=problems().filter(lambda problem: problem.batch > 0))
@settings(max_examples=30, deadline=None)
def test_gradients_are_those_of_autograd(problem: Problem) -> None:
    operands = problem.operands(torch.float64)
    x, weights = operands.x.requires_grad_(), operands.weights.requires_grad_()
    output = reference.conv2d(x, weights, problem.positions, problem.m, problem.padding, groups=problem.groups)
    grad = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    found = reference.conv2d_gradients(
        grad, x, weights, problem.positions, problem.m, problem.padding, groups=problem.groups
    )

    for ours, expected in zip(found, torch.autograd.grad(output, (x, weights), grad), strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)], ids=str)
def test_only_wanted_gradients_are_computed(wanted: tuple[bool, bool]) -> None:
    problem = Problem(1, 2, 2, 5, 5, 2, (1, 1), every_position(2))
    operands = problem.operands()

    found = reference.conv2d_gradients(
        operands.x, operands.x, operands.weights, problem.positions, 2, problem.padding, wanted=wanted
    )

    assert tuple(gradient is not None for gradient in found) == wanted


def test_filters_can_be_trained_through_their_transform() -> None:
    problem = Problem(1, 2, 4, 5, 4, 4, (1, 1), (0, 7, 8, 20, 1, 7, 9, 35), kernel_groups=2)
    operands = problem.operands(torch.float64)

    def loss(filters: Tensor) -> Tensor:
        weights = reference.transform_filters(filters, problem.positions, problem.m, kernel_groups=2)
        return run(problem, operands.x, weights)

    assert torch.autograd.gradcheck(loss, operands.filters.requires_grad_())


def run(
    problem: Problem, x: Tensor, weights: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    return reference.conv2d(
        x, weights, problem.positions, problem.m, problem.padding,
        bias=bias, residual=residual, activation=problem.activation, groups=problem.groups,
    )  # fmt: skip
