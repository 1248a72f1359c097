"""Cutting inputs and outputs of a convolution into Winograd tiles, and putting tiles together again.

Input tiles are t x t and m apart, so that neighbours share two rows or columns; output tiles are m x m and lie side by side.
In a matrix of tiles the elements of a tile come first, and the tile last: [t*t, C, tiles], tiles = N * rows * columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from winograd.matrices import FILTER_SIZE


@dataclass(frozen=True)
class Grid:
    """The tiles of an input: each t x t, m apart, so that they cover the padded input; the last may reach beyond it."""

    m: int
    t: int
    batch: int
    height: int
    width: int
    pad_height: int
    pad_width: int

    @classmethod
    def over(cls, x: Tensor, m: int, padding: Sequence[int]) -> "Grid":
        n, _, h, w = x.shape
        return cls(m, m + FILTER_SIZE - 1, n, h, w, padding[0], padding[1])

    @property
    def output_height(self) -> int:
        return self.height + 2 * self.pad_height - FILTER_SIZE + 1

    @property
    def output_width(self) -> int:
        return self.width + 2 * self.pad_width - FILTER_SIZE + 1

    @property
    def rows(self) -> int:
        return (self.output_height + self.m - 1) // self.m

    @property
    def columns(self) -> int:
        return (self.output_width + self.m - 1) // self.m

    @property
    def count(self) -> int:
        return self.batch * self.rows * self.columns

    @property
    def covered(self) -> tuple[int, int]:
        """Height and width that the tiles cover together."""
        return self.rows * self.m + FILTER_SIZE - 1, self.columns * self.m + FILTER_SIZE - 1


def take_tiles(x: Tensor, grid: Grid) -> Tensor:
    """Cut [N, C, H, W] into [t*t, C, tiles]."""
    height, width = grid.covered
    right, below = width - grid.width - grid.pad_width, height - grid.height - grid.pad_height
    padded = functional.pad(x, (grid.pad_width, right, grid.pad_height, below))
    tiles = padded.unfold(2, grid.t, grid.m).unfold(3, grid.t, grid.m)  # (N, C, rows, columns, t, t)
    return tiles.permute(4, 5, 1, 0, 2, 3).reshape(grid.t**2, x.shape[1], grid.count)


def add_tiles(tiles: Tensor, grid: Grid) -> Tensor:
    """Transpose of take_tiles: add [t*t, C, tiles] up to [N, C, H, W]."""
    c = tiles.shape[1]
    columns = tiles.reshape(grid.t**2, c, grid.batch, grid.rows * grid.columns).permute(2, 1, 0, 3)
    columns = columns.reshape(grid.batch, c * grid.t**2, grid.rows * grid.columns)
    padded = functional.fold(columns, grid.covered, kernel_size=grid.t, stride=grid.m)
    bottom, right = grid.pad_height + grid.height, grid.pad_width + grid.width
    return padded[:, :, grid.pad_height : bottom, grid.pad_width : right]


def put_tiles(y: Tensor, grid: Grid) -> Tensor:
    """Lay [m*m, K, tiles] out as [N, K, OH, OW], cutting off what the last tiles have too much."""
    split = y.reshape(grid.m, grid.m, y.shape[1], grid.batch, grid.rows, grid.columns)
    whole = split.permute(3, 2, 4, 0, 5, 1).reshape(grid.batch, y.shape[1], grid.rows * grid.m, grid.columns * grid.m)
    return whole[:, :, : grid.output_height, : grid.output_width]


def take_outputs(grad: Tensor, grid: Grid) -> Tensor:
    """Transpose of put_tiles: cut [N, K, OH, OW] into [m*m, K, tiles]."""
    missing = grid.columns * grid.m - grid.output_width, grid.rows * grid.m - grid.output_height
    whole = functional.pad(grad, (0, missing[0], 0, missing[1]))
    split = whole.reshape(grid.batch, grad.shape[1], grid.rows, grid.m, grid.columns, grid.m)
    return split.permute(3, 5, 1, 0, 2, 4).reshape(grid.m**2, grad.shape[1], grid.count)
