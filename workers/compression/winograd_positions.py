"""Choosing the positions to prune from their scores, so that no output is left without any (METHODS 2.4 W4, 2.6)."""

from functools import cache

import torch
from torch import Tensor
from winograd.matrices import MATRICES

from workers.compression.winograd_layers import Mask


def prune_lowest(mask: Mask, scores: Tensor, m: int, *, count: int) -> Mask:
    """`mask` with the lowest-scored positions gone, until `count` of each group are, or the guard forbids more.

    scores: [groups, t*t]. Positions that are gone stay gone. Equal scores go in order of the position.
    """
    groups = [
        _without_lowest(kept, scores_of_group, m, count=count)
        for kept, scores_of_group in zip(mask.kept, scores, strict=True)
    ]
    return _evened(Mask(torch.stack(groups), mask.group_by), scores)


def prune_below(mask: Mask, scores: Tensor, m: int, *, threshold: float, at_most: int) -> Mask:
    """`mask` without the positions whose score is below `threshold` (W-5), `at_most` so many in each group.

    Groups are computed by one operator, which takes equally many positions of each: those with too many pruned keep their best.
    """
    groups = []
    for kept, scores_of_group in zip(mask.kept, scores, strict=True):
        wanted = int(((scores_of_group < threshold) & kept).sum()) + int((~kept).sum())
        groups.append(_without_lowest(kept, scores_of_group, m, count=min(wanted, at_most)))
    return _evened(Mask(torch.stack(groups), mask.group_by), scores)


@cache
def supports(m: int) -> Tensor:
    """[m*m, t*t], whether a position contributes to an output of the tile at all."""
    at = torch.tensor([[float(value) != 0 for value in row] for row in MATRICES[m].at])
    return (at[:, None, :, None] & at[None, :, None, :]).reshape(m * m, MATRICES[m].t ** 2)


def leaves_all_outputs(kept: Tensor, m: int) -> bool:
    """Whether every output of a tile has at least one kept position that contributes to it."""
    return bool((supports(m) & kept).any(1).all())


def _without_lowest(kept: Tensor, scores: Tensor, m: int, *, count: int) -> Tensor:
    left = kept.clone()
    for position in scores.argsort(stable=True).tolist():
        if int((~left).sum()) >= count:
            break
        if not left[position]:
            continue
        left[position] = False
        if not leaves_all_outputs(left, m):
            left[position] = True
    return left


def _evened(mask: Mask, scores: Tensor) -> Mask:
    """Every group keeps as many positions as the one that keeps most; the best of the pruned come back."""
    wanted = int(mask.kept.sum(1).max())
    kept = mask.kept.clone()
    for group, scores_of_group in zip(kept, scores, strict=True):
        missing = wanted - int(group.sum())
        best = [p for p in scores_of_group.argsort(descending=True, stable=True).tolist() if not group[p]]
        group[best[:missing]] = True
    return Mask(kept, mask.group_by)
