"""Gradients of `winograd.conv2d`: plain torch's, and the compiled library's where it computes (float32 on the CPU).

`winograd::conv2d_gradients` is what the backward pass calls. It has no gradients of its own: who asks for gradients of
gradients gets the plain-torch chain, which has.
"""

from typing import Any

import torch
from torch import Tensor

from winograd import arguments, reference

SCHEMA = (
    "(Tensor output_gradient, Tensor input, Tensor weights, int[] positions, int m, SymInt[2] padding, int groups, "
    "bool wants_input, bool wants_weights) -> (Tensor, Tensor)"
)


def default(
    output_gradient: Tensor,
    input: Tensor,
    weights: Tensor,
    positions: list[int],
    m: int,
    padding: list[int],
    groups: int,
    wants_input: bool,
    wants_weights: bool,
) -> tuple[Tensor, Tensor]:
    """Plain torch. What isn't wanted is empty."""
    arguments.check_conv2d(input, weights, positions, m, padding, None, output_gradient, "none", groups)
    found = reference.conv2d_gradients(
        output_gradient, input, weights, positions, m, padding, groups=groups, wanted=(wants_input, wants_weights)
    )
    of_input = _empty_input(input, wanted=wants_input)
    if found[0] is not None:
        of_input.copy_(found[0])
    return of_input, weights.new_empty(0) if found[1] is None else found[1].contiguous()


def fake(
    output_gradient: Tensor,
    input: Tensor,
    weights: Tensor,
    positions: list[int],
    m: int,
    padding: list[int],
    groups: int,
    wants_input: bool,
    wants_weights: bool,
) -> tuple[Tensor, Tensor]:
    """The same without numbers, for tracing."""
    arguments.check_conv2d(input, weights, positions, m, padding, None, output_gradient, "none", groups)
    return _empty_input(input, wanted=wants_input), weights.new_empty(weights.shape if wants_weights else 0)


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # torch's types
    """Keep what the gradients of one call of conv2d are made of."""
    input, weights, ctx.positions, ctx.m, ctx.padding, _, _, activation, ctx.groups = inputs
    ctx.save_for_backward(input, weights, output if activation == "relu" else None)


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # torch's types
    """The gradients of all arguments of conv2d from that of its output."""
    input, weights, output = ctx.saved_tensors
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    # torch leaves out what has its default at the end.
    wants_input, wants_weights, _, _, _, wants_bias, wants_residual = (*ctx.needs_input_grad, False, False)[:7]
    dtype = grad.dtype
    grad, input, weights = (x.float() if dtype in arguments.HALVES else x for x in (grad, input, weights))
    convolution = grad, input, weights, ctx.positions, ctx.m, ctx.padding
    if torch.is_grad_enabled():  # gradients of gradients may be asked for
        gradients = reference.conv2d_gradients(*convolution, groups=ctx.groups, wanted=(wants_input, wants_weights))
    else:
        found = torch.ops.winograd.conv2d_gradients(*convolution, ctx.groups, wants_input, wants_weights)
        gradients = found[0] if wants_input else None, found[1] if wants_weights else None
    grad_input, grad_weights = (x if x is None else x.to(dtype) for x in gradients)
    grad_bias = grad.sum((0, 2, 3)).to(dtype) if wants_bias else None
    grad_residual = grad.to(dtype) if wants_residual else None
    return grad_input, grad_weights, None, None, None, grad_bias, grad_residual, None, None


def no_gradients(_ctx: Any, *_grads: Tensor) -> None:  # torch's types
    """For all other operators."""
    raise NotImplementedError(
        "Of these operators conv2d alone has gradients; call winograd.conv2d with the weights themselves."
    )


def _empty_input(input: Tensor, *, wanted: bool) -> Tensor:
    if not wanted:
        return input.new_empty(0)
    return torch.empty(
        input.shape, dtype=input.dtype, device=input.device, memory_format=reference.memory_format_of(input)
    )
