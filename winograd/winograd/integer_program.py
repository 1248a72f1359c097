"""`IntegerProgram`: a whole network of integers as one tensor of bytes, which `torch.ops.winograd.integer_network` runs.

    program = IntegerProgram(input=0, output=1, input_lengths=(7, 7, 7), values=(...), operations=(...))
    logits = torch.ops.winograd.integer_network(images, program.to_tensor(), 10)        # int32 [N, 10]

Activations and weights have 8 bits at most where convolutions read them, accumulators have 32, and what lies between is
shifts. In float images [N, C, H, W] channel c becomes `clamp(floor(x * 2**length[c] + 0.5), lowest, highest)`.
"""

import ctypes
from dataclasses import dataclass

from torch import Tensor

from winograd import integer_bytes
from winograd.integer_checks import check_program
from winograd.integer_operations import (
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    InputTransform,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Operation,
    OutputTransform,
    Padding,
    Permutation,
    Requantization,
    Reshape,
    Slice,
    Table,
    Value,
)

__all__ = [
    "Addition",
    "AveragePool",
    "Concatenation",
    "Convolution",
    "InputTransform",
    "IntegerProgram",
    "MaxPool",
    "Multiplication",
    "NearestUpsample",
    "Operation",
    "OutputTransform",
    "Padding",
    "Permutation",
    "Requantization",
    "Reshape",
    "Slice",
    "Table",
    "Value",
]


@dataclass(frozen=True, eq=False)
class IntegerProgram:
    """Values, and operations in the order in which they run; each writes a value of its own and reads what was written before.

    `input` and `output` are indices of `values`; `input_lengths` are the fractional lengths of the input's channels. Raises
    ValueError for anything that is no such network; only whether accumulators fit 32 bits is left to whoever writes it.
    """

    input: int
    output: int
    input_lengths: tuple[int, ...]
    values: tuple[Value, ...]
    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        check_program(self.input, self.output, self.input_lengths, self.values, self.operations)

    def to_tensor(self) -> Tensor:
        """Return the program as uint8 [bytes], laid out as `integer_bytes.py` says."""
        return integer_bytes.write(self.input, self.output, self.input_lengths, self.values, self.operations)

    def to_bytes(self) -> bytes:
        """Return the bytes of `to_tensor`."""
        tensor = self.to_tensor()
        return ctypes.string_at(tensor.data_ptr(), len(tensor))

    @classmethod
    def from_tensor(cls, program: Tensor) -> "IntegerProgram":
        """Return the program in uint8 [bytes], on the CPU. Raises ValueError for bytes that are none."""
        return cls(*integer_bytes.read(program))
