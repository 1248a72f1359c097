"""A simulation whose weights and biases are stored as integers, so that its `.pt2` file is really smaller.

Where a layer reads a weight, the graph then holds the integers, and what makes numbers of them: powers of two, exact in
single precision. Weights of four bits lie two to a byte, in an order that standard operators can take apart.
"""

import math

import torch
from torch import Tensor, fx

from workers.fixed_point.coding import exp2
from workers.fixed_point.network import Convolution, IntegerNetwork
from workers.models.graph import (
    LAYER_OPERATORS,
    ModelGraph,
    aten,
    copy_graph,
    drop_unread_parameters,
    layer_name,
    parameter,
)

_NIBBLE = 16
_HALF_NIBBLE = 8


def with_stored_integers(graph: ModelGraph, network: IntegerNetwork) -> ModelGraph:
    """A copy of `graph`, the simulation of `network`, that gives the same numbers from stored integers."""
    packed = copy_graph(graph)
    by_layer = {operation.layer: operation for operation in network.convolutions}
    for node in list(packed.module.graph.nodes):
        if node.target not in LAYER_OPERATORS:
            continue
        weight, bias = node.args[1:3]
        operation = by_layer.get(layer_name(str(weight.target)))
        if operation is None:
            continue
        packing = _Packing(packed, node)
        node.update_arg(
            1, packing.weight(operation, network, parameter(packed, str(weight.target)), str(weight.target))
        )
        node.update_arg(2, packing.bias(operation, parameter(packed, str(bias.target)), str(bias.target)))
    drop_unread_parameters(packed.module)
    packed.module.recompile()
    return packed


class _Packing:
    """Adds nodes before a layer."""

    def __init__(self, graph: ModelGraph, before: fx.Node) -> None:
        self._module = graph.module
        self._before = before

    def weight(self, operation: Convolution, network: IntegerNetwork, numbers: Tensor, name: str) -> fx.Node:
        """A weight is its integer, by a power of two for its output and one for its input: FL_b - FL_in is its length."""
        stored = self._unpacked(operation.aligned_weight, operation.stored_bits, numbers, name)
        trailing = [1] * (numbers.dim() - 2)
        outputs = exp2(-operation.lengths).reshape(-1, 1, *trailing)
        scaled = self._scaled(stored, outputs, f"{name}_step")
        of_inputs = exp2(network.values[operation.source].coding.lengths_tensor()).reshape(operation.groups, -1)
        if operation.groups > 1:  # each group reads channels of its own
            of_inputs = of_inputs.repeat_interleave(len(numbers) // operation.groups, dim=0)
        return self._scaled(scaled, of_inputs.reshape(*of_inputs.shape, *trailing), f"{name}_input_scale")

    def bias(self, operation: Convolution, numbers: Tensor, name: str) -> fx.Node:
        wide = self._call(aten.to.dtype, self._store(operation.bias.int(), f"{name}_integers"), numbers.dtype)
        return self._scaled(wide, exp2(-operation.lengths), f"{name}_step")

    def _unpacked(self, integers: Tensor, bits: int, numbers: Tensor, name: str) -> fx.Node:
        """Nodes that give the integers of a weight in the type and shape of its numbers."""
        dtype = numbers.dtype
        if bits > 4:
            stored = integers.to(_smallest_type(bits)).reshape(numbers.shape)
            return self._call(aten.to.dtype, self._store(stored, f"{name}_integers"), dtype)
        flat = (integers.flatten() + _HALF_NIBBLE).to(torch.uint8)
        half = math.ceil(len(flat) / 2)
        high = torch.cat([flat[half:], flat.new_zeros(2 * half - len(flat))])
        both = self._call(aten.to.dtype, self._store(flat[:half] + _NIBBLE * high, f"{name}_nibbles"), dtype)
        upper = self._call(aten.floor.default, self._call(aten.mul.Tensor, both, 1 / _NIBBLE))
        lower = self._call(aten.sub.Tensor, both, self._call(aten.mul.Tensor, upper, float(_NIBBLE)))
        joined = self._call(aten.cat.default, [lower, upper], 0)
        if 2 * half > len(flat):
            joined = self._call(aten.slice.Tensor, joined, 0, 0, len(flat), 1)
        shaped = self._call(aten.reshape.default, joined, [*numbers.shape])
        return self._call(aten.sub.Tensor, shaped, float(_HALF_NIBBLE))

    def _scaled(self, node: fx.Node, scales: Tensor, name: str) -> fx.Node:
        if bool((scales == scales.flatten()[0]).all()):
            factor = float(scales.flatten()[0])
            return node if factor == 1.0 else self._call(aten.mul.Tensor, node, factor)
        return self._call(aten.mul.Tensor, node, self._store(scales.float(), name))

    def _store(self, tensor: Tensor, name: str) -> fx.Node:
        owner, _, leaf = name.rpartition(".")
        self._module.get_submodule(owner).register_buffer(leaf, tensor)
        with self._module.graph.inserting_before(self._before):
            return self._module.graph.get_attr(name)

    def _call(self, function: object, *arguments: object) -> fx.Node:
        with self._module.graph.inserting_before(self._before):
            return self._module.graph.call_function(function, arguments)  # type: ignore[arg-type]  # an operator


def _smallest_type(bits: int) -> torch.dtype:
    return torch.int8 if bits <= 8 else torch.int16 if bits <= 16 else torch.int32
