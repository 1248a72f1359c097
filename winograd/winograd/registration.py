"""The operators of the namespace `winograd`: schemas, plain-torch defaults, shapes, gradients and autocast.

The compiled library, once loaded, registers faster kernels for CPU and CUDA under the same names. `reference_<name>` stays
the plain-torch one, which those kernels call for what they don't do (float64). Defaults and shapes check their arguments
again, so that calling `torch.ops.winograd` directly ends in a sentence too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from winograd import arguments, float_operators, gradients, integer_operators, reference
from winograd.arguments import output_shape
from winograd.matrices import FILTER_SIZE

EPILOGUE = 'Tensor? bias=None, Tensor? residual=None, str activation="none", int groups=1'
# Plain numbers and a tensor [kernel groups, P] of int32, always on the CPU, where conv2d has lists: turning lists of Python
# into those of C++ took 3 us of a call, a quarter of what a small convolution takes.
PACKED = (
    "(Tensor input, Tensor packed, Tensor positions, int filters, int m, SymInt pad_height, SymInt pad_width, "
    f"{EPILOGUE}, int block_tiles=0, int block_filters=0, int block_shared=-1) -> Tensor"
)
SCHEMAS = {
    "conv2d": f"(Tensor input, Tensor weights, int[] positions, int m, SymInt[2] padding, {EPILOGUE}) -> Tensor",
    "pack_weights": "(Tensor weights, int[] positions, int m, int groups=1) -> Tensor",
    "pack_filters": "(Tensor filters, int[] positions, int m, int kernel_groups=1, int groups=1) -> Tensor",
    "conv2d_packed": PACKED,
    "conv2d_packed_filters": PACKED,
    "conv2d_gradients": gradients.SCHEMA,
    **integer_operators.SCHEMAS,
    **float_operators.SCHEMAS,
}


# ---- What the operators do where nothing faster is registered -------------------------------------------------------------


def _default_conv2d(
    input: Tensor,
    weights: Tensor,
    positions: list[int],
    m: int,
    padding: list[int],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    groups: int = 1,
) -> Tensor:
    arguments.check_conv2d(input, weights, positions, m, padding, bias, residual, activation, groups)
    if input.dtype in arguments.HALVES:
        return _in_float32("conv2d", input, weights, positions, m, padding, bias, residual, activation, groups)
    output = reference.conv2d(
        input, weights, positions, m, padding, bias=bias, residual=residual, activation=activation, groups=groups
    )
    return _empty_output(input, weights.shape[1], padding).copy_(output)


def _default_pack_weights(weights: Tensor, positions: list[int], m: int, groups: int = 1) -> Tensor:
    arguments.check_weights(weights, positions, m, groups)
    return weights.flatten().clone()


def _default_pack_filters(
    filters: Tensor, positions: list[int], m: int, kernel_groups: int = 1, groups: int = 1
) -> Tensor:
    arguments.check_filters(filters, positions, m, kernel_groups, groups)
    return filters.flatten().clone()


def _default_conv2d_packed(
    input: Tensor,
    packed: Tensor,
    positions: Tensor,
    filters: int,
    m: int,
    pad_height: int,
    pad_width: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    groups: int = 1,
    block_tiles: int = 0,
    block_filters: int = 0,
    block_shared: int = -1,
) -> Tensor:
    padding, epilogue = [pad_height, pad_width], (bias, residual, activation, groups)
    blocking = block_tiles, block_filters, block_shared
    arguments.check_conv2d_packed(input, packed, positions, filters, m, padding, *epilogue, blocking)
    weights = _unpack(packed, positions.shape[1], filters, input.shape[1] // groups)
    return _default_conv2d(input, weights, positions.flatten().tolist(), m, padding, *epilogue)


def _default_conv2d_packed_filters(
    input: Tensor,
    packed: Tensor,
    positions: Tensor,
    filters: int,
    m: int,
    pad_height: int,
    pad_width: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    groups: int = 1,
    block_tiles: int = 0,
    block_filters: int = 0,
    block_shared: int = -1,
) -> Tensor:
    padding, epilogue = [pad_height, pad_width], (bias, residual, activation, groups)
    blocking = block_tiles, block_filters, block_shared
    arguments.check_conv2d_packed(input, packed, positions, filters, m, padding, *epilogue, blocking)
    if input.dtype in arguments.HALVES:
        sizes = positions, filters, m, *padding
        return _in_float32("reference_conv2d_packed_filters", input, packed, *sizes, *epilogue, *blocking)
    unpacked = _unpack(packed, filters, input.shape[1] // groups, FILTER_SIZE, FILTER_SIZE)
    listed = positions.flatten().tolist()
    weights = reference.transform_filters(unpacked, listed, m, kernel_groups=positions.shape[0])
    return _default_conv2d(input, weights, listed, m, padding, *epilogue)


def _in_float32(name: str, input: Tensor, *others: Any) -> Tensor:
    """Halves are stored only: compute with all operands in float32, and round once."""
    given = (x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in (input, *others))
    output: Tensor = getattr(torch.ops.winograd, name)(*given)
    return output.to(input.dtype)


def _unpack(packed: Tensor, *shape: int) -> Tensor:
    if packed.numel() != torch.Size(shape).numel():
        raise ValueError(f"packed holds {packed.numel()} numbers, not {list(shape)}; pack again for this convolution.")
    return packed.reshape(shape)


def _empty_output(input: Tensor, filters: int, padding: Sequence[int]) -> Tensor:
    shape = output_shape(input, filters, padding)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=reference.memory_format_of(input))


# ---- Shapes, for tracing --------------------------------------------------------------------------------------------------


def _fake_conv2d(
    input: Tensor,
    weights: Tensor,
    positions: list[int],
    m: int,
    padding: list[int],
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    groups: int = 1,
) -> Tensor:
    arguments.check_conv2d(input, weights, positions, m, padding, bias, residual, activation, groups)
    return _empty_output(input, weights.shape[1], padding)


def _fake_conv2d_packed(
    input: Tensor,
    packed: Tensor,
    positions: Tensor,
    filters: int,
    _m: int,
    pad_height: int,
    pad_width: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *_: object,
) -> Tensor:
    arguments.check_packed_operands(input, packed, positions, bias, residual)
    return _empty_output(input, filters, (pad_height, pad_width))


def _fake_pack(weights: Tensor, *_: object) -> Tensor:
    # Only the implementation that packs knows how much it fills up.
    return weights.new_empty(torch.library.get_ctx().new_dynamic_size())


# ---- Registration ---------------------------------------------------------------------------------------------------------

DEFAULTS: dict[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    "conv2d": _default_conv2d,
    "pack_weights": _default_pack_weights,
    "pack_filters": _default_pack_filters,
    "conv2d_packed": _default_conv2d_packed,
    "conv2d_packed_filters": _default_conv2d_packed_filters,
    "conv2d_gradients": gradients.default,
    **integer_operators.DEFAULTS,
    **float_operators.DEFAULTS,
}
FAKES: dict[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    "conv2d": _fake_conv2d,
    "pack_weights": _fake_pack,
    "pack_filters": _fake_pack,
    "conv2d_packed": _fake_conv2d_packed,
    "conv2d_packed_filters": _fake_conv2d_packed,
    "conv2d_gradients": gradients.fake,
    **integer_operators.FAKES,
    **float_operators.FAKES,
}


def define_operators() -> None:
    """Make the names exist; once for each process, before the compiled library is loaded."""
    for short, schema in SCHEMAS.items():
        for name in (f"winograd::{short}", f"winograd::reference_{short}"):
            torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
            torch.library.impl(name, "default")(DEFAULTS[short])
            torch.library.register_fake(name)(FAKES[short])
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(f"winograd::{short}", device, torch.float32)
        if short != "conv2d":
            torch.library.register_autograd(f"winograd::{short}", gradients.no_gradients)
    torch.library.register_autograd("winograd::conv2d", gradients.backward, setup_context=gradients.save_for_backward)
