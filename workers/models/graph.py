"""The one representation of a network inside Winnow: an `fx.GraphModule` of allow-listed ATen operators.

Both readers build it, every step rewrites it, both writers emit it. Its rules:

* every node is a placeholder, a `get_attr` of a parameter or buffer, a `call_function` of one of `OPERATORS`, or the output;
* the output is a tuple of nodes, one for each entry of `ModelGraph.outputs`;
* parameters and buffers keep the uploader's names (`layer1.0.conv1.weight`), and nothing else is reachable from the module;
* convolutions are `aten.conv2d` and `aten.conv_transpose2d.input`, linear layers are `aten.linear`, batch normalisation is
  `aten.batch_norm` in evaluation mode, whatever form they had in the file; their arguments are all there, by position;
* convolutions that are pruned in the Winograd domain are `winograd.conv2d` with all arguments by position;
* every form of view, flatten and squeeze is one `aten.reshape`; where one size varies with the input, that one is `-1`;
* the module never changes shape with the batch unless `batch_size` says that only one size is possible.
"""

import operator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, fx, nn

import winograd  # noqa: F401  # brings torch.ops.winograd

aten = torch.ops.aten
winograd_conv2d = torch.ops.winograd.conv2d.default  # winograd.conv2d says what it takes

LayerKind = Literal["conv2d", "conv_transpose2d", "linear", "winograd_conv2d"]

BATCH = "batch"  # what the batch is called in the shape of a TensorSpec
DEFAULT_SIZE = 224  # for sizes other than the batch that a network leaves open

# All that a graph may call, in one canonical form each: readers make everything else into these, writers know each of them.
OPERATORS: frozenset[object] = frozenset(
    {
        aten.conv2d.default,
        aten.conv_transpose2d.input,
        aten.linear.default,
        winograd_conv2d,
        aten.batch_norm.default,
        aten.layer_norm.default,
        aten.group_norm.default,
        # activations
        aten.relu.default,
        aten.clamp.default,
        aten.leaky_relu.default,
        aten.prelu.default,
        aten.elu.default,
        aten.gelu.default,
        aten.sigmoid.default,
        aten.hardsigmoid.default,
        aten.silu.default,
        aten.hardswish.default,
        aten.mish.default,
        aten.tanh.default,
        aten.softplus.default,
        aten.softmax.int,
        aten.log_softmax.int,
        # arithmetic; the second operand may be a number
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.pow.Tensor_Scalar,
        aten.maximum.default,
        aten.minimum.default,
        aten.matmul.default,
        aten.abs.default,
        aten.neg.default,
        aten.exp.default,
        aten.log.default,
        aten.sqrt.default,
        aten.reciprocal.default,
        aten.erf.default,
        aten.floor.default,
        aten.ceil.default,
        aten.to.dtype,
        # pooling and reductions
        aten.max_pool2d.default,
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default,
        aten.mean.dim,
        aten.sum.dim_IntList,
        aten.amax.default,
        aten.amin.default,
        aten.argmax.default,
        # shape
        aten.reshape.default,
        aten.permute.default,
        aten.expand.default,
        aten.cat.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.pad.default,
        aten.upsample_nearest2d.vec,
        aten.upsample_bilinear2d.vec,
        aten.pixel_shuffle.default,
        aten.pixel_unshuffle.default,
        # sizes that vary with the input, as numbers
        aten.sym_size.int,
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
    }
)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: a string in the shape names a dimension that may vary, the batch first."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


