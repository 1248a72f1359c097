"""The operators that a `.pt2` file may hold: an allow-list. Names from a file are looked up in it and nowhere else.

ATen's are called by their plain names, others with their namespace."""

import torch

from workers.models import aten_handlers as handlers
from workers.models.aten_handlers import Handler
from workers.models.graph import aten, winograd_conv2d

HANDLERS: dict[str, Handler] = {
    "conv2d.default": handlers.conv2d,
    "conv2d.padding": handlers.conv2d_padded_by_word,
    "conv_transpose2d.input": handlers.conv_transpose2d,
    "convolution.default": handlers.convolution,
    "linear.default": handlers.linear,
    "winograd::conv2d.default": handlers.winograd_conv2d,
    "addmm.default": handlers.addmm,
    "mm.default": handlers.matmul,
    "bmm.default": handlers.matmul,
    "matmul.default": handlers.matmul,
    "batch_norm.default": handlers.batch_norm,
    "_native_batch_norm_legit_no_training.default": handlers.first_of_batch_norm,
    "_native_batch_norm_legit.default": handlers.first_of_batch_norm,
    "_native_batch_norm_legit_functional.default": handlers.first_of_batch_norm,
    "native_batch_norm.default": handlers.first_of_batch_norm,
    "layer_norm.default": handlers.layer_norm,
    "native_layer_norm.default": handlers.first_of_layer_norm,
    "group_norm.default": handlers.group_norm,
    "native_group_norm.default": handlers.first_of_group_norm,
    "dropout.default": handlers.same,
    "feature_dropout.default": handlers.same,
    "alpha_dropout.default": handlers.same,
    "native_dropout.default": handlers.first_of_dropout,
    "clone.default": handlers.same,
    "contiguous.default": handlers.same,
    "detach.default": handlers.same,
    "alias.default": handlers.same,
    "lift_fresh_copy.default": handlers.same,
    "relu.default": handlers.unary(aten.relu.default),
    "relu6.default": handlers.relu6,
    "hardtanh.default": handlers.clamp,
    "clamp.default": handlers.clamp,
    "clip.default": handlers.clamp,
    "clamp_min.default": handlers.clamp,
    "clamp_max.default": handlers.clamp,
    "leaky_relu.default": handlers.unary(aten.leaky_relu.default),
    "elu.default": handlers.elu,
    "selu.default": handlers.selu,
    "prelu.default": handlers.unary(aten.prelu.default),
    "_prelu_kernel.default": handlers.unary(aten.prelu.default),
    "gelu.default": handlers.gelu,
    "sigmoid.default": handlers.unary(aten.sigmoid.default),
    "hardsigmoid.default": handlers.unary(aten.hardsigmoid.default),
    "silu.default": handlers.unary(aten.silu.default),
    "hardswish.default": handlers.unary(aten.hardswish.default),
    "mish.default": handlers.unary(aten.mish.default),
    "tanh.default": handlers.unary(aten.tanh.default),
    "softplus.default": handlers.unary(aten.softplus.default),
    "abs.default": handlers.unary(aten.abs.default),
    "neg.default": handlers.unary(aten.neg.default),
    "exp.default": handlers.unary(aten.exp.default),
    "log.default": handlers.unary(aten.log.default),
    "sqrt.default": handlers.unary(aten.sqrt.default),
    "rsqrt.default": handlers.rsqrt,
    "square.default": handlers.square,
    "reciprocal.default": handlers.unary(aten.reciprocal.default),
    "erf.default": handlers.unary(aten.erf.default),
    "floor.default": handlers.unary(aten.floor.default),
    "ceil.default": handlers.unary(aten.ceil.default),
    "pow.Tensor_Scalar": handlers.unary(aten.pow.Tensor_Scalar),
    "softmax.int": handlers.softmax(aten.softmax.int),
    "_softmax.default": handlers.softmax(aten.softmax.int),
    "log_softmax.int": handlers.softmax(aten.log_softmax.int),
    "_log_softmax.default": handlers.softmax(aten.log_softmax.int),
    "add.Tensor": handlers.binary(aten.add.Tensor),
    "add.Scalar": handlers.binary(aten.add.Tensor),
    "sub.Tensor": handlers.binary(aten.sub.Tensor),
    "sub.Scalar": handlers.binary(aten.sub.Tensor),
    "rsub.Scalar": handlers.rsub,
    "mul.Tensor": handlers.binary(aten.mul.Tensor),
    "mul.Scalar": handlers.binary(aten.mul.Tensor),
    "div.Tensor": handlers.binary(aten.div.Tensor),
    "div.Scalar": handlers.binary(aten.div.Tensor),
    "maximum.default": handlers.binary(aten.maximum.default),
    "max.other": handlers.binary(aten.maximum.default),
    "minimum.default": handlers.binary(aten.minimum.default),
    "min.other": handlers.binary(aten.minimum.default),
    "to.dtype": handlers.cast,
    "to.dtype_layout": handlers.cast,
    "_to_copy.default": handlers.cast,
    "max_pool2d.default": handlers.max_pool2d,
    "max_pool2d_with_indices.default": handlers.first_of_max_pool2d,
    "avg_pool2d.default": handlers.avg_pool2d,
    "adaptive_avg_pool2d.default": handlers.adaptive_avg_pool2d,
    "_adaptive_avg_pool2d.default": handlers.adaptive_avg_pool2d,
    "adaptive_max_pool2d.default": handlers.adaptive_max_pool2d,
    "mean.dim": handlers.reduce(aten.mean.dim),
    "mean.default": handlers.reduce(aten.mean.dim),
    "sum.dim_IntList": handlers.reduce(aten.sum.dim_IntList),
    "sum.default": handlers.reduce(aten.sum.dim_IntList),
    "amax.default": handlers.reduce(aten.amax.default),
    "amin.default": handlers.reduce(aten.amin.default),
    "argmax.default": handlers.unary(aten.argmax.default),
    "reshape.default": handlers.reshape,
    "view.default": handlers.reshape,
    "_unsafe_view.default": handlers.reshape,
    "flatten.using_ints": handlers.flatten,
    "unflatten.int": handlers.unflatten,
    "squeeze.default": handlers.squeeze,
    "squeeze.dim": handlers.squeeze,
    "squeeze.dims": handlers.squeeze,
    "unsqueeze.default": handlers.unsqueeze,
    "permute.default": handlers.permute,
    "transpose.int": handlers.transpose,
    "t.default": handlers.transpose_matrix,
    "numpy_T.default": handlers.transpose_matrix,
    "expand.default": handlers.expand,
    "cat.default": handlers.cat,
    "concat.default": handlers.cat,
    "stack.default": handlers.stack,
    "slice.Tensor": handlers.slice_along,
    "select.int": handlers.select,
    "split.Tensor": handlers.split,
    "split_with_sizes.default": handlers.split_with_sizes,
    "split.sizes": handlers.split_with_sizes,
    "chunk.default": handlers.chunk,
    "unbind.int": handlers.unbind,
    "pad.default": handlers.pad,
    "constant_pad_nd.default": handlers.pad,
    "reflection_pad2d.default": handlers.padding_of("reflect"),
    "replication_pad2d.default": handlers.padding_of("replicate"),
    "upsample_nearest2d.vec": handlers.upsample_nearest2d,
    "upsample_nearest2d.default": handlers.upsample_to_size(handlers.upsample_nearest2d),
    "upsample_bilinear2d.vec": handlers.upsample_bilinear2d,
    "upsample_bilinear2d.default": handlers.upsample_to_size(handlers.upsample_bilinear2d),
    "pixel_shuffle.default": handlers.unary(aten.pixel_shuffle.default),
    "pixel_unshuffle.default": handlers.unary(aten.pixel_unshuffle.default),
    "sym_size.int": handlers.sym_size,
}

