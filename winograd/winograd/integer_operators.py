"""The operators that run a whole network of integers in one call: schemas, plain-torch defaults and shapes.

    integer_network(input, program, outputs)                    -> int32 [N, outputs]
    prepare_integer_network(program)                            -> uint8, in the order in which this process's code reads it
    integer_network_prepared(input, prepared, outputs)          -> int32 [N, outputs]

`input` [N, C, H, W] is float32, which is rounded to the integers that the network takes, or int32, which is these integers;
what is out of range becomes its end, and NaN the lowest. `program` is what `IntegerProgram.to_tensor` makes, and `outputs` the
size C * H * W of its output. All of it runs on the CPU. `registration.py` makes the names exist.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from winograd import integer_reference
from winograd.integer_program import IntegerProgram

SCHEMAS = {
    "integer_network": "(Tensor input, Tensor program, int outputs) -> Tensor",
    "prepare_integer_network": "(Tensor program) -> Tensor",
    "integer_network_prepared": "(Tensor input, Tensor prepared, int outputs) -> Tensor",
}
DTYPES = (torch.float32, torch.int32)


def _default_integer_network(input: Tensor, program: Tensor, outputs: int) -> Tensor:
    _check_operands(input, program)
    _check_on_cpu(input=input, program=program)
    network = IntegerProgram.from_tensor(program)
    shape, size = network.values[network.input].shape, network.values[network.output].size
    if tuple(input.shape[1:]) != shape:
        raise ValueError(
            f"input has shape {list(input.shape)}, but the network takes [N, {', '.join(map(str, shape))}]."
        )
    if outputs != size:
        raise ValueError(f"outputs is {outputs}, but the network has {size}.")
    return integer_reference.run(network, input)


def _default_prepare_integer_network(program: Tensor) -> Tensor:
    _check_on_cpu(program=program)
    IntegerProgram.from_tensor(program)
    return program.clone()


def _fake_integer_network(input: Tensor, program: Tensor, outputs: int) -> Tensor:
    _check_operands(input, program)
    if outputs < 1:
        raise ValueError(f"outputs is {outputs}; pass the size of the network's output.")
    return input.new_empty((input.shape[0], outputs), dtype=torch.int32)


def _fake_prepare_integer_network(program: Tensor) -> Tensor:
    # Only the implementation that packs knows how much it fills up.
    return program.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


def _check_operands(input: Tensor, program: Tensor) -> None:
    if input.dim() != 4:
        raise ValueError(f"input has shape {list(input.shape)}; pass [N, C, H, W], also for a single image.")
    # Under autocast the cast will see to halves.
    if input.dtype not in DTYPES and not torch.is_autocast_enabled(input.device.type):
        raise TypeError(f"input has dtype {input.dtype}; pass float32, or the integers themselves as int32.")
    if program.dim() != 1 or program.dtype != torch.uint8:
        raise ValueError(f"program is {list(program.shape)}, {program.dtype}; pass [bytes] of uint8.")


def _check_on_cpu(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        if x.device.type != "cpu":
            raise ValueError(f"{name} is on {x.device}; integer networks run on the CPU only, so move it there.")


DEFAULTS: dict[str, Callable[..., Tensor]] = {
    "integer_network": _default_integer_network,
    "prepare_integer_network": _default_prepare_integer_network,
    "integer_network_prepared": _default_integer_network,
}
FAKES: dict[str, Callable[..., Tensor]] = {
    "integer_network": _fake_integer_network,
    "prepare_integer_network": _fake_prepare_integer_network,
    "integer_network_prepared": _fake_integer_network,
}
