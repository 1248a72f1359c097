"""The operators of `torch.ops.winograd`, as functions that check their arguments first.

The names exist as soon as `winograd` is imported (see `registration.py`); where the compiled library is loaded, they run its
code. Under autocast everything is computed in float32: in fewer bits the transforms would lose too many digits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from winograd import arguments, reference, registration

registration.define_operators()

CHOSEN_BY_LIBRARY = (0, 0, -1)


@dataclass(frozen=True, eq=False)
class Packed:
    """Weights in the order in which this process's implementation reads them, and the convolution that they are for.

    Good for this process only: keep the weights themselves in files. `operator` is the one of torch.ops.winograd that reads
    the 1-D `numbers`; `positions` is [kernel groups, P] of int32, on the CPU wherever the numbers are.
    """

    operator: Callable[..., Tensor]
    numbers: Tensor
    positions: Tensor
    filters: int
    m: int
    groups: int


def transform_filters(filters: Tensor, positions: Sequence[int], m: int, *, kernel_groups: int = 1) -> Tensor:
    """Return the weights U [P, K, C/g] at the kept positions of G w G^T, for filters w [K, C/g, 3, 3]; differentiable.

    Computed in float64 and rounded once to the dtype of the filters. positions: as for conv2d, for each of `kernel_groups`
    equal runs of filters.
    """
    arguments.check_filters(filters, positions, m, kernel_groups, groups=1)
    return reference.transform_filters(filters, positions, m, kernel_groups=kernel_groups)


def conv2d(
    input: Tensor,
    weights: Tensor,
    positions: Sequence[int],
    m: int,
    padding: int | Sequence[int] = 0,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    groups: int = 1,
) -> Tensor:
    """Return activation(convolution + bias + residual), [N, K, OH, OW], in the memory format of input; differentiable.

    input [N, C, H, W]; weights [P, K, C/g] of the Winograd domain at the P kept positions of F(m x m, 3x3), as
    `transform_filters` makes them; positions: row * (m + 2) + column of each, ascending, for each of one or more equal runs
    of filters; padding: zeros on both sides of rows and columns; bias [K]; residual shaped like the output; activation
    "none" or "relu". All tensors have one dtype: float32, float64, or a half (float16, bfloat16), which is computed in
    float32. Raises ValueError or TypeError for anything else.
    """
    padding = _pair(padding)
    arguments.check_conv2d(input, weights, positions, m, padding, bias, residual, activation, groups)
    return _run("conv2d", input, weights, list(positions), m, padding, bias, residual, activation, groups)


def pack_weights(weights: Tensor, positions: Sequence[int], m: int, *, groups: int = 1) -> Packed:
    """Return weights [P, K, C/g] of the Winograd domain, packed for conv2d_packed."""
    kernel_groups = arguments.check_weights(weights, positions, m, groups)
    numbers = _run("pack_weights", weights, list(positions), m, groups)
    operator = torch.ops.winograd.conv2d_packed.default
    return Packed(operator, numbers, _tensor_of(positions, kernel_groups), weights.shape[1], m, groups)


def pack_filters(
    filters: Tensor, positions: Sequence[int], m: int, *, kernel_groups: int = 1, groups: int = 1
) -> Packed:
    """Return filters [K, C/g, 3, 3], packed for conv2d_packed, which transforms them again in every call.

    Fewer bytes to read than packed weights: faster where there are few tiles.
    """
    arguments.check_filters(filters, positions, m, kernel_groups, groups)
    numbers = _run("pack_filters", filters, list(positions), m, kernel_groups, groups)
    operator = torch.ops.winograd.conv2d_packed_filters.default
    return Packed(operator, numbers, _tensor_of(positions, kernel_groups), filters.shape[0], m, groups)


def conv2d_packed(
    input: Tensor,
    packed: Packed,
    padding: int | Sequence[int] = 0,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    blocking: Sequence[int] = (),
) -> Tensor:
    """Do the same as conv2d with `packed` = pack_weights(weights, ...) or pack_filters(filters, ...); no gradients.

    blocking: [tiles, filters, shared], how the work is cut up (see `winograd_blocking` in winograd.h), or nothing.
    """
    # Checks of arguments take half as long as a small convolution: ask what is wrong only where the operator refuses.
    padding = (padding, padding) if isinstance(padding, int) else padding
    blocking = blocking or CHOSEN_BY_LIBRARY
    of = packed.numbers, packed.positions, packed.filters, packed.m
    if len(padding) != 2 or len(blocking) != 3:
        arguments.check_padding(padding)
        arguments.check_blocking(blocking)
    try:
        given = (input, *of, *padding, bias, residual, activation, packed.groups, *blocking)
        if _can_skip_autograd(input, packed.numbers, bias, residual):
            with torch._C._AutoDispatchBelowAutograd():
                return packed.operator(*given)
        return packed.operator(*given)
    except RuntimeError:
        arguments.check_conv2d_packed(input, *of, padding, bias, residual, activation, packed.groups, blocking)
        raise


def _can_skip_autograd(*operands: Tensor | None) -> bool:
    """Whether torch's slow way through autograd, which says that packed weights have no gradients, would say nothing.

    Not when the call is traced, which is torch's matter, nor in inference mode, where torch skips autograd itself.
    """
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return False
    return not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands))


def _tensor_of(positions: Sequence[int], kernel_groups: int) -> Tensor:
    return torch.tensor(positions, dtype=torch.int32, device="cpu").reshape(kernel_groups, -1)


def _pair(padding: int | Sequence[int]) -> list[int]:
    return [padding, padding] if isinstance(padding, int) else list(padding)


def _run(name: str, *given: Any) -> Tensor:  # whatever the schema of the operator names
    output: Tensor = getattr(torch.ops.winograd, name)(*given)
    return output
