"""The operators that run a whole float32 network in one call: schemas and shapes.

    prepare_float_network(program)                      -> uint8, in the order in which this process's code reads it
    float_network_prepared(input, prepared, outputs)    -> float32 [N, outputs]

`program` is what `FloatProgram.to_tensor` makes, `input` float32 [N, C, H, W], and `outputs` the size C * H * W of the output,
whose numbers lie in this order. Only compiled code for the CPU runs them: without it a network runs operator by operator.
`registration.py` makes the names exist.
"""

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

SCHEMAS = {
    "prepare_float_network": "(Tensor program) -> Tensor",
    "float_network_prepared": "(Tensor input, Tensor prepared, int outputs) -> Tensor",
}


def _default_prepare_float_network(program: Tensor) -> Tensor:
    _check_bytes("program", program)
    _refuse()


def _default_float_network_prepared(input: Tensor, prepared: Tensor, outputs: int) -> Tensor:
    _check_operands(input, prepared, outputs)
    _refuse()


def _refuse() -> NoReturn:
    raise NotImplementedError(
        "A whole network in one call is run on the CPU by compiled code, which isn't in use here; prepare the network again, "
        "where it is to run."
    )


def _fake_prepare_float_network(program: Tensor) -> Tensor:
    # Only the implementation that packs knows how much it fills up.
    return program.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


def _fake_float_network_prepared(input: Tensor, prepared: Tensor, outputs: int) -> Tensor:
    _check_operands(input, prepared, outputs)
    return input.new_empty((input.shape[0], outputs), dtype=torch.float32)


def _check_operands(input: Tensor, prepared: Tensor, outputs: int) -> None:
    if input.dim() != 4:
        raise ValueError(f"input has shape {list(input.shape)}; pass [N, C, H, W], also for a single image.")
    # Under autocast the cast will see to halves.
    if input.dtype != torch.float32 and not torch.is_autocast_enabled(input.device.type):
        raise TypeError(f"input has dtype {input.dtype}; pass float32.")
    _check_bytes("prepared", prepared)
    if outputs < 1:
        raise ValueError(f"outputs is {outputs}; pass the size of the network's output.")


def _check_bytes(name: str, x: Tensor) -> None:
    if x.dim() != 1 or x.dtype != torch.uint8:
        raise ValueError(f"{name} is {list(x.shape)}, {x.dtype}; pass [bytes] of uint8.")


DEFAULTS: dict[str, Callable[..., Tensor]] = {
    "prepare_float_network": _default_prepare_float_network,
    "float_network_prepared": _default_float_network_prepared,
}
FAKES: dict[str, Callable[..., Tensor]] = {
    "prepare_float_network": _fake_prepare_float_network,
    "float_network_prepared": _fake_float_network_prepared,
}
