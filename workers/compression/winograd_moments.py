"""What reaches the positions of Winograd convolutions on real images, and the weights that make the most of those that are kept.

The output of a layer is a sum over positions p and channels c of a fixed m x m pattern times U[p, k, c] V[p, c]. So the mean
square error of its output, when its weights change by D, is a quadratic form that is the same for all filters k:

    error = sum over k of D[:, k, :] G D[:, k, :],    G[(p, c), (q, d)] = Q[p, q] E[V[p, c] V[q, d]]

with Q the inner products of the patterns. Its minimum over the kept weights, with the others zero, has a closed form.

Where layers before it have been pruned, a layer reads other values V' than it did, and the best weights are those that make of
V' what the layer was to give: with G of V', they solve G U = B, where B holds what V' and the outputs wanted have in common. So
each layer makes up for what all before it have lost, too (as in Frantar et al. 2022, who quantise layers one after another).
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from winograd.matrices import MATRICES
from winograd.tiles import Grid, take_tiles

from workers.compression.frontier import Frontier
from workers.compression.winograd_layers import Mask
from workers.compression.winograd_scores import output_gains
from workers.models.graph import Layer, ModelGraph, layers, parameter

# Rows of G, t*t*C/g, up to which it is held and solved: 4,608 rows are 170 MB, and a second or two.
MOST_ROWS = 4608
# What G is measured on before a layer has seen enough: images, and tiles for each of its rows. Where images have few tiles, a
# fit to few of them is one to their noise.
ENOUGH_IMAGES, ENOUGH_TILES = 512, 8
RIDGE = 1e-4  # added to G, as a part of its mean diagonal: keeps what images hardly excite where it was


@dataclass
class Moments:
    """Of one layer: mean squares of the transformed input [g, t*t, C/g], and G [g, t*t*C/g, t*t*C/g] if it is small enough."""

    m: int
    energy: Tensor
    gram: Tensor | None
    images: int = 0  # counted in
    tiles: int = 0

    @classmethod
    def empty(cls, layer: Layer) -> "Moments":
        positions, channels = layer.weight_shape[0], layer.weight_shape[2]
        rows = positions * channels
        gram = torch.zeros(layer.groups, rows, rows, dtype=torch.float64) if rows <= MOST_ROWS else None
        return cls(_m_of(layer), torch.zeros(layer.groups, positions, channels, dtype=torch.float64), gram)

    @property
    def are_enough(self) -> bool:
        rows = self.energy.shape[1] * self.energy.shape[2]
        return self.images >= ENOUGH_IMAGES and (self.gram is None or self.tiles >= ENOUGH_TILES * rows)

    def energy_of(self, weights: Tensor) -> Tensor:
        """[t*t, K, C/g], the mean square of the input that each weight is multiplied with, as a view."""
        return self.energy.repeat_interleave(weights.shape[1] // self.energy.shape[0], dim=0).transpose(0, 1)

    def add(self, v: Tensor, images: int) -> None:
        """Count in transformed tiles [g, t*t, C/g, tiles]."""
        self.energy += v.double().square().sum(-1)
        if self.gram is not None:
            rows = v.flatten(1, 2)
            self.gram += (rows @ rows.transpose(1, 2)).double()
        self.images += images
        self.tiles += int(v.shape[3])

    def average(self) -> None:
        """From sums over tiles to means."""
        self.energy /= max(1, self.tiles)
        if self.gram is not None:
            channels = self.energy.shape[2]
            products = _products_of_patterns(self.m).repeat_interleave(channels, 0).repeat_interleave(channels, 1)
            self.gram *= products / max(1, self.tiles)


@dataclass
class Target:
    """What a layer is to give, seen from its inputs: B [g, t*t*C/g, K/g], and the mean square of the outputs wanted."""

    common: Tensor
    energy: float

    @classmethod
    def empty(cls, layer: Layer) -> "Target":
        positions, filters, channels = layer.weight_shape
        return cls(torch.zeros(layer.groups, positions * channels, filters // layer.groups, dtype=torch.float64), 0.0)


def measure_moments(graph: ModelGraph, names: Iterable[str], batches: Iterable[Tensor]) -> dict[str, Moments]:
    """The moments of the layers called `names`, all of them Winograd convolutions at all positions, on `batches` of input.

    Nothing is computed once every layer has seen enough, nor counted in for a layer that has.
    """
    wanted = set(names)
    found = {layer.name: Moments.empty(layer) for layer in layers(graph) if layer.name in wanted}
    layer_of = {node: layer for layer in layers(graph) if layer.name in wanted for node in layer.used_by}
    inputs_of = _InputsOf(graph, layer_of)
    for batch in batches:
        wanting = {name for name, moments in found.items() if not moments.are_enough}
        if not wanting:
            break
        for node, image in inputs_of(batch).items():
            layer = layer_of[node]
            if layer.name in wanting:
                found[layer.name].add(_tiles_of(layer, image), len(image))
    for moments in found.values():
        moments.average()
    return found


@torch.inference_mode()
def measure_target(name: str, own: Frontier, wanted: Frontier) -> tuple[Moments, Target]:
    """The moments of the layer called `name` of one network, and as its target what it gives in another, on the same batches.

    The networks differ in weights only; the layer has all positions, and few enough rows that G is held. No more batches are
    counted in than it needs.
    """
    layer = next(layer for layer in layers(own.graph) if layer.name == name)
    weights = parameter(wanted.graph, layer.weight)
    products = _products_of_patterns(_m_of(layer))
    moments, target = Moments.empty(layer), Target.empty(layer)
    for images, images_wanted in zip(own.inputs_of(layer.used_by), wanted.inputs_of(layer.used_by), strict=True):
        if moments.are_enough:
            break
        for node, image in images.items():
            v = _tiles_of(layer, image)
            outputs = _outputs_of(layer, weights, images_wanted[node])
            seen = (products.float() @ outputs.flatten(2)).reshape(outputs.shape)
            moments.add(v, len(image))
            target.common += (v @ seen.transpose(2, 3)).flatten(1, 2).double()
            target.energy += float((outputs * seen).sum(dtype=torch.float64))
    moments.average()
    target.common /= max(1, moments.tiles)
    target.energy /= max(1, moments.tiles)
    return moments, target


def compensated(weights: Tensor, mask: Mask, moments: Moments, target: Target | None = None) -> tuple[Tensor, float]:
    """The weights [t*t, K, C/g] that give most nearly what is wanted, using kept positions only; and the error that is left.

    Wanted is what `weights` gave, or else `target`. The error is the mean square of what is missed over that of the outputs
    wanted. Where G is too large, the kept weights stay as they are, and the error is that of `energy`, as if positions were
    uncorrelated.
    """
    masked = mask.apply(weights)
    if moments.gram is None:
        return masked, _energy(weights - masked, moments) / max(_energy(weights, moments), 1e-300)
    fitted = torch.zeros_like(weights)
    lost, whole = 0.0, 0.0 if target is None else target.energy
    of_group = weights.shape[1] // len(moments.gram)
    is_kept = mask.apply(torch.ones_like(weights)).bool()
    for group, gram in enumerate(moments.gram):
        filters = slice(group * of_group, (group + 1) * of_group)
        before = as_rows(weights[:, filters]).double()  # (t*t*C/g, K/g)
        allowed = as_rows(is_kept[:, filters])
        common = gram @ before if target is None else target.common[group]
        after = torch.zeros_like(before)
        for rows, columns in _with_common_rows(allowed):
            after[rows.unsqueeze(1), columns] = _fit(gram, common[:, columns], before[:, columns], rows)
        lost += float((after * (gram @ after - 2 * common)).sum())
        if target is None:
            energy = float((before * common).sum())
            lost, whole = lost + energy, whole + energy
        fitted[:, filters] = _from_rows(after, weights.shape[0]).to(weights.dtype)
    lost += 0.0 if target is None else target.energy
    return fitted, max(0.0, lost) / max(whole, 1e-300)


def with_ridge(inner: Tensor) -> tuple[Tensor, float]:
    """A part of G that can be inverted, and what was added to its diagonal."""
    ridge = RIDGE * float(inner.diagonal().mean().clamp_min(1e-30))
    return inner + ridge * torch.eye(len(inner), dtype=inner.dtype), ridge


def as_rows(weights: Tensor) -> Tensor:
    """[t*t, K, C] as [t*t*C, K]."""
    return weights.transpose(1, 2).flatten(0, 1)


def _energy(weights: Tensor, moments: Moments) -> float:
    """The mean square of what weights [t*t, K, C/g] add to the output, as if positions were uncorrelated."""
    by_weight = weights.double().square() * moments.energy_of(weights)
    return float((output_gains(moments.m)[:, None, None] * by_weight).sum())


def _fit(gram: Tensor, common: Tensor, before: Tensor, rows: Tensor) -> Tensor:
    """The solution of G x = `common` in `rows`, drawn a little to `before`."""
    inner, ridge = with_ridge(gram[rows][:, rows])
    return torch.cholesky_solve(common[rows] + ridge * before[rows], torch.linalg.cholesky(inner))


def _with_common_rows(allowed: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Columns of `allowed` that allow the same rows, together: (rows, columns) of each kind."""
    kinds, which = torch.unique(allowed.T, dim=0, return_inverse=True)
    return [(kind.nonzero().flatten(), (which == i).nonzero().flatten()) for i, kind in enumerate(kinds)]


