"""`PackedConv2d`: what `conv2d` computes, on weights packed once."""

import pytest
import torch
from hypothesis import given, settings

import winograd
from tests.winograd.problems import Problem, problems
from winograd import PackedConv2d


def packed_conv2d(problem: Problem) -> PackedConv2d:
    operands = problem.operands()
    packed = winograd.pack_weights(operands.weights, problem.positions, problem.m, groups=problem.groups)
    return PackedConv2d(packed, operands.bias, padding=problem.padding, activation=problem.activation)


@given(problems())
@settings(max_examples=100, deadline=None)
def test_module_is_the_convolution(problem: Problem) -> None:
    operands = problem.operands()
    expected = winograd.conv2d(
        operands.x, operands.weights, problem.positions, problem.m, problem.padding,
        bias=operands.bias, residual=operands.residual, activation=problem.activation, groups=problem.groups,
    )  # fmt: skip

    module = packed_conv2d(problem)

    with torch.inference_mode():
        output = module(operands.x, operands.residual)
    torch.testing.assert_close(output, expected, atol=1e-3, rtol=1e-4)
    assert output.stride() == expected.stride()


PROBLEM = Problem(2, 16, 8, 9, 11, 4, (1, 1), (0, 7, 35, 3, 8, 9), kernel_groups=2, bias=True, activation="relu")


def test_another_size_or_number_of_threads_changes_nothing() -> None:
    module, threads = packed_conv2d(PROBLEM), torch.get_num_threads()
    x = PROBLEM.operands().x
    with torch.inference_mode():
        expected = module(x)
        torch.testing.assert_close(module(x[:1]), expected[:1], atol=1e-5, rtol=1e-5)
        try:
            torch.set_num_threads(threads % 2 + 1)
            torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
        finally:
            torch.set_num_threads(threads)


def test_torch_compile_takes_it_in_without_breaking_its_graph() -> None:
    module = packed_conv2d(PROBLEM)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for x in (PROBLEM.operands().x, torch.randn(5, *PROBLEM.operands().x.shape[1:])):
            torch.testing.assert_close(compiled(x), module(x), atol=1e-5, rtol=1e-5)


def test_packed_weights_are_in_no_state_dict() -> None:
    assert packed_conv2d(PROBLEM).state_dict() == {}


def test_it_says_how_it_is_computed() -> None:
    shown = (
        "PackedConv2d(8 filters, padding=(1, 1), activation=relu, F(4x4, 3x3), 3 of 36 positions in each of 2 groups)"
    )
    assert str(packed_conv2d(PROBLEM)) == shown


def test_input_of_other_channels_is_refused() -> None:
    with pytest.raises(RuntimeError, match="pack again"), torch.inference_mode():
        packed_conv2d(PROBLEM)(torch.zeros(1, 3, 9, 9))


def test_arguments_are_checked() -> None:
    packed = winograd.pack_weights(torch.zeros(1, 8, 4), [0], 2)
    with pytest.raises(ValueError, match="pass one number for each of the 8 filters"):
        PackedConv2d(packed, torch.zeros(4))
    with pytest.raises(ValueError, match="choose one of none, relu"):
        PackedConv2d(packed, activation="gelu")
    with pytest.raises(ValueError, match="neither negative"):
        PackedConv2d(packed, padding=(1, -1))
