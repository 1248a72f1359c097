"""Runs an operator on shapes alone: tensors of the `meta` device, which have no data.

torch's own rules for some everyday operators are Python that first loads its whole compiler, which takes longer than reading
most networks; those operators have their rules here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workers.models.graph import aten

_SHAPE_KEEPING = frozenset(
    {
        aten.relu.default, aten.clamp.default, aten.leaky_relu.default, aten.elu.default, aten.gelu.default, aten.sigmoid.default,
        aten.hardsigmoid.default, aten.silu.default, aten.hardswish.default, aten.mish.default, aten.tanh.default,
        aten.softplus.default, aten.abs.default, aten.neg.default, aten.exp.default, aten.log.default, aten.sqrt.default,
        aten.reciprocal.default, aten.erf.default, aten.floor.default, aten.ceil.default, aten.pow.Tensor_Scalar,
    }
)  # fmt: skip
_BINARY = frozenset(
    {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default}
)


def run_on_shapes(
    target: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:  # Any: what the operator takes and returns
    """What `target` returns, without data. Raises what torch raises where shapes don't fit."""
    if target in _SHAPE_KEEPING and args[0].is_floating_point():
        return torch.empty_like(args[0])
    if target in _BINARY and _is_float(args[0]) and _is_float(args[1]):
        return _binary(args[0], args[1])
    if target is aten.linear.default:
        return _linear(*args)
    if target is aten.batch_norm.default:
        return _batch_norm(*args[:5])
    if target is aten.cat.default:
        return _cat(*args)
    if target is aten.mean.dim and args[0].is_floating_point():
        return _mean(*args)
    if target is aten.adaptive_avg_pool2d.default and args[0].dim() == 4:
        return args[0].new_empty((*args[0].shape[:2], *args[1]))
    with torch.no_grad():
        return target(*args, **kwargs)


def _is_float(value: object) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.is_floating_point())


def _binary(left: Tensor, right: Tensor | float) -> Tensor:
    other = right if isinstance(right, Tensor) else torch.empty((), dtype=left.dtype, device="meta")
    shape = torch.broadcast_tensors(left, other)[0].shape  # type: ignore[no-untyped-call]
    return torch.empty(shape, dtype=torch.result_type(left, right), device="meta")


def _linear(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    outputs, inputs = weight.shape
    if features.shape[-1] != inputs or features.dtype != weight.dtype:
        raise ValueError(f"features of shape {tuple(features.shape)} for weights of shape {tuple(weight.shape)}")
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise ValueError(f"a bias of shape {tuple(bias.shape)} for weights of shape {tuple(weight.shape)}")
    return features.new_empty((*features.shape[:-1], outputs))


def _batch_norm(image: Tensor, *statistics: Tensor | None) -> Tensor:
    channels = image.shape[1]
    for tensor in statistics:
        if tensor is not None and tuple(tensor.shape) != (channels,):
            raise ValueError(f"statistics of shape {tuple(tensor.shape)} for {channels} channels")
    return torch.empty_like(image)


def _cat(tensors: list[Tensor], dim: int) -> Tensor:
    shapes = [list(tensor.shape) for tensor in tensors]
    others = {(*shape[:dim], *shape[dim + 1 :]) for shape in shapes}
    if len(others) != 1 or len({tensor.dtype for tensor in tensors}) != 1:
        raise ValueError(f"tensors of shapes {shapes} can't be put together along dimension {dim}")
    shapes[0][dim] = sum(shape[dim] for shape in shapes)
    return tensors[0].new_empty(shapes[0])


def _mean(tensor: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    kept = [1 if place in dims else size for place, size in enumerate(tensor.shape)]
    return tensor.new_empty(kept if keepdim else [size for place, size in enumerate(kept) if place not in dims])
