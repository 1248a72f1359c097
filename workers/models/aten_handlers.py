"""What each ATen operator of a `.pt2` file becomes in the canonical graph: one function for each, named in `aten_operators`."""

import math
from collections.abc import Callable, Sequence
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

MAX_PARTS = 4096  # that one operator may cut a tensor into


def conv2d(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.conv2d(
        b, a["input"], a["weight"], a["bias"],
        stride=pair(b, a["stride"]), padding=pair(b, a["padding"]), dilation=pair(b, a["dilation"]),
        groups=_integer(b, a["groups"]),
    )  # fmt: skip


def conv2d_padded_by_word(b: GraphBuilder, a: Arguments) -> Value:
    image, padding, dilation = a["input"], (0, 0), pair(b, a["dilation"])
    if b.rank(a["weight"]) != 4:
        raise b.refuse("only convolutions of two dimensions are supported")
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


def conv_transpose2d(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.conv_transpose2d(
        b, a["input"], a["weight"], a["bias"],
        stride=pair(b, a["stride"]), padding=pair(b, a["padding"]), output_padding=pair(b, a["output_padding"]),
        groups=_integer(b, a["groups"]), dilation=pair(b, a["dilation"]),
    )  # fmt: skip


def convolution(b: GraphBuilder, a: Arguments) -> Value:
    return conv_transpose2d(b, a) if a["transposed"] else conv2d(b, a)


def winograd_conv2d(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.winograd_convolution(
        b, a["input"], a["weights"], a["bias"], positions=a["positions"], m=_integer(b, a["m"]), padding=pair(b, a["padding"]),
        residual=a["residual"], activation=a["activation"], groups=_integer(b, a["groups"]),
    )  # fmt: skip


def linear(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.linear(b, a["input"], a["weight"], a["bias"])


def addmm(b: GraphBuilder, a: Arguments) -> Value:
    if (a["beta"], a["alpha"]) != (1, 1):
        raise b.refuse("it scales its operands")
    bias, right = a["self"], a["mat2"]
    if isinstance(bias, Constant) and isinstance(right, Constant) and bias.tensor.dim() == 1:
        return canonical.linear(b, a["mat1"], canonical.transposed(b, right), bias)
    return canonical.add(b, canonical.matmul(b, a["mat1"], right), bias)


def matmul(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.matmul(b, a["self"], a["mat2"] if "mat2" in a else a["other"])


def batch_norm(b: GraphBuilder, a: Arguments) -> Value:
    if a.get("training"):
        warning = "the model was exported in training mode; batch normalisation is used in evaluation mode"
        if warning not in b.warnings:
            b.warnings.append(warning)
    return canonical.batch_norm(
        b, a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"],
        momentum=float(a["momentum"]), eps=float(a["eps"]),
    )  # fmt: skip


def first_of_batch_norm(b: GraphBuilder, a: Arguments) -> list[Value]:
    return [batch_norm(b, a)]


def layer_norm(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.layer_norm.default, a["input"], a["normalized_shape"], a["weight"], a["bias"], a["eps"], False)


def first_of_layer_norm(b: GraphBuilder, a: Arguments) -> list[Value]:
    return [layer_norm(b, a)]


def group_norm(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.group_norm.default, a["input"], a["num_groups"], a["weight"], a["bias"], a["eps"], False)


def first_of_group_norm(b: GraphBuilder, a: Arguments) -> list[Value]:
    return [b.call(aten.group_norm.default, a["input"], a["group"], a["weight"], a["bias"], a["eps"], False)]


def same(_b: GraphBuilder, a: Arguments) -> Value:
    """What does nothing when a network is only evaluated."""
    value: Value = a["self"] if "self" in a else a["input"]
    return value


def first_of_dropout(_b: GraphBuilder, a: Arguments) -> list[Value]:
    value: Value = a["input"]
    return [value]


def clamp(b: GraphBuilder, a: Arguments) -> Value:
    low = a["min_val"] if "min_val" in a else a.get("min")
    high = a["max_val"] if "max_val" in a else a.get("max")
    return canonical.clamp(b, a["self"], low, high)


def relu6(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.clamp(b, a["self"], 0, 6)


def unary(target: Operator) -> Handler:
    """An operator of one tensor and numbers that is canonical already."""

    def handler(b: GraphBuilder, a: Arguments) -> Value:
        return b.call(target, *a.values())

    return handler


def elu(b: GraphBuilder, a: Arguments) -> Value:
    if a["input_scale"] != 1:
        raise b.refuse("it scales its input")
    return b.call(aten.elu.default, a["self"], a["alpha"], a["scale"], 1)


def selu(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.elu.default, a["self"], 1.6732632423543772, 1.0507009873554805, 1)


def gelu(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.gelu.default, a["self"], approximate=a["approximate"])


def rsqrt(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.reciprocal.default, b.call(aten.sqrt.default, a["self"]))


def square(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.pow.Tensor_Scalar, a["self"], 2)


def softmax(target: Operator) -> Handler:
    def handler(b: GraphBuilder, a: Arguments) -> Value:
        value = a["self"] if a.get("dtype") is None else canonical.cast(b, a["self"], a["dtype"])
        return b.call(target, value, canonical.dimension(b, a["dim"], b.rank(value)))

    return handler


def binary(target: Operator) -> Handler:
    """Arithmetic of two tensors, or of a tensor and a number."""

    def handler(b: GraphBuilder, a: Arguments) -> Value:
        left, other = a["self"], a["other"]
        if not b.is_tensor(left) and not b.is_tensor(other):
            raise b.refuse("it needs a tensor")
        if isinstance(left, (int, float)):  # as in 1 - x
            left = Constant(torch.tensor(left, dtype=b.probes(other)[0].dtype), "number", trainable=False)
        if a.get("alpha", 1) != 1:
            other = (
                other * a["alpha"] if isinstance(other, (int, float)) else b.call(aten.mul.Tensor, other, a["alpha"])
            )
        return b.call(target, left, other)

    return handler


def rsub(b: GraphBuilder, a: Arguments) -> Value:
    negative = b.call(aten.mul.Tensor, a["self"], -a["alpha"])
    return canonical.add(b, negative, a["other"])


def cast(b: GraphBuilder, a: Arguments) -> Value:
    return a["self"] if a["dtype"] is None else canonical.cast(b, a["self"], a["dtype"])


def max_pool2d(b: GraphBuilder, a: Arguments) -> Value:
    size = pair(b, a["kernel_size"])
    return canonical.max_pool2d(
        b, a["self"], size=size, stride=pair(b, a["stride"] or list(size)), padding=pair(b, a["padding"]),
        dilation=pair(b, a["dilation"]), ceil_mode=a["ceil_mode"],
    )  # fmt: skip


def first_of_max_pool2d(b: GraphBuilder, a: Arguments) -> list[Value]:
    return [max_pool2d(b, a)]


def avg_pool2d(b: GraphBuilder, a: Arguments) -> Value:
    size = pair(b, a["kernel_size"])
    return canonical.avg_pool2d(
        b, a["self"], size=size, stride=pair(b, a["stride"] or list(size)), padding=pair(b, a["padding"]),
        ceil_mode=a["ceil_mode"], count_include_pad=a["count_include_pad"], divisor=a["divisor_override"],
    )  # fmt: skip


def adaptive_avg_pool2d(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.adaptive_avg_pool2d(b, a["self"], pair(b, a["output_size"]))


def adaptive_max_pool2d(b: GraphBuilder, a: Arguments) -> list[Value]:
    if pair(b, a["output_size"]) != (1, 1):
        raise b.refuse("only adaptive maximum pooling to 1x1 is supported")
    return [b.call(aten.amax.default, a["self"], [2, 3], True)]


def reduce(target: Operator) -> Handler:
    def handler(b: GraphBuilder, a: Arguments) -> Value:
        value = a["self"] if a.get("dtype") is None else canonical.cast(b, a["self"], a["dtype"])
        rank = b.rank(value)
        dims = [canonical.dimension(b, dim, rank) for dim in a.get("dim") or range(rank)]
        return b.call(target, value, dims, bool(a.get("keepdim", False)))

    return handler


def reshape(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.reshape(b, a["self"], a["shape"] if "shape" in a else a["size"])


def flatten(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.flatten(b, a["self"], a["start_dim"], a["end_dim"])


def unflatten(b: GraphBuilder, a: Arguments) -> Value:
    rank = b.rank(a["self"])
    dim = canonical.dimension(b, a["dim"], rank)
    before = [b.size(a["self"], place) for place in range(dim)]
    after = [b.size(a["self"], place) for place in range(dim + 1, rank)]
    return canonical.reshape(b, a["self"], [*before, *a["sizes"], *after])


def squeeze(b: GraphBuilder, a: Arguments) -> Value:
    dim = a.get("dim")
    return canonical.squeeze(b, a["self"], [dim] if isinstance(dim, int) else dim)


def unsqueeze(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.unsqueeze(b, a["self"], [a["dim"]])


def permute(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.permute(b, a["self"], a["dims"])


def transpose(b: GraphBuilder, a: Arguments) -> Value:
    order = list(range(b.rank(a["self"])))
    one, other = (canonical.dimension(b, a[key], len(order)) for key in ("dim0", "dim1"))
    order[one], order[other] = order[other], order[one]
    return canonical.permute(b, a["self"], order)


def transpose_matrix(b: GraphBuilder, a: Arguments) -> Value:
    return canonical.permute(b, a["self"], list(range(b.rank(a["self"])))[::-1])


def expand(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.expand.default, a["self"], a["size"])


def cat(b: GraphBuilder, a: Arguments) -> Value:
    if not a["tensors"]:
        raise b.refuse("it puts nothing together")
    return b.call(aten.cat.default, a["tensors"], canonical.dimension(b, a["dim"], b.rank(a["tensors"][0])))


def stack(b: GraphBuilder, a: Arguments) -> Value:
    if not a["tensors"]:
        raise b.refuse("it puts nothing together")
    dim = canonical.dimension(b, a["dim"], b.rank(a["tensors"][0]) + 1)
    return cat(b, {"tensors": [canonical.unsqueeze(b, tensor, [dim]) for tensor in a["tensors"]], "dim": dim})


def slice_along(b: GraphBuilder, a: Arguments) -> Value:
    start = 0 if a["start"] is None else _integer(b, a["start"])
    end = 2**63 - 1 if a["end"] is None else _integer(b, a["end"])
    return canonical.slice_along(b, a["self"], a["dim"], start, end, _integer(b, a["step"]))


def select(b: GraphBuilder, a: Arguments) -> Value:
    dim = canonical.dimension(b, a["dim"], b.rank(a["self"]))
    return b.call(aten.select.int, a["self"], dim, _integer(b, a["index"]))


def split(b: GraphBuilder, a: Arguments) -> list[Value]:
    size = _fixed_size(b, a)
    step = _integer(b, a["split_size"])
    if step < 1:
        raise b.refuse(f"parts of {step} are impossible")
    if size // step > MAX_PARTS:
        raise b.refuse(f"{size // step} parts are too many")
    return _parts(b, a, [min(step, size - start) for start in range(0, size, step)])


def chunk(b: GraphBuilder, a: Arguments) -> list[Value]:
    return split(b, {**a, "split_size": max(1, math.ceil(_fixed_size(b, a) / max(1, a["chunks"])))})


def split_with_sizes(b: GraphBuilder, a: Arguments) -> list[Value]:
    return _parts(b, a, [_integer(b, size) for size in a["split_sizes"]])


def _fixed_size(b: GraphBuilder, a: Arguments) -> int:
    """The size of the dimension to be taken apart."""
    size = b.shape(a["self"])[canonical.dimension(b, a["dim"], b.rank(a["self"]))]
    if size is None:
        raise b.refuse("a dimension that varies can't be split")
    return size


def _parts(b: GraphBuilder, a: Arguments, sizes: Sequence[int]) -> list[Value]:
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [
        canonical.slice_along(b, a["self"], a["dim"], start, start + size)
        for start, size in zip(starts, sizes, strict=True)
    ]


def unbind(b: GraphBuilder, a: Arguments) -> list[Value]:
    dim = canonical.dimension(b, a["dim"], b.rank(a["self"]))
    size = _fixed_size(b, a)
    if size > MAX_PARTS:
        raise b.refuse(f"{size} parts are too many")
    return [b.call(aten.select.int, a["self"], dim, index) for index in range(size)]


def pad(b: GraphBuilder, a: Arguments) -> Value:
    amounts = [_integer(b, amount) for amount in a["pad"]]
    return canonical.pad(b, a["self"], amounts, a.get("mode", "constant"), float(a.get("value") or 0.0))


def padding_of(mode: str) -> Handler:
    def handler(b: GraphBuilder, a: Arguments) -> Value:
        return canonical.pad(b, a["self"], [_integer(b, amount) for amount in a["padding"]], mode, 0.0)

    return handler


def upsample_nearest2d(b: GraphBuilder, a: Arguments) -> Value:
    return b.call(aten.upsample_nearest2d.vec, a["input"], *_new_size(b, a))


def upsample_bilinear2d(b: GraphBuilder, a: Arguments) -> Value:
    size, scales = _new_size(b, a)
    return b.call(aten.upsample_bilinear2d.vec, a["input"], size, a["align_corners"], scales)


def _new_size(b: GraphBuilder, a: Arguments) -> tuple[list[int] | None, list[float] | None]:
    if a["scale_factors"] is not None:
        return None, [float(scale) for scale in a["scale_factors"]]
    if a["output_size"] is None:
        raise b.refuse("it has neither a size nor a scale")
    return [_integer(b, size) for size in a["output_size"]], None


def upsample_to_size(handler: Handler) -> Handler:
    """The form that holds both: the scale is what the network meant, if it is there."""

    def with_scales(b: GraphBuilder, a: Arguments) -> Result:
        scales = [a["scales_h"], a["scales_w"]]
        return handler(b, {**a, "input": a["self"], "scale_factors": None if None in scales else scales})

    return with_scales


def sym_size(b: GraphBuilder, a: Arguments) -> Value:
    # A size is a number or a node that computes one, never a tensor; the reader keeps both in the same place.
    size: Any = b.size(a["self"], canonical.dimension(b, a["dim"], b.rank(a["self"])))
    return size  # type: ignore[no-any-return]


def _integer(b: GraphBuilder, value: object) -> int:
    if isinstance(value, fx.Node):
        raise b.refuse("a size that varies with the input stands where only a fixed number is supported")
    assert isinstance(value, int)
    return value
