"""An ONNX graph being written: its nodes, its stored tensors, and what every value is called."""

from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, fx

ELEMENT_TYPES: dict[torch.dtype, int] = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.int8: onnx.TensorProto.INT8,
    torch.uint8: onnx.TensorProto.UINT8,
    torch.int16: onnx.TensorProto.INT16,
    torch.int32: onnx.TensorProto.INT32,
    torch.int64: onnx.TensorProto.INT64,
    torch.bool: onnx.TensorProto.BOOL,
}

PACKED = "packed"  # what stands between the stored form of a weight and the weight itself


class OnnxEmitter:
    """Collects nodes and tensors. `shapes` holds what every fx node returns: tensors without data, or numbers."""

    def __init__(self, shapes: dict[str, Any]) -> None:  # Any: tensors and numbers
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, Tensor] = {}
        self._shapes = shapes
        self._names: dict[fx.Node, str] = {}
        self._taken: set[str] = set()
        self._wanted: dict[fx.Node, str] = {}
        self._constants: dict[tuple[torch.dtype, tuple[int, ...], bytes], str] = {}

    def reserve(self, name: str) -> None:
        """Keep `name` for the surface of the network."""
        self._taken.add(name)

    def bind(self, node: fx.Node, name: str) -> None:
        self._names[node] = name

    def call(self, node: fx.Node, name: str) -> None:
        """Decide, before it is emitted, what the result of `node` will be called."""
        self._wanted[node] = name

    def name_of(self, node: fx.Node) -> str:
        return self._names[node]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a tensor for one image."""
        return tuple(self._shapes[node.name].shape)

    def dtype(self, node: fx.Node) -> torch.dtype:
        found = self._shapes[node.name].dtype
        assert isinstance(found, torch.dtype)
        return found

    def is_size(self, node: fx.Node) -> bool:
        """Whether the node computes a size, which is a vector of one number in ONNX."""
        return isinstance(self._shapes[node.name], int)

    def add(self, operator: str, inputs: Sequence[str], *, result: str | None = None, **attributes: Any) -> str:
        """Add a node with one result and return the result's name."""
        name = result or self.unused(operator.lower())
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def add_split(self, value: str, sizes: Sequence[int]) -> list[str]:
        """Cut a vector into parts and return their names."""
        parts = [self.unused(PACKED) for _ in sizes]
        self.nodes.append(helper.make_node("Split", [value, self.constant(list(sizes))], parts, name=parts[0], axis=0))
        return parts

    def finish(self, node: fx.Node, operator: str, inputs: Sequence[str], **attributes: Any) -> None:
        """Add the node that computes what `node` does."""
        name = self._wanted.get(node) or self.unused(node.name)
        self._names[node] = self.add(operator, inputs, result=name, **attributes)

    def parameter(self, node: fx.Node, name: str, tensor: Tensor) -> None:
        """A stored tensor under the uploader's name. One used by several nodes is stored once."""
        if name not in self.tensors:
            self._taken.add(name)
            self.tensors[name] = tensor.detach()
        self._names[node] = name

    def stored(self, node: fx.Node) -> Tensor:
        """The stored tensor that `node` reads."""
        return self.tensors[self._names[node]]

    def constant(self, value: object, dtype: torch.dtype = torch.int64) -> str:
        """A stored tensor that has no name in the network; equal ones are stored once."""
        tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)
        key = (tensor.dtype, tuple(tensor.shape), tensor_bytes(tensor))
        if key not in self._constants:
            self._constants[key] = self.unused(f"const_{len(self._constants)}")
            self.tensors[self._constants[key]] = tensor
        return self._constants[key]

    def vector(self, sizes: Sequence[object]) -> str:
        """A list of sizes: stored if all are numbers, else put together while the network runs."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(list(sizes))
        parts = [self.name_of(size) if isinstance(size, fx.Node) else self.constant([size]) for size in sizes]
        return self.add("Concat", parts, axis=0)

    def used_tensors(self) -> list[str]:
        used = {name for node in self.nodes for name in node.input}
        return [name for name in self.tensors if name in used]

    def tensor_proto(self, name: str) -> onnx.TensorProto:
        tensor = self.tensors[name]
        return helper.make_tensor(name, ELEMENT_TYPES[tensor.dtype], list(tensor.shape), tensor_bytes(tensor), raw=True)

    def unused(self, name: str) -> str:
        """`name`, or something like it that nothing is called yet."""
        candidate, count = name, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate


def tensor_bytes(tensor: Tensor) -> bytes:
    """The elements in row-major order, little-endian."""
    flat = tensor.detach().cpu().contiguous()
    return flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b""
