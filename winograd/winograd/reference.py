"""Winograd convolution in plain torch: any dtype, any device, differentiable. What all faster code is compared with.

    y = activation(conv2d(x, w) + bias + residual)          3x3 filters, stride 1, dilation 1

    d  [t*t, C, tiles]     input tiles, which overlap by two rows and columns
    V  [P, C, tiles]       (B^T d B) at the P kept positions of the t x t tile
    M  [P, K, tiles]       U [P, K, C] @ V: one matrix multiplication for each kept position; pruned ones don't exist
    Y  [m*m, K, tiles]     A^T M A

Both transforms are one matrix each, the Kronecker square of the one-dimensional one, of which only the rows (columns) of
kept positions are taken. A position is row * t + column. The K filters form equal consecutive runs, each with its own P
positions, all in one flat list; see `csrc/winograd.h`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from winograd.matrices import FILTER_SIZE, MATRICES, Matrix
from winograd.operations import multiply_counted
from winograd.tiles import Grid, add_tiles, put_tiles, take_outputs, take_tiles


def transform_filters(filters: Tensor, positions: Sequence[int], m: int, *, kernel_groups: int = 1) -> Tensor:
    """Return the weights U [P, K, C/g] at the kept positions of G w G^T, for filters w [K, C/g, 3, 3].

    Computed in float64 and rounded once to the dtype of the filters.
    """
    k, c = filters.shape[:2]
    runs = [list(run) for run in _runs(positions, kernel_groups)]
    g = _kronecker_square(_G[m], dtype=torch.float64, device=filters.device)  # [t*t, 9]
    u = g @ filters.double().reshape(k * c, FILTER_SIZE**2).T  # [t*t, K*C/g]
    u = u.reshape(g.shape[0], kernel_groups, k // kernel_groups, c)
    return torch.cat([u[run, i] for i, run in enumerate(runs)], dim=1).to(filters.dtype)


def conv2d(
    input: Tensor,
    weights: Tensor,
    positions: Sequence[int],
    m: int,
    padding: Sequence[int],
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    groups: int = 1,
) -> Tensor:
    """Convolve input [N, C, H, W] with Winograd-domain weights [P, K, C/g]; returns [N, K, OH, OW].

    Bias [K] and residual (shaped like the output) are added before the activation, "none" or "relu".
    """
    grid = Grid.over(input, m, padding)
    kernel_groups = len(positions) // weights.shape[0]
    tiles = take_tiles(input, grid)  # (t*t, C, tiles)
    outputs = []
    for part in _parts(positions, kernel_groups, weights.shape[1], input.shape[1], groups):
        to_v, from_m = _transforms(m, part.positions, input)
        v = _apply(to_v, tiles[:, part.channels])  # (P, C of the part, tiles)
        u = weights[:, part.filters]
        product = multiply_counted(part.split(u), part.split(v))  # (P, groups of the part, K/groups, tiles)
        outputs.append(_apply(from_m, product.flatten(1, 2)))  # (m*m, K of the part, tiles)
    output = put_tiles(torch.cat(outputs, dim=1), grid)
    if bias is not None:
        output = output + bias[:, None, None]
    if residual is not None:
        output = output + residual
    if activation == "relu":
        output = output.relu()
    return output.contiguous(memory_format=memory_format_of(input))


def conv2d_gradients(
    grad_output: Tensor,
    input: Tensor,
    weights: Tensor,
    positions: Sequence[int],
    m: int,
    padding: Sequence[int],
    *,
    groups: int = 1,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of input and weights for that of conv2d's output (without activation); only the wanted ones.

    Every step of conv2d is linear, so this is the same chain transposed, from the last step to the first:
    dM = A dY A^T,  dU = dM V^T,  dV = U^T dM,  dx = sum over the tiles of B dV B^T.
    """
    grid = Grid.over(input, m, padding)
    kernel_groups = len(positions) // weights.shape[0]
    grad_y = take_outputs(grad_output, grid)  # (m*m, K, tiles)
    tiles = take_tiles(input, grid) if wanted[1] else None
    grad_tiles = grad_y.new_zeros(grid.t**2, input.shape[1], grid.count) if wanted[0] else None
    grad_weights = []
    for part in _parts(positions, kernel_groups, weights.shape[1], input.shape[1], groups):
        to_v, from_m = _transforms(m, part.positions, input)
        grad_m = part.split(_apply(from_m.T, grad_y[:, part.filters]))
        if tiles is not None:
            v = part.split(_apply(to_v, tiles[:, part.channels]))
            grad_weights.append((grad_m @ v.transpose(-1, -2)).flatten(1, 2))
        if grad_tiles is not None:
            grad_v = (part.split(weights[:, part.filters]).transpose(-1, -2) @ grad_m).flatten(1, 2)
            # Parts of one group of the convolution read the same channels.
            grad_tiles[:, part.channels] += _apply(to_v.T, grad_v)
    return (
        None if grad_tiles is None else add_tiles(grad_tiles, grid),
        None if tiles is None else torch.cat(grad_weights, dim=1),
    )


def memory_format_of(input: Tensor) -> torch.memory_format:
    """Return the memory format that a convolution of `input` gives its output."""
    channels_last = input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


@dataclass(frozen=True)
class _Part:
    """Filters with common positions, the channels that they read, and how many groups of the convolution these are."""

    positions: list[int]
    filters: slice
    channels: slice
    groups: int

    def split(self, x: Tensor) -> Tensor:
        """[P, groups * rows, columns] as [P, groups, rows, columns]."""
        return x.reshape(x.shape[0], self.groups, x.shape[1] // self.groups, x.shape[2])


def _parts(positions: Sequence[int], kernel_groups: int, filters: int, channels: int, groups: int) -> Iterator[_Part]:
    # One number divides the other: a run of filters lies in one group of the convolution, or holds whole ones.
    held = max(1, groups // kernel_groups)
    k, c = filters // kernel_groups, channels // groups * held
    for index, run in enumerate(_runs(positions, kernel_groups)):
        first_channel = index * groups // kernel_groups * (channels // groups)
        yield _Part(list(run), slice(index * k, (index + 1) * k), slice(first_channel, first_channel + c), held)


def _runs(positions: Sequence[int], kernel_groups: int) -> Iterator[Sequence[int]]:
    kept = len(positions) // kernel_groups
    return (positions[i * kept : (i + 1) * kept] for i in range(kernel_groups))


def _floats(matrix: Matrix) -> list[list[float]]:
    return [[float(x) for x in row] for row in matrix]


_BT = {m: _floats(matrices.bt) for m, matrices in MATRICES.items()}
_G = {m: _floats(matrices.g) for m, matrices in MATRICES.items()}
_AT = {m: _floats(matrices.at) for m, matrices in MATRICES.items()}


def _kronecker_square(matrix: list[list[float]], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return M (x) M, computed in float64 and rounded once."""
    one = torch.tensor(matrix, dtype=torch.float64, device=device)
    return torch.kron(one, one).to(dtype)


def _transforms(m: int, positions: list[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kept rows of B^T (x) B^T, [P, t*t], and the kept columns of A^T (x) A^T, [m*m, P]."""
    to_v = _kronecker_square(_BT[m], dtype=like.dtype, device=like.device)
    from_m = _kronecker_square(_AT[m], dtype=like.dtype, device=like.device)
    return to_v[positions], from_m[:, positions]


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply the first dimension of x [columns of matrix, rows, tiles] by matrix."""
    return (matrix @ x.flatten(1)).reshape(matrix.shape[0], *x.shape[1:])
