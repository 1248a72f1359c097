"""The float simulation of an integer network: standard operators that give exactly its numbers (F-8).

Weights become the numbers that their integers stand for, and behind every operation values are rounded to its lengths. Single
precision holds integers up to 2**24: what may grow larger on the way is computed in double precision.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from workers.compression.fixed_point_emission import input_lengths, pool_window
from workers.compression.fixed_point_moves import sampling_of
from workers.compression.fixed_point_plan import CARRIED, Plan, Planned
from workers.fixed_point.coding import Coding, along_channels, exp2
from workers.fixed_point.interpolation import ONE, Tap
from workers.fixed_point.network import (
    Addition,
    AveragePool,
    BilinearResize,
    Convolution,
    IntegerNetwork,
    Multiplication,
    Operation,
    OutputTransform,
)
from workers.models.graph import ModelGraph, aten, copy_graph, set_parameter
from workers.models.shapes import infer_shapes

EXACT = 2**24  # float32 holds all integers up to here


def simulate(plan: Plan, network: IntegerNetwork) -> ModelGraph:
    """A network of standard operators that takes what the uploaded one took and gives what the integers stand for."""
    return Simulation(plan, network).made


def dequantized_weight(operation: Convolution, source: Coding) -> Tensor:
    """The numbers (float64 [K, C/g, R, S]) that a layer's weights stand for."""
    lengths = operation.lengths[:, None] - input_lengths(source, operation.weight, operation.groups)
    return operation.aligned_weight.double() * exp2(-lengths)[:, :, None, None]


def grid_of(operation: Convolution, source: Coding) -> Tensor:
    """The lengths [K, C/g] at which a layer's weights are stored."""
    return operation.lengths[:, None] - input_lengths(source, operation.weight, operation.groups) - operation.shifts


