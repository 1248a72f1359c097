"""What may be given to the operators: one function for each, which says in a sentence what is wrong.

The compiled implementations are called with arguments that passed here. Wrong values raise ValueError, wrong types of
elements TypeError.
"""

from collections.abc import Sequence
from operator import lt

import torch
from torch import Tensor

from winograd.matrices import FILTER_SIZE, MATRICES

ACTIVATIONS = ("none", "relu")

# Halves are types of storage: everything is computed in float32, for transforms in fewer bits lose too many digits.
HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)


def check_conv2d(
    x: Tensor,
    weights: Tensor,
    positions: Sequence[int],
    m: int,
    padding: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    groups: int,
) -> None:
    """Check the arguments of conv2d."""
    kernel_groups = check_weights(weights, positions, m, groups)
    _check_groups(weights.shape[1], groups, kernel_groups)
    _check_input(x, padding, channels=weights.shape[2] * groups, groups=groups)
    check_epilogue(weights.shape[1], bias, activation)
    _check_residual(residual, output_shape(x, weights.shape[1], padding))
    _check_alike(input=x, weights=weights, bias=bias, residual=residual)


def check_conv2d_packed(
    x: Tensor,
    packed: Tensor,
    positions: Tensor,
    filters: int,
    m: int,
    padding: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    groups: int,
    blocking: Sequence[int],
) -> None:
    """Check the arguments of conv2d_packed and conv2d_packed_filters; what lies in `packed` only its maker can tell."""
    check_packed_operands(x, packed, positions, bias, residual)
    check_positions(positions.flatten().tolist(), m, positions.shape[0])
    _check_groups(filters, groups, positions.shape[0])
    _check_input(x, padding, channels=None, groups=groups)
    if packed.dim() != 1:
        raise ValueError(f"packed has shape {_shape(packed)}; it is 1-D as pack_weights and pack_filters make it.")
    check_epilogue(filters, bias, activation)
    _check_residual(residual, output_shape(x, filters, padding))
    check_blocking(blocking)


def check_packed_operands(
    x: Tensor, packed: Tensor, positions: Tensor, bias: Tensor | None, residual: Tensor | None
) -> None:
    """Check where tensors are and of what type, which is known also while a call is traced."""
    if positions.dim() != 2 or positions.dtype != torch.int32 or positions.device.type != "cpu":
        raise ValueError(
            f"positions are {_shape(positions)}, {positions.dtype}, on {positions.device}; pass [kernel groups, P] of int32, "
            "on the CPU wherever the input is."
        )
    _check_alike(input=x, packed=packed, bias=bias, residual=residual)


