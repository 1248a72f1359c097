"""What reaches the positions of Winograd convolutions on real images, and the weights that make the most of those that are kept.

The output of a layer is a sum over positions p and channels c of a fixed m x m pattern times U[p, k, c] V[p, c]. So the mean
square error of its output, when its weights change by D, is a quadratic form that is the same for all filters k:

    error = sum over k of D[:, k, :] G D[:, k, :],    G[(p, c), (q, d)] = Q[p, q] E[V[p, c] V[q, d]]

with Q the inner products of the patterns. Its minimum over the kept weights, with the others zero, has a closed form.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from winograd.matrices import MATRICES
from winograd.tiles import Grid, take_tiles

from workers.compression.winograd_layers import Mask
from workers.compression.winograd_scores import output_gains
from workers.models.graph import Layer, ModelGraph, layers

# Rows of G, t*t*C/g, up to which it is held and solved: 4,608 rows are 170 MB, and a second or two.
MOST_ROWS = 4608
RIDGE = 1e-4  # added to G, as a part of its mean diagonal: keeps what images hardly excite where it was


@dataclass
class Moments:
    """Of one layer: mean squares of the transformed input [g, t*t, C/g], and G [g, t*t*C/g, t*t*C/g] if it is small enough."""

    m: int
    energy: Tensor
    gram: Tensor | None

    @classmethod
    def empty(cls, layer: Layer) -> "Moments":
        assert layer.m is not None
        positions, channels = layer.weight_shape[0], layer.weight_shape[2]
        rows = positions * channels
        gram = torch.zeros(layer.groups, rows, rows, dtype=torch.float64) if rows <= MOST_ROWS else None
        return cls(layer.m, torch.zeros(layer.groups, positions, channels, dtype=torch.float64), gram)

    def energy_of(self, weights: Tensor) -> Tensor:
        """[t*t, K, C/g], the mean square of the input that each weight is multiplied with, as a view."""
        return self.energy.repeat_interleave(weights.shape[1] // self.energy.shape[0], dim=0).transpose(0, 1)


def measure_moments(graph: ModelGraph, names: Iterable[str], batches: Iterable[Tensor]) -> dict[str, Moments]:
    """The moments of the layers called `names`, all of them Winograd convolutions at all positions, on `batches` of input."""
    wanted = set(names)
    found = {layer.name: Moments.empty(layer) for layer in layers(graph) if layer.name in wanted}
    layer_of = {node: layer for layer in layers(graph) if layer.name in wanted for node in layer.used_by}
    tiles = dict.fromkeys(found, 0)
    for batch in batches:
        for node, image in _inputs_of(graph, layer_of.keys(), batch).items():
            layer = layer_of[node]
            tiles[layer.name] += _add(found[layer.name], layer, image)
    for name, moments in found.items():
        moments.energy /= max(1, tiles[name])
        if moments.gram is not None:
            moments.gram *= _pattern_products(moments) / max(1, tiles[name])
    return found


def compensated(weights: Tensor, mask: Mask, moments: Moments) -> tuple[Tensor, float]:
    """The weights [t*t, K, C/g] that give most nearly what `weights` gave, using kept positions only; and the error that is left.

    The error is the mean square of what is lost of the output over that of the output. Where G is too large, the kept weights
    stay as they are, and the error is that of `energy`, as if positions were uncorrelated.
    """
    masked = mask.apply(weights)
    if moments.gram is None:
        return masked, _energy(weights - masked, moments) / max(_energy(weights, moments), 1e-300)
    fitted = torch.zeros_like(weights)
    lost, whole = 0.0, 0.0
    of_group = weights.shape[1] // len(moments.gram)
    is_kept = mask.apply(torch.ones_like(weights)).bool()
    for group, gram in enumerate(moments.gram):
        filters = slice(group * of_group, (group + 1) * of_group)
        before = _as_rows(weights[:, filters]).double()  # (t*t*C/g, K/g)
        allowed = _as_rows(is_kept[:, filters])
        after = torch.zeros_like(before)
        for rows, columns in _with_common_rows(allowed):
            after[rows.unsqueeze(1), columns] = _fit(gram, before[:, columns], rows)
        difference = before - after
        lost += float((difference * (gram @ difference)).sum())
        whole += float((before * (gram @ before)).sum())
        fitted[:, filters] = _from_rows(after, weights.shape[0]).to(weights.dtype)
    return fitted, max(0.0, lost) / max(whole, 1e-300)


def _energy(weights: Tensor, moments: Moments) -> float:
    """The mean square of what weights [t*t, K, C/g] add to the output, as if positions were uncorrelated."""
    by_weight = weights.double().square() * moments.energy_of(weights)
    return float((output_gains(moments.m)[:, None, None] * by_weight).sum())


def _fit(gram: Tensor, before: Tensor, rows: Tensor) -> Tensor:
    """min over x of |before - x in `rows`| under G, drawn a little to `before`."""
    inner = gram[rows][:, rows]
    ridge = RIDGE * float(inner.diagonal().mean().clamp_min(1e-30))
    inner = inner + ridge * torch.eye(len(rows), dtype=inner.dtype)
    right = gram[rows] @ before + ridge * before[rows]
    return torch.cholesky_solve(right, torch.linalg.cholesky(inner))


def _with_common_rows(allowed: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Columns of `allowed` that allow the same rows, together: (rows, columns) of each kind."""
    kinds, which = torch.unique(allowed.T, dim=0, return_inverse=True)
    return [(kind.nonzero().flatten(), (which == i).nonzero().flatten()) for i, kind in enumerate(kinds)]