class Simulation:
    """A graph being written after another one: what an old node gave, a new one gives in rounded numbers."""

    def __init__(self, plan: Plan, network: IntegerNetwork) -> None:
        self.made = copy_graph(plan.graph)
        self.graph = fx.Graph()
        self._old = self.made.module.graph
        self._network = network
        self._ranks = {name: len(shape) for name, shape in infer_shapes(plan.graph).items()}
        self._by_name = {node.name: node for node in self._old.nodes}
        self._stored: dict[str, fx.Node] = {}
        planned = plan.by_output()
        image = self.copied(self._by_name[plan.input], {})
        # Just below a tie, the half that rounds is more than single precision can add.
        self._add_rounded(self.call(aten.to.dtype, image, torch.float64), plan.input)
        for operation in network.operations:
            if operation.output in planned:
                self._add(operation, planned[operation.output])
            else:
                # Recoded for one reader.
                self._ranks[operation.output] = self._ranks[operation.sources[0]]
                self._add_rounded(self._stored[operation.sources[0]], operation.output)
        self._add_tail(plan.logits)
        self.made.module.graph = self.graph
        self.made.module.recompile()

    def _add(self, operation: Operation, planned: Planned) -> None:
        old = [self._by_name[node.name] for node in planned.nodes]
        known = {
            self._by_name[given]: operand
            for given, operand in zip(planned.sources, self._operands(operation), strict=True)
        }
        if isinstance(operation, OutputTransform):
            known = self._read_by_transform(operation, planned, known)
        for node in old:
            if node is old[0] and isinstance(operation, Convolution):
                known[node] = self._layer(node, operation, known)
            elif node is old[0] and isinstance(operation, AveragePool):
                known[node] = self._sum(node, operation, known)
            elif isinstance(operation, BilinearResize):
                known[node] = self._resized(node, operation, known)
            else:
                known[node] = self.copied(node, known)
        is_carried = planned.kind in CARRIED and not isinstance(operation, BilinearResize)  # which rounds means
        if is_carried or self._network.values[operation.output].coding.bits == _AS_THEY_ARE:
            self._stored[operation.output] = known[old[-1]]
        else:
            self._add_rounded(known[old[-1]], operation.output)

    def _operands(self, operation: Operation) -> list[fx.Node]:
        """What an operation reads: in double precision where its sums or products need that."""
        operands = [self._stored[source] for source in operation.sources]
        if isinstance(operation, Addition | Multiplication):
            first, second = (self.coding(source) for source in operation.sources)
            if max(operation.accumulator_bounds(first, second)) >= EXACT:
                return [self.call(aten.to.dtype, operand, torch.float64) for operand in operands]
        return operands

    def _layer(self, node: fx.Node, operation: Convolution, known: dict[fx.Node, fx.Node]) -> fx.Node:
        source = self._network.values[operation.source].coding
        is_wide = operation.accumulator_bound(source) >= EXACT
        self.set_parameters(node, operation, torch.float64 if is_wide else torch.float32)
        if is_wide:
            given = node_of(node.args[0])
            known = {**known, given: self.call(aten.to.dtype, known[given], torch.float64)}
        result = self.copied(node, known)
        if is_wide and operation.output == self._network.output:
            return self.call(aten.to.dtype, result, torch.float32)
        return result

    def _read_by_transform(
        self, operation: OutputTransform, planned: Planned, known: dict[fx.Node, fx.Node]
    ) -> dict[fx.Node, fx.Node]:
        """What an output transform reads: its products, its matrix, and the bias that its integers stand for."""
        assert planned.tiles is not None
        is_wide = max(operation.accumulator_bounds(self._bounds_of_products(operation))) >= EXACT
        if planned.tiles.bias is not None:
            bias = torch.tensor(operation.bias, dtype=torch.float64) * exp2(
                -operation.lengths(self.coding(operation.source))
            )
            set_parameter(self.made, planned.tiles.bias, bias.to(torch.float64 if is_wide else torch.float32))
        if not is_wide:
            return known
        nodes = [self._by_name[node.name] for node in planned.nodes]
        stored = [operand for node in nodes for operand in node.all_input_nodes if operand.op == "get_attr"]
        given = {**known, **{node: self.graph.get_attr(str(node.target)) for node in stored}}
        return {node: self.call(aten.to.dtype, made, torch.float64) for node, made in given.items()}

    def _bounds_of_products(self, operation: OutputTransform) -> list[int]:
        layer = self._network.layer_behind(operation.source)
        return [int(bound) for bound in layer.accumulator_bounds(self.coding(layer.source))]

    def set_parameters(self, node: fx.Node, operation: Convolution, kind: torch.dtype) -> None:
        """Give a layer the numbers that its integers stand for."""
        source = self._network.values[operation.source].coding
        weight, bias = dequantized_weight(operation, source), operation.bias.double() * exp2(-operation.lengths)
        for place, numbers in ((1, weight.flatten(1) if operation.is_linear else weight), (2, bias)):
            set_parameter(self.made, str(node_of(node.args[place]).target), numbers.to(kind))

    def coding(self, name: str) -> Coding:
        """How a tensor is stored."""
        return self._network.values[name].coding

    def _sum(self, node: fx.Node, operation: AveragePool, known: dict[fx.Node, fx.Node]) -> fx.Node:
        """Sums times the multiplier in double precision: what the integers do."""
        shape = self._network.values[operation.source].shape
        kernel, stride, padding, _ = pool_window(node, shape)
        wide = self.call(aten.to.dtype, known[node_of(node.args[0])], torch.float64)
        if node.target is aten.avg_pool2d.default:
            sums = self.call(aten.avg_pool2d.default, wide, [*kernel], [*stride], [*padding], False, True, 1)
        else:
            keeps = node.args[2] if node.target is aten.mean.dim else True
            sums = self.call(aten.sum.dim_IntList, wide, [2, 3], keeps)
        # 1/divisor is nearly multiplier / 2**shift; out_shift has that shift, and the lengths.
        given, made = (self._network.values[name].coding.lengths[0] for name in (operation.source, operation.output))
        shift = operation.out_shift[0] - given + made
        return self.call(aten.mul.Tensor, sums, operation.multiplier * 2.0**-shift)

    def _resized(self, node: fx.Node, operation: BilinearResize, known: dict[fx.Node, fx.Node]) -> fx.Node:
        """Means by the weights that the integers have: by the operator itself where it has the same, else by two matrices."""
        source, output = (self._network.values[name] for name in (operation.source, operation.output))
        given = node_of(node.args[0])
        is_wide = operation.accumulator_bound(source.coding) >= EXACT
        image = self.call(aten.to.dtype, known[given], torch.float64) if is_wide else known[given]
        if all(axis.is_exact for axis in sampling_of(node, source.shape, output.shape)):
            return self.copied(node, {**known, given: image})
        kind = torch.float64 if is_wide else torch.float32
        rows = _matrix(operation.rows, source.shape[1]).to(kind)
        columns = _matrix(operation.columns, source.shape[2]).to(kind)
        names = [f"{operation.output}_{axis}" for axis in ("rows", "columns")]
        for name, matrix in zip(names, (rows, columns.T.contiguous()), strict=True):
            self.made.module.register_buffer(name, matrix)
        made = self.call(aten.matmul.default, self.graph.get_attr(names[0]), image)
        return self.call(aten.matmul.default, made, self.graph.get_attr(names[1]))

    def _add_rounded(self, node: fx.Node, name: str) -> None:
        """Round the numbers that `node` gives to the coding of `name`, as single-precision numbers."""
        coding = self._network.values[name].coding
        dimensions = self._ranks[name]
        scaled = self.call(aten.mul.Tensor, node, self._scale(f"{name}_scale", coding, 1, dimensions))
        raised = self.call(aten.add.Tensor, scaled, 0.5)
        floored = self.call(aten.floor.default, raised)
        kept = self.call(aten.clamp.default, floored, float(coding.lowest), float(coding.highest))
        single = self.call(aten.to.dtype, kept, torch.float32)
        self._stored[name] = self.call(aten.mul.Tensor, single, self._scale(f"{name}_step", coding, -1, dimensions))

    def _scale(self, name: str, coding: Coding, sign: int, dimensions: int) -> fx.Node | float:
        """`2**(sign * length)`: a number where all channels have one length, else a stored tensor."""
        if coding.is_uniform:
            return 2.0 ** (sign * coding.lengths[0])
        scales = exp2(sign * along_channels(coding.lengths_tensor(), dimensions)).float()
        self.made.module.register_buffer(name, scales)
        return self.graph.get_attr(name)

    def _add_tail(self, logits: str) -> None:
        known = {self._by_name[logits]: self._stored[logits]}
        reached = {self._by_name[logits]}
        for node in self._old.nodes:
            if node not in reached and not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
                known[node] = self.copied(node, known)

    def copied(self, node: fx.Node, known: dict[fx.Node, fx.Node]) -> fx.Node:
        """The node in the new graph, reading what is known of its operands there."""

        def new(operand: fx.Node) -> fx.Node:
            if operand in known:
                return known[operand]
            return self.graph.get_attr(str(operand.target))

        return self.graph.node_copy(node, new)

    def call(self, function: Callable[..., Any], *arguments: Any) -> fx.Node:
        """A new node at the end."""
        return self.graph.call_function(function, arguments)


_AS_THEY_ARE = 32  # bits of accumulators, which nothing rounds


def _matrix(taps: tuple[Tap, ...], size: int) -> Tensor:
    """What takes `size` numbers to the means that the taps are, float64 [taps, size]."""
    matrix = torch.zeros(len(taps), size, dtype=torch.float64)
    for row, (place, weight) in zip(matrix, taps, strict=True):
        row[place] = (ONE - weight) / ONE
        if weight:
            row[place + 1] = weight / ONE
    return matrix


def node_of(argument: Any) -> fx.Node:
    """An argument that is known to be a node."""
    assert isinstance(argument, fx.Node)
    return argument
