"""Winograd convolutions in standard operators, for runtimes that don't have ours: only kept positions are computed (W-8).

Both transforms are convolutions with fixed filters, outer products of two rows of the matrices each (METHODS 2.8); between
them stands one 1x1 convolution with a group for each kept position, so that pruned positions cost nothing:

    conv, stride m             every channel, as an image of its own, into its kept positions   t x t filters, fixed
    permute                    channels that hold positions into positions that hold channels
    1x1 conv                   V into U V: one group for each position and group of channels    the weights
    permute                    back
    transposed conv, stride m  the positions of every filter into m x m outputs                 m x m filters, fixed
    pad by less than nothing   what the last tiles have too much

Filters in several runs with positions of their own go the same way together; then the fixed filters are repeated for each
channel (filter), because they differ. In ONNX Runtime and torch this order was the fastest of those that were tried.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from winograd.matrices import MATRICES, Matrix

from workers.models.graph import (
    BATCH,
    FROM_POSITIONS,
    TO_POSITIONS,
    ModelGraph,
    aten,
    copy_graph,
    winograd_conv2d,
)
from workers.models.graph_builder import Size
from workers.models.shapes import infer_tensors

HALVES = (torch.float16, torch.bfloat16)  # computed in float32, as winograd.conv2d does


def has_winograd(graph: ModelGraph) -> bool:
    """Whether any convolution of the network is in the Winograd domain."""
    return any(node.target is winograd_conv2d for node in graph.module.graph.nodes)


@dataclass(frozen=True)
class LoweredConvolution:
    """The nodes that one Winograd convolution has become, by name."""

    image: str  # what it reads
    positions: str  # the transformed input, [N, runs * P * channels, rows, columns]
    products: str  # the convolution that multiplies, [N, P * K, rows, columns]
    output: str


def lower_winograd(graph: ModelGraph) -> ModelGraph:
    """A copy that computes the same in standard operators, with the same parameters; sizes that are open stay open."""
    return lowered_convolutions(graph)[0]


def lowered_convolutions(graph: ModelGraph) -> tuple[ModelGraph, list[LoweredConvolution]]:
    """The same, with what each convolution has become."""
    lowered = copy_graph(graph)
    tensors = infer_tensors(graph)
    found = []
    for node in list(lowered.module.graph.nodes):
        if node.target is winograd_conv2d:
            convolution = _Convolution.of(node, tensors, sizes_are_open=has_open_sizes(graph))
            found.append(_lower(convolution, _Adder(lowered, node)))
            tensors[found[-1].output] = tensors[node.name]  # the next convolution may read it
    lowered.module.recompile()
    return lowered, found


def has_open_sizes(graph: ModelGraph) -> bool:
    """Whether images may differ in size; what a network with one size does inside is known from its input."""
    return any(isinstance(size, str) and size != BATCH for spec in graph.inputs for size in spec.shape)


@dataclass(frozen=True)
class _Convolution:
    """The numbers of one Winograd convolution of `channels` * `groups` channels, and the nodes that it reads."""

    image: fx.Node  # [N, C, H, W]
    weights: fx.Node  # [P, K, C/g]
    bias: fx.Node | None  # [K]
    runs: tuple[tuple[int, ...], ...]  # the P positions of each run of filters
    m: int
    padding: tuple[int, int]
    groups: int
    filters: int
    channels: int  # that one filter reads
    sides: tuple[int, int] | None  # H, W; None if they are open
    dtype: torch.dtype

    @classmethod
    def of(cls, node: fx.Node, tensors: dict[str, Any], *, sizes_are_open: bool) -> "_Convolution":
        given: Any = node.args  # as `winograd.conv2d` takes them, which was checked when the graph was built
        image, weights, positions, m, padding, bias, _, _, groups = given
        kept, filters, channels = tensors[weights.name].shape
        height, width = tensors[image.name].shape[2:]
        return cls(
            image=image,
            weights=weights,
            bias=bias,
            runs=tuple(tuple(positions[start : start + kept]) for start in range(0, len(positions), kept)),
            m=m,
            padding=(padding[0], padding[-1]),
            groups=groups,
            filters=filters,
            channels=channels,
            sides=None if sizes_are_open else (height, width),
            dtype=tensors[weights.name].dtype,
        )

    @property
    def kept(self) -> int:
        """P, the kept positions of a run."""
        return len(self.runs[0])

    @property
    def runs_of_group(self) -> int:
        """How many runs of filters read the same channels."""
        return max(1, len(self.runs) // self.groups)

    @property
    def groups_of_run(self) -> int:
        """How many groups of the convolution one run of filters spans."""
        return max(1, self.groups // len(self.runs))

    @property
    def outputs(self) -> tuple[int, int] | None:
        """OH, OW; None if they are open."""
        if self.sides is None:
            return None
        return self.sides[0] + 2 * self.padding[0] - 2, self.sides[1] + 2 * self.padding[1] - 2


class _Adder:
    """Adds nodes before the one that is to be replaced, and stored tensors beside its weights."""

    def __init__(self, graph: ModelGraph, node: fx.Node) -> None:
        self._module = graph.module
        self._node = node

    def call(self, target: Any, *args: Any) -> fx.Node:  # Any: an operator, and what it takes
        with self._node.graph.inserting_before(self._node):
            return self._node.graph.call_function(target, args)

    def stored(self, leaf: str, value: Tensor, beside: fx.Node) -> fx.Node:
        """A buffer in the submodule that holds the parameter read by `beside`; at the top if it reads none."""
        path = str(beside.target).rpartition(".")[0] if beside.op == "get_attr" else ""
        owner = self._module.get_submodule(path)
        name, count = leaf, 0
        while hasattr(owner, name):
            count += 1
            name = f"{leaf}_{count}"
        owner.register_buffer(name, value)
        with self._node.graph.inserting_before(self._node):
            return self._node.graph.get_attr(f"{path}.{name}" if path else name)

    def replace(self, result: fx.Node) -> fx.Node:
        self._node.replace_all_uses_with(result)
        self._node.graph.erase_node(self._node)
        return result


def _lower(conv: _Convolution, add: _Adder) -> LoweredConvolution:
    image, weights, bias = conv.image, conv.weights, conv.bias
    if conv.dtype in HALVES:
        image, weights = (add.call(aten.to.dtype, value, torch.float32) for value in (image, weights))
        bias = None if bias is None else add.call(aten.to.dtype, bias, torch.float32)
    positions, grid = _transform_input(conv, image, add)
    products = _multiply(conv, positions, weights, add)
    output = _crop(conv, _transform_output(conv, products, grid, add), add)
    if bias is not None:
        output = add.call(aten.add.Tensor, output, add.call(aten.reshape.default, bias, [1, conv.filters, 1, 1]))
    result = add.replace(add.call(aten.to.dtype, output, conv.dtype) if conv.dtype in HALVES else output)
    return LoweredConvolution(conv.image.name, positions.name, products.name, result.name)


def _transform_input(conv: _Convolution, image: fx.Node, add: _Adder) -> tuple[fx.Node, list[Size]]:
    """V as [N, runs * P * channels that a run reads, rows, columns], and the rows and columns of tiles."""
    channels, patterns = conv.channels * conv.groups, conv.runs_of_group * conv.kept
    filters = _outer_products(MATRICES[conv.m].bt, conv.runs).reshape(-1, patterns, *[conv.m + 2] * 2)
    if len(filters) == 1:  # all channels are transformed alike, so that they may be so many images
        image, split = add.call(aten.reshape.default, image, [-1, 1, *_sides(conv, add)]), 1
    else:
        filters, split = filters.repeat_interleave(channels // len(filters), dim=0), channels
    below, right = (conv.m - 1, conv.m - 1) if conv.outputs is None else (-side % conv.m for side in conv.outputs)
    if below or right:
        image = add.call(aten.pad.default, image, [0, right, 0, below], "constant", 0.0)
    stored = add.stored(TO_POSITIONS, filters.reshape(-1, 1, *filters.shape[2:]).to(_computed(conv)), conv.weights)
    v = add.call(
        aten.conv2d.default, image, stored, None, [conv.m] * 2, list(conv.padding), [1, 1], split
    )  # [N, C * patterns, rows, columns], or so with N * C images
    grid = _grid(conv, v, add)
    outer, held = min(len(conv.runs), conv.groups), conv.groups_of_run * conv.channels
    apart = add.call(aten.reshape.default, v, [-1, outer, held, patterns, *grid])
    turned = add.call(aten.permute.default, apart, [0, 1, 3, 2, 4, 5])
    return add.call(aten.reshape.default, turned, [-1, channels * patterns, *grid]), grid


def _multiply(conv: _Convolution, v: fx.Node, weights: fx.Node, add: _Adder) -> fx.Node:
    """U V as [N, runs, P, K / runs, rows, columns] in the memory of [N, P * K, rows, columns]."""
    runs = len(conv.runs)
    if runs > 1:  # [P, K, C/g] to [runs, P, K / runs, C/g]
        apart = add.call(aten.reshape.default, weights, [conv.kept, runs, conv.filters // runs, conv.channels])
        weights = add.call(aten.permute.default, apart, [1, 0, 2, 3])
    filters = add.call(aten.reshape.default, weights, [conv.kept * conv.filters, conv.channels, 1, 1])
    groups = runs * conv.kept * conv.groups_of_run
    return add.call(aten.conv2d.default, v, filters, None, [1, 1], [0, 0], [1, 1], groups)


def _transform_output(conv: _Convolution, products: fx.Node, grid: list[Size], add: _Adder) -> fx.Node:
    """[N, K, rows * m, columns * m]"""
    runs = len(conv.runs)
    apart = add.call(aten.reshape.default, products, [-1, runs, conv.kept, conv.filters // runs, *grid])
    turned = add.call(aten.permute.default, apart, [0, 1, 3, 2, 4, 5])  # [N, runs, K / runs, P, rows, columns]
    patterns = _outer_products(tuple(zip(*MATRICES[conv.m].at, strict=True)), conv.runs)  # [runs, P, m, m]
    together = 1
    if runs > 1:
        patterns, together = patterns.repeat_interleave(conv.filters // runs, dim=0), conv.filters
    stored = add.stored(FROM_POSITIONS, patterns.reshape(-1, 1, conv.m, conv.m).to(_computed(conv)), conv.weights)
    joined = add.call(aten.reshape.default, turned, [-1, together * conv.kept, *grid])
    outputs = add.call(
        aten.conv_transpose2d.input, joined, stored, None, [conv.m] * 2, [0, 0], [0, 0], together, [1, 1]
    )
    if together > 1:
        return outputs
    height, width = (_times(side, conv.m, add) for side in grid)
    return add.call(aten.reshape.default, outputs, [-1, conv.filters, height, width])


def _crop(conv: _Convolution, output: fx.Node, add: _Adder) -> fx.Node:
    """[N, K, OH, OW], without what the last tiles have too much."""
    if conv.outputs is not None:
        below, right = (-side % conv.m for side in conv.outputs)
        if not below and not right:
            return output
        return add.call(aten.pad.default, output, [0, -right, 0, -below], "constant", 0.0)
    for dim, padding in ((2, conv.padding[0]), (3, conv.padding[1])):
        end = _plus(add.call(aten.sym_size.int, conv.image, dim), 2 * padding - 2, add)
        output = add.call(aten.slice.Tensor, output, dim, 0, end, 1)
    return output


def _sides(conv: _Convolution, add: _Adder) -> list[Size]:
    if conv.sides is None:
        return [add.call(aten.sym_size.int, conv.image, dim) for dim in (2, 3)]
    return list(conv.sides)


def _grid(conv: _Convolution, v: fx.Node, add: _Adder) -> list[Size]:
    """Rows and columns of tiles."""
    if conv.outputs is None:
        return [add.call(aten.sym_size.int, v, dim) for dim in (2, 3)]
    return [-(-side // conv.m) for side in conv.outputs]


def _times(size: Size, factor: int, add: _Adder) -> Size:
    return size * factor if isinstance(size, int) else add.call(operator.mul, size, factor)


def _plus(size: fx.Node, number: int, add: _Adder) -> Size:
    return add.call(operator.add, size, number) if number else size


def _computed(conv: _Convolution) -> torch.dtype:
    return torch.float32 if conv.dtype in HALVES else conv.dtype


def _outer_products(matrix: Matrix, runs: tuple[tuple[int, ...], ...]) -> Tensor:
    """[runs, P, s, s] in float64: for each position, the outer product of two rows of `matrix` [t, s]."""
    rows = torch.tensor([[float(value) for value in row] for row in matrix], dtype=torch.float64)
    chosen = torch.tensor(runs)
    return rows[chosen // len(rows)].unsqueeze(-1) * rows[chosen % len(rows)].unsqueeze(-2)
