"""An integer network as a file of Winnow's own: JSON for what it is made of, NumPy arrays for its tensors; nothing is pickled.

It is what a checkpoint keeps and what the process that verifies delivered files reads; the same network gives the same bytes.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.fixed_point import network as parts
from workers.fixed_point.coding import Coding
from workers.fixed_point.network import IntegerNetwork, Operation, Value

_OPERATIONS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        parts.Convolution, parts.InputTransform, parts.OutputTransform, parts.Addition, parts.Multiplication, parts.MaxPool,
        parts.AveragePool, parts.Table, parts.Requantization, parts.Concatenation, parts.Slice, parts.Padding,
        parts.NearestUpsample, parts.BilinearResize, parts.Reshape, parts.Permutation,
    )
}  # fmt: skip
_TENSOR = "tensor"  # stands for a tensor by its number


def save_network(network: IntegerNetwork, path: Path) -> None:
    """Write `network` to `path` (an .npz file)."""
    tensors: list[Tensor] = []
    described = {
        "input": network.input,
        "output": network.output,
        "values": [
            {
                "name": v.name,
                "shape": v.shape,
                "bits": v.coding.bits,
                "signed": v.coding.signed,
                "lengths": v.coding.lengths,
            }
            for v in network.values.values()
        ],
        "operations": [
            {"kind": type(each).__name__, **{f.name: _plain(getattr(each, f.name), tensors) for f in fields(each)}}
            for each in network.operations
        ],
    }
    arrays: dict[str, Any] = {f"{_TENSOR}_{number}": tensor.numpy() for number, tensor in enumerate(tensors)}
    text = np.frombuffer(json.dumps(described, separators=(",", ":")).encode(), np.uint8)
    with path.open("wb") as stream:
        np.savez(stream, network=text, **arrays)


def load_network(path: Path) -> IntegerNetwork:
    """The network that `save_network` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        described: dict[str, Any] = json.loads(stored["network"].tobytes())
        values = {}
        for value in described["values"]:
            channels, height, width = value["shape"]
            coding = Coding(value["bits"], value["signed"], tuple(value["lengths"]))
            values[value["name"]] = Value(value["name"], (channels, height, width), coding)

        def read(item: Any) -> Any:
            if isinstance(item, dict):
                return torch.from_numpy(stored[f"{_TENSOR}_{item[_TENSOR]}"])
            return tuple(read(each) for each in item) if isinstance(item, list) else item

        operations: list[Operation] = []
        for operation in described["operations"]:
            kind = _OPERATIONS[operation.pop("kind")]
            operations.append(kind(**{name: read(item) for name, item in operation.items()}))
    return IntegerNetwork(described["input"], described["output"], values, tuple(operations))


def _plain(item: Any, tensors: list[Tensor]) -> Any:
    """Plain JSON; tensors go to the list."""
    if isinstance(item, Tensor):
        tensors.append(item)
        return {_TENSOR: len(tensors) - 1}
    return [_plain(each, tensors) for each in item] if isinstance(item, tuple) else item
