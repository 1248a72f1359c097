"""Tiles of Winograd convolutions on an output of a given size: what they cost is known before anything runs (METHODS 2.3)."""

from math import ceil

TILES = (2, 4, 6)


def tiles_of(m: int, sides: tuple[int, int]) -> int:
    """How many tiles of m x m outputs cover an output of this height and width; the last ones count whole."""
    return ceil(sides[0] / m) * ceil(sides[1] / m)


def best_tile(sides: tuple[int, int]) -> int:
    """The tile of F(m x m, 3x3) with the fewest multiplications on an output of this size; the smaller one among equals."""
    return min(TILES, key=lambda m: (tiles_of(m, sides) * (m + 2) ** 2, m))
