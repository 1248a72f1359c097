"""Builds a `ModelGraph` operator by operator, whatever the file format, and runs every operator on shapes alone as it goes.

Each value is followed through two `probes`: tensors without data, once with the sizes that the file declares and once with
larger ones wherever the file lets a dimension vary. What differs between the probes varies with the input; what does not is a
constant. So sizes are known before anything is allocated, and a shape bomb is refused while it is still a number.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from jobs.errors import ModelRefused
from workers.models.finite import check_finite
from workers.models.graph import OPERATORS, ModelGraph, TensorSpec, aten
from workers.models.names import Names
from workers.models.shape_rules import run_on_shapes

MAX_TENSOR_ELEMENTS = 2**31
MAX_NODES = 100_000
MAX_FOLDED_ELEMENTS = 2**29  # of all constants that are computed from constants while reading

Operator = Callable[..., Any]  # an ATen overload, or a function of numbers from `operator`
Size = int | fx.Node  # a number, or a node that computes one


class DoesNotFit(ModelRefused):
    """An operator can't work on the sizes that reach it."""


@dataclass(eq=False)
class Constant:
    """A tensor known while reading. It becomes a parameter or buffer called `name` once something that runs needs it."""

    tensor: Tensor
    name: str
    trainable: bool = True  # parameter or buffer


Value = fx.Node | Constant


