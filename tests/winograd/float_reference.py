"""Float programs in plain torch, operation by operation: what compiled code is compared with."""

import math
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional
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
    Operation,
    Padding,
    Scaling,
    Slice,
    WinogradConvolution,
)

from winograd import reference


def run(program: FloatProgram, x: Tensor) -> Tensor:
    """Return [N, outputs] for x [N, C, H, W], in the type of x; checks that every value has the shape that it should have."""
    values = {program.input: x}
    for operation in program.operations:
        assert operation.output not in values, "a value is written once"
        values[operation.output] = _compute(operation, [values[source] for source in operation.sources])
    for index, value in values.items():
        assert tuple(value.shape[1:]) == program.values[index], f"value {index}"
    assert len(values) == len(program.values)
    return values[program.output].flatten(1)


def _compute(operation: Operation, sources: list[Tensor]) -> Tensor:
    x, residual = sources[0], sources[1] if len(sources) > 1 else None
    match operation:
        case Convolution():
            weights, bias = operation.weights.to(x.dtype), operation.bias.to(x.dtype)
            convolved = functional.conv2d(
                x, weights, bias, operation.stride, operation.padding, operation.dilation, operation.groups
            )
            convolved = convolved if residual is None else convolved + residual
            return convolved.clamp(operation.low, operation.high)
        case WinogradConvolution():
            return reference.conv2d(
                x,
                operation.weights.to(x.dtype),
                operation.positions,
                operation.m,
                operation.padding,
                bias=operation.bias.to(x.dtype),
                residual=residual,
                activation="relu" if operation.has_relu else "none",
                groups=operation.groups,
            )
        case Addition():
            assert residual is not None
            return (x + residual).clamp(operation.low, operation.high)
        case Scaling():
            scale, shift = (numbers.to(x.dtype)[:, None, None] for numbers in (operation.scale, operation.shift))
            return (x * scale + shift).clamp(operation.low, operation.high)
        case MaxPool():
            return functional.max_pool2d(x, operation.kernel, operation.stride, operation.padding, operation.dilation)
        case AveragePool():
            return functional.avg_pool2d(
                x,
                operation.kernel,
                operation.stride,
                operation.padding,
                count_include_pad=operation.counts_padding,
            )
        case NearestUpsample():
            return functional.interpolate(x, scale_factor=operation.scale, mode="nearest")
        case Multiplication():
            assert residual is not None
            return x * residual
        case Activation(function=Function.LEAKY_RELU):
            return functional.leaky_relu(x, operation.slope)
        case Activation():
            computed: Tensor = getattr(torch.ops.aten, operation.function.name.lower())(x)
            return computed
        case Concatenation():
            return torch.cat(sources, dim=1)
        case Slice():
            cuts = (slice(*cut) for cut in zip(operation.start, operation.stop, operation.step, strict=True))
            return x[:, *cuts]
        case Padding():
            ends = zip(reversed(operation.before), reversed(operation.after), strict=True)
            return functional.pad(x, [end for both in ends for end in both])
        case _:
            assert_never(operation)


def outputs_of(program: FloatProgram) -> int:
    """The size of its output for one image."""
    return math.prod(program.values[program.output])
