"""How a float network becomes integer operations: which nodes belong together, what shape each tensor has, which need one length.

A planned operation is a run of nodes that ends in the one whose value is stored as integers. Activation functions go with
the operation before them where nobody else reads that; chains of functions of one tensor become one table. What comes after
the last layer (softmax, a change of shape) is the tail, and stays as it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx, nn

from jobs.errors import RecipeRefused
from workers.compression.fixed_point_winograd import Tiles, lower_for_integers
from workers.compression.fold_batchnorm import free_bias_name
from workers.fixed_point.network import Shape
from workers.models.graph import (
    BATCH,
    ModelGraph,
    aten,
    copy_graph,
    drop_unread_parameters,
    parameter,
)
from workers.models.shapes import infer_shapes
from workers.models.tail import logits_of

Kind = Literal[
    "convolution", "linear", "add", "multiply", "max_pool", "average_pool", "table", "requantize", "concatenate", "slice",
    "pad", "upsample", "resize", "reshape", "permute", "input_transform", "output_transform",
]  # fmt: skip

# Operations that give integers as they get them, or means of these, with the lengths that they have.
CARRIED: frozenset[Kind] = frozenset(
    {"max_pool", "concatenate", "slice", "pad", "upsample", "resize", "reshape", "permute"}
)

_CLAMPS = (aten.relu.default, aten.clamp.default)
_ELEMENTWISE = frozenset(
    {
        aten.relu.default, aten.clamp.default, aten.leaky_relu.default, aten.prelu.default, aten.elu.default,
        aten.gelu.default, aten.sigmoid.default, aten.hardsigmoid.default, aten.silu.default, aten.hardswish.default,
        aten.mish.default, aten.tanh.default, aten.softplus.default, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor,
        aten.div.Tensor, aten.pow.Tensor_Scalar, aten.maximum.default, aten.minimum.default, aten.abs.default,
        aten.neg.default, aten.exp.default, aten.log.default, aten.sqrt.default, aten.reciprocal.default, aten.erf.default,
        aten.floor.default, aten.ceil.default,
    }
)  # fmt: skip
_WITH_PARAMETERS = (aten.conv2d.default, aten.linear.default, aten.batch_norm.default)
_POOLS = (aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim)


@dataclass(frozen=True)
class Planned:
    """One integer operation to come. `nodes` are computed together, the last of them is stored; `sources` name stored ones."""

    kind: Kind
    nodes: tuple[fx.Node, ...]
    sources: tuple[str, ...]
    tiles: Tiles | None = None  # of transforms

    @property
    def output(self) -> str:
        return self.nodes[-1].name

    @property
    def main(self) -> fx.Node:
        """The node that does the work, before its activation function."""
        return self.nodes[0]


@dataclass(frozen=True)
class Plan:
    """A network in the form that is quantized, and what is to be done with it."""

    graph: ModelGraph  # batch norms folded, or made into depthwise convolutions
    input: str
    logits: str
    operations: tuple[Planned, ...]
    shapes: dict[str, Shape]  # of stored tensors
    uniform: frozenset[str]  # tensors whose channels must share one length

    @property
    def coded(self) -> tuple[str, ...]:
        """The tensors that get lengths of their own, in order, the input first."""
        planned = [operation.output for operation in self.operations if operation.kind not in CARRIED]
        return (self.input, *(name for name in planned if name not in self.products))

    @property
    def products(self) -> dict[str, Planned]:
        """The products of Winograd convolutions, which stay 32-bit accumulators, and the output transform that reads each."""
        return {each.sources[0]: each for each in self.operations if each.kind == "output_transform"}

    def by_output(self) -> dict[str, Planned]:
        return {operation.output: operation for operation in self.operations}


def make_plan(folded: ModelGraph) -> Plan:
    """The plan for a network whose batch norms were folded; refuses what integers can't do, naming the node."""
    return _Planner(folded).plan()


