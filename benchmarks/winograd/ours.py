"""The variants of the winograd library as they are measured.

    m4          F(4x4, 3x3), weights transformed before         f4          the same, transformed again in each call
    m4p25       25 % of the positions pruned, drawn by a seed   direct      oneDNN's direct convolution
    selection   what winograd.selection chooses within its default error
    …@nchw      input and output in NCHW instead of channels last
    …@112,64,1  with that blocking: tiles, filters, shared

`direct` is the direct convolution that the others must beat, and that selection falls back to.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.winograd.engines import Runnable, prepacked_onednn
from benchmarks.winograd.problems import Material, Problem

DENSE = ("m2", "m4", "m6", "m7", "f2", "f4")
VARIANTS = ("direct", "selection", *DENSE, "m2p25", "m4p25", "m2p50", "m4p50")
_NAME = re.compile(r"([mf])(\d)(?:p(\d+))?(@nchw)?(?:@(\d+),(\d+),(-?\d+))?")


@dataclass(frozen=True)
class Variant:
    m: int
    from_filters: bool
    pruned_percent: int = 0
    channels_first: bool = False
    blocking: tuple[int, ...] = ()

    def positions(self, layer: int) -> list[int]:
        """The kept positions of a layer."""
        size = (self.m + 2) ** 2
        kept = size - round(size * self.pruned_percent / 100)
        return sorted(int(p) for p in np.random.default_rng(layer).choice(size, kept, replace=False))


def build(
    torch: Any, material: Material, images: Any, weights: list[Any], biases: list[Any], threads: int, name: str
) -> Runnable:
    if name == "selection":
        name = selected(material.problem, threads)
    if name == "direct":
        run = prepacked_onednn(torch, images, weights, biases)
        return Runnable(run, lambda: run().contiguous().numpy())
    variant = parse(name)
    if variant.channels_first:
        images = images.contiguous()
    run = _winograd(torch, material, variant, images, weights, biases)
    exact = _exact_when_pruned(torch, material, variant) if variant.pruned_percent else None
    return Runnable(run, lambda: run().contiguous().numpy(), exact)


def parse(name: str) -> Variant:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"no variant is called {name!r}: direct, selection, m4, f4, m4p50, m4@nchw, m4@112,64,1")
    kind, m, pruned, channels_first, *blocking = match.groups()
    sizes = tuple(int(size) for size in blocking if size is not None)
    return Variant(int(m), kind == "f", int(pruned or 0), channels_first is not None, sizes)


def selected(given: Problem, threads: int) -> str:
    """The name of the variant that winograd.selection chooses."""
    from winograd import selection

    shape = selection.Shape(given.channels, given.filters, given.size, given.size, batch=given.batch)
    choice = selection.select(shape, threads=threads)
    if choice.m is None:
        return "direct"
    blocking = "@" + ",".join(map(str, choice.blocking)) if choice.blocking else ""
    return f"{'m' if choice.variant == 'weights' else 'f'}{choice.m}{blocking}"


def _winograd(
    torch: Any, material: Material, variant: Variant, images: Any, weights: list[Any], biases: list[Any]
) -> Callable[[], Any]:
    operators = torch.ops.winograd
    packed = _packed(operators, material, variant, weights)
    layers = [
        (p, torch.tensor([variant.positions(n)], dtype=torch.int32), w.shape[0], b)
        for n, (p, w, b) in enumerate(zip(packed, weights, biases, strict=True))
    ]
    convolve = operators.conv2d_packed_filters if variant.from_filters else operators.conv2d_packed
    blocking = variant.blocking or (0, 0, -1)

    def run() -> Any:
        flow = images
        for packed, positions, filters, bias in layers:
            flow = convolve(flow, packed, positions, filters, variant.m, 1, 1, bias, None, "none", 1, *blocking)
        return flow

    return run


_last_packed: tuple[Material, Variant, list[Any]] | None = None


def _packed(operators: Any, material: Material, variant: Variant, weights: list[Any]) -> list[Any]:
    """The packed weights of all layers; kept for the next variant, which when tuning differs in its blocking only."""
    from winograd.reference import transform_filters

    global _last_packed
    plain = replace(variant, channels_first=False, blocking=())
    if _last_packed and _last_packed[0] is material and _last_packed[1] == plain:
        return _last_packed[2]
    packed = []
    for layer, weight in enumerate(weights):
        positions = variant.positions(layer)
        if variant.from_filters:
            packed.append(operators.pack_filters(weight, positions, variant.m, 1, 1))
        else:
            u = transform_filters(weight, positions, variant.m)
            packed.append(operators.pack_weights(u, positions, variant.m, 1))
    _last_packed = material, plain, packed
    return packed


def _exact_when_pruned(torch: Any, material: Material, variant: Variant) -> NDArray[np.float64]:
    """What float64 says of the same pruned Winograd convolution: pruning changes the function, so a plain one is no measure."""
    from winograd.reference import conv2d, transform_filters

    flow = torch.from_numpy(material.images[material.problem.checked_images]).double()
    for layer, (weight, bias) in enumerate(zip(material.weights, material.biases, strict=True)):
        positions = variant.positions(layer)
        u = transform_filters(torch.from_numpy(weight).double(), positions, variant.m)
        flow = conv2d(flow, u, positions, variant.m, (1, 1), bias=torch.from_numpy(bias).double())
    exact: NDArray[np.float64] = flow.numpy()
    return exact
