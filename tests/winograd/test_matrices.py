"""The matrices, proved exact in fractions."""

import re
from fractions import Fraction
from pathlib import Path

import pytest
from winograd.matrices import MATRICES, POINTS, Matrix, Row, in_pairs, winograd_matrices

HALF, THIRD = Fraction(1, 2), Fraction(1, 3)
CASES = {
    "library-2": (2, 3, POINTS[2]),
    "library-4": (4, 3, POINTS[4]),
    "library-6": (6, 3, POINTS[6]),
    "library-7": (7, 3, POINTS[7]),
    "lavin-4": (4, 3, in_pairs(0, 1, 2)),
    "lavin-6": (6, 3, in_pairs(0, 1, 2, HALF)),
    "three-points": (2, 3, (0, 1, Fraction(-2, 7))),
    "five-outputs": (5, 3, (*in_pairs(HALF, 1), 3, -THIRD)),
    "filters-of-5": (2, 5, in_pairs(0, 1, HALF)),
    "filters-of-2": (3, 2, (0, 1, -1)),
    "one-output": (1, 3, (0, 1)),
    "one-weight": (3, 1, (0, 1)),
    "eight-outputs": (8, 3, (*in_pairs(0, HALF, 1, 2), Fraction(5, 4), Fraction(-4, 5))),
}


@pytest.mark.parametrize(("m", "r", "points"), CASES.values(), ids=CASES.keys())
def test_w7_matrices_are_exact(m: int, r: int, points: tuple[Fraction, ...]) -> None:
    """A^T [(G w) . (B^T d)] is the polynomial (in all d and w) sum of d[i + j] w[j]: every coefficient is compared."""
    matrices = winograd_matrices(m, r, points)

    for i, output in enumerate(matrices.at):
        for j in range(r):
            for k in range(matrices.t):
                coefficient = sum(output[a] * matrices.g[a][j] * matrices.bt[a][k] for a in range(matrices.t))
                assert coefficient == (1 if k == i + j else 0)


LAVIN = {
    2: (
        "1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1",
        "1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1",
        "1 1 1 0; 0 1 -1 -1",
        in_pairs(0, 1),
    ),
    4: (
        "4 0 -5 0 1 0; 0 -4 -4 1 1 0; 0 4 -4 -1 1 0; 0 -2 -1 2 1 0; 0 2 -1 -2 1 0; 0 4 0 -5 0 1",
        "1/4 0 0; -1/6 -1/6 -1/6; -1/6 1/6 -1/6; 1/24 1/12 1/6; 1/24 -1/12 1/6; 0 0 1",
        "1 1 1 1 1 0; 0 1 -1 2 -2 0; 0 1 1 4 4 0; 0 1 -1 8 -8 1",
        in_pairs(0, 1, 2),
    ),
    6: (
        "1 0 -21/4 0 21/4 0 -1 0; 0 1 1 -17/4 -17/4 1 1 0; 0 -1 1 17/4 -17/4 -1 1 0; 0 1/2 1/4 -5/2 -5/4 2 1 0; "
        "0 -1/2 1/4 5/2 -5/4 -2 1 0; 0 2 4 -5/2 -5 1/2 1 0; 0 -2 4 5/2 -5 -1/2 1 0; 0 -1 0 21/4 0 -21/4 0 1",
        "1 0 0; -2/9 -2/9 -2/9; -2/9 2/9 -2/9; 1/90 1/45 2/45; 1/90 -1/45 2/45; 32/45 16/45 8/45; 32/45 -16/45 8/45; 0 0 1",
        "1 1 1 1 1 1 1 0; 0 1 -1 2 -2 1/2 -1/2 0; 0 1 1 4 4 1/4 1/4 0; 0 1 -1 8 -8 1/8 -1/8 0; "
        "0 1 1 16 16 1/16 1/16 0; 0 1 -1 32 -32 1/32 -1/32 1",
        in_pairs(0, 1, 2, HALF),
    ),
}  # Lavin & Gray 2015, section 4, and the usual F(6, 3)


@pytest.mark.parametrize("m", LAVIN)
def test_published_matrices_differ_by_a_scale_of_each_position_only(m: int) -> None:
    bt, g, at = (parse(text) for text in LAVIN[m][:3])
    ours = winograd_matrices(m, 3, LAVIN[m][3])

    for position in range(ours.t):
        scale_bt = ratio(bt[position], ours.bt[position])
        scale_g = ratio(g[position], ours.g[position])
        scale_at = ratio(column(at, position), column(ours.at, position))
        assert scale_bt * scale_g * scale_at == 1


@pytest.mark.parametrize("m", POINTS)
def test_points_are_exact_in_binary(m: int) -> None:
    assert all(Fraction(float(point)) == point for point in POINTS[m])


@pytest.mark.parametrize("m", POINTS)
def test_points_are_those_of_the_compiled_library(m: int) -> None:
    header = (Path(__file__).parents[2] / "winograd" / "csrc" / "matrices.hpp").read_text()
    found = re.search(rf"struct Points<{m}> {{.*?value{{([^}}]*)}}", header, re.DOTALL)
    assert found is not None
    written = [Fraction(number) for number in found[1].split(",")]
    assert POINTS[m] == in_pairs(*([0] if MATRICES[m].t % 2 == 0 else []), *written)


def test_first_rows_are_what_they_should_be() -> None:
    """F(2, 3) in full: rows of B^T are products of (x - other points), constant first."""
    matrices = winograd_matrices(2)

    assert matrices.bt == parse("-1 0 1 0; 0 1 1 0; 0 -1 1 0; 0 -1 0 1")
    assert matrices.g == parse("-1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1")
    assert matrices.at == parse("1 1 1 0; 0 1 -1 1")


@pytest.mark.parametrize("points", [(0, 1), (0, 1, 1), (0, 1, -1, 2)], ids=["few", "doubled", "many"])
def test_points_that_do_not_fit_are_refused(points: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needs 3 different finite points"):
        winograd_matrices(2, 3, points)


@pytest.mark.parametrize(("m", "r"), [(3, 3), (2, 5)])
def test_library_has_points_for_few_sizes(m: int, r: int) -> None:
    with pytest.raises(ValueError, match=rf"no points for F\({m}, {r}\)"):
        winograd_matrices(m, r)


def parse(text: str) -> Matrix:
    return tuple(tuple(Fraction(number) for number in row.split()) for row in text.split(";"))


def column(matrix: Matrix, index: int) -> Row:
    return tuple(row[index] for row in matrix)


def ratio(a: Row, b: Row) -> Fraction:
    """The number by which b has to be multiplied to give a; fails if there is none."""
    scale = next(x / y for x, y in zip(a, b, strict=True) if y != 0)
    assert a == tuple(scale * y for y in b)
    return scale