class _Planner:
    def __init__(self, folded: ModelGraph) -> None:
        _refuse_surface(folded)
        lowered, convolutions = lower_for_integers(folded)
        self._graph = _with_own_parameters(_with_depthwise_norms(lowered))
        self._transforms = _transforms_by_first_node(convolutions)
        self._shapes = infer_shapes(self._graph)
        (self._input,) = [node for node in self._graph.module.graph.nodes if node.op == "placeholder"]
        self._logits = logits_of(self._graph)
        self._operations: list[Planned] = []
        self._stored = {self._input}
        self._uniform: set[str] = set()

    def plan(self) -> Plan:
        needed = _ancestors(self._logits)
        nodes = [node for node in self._graph.module.graph.nodes if node in needed and node.op == "call_function"]
        done: set[fx.Node] = set()
        for node in nodes:
            if node not in done:
                operation = self._planned(node)
                if operation is not None:
                    self._operations.append(operation)
                    self._stored.add(operation.nodes[-1])
                    done.update(operation.nodes)
        self._require_uniform(self._logits.name)
        return Plan(
            graph=self._graph,
            input=self._input.name,
            logits=self._logits.name,
            operations=tuple(self._operations),
            shapes={node.name: self._shape(node) for node in self._stored},
            uniform=frozenset(self._uniform),
        )

    # ---- What a node becomes ----------------------------------------------------------------------------------------

    def _planned(self, node: fx.Node) -> Planned | None:
        """The operation that begins with `node`; None while a chain of functions goes on after it."""
        if node.name in self._transforms:
            return self._transform(node, *self._transforms[node.name])
        match node.target:
            case aten.conv2d.default:
                self._want_parameters(node)
                return self._with_activation("convolution", node, node.all_input_nodes[:1])
            case aten.linear.default:
                self._want_parameters(node)
                return self._with_activation("linear", node, node.all_input_nodes[:1])
            case target if target in _POOLS:
                return self._with_activation("average_pool", self._checked_pool(node), node.all_input_nodes[:1])
            case aten.max_pool2d.default:
                if node.args[5]:
                    raise _refusal(node, "windows that reach over the edge (ceil_mode) aren't done in integers")
                return self._single("max_pool", node)
            case aten.cat.default:
                return self._concatenation(node)
            case aten.slice.Tensor | aten.pad.default | aten.permute.default | aten.reshape.default:
                return self._moved(node)
            case aten.upsample_nearest2d.vec:
                self._scale_of(node)
                return self._single("upsample", node)
            case aten.upsample_bilinear2d.vec:
                return self._single("resize", node)
            case target if target in _ELEMENTWISE:
                return self._elementwise(node)
            case _:
                raise _refusal(node, f"{node.target} isn't done in integers")

    def _transform(self, first: fx.Node, kind: Kind, names: tuple[str, ...], tiles: Tiles) -> Planned:
        """All nodes of one transform; behind that of the output, a clamp too."""
        by_name = {node.name: node for node in self._graph.module.graph.nodes}
        nodes = [by_name[name] for name in names]
        planned = self._with_activation(kind, nodes[-1], first.all_input_nodes[:1])
        return replace(planned, nodes=(*nodes[:-1], *planned.nodes), tiles=tiles)

    def _with_activation(self, kind: Kind, node: fx.Node, sources: list[fx.Node]) -> Planned:
        """Together with a clamp behind it that nobody else comes before."""
        nodes = [node]
        while nodes[-1] is not self._logits and len(nodes[-1].users) == 1:
            (user,) = nodes[-1].users
            if user.target not in _CLAMPS:
                break
            nodes.append(user)
        return Planned(kind, tuple(nodes), tuple(self._read(source, node) for source in sources))

    def _single(self, kind: Kind, node: fx.Node) -> Planned:
        return Planned(kind, (node,), tuple(self._read(source, node) for source in node.all_input_nodes))

    def _elementwise(self, node: fx.Node) -> Planned | None:
        operands = [operand for operand in node.all_input_nodes if operand.op != "get_attr"]
        roots = list(dict.fromkeys(self._root(operand) for operand in operands))
        if len(roots) == 2 and all(operand in self._stored for operand in operands):
            return self._binary(node, operands)
        if len(roots) != 1:
            raise _refusal(node, "a function of several tensors isn't done in integers")
        root = roots[0]
        if node is not self._logits and all(self._goes_on(user, root) for user in node.users):
            return None
        chain = self._chain(node, root)
        kind: Kind = "requantize" if len(chain) == 1 and node.target in _CLAMPS else "table"
        return Planned(kind, chain, (self._read(root, node),))

    def _binary(self, node: fx.Node, operands: list[fx.Node]) -> Planned:
        a, b = (self._shapes[operand.name] for operand in operands)
        if node.target is aten.add.Tensor and a == b:
            return self._with_activation("add", node, operands)
        if node.target is aten.mul.Tensor and a[1] == b[1]:
            # The factor of a whole channel goes second.
            ordered = operands if a == self._shapes[node.name] else operands[::-1]
            if self._shapes[ordered[0].name] == self._shapes[node.name]:
                return self._with_activation("multiply", node, ordered)
        raise _refusal(node, f"{node.target} of tensors of {a[1:]} and {b[1:]} isn't done in integers")

    def _root(self, node: fx.Node) -> fx.Node:
        """The stored tensor that an elementwise chain starts from."""
        while node not in self._stored:
            operands = [operand for operand in node.all_input_nodes if operand.op != "get_attr"]
            node = operands[0]
        return node

    def _goes_on(self, user: fx.Node, root: fx.Node) -> bool:
        """Whether `user` is a function of `root` alone too, so that one table can do both."""
        if user.target not in _ELEMENTWISE:
            return False
        operands = [operand for operand in user.all_input_nodes if operand.op != "get_attr"]
        return all(operand is root or _reaches(operand, root) for operand in operands)

    def _chain(self, node: fx.Node, root: fx.Node) -> tuple[fx.Node, ...]:
        """All nodes between `root` and `node`, in order."""
        found: set[fx.Node] = set()
        open_nodes = [node]
        while open_nodes:
            current = open_nodes.pop()
            if current is root or current in found or current.op == "get_attr":
                continue
            found.add(current)
            open_nodes += current.all_input_nodes
        return tuple(each for each in self._graph.module.graph.nodes if each in found)

    def _concatenation(self, node: fx.Node) -> Planned:
        if node.args[1] not in (1, -3):
            raise _refusal(node, "only channels can be put behind each other")
        return self._single("concatenate", node)

    def _moved(self, node: fx.Node) -> Planned:
        (source,) = node.all_input_nodes
        before, after = self._shapes[source.name], self._shapes[node.name]
        match node.target:
            case aten.slice.Tensor:
                if node.args[1] == 0:
                    raise _refusal(node, "it cuts the batch")
                return self._single("slice", node)
            case aten.pad.default:
                if node.args[2] != "constant" or node.args[3] not in (0, 0.0, None):
                    raise _refusal(node, "only padding with zeros is done in integers")
                return self._single("pad", node)
            case aten.permute.default:
                order = [int(str(place)) % len(before) for place in as_list(node.args[1])]
                if order[0] != 0 or len(before) != 4:
                    raise _refusal(node, "it moves the batch, or has not four dimensions")
                if order[1] != 1:
                    self._require_uniform(self._read(source, node))
                return self._single("permute", node)
            case _:
                flattens = len(after) == 2
                if after[0] != before[0] or len(after) not in (2, 4):
                    raise _refusal(node, f"a reshape from {before} to {after} isn't done in integers")
                if not flattens and after[1] != before[1]:
                    self._require_uniform(self._read(source, node))
                return self._single("reshape", node)

    def _checked_pool(self, node: fx.Node) -> fx.Node:
        shape = self._shapes[node.all_input_nodes[0].name]
        if node.target is aten.avg_pool2d.default:
            _, _, _, padding, ceil_mode, include_pad, _ = node.args
            if ceil_mode or (any(as_list(padding)) and not include_pad):
                raise _refusal(node, "averages whose divisor varies at the edges aren't done in integers")
        elif node.target is aten.mean.dim:
            dimensions = sorted(int(str(d)) % len(shape) for d in as_list(node.args[1]))
            if dimensions != [2, 3]:
                raise _refusal(node, "only means over whole images are done in integers")
        elif [int(str(side)) for side in as_list(node.args[1])] != [1, 1]:
            raise _refusal(node, "averages to this size aren't done in integers")
        return node

    def _scale_of(self, node: fx.Node) -> tuple[int, int]:
        before, after = self._shapes[node.all_input_nodes[0].name][2:], self._shapes[node.name][2:]
        if any(new % old for old, new in zip(before, after, strict=True)):
            raise _refusal(node, f"an image of {before} can't be repeated to {after}")
        return (after[0] // before[0], after[1] // before[1])

    # ---- Tensors ----------------------------------------------------------------------------------------------------

    def _read(self, source: fx.Node, reader: fx.Node) -> str:
        if source not in self._stored:
            raise _refusal(reader, f"it reads {source.name}, which has no integers")
        return source.name

    def _require_uniform(self, name: str) -> None:
        """Let the channels of this tensor, and of all that it takes its lengths from, share one."""
        self._uniform.add(name)
        for operation in reversed(self._operations):
            if operation.output in self._uniform and operation.kind in CARRIED:
                self._uniform.update(operation.sources)

    def _shape(self, node: fx.Node) -> Shape:
        sizes = self._shapes[node.name][1:]
        if len(sizes) not in (1, 3):
            raise _refusal(node, f"a tensor of {len(sizes)} dimensions an image isn't done in integers")
        return (sizes[0], *(sizes[1:] or (1, 1)))  # type: ignore[return-value]  # one or three sizes

    def _want_parameters(self, node: fx.Node) -> None:
        for place in (1, 2):
            operand = node.args[place]
            if isinstance(operand, fx.Node) and operand.op != "get_attr":
                raise _refusal(node, "its weights are computed by the network itself")
        if node.target is aten.linear.default and len(self._shapes[node.name]) != 2:
            raise _refusal(node, "a linear layer over more than two dimensions isn't done in integers")


def _transforms_by_first_node(convolutions: list[Tiles]) -> dict[str, tuple[Kind, tuple[str, ...], Tiles]]:
    found: dict[str, tuple[Kind, tuple[str, ...], Tiles]] = {}
    for tiles in convolutions:
        found[tiles.before[0]] = "input_transform", tiles.before, tiles
        found[tiles.after[0]] = "output_transform", tiles.after, tiles
    return found


def _with_depthwise_norms(graph: ModelGraph) -> ModelGraph:
    """A copy whose remaining batch norms are depthwise 1x1 convolutions: they scale and move each channel."""
    made = copy_graph(graph)
    ranks = {name: len(shape) for name, shape in infer_shapes(graph).items()}
    for number, node in enumerate(n for n in list(made.module.graph.nodes) if n.target is aten.batch_norm.default):
        if ranks[node.name] != 4:
            raise _refusal(node, "batch normalisation of vectors that can't be folded isn't done in integers")
        _, gamma, beta, mean, variance, _, _, eps, _ = node.args
        values = [parameter(made, str(each.target)).detach().double() for each in (mean, variance)]
        scale = (values[1] + float(eps)).rsqrt()
        if gamma is not None:
            scale = scale * parameter(made, str(gamma.target)).detach().double()
        bias = -values[0] * scale
        if beta is not None:
            bias = bias + parameter(made, str(beta.target)).detach().double()
        owner, _, _ = str(mean.target).rpartition(".")
        names = [f"{owner or f'norm_{number}'}_scale.{leaf}" for leaf in ("weight", "bias")]
        for name, value in zip(names, (scale[:, None, None, None], bias), strict=True):
            _register(made.module, name, value.float())
        with made.module.graph.inserting_before(node):
            weight, offset = (made.module.graph.get_attr(name) for name in names)
            convolution = made.module.graph.call_function(
                aten.conv2d.default, (node.args[0], weight, offset, [1, 1], [0, 0], [1, 1], len(scale))
            )
        node.replace_all_uses_with(convolution)
        made.module.graph.erase_node(node)
        convolution.name = node.name  # what is known of the norm's output is known of this one's
    made.module.recompile()
    return made


def _with_own_parameters(graph: ModelGraph) -> ModelGraph:
    """A copy in which every layer has weights that nobody else reads, and a bias."""
    made = copy_graph(graph)
    module, taken = made.module, set[str]()
    for node in list(module.graph.nodes):
        if node.target not in (aten.conv2d.default, aten.linear.default) or not _is_parameter(node.args[1]):
            continue
        weight, bias = node.args[1], node.args[2]
        name = str(weight.target)
        value = parameter(made, name).detach()
        if name in taken:
            name = _free(module, name)
            _register(module, name, value.clone())
        taken.add(name)
        own = None if bias is None else parameter(made, str(bias.target)).detach().clone()
        bias_name = free_bias_name(module, name)
        _register(module, bias_name, torch.zeros(value.shape[0], dtype=value.dtype) if own is None else own)
        with module.graph.inserting_before(node):
            node.update_arg(1, module.graph.get_attr(name))
            node.update_arg(2, module.graph.get_attr(bias_name))
    drop_unread_parameters(module)
    module.recompile()
    return made


def _is_parameter(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _free(module: nn.Module, name: str) -> str:
    taken = {each for each, _ in (*module.named_parameters(), *module.named_buffers())}
    while name in taken:
        name += "_"
    return name


def _register(module: nn.Module, name: str, value: torch.Tensor) -> None:
    owner = module
    *parents, leaf = name.split(".")
    for part in parents:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))


