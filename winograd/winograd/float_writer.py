"""What a float program is written with: images by the nodes that give them, constants, and operations as they are put one by one.

`write_float_program.py` has the rules, operator by operator. Only float32, on the CPU, on images whose size doesn't change from
call to call.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from winograd.float_program import FloatProgram, Operation, Pair, Shape, Slice

aten = torch.ops.aten

Given = dict[str, Any]  # the arguments of a node by the names that its schema has for them
TRANSPOSITIONS = (aten.t.default, aten.permute.default)  # of matrices of weights


class NoFloatProgram(ValueError):
    """The graph is more than operations of a float program can say; the message is the reason."""


@dataclass(frozen=True)
class Image:
    """What a node gives: a value, in the same order, as the graph sees it."""

    value: int
    seen: tuple[int, ...]  # the shape without N
    is_alone: bool  # whether nothing reads the value but what reads this node, which is one


class Writer:
    def __init__(self, held: Mapping[str, Any]) -> None:
        self.held = held
        self.images: dict[fx.Node, Image] = {}
        self.values: list[Shape] = []
        self.operations: dict[int, Operation] = {}  # by what they write, in the order in which they run
        self.batch: int | torch.SymInt | None = None

    def program(self, output: fx.Node) -> tuple[FloatProgram, tuple[int, ...]]:
        nodes = output.all_input_nodes
        if len(nodes) != 1 or nodes[0] not in self.images:
            raise NoFloatProgram(f"it has {len(nodes)} outputs that are computed, where one image is what it can be")
        image = self.images[nodes[0]]
        return FloatProgram(0, image.value, tuple(self.values), tuple(self.operations.values())), image.seen

    # ---- What goes in -----------------------------------------------------------------------------------------------------

    def take_input(self, node: fx.Node) -> None:
        if self.values:
            raise NoFloatProgram("it has more than one input")
        x = tensor_of(node)
        if x.dim() != 4 or not all(isinstance(size, int) for size in x.shape[1:]):
            raise NoFloatProgram(
                f"its input is {list(x.shape)}, where [N, C, H, W] with one C, H and W is what it can be"
            )
        self.batch = x.shape[0]
        c, h, w = x.shape[1:]
        self.values.append((c, h, w))
        self.images[node] = Image(0, self.seen(node), is_alone=False)  # the caller has it

    def is_constant(self, node: fx.Node) -> bool:
        return node.op == "get_attr" or (node.target in TRANSPOSITIONS and self.is_constant(node.all_input_nodes[0]))

    def constant(self, node: Any, dimensions: int) -> Tensor:  # whatever an argument can be
        """The weights that a node reads, of so many dimensions."""
        if not isinstance(node, fx.Node) or not self.is_constant(node):
            raise NoFloatProgram(f"{node} is computed, where weights that never change are what it can be")
        if node.op == "get_attr":
            x = self.held[str(node.target)]
        else:
            x = self.constant(node.all_input_nodes[0], 2)
            x = x if node.target is aten.permute.default and list(node.args[1]) == [0, 1] else x.t()  # type: ignore[arg-type]
        if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() != dimensions:
            raise NoFloatProgram(f"{node.target} isn't {dimensions} dimensions of float32 on the CPU")
        return x.detach()

    def bias(self, node: Any, filters: int) -> Tensor:  # whatever an argument can be
        return torch.zeros(filters) if node is None else self.constant(node, 1)

    def image(self, node: Any) -> Image:  # whatever an argument can be
        """What a node gives, in whatever shape the graph sees it."""
        if not isinstance(node, fx.Node) or node not in self.images:
            raise NoFloatProgram(f"{node} is none of its images")
        return self.images[node]

    def whole_image(self, node: Any) -> Image:  # whatever an argument can be
        """What a node gives, [N, C, H, W]."""
        image = self.image(node)
        if image.seen != self.values[image.value]:
            raise NoFloatProgram(
                f"{node} is {['N', *image.seen]}, where [N, C, H, W] as it was computed is what it can be"
            )
        return image

    def channels(self, node: Any) -> Image:  # whatever an argument can be
        """What a node gives, [N, C, H, W] or [N, C]."""
        image = self.image(node)
        c, h, w = self.values[image.value]
        return image if image.seen == (c,) and h == w == 1 else self.whole_image(node)

    # ---- What comes out ---------------------------------------------------------------------------------------------------

    def seen(self, node: fx.Node) -> tuple[int, ...]:
        # Here, because it brings sympy, which takes a quarter of a second.
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        x = tensor_of(node)
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise NoFloatProgram(f"{node} is {x.dtype}, on {x.device}, where float32 on the CPU is what it can be")
        sizes = x.shape[1:]
        if (
            x.dim() < 2
            or not all(type(size) is int for size in sizes)
            or not statically_known_true(x.shape[0] == self.batch)
        ):
            raise NoFloatProgram(
                f"{node} is {list(x.shape)}, where sizes that don't change behind N are what it can be"
            )
        return tuple(sizes)

    def pass_on(self, node: fx.Node, image: Image) -> None:
        """The node gives the same numbers as `image` in the same order."""
        seen = self.seen(node)
        if math.prod(seen) != math.prod(image.seen):
            raise NoFloatProgram(f"{node} changes {['N', *image.seen]} into {['N', *seen]}")
        self.images[node] = Image(image.value, seen, image.is_alone and len(node.users) == 1)

    def put(self, node: fx.Node, make: Callable[[int], Operation], shape: Shape | None = None) -> None:
        """The node gives what an operation writes, which is made from the index of its value; [C, 1, 1] may be seen as [C]."""
        seen, value = self.seen(node), len(self.values)
        shape = shape or self.shape(node, seen)
        self.values.append(shape)
        self.operations[value] = make(value)
        self.images[node] = Image(value, seen, len(node.users) == 1)

    def shape(self, node: fx.Node, seen: tuple[int, ...]) -> Shape:
        c, h, w = (*seen, 1, 1) if len(seen) == 1 else seen if len(seen) == 3 else (0, 0, 0)
        if min(c, h, w) < 1:
            raise NoFloatProgram(f"{node} is {['N', *seen]}, where [N, C, H, W] or [N, C] is what it can be")
        return c, h, w

    def maker(self, image: Image) -> Operation | None:
        """What computes a value, if it may do more along the way."""
        return self.operations.get(image.value) if image.is_alone else None

    def fuse(self, node: fx.Node, image: Image, fused: Operation) -> None:
        """The node gives what now is computed in place of `image`, and at this point."""
        del self.operations[image.value]
        self.operations[image.value] = fused
        self.pass_on(node, image)

    def check_may_write(self, node: fx.Node, image: Image) -> None:
        """In place is the same as out of place, unless something else reads what is written into."""
        if writes(node) and (not image.is_alone or isinstance(self.operations.get(image.value), Slice)):
            raise NoFloatProgram(f"{name_of(node)} writes into what something else may read")


# ---- Nodes ----------------------------------------------------------------------------------------------------------------


def arguments_of(node: fx.Node) -> Given:
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    # torch.export leaves out what has its default.
    given: Given = {one.name: one.default_value for one in node.target._schema.arguments}
    return given | dict(zip(given, node.args, strict=False)) | node.kwargs


def writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


def is_size(node: fx.Node) -> bool:
    """Whether a node gives a number, which only operators that change shapes read; the shapes are known."""
    return isinstance(node.meta.get("val"), int | torch.SymInt)


def tensor_of(node: fx.Node) -> Tensor:
    x = node.meta.get("val")
    x = x[0] if isinstance(x, tuple | list) and x else x
    if not isinstance(x, Tensor):
        raise NoFloatProgram(f"{node} is no tensor whose shape is known")
    return x


def name_of(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, torch._ops.OpOverload) else node.name


def pair(sizes: int | Sequence[int]) -> Pair:
    rows, columns = (sizes, sizes) if isinstance(sizes, int) else (sizes[0], sizes[-1])
    if type(rows) is not int or type(columns) is not int:
        raise NoFloatProgram("it has sizes that are known only when it runs")
    return rows, columns
