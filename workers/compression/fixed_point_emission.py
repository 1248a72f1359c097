"""Planned operations as integer operations: lengths turned into shifts, activation functions into ranges (METHODS 5.3 F4, 5.6)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from workers.compression.fixed_point_lengths import Lengths
from workers.compression.fixed_point_moves import channels_of, padding_of, sampling_of, slice_of
from workers.compression.fixed_point_plan import Plan, Planned, as_list
from workers.compression.fixed_point_winograd import input_transform, output_transform
from workers.fixed_point.coding import Coding
from workers.fixed_point.network import (
    Addition,
    AveragePool,
    BilinearResize,
    Concatenation,
    Convolution,
    IntegerNetwork,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Operation,
    Padding,
    Permutation,
    Requantization,
    Reshape,
    Shape,
    Slice,
    Table,
    Value,
)
from workers.fixed_point.run import INT32
from workers.models.graph import ModelGraph, aten, layer_name, parameter

LOGIT_BITS = 32
_ACCUMULATOR_BITS = 31  # without the sign


@dataclass
class Emission:
    """An integer network while it is made, operation by operation."""

    plan: Plan
    codings: dict[str, Coding]  # of the tensors that get lengths of their own
    bias_bits: int
    values: dict[str, Value] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._store(self.plan.input, self.codings[self.plan.input])

    def coding(self, name: str) -> Coding:
        return self.values[name].coding

    def network(self) -> IntegerNetwork:
        return IntegerNetwork(self.plan.input, self.plan.logits, self.values, tuple(self.operations))

    def emit(self, planned: Planned) -> list[Operation]:
        """Add what an operation other than a convolution becomes: it, and what its operands need before."""
        before = len(self.operations)
        match planned.kind:
            case "add":
                self._add_addition(planned)
            case "concatenate":
                self._add_concatenation(planned)
            case "multiply":
                self._add_multiplication(planned)
            case "average_pool":
                self._add_average(planned)
            case "table":
                self._add_table(planned)
            case "input_transform":
                self._add_input_transform(planned)
            case "output_transform":
                self._add_output_transform(planned)
            case "requantize":
                source, coding = planned.sources[0], self._coded(planned)
                low, high = ranges(planned, coding)
                shifts = _minus(self.coding(source).lengths, coding.lengths)
                self._add(Requantization(source, planned.output, shifts, low, high), coding)
            case _:
                self._add_moved(planned)
        return self.operations[before:]

    def add_convolution(self, planned: Planned, operation: Convolution) -> None:
        """Add what `convolution` made."""
        self._add(operation, self._output_coding(planned, operation))

    def convolution(self, planned: Planned, weight: Tensor, weight_bits: int, lengths: Lengths, bias: Tensor,
                    bias_bits: int) -> Convolution:  # fmt: skip
        """A convolution or linear layer with integer weights and biases, not yet added."""
        node = planned.main
        if planned.output in self.plan.products:
            out_shift, low, high = torch.zeros_like(bias), (-INT32,) * len(bias), (INT32,) * len(bias)
        elif planned.output == self.plan.logits and planned.output not in self.codings:
            common = lengths.bias.max()
            out_shift, low, high = lengths.bias - common, (-INT32,) * len(bias), (INT32,) * len(bias)
        else:
            coding = self.codings[planned.output]
            out_shift = lengths.bias - coding.lengths_tensor()
            low, high = ranges(planned, coding)
        geometry: dict[str, Any] = {"is_linear": True}
        if planned.kind == "convolution":
            stride, padding, dilation = (pair(argument) for argument in node.args[3:6])
            geometry = {
                "stride": stride,
                "padding": padding,
                "dilation": dilation,
                "groups": int(str(node.args[6])),
            }
        return Convolution(
            layer=layer_of(node),
            source=planned.sources[0],
            output=planned.output,
            weight=weight,
            weight_bits=weight_bits,
            shifts=lengths.shifts,
            bias=bias,
            bias_bits=bias_bits,
            lengths=lengths.bias,
            out_shift=out_shift,
            low=torch.tensor(low),
            high=torch.tensor(high),
            **geometry,
        )

    def _output_coding(self, planned: Planned, operation: Convolution) -> Coding:
        if planned.output in self.codings:
            return self.codings[planned.output]
        if planned.output in self.plan.products:
            return Coding(LOGIT_BITS, True, tuple(operation.lengths.tolist()))
        return Coding(LOGIT_BITS, True, (int(operation.lengths.max()),) * len(operation.lengths))

    # ---- Each kind --------------------------------------------------------------------------------------------------

    def _add_addition(self, planned: Planned) -> None:
        coding = self._coded(planned)
        a, b = (self.coding(source) for source in planned.sources)
        room = _ACCUMULATOR_BITS - 1 - max(a.bits, b.bits)
        # Operands whose lengths are too far apart for 32 bits: the finer one is rounded first.
        sources = tuple(
            self._within(source, other, room) for source, other in zip(planned.sources, (b, a), strict=True)
        )
        lengths = self._lengths_to_add(planned, [self.coding(source).lengths for source in sources])
        common = [max(pair) for pair in zip(*lengths, strict=True)]
        low, high = ranges(planned, coding)
        operation = Addition(
            sources=(sources[0], sources[1]),
            output=planned.output,
            left=(_minus(common, lengths[0]), _minus(common, lengths[1])),
            out_shift=_minus(common, coding.lengths),
            low=low,
            high=high,
        )
        self._add(operation, coding)

    def _lengths_to_add(self, planned: Planned, given: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The operands' lengths; where one is nothing but zeros, which have any, the other's, so that neither is shifted."""
        lengths = [list(each) for each in given]
        for place, source in enumerate(planned.sources):
            for channel, origin in enumerate(channels_of(self.plan, source)):
                if origin is None:
                    lengths[place][channel] = given[1 - place][channel]
        return [tuple(each) for each in lengths]

    def _within(self, source: str, other: Coding, room: int) -> str:
        coding = self.coding(source)
        lengths = tuple(min(mine, theirs + room) for mine, theirs in zip(coding.lengths, other.lengths, strict=True))
        return self._recoded(source, Coding(coding.bits, coding.signed, lengths))

    def _add_concatenation(self, planned: Planned) -> None:
        codings = [self.coding(source) for source in planned.sources]
        signed, bits = any(coding.signed for coding in codings), max(coding.bits for coding in codings)
        sources = []
        for source, coding in zip(planned.sources, codings, strict=True):
            # An unsigned tensor beside a signed one gives the sign's bit, and so one bit of its fraction.
            shorter = 1 if signed and not coding.signed else 0
            lengths = tuple(length - shorter for length in coding.lengths)
            sources.append(self._recoded(source, Coding(bits, signed, lengths)))
        joined = tuple(length for source in sources for length in self.coding(source).lengths)
        self._add(Concatenation(tuple(sources), planned.output), Coding(bits, signed, joined))

    def _recoded(self, source: str, coding: Coding) -> str:
        """The same tensor with another coding, made for one reader."""
        if coding == self.coding(source):
            return source
        name = source
        while name in self.values:
            name += "_recoded"
        low, high = (coding.lowest,) * len(coding.lengths), (coding.highest,) * len(coding.lengths)
        shifts = _minus(self.coding(source).lengths, coding.lengths)
        self.values[name] = Value(name, self.values[source].shape, coding)
        self.operations.append(Requantization(source, name, shifts, low, high))
        return name

    def _add_multiplication(self, planned: Planned) -> None:
        coding = self._coded(planned)
        lengths = [self.coding(source).lengths for source in planned.sources]
        shifts = tuple(a + b - c for a, b, c in zip(*lengths, coding.lengths, strict=True))
        low, high = ranges(planned, coding)
        self._add(Multiplication((planned.sources[0], planned.sources[1]), planned.output, shifts, low, high), coding)

    def _add_average(self, planned: Planned) -> None:
        coding, source = self._coded(planned), self.coding(planned.sources[0])
        kernel, stride, padding, divisor = pool_window(planned.main, self.values[planned.sources[0]].shape)
        multiplier, shift = reciprocal(divisor, source.bits, kernel[0] * kernel[1])
        shifts = tuple(shift + a - b for a, b in zip(source.lengths, coding.lengths, strict=True))
        low, high = ranges(planned, coding)
        operation = AveragePool(
            planned.sources[0], planned.output, kernel, stride, padding, multiplier, shifts, low, high
        )
        self._add(operation, coding)

    def _add_input_transform(self, planned: Planned) -> None:
        assert planned.tiles is not None
        source = planned.sources[0]
        self._add(*input_transform(planned.tiles, source, planned.output, self.coding(source), self._coded(planned)))

    def _add_output_transform(self, planned: Planned) -> None:
        assert planned.tiles is not None
        source, coding = planned.sources[0], self._coded(planned)
        low, high = ranges(planned, coding)
        bias = output_bias(self.plan, planned)
        operation = output_transform(
            planned.tiles, source, planned.output, self.coding(source), coding, bias,
            bias_bits=self.bias_bits, low=low, high=high,
        )  # fmt: skip
        self._add(operation, coding)

    def _add_table(self, planned: Planned) -> None:
        coding, source = self._coded(planned), self.coding(planned.sources[0])
        integers = torch.arange(source.lowest, source.highest + 1)
        given = source.values_of(integers.expand(1, len(source.lengths), -1)).float()[..., None]  # [1, C, 2**bits, 1]
        made = evaluate(self.plan.graph, planned, {planned.sources[0]: given})
        wanted = coding.quantize(made.expand_as(given))[0, :, :, 0]  # [C, 2**bits]
        tables, row = torch.unique(wanted, dim=0, return_inverse=True)
        function = " ".join(_function_name(node) for node in planned.nodes)
        self._add(Table(planned.sources[0], planned.output, function, tables, tuple(row.tolist())), coding)

    def _add_moved(self, planned: Planned) -> None:
        """Operations that take integers from one place to another, with the lengths that they have."""
        node, source = planned.main, planned.sources[0]
        given, before, after = self.coding(source), self.values[source].shape, self.plan.shapes[planned.output]
        lengths, output = given.lengths, planned.output
        operation: Operation
        match planned.kind:
            case "max_pool":
                operation = MaxPool(source, output, *(pair(argument) for argument in node.args[1:5]))
            case "upsample":
                operation = NearestUpsample(source, output, (after[1] // before[1], after[2] // before[2]))
            case "resize":
                operation = BilinearResize(source, output, *(axis.taps() for axis in sampling_of(node, before, after)))
            case "slice":
                start, stop, step = slice_of(node, before)
                operation, lengths = Slice(source, output, start, stop, step), lengths[start[0] : stop[0] : step[0]]
            case "pad":
                front, back = padding_of(node, before)
                middle = (sorted(lengths)[len(lengths) // 2],)  # of channels that hold nothing but zeros
                lengths = (*middle * front[0], *lengths, *middle * back[0])
                operation = Padding(source, output, front, back)
            case "permute":
                order = [int(str(place)) % 4 - 1 for place in as_list(node.args[1])[1:]]
                operation = Permutation(source, output, (order[0], order[1], order[2]))
                lengths = lengths if order[0] == 0 else lengths[:1] * after[0]
            case _:
                operation = Reshape(source, output)
                if after[0] == math.prod(before):
                    lengths = tuple(length for length in lengths for _ in range(before[1] * before[2]))
                elif after[0] != before[0]:
                    lengths = lengths[:1] * after[0]
        self._add(operation, Coding(given.bits, given.signed, lengths))

    # ---- Bookkeeping ------------------------------------------------------------------------------------------------

    def _coded(self, planned: Planned) -> Coding:
        return self.codings[planned.output]

    def _add(self, operation: Operation, coding: Coding) -> None:
        self.operations.append(operation)
        self._store(operation.output, coding)

    def _store(self, name: str, coding: Coding) -> None:
        self.values[name] = Value(name, self.plan.shapes[name], coding)


def output_bias(plan: Plan, planned: Planned) -> Tensor:
    """The bias [K] at the end of a Winograd convolution, float64."""
    assert planned.tiles is not None
    if planned.tiles.bias is not None:
        return parameter(plan.graph, planned.tiles.bias).detach().double()
    return torch.zeros(plan.shapes[planned.output][0], dtype=torch.float64)


def limits(planned: Planned) -> tuple[float, float]:
    """Between which numbers the activation function behind an operation leaves its output."""
    low, high = -math.inf, math.inf
    for node in planned.nodes:
        if node.target is aten.relu.default:
            low, high = max(low, 0.0), max(high, 0.0)
        elif node.target is aten.clamp.default:
            least, most = (
                None if len(node.args) <= place or node.args[place] is None else float(str(node.args[place]))
                for place in (1, 2)
            )
            low, high = (low if least is None else max(low, least)), (high if most is None else min(high, most))
    return low, high


def ranges(planned: Planned, coding: Coding) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The integers between which each channel's output lies: those of its coding, and those of the activation function."""
    low, high = limits(planned)

    def integer(limit: float, length: int) -> int:
        if math.isinf(limit):
            return coding.highest if limit > 0 else coding.lowest
        return min(coding.highest, max(coding.lowest, math.floor(limit * 2.0**length + 0.5)))

    return (
        tuple(integer(low, length) for length in coding.lengths),
        tuple(integer(high, length) for length in coding.lengths),
    )


def pool_window(
    node: fx.Node, shape: Shape
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:  # fmt: skip
    """Kernel, stride, padding and divisor of an average."""
    if node.target is aten.avg_pool2d.default:
        kernel, stride, padding = (pair(argument) for argument in node.args[1:4])
        divisor = node.args[6]
        return kernel, stride, padding, int(str(divisor)) if divisor is not None else kernel[0] * kernel[1]
    kernel = (shape[1], shape[2])
    return kernel, kernel, (0, 0), kernel[0] * kernel[1]


def reciprocal(divisor: int, bits: int, window: int) -> tuple[int, int]:
    """`(multiplier, shift)` with `multiplier / 2**shift` nearest to 1/divisor, as fine as 32-bit accumulators allow."""
    if divisor & (divisor - 1) == 0:
        return 1, divisor.bit_length() - 1
    # |sum| <= window * 2**bits, and sum * multiplier <= window / divisor * 2**(bits + shift) < 2**31.
    shift = _ACCUMULATOR_BITS - 1 - bits - max(0, math.ceil(math.log2(window / divisor)))
    return round(2**shift / divisor), shift


@torch.inference_mode()
def evaluate(graph: ModelGraph, planned: Planned, given: dict[str, Tensor]) -> Tensor:
    """What the nodes of an operation make of tensors, in floating point."""
    known: dict[fx.Node, Any] = {}

    def value(argument: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            return [value(item) for item in argument]
        if not isinstance(argument, fx.Node):
            return argument
        if argument in known:
            return known[argument]
        if argument.op == "get_attr":
            return parameter(graph, str(argument.target))
        return given[argument.name]

    for node in planned.nodes:
        function: Callable[..., Any] = node.target  # type: ignore[assignment]  # the plan holds calls only
        known[node] = function(*value(node.args), **{key: value(argument) for key, argument in node.kwargs.items()})
    result = known[planned.nodes[-1]]
    assert isinstance(result, Tensor)
    return result


def input_lengths(coding: Coding, weight: Tensor, groups: int) -> Tensor:
    """FL_in [K, C/g] of the planes of weights [K, C/g, ...]."""
    return per_plane(coding.lengths_tensor(), weight, groups)


def per_plane(of_channels: Tensor, weight: Tensor, groups: int) -> Tensor:
    """[C] of the input as [K, C/g], for each plane that of the channel that it reads."""
    outputs, channels = weight.shape[:2]
    return of_channels.reshape(groups, channels).repeat_interleave(outputs // groups, dim=0)


def layer_of(node: fx.Node) -> str:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    return layer_name(str(weight.target))


def pair(value: object) -> tuple[int, int]:
    numbers = [int(str(number)) for number in as_list(value)]
    return (numbers[0], numbers[-1])


def _minus(a: tuple[int, ...] | list[int], b: tuple[int, ...] | list[int]) -> tuple[int, ...]:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _function_name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]