def _refuse_surface(graph: ModelGraph) -> None:
    sizes = [size for spec in graph.inputs for size in spec.shape if isinstance(size, str) and size != BATCH]
    if sizes:
        raise RecipeRefused(
            f"The model leaves the size {sizes[0]} of its images open; an integer network is made for one size.",
            hint="Export the model for the size of image that it will run on.",
        )
    if len(graph.outputs) != 1:
        raise RecipeRefused("quantize_fixed_point works on networks with one output.")
    if len(graph.inputs) != 1 or not graph.inputs[0].dtype.is_floating_point:
        raise RecipeRefused("quantize_fixed_point works on networks with one floating-point input.")
    for node in graph.module.graph.nodes:
        for operand in node.all_input_nodes if node.target in _WITH_PARAMETERS else ():
            if operand.op == "get_attr" and parameter(graph, str(operand.target)).dtype != torch.float32:
                raise _refusal(node, "its parameters aren't in single precision")


def _refusal(node: fx.Node, reason: str) -> RecipeRefused:
    return RecipeRefused(
        f"quantize_fixed_point can't make an integer network of this model: {node.name}: {reason}.",
        node=node.name,
        operator=str(node.target),
    )


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, open_nodes = set[fx.Node](), [node]
    while open_nodes:
        current = open_nodes.pop()
        if current not in found:
            found.add(current)
            open_nodes += current.all_input_nodes
    return found


def _reaches(node: fx.Node, root: fx.Node) -> bool:
    """Whether `node` is a function of `root`, and of nothing else."""
    return all(_walk(node, lambda each: each is root))


def _walk(node: fx.Node, is_end: Callable[[fx.Node], bool]) -> Iterator[bool]:
    if is_end(node):
        yield True
    elif node.target not in _ELEMENTWISE:
        yield False
    else:
        for operand in node.all_input_nodes:
            if operand.op != "get_attr":
                yield from _walk(operand, is_end)


def as_list(value: Any) -> list[Any]:  # Any: fx's arguments
    """An argument that may be one number or several."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
