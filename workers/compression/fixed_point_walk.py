"""Makes an integer network layer by layer, with what both networks give on the same images at hand.

So the weights of a layer are rounded for the inputs that it will really have, towards the outputs that the floating-point
network gives, and what every layer loses is known.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from jobs.recipe import QuantizeFixedPoint
from workers.compression.fixed_point_emission import (
    Emission,
    evaluate,
    input_lengths,
    layer_of,
    output_bias,
    pair,
    per_plane,
)
from workers.compression.fixed_point_lengths import (
    Lengths,
    align,
    excess_of_accumulator,
    excess_of_bias,
    quantized_bias,
    quantized_weights,
    weight_lengths,
)
from workers.compression.fixed_point_plan import Plan, Planned
from workers.compression.fixed_point_rounding import (
    Geometry,
    InputMoments,
    compensated,
    corrected_bias,
    measure,
)
from workers.compression.fixed_point_rules import Expression
from workers.compression.fixed_point_simulation import dequantized_weight
from workers.compression.fixed_point_winograd import excess_of_sums
from workers.fixed_point.coding import Coding, highest, lowest
from workers.fixed_point.network import Convolution, Operation
from workers.fixed_point.run import run_operation
from workers.models.graph import parameter

ACCUMULATOR_BITS = 32
_BYTES = 8  # of one value in both networks


@dataclass(frozen=True)
class FixedPointLayer:
    """One convolution or linear layer, for the report."""

    layer: str
    shape: tuple[int, ...]
    weight_bits: int
    input_lengths: list[int]
    weight_lengths: list[int]  # FL_w; of planes, the shortest of each output channel
    bias_lengths: list[int]  # FL_b
    output_lengths: list[int]
    largest_shift: int
    stored_bits: int  # of a weight, shifted
    accumulator_bits: int  # that no image can exceed
    capped_outputs: int  # whose FL_b had to be lowered, so that bias and accumulator fit
    saturated_weights: float  # part of the weights at an end of their range
    weight_sqnr_db: float
    output_sqnr_db: float  # of what is stored behind it, the integer network's against the floating-point network's
    saturated_outputs: float  # part of the values at an end of their range


def images_that_fit(plan: Plan, cache_mib: int) -> int:
    """How many images' tensors can be held at once."""
    sizes = {name: math.prod(shape) for name, shape in plan.shapes.items()}
    last = {source: number for number, each in enumerate(plan.operations) for source in each.sources}
    held, most = sizes[plan.input], sizes[plan.input]
    for number, planned in enumerate(plan.operations):
        held += sizes[planned.output]
        most = max(most, held)
        held -= sum(sizes[source] for source in set(planned.sources) if last[source] == number)
    return max(1, cache_mib * 2**20 // (_BYTES * most))


class Walk:
    """Goes through a network's operations in order."""

    def __init__(
        self,
        plan: Plan,
        step: QuantizeFixedPoint,
        codings: dict[str, Coding],
        batches: list[Tensor],
        *,
        precision: Mapping[str, int] | None = None,
        alternatives: Collection[int] = (),
    ) -> None:
        """`precision` has bits of weights by layer; `alternatives` are more bits that every layer is quantized at, for its
        inputs as they are in this walk."""
        self.emission = Emission(plan, codings, step.bias_bits)
        self.reports: list[FixedPointLayer] = []
        self.alternatives: dict[tuple[str, int], Convolution] = {}  # by output and bits; put away
        self._plan = plan
        self._step = step
        self._precision = precision or {}
        self._more_bits = tuple(alternatives)
        coding, shape = codings[plan.input], plan.shapes[plan.input]
        # For each tensor that is still to be read, a list of batches.
        self._numbers = {plan.input: batches}
        self._integers = {plan.input: [coding.quantize(batch).reshape(-1, *shape).int() for batch in batches]}
        self._last_reader = {source: each.output for each in plan.operations for source in each.sources}

    def take(self, planned: Planned) -> None:
        """Quantize one operation, and let both networks run it."""
        if planned.kind in ("convolution", "linear"):
            moments = self._moments(planned)
            for bits in self._more_bits:
                self.alternatives[planned.output, bits] = self._layer(planned, moments, bits)[0].put_away()
            layer, lengths = self._layer(
                planned, moments, self._precision.get(layer_of(planned.main), self._step.weight_bits)
            )
            self.emission.add_convolution(planned, layer)
            self._run([layer], planned)
            self.reports.append(self._report(layer, lengths))
        else:
            self._run(self.emission.emit(planned), planned)
        for source in set(planned.sources):
            if self._last_reader[source] == planned.output:
                del self._numbers[source], self._integers[source]

    def _run(self, operations: list[Operation], planned: Planned) -> None:
        places = range(len(self._numbers[planned.sources[0]]))
        for operation in operations:
            self._integers[operation.output] = [
                run_operation(operation, self._read(operation, place), self.emission.values).int() for place in places
            ]
        self._numbers[planned.output] = [
            evaluate(self._plan.graph, planned, {name: self._numbers[name][place] for name in planned.sources})
            for place in places
        ]

    def _read(self, operation: Operation, place: int) -> dict[str, Tensor]:
        return {name: self._integers[name][place].long() for name in operation.sources}

    # ---- One layer --------------------------------------------------------------------------------------------------

    def _layer(self, planned: Planned, moments: InputMoments, bits: int) -> tuple[Convolution, Lengths]:
        """The integers of a layer at so many bits; FL_b is lowered until bias and accumulator fit."""
        weight, bias = self._parameters(planned)
        lengths = self._lengths(planned, weight, moments, bits)
        output = self.emission.codings.get(planned.output)
        longest = None if output is None else output.lengths_tensor()
        lengths = lengths.lowered(excess_of_bias(lengths, bias, self._step.bias_bits, longest))
        while True:
            layer = self._convolution(planned, weight, bias, lengths, moments, bits)
            excess = self._excess(planned, layer)
            if not bool(excess.any()):
                return layer, lengths
            lengths = lengths.lowered(excess)

    def _convolution(
        self, planned: Planned, weight: Tensor, bias: Tensor, lengths: Lengths, moments: InputMoments, bits: int
    ) -> Convolution:
        step = self._step
        if step.rounding == "compensated" and moments.covariance is not None:
            integers = compensated(weight, lengths.grid, bits, moments)
        else:
            integers = quantized_weights(weight, lengths.grid, bits)

        def with_bias(numbers: Tensor) -> Convolution:
            biases = quantized_bias(numbers, lengths.bias, step.bias_bits)
            return self.emission.convolution(planned, integers, bits, lengths, biases, step.bias_bits)

        layer = with_bias(bias)
        if not step.correct_bias:
            return layer
        quantized = dequantized_weight(layer, self.emission.coding(planned.sources[0]))
        return with_bias(corrected_bias(weight, bias, quantized, moments))

    def _excess(self, planned: Planned, layer: Convolution) -> Tensor:
        """By how many bits FL_b [K] is too fine for 32-bit accumulators."""
        bounds = layer.accumulator_bounds(self.emission.coding(layer.source))
        if planned.output in self._plan.products:
            after = self._plan.products[planned.output]
            output = self.emission.codings[after.output].lengths_tensor()
            bias = output_bias(self._plan, after)
            excess = excess_of_sums(layer.lengths, bounds, bias, self._step.bias_bits, output)
            return torch.maximum(excess, excess_of_accumulator(bounds, ACCUMULATOR_BITS))
        if planned.output not in self.emission.codings:
            bounds = bounds << -layer.out_shift  # all logits get the length of the finest, by shifts to the left
        return excess_of_accumulator(bounds, ACCUMULATOR_BITS)

    def _lengths(self, planned: Planned, weight: Tensor, moments: InputMoments, bits: int) -> Lengths:
        step, groups = self._step, _geometry(planned.main, weight).groups
        inputs = input_lengths(self.emission.coding(planned.sources[0]), weight, groups)
        own = weight_lengths(weight, Expression(bits, True, step.rule, step.pdf, step.k), step.weight_lengths)
        of_channels = moments.power.reshape(-1, weight[0, 0].numel()).mean(1)  # [C]
        return align(
            weight, own, inputs, step.align,
            weight_bits=bits, input_power=per_plane(of_channels, weight, groups),
        )  # fmt: skip

    def _parameters(self, planned: Planned) -> tuple[Tensor, Tensor]:
        """Weights [K, C/g, R, S] and biases [K], float64."""
        weight, bias = (
            parameter(self._plan.graph, str(node.target)).detach().double()
            for node in planned.main.args[1:3]
            if isinstance(node, fx.Node)
        )
        return (weight[:, :, None, None] if weight.dim() == 2 else weight), bias

    def _moments(self, planned: Planned) -> InputMoments:
        weight, _ = self._parameters(planned)
        wanted = self._step.rounding == "compensated"
        source, geometry = planned.sources[0], _geometry(planned.main, weight)
        images = sum(len(batch) for batch in self._integers[source])
        return measure(self._pairs(source), geometry, weight[0].numel(), images=images, with_covariance=wanted)

    def _pairs(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """What both networks have of a tensor, as numbers [N, C, H, W]."""
        coding = self.emission.coding(name)
        for integers, numbers in zip(self._integers[name], self._numbers[name], strict=True):
            yield coding.values_of(integers), numbers.reshape(integers.shape)

    def _report(self, layer: Convolution, lengths: Lengths) -> FixedPointLayer:
        source, output = self.emission.coding(layer.source), self.emission.coding(layer.output)
        weight, _ = self._parameters(self._plan.by_output()[layer.output])
        noise = signal = saturated = count = 0.0
        for (given, wanted), integers in zip(self._pairs(layer.output), self._integers[layer.output], strict=True):
            noise += float((given - wanted).square().sum())
            signal += float(wanted.double().square().sum())
            at_end = (integers == output.highest) | ((integers == output.lowest) & output.signed)
            saturated += float(at_end.sum())
            count += integers.numel()
        low, high = lowest(layer.weight_bits, signed=True), highest(layer.weight_bits, signed=True)
        lost = (dequantized_weight(layer, source) - weight).square().sum()
        return FixedPointLayer(
            layer=layer.layer,
            shape=tuple(layer.weight.shape),
            weight_bits=layer.weight_bits,
            input_lengths=list(source.lengths),
            weight_lengths=lengths.weights.amin(1).tolist(),
            bias_lengths=lengths.bias.tolist(),
            output_lengths=list(output.lengths),
            largest_shift=int(layer.shifts.max()),
            stored_bits=layer.stored_bits,
            accumulator_bits=layer.accumulator_bound(source).bit_length() + 1,
            capped_outputs=int((lengths.capped > 0).sum()),
            saturated_weights=float(((layer.weight == low) | (layer.weight == high)).double().mean()),
            weight_sqnr_db=_decibels(float(weight.square().sum()), float(lost)),
            output_sqnr_db=_decibels(signal, noise),
            saturated_outputs=saturated / max(1.0, count),
        )


def _geometry(node: fx.Node, weight: Tensor) -> Geometry:
    if len(node.args) < 7:  # aten.linear(input, weight, bias)
        return Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1)
    stride, padding, dilation = (pair(argument) for argument in node.args[3:6])
    return Geometry((weight.shape[2], weight.shape[3]), stride, padding, dilation, int(str(node.args[6])))


def _decibels(signal: float, noise: float) -> float:
    """10 log10 of the ratio, kept finite."""
    return round(10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30)), 2)
