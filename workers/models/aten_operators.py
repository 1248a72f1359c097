"""The ATen operators that a `.pt2` file may hold, and what each becomes in the canonical graph.

The table at the end is the allow-list. Names from a file are looked up in it and nowhere else.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from workers.models import canonical
from workers.models.canonical import pair
from workers.models.graph import aten
from workers.models.graph_builder import Constant, GraphBuilder, Operator, Value

# Arguments by the names of the operator's schema, defaults filled in and types checked against it.
# Any: a Value, a number, a string, None, or a list of these, as the schema says.
Arguments = dict[str, Any]
Result = Value | list[Value]
Handler = Callable[[GraphBuilder, Arguments], Result]


def _conv2d(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.conv2d(
        b, a["input"], a["weight"], a["bias"],
        stride=pair(b, a["stride"]), padding=pair(b, a["padding"]), dilation=pair(b, a["dilation"]),
        groups=_integer(b, a["groups"]),
    )  # fmt: skip


def _conv2d_padded_by_word(b: GraphBuilder, a: Arguments) -> Value:
    image, padding, dilation = a["input"], (0, 0), pair(b, a["dilation"])
    if a["padding"] == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, b.probes(a["weight"])[0].shape[2:], strict=True)]
        if all(total % 2 == 0 for total in totals):
            padding = (totals[0] // 2, totals[1] // 2)
        else:
            top, left = (total // 2 for total in totals)
            image = canonical.pad(b, image, [left, totals[1] - left, top, totals[0] - top], "constant", 0.0)
    elif a["padding"] != "valid":
        raise b.refuse(f"padding {a['padding']!r} is not known")
    return canonical.conv2d(
        b, image, a["weight"], a["bias"],
        stride=pair(b, a["stride"]), padding=padding, dilation=dilation, groups=_integer(b, a["groups"]),
    )  # fmt: skip


def _conv_transpose2d(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.conv_transpose2d(
        b, a["input"], a["weight"], a["bias"],
        stride=pair(b, a["stride"]), padding=pair(b, a["padding"]), output_padding=pair(b, a["output_padding"]),
        groups=_integer(b, a["groups"]), dilation=pair(b, a["dilation"]),
    )  # fmt: skip


def _convolution(b: GraphBuilder, a: Arguments) -> Value:
    return _conv_transpose2d(b, a) if a["transposed"] else _conv2d(b, a)


def _linear(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.linear(b, a["input"], a["weight"], a["bias"])


def _addmm(b: GraphBuilder, a: Arguments) -> Value:
    if (a["beta"], a["alpha"]) != (1, 1):
        raise b.refuse("it scales its operands")
    bias, right = a["self"], a["mat2"]
    if isinstance(bias, Constant) and isinstance(right, Constant) and bias.tensor.dim() == 1:
        return canonical.linear(b, a["mat1"], canonical.transposed(right), bias)
    return canonical.add(b, canonical.matmul(b, a["mat1"], right), bias)


def _matmul(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.matmul(b, a["self"], a["mat2"] if "mat2" in a else a["other"])


def _batch_norm(b: GraphBuilder, a: Arguments) -> Value:
    if a.get("training"):
        warning = "the model was exported in training mode; batch normalisation is used in evaluation mode"
        if warning not in b.warnings:
            b.warnings.append(warning)
    return canonical.batch_norm(
        b, a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"],
        momentum=float(a["momentum"]), eps=float(a["eps"]),
    )  # fmt: skip


def _first_of_batch_norm(b: GraphBuilder, a: Arguments) -> list[Value]:
    return [_batch_norm(b, a)]


def _layer_norm(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.layer_norm.default, a["input"], a["normalized_shape"], a["weight"], a["bias"], a["eps"], False)


def _first_of_layer_norm(b: GraphBuilder, a: Arguments) -> list[Value]:
    return [_layer_norm(b, a)]


def _group_norm(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.group_norm.default, a["input"], a["num_groups"], a["weight"], a["bias"], a["eps"], False)


def _first_of_group_norm(b: GraphBuilder, a: Arguments) -> list[Value]:
    return [b.call(aten.group_norm.default, a["input"], a["group"], a["weight"], a["bias"], a["eps"], False)]


def _same(_b: GraphBuilder, a: Arguments) -> Value:
    """What does nothing when a network is only evaluated."""
    value: Value = a["self"] if "self" in a else a["input"]
    return value


def _first_of_dropout(_b: GraphBuilder, a: Arguments) -> list[Value]:
    value: Value = a["input"]
    return [value]


def _clamp(b: GraphBuilder, a: Arguments) -> Value:
    low = a["min_val"] if "min_val" in a else a.get("min")
    high = a["max_val"] if "max_val" in a else a.get("max")
    return canonical.clamp(b, a["self"], low, high)


def _relu6(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.clamp(b, a["self"], 0, 6)


def _unary(target: Operator) -> Handler:
    """An operator of one tensor and numbers that is canonical already."""

    def handler(b: GraphBuilder, a: Arguments) -> Value:
        return b.call(target, *a.values())

    return handler


def _elu(b: GraphBuilder, a: Arguments) -> Value:
    if a["input_scale"] != 1:
        raise b.refuse("it scales its input")
    return b.call(aten.elu.default, a["self"], a["alpha"], a["scale"], 1)


def _selu(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.elu.default, a["self"], 1.6732632423543772, 1.0507009873554805, 1)


def _gelu(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.gelu.default, a["self"], approximate=a["approximate"])


def _rsqrt(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.reciprocal.default, b.call(aten.sqrt.default, a["self"]))


def _square(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.pow.Tensor_Scalar, a["self"], 2)


def _softmax(target: Operator) -> Handler:
    def handler(b: GraphBuilder, a: Arguments) -> Value:
        value = a["self"] if a.get("dtype") is None else canonical.cast(b, a["self"], a["dtype"])
        return b.call(target, value, canonical.dimension(b, a["dim"], b.rank(value)))

    return handler


def _binary(target: Operator) -> Handler:
    """Arithmetic of two tensors, or of a tensor and a number."""

    def handler(b: GraphBuilder, a: Arguments) -> Value:
        other = a["other"]
        if a.get("alpha", 1) != 1:
            other = (
                other * a["alpha"] if isinstance(other, (int, float)) else b.call(aten.mul.Tensor, other, a["alpha"])
            )
        return b.call(target, a["self"], other)

    return handler


def _rsub(b: GraphBuilder, a: Arguments) -> Value:
    negative = b.call(aten.mul.Tensor, a["self"], -a["alpha"])
    return canonical.add(b, negative, a["other"])


def _cast(b: GraphBuilder, a: Arguments) -> Value:
    return a["self"] if a["dtype"] is None else canonical.cast(b, a["self"], a["dtype"])


def _max_pool2d(b: GraphBuilder, a: Arguments) -> Value:
    size = pair(b, a["kernel_size"])
    return canonical.max_pool2d(
        b, a["self"], size=size, stride=pair(b, a["stride"] or list(size)), padding=pair(b, a["padding"]),
        dilation=pair(b, a["dilation"]), ceil_mode=a["ceil_mode"],
    )  # fmt: skip


def _first_of_max_pool2d(b: GraphBuilder, a: Arguments) -> list[Value]:
    return [_max_pool2d(b, a)]


def _avg_pool2d(b: GraphBuilder, a: Arguments) -> Value:
    size = pair(b, a["kernel_size"])
    return canonical.avg_pool2d(
        b, a["self"], size=size, stride=pair(b, a["stride"] or list(size)), padding=pair(b, a["padding"]),
        ceil_mode=a["ceil_mode"], count_include_pad=a["count_include_pad"], divisor=a["divisor_override"],
    )  # fmt: skip


def _adaptive_avg_pool2d(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.adaptive_avg_pool2d(b, a["self"], pair(b, a["output_size"]))


def _adaptive_max_pool2d(b: GraphBuilder, a: Arguments) -> list[Value]:
    if pair(b, a["output_size"]) != (1, 1):
        raise b.refuse("only adaptive maximum pooling to 1x1 is supported")
    return [b.call(aten.amax.default, a["self"], [2, 3], True)]


def _reduce(target: Operator) -> Handler:
    def handler(b: GraphBuilder, a: Arguments) -> Value:
        value = a["self"] if a.get("dtype") is None else canonical.cast(b, a["self"], a["dtype"])
        rank = b.rank(value)
        dims = [canonical.dimension(b, dim, rank) for dim in a.get("dim") or range(rank)]
        return b.call(target, value, dims, bool(a.get("keepdim", False)))

    return handler


def _reshape(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.reshape(b, a["self"], a["shape"] if "shape" in a else a["size"])


def _flatten(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.flatten(b, a["self"], a["start_dim"], a["end_dim"])


def _unflatten(b: GraphBuilder, a: Arguments) -> Value:
    rank = b.rank(a["self"])
    dim = canonical.dimension(b, a["dim"], rank)
    before = [b.size(a["self"], place) for place in range(dim)]
    after = [b.size(a["self"], place) for place in range(dim + 1, rank)]
    return canonical.reshape(b, a["self"], [*before, *a["sizes"], *after])


def _squeeze(b: GraphBuilder, a: Arguments) -> Value:
    dim = a.get("dim")
    return canonical.squeeze(b, a["self"], [dim] if isinstance(dim, int) else dim)


def _unsqueeze(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.unsqueeze(b, a["self"], [a["dim"]])


def _permute(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.permute(b, a["self"], a["dims"])


def _transpose(b: GraphBuilder, a: Arguments) -> Value:
    order = list(range(b.rank(a["self"])))
    one, other = (canonical.dimension(b, a[key], len(order)) for key in ("dim0", "dim1"))
    order[one], order[other] = order[other], order[one]
    return canonical.permute(b, a["self"], order)


def _transpose_matrix(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.permute(b, a["self"], list(range(b.rank(a["self"])))[::-1])


def _expand(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.expand.default, a["self"], a["size"])


def _cat(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.cat.default, a["tensors"], canonical.dimension(b, a["dim"], b.rank(a["tensors"][0])))


def _stack(b: GraphBuilder, a: Arguments) -> Value:
    dim = canonical.dimension(b, a["dim"], b.rank(a["tensors"][0]) + 1)
    return b.call(aten.cat.default, [canonical.unsqueeze(b, tensor, [dim]) for tensor in a["tensors"]], dim)


def _slice(b: GraphBuilder, a: Arguments) -> Value:
    start = 0 if a["start"] is None else _integer(b, a["start"])
    end = 2**63 - 1 if a["end"] is None else _integer(b, a["end"])
    return canonical.slice_along(b, a["self"], a["dim"], start, end, _integer(b, a["step"]))


def _select(b: GraphBuilder, a: Arguments) -> Value:
    dim = canonical.dimension(b, a["dim"], b.rank(a["self"]))
    return b.call(aten.select.int, a["self"], dim, _integer(b, a["index"]))


def _split(b: GraphBuilder, a: Arguments) -> list[Value]:
    size = _fixed_size(b, a)
    step = _integer(b, a["split_size"])
    if step < 1:
        raise b.refuse(f"parts of {step} are impossible")
    return _parts(b, a, [min(step, size - start) for start in range(0, size, step)])


def _chunk(b: GraphBuilder, a: Arguments) -> list[Value]:
    return _split(b, {**a, "split_size": max(1, math.ceil(_fixed_size(b, a) / max(1, a["chunks"])))})


def _split_with_sizes(b: GraphBuilder, a: Arguments) -> list[Value]:
    return _parts(b, a, [_integer(b, size) for size in a["split_sizes"]])


def _fixed_size(b: GraphBuilder, a: Arguments) -> int:
    size = b.shape(a["self"])[canonical.dimension(b, a["dim"], b.rank(a["self"]))]
    if size is None:
        raise b.refuse("a dimension that varies can't be split")
    return size


def _parts(b: GraphBuilder, a: Arguments, sizes: list[int]) -> list[Value]:
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [
        canonical.slice_along(b, a["self"], a["dim"], start, start + size)
        for start, size in zip(starts, sizes, strict=True)
    ]


def _unbind(b: GraphBuilder, a: Arguments) -> list[Value]:
    dim = canonical.dimension(b, a["dim"], b.rank(a["self"]))
    return [b.call(aten.select.int, a["self"], dim, index) for index in range(_fixed_size(b, a))]


def _pad(b: GraphBuilder, a: Arguments) -> Value:
    amounts = [_integer(b, amount) for amount in a["pad"]]
    return canonical.pad(b, a["self"], amounts, a.get("mode", "constant"), float(a.get("value") or 0.0))


def _padding_of(mode: str) -> Handler:
    def handler(b: GraphBuilder, a: Arguments) -> Value:
        return canonical.pad(b, a["self"], [_integer(b, amount) for amount in a["padding"]], mode, 0.0)

    return handler


def _upsample_nearest2d(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.upsample_nearest2d.vec, a["input"], *_new_size(b, a))


def _upsample_bilinear2d(b: GraphBuilder, a: Arguments) -> Value:
    size, scales = _new_size(b, a)
    return b.call(aten.upsample_bilinear2d.vec, a["input"], size, a["align_corners"], scales)


def _new_size(b: GraphBuilder, a: Arguments) -> tuple[list[int] | None, list[float] | None]:
    if a["scale_factors"] is not None:
        return None, [float(scale) for scale in a["scale_factors"]]
    if a["output_size"] is None:
        raise b.refuse("it has neither a size nor a scale")
    return [_integer(b, size) for size in a["output_size"]], None


def _upsample_to_size(handler: Handler) -> Handler:
    """The form that holds both: the scale is what the network meant, if it is there."""

    def with_scales(b: GraphBuilder, a: Arguments) -> Result:
        scales = [a["scales_h"], a["scales_w"]]
        return handler(b, {**a, "input": a["self"], "scale_factors": None if None in scales else scales})

    return with_scales


def _sym_size(b: GraphBuilder, a: Arguments) -> Value:
    # A size is a number or a node that computes one, never a tensor; the reader keeps both in the same place.
    size: Any = b.size(a["self"], canonical.dimension(b, a["dim"], b.rank(a["self"])))
    return size  # type: ignore[no-any-return]


def _integer(b: GraphBuilder, value: object) -> int:
    if isinstance(value, fx.Node):
        raise b.refuse("a size that varies with the input stands where only a fixed number is supported")
    assert isinstance(value, int)
    return value


HANDLERS: dict[str, Handler] = {
    "conv2d.default": _conv2d,
    "conv2d.padding": _conv2d_padded_by_word,
    "conv_transpose2d.input": _conv_transpose2d,
    "convolution.default": _convolution,
    "linear.default": _linear,
    "addmm.default": _addmm,
    "mm.default": _matmul,
    "bmm.default": _matmul,
    "matmul.default": _matmul,
    "batch_norm.default": _batch_norm,
    "_native_batch_norm_legit_no_training.default": _first_of_batch_norm,
    "_native_batch_norm_legit.default": _first_of_batch_norm,
    "_native_batch_norm_legit_functional.default": _first_of_batch_norm,
    "native_batch_norm.default": _first_of_batch_norm,
    "layer_norm.default": _layer_norm,
    "native_layer_norm.default": _first_of_layer_norm,
    "group_norm.default": _group_norm,
    "native_group_norm.default": _first_of_group_norm,
    "dropout.default": _same,
    "feature_dropout.default": _same,
    "alpha_dropout.default": _same,
    "native_dropout.default": _first_of_dropout,
    "clone.default": _same,
    "contiguous.default": _same,
    "detach.default": _same,
    "alias.default": _same,
    "lift_fresh_copy.default": _same,
    "relu.default": _unary(aten.relu.default),
    "relu6.default": _relu6,
    "hardtanh.default": _clamp,
    "clamp.default": _clamp,
    "clip.default": _clamp,
    "clamp_min.default": _clamp,
    "clamp_max.default": _clamp,
    "leaky_relu.default": _unary(aten.leaky_relu.default),
    "elu.default": _elu,
    "selu.default": _selu,
    "prelu.default": _unary(aten.prelu.default),
    "_prelu_kernel.default": _unary(aten.prelu.default),
    "gelu.default": _gelu,
    "sigmoid.default": _unary(aten.sigmoid.default),
    "hardsigmoid.default": _unary(aten.hardsigmoid.default),
    "silu.default": _unary(aten.silu.default),
    "hardswish.default": _unary(aten.hardswish.default),
    "mish.default": _unary(aten.mish.default),
    "tanh.default": _unary(aten.tanh.default),
    "softplus.default": _unary(aten.softplus.default),
    "abs.default": _unary(aten.abs.default),
    "neg.default": _unary(aten.neg.default),
    "exp.default": _unary(aten.exp.default),
    "log.default": _unary(aten.log.default),
    "sqrt.default": _unary(aten.sqrt.default),
    "rsqrt.default": _rsqrt,
    "square.default": _square,
    "reciprocal.default": _unary(aten.reciprocal.default),
    "erf.default": _unary(aten.erf.default),
    "floor.default": _unary(aten.floor.default),
    "ceil.default": _unary(aten.ceil.default),
    "pow.Tensor_Scalar": _unary(aten.pow.Tensor_Scalar),
    "softmax.int": _softmax(aten.softmax.int),
    "_softmax.default": _softmax(aten.softmax.int),
    "log_softmax.int": _softmax(aten.log_softmax.int),
    "_log_softmax.default": _softmax(aten.log_softmax.int),
    "add.Tensor": _binary(aten.add.Tensor),
    "add.Scalar": _binary(aten.add.Tensor),
    "sub.Tensor": _binary(aten.sub.Tensor),
    "sub.Scalar": _binary(aten.sub.Tensor),
    "rsub.Scalar": _rsub,
    "mul.Tensor": _binary(aten.mul.Tensor),
    "mul.Scalar": _binary(aten.mul.Tensor),
    "div.Tensor": _binary(aten.div.Tensor),
    "div.Scalar": _binary(aten.div.Tensor),
    "maximum.default": _binary(aten.maximum.default),
    "max.other": _binary(aten.maximum.default),
    "minimum.default": _binary(aten.minimum.default),
    "min.other": _binary(aten.minimum.default),
    "to.dtype": _cast,
    "to.dtype_layout": _cast,
    "_to_copy.default": _cast,
    "max_pool2d.default": _max_pool2d,
    "max_pool2d_with_indices.default": _first_of_max_pool2d,
    "avg_pool2d.default": _avg_pool2d,
    "adaptive_avg_pool2d.default": _adaptive_avg_pool2d,
    "_adaptive_avg_pool2d.default": _adaptive_avg_pool2d,
    "adaptive_max_pool2d.default": _adaptive_max_pool2d,
    "mean.dim": _reduce(aten.mean.dim),
    "mean.default": _reduce(aten.mean.dim),
    "sum.dim_IntList": _reduce(aten.sum.dim_IntList),
    "sum.default": _reduce(aten.sum.dim_IntList),
    "amax.default": _reduce(aten.amax.default),
    "amin.default": _reduce(aten.amin.default),
    "argmax.default": _unary(aten.argmax.default),
    "reshape.default": _reshape,
    "view.default": _reshape,
    "_unsafe_view.default": _reshape,
    "flatten.using_ints": _flatten,
    "unflatten.int": _unflatten,
    "squeeze.default": _squeeze,
    "squeeze.dim": _squeeze,
    "squeeze.dims": _squeeze,
    "unsqueeze.default": _unsqueeze,
    "permute.default": _permute,
    "transpose.int": _transpose,
    "t.default": _transpose_matrix,
    "numpy_T.default": _transpose_matrix,
    "expand.default": _expand,
    "cat.default": _cat,
    "concat.default": _cat,
    "stack.default": _stack,
    "slice.Tensor": _slice,
    "select.int": _select,
    "split.Tensor": _split,
    "split_with_sizes.default": _split_with_sizes,
    "split.sizes": _split_with_sizes,
    "chunk.default": _chunk,
    "unbind.int": _unbind,
    "pad.default": _pad,
    "constant_pad_nd.default": _pad,
    "reflection_pad2d.default": _padding_of("reflect"),
    "replication_pad2d.default": _padding_of("replicate"),
    "upsample_nearest2d.vec": _upsample_nearest2d,
    "upsample_nearest2d.default": _upsample_to_size(_upsample_nearest2d),
    "upsample_bilinear2d.vec": _upsample_bilinear2d,
    "upsample_bilinear2d.default": _upsample_to_size(_upsample_bilinear2d),
    "pixel_shuffle.default": _unary(aten.pixel_shuffle.default),
    "pixel_unshuffle.default": _unary(aten.pixel_unshuffle.default),
    "sym_size.int": _sym_size,
}

# Operators whose result may share memory with their first argument: changing one in place changes the other.
VIEWS = frozenset(
    name
    for name, handler in HANDLERS.items()
    if handler
    in (_reshape, _flatten, _unflatten, _squeeze, _unsqueeze, _permute, _transpose, _transpose_matrix, _expand, _slice)
    or handler in (_select, _split, _split_with_sizes, _chunk, _unbind, _cast)
    or (handler is _same and name != "clone.default")
) - {"_to_copy.default"}

# Operators that change their first argument and return it; each is one of the above with an underscore.
IN_PLACE: dict[str, str] = {
    f"{base}_.{kind}": f"{base}.{kind}"
    for base, kind in (name.split(".") for name, handler in HANDLERS.items() if name not in VIEWS or handler is _same)
    if hasattr(aten, f"{base}_")
}

# Checks that the exporter wrote into the graph; they compute nothing.
CHECKS = frozenset(
    {"_assert_scalar.default", "_assert_tensor_metadata.default", "sym_constrain_range_for_size.default"}
)


def overload(name: str) -> torch._ops.OpOverload:
    """The ATen overload behind a name of the table."""
    packet, _, kind = name.partition(".")
    found = getattr(getattr(aten, packet), kind)
    assert isinstance(found, torch._ops.OpOverload)
    return found
