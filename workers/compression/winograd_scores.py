"""What stands for the weights of a position, over all kernels of a group (W-4): the lower, the sooner the position is pruned.

A score is [t*t], the position row * t + column. Positions differ in what they add to the output whatever their weights are:
a transform amplifies what goes in by beta_a = |B^T[a, :]|, and what comes out by alpha_a = |A^T[:, a]| in each direction. So
`mean_abs`, the patent's representative value, tells little for large tiles, where `energy` counts the gains in.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from winograd.matrices import MATRICES, Matrix

WeightScore = Literal["mean_abs", "rms", "max_abs", "small_frac", "energy", "energy_white"]

SMALL = 0.1  # a weight is small below this part of the root mean square of all weights


def score(name: WeightScore, weights: Tensor, m: int, energy_of_input: Tensor | None = None) -> Tensor:
    """The score [t*t] of weights [t*t, K, C/g] of one group.

    `energy_of_input` [t*t, K, C/g], for energy: the mean square of the transformed input that each weight is multiplied with.
    """
    u = weights.double()
    match name:
        case "mean_abs":
            return u.abs().mean((1, 2))
        case "rms":
            return u.square().mean((1, 2)).sqrt()
        case "max_abs":
            return u.abs().amax((1, 2))
        case "small_frac":
            return -(u.abs() < SMALL * u.square().mean().sqrt()).double().mean((1, 2))
        case "energy":
            assert energy_of_input is not None
            return output_gains(m) * (u.square() * energy_of_input.double()).sum((1, 2))
        case "energy_white":
            return output_gains(m) * input_gains(m) * u.square().sum((1, 2))


def output_gains(m: int) -> Tensor:
    """(alpha_a alpha_b)^2 of each position, [t*t]: the square of the norm of what it adds to a tile of outputs."""
    return _of_both_directions(_columns_norm(MATRICES[m].at))


def input_gains(m: int) -> Tensor:
    """(beta_a beta_b)^2 of each position, [t*t]: its mean square for white input of mean square one."""
    return _of_both_directions(_columns_norm(tuple(zip(*MATRICES[m].bt, strict=True))))


def filter_moves(m: int) -> Tensor:
    """[t*t, t*t], how far weights in the Winograd domain move, for a gradient of theirs, when filters do.

    A step w -= r dw of the filters moves U = G w G^T by -r (G G^T) dU (G G^T). Gradients of the weights themselves, taken
    through that, make one learning rate serve both domains, and are free of most of their noise: what they ask for beyond
    what 3x3 filters could do is dropped, t*t numbers a plane being far more than a few images can tell apart. Unchanged,
    positions whose inputs and outputs are amplified diverge long before the others learn anything.
    """
    g = torch.tensor([[float(value) for value in row] for row in MATRICES[m].g], dtype=torch.float64)
    return torch.kron(g @ g.T, g @ g.T)


def random_score(positions: int, generator: torch.Generator) -> Tensor:
    """The control: any order is as good as another."""
    return torch.rand(positions, generator=generator, dtype=torch.float64)


def accuracy_score(correct_without: Callable[[int], int], positions: int) -> Tensor:
    """The right answers lost without each position: less those that remain, as `correct_without` counts them."""
    return torch.tensor([-float(correct_without(position)) for position in range(positions)], dtype=torch.float64)


def _columns_norm(matrix: Matrix) -> Tensor:
    """The square of the norm of each column."""
    return torch.tensor([[float(value) for value in row] for row in matrix], dtype=torch.float64).square().sum(0)


def _of_both_directions(gains: Tensor) -> Tensor:
    return torch.outer(gains, gains).flatten()
