"""Tensors of an integer network inside an ONNX file: how their integers are held, rounded and clamped.

Everything is in q-space: what the file computes with are the integers themselves, not the numbers that they stand for, so scales
of activations are 1 and the lengths of channels show up only in the scales of weights, `2**-out_shift`.

* Integers of up to 8 bits are bytes. ONNX Runtime is slow on signed ones, so signed integers are stored with 128 added.
* Wider ones are whole numbers in float32, which holds all of up to 24 bits.
* Accumulators that nothing requantizes (the logits) are the numbers they stand for, in float32.

ONNX rounds half to even, the network half up. They differ in ties only, so floats that will be rounded are first moved off a tie
by less than what lies between two of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Self

import torch
from onnx import TensorProto
from torch import Tensor

from workers.fixed_point.coding import exp2
from workers.fixed_point.network import (
    Addition,
    AveragePool,
    Convolution,
    InputTransform,
    Multiplication,
    OutputTransform,
    Requantization,
    Value,
)
from workers.models.onnx_emitter import OnnxEmitter

BYTE_BITS = 8
FLOAT_BITS = 24  # float32 holds every integer of so many bits
SIGNED_ZERO = 128  # the byte that stands for 0 of signed integers
UNTIED = 2**22  # below it, float32 has two bits to spare for what keeps an accumulator off a tie

Rounded = Convolution | InputTransform | OutputTransform | Addition | Multiplication | AveragePool | Requantization


class Form(Enum):
    """What an ONNX tensor has in place of integers."""

    BYTES = "uint8"
    FLOATS = "float32"
    SCORES = "float32, scaled"


@dataclass(frozen=True)
class Held:
    """An ONNX tensor that holds integers (C, H, W) of every image: as an image [N, C, H, W], or as rows [N, C*H*W]."""

    name: str
    form: Form
    zero: int = 0  # of bytes: what stands for 0
    rows: bool = False


@dataclass(frozen=True, eq=False)
class Rounding:
    """What follows an accumulator: `clamp((acc + half) >> out_shift, low, high)`, each int64 [C]."""

    out_shift: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, operation: Rounded) -> Self:
        return cls(*(torch.as_tensor(each) for each in (operation.out_shift, operation.low, operation.high)))


@dataclass
class QdqTensors:
    """The tensors written so far, and the operators that turn one form into another."""

    onnx: OnnxEmitter
    values: dict[str, Value]
    packs_weights: bool  # whether weights of 2 to 4 bits share bytes, which takes opset 21 for 4 bits
    held: dict[str, Held] = field(default_factory=dict)
    four_bits: set[str] = field(default_factory=set)  # stored tensors that take half a byte an element
    _floats: dict[tuple[str, int], str] = field(default_factory=dict)

    # ---- Forms ------------------------------------------------------------------------------------------------------

    def image(self, value: str) -> Held:
        """The tensor of this value as [N, C, H, W]."""
        held = self.held[value]
        if not held.rows:
            return held
        return replace(held, name=self.reshaped(held.name, (-1, *self.values[value].shape)), rows=False)

    def rows(self, value: str) -> Held:
        """The tensor of this value as [N, C*H*W]."""
        held = self.held[value]
        if held.rows:
            return held
        count = torch.Size(self.values[value].shape).numel()
        return replace(held, name=self.reshaped(held.name, (-1, count)), rows=True)

    def floats(self, held: Held) -> str:
        """The integers as whole numbers in float32."""
        assert held.form is not Form.SCORES  # nothing computes with logits
        return self.dequantized(held.name, held.zero) if held.form is Form.BYTES else held.name

    def unquantized(self, held: Held) -> str:
        """The same without DequantizeLinear, behind which ONNX Runtime turns the float weights of a layer into int8."""
        if held.form is not Form.BYTES:
            return self.floats(held)
        numbers = self.add("Cast", [held.name], stem="k", to=TensorProto.FLOAT)
        if held.zero == 0:
            return numbers
        return self.add("Sub", [numbers, self.onnx.constant(torch.tensor(float(held.zero)))], stem="k")

    def dequantized(self, name: str, zero: int) -> str:
        """Bytes as whole numbers. One operator serves all readers: ONNX Runtime gives each its own."""
        if (name, zero) not in self._floats:
            inputs = [name, self.one, self.byte(zero)] if zero else [name, self.one]
            self._floats[name, zero] = self.add("DequantizeLinear", inputs, stem="d")
        return self._floats[name, zero]

    def scores(self, value: str) -> str:
        """The numbers that the integers of this value stand for."""
        held = self.held[value]
        if held.form is Form.SCORES:
            return held.name
        scale = exp2(-self.values[value].coding.lengths_tensor())
        return self.multiplied(self.floats(self.image(value)), scale, torch.float32)

    # ---- Rounding ---------------------------------------------------------------------------------------------------

    def requantized(self, whole: str, value: Value, rounding: Rounding, *, bound: int, multiplier: int = 1) -> Held:
        """Whole numbers [N, C, H, W] times `multiplier`, shifted, rounded and clamped, in the form that `value` has.

        `bound` is the largest absolute value of the products: from 22 bits on, they are computed in float64.
        """
        if bound < UNTIED:
            return self.finished(whole, torch.float32, value, rounding, multiplier=multiplier)
        doubles = self.add("Cast", [whole], stem="k", to=TensorProto.DOUBLE)
        return self.finished(doubles, torch.float64, value, rounding, multiplier=multiplier)

    def finished(self, whole: str, kind: torch.dtype, value: Value, rounding: Rounding, *, multiplier: int = 1) -> Held:
        """The same of whole numbers of this kind."""
        numbers = self.multiplied(whole, multiplier * exp2(-rounding.out_shift), kind)
        off_ties = off_ties_of(rounding.out_shift)
        if bool(off_ties.any()):
            numbers = self.add("Add", [numbers, self.per_channel(off_ties, kind)], stem="s")
        return self.rounded(numbers, kind, value, rounding)

    def rounded(self, numbers: str, kind: torch.dtype, value: Value, rounding: Rounding) -> Held:
        """Numbers [N, C, H, W], none of them a tie, rounded and clamped, in the form that `value` has."""
        if is_bytes(value):
            return self.clamped_bytes(self.nearest_bytes(numbers, kind, value), zero_of(value), rounding)
        whole = self.add("Round", [numbers], stem="r")
        for operator, ends in (("Max", rounding.low), ("Min", rounding.high)):
            whole = self.add(operator, [whole, self.per_channel(ends, kind)], stem="c")
        if value.coding.bits > FLOAT_BITS:
            whole = self.multiplied(whole, exp2(-value.coding.lengths_tensor()), kind)
        form = Form.FLOATS if value.coding.bits <= FLOAT_BITS else Form.SCORES
        if kind == torch.float64:
            whole = self.add("Cast", [whole], stem="k", to=TensorProto.FLOAT)
        return Held(whole, form)

    def nearest_bytes(self, numbers: str, kind: torch.dtype, value: Value) -> str:
        """Numbers of any shape, none of them a tie, as the bytes that `value` has."""
        if kind == torch.float64:
            numbers = self.add("Cast", [self.add("Round", [numbers], stem="r")], stem="k", to=TensorProto.FLOAT)
        return self.quantized(numbers, zero_of(value), value.name)

    def quantized(self, whole: str, zero: int, stem: str, scale: float = 1.0) -> str:
        """Numbers as bytes: divided by `scale`, rounded, `zero` added, saturated."""
        step = self.onnx.constant(torch.tensor(scale))
        return self.add("QuantizeLinear", [whole, step, self.byte(zero)], stem=stem)

    def clamped_bytes(self, name: str, zero: int, rounding: Rounding) -> Held:
        """Bytes between the ends of `rounding`; where these are the ends of a byte there is nothing to do."""
        lowest, highest = ((ends + zero).clamp(0, 255).to(torch.uint8) for ends in (rounding.low, rounding.high))
        clamps_low, clamps_high = bool((lowest > 0).any()), bool((highest < 255).any())
        if clamps_low and clamps_high and _is_uniform(lowest) and _is_uniform(highest):
            name = self.add("Clip", [name, self.onnx.constant(lowest[0]), self.onnx.constant(highest[0])], stem="c")
        else:
            if clamps_low:
                name = self.add("Max", [name, self.per_channel(lowest, torch.uint8)], stem="c")
            if clamps_high:
                name = self.add("Min", [name, self.per_channel(highest, torch.uint8)], stem="c")
        return Held(name, Form.BYTES, zero)

    # ---- Operators --------------------------------------------------------------------------------------------------

    def add(self, operator: str, inputs: Sequence[str], *, stem: str, **attributes: object) -> str:
        """Add a node and return the name of its result, which begins with `stem`: short ones keep the file small."""
        return self.onnx.add(operator, inputs, result=self.onnx.unused(stem), **attributes)

    def reshaped(self, name: str, sizes: Sequence[int]) -> str:
        return self.add("Reshape", [name, self.onnx.constant(list(sizes))], stem="v")

    def multiplied(self, name: str, factor: Tensor, kind: torch.dtype) -> str:
        """A tensor [N, C, H, W] times `factor` [C]."""
        if bool((factor == 1).all()):
            return name
        return self.add("Mul", [name, self.per_channel(factor, kind)], stem="m")

    def per_channel(self, numbers: Tensor, kind: torch.dtype) -> str:
        """A stored tensor to meet images [N, C, H, W] with: [1, C, 1, 1], or one number if all are equal."""
        stored = numbers.to(kind)
        return self.onnx.constant(stored[0] if _is_uniform(stored) else stored.reshape(1, -1, 1, 1))

    @property
    def one(self) -> str:
        return self.onnx.constant(torch.tensor(1.0))

    def byte(self, number: int) -> str:
        return self.onnx.constant(torch.tensor(number, dtype=torch.uint8))


def is_bytes(value: Value) -> bool:
    return value.coding.bits <= BYTE_BITS


def zero_of(value: Value) -> int:
    """The byte that stands for 0."""
    return SIGNED_ZERO if value.coding.signed else 0


def off_ties_of(out_shift: Tensor) -> Tensor:
    """A quarter of the least step of `accumulator / 2**out_shift`, float64: added, it makes ties round up, and nothing else."""
    return torch.where(out_shift > 0, exp2(-out_shift) / 4, 0.0)


def _is_uniform(numbers: Tensor) -> bool:
    return bool((numbers == numbers[0]).all())
