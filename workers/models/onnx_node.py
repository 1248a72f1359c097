"""A node of an ONNX graph while it is being read: inputs as values of the graph under construction, attributes as Python values.

Exporters compute shapes inside the graph (Shape, Gather, Unsqueeze, Concat, Reshape). Such a vector of sizes is a `Sizes` here:
numbers where sizes are fixed, nodes where they vary. Once all are numbers it is an ordinary constant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from workers.models.graph_builder import Constant, GraphBuilder, Size, Value


@dataclass(frozen=True)
class Sizes:
    """A vector (or, if `scalar`, one) of whole numbers of which at least one varies with the input.

    A file may cast it to a floating-point type (`is_float`), in which it can only meet a tensor.
    """

    items: tuple[Size, ...]
    scalar: bool = False
    is_float: bool = False


Operand = Value | Sizes
Result = Operand | list[Operand]


def sizes(items: Sequence[Size], *, scalar: bool = False) -> Operand:
    """`items` as a constant if all are known, else as `Sizes`."""
    if any(isinstance(item, fx.Node) for item in items):
        return Sizes(tuple(items), scalar)
    numbers = [int(item) for item in items if not isinstance(item, fx.Node)]
    tensor = torch.tensor(numbers[0] if scalar else numbers, dtype=torch.int64)
    return Constant(tensor, "sizes", trainable=False)


@dataclass(frozen=True)
class OnnxNode:
    builder: GraphBuilder
    operator: str
    name: str
    layer: str  # what a layer made of this node is called if its weight's name says nothing
    opset: int
    operands: tuple[Operand | None, ...]
    attributes: dict[str, Any]  # Any: numbers, strings, tensors or lists, checked where they are taken
    results: int

    def has(self, place: int) -> bool:
        return place < len(self.operands) and self.operands[place] is not None

    def operand(self, place: int) -> Operand:
        found = self.operand_or_float_size(place)
        if isinstance(found, Sizes) and found.is_float:
            raise self.builder.refuse("a size that varies with the input is used like a tensor, which is not supported")
        return found

    def operand_or_float_size(self, place: int) -> Operand:
        """Any input; other methods refuse sizes that were cast to a floating-point type."""
        found = self.operands[place] if self.has(place) else None
        if found is None:
            raise self.builder.refuse(f"its input {place} is missing")
        return found

    def value(self, place: int) -> Value:
        """An input that is a tensor."""
        found = self.operand(place)
        if isinstance(found, Sizes):
            raise self.builder.refuse("a size that varies with the input is used like a tensor, which is not supported")
        return found

    def optional(self, place: int) -> Value | None:
        return self.value(place) if self.has(place) else None

    def constant(self, place: int, what: str) -> Constant:
        """An input that is known while reading."""
        found = self.operand(place)
        if not isinstance(found, Constant):
            raise self.builder.refuse(
                f"its {what} is computed while the network runs; Winnow needs it stored in the file"
            )
        return found

    def numbers(self, place: int, what: str) -> list[int]:
        """An input that is a list of whole numbers."""
        tensor = self.constant(place, what).tensor
        if tensor.is_floating_point() or tensor.dim() > 1 or tensor.numel() > 64:
            raise self.builder.refuse(f"its {what} is no list of whole numbers")
        return [int(number) for number in tensor.reshape(-1).tolist()]

    def sizes(self, place: int, what: str) -> list[Size]:
        """An input that is a list of sizes, which may vary."""
        found = self.operand(place)
        return list(found.items) if isinstance(found, Sizes) else [*self.numbers(place, what)]

    def scalar(self, place: int, what: str) -> float:
        """An input that is one number."""
        tensor = self.constant(place, what).tensor
        if tensor.numel() != 1:
            raise self.builder.refuse(f"its {what} is not one number")
        return float(tensor.reshape(()).item())

    def integer(self, attribute: str, default: int) -> int:
        return int(self._attribute(attribute, default, int))

    def number(self, attribute: str, default: float) -> float:
        return float(self._attribute(attribute, default, float))

    def word(self, attribute: str, default: str) -> str:
        return str(self._attribute(attribute, default, str))

    def integers(self, attribute: str, default: Sequence[int]) -> list[int]:
        found = self._attribute(attribute, list(default), list)
        if not all(isinstance(item, int) for item in found):
            raise self.builder.refuse(f"its attribute {attribute} is no list of whole numbers")
        return list(found)

    def list_from(self, attribute: str, place: int) -> list[int] | None:
        """A list of whole numbers that older versions have as an attribute and newer ones as an input."""
        if attribute in self.attributes:
            return self.integers(attribute, ())
        return self.numbers(place, attribute) if self.has(place) else None

    def _attribute(self, name: str, default: Any, kind: type) -> Any:  # Any: of type `kind`
        found = self.attributes.get(name, default)
        if not isinstance(found, kind):
            raise self.builder.refuse(f"its attribute {name} is not of type {kind.__name__}")
        return found


Handler = Callable[[OnnxNode], Result]
