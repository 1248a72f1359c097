"""A network as a list of operations, of which any part can be run again from values that are kept.

fx says what depends on what; running it node by node costs more than small layers do. So the graph is compiled once:
every node has a number, an operation names the numbers it reads, and a `Plan` is the shortest list of operations
that leads from the values at hand to the values wanted.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from workers.models import graph
from workers.models.graph import aten
from workers.models.shapes import multiplications_of


@dataclass(frozen=True)
class Slot:
    """Stands in an operation's arguments for the value with this number."""

    number: int


@dataclass(frozen=True)
class Operation:
    """One call: the value it makes, the function, its arguments with slots for values, and the numbers it reads."""

    number: int
    function: Callable[
        ..., Any
    ]  # an operator of `workers.models.graph.OPERATORS`; what it takes and gives differs with each
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: tuple[int, ...]

    def run(self, values: Mapping[int, Any]) -> Any:
        args = [_resolved(argument, values) for argument in self.args]
        if not self.kwargs:
            return self.function(*args)
        return self.function(*args, **{key: _resolved(value, values) for key, value in self.kwargs.items()})


@dataclass(frozen=True)
class Program:
    """A whole network: its operations in order, and which numbers are its input, its outputs and its parameters."""

    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    parameters: dict[int, str]  # number -> name; weights that several nodes fetch have several numbers

    def numbers_of(self, parameter: str) -> frozenset[int]:
        """The numbers under which a parameter is read."""
        return frozenset(number for number, name in self.parameters.items() if name == parameter)

    def descendants(self, sources: Iterable[int]) -> frozenset[int]:
        """Every value that depends on one of `sources`, without the sources."""
        reached = set(sources)
        found = set()
        for operation in self.operations:
            if not reached.isdisjoint(operation.reads):
                reached.add(operation.number)
                found.add(operation.number)
        return frozenset(found)

    def frontier(self, sources: frozenset[int], wanted: frozenset[int]) -> frozenset[int]:
        """The values that must be at hand to compute `wanted` anew after `sources` have changed, parameters apart."""
        changed = self.descendants(sources)
        needed = set(wanted & changed)
        border = set(wanted - changed)
        for operation in reversed(self.operations):
            if operation.number in needed:
                needed.update(number for number in operation.reads if number in changed)
                border.update(number for number in operation.reads if number not in changed)
        return frozenset(border - self.parameters.keys() - sources)

    def plan(self, wanted: frozenset[int], available: frozenset[int], kept: frozenset[int] = frozenset()) -> "Plan":
        """How to get `wanted` from `available` values and parameters; of the rest, those in `kept` stay."""
        needed = set(wanted - available)
        chosen: list[Operation] = []
        for operation in reversed(self.operations):
            if operation.number in needed:
                chosen.append(operation)
                needed.update(number for number in operation.reads if number not in available)
        chosen.reverse()
        return Plan(tuple(chosen), _frees(chosen, wanted | kept | self.parameters.keys()))


@dataclass(frozen=True)
class Plan:
    """Operations to run in order, and after each the values that nobody reads again."""

    operations: tuple[Operation, ...]
    frees: tuple[tuple[int, ...], ...]

    def reads(self, number: int) -> bool:
        """Whether any operation reads this value."""
        return any(number in operation.reads for operation in self.operations)

    def run(self, values: dict[int, Any]) -> None:
        """Add what the operations make to `values`, dropping what is no longer needed."""
        for operation, free in zip(self.operations, self.frees, strict=True):
            values[operation.number] = operation.run(values)
            for number in free:
                values.pop(number, None)


def compile_graph(module: fx.GraphModule) -> Program:
    """The program of a graph of `call_function` nodes."""
    number = {node: position for position, node in enumerate(module.graph.nodes)}
    operations = []
    inputs: list[int] = []
    outputs: tuple[int, ...] = ()
    parameters = {}
    for node in module.graph.nodes:
        match node.op:
            case "placeholder":
                inputs.append(number[node])
            case "get_attr":
                parameters[number[node]] = str(node.target)
            case "call_function":
                operations.append(_operation(node, number))
            case "output":
                outputs = tuple(number[value] for value in node.all_input_nodes)
            case _:
                raise ValueError(f"{node.name}: a graph holds no {node.op} nodes")
    return Program(tuple(operations), tuple(inputs), outputs, parameters)


def multiply_adds(operation: Operation, values: Mapping[int, Any]) -> int:
    """Multiply-adds of a convolution, linear layer or matrix product on the values it was run with; of others none."""
    result = values[operation.number]
    operands = [values[a.number] if isinstance(a, Slot) else a for a in operation.args]
    match operation.function:
        case aten.conv2d.default:
            return int(result.numel() * operands[1][0].numel())  # weight (K, C/g, R, S)
        case aten.conv_transpose2d.input:
            return int(operands[0].numel() * operands[1][0].numel())  # weight (C, K/g, R, S)
        case graph.winograd_conv2d:
            return multiplications_of(operands[1].shape, operands[3], result.shape)
        case aten.linear.default | aten.matmul.default:
            return int(result.numel() * operands[0].shape[-1])
        case _:
            return 0


def _operation(node: fx.Node, number: Mapping[fx.Node, int]) -> Operation:
    assert callable(node.target)
    args = tuple(_with_slots(argument, number) for argument in node.args)
    kwargs = {key: _with_slots(value, number) for key, value in node.kwargs.items()}
    reads = tuple(number[other] for other in node.all_input_nodes)
    return Operation(number[node], node.target, args, kwargs, reads)


def _with_slots(argument: Any, number: Mapping[fx.Node, int]) -> Any:
    if isinstance(argument, fx.Node):
        return Slot(number[argument])
    if isinstance(argument, (list, tuple)):
        return [_with_slots(item, number) for item in argument]
    return argument


def _resolved(argument: Any, values: Mapping[int, Any]) -> Any:
    if isinstance(argument, Slot):
        return values[argument.number]
    if isinstance(argument, list):
        return [_resolved(item, values) for item in argument]
    return argument


def _frees(operations: list[Operation], kept: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    seen = set(kept)
    frees: list[tuple[int, ...]] = []
    for operation in reversed(operations):
        last_reads = tuple(
            number for number in dict.fromkeys((*operation.reads, operation.number)) if number not in seen
        )
        seen.update(last_reads)
        frees.append(last_reads)
    return tuple(reversed(frees))
