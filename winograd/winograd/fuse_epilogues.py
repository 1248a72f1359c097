"""Additions and ReLUs after Winograd convolutions of a graph, moved into the calls, which then write each output once.

    conv2d -> add(residual) -> relu        conv2d -> relu        conv2d -> add(residual)

become one call, where nothing else reads what stands between. The call takes the place of the last of them, because what is
added may be computed after the convolution.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
CONV2D = torch.ops.winograd.conv2d.default
ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)
RELUS = (aten.relu.default, aten.relu_.default)
GUARDS = "_guards_fn"  # the module in which torch.export checks inputs


@dataclass(frozen=True)
class Conv2dCall:
    """The arguments of a node that calls `winograd::conv2d`, however they were given."""

    input: fx.Node
    weights: fx.Node
    positions: tuple[int, ...]
    m: int
    padding: tuple[Any, ...]  # numbers, or nodes of numbers that are known when the graph runs
    bias: fx.Node | None
    residual: fx.Node | None
    activation: str
    groups: int

    @classmethod
    def of(cls, node: fx.Node) -> "Conv2dCall":
        # torch.export leaves out what has its default.
        given: dict[str, Any] = {one.name: one.default_value for one in CONV2D._schema.arguments}
        given |= dict(zip(given, node.args, strict=False)) | node.kwargs
        given["positions"], given["padding"] = tuple(given["positions"]), tuple(given["padding"])
        return cls(**given)

    def args(self) -> tuple[Any, ...]:
        """All arguments by position."""
        return (
            self.input, self.weights, list(self.positions), self.m, list(self.padding),
            self.bias, self.residual, self.activation, self.groups,
        )  # fmt: skip


def fuse_epilogues(graph: fx.Graph) -> None:
    """Fuse wherever a convolution is followed by what its call can do; all calls then have all arguments by position.

    Dead code must be gone before, for it reads values too.
    """
    for node in list(graph.nodes):
        if node.target is CONV2D:
            node.args, node.kwargs = Conv2dCall.of(node).args(), {}
            _fuse(node)


def _fuse(node: fx.Node) -> None:
    call, followers = Conv2dCall.of(node), list[fx.Node]()
    if call.residual is None and call.activation == "none":
        addition = _only_reader(node)
        residual = None if addition is None else _added_to(node, addition)
        if addition is not None and residual is not None:
            call = replace(call, residual=residual)
            followers.append(addition)
    if call.activation == "none":
        relu = _only_reader(followers[-1] if followers else node)
        if relu is not None and relu.target in RELUS:
            call = replace(call, activation="relu")
            followers.append(relu)
    if not followers or any(may_write(between) for between in _between(node, followers)):
        return
    last = followers[-1]
    with node.graph.inserting_before(last):
        fused = node.graph.call_function(CONV2D, call.args())
    fused.meta = dict(last.meta)
    last.replace_all_uses_with(fused)
    for gone in (*reversed(followers), node):
        node.graph.erase_node(gone)


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added_to(node: fx.Node, addition: fx.Node) -> fx.Node | None:
    """What `addition` adds to the output of `node`, if it is a tensor of the same shape and type."""
    if addition.target not in ADDITIONS or len(addition.args) != 2 or addition.kwargs.get("alpha", 1) != 1:
        return None
    first, second = addition.args
    if addition.target is aten.add_.Tensor and first is not node:
        return None  # it writes into a tensor that others may read
    other = second if first is node else first
    return other if isinstance(other, fx.Node) and other is not node and _are_alike(node, other) else None


def _are_alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether nothing is broadcast or promoted when both are added, as far as is known of them."""
    # Here, because it brings sympy, which takes a quarter of a second.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    x, y = a.meta.get("val"), b.meta.get("val")
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return False
    if (x.dtype, x.device, x.dim()) != (y.dtype, y.device, y.dim()):
        return False
    return all(statically_known_true(p == q) for p, q in zip(x.shape, y.shape, strict=True))


def _between(node: fx.Node, followers: list[fx.Node]) -> Iterator[fx.Node]:
    """The other nodes that run after `node` and before the last of those that it takes in."""
    between = node.next
    while between is not followers[-1]:
        if between not in followers:
            yield between
        between = between.next


def may_write(node: fx.Node) -> bool:
    """Whether a node may change a tensor that was there before, as far as is known of it."""
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    if node.op == "call_function":
        return getattr(node.target, "__module__", None) != "_operator"  # arithmetic on sizes
    return node.op == "call_method" or (node.op == "call_module" and node.target != GUARDS)
