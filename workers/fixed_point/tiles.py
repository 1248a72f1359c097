"""The transforms of Winograd's F(2x2, 3x3) in integers: sums and differences, since its matrices hold nothing but 0, 1 and -1.

    input    v[a, b] = sum over (r, s, sign) in input_terms(4a + b)  of sign * x[r, s]        of a tile of 4x4 numbers
    output   y[r, s] = sum over positions of sign * m[position], for (r, s, sign) in output_terms(position), 2x2 numbers

Larger tiles have fractions in their matrices, and aren't done in integers (METHODS 6.3).
"""

from functools import cache

from winograd.matrices import MATRICES, Matrix

STEP = 2  # outputs of a tile, down and across
TILE = 4  # inputs of a tile, down and across

Term = tuple[int, int, int]  # row, column, sign


@cache
def input_terms(position: int) -> tuple[Term, ...]:
    """The inputs of a tile that a position is the sum of: four of them."""
    return _outer_product(MATRICES[STEP].bt, position)


@cache
def output_terms(position: int) -> tuple[Term, ...]:
    """The outputs of a tile that a position is added to: one, two or four of them."""
    return _outer_product(tuple(zip(*MATRICES[STEP].at, strict=True)), position)


def tiles(outputs: int) -> int:
    """How many tiles cover so many outputs; the last one may reach beyond them."""
    return -(-outputs // STEP)


def _outer_product(matrix: Matrix, position: int) -> tuple[Term, ...]:
    first, second = (matrix[row] for row in divmod(position, TILE))
    products = ((r, s, int(a * b)) for r, a in enumerate(first) for s, b in enumerate(second))
    return tuple((r, s, sign) for r, s, sign in products if sign)