def _as_rows(weights: Tensor) -> Tensor:
    """[t*t, K, C] as [t*t*C, K]."""
    return weights.transpose(1, 2).flatten(0, 1)


def _from_rows(rows: Tensor, positions: int) -> Tensor:
    return rows.reshape(positions, -1, rows.shape[1]).transpose(1, 2)


@torch.inference_mode()
def _inputs_of(graph: ModelGraph, names: Iterable[str], batch: Tensor) -> dict[str, Tensor]:
    """What the nodes called `names` read, by name."""
    wanted = set(names)
    found: dict[str, Tensor] = {}

    class _Listener(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:  # fx's values
            if node.name in wanted:
                found[node.name] = self.fetch_args_kwargs_from_env(node)[0][0]
            return super().run_node(node)

    _Listener(graph.module).run(batch)
    return found


def _add(moments: Moments, layer: Layer, image: Tensor) -> int:
    """Add the tiles of a batch of input [N, C, H, W], and return how many they are."""
    assert layer.m is not None
    tiles = take_tiles(image.float(), Grid.over(image, layer.m, layer.padding))  # (t*t, C, tiles)
    transform = _input_transform(layer.m)
    v = (transform @ tiles.flatten(1)).reshape(tiles.shape)  # (t*t, C, tiles)
    by_group = v.reshape(len(v), layer.groups, -1, v.shape[2]).transpose(0, 1)  # (g, t*t, C/g, tiles)
    moments.energy += by_group.double().square().sum(-1)
    if moments.gram is not None:
        rows = by_group.flatten(1, 2)
        moments.gram += (rows @ rows.transpose(1, 2)).double()
    return int(tiles.shape[2])


def _input_transform(m: int) -> Tensor:
    bt = torch.tensor([[float(value) for value in row] for row in MATRICES[m].bt])
    return torch.kron(bt, bt)


def _pattern_products(moments: Moments) -> Tensor:
    """Q for each pair of rows of G."""
    at = torch.tensor([[float(value) for value in row] for row in MATRICES[moments.m].at], dtype=torch.float64)
    one = at.T @ at
    channels = moments.energy.shape[2]
    return torch.kron(one, one).repeat_interleave(channels, 0).repeat_interleave(channels, 1)
