"""From a graph to a float program: `write_float_program`, or `NoFloatProgram`, which says what in the graph is in the way.

Operators become operations one by one. Batch norms, additions and activations go into the operation before them where it can
take them (see `float_fusion.py`) and nothing else reads it; it then stands where the last of them stood, because what is added
may be computed after a convolution. Only in float32, on the CPU, on images whose size doesn't change from call to call.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from winograd import float_fusion
from winograd.float_program import (
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    FloatProgram,
    MaxPool,
    Operation,
    Padding,
    Pair,
    Scaling,
    Shape,
    Slice,
    WinogradConvolution,
)
from winograd.fuse_epilogues import CONV2D, GUARDS, Conv2dCall

aten = torch.ops.aten

Given = dict[str, Any]  # the arguments of a node by the names that its schema has for them


class NoFloatProgram(ValueError):
    """The graph is more than operations of a float program can say; the message is the reason."""


def write_float_program(graph: fx.Graph, held: Mapping[str, Any]) -> tuple[FloatProgram, tuple[int, ...]]:
    """Return what a graph of ATen operators and `winograd::conv2d` computes, and the shape of its output without N.

    `held` are the tensors that the graph reads, by name. Dead code must be gone before, for it reads values too. Raises
    NoFloatProgram.
    """
    writer = _Writer(held)
    for node in graph.nodes:
        writer.write(node)
    return writer.program(graph.output_node())


@dataclass(frozen=True)
class _Image:
    """What a node gives: a value, in the same order, as the graph sees it."""

    value: int
    seen: tuple[int, ...]  # the shape without N
    is_alone: bool  # whether nothing reads the value but what reads this node, which is one


class _Writer:
    def __init__(self, held: Mapping[str, Any]) -> None:
        self.held = held
        self.images: dict[fx.Node, _Image] = {}
        self.values: list[Shape] = []
        self.operations: dict[int, Operation] = {}  # by what they write, in the order in which they run
        self.batch: int | torch.SymInt | None = None

    def program(self, output: fx.Node) -> tuple[FloatProgram, tuple[int, ...]]:
        nodes = output.all_input_nodes
        if len(nodes) != 1 or nodes[0] not in self.images:
            raise NoFloatProgram(f"it has {len(nodes)} outputs that are computed, where one image is what it can be")
        image = self.images[nodes[0]]
        return FloatProgram(0, image.value, tuple(self.values), tuple(self.operations.values())), image.seen

    def write(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.take_input(node)
        elif node.op == "call_function" and not _is_size(node) and not self.is_constant(node):
            rule = RULES.get(node.target)
            if rule is None:
                raise NoFloatProgram(f"{_name_of(node)} isn't among the operators of one call")
            rule(self, node, _arguments_of(node))
        elif node.op not in ("call_function", "get_attr", "output") and node.target != GUARDS:
            raise NoFloatProgram(f"it calls {node.target}")

    # ---- What goes in -----------------------------------------------------------------------------------------------------

    def take_input(self, node: fx.Node) -> None:
        if self.values:
            raise NoFloatProgram("it has more than one input")
        x = _tensor_of(node)
        if x.dim() != 4 or not all(isinstance(size, int) for size in x.shape[1:]):
            raise NoFloatProgram(
                f"its input is {list(x.shape)}, where [N, C, H, W] with one C, H and W is what it can be"
            )
        self.batch = x.shape[0]
        c, h, w = x.shape[1:]
        self.values.append((c, h, w))
        self.images[node] = _Image(0, self.seen(node), is_alone=False)  # the caller has it

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

    def image(self, node: Any) -> _Image:  # whatever an argument can be
        """What a node gives, in whatever shape the graph sees it."""
        if not isinstance(node, fx.Node) or node not in self.images:
            raise NoFloatProgram(f"{node} is none of its images")
        return self.images[node]

    def whole_image(self, node: Any) -> _Image:  # whatever an argument can be
        """What a node gives, [N, C, H, W]."""
        image = self.image(node)
        if image.seen != self.values[image.value]:
            raise NoFloatProgram(
                f"{node} is {['N', *image.seen]}, where [N, C, H, W] as it was computed is what it can be"
            )
        return image

    def channels(self, node: Any) -> _Image:  # whatever an argument can be
        """What a node gives, [N, C, H, W] or [N, C]."""
        image = self.image(node)
        c, h, w = self.values[image.value]
        return image if image.seen == (c,) and h == w == 1 else self.whole_image(node)

    # ---- What comes out ---------------------------------------------------------------------------------------------------

    def seen(self, node: fx.Node) -> tuple[int, ...]:
        # Here, because it brings sympy, which takes a quarter of a second.
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        x = _tensor_of(node)
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

    def pass_on(self, node: fx.Node, image: _Image) -> None:
        """The node gives the same numbers as `image` in the same order."""
        seen = self.seen(node)
        if math.prod(seen) != math.prod(image.seen):
            raise NoFloatProgram(f"{node} changes {['N', *image.seen]} into {['N', *seen]}")
        self.images[node] = _Image(image.value, seen, image.is_alone and len(node.users) == 1)

    def put(self, node: fx.Node, make: Callable[[int], Operation], shape: Shape | None = None) -> None:
        """The node gives what an operation writes, which is made from the index of its value; [C, 1, 1] may be seen as [C]."""
        seen, value = self.seen(node), len(self.values)
        shape = shape or self.shape(node, seen)
        self.values.append(shape)
        self.operations[value] = make(value)
        self.images[node] = _Image(value, seen, len(node.users) == 1)

    def shape(self, node: fx.Node, seen: tuple[int, ...]) -> Shape:
        c, h, w = (*seen, 1, 1) if len(seen) == 1 else seen if len(seen) == 3 else (0, 0, 0)
        if min(c, h, w) < 1:
            raise NoFloatProgram(f"{node} is {['N', *seen]}, where [N, C, H, W] or [N, C] is what it can be")
        return c, h, w

    def maker(self, image: _Image) -> Operation | None:
        """What computes a value, if it may do more along the way."""
        return self.operations.get(image.value) if image.is_alone else None

    def fuse(self, node: fx.Node, image: _Image, fused: Operation) -> None:
        """The node gives what now is computed in place of `image`, and at this point."""
        del self.operations[image.value]
        self.operations[image.value] = fused
        self.pass_on(node, image)

    def check_may_write(self, node: fx.Node, image: _Image) -> None:
        """In place is the same as out of place, unless something else reads what is written into."""
        if _writes(node) and (not image.is_alone or isinstance(self.operations.get(image.value), Slice)):
            raise NoFloatProgram(f"{_name_of(node)} writes into what something else may read")

    # ---- Convolutions -----------------------------------------------------------------------------------------------------

    def winograd_conv2d(self, node: fx.Node, _: Given) -> None:
        call = Conv2dCall.of(node)
        read = (call.input,) if call.residual is None else (call.input, call.residual)
        sources = tuple(self.whole_image(one).value for one in read)
        weights = self.constant(call.weights, 3)
        if call.activation not in ("none", "relu"):
            raise NoFloatProgram(f"it has the activation {call.activation}")
        bias, padding = self.bias(call.bias, weights.shape[1]), _pair(call.padding)
        self.put(
            node,
            lambda value: WinogradConvolution(
                value,
                sources,
                weights=weights,
                bias=bias,
                positions=call.positions,
                m=call.m,
                padding=padding,
                groups=call.groups,
                has_relu=call.activation == "relu",
            ),
        )

    def conv2d(self, node: fx.Node, given: Given) -> None:
        image, weights = self.whole_image(given["input"]), self.constant(given["weight"], 4)
        if given.get("transposed"):
            raise NoFloatProgram(f"{_name_of(node)} is transposed")
        bias, stride, dilation = (
            self.bias(given["bias"], len(weights)),
            _pair(given["stride"]),
            _pair(given["dilation"]),
        )
        padding = _padding(given["padding"], weights, dilation)
        self.put(
            node,
            lambda value: Convolution(
                value,
                (image.value,),
                weights=weights,
                bias=bias,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=given["groups"],
            ),
        )

    def linear(self, node: fx.Node, given: Given) -> None:
        weights = self.constant(given["weight"], 2)
        self.multiply(node, given["input"], weights, self.bias(given["bias"], len(weights)))

    def addmm(self, node: fx.Node, given: Given) -> None:
        weights = self.constant(given["mat2"], 2).t()
        if (given["alpha"], given["beta"]) != (1, 1):
            raise NoFloatProgram(f"{_name_of(node)} has factors")
        self.multiply(node, given["mat1"], weights, self.bias(given["self"], len(weights)))

    def mm(self, node: fx.Node, given: Given) -> None:
        weights = self.constant(given["mat2"], 2).t()
        self.multiply(node, given["self"], weights, self.bias(None, len(weights)))

    def multiply(self, node: fx.Node, source: Any, weights: Tensor, bias: Tensor) -> None:  # source: any argument
        image = self.image(source)
        shape = self.values[image.value]
        if len(image.seen) != 1 or weights.shape[1] != math.prod(shape) or len(bias) != len(weights):
            raise NoFloatProgram(
                f"{_name_of(node)} reads {['N', *image.seen]}, where all of an image is what it can be"
            )
        kernels = weights.reshape(len(weights), *shape)
        self.put(node, lambda value: Convolution(value, (image.value,), weights=kernels, bias=bias))

    # ---- Number by number -------------------------------------------------------------------------------------------------

    def batch_norm(self, node: fx.Node, given: Given) -> None:
        image = self.channels(given["input"])
        if given.get("training"):
            raise NoFloatProgram(f"{_name_of(node)} is in training")
        mean, variance = (self.constant(given[name], 1).double() for name in ("running_mean", "running_var"))
        scale = (variance + given["eps"]).rsqrt()
        if given["weight"] is not None:
            scale = scale * self.constant(given["weight"], 1)
        shift = self.bias(given["bias"], len(scale)) - mean * scale
        maker = self.maker(image)
        fused = maker and float_fusion.with_scaling(maker, scale, shift)
        if fused is not None:
            self.fuse(node, image, fused)
        else:
            self.scale(node, image, scale.float(), shift.float())

    def relu(self, node: fx.Node, given: Given) -> None:
        self.clamp_to(node, given["self"], 0, math.inf)

    def relu6(self, node: fx.Node, given: Given) -> None:
        self.clamp_to(node, given["self"], 0, 6)

    def hardtanh(self, node: fx.Node, given: Given) -> None:
        self.clamp_to(node, given["self"], given["min_val"], given["max_val"])

    def clamp(self, node: fx.Node, given: Given) -> None:
        low, high = given.get("min"), given.get("max")
        self.clamp_to(node, given["self"], -math.inf if low is None else low, math.inf if high is None else high)

    def clamp_to(self, node: fx.Node, source: Any, low: Any, high: Any) -> None:  # any arguments
        image = self.image(source)
        self.check_may_write(node, image)
        if not all(isinstance(end, int | float) for end in (low, high)) or not low <= high:
            raise NoFloatProgram(f"{_name_of(node)} goes from {low} to {high}")
        maker = self.maker(image)
        fused = maker and float_fusion.with_clamp(maker, low, high)
        if fused is not None:
            self.fuse(node, image, fused)
        else:
            channels = self.values[image.value][0]
            self.scale(node, image, torch.ones(channels), torch.zeros(channels), low=low, high=high)

    def scale(self, node: fx.Node, image: _Image, scale: Tensor, shift: Tensor, **ends: float) -> None:
        shape = self.values[image.value]
        self.put(node, lambda value: Scaling(value, (image.value,), scale=scale, shift=shift, **ends), shape)

    def add(self, node: fx.Node, given: Given) -> None:
        a, b = self.image(given["self"]), self.image(given["other"])
        shape = self.values[a.value]
        if a.seen != b.seen or self.values[b.value] != shape or given["alpha"] != 1:
            raise NoFloatProgram(f"{_name_of(node)} adds other than two images of one shape")
        self.check_may_write(node, a)
        if a.value != b.value:
            # Of two convolutions the later one, so that fewer values wait.
            for image, residual in sorted([(a, b), (b, a)], key=lambda pair: pair[0].value, reverse=True):
                maker = self.maker(image)
                fused = maker and float_fusion.with_residual(maker, residual.value)
                if fused is not None:
                    self.fuse(node, image, fused)
                    return
        self.put(node, lambda value: Addition(value, (a.value, b.value)), shape)

    # ---- Windows ----------------------------------------------------------------------------------------------------------

    def max_pool2d(self, node: fx.Node, given: Given) -> None:
        image, kernel = self.whole_image(given["self"]), _pair(given["kernel_size"])
        stride, padding, dilation = _pair(given["stride"] or kernel), _pair(given["padding"]), _pair(given["dilation"])
        self.check_windows(node, image, kernel, stride, padding, dilation)
        self.put(
            node,
            lambda value: MaxPool(
                value, (image.value,), kernel=kernel, stride=stride, padding=padding, dilation=dilation
            ),
        )

    def avg_pool2d(self, node: fx.Node, given: Given) -> None:
        image, kernel = self.whole_image(given["self"]), _pair(given["kernel_size"])
        stride, padding = _pair(given["stride"] or kernel), _pair(given["padding"])
        if given["divisor_override"] is not None:
            raise NoFloatProgram(f"{_name_of(node)} has a divisor of its own")
        self.check_windows(node, image, kernel, stride, padding, (1, 1))
        self.put(
            node,
            lambda value: AveragePool(
                value,
                (image.value,),
                kernel=kernel,
                stride=stride,
                padding=padding,
                counts_padding=given["count_include_pad"],
            ),
        )

    def check_windows(
        self, node: fx.Node, image: _Image, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
    ) -> None:
        sides = zip(self.values[image.value][1:], kernel, stride, padding, dilation, strict=True)
        floors = tuple((side + 2 * pad - d * (k - 1) - 1) // step + 1 for side, k, step, pad, d in sides)
        if self.seen(node)[1:] != floors:
            raise NoFloatProgram(f"{_name_of(node)} has windows that reach beyond the padding (ceil_mode)")

    def adaptive_avg_pool2d(self, node: fx.Node, given: Given) -> None:
        image = self.whole_image(given["self"])
        (_, h, w), (_, rows, columns) = image.seen, self.seen(node)
        if h % rows or w % columns:
            raise NoFloatProgram(f"{_name_of(node)} has windows of different sizes")
        kernel = h // rows, w // columns
        self.put(node, lambda value: AveragePool(value, (image.value,), kernel=kernel, stride=kernel))

    def mean(self, node: fx.Node, given: Given) -> None:
        image = self.whole_image(given["self"])
        if {dimension % 4 for dimension in given["dim"] or ()} != {2, 3}:
            raise NoFloatProgram(f"{_name_of(node)} is over other dimensions than rows and columns")
        _, *kernel = image.seen
        window = _pair(kernel)
        self.put(node, lambda value: AveragePool(value, (image.value,), kernel=window, stride=window))

    # ---- Numbers in other places ------------------------------------------------------------------------------------------

    def view(self, node: fx.Node, given: Given) -> None:
        self.pass_on(node, self.image(given.get("self", given.get("input"))))

    def dropout(self, node: fx.Node, given: Given) -> None:
        if given["train"]:
            raise NoFloatProgram(f"{_name_of(node)} is in training")
        self.view(node, given)

    def getitem(self, node: fx.Node, _: Given) -> None:
        tupled, place = node.args
        if place != 0:
            raise NoFloatProgram(f"{node} reads more than the first output of {tupled}")
        self.pass_on(node, self.image(tupled))

    def cat(self, node: fx.Node, given: Given) -> None:
        images = [self.channels(one) for one in given["tensors"]]
        if given["dim"] % (1 + len(self.seen(node))) != 1:
            raise NoFloatProgram(f"{_name_of(node)} is along another dimension than channels")
        self.put(node, lambda value: Concatenation(value, tuple(image.value for image in images)))

    def slice(self, node: fx.Node, given: Given) -> None:
        image, seen = self.image(given["self"]), self.seen(node)
        start, step = given["start"] or 0, given["step"]
        if seen == image.seen and step == 1:
            self.pass_on(node, image)
            return
        image, dimension = self.channels(given["self"]), given["dim"] % (1 + len(seen)) - 1
        if dimension < 0 or not all(type(number) is int for number in (start, step)):
            raise NoFloatProgram(f"{_name_of(node)} takes images out of the batch, or what is known only when it runs")
        shape, sliced = self.values[image.value], self.shape(node, seen)
        start = max(0, start + shape[dimension]) if start < 0 else start
        maker = self.maker(image)
        cut = maker if isinstance(maker, Slice) else Slice(len(self.values), (image.value,), stop=shape)
        cut = float_fusion.with_slice(cut, dimension, start=start, step=step, size=sliced[dimension])
        if cut.output == image.value:
            self.values[image.value], self.operations[image.value] = sliced, cut
            self.images[node] = _Image(image.value, seen, len(node.users) == 1)
        else:
            self.put(node, lambda _: cut)

    def pad(self, node: fx.Node, given: Given) -> None:
        image, ends = self.whole_image(given["self"]), list(given["pad"])
        if given.get("mode", "constant") != "constant" or (given["value"] or 0) != 0:
            raise NoFloatProgram(f"{_name_of(node)} is with other than zeros")
        if not all(type(end) is int and end >= 0 for end in ends) or any(ends[6:]):
            raise NoFloatProgram(f"{_name_of(node)} cuts images off, or makes more of them")
        ends += [0] * (6 - len(ends))
        w, w_after, h, h_after, c, c_after = ends[:6]
        self.put(
            node, lambda value: Padding(value, (image.value,), before=(c, h, w), after=(c_after, h_after, w_after))
        )


# ---- Rules ----------------------------------------------------------------------------------------------------------------

TRANSPOSITIONS = (aten.t.default, aten.permute.default)  # of matrices of weights

RULES: dict[Any, Callable[[_Writer, fx.Node, Given], None]] = {
    CONV2D: _Writer.winograd_conv2d,
    aten.conv2d.default: _Writer.conv2d,
    aten.conv2d.padding: _Writer.conv2d,
    aten.convolution.default: _Writer.conv2d,
    aten.linear.default: _Writer.linear,
    aten.addmm.default: _Writer.addmm,
    aten.mm.default: _Writer.mm,
    aten.batch_norm.default: _Writer.batch_norm,
    aten._native_batch_norm_legit_no_training.default: _Writer.batch_norm,
    aten.relu.default: _Writer.relu,
    aten.relu_.default: _Writer.relu,
    aten.relu6.default: _Writer.relu6,
    aten.relu6_.default: _Writer.relu6,
    aten.hardtanh.default: _Writer.hardtanh,
    aten.hardtanh_.default: _Writer.hardtanh,
    aten.clamp.default: _Writer.clamp,
    aten.clamp_.default: _Writer.clamp,
    aten.clamp_min.default: _Writer.clamp,
    aten.clamp_max.default: _Writer.clamp,
    aten.add.Tensor: _Writer.add,
    aten.add_.Tensor: _Writer.add,
    aten.max_pool2d.default: _Writer.max_pool2d,
    aten.max_pool2d_with_indices.default: _Writer.max_pool2d,
    aten.avg_pool2d.default: _Writer.avg_pool2d,
    aten.adaptive_avg_pool2d.default: _Writer.adaptive_avg_pool2d,
    aten.mean.dim: _Writer.mean,
    aten.flatten.using_ints: _Writer.view,
    aten.view.default: _Writer.view,
    aten._unsafe_view.default: _Writer.view,
    aten.reshape.default: _Writer.view,
    aten.squeeze.default: _Writer.view,
    aten.squeeze.dim: _Writer.view,
    aten.squeeze.dims: _Writer.view,
    aten.unsqueeze.default: _Writer.view,
    aten.contiguous.default: _Writer.view,
    aten.clone.default: _Writer.view,
    aten.alias.default: _Writer.view,
    aten.detach.default: _Writer.view,
    aten.dropout.default: _Writer.dropout,
    aten.dropout_.default: _Writer.dropout,
    aten.feature_dropout.default: _Writer.dropout,
    operator.getitem: _Writer.getitem,
    aten.cat.default: _Writer.cat,
    aten.slice.Tensor: _Writer.slice,
    aten.pad.default: _Writer.pad,
    aten.constant_pad_nd.default: _Writer.pad,
}


def _arguments_of(node: fx.Node) -> Given:
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    # torch.export leaves out what has its default.
    given: Given = {one.name: one.default_value for one in node.target._schema.arguments}
    return given | dict(zip(given, node.args, strict=False)) | node.kwargs


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


def _is_size(node: fx.Node) -> bool:
    """Whether a node gives a number, which only operators that change shapes read; the shapes are known."""
    return isinstance(node.meta.get("val"), int | torch.SymInt)


def _tensor_of(node: fx.Node) -> Tensor:
    x = node.meta.get("val")
    x = x[0] if isinstance(x, tuple | list) and x else x
    if not isinstance(x, Tensor):
        raise NoFloatProgram(f"{node} is no tensor whose shape is known")
    return x


def _name_of(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, torch._ops.OpOverload) else node.name


def _pair(sizes: int | Sequence[int]) -> Pair:
    rows, columns = (sizes, sizes) if isinstance(sizes, int) else (sizes[0], sizes[-1])
    if type(rows) is not int or type(columns) is not int:
        raise NoFloatProgram("it has sizes that are known only when it runs")
    return rows, columns


def _padding(padding: Any, weights: Tensor, dilation: Pair) -> Pair:  # whatever an argument can be
    if padding == "valid":
        return 0, 0
    if padding == "same":
        rows, columns = (d * (k - 1) for d, k in zip(dilation, weights.shape[2:], strict=True))
        if rows % 2 or columns % 2:
            raise NoFloatProgram("it has convolutions that are padded more on one side")
        return rows // 2, columns // 2
    return _pair(padding)
