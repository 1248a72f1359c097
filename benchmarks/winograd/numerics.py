"""How exact F(m x m, 3x3) is in float32, for the points that the library has and for others.

    python -m benchmarks.winograd.numerics

Inputs are rectified normal numbers, weights are scaled as at the beginning of training; the errors are those against float64: the
root of the mean square over that of the output, and the largest over the largest output. Medians over seeds.
"""

from fractions import Fraction
from statistics import median

import torch
from torch import Tensor
from winograd.matrices import POINTS, WinogradMatrices, in_pairs, winograd_matrices

from benchmarks.tables import table

CHANNELS, FILTERS, TILES, SEEDS = (64, 512), 32, 64, 5
F = Fraction
CANDIDATES: dict[int, dict[str, tuple[Fraction, ...]]] = {
    2: {"0, ±1": POINTS[2]},
    4: {
        "0, ±3/4, ±3/2": POINTS[4],
        "0, ±1, ±2": in_pairs(0, 1, 2),
        "0, ±1/2, ±1": in_pairs(0, F(1, 2), 1),
        "0, ±5/8, ±3/2": in_pairs(0, F(5, 8), F(3, 2)),
        "0, ±45/64, ±91/64": in_pairs(0, F(45, 64), F(91, 64)),
    },
    6: {
        "0, ±1/2, ±1, ±2": POINTS[6],
        "0, ±1, ±2, ±3": in_pairs(0, 1, 2, 3),
        "0, ±1/2, ±1, ±3/2": in_pairs(0, F(1, 2), 1, F(3, 2)),
        "0, ±1/2, ±9/8, ±2": in_pairs(0, F(1, 2), F(9, 8), 2),
        "0, ±3/5, ±5/6, ±7/6": in_pairs(0, F(3, 5), F(5, 6), F(7, 6)),
    },
    7: {
        "±15/64, ±43/64, ±9/8, ±139/64": POINTS[7],
        "±1/4, ±1/2, ±1, ±2": in_pairs(F(1, 4), F(1, 2), 1, 2),
        "±1/2, ±1, ±3/2, ±2": in_pairs(F(1, 2), 1, F(3, 2), 2),
    },
}


def main() -> None:
    rows = []
    for m, candidates in CANDIDATES.items():
        for name, points in candidates.items():
            matrices = winograd_matrices(m, points=points)
            errors = [errors_of(matrices, channels) for channels in CHANNELS]
            rows.append([f"F({m}, 3)", name, *(f"{error:.1e}" for pair in errors for error in pair)])
    head = [f"{kind}, {channels} channels" for channels in CHANNELS for kind in ("mean square", "largest")]
    print(table(("", "points, and infinity", *head), rows))


def errors_of(matrices: WinogradMatrices, channels: int) -> tuple[float, float]:
    """The errors of the mean square and of the largest output, medians over seeds."""
    found = []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        d = (
            torch.randn(TILES, channels, matrices.t, matrices.t, generator=generator, dtype=torch.float64)
            .relu()
            .float()
        )
        w = torch.randn(FILTERS, channels, 3, 3, generator=generator, dtype=torch.float64)
        w = (w * (2 / (9 * channels)) ** 0.5).float()
        exact = torch.nn.functional.conv2d(d.double(), w.double())
        error = _convolved(matrices, d, w).double() - exact
        found.append((float(error.norm() / exact.norm()), float(error.abs().max() / exact.abs().max())))
    return median(pair[0] for pair in found), median(pair[1] for pair in found)


def _convolved(matrices: WinogradMatrices, d: Tensor, w: Tensor) -> Tensor:
    """All in float32, but U, which is rounded once: [tiles, filters, m, m] of d [tiles, C, t, t] and w [filters, C, 3, 3]."""
    bt, g, at = (torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)
                 for rows in (matrices.bt, matrices.g, matrices.at))  # fmt: skip
    u = (g @ w.double() @ g.T).float()
    v = bt.float() @ d @ bt.float().T
    products = torch.einsum("kcab,ncab->nkab", u, v)
    result: Tensor = at.float() @ products @ at.float().T
    return result


if __name__ == "__main__":
    main()