def _from_rows(rows: Tensor, positions: int) -> Tensor:
    return rows.reshape(positions, -1, rows.shape[1]).transpose(1, 2)


class _InputsOf:
    """What some nodes of a network read, by name. Nothing behind the last of them is computed."""

    def __init__(self, graph: ModelGraph, names: Iterable[str]) -> None:
        self._names = tuple(names)
        cut = deepcopy(graph.module.graph)
        nodes = {node.name: node for node in cut.nodes}
        (output,) = [node for node in cut.nodes if node.op == "output"]
        output.args = (tuple(nodes[name].args[0] for name in self._names),)
        cut.eliminate_dead_code()
        self._module = fx.GraphModule(graph.module, cut)

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._names, self._module(batch), strict=True))


def _tiles_of(layer: Layer, image: Tensor) -> Tensor:
    """The transformed tiles [g, t*t, C/g, tiles] of input [N, C, H, W]."""
    m = _m_of(layer)
    tiles = take_tiles(image.float(), Grid.over(image, m, layer.padding))  # (t*t, C, tiles)
    bt = torch.tensor([[float(value) for value in row] for row in MATRICES[m].bt])
    v = (torch.kron(bt, bt) @ tiles.flatten(1)).reshape(tiles.shape)
    return v.reshape(len(v), layer.groups, -1, v.shape[2]).transpose(0, 1)


def _outputs_of(layer: Layer, weights: Tensor, image: Tensor) -> Tensor:
    """[g, t*t, K/g, tiles]: what is transformed back to tiles of outputs, for input [N, C, H, W]."""
    v = _tiles_of(layer, image)
    by_group = weights.float().reshape(len(weights), layer.groups, -1, weights.shape[2]).transpose(0, 1)
    return by_group @ v


def _products_of_patterns(m: int) -> Tensor:
    """Q [t*t, t*t]."""
    at = torch.tensor([[float(value) for value in row] for row in MATRICES[m].at], dtype=torch.float64)
    one = at.T @ at
    return torch.kron(one, one)


def _m_of(layer: Layer) -> int:
    assert layer.m is not None
    return layer.m