@dataclass
class GraphBuilder:
    """A graph under construction. `operator` and `node` say what in the file is being read, for refusals."""

    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    names: Names = field(default_factory=Names)
    inputs: list[TensorSpec] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    batch_is_free: bool = False  # the file fixes the batch, and we try without
    largest_elements: int = 0  # of any tensor so far, in any probe
    folded_elements: int = 0  # of all constants computed so far
    operator: str = ""
    node: str = ""
    _attributes: dict[str, list[tuple[Tensor, fx.Node]]] = field(default_factory=dict)

    def refuse(self, reason: str, *, hint: str | None = None) -> ModelRefused:
        """The refusal to raise for the operator being read."""
        message = f"{self.operator} at node {self.node!r}: {reason}" if self.operator else reason
        return ModelRefused(message, hint=hint, operator=self.operator, node=self.node)

    def add_input(self, spec: TensorSpec, probes: tuple[tuple[int, ...], ...]) -> fx.Node:
        """A declared input, and its shape in every probe."""
        # The target of a placeholder is pasted into generated code: it must be an identifier of our making.
        node = self.graph.placeholder(self.names.identifier(spec.name))
        for shape in probes:
            self._check_size(shape)
        node.meta["probes"] = tuple(torch.empty(shape, dtype=spec.dtype, device="meta") for shape in probes)
        self.inputs.append(spec)
        return node

    def call(self, target: Operator, *args: object, **kwargs: Any) -> Value:
        """Add one operator; if it sees constants only, its value is computed at once and is a constant too."""
        assert target in OPERATORS, target
        probes = self._probe(target, args, kwargs)
        constants = [value for value in _flatten(args) if isinstance(value, Constant)]
        if constants and not any(isinstance(value, fx.Node) for value in _flatten(args)):
            return self._fold(target, args, kwargs, probes, constants)
        if len(self.graph.nodes) > MAX_NODES:
            raise ModelRefused(f"the network has more than {MAX_NODES} operators")
        node = self.graph.create_node(
            "call_function", target, self._as_nodes(args), kwargs, name=self.names.identifier_of_node(self.node)
        )
        node.meta["probes"] = probes
        return node

    def size(self, value: Value, dim: int) -> Size:
        """The size of a dimension: a number if it never varies, else a node that computes it."""
        sizes = {probe.shape[dim] for probe in self.probes(value)}
        if len(sizes) == 1:
            return int(sizes.pop())
        node = self.call(aten.sym_size.int, value, dim)
        assert isinstance(node, fx.Node)
        return node

    def attribute(self, constant: Constant) -> fx.Node:
        """The node that reads `constant` as a parameter or buffer; the same bytes under the same name are one parameter."""
        for known, node in self._attributes.setdefault(constant.name, []):
            if known is constant.tensor or _same(known, constant.tensor):
                return node
        check_finite(constant.tensor, constant.name)
        name = self.names.attribute(constant.name)
        _register(self.root, name, constant.tensor, trainable=constant.trainable)
        node = self.graph.create_node("get_attr", name, name=self.names.identifier_of_node(name))
        node.meta["probes"] = self.probes(constant)
        self._attributes[constant.name].append((constant.tensor, node))
        return node

    def probes(self, value: object) -> tuple[Tensor, ...]:
        """`value` in every probe: a tensor without data each."""
        if isinstance(value, Constant):
            shadow = constant_shadow(value)
            return (shadow, shadow)
        assert isinstance(value, fx.Node)
        found = value.meta["probes"]
        assert isinstance(found, tuple)
        return found

    def is_tensor(self, value: object) -> bool:
        """Whether `value` is a tensor, not a number or a node that computes one."""
        return isinstance(value, Constant) or (
            isinstance(value, fx.Node) and isinstance(value.meta["probes"][0], Tensor)
        )

    def shape(self, value: Value) -> tuple[int | None, ...]:
        """The sizes of `value`, None where they vary with the input."""
        first, second = self.probes(value)
        if first.dim() != second.dim():
            raise self.refuse("the number of dimensions depends on the size of the input")
        return tuple(a if a == b else None for a, b in zip(first.shape, second.shape, strict=True))

    def rank(self, value: Value) -> int:
        return self.probes(value)[0].dim()

    def finish(self, outputs: Sequence[tuple[str, Value]], symbols: dict[str, tuple[int, int]]) -> ModelGraph:
        """The finished network. `symbols` are the names of sizes that vary, with their value in each probe."""
        nodes = [value if isinstance(value, fx.Node) else self.attribute(value) for _, value in outputs]
        self.graph.output(tuple(nodes))
        self.graph.eliminate_dead_code()
        unique = Names()
        specs = tuple(
            TensorSpec(unique.output(name), self.probes(node)[0].dtype, self._named_shape(node, symbols))
            for (name, _), node in zip(outputs, nodes, strict=True)
        )
        for node in self.graph.nodes:
            node.meta.pop("probes", None)
        module = fx.GraphModule(self.root, self.graph, class_name="Network").eval()
        return ModelGraph(module, tuple(self.inputs), specs, batch_size=None, warnings=tuple(self.warnings))

    def _named_shape(self, value: Value, symbols: dict[str, tuple[int, int]]) -> tuple[int | str, ...]:
        first, second = (tuple(probe.shape) for probe in self.probes(value))
        by_value = {values: name for name, values in reversed(symbols.items())}
        return tuple(
            a if a == b else by_value.get((a, b), f"dim_{position}")
            for position, (a, b) in enumerate(zip(first, second, strict=True))
        )

    def _probe(self, target: Operator, args: tuple[object, ...], kwargs: dict[str, Any]) -> tuple[object, ...]:
        found: list[object] = []
        for index in range(2):
            arguments = [_in_probe(self, value, index) for value in args]
            try:
                result = run_on_shapes(target, *arguments, **kwargs)
            except (
                RuntimeError,
                ValueError,
                TypeError,
                IndexError,
                ZeroDivisionError,
                OverflowError,
                NotImplementedError,
            ) as error:
                raise self._misfit(error) from error
            if isinstance(result, Tensor):
                self._check_size(tuple(result.shape))
            found.append(result)
        return tuple(found)

    def _misfit(self, error: Exception) -> DoesNotFit:
        refusal = self.refuse(f"its inputs don't fit: {_first_line(error)}")
        return DoesNotFit(str(refusal), **refusal.where)

    def _check_size(self, shape: tuple[int, ...]) -> None:
        elements = math.prod(shape)
        if elements > MAX_TENSOR_ELEMENTS:
            raise self.refuse(f"a tensor of shape {shape} has more than {MAX_TENSOR_ELEMENTS} elements")
        self.largest_elements = max(self.largest_elements, elements)

    def _fold(
        self,
        target: Operator,
        args: tuple[object, ...],
        kwargs: dict[str, Any],
        probes: tuple[object, ...],
        constants: list[Constant],
    ) -> Constant:
        if isinstance(probes[0], Tensor):
            self.fold(probes[0].numel())
        try:
            with torch.no_grad():
                result = target(*[_data(value) for value in args], **kwargs)
        except RuntimeError as error:
            raise self._misfit(error) from error
        assert isinstance(result, Tensor)
        return Constant(result.contiguous(), constants[0].name, trainable=constants[0].trainable)

    def fold(self, elements: int) -> None:
        """Account for a constant that is about to be computed."""
        self.folded_elements += elements
        if self.folded_elements > MAX_FOLDED_ELEMENTS:
            raise self.refuse(f"constants computed from constants have more than {MAX_FOLDED_ELEMENTS} elements")

    def _as_nodes(self, args: tuple[object, ...]) -> tuple[fx.node.Argument, ...]:
        return tuple(self._as_node(value) for value in args)

    def _as_node(self, value: object) -> fx.node.Argument:
        if isinstance(value, Constant):
            return self.attribute(value)
        if isinstance(value, (list, tuple)):
            return [self._as_node(item) for item in value]
        return value  # type: ignore[return-value]  # a node or a Python value


def constant_shadow(constant: Constant) -> Tensor:
    """A tensor like the constant's, without data."""
    return torch.empty_strided(
        constant.tensor.shape, constant.tensor.stride(), dtype=constant.tensor.dtype, device="meta"
    )


def _in_probe(builder: GraphBuilder, value: object, index: int) -> object:
    if isinstance(value, Constant):
        return builder.probes(value)[index]
    if isinstance(value, fx.Node):
        return value.meta["probes"][index]
    if isinstance(value, (list, tuple)):
        return [_in_probe(builder, item, index) for item in value]
    return value


def _data(value: object) -> object:
    if isinstance(value, Constant):
        return value.tensor
    if isinstance(value, (list, tuple)):
        return [_data(item) for item in value]
    return value


def _flatten(values: object) -> list[object]:
    if isinstance(values, (list, tuple)):
        return [leaf for value in values for leaf in _flatten(value)]
    return [values]


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _register(root: nn.Module, name: str, tensor: Tensor, *, trainable: bool) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = root
    for part in owner_name.split(".") if owner_name else []:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        child = owner._modules[part]
        assert child is not None
        owner = child
    if trainable and tensor.is_floating_point():
        owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        owner.register_buffer(leaf, tensor)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