def check_weights(weights: Tensor, positions: Sequence[int], m: int, groups: int) -> int:
    """Check Winograd-domain weights [P, K, C/g]; return the number of runs of filters with positions of their own."""
    if weights.dim() != 3:
        raise ValueError(
            f"weights have shape {_shape(weights)}; pass [P, K, C/g]: P kept positions, K filters, C/g channels of a group, "
            "as transform_filters makes them."
        )
    kept = weights.shape[0]
    if kept == 0 or len(positions) == 0 or len(positions) % kept != 0:
        raise ValueError(
            f"weights have {kept} kept positions and {len(positions)} positions were given; pass the P positions of each "
            "group of filters, one after the other, and keep at least one."
        )
    check_positions(positions, m, len(positions) // kept)
    _check_groups(weights.shape[1], groups, len(positions) // kept)
    if weights.shape[2] < 1:
        raise ValueError(f"weights have shape {_shape(weights)}; there must be at least one channel.")
    _check_dtype("weights", weights)
    return len(positions) // kept


def check_filters(filters: Tensor, positions: Sequence[int], m: int, kernel_groups: int, groups: int) -> None:
    """Check filters [K, C/g, 3, 3] that are to be packed or transformed."""
    if filters.dim() != 4 or filters.shape[2:] != (FILTER_SIZE, FILTER_SIZE) or filters.shape[1] < 1:
        raise ValueError(f"filters have shape {_shape(filters)}; pass [K, C/g, 3, 3], at least one channel.")
    check_positions(positions, m, kernel_groups)
    _check_groups(filters.shape[0], groups, kernel_groups)
    _check_dtype("filters", filters)


def check_positions(positions: Sequence[int], m: int, kernel_groups: int) -> None:
    """Check that each group of filters has its kept positions, ascending, inside the tile of m."""
    if m not in MATRICES:
        raise ValueError(f"m is {m}; choose {', '.join(str(m) for m in MATRICES)} outputs of a tile in each direction.")
    if kernel_groups < 1 or len(positions) == 0 or len(positions) % kernel_groups != 0:
        raise ValueError(
            f"{len(positions)} positions were given for {kernel_groups} groups of filters; pass equally many for each group, "
            "and at least one."
        )
    size = MATRICES[m].t ** 2
    kept = len(positions) // kernel_groups
    for start in range(0, len(positions), kept):
        run = positions[start : start + kept]
        if run[0] < 0 or run[-1] >= size or not all(map(lt, run, run[1:])):
            raise ValueError(
                f"positions {list(run)} are not ascending, different and from 0 to {size - 1}; "
                f"pass row * {MATRICES[m].t} + column of each kept position of F({m}x{m}, 3x3), sorted."
            )


def check_epilogue(filters: int, bias: Tensor | None, activation: str) -> None:
    """Check what is done to sums before they are written."""
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != filters):
        raise ValueError(f"bias has shape {_shape(bias)}; pass one number for each of the {filters} filters.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; choose one of {', '.join(ACTIVATIONS)}.")


def check_padding(padding: Sequence[int]) -> None:
    """Check zeros on both sides of rows and of columns."""
    if len(padding) != 2 or padding[0] < 0 or padding[1] < 0:
        raise ValueError(f"padding is {list(padding)}; pass rows and columns of zeros on both sides, neither negative.")


def _check_groups(filters: int, groups: int, kernel_groups: int) -> None:
    if filters < 1 or groups < 1 or filters % groups != 0 or filters % kernel_groups != 0:
        raise ValueError(
            f"{filters} filters can't be divided into {groups} groups of the convolution and {kernel_groups} groups with "
            "positions of their own; both numbers must divide the filters."
        )
    if groups % kernel_groups != 0 and kernel_groups % groups != 0:
        raise ValueError(
            f"{kernel_groups} groups of filters with common positions would straddle the {groups} groups of the convolution; "
            "make one number divide the other."
        )


def _check_input(x: Tensor, padding: Sequence[int], *, channels: int | None, groups: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"input has shape {_shape(x)}; pass [N, C, H, W], also for a single image.")
    if channels is not None and x.shape[1] != channels:
        raise ValueError(
            f"input has {x.shape[1]} channels, the weights are for {channels} ({channels // groups} in each of {groups} groups)."
        )
    if x.shape[1] < 1 or x.shape[1] % groups != 0:
        raise ValueError(
            f"input has {x.shape[1]} channels; their number must be a positive multiple of groups = {groups}."
        )
    check_padding(padding)
    if x.shape[2] + 2 * padding[0] < FILTER_SIZE or x.shape[3] + 2 * padding[1] < FILTER_SIZE:
        raise ValueError(
            f"input of {x.shape[2]}x{x.shape[3]} with padding {list(padding)} is smaller than the 3x3 filter, so the output "
            "would be empty; pad more."
        )
    _check_dtype("input", x)


def _check_residual(residual: Tensor | None, output: tuple[int, int, int, int]) -> None:
    if residual is not None and (
        residual.dim() != 4 or any(a != b for a, b in zip(residual.shape, output, strict=True))
    ):
        raise ValueError(f"residual has shape {_shape(residual)}; pass one shaped like the output, {list(output)}.")


def check_blocking(blocking: Sequence[int]) -> None:
    """Check how the work is to be cut up."""
    if (
        len(blocking) != 3
        or blocking[0] < 0
        or blocking[1] < 0
        or blocking[1] % 32 != 0
        or blocking[2] not in (-1, 0, 1)
    ):
        raise ValueError(
            f"blocking is {list(blocking)}; pass [tiles, filters (a multiple of 32), shared (1, 0, or -1 to choose)], "
            "or nothing to let the library choose."
        )


def _check_dtype(name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {x.dtype}; pass float32, float64, float16 or bfloat16.")


def _check_alike(**tensors: Tensor | None) -> None:
    """Check that all tensors have one device and one dtype, which under autocast the cast will see to."""
    first = None
    for x in tensors.values():
        if x is None:
            continue
        first = x if first is None else first
        if x.device != first.device:
            devices = (f"{name} is on {tensor.device}" for name, tensor in tensors.items() if tensor is not None)
            raise ValueError(f"{', '.join(devices)}: move all of them to one device.")
        if x.dtype != first.dtype and not torch.is_autocast_enabled(x.device.type):
            dtypes = (f"{name} is {tensor.dtype}" for name, tensor in tensors.items() if tensor is not None)
            raise TypeError(f"{', '.join(dtypes)}: convert all of them to one dtype.")


def output_shape(x: Tensor, filters: int, padding: Sequence[int]) -> tuple[int, int, int, int]:
    """Return N, K, OH, OW."""
    lost = FILTER_SIZE - 1
    return x.shape[0], filters, x.shape[2] + 2 * padding[0] - lost, x.shape[3] + 2 * padding[1] - lost


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)