# Operators whose result may share memory with their first argument: changing one in place changes the other.
VIEWS = frozenset(
    name
    for name, handler in HANDLERS.items()
    if handler
    in (
        handlers.reshape,
        handlers.flatten,
        handlers.unflatten,
        handlers.squeeze,
        handlers.unsqueeze,
        handlers.permute,
        handlers.transpose,
        handlers.transpose_matrix,
        handlers.expand,
        handlers.slice_along,
    )
    or handler
    in (handlers.select, handlers.split, handlers.split_with_sizes, handlers.chunk, handlers.unbind, handlers.cast)
    or (handler is handlers.same and name != "clone.default")
) - {"_to_copy.default"}

# Operators that change their first argument and return it; each is one of the above with an underscore.
IN_PLACE: dict[str, str] = {
    f"{base}_.{kind}": f"{base}.{kind}"
    for base, kind in (
        name.split(".") for name, handler in HANDLERS.items() if name not in VIEWS or handler is handlers.same
    )
    if hasattr(aten, f"{base}_")
}

# Operators that may be given a number in place of one of their tensors.
TAKE_NUMBERS = frozenset({"add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor"})

# Checks that the exporter wrote into the graph; they compute nothing.
CHECKS = frozenset(
    {"_assert_scalar.default", "_assert_tensor_metadata.default", "sym_constrain_range_for_size.default"}
)


def overload(name: str) -> torch._ops.OpOverload:
    """The overload behind a name of the table."""
    if name == "winograd::conv2d.default":
        return winograd_conv2d
    packet, _, kind = name.partition(".")
    found = getattr(getattr(aten, packet), kind)
    assert isinstance(found, torch._ops.OpOverload)
    return found
