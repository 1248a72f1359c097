"""A simulation whose weights and biases are stored as integers, so that its `.pt2` file is really smaller.

Where a layer reads a weight, the graph then holds the integers, and what makes numbers of them: powers of two, exact in
single precision. Weights of up to four bits share bytes, in an order that standard operators can take apart: `packed_codes`
says in which, for files of the other formats too.
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

# Widths in a .pt2 file. 3 bits aren't among them: such a file is deflated, which makes 2.6 to 3 bits a weight of two in a byte,
# whose frequent pairs it can shorten, and hardly anything of weights that lie across bytes.
_PACKED_BITS = (2, 4)
_BYTE_BITS = 8


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
        if bits > max(_PACKED_BITS):
            stored = integers.to(_smallest_type(bits)).reshape(numbers.shape)
            return self._call(aten.to.dtype, self._store(stored, f"{name}_integers"), dtype)
        bits = next(packed for packed in _PACKED_BITS if packed >= bits)
        stored = packed_codes(integers.flatten(), bits)
        codes = self._codes(self._store(stored, f"{name}_codes"), bits)
        padded = codes_of_word(bits) * stored.numel()
        if padded > integers.numel():
            codes = self._call(aten.reshape.default, codes, [padded])
            codes = self._call(aten.slice.Tensor, codes, 0, 0, integers.numel(), 1)
        shaped = self._call(aten.reshape.default, codes, [*numbers.shape])
        signed = self._call(aten.sub.Tensor, shaped, float(1 << (bits - 1)))
        return signed if dtype == torch.float32 else self._call(aten.to.dtype, signed, dtype)

    def _codes(self, stored: fx.Node, bits: int) -> fx.Node:
        """Codes [codes, M] of bytes [1, M]: code i is byte >> (bits * i), without the bits of byte >> (bits * (i + 1)).

        No factor has more than 8 bits, so products are exact even on hardware that rounds factors to bfloat16 or TF32.
        """
        count = codes_of_word(bits)
        shift = self._shared(exp2(-bits * torch.arange(count)).float()[:, None], f"shifts_of_{bits}_bits")
        above = torch.diag(torch.full((count - 1,), float(1 << bits)), 1)
        without = self._shared(torch.eye(count) - above, f"differences_of_{bits}_bits")
        numbers = self._call(aten.to.dtype, stored, torch.float32)
        shifted = self._call(aten.floor.default, self._call(aten.matmul.default, shift, numbers))
        return self._call(aten.matmul.default, without, shifted)

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

    def _shared(self, tensor: Tensor, name: str) -> fx.Node:
        """A tensor that layers share: it is stored once."""
        if name not in dict(self._module.named_buffers(recurse=False)):
            return self._store(tensor, name)
        with self._module.graph.inserting_before(self._before):
            return self._module.graph.get_attr(name)

    def _call(self, function: object, *arguments: object) -> fx.Node:
        with self._module.graph.inserting_before(self._before):
            return self._module.graph.call_function(function, arguments)  # type: ignore[arg-type]  # an operator


def _smallest_type(bits: int) -> torch.dtype:
    return torch.int8 if bits <= 8 else torch.int16 if bits <= 16 else torch.int32


# ---- Several in a byte ----------------------------------------------------------------------------------------------


def packed_codes(integers: Tensor, bits: int) -> Tensor:
    """Rows [..., N] of signed integers of so many bits as bytes [..., B, M]: M words of B bytes, the lowest byte first.

    A word is the fewest bytes that codes fill, a code an integer without its sign, `integer + 2**(bits - 1)`. The lowest bits of
    the words hold a row's first part, the next bits its second part, and so on, so that parts unpack into consecutive memory:

        2 bits:  byte i = code[i] | code[i + M] << 2 | code[i + 2M] << 4 | code[i + 3M] << 6
        3 bits:  eight codes in three bytes
    """
    codes, word_bytes = codes_of_word(bits), bytes_of_word(bits)
    length = math.ceil(integers.shape[-1] / codes)
    padded = integers.new_zeros(*integers.shape[:-1], codes * length)
    padded[..., : integers.shape[-1]] = integers
    parts = (padded + (1 << (bits - 1))).reshape(*integers.shape[:-1], codes, length)
    words = (parts << (bits * torch.arange(codes))[:, None]).sum(-2, keepdim=True)
    return ((words >> (_BYTE_BITS * torch.arange(word_bytes))[:, None]) & 0xFF).to(torch.uint8)


def codes_of_word(bits: int) -> int:
    """How many codes of so many bits fill whole bytes."""
    return math.lcm(bits, _BYTE_BITS) // bits


def bytes_of_word(bits: int) -> int:
    """How many bytes these fill."""
    return math.lcm(bits, _BYTE_BITS) // _BYTE_BITS


def packed_bytes(count: int, bits: int) -> int:
    """How many bytes a row of `count` codes takes."""
    return math.ceil(count / codes_of_word(bits)) * bytes_of_word(bits)
