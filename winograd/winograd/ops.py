"""The operators of `torch.ops.winograd`, as functions that check their arguments first.

The names exist as soon as `winograd` is imported (see `registration.py`); where the compiled library is loaded, they run its
code. Under autocast everything is computed in float32: in fewer bits the transforms would lose too many digits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from winograd import arguments, reference, registration

registration.define_operators()


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


def pack_weights(weights: Tensor, positions: Sequence[int], m: int, *, groups: int = 1) -> Tensor:
    """Return weights [P, K, C/g] in the order in which this process's implementation reads them, for conv2d_packed.

    The result is a 1-D tensor that is good for this process only: keep the weights themselves in files.
    """
    arguments.check_weights(weights, positions, m, groups)
    return _run("pack_weights", weights, list(positions), m, groups)


def pack_filters(
    filters: Tensor, positions: Sequence[int], m: int, *, kernel_groups: int = 1, groups: int = 1
) -> Tensor:
    """Return filters [K, C/g, 3, 3] packed for conv2d_packed_filters, which transforms them again in every call.

    Fewer bytes to read than packed weights: faster where there are few tiles. Good for this process only.
    """
    arguments.check_filters(filters, positions, m, kernel_groups, groups)
    return _run("pack_filters", filters, list(positions), m, kernel_groups, groups)


def conv2d_packed(
    input: Tensor,
    packed: Tensor,
    filters: int,
    positions: Sequence[int],
    kernel_groups: int,
    m: int,
    padding: int | Sequence[int] = 0,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    groups: int = 1,
    blocking: Sequence[int] = (),
) -> Tensor:
    """Do the same as conv2d with `packed` = pack_weights(weights, ...) of that many filters; no gradients.

    blocking: [tiles, filters, shared], how the work is cut up (see `winograd_blocking` in winograd.h), or nothing.
    """
    given = (
        filters,
        list(positions),
        kernel_groups,
        m,
        _pair(padding),
        bias,
        residual,
        activation,
        groups,
        list(blocking),
    )
    arguments.check_conv2d_packed(input, packed, *given)
    return _run("conv2d_packed", input, packed, *given)


def conv2d_packed_filters(
    input: Tensor,
    packed: Tensor,
    filters: int,
    positions: Sequence[int],
    kernel_groups: int,
    m: int,
    padding: int | Sequence[int] = 0,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    groups: int = 1,
    blocking: Sequence[int] = (),
) -> Tensor:
    """Do the same as conv2d_packed with `packed` = pack_filters(filters, ...)."""
    given = (
        filters,
        list(positions),
        kernel_groups,
        m,
        _pair(padding),
        bias,
        residual,
        activation,
        groups,
        list(blocking),
    )
    arguments.check_conv2d_packed(input, packed, *given)
    return _run("conv2d_packed_filters", input, packed, *given)


def _pair(padding: int | Sequence[int]) -> list[int]:
    return [padding, padding] if isinstance(padding, int) else list(padding)


def _run(name: str, *given: Any) -> Tensor:  # whatever the schema of the operator names
    output: Tensor = getattr(torch.ops.winograd, name)(*given)
    return output
