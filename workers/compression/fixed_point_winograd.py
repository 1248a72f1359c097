"""Winograd convolutions in integers (METHODS 6.3): V and U are quantized separately, and products added up as they are.

input transform     sums and differences of the image's integers, with a length of its own for every channel at every position
convolution         1x1, one group for each kept position: an ordinary layer, with lengths from the result (F-5 to F-7)
output transform    sums and differences of its accumulators, shifted to one length for each filter, and the bias

Both transforms of F(2x2, 3x3) hold nothing but 0, 1 and -1, so nothing is lost in them but what V is rounded by. Larger tiles have
fractions, and grow by more bits than 8-bit integers can spare.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from jobs.errors import RecipeRefused
from workers.compression.fixed_point_lengths import FARTHEST_SHIFT, quantized_bias
from workers.fixed_point.coding import Coding
from workers.fixed_point.network import InputTransform, OutputTransform
from workers.fixed_point.tiles import STEP
from workers.models.graph import ModelGraph, drop_unread_parameters, layer_name, parameter, winograd_conv2d
from workers.models.lower_winograd import LoweredConvolution, lowered_convolutions

_SUM_BITS = 31  # of 32-bit accumulators, without the sign


@dataclass(frozen=True)
class Tiles:
    """The nodes of one Winograd convolution in standard operators, by name, and what they compute."""

    convolution: str  # the node that it was before
    positions: tuple[int, ...]
    padding: tuple[int, int]
    before: tuple[str, ...]  # from the image to V
    product: str
    after: tuple[str, ...]  # from the products to the output
    bias: str | None  # the parameter that is added at the end


def lower_for_integers(graph: ModelGraph) -> tuple[ModelGraph, list[Tiles]]:
    """A copy with Winograd convolutions in standard operators, each with parameters of its own.

    Raises:
        RecipeRefused: for tiles and groups that aren't done in integers.
    """
    given = {node.name: node for node in graph.module.graph.nodes if node.target is winograd_conv2d}
    for node in given.values():
        _refuse(graph, node)
    lowered, convolutions = lowered_convolutions(graph)
    taken: set[str] = set()
    found = [
        _own_parameters(lowered, graph, node, convolution, taken)
        for node, convolution in zip(given.values(), convolutions, strict=True)
    ]
    drop_unread_parameters(lowered.module)
    lowered.module.recompile()
    return lowered, found


def _refuse(graph: ModelGraph, node: fx.Node) -> None:
    arguments: Any = node.args  # as `winograd.conv2d` takes them
    _, weights, positions, m, _, _, _, _, groups = arguments
    layer = layer_name(str(weights.target))
    if m != STEP:
        raise RecipeRefused(
            f"{layer} is computed as F({m}x{m}, 3x3), whose transforms have fractions; integers take tiles of F(2x2, 3x3).",
            hint='Ask for "tile": 2 in prune_winograd.',
        )
    if groups != 1 or len(positions) != len(parameter(graph, str(weights.target))):
        raise RecipeRefused(
            f"{layer} is a Winograd convolution of several groups, or of filters with positions of their own, which isn't done in "
            "integers.",
            hint="Exclude the layer in prune_winograd, or ask for one group.",
        )


def _own_parameters(
    lowered: ModelGraph, graph: ModelGraph, old: fx.Node, made: LoweredConvolution, taken: set[str]
) -> Tiles:
    """Give a lowered convolution filters [P * K, C, 1, 1] and a bias that nobody else reads."""
    arguments: Any = old.args
    _, weights, positions, _, padding, bias, _, _, _ = arguments
    nodes = {node.name: node for node in lowered.module.graph.nodes}
    product, output = nodes[made.products], nodes[made.output]
    stored = parameter(graph, str(weights.target)).detach()
    filters = stored.reshape(-1, stored.shape[2], 1, 1)
    product.update_arg(1, _stored(lowered, product, _free(str(weights.target), taken), filters))
    bias_name = None
    if bias is not None:
        reshaped = output.args[1]
        assert isinstance(reshaped, fx.Node)
        bias_name = _free(str(bias.target), taken)
        reshaped.update_arg(0, _stored(lowered, reshaped, bias_name, parameter(graph, str(bias.target)).detach()))
    return Tiles(
        convolution=old.name,
        positions=tuple(positions),
        padding=(padding[0], padding[-1]),
        before=_between(nodes[made.image], nodes[made.positions]),
        product=made.products,
        after=_between(product, output),
        bias=bias_name,
    )


def _stored(graph: ModelGraph, before: fx.Node, name: str, value: Tensor) -> fx.Node:
    owner, _, leaf = name.rpartition(".")
    graph.module.get_submodule(owner).register_parameter(leaf, torch.nn.Parameter(value.clone(), requires_grad=False))
    with graph.module.graph.inserting_before(before):
        return graph.module.graph.get_attr(name)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _between(first: fx.Node, last: fx.Node) -> tuple[str, ...]:
    """The calls after `first` that lead to `last`, in order, `last` included."""
    found, open_nodes = set[fx.Node](), [last]
    while open_nodes:
        node = open_nodes.pop()
        if node is not first and node not in found and node.op == "call_function":
            found.add(node)
            open_nodes += node.all_input_nodes
    return tuple(node.name for node in first.graph.nodes if node in found)


# ---- The integer operations -----------------------------------------------------------------------------------------


def input_transform(
    tiles: Tiles, source: str, output: str, given: Coding, wanted: Coding
) -> tuple[InputTransform, Coding]:
    """The transform from integers of `given`, and the coding of V: `wanted`, but nowhere finer than sums of `given` can be."""
    of_inputs = given.lengths * len(tiles.positions)
    lengths = tuple(min(mine, exact) for mine, exact in zip(wanted.lengths, of_inputs, strict=True))
    coding = Coding(wanted.bits, wanted.signed, lengths)
    count = len(lengths)
    operation = InputTransform(
        source=source,
        output=output,
        positions=tiles.positions,
        padding=tiles.padding,
        out_shift=tuple(exact - mine for mine, exact in zip(lengths, of_inputs, strict=True)),
        low=(coding.lowest,) * count,
        high=(coding.highest,) * count,
    )
    return operation, coding


def output_transform(
    tiles: Tiles,
    source: str,
    output: str,
    products: Coding,
    coding: Coding,
    bias: Tensor,
    *,
    bias_bits: int,
    low: tuple[int, ...],
    high: tuple[int, ...],
) -> OutputTransform:
    """The transform of products, whose bias [K] gets the length of the finest product of each filter."""
    lengths = products.lengths_tensor().reshape(len(tiles.positions), -1)  # [P, K]
    common = lengths.amax(0)
    return OutputTransform(
        source=source,
        output=output,
        positions=tiles.positions,
        bias=tuple(quantized_bias(bias, common, bias_bits).tolist()),
        left=tuple((common - lengths).flatten().tolist()),
        out_shift=tuple((common - coding.lengths_tensor()).tolist()),
        low=low,
        high=high,
    )


def excess_of_sums(lengths: Tensor, bounds: Tensor, bias: Tensor, bias_bits: int, output: Tensor) -> Tensor:
    """By how much lengths [P * K] of products within `bounds` are too fine for the output transform's 32-bit sums; 0 or 1.

    `output` [K] has the lengths of the output. A filter's sums are as fine as its finest products, which therefore go first.
    """
    by_position, products = lengths.reshape(-1, len(bias)), bounds.double().reshape(-1, len(bias))  # [P, K]
    common = by_position.amax(0)
    scale = torch.exp2(common.double())
    half = torch.exp2((common - output - 1).clamp(min=0).double())
    sums = (products * torch.exp2((common - by_position).double())).sum(0) + bias.double().abs() * scale + half
    is_too_fine = (
        (sums >= 2.0**_SUM_BITS)
        | (bias.double().abs() * scale >= 2.0 ** (bias_bits - 1) - 1)
        | (common - output > FARTHEST_SHIFT)
    )
    return ((by_position == common) & is_too_fine).long().flatten()
