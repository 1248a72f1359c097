"""From a graph to a float program: `write_float_program`, or `NoFloatProgram`, which says what in the graph is in the way.

Operators become operations one by one. Batch norms, additions and activations go into the operation before them where it can
take them (see `float_fusion.py`) and nothing else reads it; it then stands where the last of them stood, because what is added
may be computed after a convolution.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from winograd import float_fusion
from winograd.float_program import (
    Activation,
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    FloatProgram,
    Function,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Padding,
    Pair,
    Scaling,
    Slice,
    WinogradConvolution,
)
from winograd.float_writer import (
    Given,
    Image,
    NoFloatProgram,
    Writer,
    arguments_of,
    is_size,
    name_of,
    pair,
)
from winograd.fuse_epilogues import CONV2D, GUARDS, Conv2dCall

__all__ = ["NoFloatProgram", "write_float_program"]

aten = torch.ops.aten


def write_float_program(graph: fx.Graph, held: Mapping[str, Any]) -> tuple[FloatProgram, tuple[int, ...]]:
    """Return what a graph of ATen operators and `winograd::conv2d` computes, and the shape of its output without N.

    `held` are the tensors that the graph reads, by name. Dead code must be gone before, for it reads values too. Raises
    NoFloatProgram.
    """
    writer = _Rules(held)
    for node in graph.nodes:
        writer.write(node)
    return writer.program(graph.output_node())


class _Rules(Writer):
    """A rule for each operator."""

    def write(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.take_input(node)
        elif node.op == "call_function" and not is_size(node) and not self.is_constant(node):
            rule = RULES.get(node.target)
            if rule is None:
                raise NoFloatProgram(f"{name_of(node)} isn't among the operators of one call")
            rule(self, node, arguments_of(node))
        elif node.op not in ("call_function", "get_attr", "output") and node.target != GUARDS:
            raise NoFloatProgram(f"it calls {node.target}")

    # ---- Convolutions -----------------------------------------------------------------------------------------------------

    def winograd_conv2d(self, node: fx.Node, _: Given) -> None:
        call = Conv2dCall.of(node)
        read = (call.input,) if call.residual is None else (call.input, call.residual)
        sources = tuple(self.whole_image(one).value for one in read)
        weights = self.constant(call.weights, 3)
        if call.activation not in ("none", "relu"):
            raise NoFloatProgram(f"it has the activation {call.activation}")
        bias, padding = self.bias(call.bias, weights.shape[1]), pair(call.padding)
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
            raise NoFloatProgram(f"{name_of(node)} is transposed")
        bias, stride, dilation = (
            self.bias(given["bias"], len(weights)),
            pair(given["stride"]),
            pair(given["dilation"]),
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
            raise NoFloatProgram(f"{name_of(node)} has factors")
        self.multiply(node, given["mat1"], weights, self.bias(given["self"], len(weights)))

    def mm(self, node: fx.Node, given: Given) -> None:
        weights = self.constant(given["mat2"], 2).t()
        self.multiply(node, given["self"], weights, self.bias(None, len(weights)))

    def multiply(self, node: fx.Node, source: Any, weights: Tensor, bias: Tensor) -> None:  # source: any argument
        image = self.image(source)
        shape = self.values[image.value]
        if len(image.seen) != 1 or weights.shape[1] != math.prod(shape) or len(bias) != len(weights):
            raise NoFloatProgram(f"{name_of(node)} reads {['N', *image.seen]}, where all of an image is what it can be")
        kernels = weights.reshape(len(weights), *shape)
        self.put(node, lambda value: Convolution(value, (image.value,), weights=kernels, bias=bias))

    # ---- Number by number -------------------------------------------------------------------------------------------------

    def batch_norm(self, node: fx.Node, given: Given) -> None:
        image = self.channels(given["input"])
        if given.get("training"):
            raise NoFloatProgram(f"{name_of(node)} is in training")
        mean, variance = (self.constant(given[name], 1).double() for name in ("running_mean", "running_var"))
        scale = (variance + given["eps"]).rsqrt()
        if given["weight"] is not None:
            scale = scale * self.constant(given["weight"], 1)
        shift = self.bias(given["bias"], len(scale)) - mean * scale
        self.scale_channels(node, image, scale, shift)

    def scale_channels(self, node: fx.Node, image: Image, scale: Tensor, shift: Tensor) -> None:
        """Multiply each channel by a number and add another, both float64 [C]."""
        maker = self.maker(image)
        fused = maker and float_fusion.with_scaling(maker, scale, shift)
        if fused is not None:
            self.fuse(node, image, fused)
        else:
            self.scale(node, image, scale.float(), shift.float())

    def numbers(self, operand: Any, image: Image) -> Tensor | None:  # operand: any argument
        """What an operand that never changes has for each channel, float64 [C]; None for images."""
        channels = self.values[image.value][0]
        if isinstance(operand, int | float):
            return torch.full((channels,), float(operand), dtype=torch.float64)
        if not isinstance(operand, fx.Node) or operand.op != "get_attr":
            return None
        held = self.held[str(operand.target)]
        x = self.constant(operand, held.dim()).double()
        around = (1,) * (len(image.seen) - 1)  # rows and columns, if there are any
        if x.numel() != 1 and tuple(x.shape[-len(image.seen) :]) != (channels, *around):
            raise NoFloatProgram(f"{operand} is {list(x.shape)}, where one number for each channel is what it can be")
        if x.numel() not in (1, channels):
            raise NoFloatProgram(f"{operand} is {list(x.shape)}, where one number for each channel is what it can be")
        return x.flatten().expand(channels)

    def with_numbers(
        self, node: fx.Node, given: Given, scale_and_shift: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> bool:
        """Whether the second operand never changes; the node then scales and shifts channels."""
        if not isinstance(given["self"], fx.Node) or given["self"] not in self.images:
            return False
        image = self.image(given["self"])
        numbers = self.numbers(given["other"], image)
        if numbers is None:
            return False
        if image.seen != self.values[image.value][: len(image.seen)]:
            raise NoFloatProgram(f"{name_of(node)} reads {['N', *image.seen]}, where channels are what it can be")
        self.check_may_write(node, image)
        self.scale_channels(node, image, *scale_and_shift(numbers))
        return True

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
            raise NoFloatProgram(f"{name_of(node)} goes from {low} to {high}")
        maker = self.maker(image)
        fused = maker and float_fusion.with_clamp(maker, low, high)
        if fused is not None:
            self.fuse(node, image, fused)
        else:
            channels = self.values[image.value][0]
            self.scale(node, image, torch.ones(channels), torch.zeros(channels), low=low, high=high)

    def scale(self, node: fx.Node, image: Image, scale: Tensor, shift: Tensor, **ends: float) -> None:
        shape = self.values[image.value]
        self.put(node, lambda value: Scaling(value, (image.value,), scale=scale, shift=shift, **ends), shape)

    def activate(self, node: fx.Node, given: Given) -> None:
        image = self.image(given["self"])
        self.check_may_write(node, image)
        function = Function[str(node.target).split(".")[1].rstrip("_").upper()]
        slope = float(given.get("negative_slope", 0))
        shape = self.values[image.value]
        self.put(node, lambda value: Activation(value, (image.value,), function=function, slope=slope), shape)

    def mul(self, node: fx.Node, given: Given) -> None:
        if self.with_numbers(node, given, lambda numbers: (numbers, torch.zeros_like(numbers))):
            return
        x, y = self.whole_image(given["self"]), self.whole_image(given["other"])
        self.check_may_write(node, x)
        if x.seen != self.seen(node):
            x, y = y, x
        if x.seen != self.seen(node) or y.seen not in (x.seen, (x.seen[0], 1, 1)):
            raise NoFloatProgram(f"{name_of(node)} multiplies other than images of one shape, or by a number a channel")
        self.put(node, lambda value: Multiplication(value, (x.value, y.value)))

    def div(self, node: fx.Node, given: Given) -> None:
        if not self.with_numbers(node, given, lambda numbers: (1 / numbers, torch.zeros_like(numbers))):
            raise NoFloatProgram(f"{name_of(node)} divides by what is computed")

    def sub(self, node: fx.Node, given: Given) -> None:
        if not self.with_numbers(node, given, lambda numbers: (torch.ones_like(numbers), -given["alpha"] * numbers)):
            raise NoFloatProgram(f"{name_of(node)} subtracts what is computed")

    def add(self, node: fx.Node, given: Given) -> None:
        if self.with_numbers(node, given, lambda numbers: (torch.ones_like(numbers), given["alpha"] * numbers)):
            return
        a, b = self.image(given["self"]), self.image(given["other"])
        shape = self.values[a.value]
        if a.seen != b.seen or self.values[b.value] != shape or given["alpha"] != 1:
            raise NoFloatProgram(f"{name_of(node)} adds other than two images of one shape")
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
        image, kernel = self.whole_image(given["self"]), pair(given["kernel_size"])
        stride, padding, dilation = pair(given["stride"] or kernel), pair(given["padding"]), pair(given["dilation"])
        self.check_windows(node, image, kernel, stride, padding, dilation)
        self.put(
            node,
            lambda value: MaxPool(
                value, (image.value,), kernel=kernel, stride=stride, padding=padding, dilation=dilation
            ),
        )

    def avg_pool2d(self, node: fx.Node, given: Given) -> None:
        image, kernel = self.whole_image(given["self"]), pair(given["kernel_size"])
        stride, padding = pair(given["stride"] or kernel), pair(given["padding"])
        if given["divisor_override"] is not None:
            raise NoFloatProgram(f"{name_of(node)} has a divisor of its own")
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
        self, node: fx.Node, image: Image, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
    ) -> None:
        sides = zip(self.values[image.value][1:], kernel, stride, padding, dilation, strict=True)
        floors = tuple((side + 2 * pad - d * (k - 1) - 1) // step + 1 for side, k, step, pad, d in sides)
        if self.seen(node)[1:] != floors:
            raise NoFloatProgram(f"{name_of(node)} has windows that reach beyond the padding (ceil_mode)")

    def adaptive_avg_pool2d(self, node: fx.Node, given: Given) -> None:
        image = self.whole_image(given["self"])
        (_, h, w), (_, rows, columns) = image.seen, self.seen(node)
        if h % rows or w % columns:
            raise NoFloatProgram(f"{name_of(node)} has windows of different sizes")
        kernel = h // rows, w // columns
        self.put(node, lambda value: AveragePool(value, (image.value,), kernel=kernel, stride=kernel))

    def mean(self, node: fx.Node, given: Given) -> None:
        image = self.whole_image(given["self"])
        if {dimension % 4 for dimension in given["dim"] or ()} != {2, 3}:
            raise NoFloatProgram(f"{name_of(node)} is over other dimensions than rows and columns")
        _, *kernel = image.seen
        window = pair(kernel)
        self.put(node, lambda value: AveragePool(value, (image.value,), kernel=window, stride=window))

    def upsample_nearest2d(self, node: fx.Node, given: Given) -> None:
        image = self.whole_image(given["input"] if "input" in given else given["self"])
        (_, h, w), (_, rows, columns) = image.seen, self.seen(node)
        scale = rows // h, columns // w
        factors = given.get("scale_factors")
        if (rows % h, columns % w) != (0, 0) or (factors is not None and tuple(factors) != scale):
            raise NoFloatProgram(f"{name_of(node)} goes from {h}x{w} to {rows}x{columns}, which is no whole multiple")
        self.put(node, lambda value: NearestUpsample(value, (image.value,), scale=scale))

    # ---- Numbers in other places ------------------------------------------------------------------------------------------

    def view(self, node: fx.Node, given: Given) -> None:
        self.pass_on(node, self.image(given.get("self", given.get("input"))))

    def dropout(self, node: fx.Node, given: Given) -> None:
        if given["train"]:
            raise NoFloatProgram(f"{name_of(node)} is in training")
        self.view(node, given)

    def getitem(self, node: fx.Node, _: Given) -> None:
        tupled, place = node.args
        if place != 0:
            raise NoFloatProgram(f"{node} reads more than the first output of {tupled}")
        self.pass_on(node, self.image(tupled))

    def cat(self, node: fx.Node, given: Given) -> None:
        images = [self.channels(one) for one in given["tensors"]]
        if given["dim"] % (1 + len(self.seen(node))) != 1:
            raise NoFloatProgram(f"{name_of(node)} is along another dimension than channels")
        self.put(node, lambda value: Concatenation(value, tuple(image.value for image in images)))

    def slice(self, node: fx.Node, given: Given) -> None:
        image, seen = self.image(given["self"]), self.seen(node)
        start, step = given["start"] or 0, given["step"]
        if seen == image.seen and step == 1:
            self.pass_on(node, image)
            return
        image, dimension = self.channels(given["self"]), given["dim"] % (1 + len(seen)) - 1
        if dimension < 0 or not all(type(number) is int for number in (start, step)):
            raise NoFloatProgram(f"{name_of(node)} takes images out of the batch, or what is known only when it runs")
        shape, sliced = self.values[image.value], self.shape(node, seen)
        start = max(0, start + shape[dimension]) if start < 0 else start
        maker = self.maker(image)
        cut = maker if isinstance(maker, Slice) else Slice(len(self.values), (image.value,), stop=shape)
        cut = float_fusion.with_slice(cut, dimension, start=start, step=step, size=sliced[dimension])
        if cut.output == image.value:
            self.values[image.value], self.operations[image.value] = sliced, cut
            self.images[node] = Image(image.value, seen, len(node.users) == 1)
        else:
            self.put(node, lambda _: cut)

    def pad(self, node: fx.Node, given: Given) -> None:
        image, ends = self.whole_image(given["self"]), list(given["pad"])
        if given.get("mode", "constant") != "constant" or (given["value"] or 0) != 0:
            raise NoFloatProgram(f"{name_of(node)} is with other than zeros")
        if not all(type(end) is int and end >= 0 for end in ends) or any(ends[6:]):
            raise NoFloatProgram(f"{name_of(node)} cuts images off, or makes more of them")
        ends += [0] * (6 - len(ends))
        w, w_after, h, h_after, c, c_after = ends[:6]
        self.put(
            node, lambda value: Padding(value, (image.value,), before=(c, h, w), after=(c_after, h_after, w_after))
        )


# ---- Rules ----------------------------------------------------------------------------------------------------------------

RULES: dict[Any, Callable[[_Rules, fx.Node, Given], None]] = {
    CONV2D: _Rules.winograd_conv2d,
    aten.conv2d.default: _Rules.conv2d,
    aten.conv2d.padding: _Rules.conv2d,
    aten.convolution.default: _Rules.conv2d,
    aten.linear.default: _Rules.linear,
    aten.addmm.default: _Rules.addmm,
    aten.mm.default: _Rules.mm,
    aten.batch_norm.default: _Rules.batch_norm,
    aten._native_batch_norm_legit_no_training.default: _Rules.batch_norm,
    aten.relu.default: _Rules.relu,
    aten.relu_.default: _Rules.relu,
    aten.relu6.default: _Rules.relu6,
    aten.relu6_.default: _Rules.relu6,
    aten.hardtanh.default: _Rules.hardtanh,
    aten.hardtanh_.default: _Rules.hardtanh,
    aten.clamp.default: _Rules.clamp,
    aten.clamp_.default: _Rules.clamp,
    aten.clamp_min.default: _Rules.clamp,
    aten.clamp_max.default: _Rules.clamp,
    aten.add.Tensor: _Rules.add,
    aten.add_.Tensor: _Rules.add,
    aten.sub.Tensor: _Rules.sub,
    aten.mul.Tensor: _Rules.mul,
    aten.mul_.Tensor: _Rules.mul,
    aten.div.Tensor: _Rules.div,
    **{
        getattr(aten, f"{function.name.lower()}{written}").default: _Rules.activate
        for function in Function
        for written in ("", "_")
    },
    aten.upsample_nearest2d.vec: _Rules.upsample_nearest2d,
    aten.upsample_nearest2d.default: _Rules.upsample_nearest2d,
    aten.max_pool2d.default: _Rules.max_pool2d,
    aten.max_pool2d_with_indices.default: _Rules.max_pool2d,
    aten.avg_pool2d.default: _Rules.avg_pool2d,
    aten.adaptive_avg_pool2d.default: _Rules.adaptive_avg_pool2d,
    aten.mean.dim: _Rules.mean,
    aten.flatten.using_ints: _Rules.view,
    aten.view.default: _Rules.view,
    aten._unsafe_view.default: _Rules.view,
    aten.reshape.default: _Rules.view,
    aten.squeeze.default: _Rules.view,
    aten.squeeze.dim: _Rules.view,
    aten.squeeze.dims: _Rules.view,
    aten.unsqueeze.default: _Rules.view,
    aten.contiguous.default: _Rules.view,
    aten.clone.default: _Rules.view,
    aten.alias.default: _Rules.view,
    aten.detach.default: _Rules.view,
    aten.dropout.default: _Rules.dropout,
    aten.dropout_.default: _Rules.dropout,
    aten.feature_dropout.default: _Rules.dropout,
    operator.getitem: _Rules.getitem,
    aten.cat.default: _Rules.cat,
    aten.slice.Tensor: _Rules.slice,
    aten.pad.default: _Rules.pad,
    aten.constant_pad_nd.default: _Rules.pad,
}


def _padding(padding: Any, weights: Tensor, dilation: Pair) -> Pair:  # whatever an argument can be
    if padding == "valid":
        return 0, 0
    if padding == "same":
        rows, columns = (d * (k - 1) for d, k in zip(dilation, weights.shape[2:], strict=True))
        if rows % 2 or columns % 2:
            raise NoFloatProgram("it has convolutions that are padded more on one side")
        return rows // 2, columns // 2
    return pair(padding)
