"""Positions in the order in which they can be done without once the others make up for them (ours).

What a position adds to the output says little about what is lost without it: what others can add in its place costs nothing.
So positions are taken away one after another, each time the one without which the best fit of all that are left (see
`winograd_moments.py`) loses least; after each, weights are those of that fit. With H the inverse of G in the rows that are
left, taking away rows r costs U[r] . H[r, r]^-1 U[r] (the optimal brain surgeon of Hassibi & Stork 1993, for blocks of rows).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compression.winograd_layers import Mask
from workers.compression.winograd_moments import Moments, as_rows, with_ridge


def elimination_scores(weights: Tensor, mask: Mask, moments: Moments) -> Tensor:
    """[groups, t*t]: the mean square of the outputs that has been lost once that position is gone, in the order found.

    weights: [t*t, K, C/g]; moments with G. Positions that are gone already score zero.
    """
    assert moments.gram is not None
    scores = torch.zeros(mask.kept.shape, dtype=torch.float64)
    is_kept = as_rows(mask.apply(torch.ones_like(weights)).bool())
    rows = as_rows(weights).double()
    channels = weights.shape[2]
    if mask.group_by == "input_channels" and mask.groups > 1:  # of a convolution of one group: all in one fit
        blocks = torch.arange(len(rows)).reshape(-1, mask.groups, channels // mask.groups).transpose(0, 1)
        fit = _Fit.of(moments.gram[0], rows, is_kept[:, 0])
        found = _eliminated([fit], blocks.flatten(0, 1), mask.kept.flatten())
        return found.reshape(scores.shape)
    blocks = torch.arange(len(rows)).reshape(-1, channels)
    filters, of_mask, of_gram = rows.shape[1], rows.shape[1] // mask.groups, rows.shape[1] // len(moments.gram)
    for group in range(mask.groups):
        begin, end = group * of_mask, (group + 1) * of_mask
        fits = [
            _Fit.of(moments.gram[first // of_gram], rows[:, first:last], is_kept[:, begin])
            for start in range(0, filters, of_gram)
            if (first := max(start, begin)) < (last := min(start + of_gram, end))
        ]
        scores[group] = _eliminated(fits, blocks, mask.kept[group])
    return scores


@dataclass
class _Fit:
    """Filters that share their inputs: the inverse of G in the rows that are left, and their weights [rows, K]."""

    inverse: Tensor
    weights: Tensor

    @classmethod
    def of(cls, gram: Tensor, weights: Tensor, is_kept: Tensor) -> "_Fit":
        left = is_kept.nonzero().flatten()
        inverse = torch.eye(len(gram), dtype=gram.dtype)
        inverse[left.unsqueeze(1), left] = torch.linalg.inv(with_ridge(gram[left][:, left])[0])
        return cls(inverse, weights * is_kept.unsqueeze(1))

    def costs(self, blocks: Tensor) -> Tensor:
        """What the fit loses without each of `blocks` [n, rows], alone."""
        weights = self.weights[blocks]
        inner = self.inverse[blocks.unsqueeze(2), blocks.unsqueeze(1)]
        costs: Tensor = (weights * torch.linalg.solve(inner, weights)).sum((1, 2))
        return costs

    def take_away(self, block: Tensor) -> None:
        inverse, beside = self.inverse, self.inverse[:, block]
        inner = inverse[block][:, block]
        self.weights = self.weights - beside @ torch.linalg.solve(inner, self.weights[block])
        inverse -= beside @ torch.linalg.solve(inner, inverse[block])
        # Its own rows no longer take part; ones on the diagonal keep them regular.
        self.weights[block] = 0.0
        inverse[block] = 0.0
        inverse[:, block] = 0.0
        inverse[block, block] = 1.0


def _eliminated(fits: list[_Fit], blocks: Tensor, kept: Tensor) -> Tensor:
    """What is lost when each of `blocks` [n, rows] goes, and all before it; zero for those not `kept`."""
    lost = torch.zeros(len(blocks), dtype=torch.float64)
    left = kept.nonzero().flatten()
    so_far = 0.0
    while len(left):
        costs = torch.stack([fit.costs(blocks[left]) for fit in fits]).sum(0)
        best = int(costs.argmin())
        so_far += max(0.0, float(costs[best]))
        lost[left[best]] = so_far
        for fit in fits:
            fit.take_away(blocks[left[best]])
        left = torch.cat([left[:best], left[best + 1 :]])
    return lost