@dataclass
class ModelGraph:
    """A network and what is known of its surface. Callable like the network itself; returns a tuple of tensors."""

    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_size: int | None  # the one batch size that the network takes, or None if any will do
    producer: str | None = None
    opset: int | None = None
    warnings: tuple[str, ...] = ()  # what the reader assumed or changed

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self.module(*inputs)
        return tuple(outputs)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer. Weights used by several nodes are one layer, named after the first."""

    name: str
    kind: LayerKind
    node: str  # the fx node's name
    weight: str  # the parameter's name in the module
    bias: str | None
    weight_shape: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    used_by: tuple[str, ...] = ()  # all nodes that share the weight
    m: int | None = None  # of Winograd convolutions: F(m x m, 3x3)
    positions: tuple[int, ...] = ()  # and those kept, for each group of filters in turn; weights are [P, K, C/groups]


LAYER_OPERATORS: dict[object, LayerKind] = {
    aten.conv2d.default: "conv2d",
    aten.conv_transpose2d.input: "conv_transpose2d",
    aten.linear.default: "linear",
    winograd_conv2d: "winograd_conv2d",
}
BIAS = {"conv2d": 2, "conv_transpose2d": 2, "linear": 2, "winograd_conv2d": 5}  # its place among the arguments


# Buffers that transform tiles where Winograd convolutions are in standard operators: filters that nothing learns.
TO_POSITIONS, FROM_POSITIONS = "to_positions", "from_positions"


def layers(graph: ModelGraph) -> list[Layer]:
    """The convolution and linear layers in execution order, each weight once; transforms of tiles are none."""
    transforms = {name for name, _ in graph.module.named_buffers() if _transforms_tiles(name)}
    found: dict[str, Layer] = {}
    for node in graph.module.graph.nodes:
        kind = LAYER_OPERATORS.get(node.target) if node.op == "call_function" else None
        weight = _parameter_name(node, 1) if kind else None
        if kind is None or weight is None or weight in transforms:
            continue
        if weight in found:
            found[weight] = replace(found[weight], used_by=(*found[weight].used_by, node.name))
            continue
        found[weight] = Layer(
            name=layer_name(weight),
            kind=kind,
            node=node.name,
            weight=weight,
            bias=_parameter_name(node, BIAS[kind]),
            weight_shape=tuple(parameter(graph, weight).shape),
            used_by=(node.name,),
        )
        if kind == "winograd_conv2d":
            found[weight] = _with_positions(found[weight], node)
        elif kind != "linear":
            found[weight] = _with_geometry(found[weight], node)
    return list(found.values())


def _transforms_tiles(buffer: str) -> bool:
    return buffer.rpartition(".")[2].startswith((TO_POSITIONS, FROM_POSITIONS))


def layer_name(weight: str) -> str:
    """A layer is called as its weight is, without the word: `layer1.0.conv1.weight` belongs to `layer1.0.conv1`."""
    return weight.removesuffix(".weight")


def parameter(graph: ModelGraph, name: str) -> Tensor:
    """The parameter or buffer called `name` (dots are levels of submodules)."""
    owner, _, leaf = name.rpartition(".")
    value = getattr(graph.module.get_submodule(owner), leaf)
    assert isinstance(value, Tensor)
    return value


def set_parameter(graph: ModelGraph, name: str, value: Tensor) -> None:
    """Replace the parameter or buffer called `name`, keeping its kind."""
    owner_name, _, leaf = name.rpartition(".")
    owner = graph.module.get_submodule(owner_name)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[leaf] = value


def drop_unread_parameters(module: fx.GraphModule) -> None:
    """Remove parameters and buffers that no node reads."""
    for node in reversed(list(module.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in (*module.named_parameters(), *module.named_buffers()):
        if name not in read:
            owner, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(owner), leaf)


def copy_graph(graph: ModelGraph) -> ModelGraph:
    """A copy that shares nothing with the original."""
    return replace(graph, module=deepcopy(graph.module))


def _parameter_name(node: fx.Node, position: int) -> str | None:
    argument = node.args[position] if len(node.args) > position else None
    if isinstance(argument, fx.Node) and argument.op == "get_attr":
        return str(argument.target)
    return None


def _with_geometry(layer: Layer, node: fx.Node) -> Layer:
    # conv2d(input, weight, bias, stride, padding, dilation, groups)
    # conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    dilation, groups = (5, 6) if layer.kind == "conv2d" else (7, 6)
    return replace(
        layer,
        stride=_pair(node.args[3]),
        padding=_pair(node.args[4]),
        dilation=_pair(node.args[dilation]),
        groups=int(str(node.args[groups])),
    )


def _with_positions(layer: Layer, node: fx.Node) -> Layer:
    # winograd.conv2d(input, weights, positions, m, padding, bias, residual, activation, groups)
    _, _, positions, m, padding, _, _, _, groups = node.args
    assert isinstance(positions, (list, tuple))
    return replace(
        layer,
        stride=(1, 1),
        padding=_pair(padding),
        dilation=(1, 1),
        groups=int(str(groups)),
        m=int(str(m)),
        positions=tuple(int(str(position)) for position in positions),
    )


def _pair(value: object) -> tuple[int, int]:
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(str(value))]
    return (values[0], values[-1])
