"""The matrices of F(m x m, r x r), made from interpolation points in exact fractions (Cook-Toom).

For outputs y of a tile, y[i] = sum over j of d[i + j] w[j], in one dimension:

    y = A^T [(G w) . (B^T d)]         d: t inputs, w: r weights, y: m outputs, t = m + r - 1

and in two dimensions Y = A^T [(G w G^T) . (B^T d B)] A (Lavin & Gray 2015, eq. 8). t - 1 points are finite, the last is
infinity. `csrc/matrices.hpp` makes the same matrices for the compiled library; the tests compare the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

FILTER_SIZE = 3

Row = tuple[Fraction, ...]
Matrix = tuple[Row, ...]


def in_pairs(*points: Fraction | int) -> tuple[Fraction, ...]:
    """Return +p, -p for each point p; zero stays alone."""
    return tuple(Fraction(sign * point) for point in points for sign in ((1, -1) if point else (1,)))


# The finite points of F(m, 3), chosen for the least rounding error among those that binary fractions hold exactly.
POINTS: dict[int, tuple[Fraction, ...]] = {
    2: in_pairs(0, 1),
    4: in_pairs(0, Fraction(3, 4), Fraction(3, 2)),
    6: in_pairs(0, Fraction(1, 2), 1, 2),
    7: in_pairs(Fraction(15, 64), Fraction(43, 64), Fraction(9, 8), Fraction(139, 64)),
}


@dataclass(frozen=True)
class WinogradMatrices:
    """B^T [t, t], G [t, r] and A^T [m, t] of F(m, r), exact, row by row."""

    m: int
    r: int
    bt: Matrix
    g: Matrix
    at: Matrix

    @property
    def t(self) -> int:
        """Inputs of a tile, and positions in one dimension."""
        return self.m + self.r - 1


def winograd_matrices(m: int, r: int = FILTER_SIZE, points: Sequence[Fraction | int] | None = None) -> WinogradMatrices:
    """Return the matrices of F(m, r) for m + r - 2 different finite `points`, and infinity.

    Without points, those of the library (m = 2, 4, 6 or 7, r = 3). Raises ValueError for points that do not fit.
    """
    if points is None:
        if r != FILTER_SIZE or m not in POINTS:
            raise ValueError(
                f"The library has no points for F({m}, {r}), only for m in {sorted(POINTS)} and r = 3; pass points."
            )
        points = POINTS[m]
    p = [Fraction(point) for point in points]
    t = m + r - 1
    if m < 1 or r < 1 or len(p) != t - 1 or len(set(p)) != t - 1:
        raise ValueError(f"F({m}, {r}) needs {t - 1} different finite points, not {[str(point) for point in p]}.")

    zero, one = Fraction(0), Fraction(1)
    norms = [prod((p[i] - p[j] for j in range(t - 1) if j != i), start=one) for i in range(t - 1)]
    return WinogradMatrices(
        m=m,
        r=r,
        bt=(*(_polynomial(p[:i] + p[i + 1 :], size=t) for i in range(t - 1)), _polynomial(p, size=t)),
        g=(*(tuple(p[i] ** k / norms[i] for k in range(r)) for i in range(t - 1)), (*[zero] * (r - 1), one)),
        at=tuple((*(point**k for point in p), one if k == m - 1 else zero) for k in range(m)),
    )


def _polynomial(roots: Sequence[Fraction], *, size: int) -> Row:
    """Return the coefficients of the product of (x - root), constant first, filled up with zeros to `size`."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(-root * c for c in coefficients), Fraction(0)]
        coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return tuple(coefficients + [Fraction(0)] * (size - len(coefficients)))


# The library's matrices, made once.
MATRICES: dict[int, WinogradMatrices] = {m: winograd_matrices(m) for m in POINTS}
