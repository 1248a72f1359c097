"""Turns the nodes of model.json into operators of the canonical graph, one after the other."""

import operator
import re
from typing import Any

import torch
from torch import fx

from workers.models.aten_handlers import Arguments, Result
from workers.models.aten_operators import CHECKS, HANDLERS, IN_PLACE, TAKE_NUMBERS, VIEWS, overload
from workers.models.graph_builder import Constant, GraphBuilder, Size, Value
from workers.models.pt2_schema import DTYPES, Node, Tagged

_TARGET = re.compile(r"torch\.ops\.(aten|winograd)\.(\w+\.\w+)", re.ASCII)
_COUNTER = "num_batches_tracked"  # what training-mode batch normalisation counts; evaluation has no use for it
_ARITHMETIC = {
    "_operator.add": operator.add,
    "_operator.sub": operator.sub,
    "_operator.mul": operator.mul,
    "_operator.floordiv": operator.floordiv,
}
_COMPARISONS = frozenset(f"_operator.{word}" for word in ("le", "ge", "lt", "gt", "eq", "ne", "and_", "or_"))


class NodeReader:
    """Reads nodes in order, keeping what every name stands for."""

    def __init__(self, builder: GraphBuilder, values: dict[str, Value]) -> None:
        self._builder = builder
        self._values: dict[str, Value | Size] = dict(values)
        # Names whose tensors share memory have one owner; after a change in place, the other names are no longer true.
        self._owner: dict[str, str] = {name: name for name in values}
        self._stale: set[str] = set()

    def read(self, node: Node) -> None:
        """Add what `node` computes."""
        self._builder.operator = node.target
        self._builder.node = _first_output(node)
        if node.target in _ARITHMETIC:
            self._bind_size(node, _ARITHMETIC[node.target])
            return
        name = _name_of(node.target)
        if node.target in _COMPARISONS or name in CHECKS:
            return
        base = IN_PLACE.get(name, name) if name is not None else None
        if base is None or base not in HANDLERS:
            raise self._builder.refuse(
                "Winnow doesn't know this operator" + _place(node),
                hint="Export without run_decompositions(), or replace the layer by one made of common operators.",
            )
        first = _tensor_name(node.inputs[0].arg) if node.inputs else None
        if name != base and first is not None and first.endswith(_COUNTER):
            return
        arguments = self._arguments(node, base)
        self._bind(node, HANDLERS[base](self._builder, arguments), first if base in VIEWS else None)
        if name != base:
            self._change_in_place(first, node)

    def value(self, name: str) -> Value:
        """The tensor called `name`."""
        found = self._lookup(name)
        if not isinstance(found, (fx.Node, Constant)):
            raise self._builder.refuse(f"{name} is a number, not a tensor")
        return found

    def _lookup(self, name: str) -> Value | Size:
        if name not in self._values:
            raise self._builder.refuse(f"nothing is called {name!r} here")
        if name in self._stale:
            raise self._builder.refuse(
                f"{name} shares memory with a tensor that was changed in place",
                hint="Export with inplace=False, or call run_decompositions() before torch.export.save.",
            )
        return self._values[name]

    def _arguments(self, node: Node, base: str) -> Arguments:
        given: dict[str, Any] = {}
        for argument in node.inputs:
            if argument.name in given:
                raise self._builder.refuse(f"its argument {argument.name} is given twice")
            given[argument.name] = self._decode(argument.arg)
        arguments: Arguments = {}
        for formal in overload(base)._schema.arguments:
            kind = str(formal.real_type)
            value = given.pop(formal.name, formal.default_value)
            if "List[" in kind and value is not None and not isinstance(value, list):
                value = [value]  # torch writes one number for a list of equal ones
            if not _fits(kind, value) and not (base in TAKE_NUMBERS and kind == "Tensor" and _fits("number", value)):
                raise self._builder.refuse(f"its argument {formal.name} is not of type {kind}")
            arguments[formal.name] = value
        if given:
            raise self._builder.refuse(f"it has no argument called {sorted(given)[0]!r}")
        return arguments

    def _decode(self, tagged: Tagged) -> object:
        tag, content = _only_entry(self._builder, tagged)
        match tag, content:
            case "as_none", _:
                return None
            case (("as_tensor" | "as_optional_tensor"), {"name": str(name)}):
                return self.value(name)
            case "as_optional_tensor", dict():
                return self._decode(content)
            case (("as_tensors" | "as_optional_tensors"), list()):
                return [self._decode(item if _is_tagged(item) else {"as_tensor": item}) for item in content]
            case (("as_sym_int" | "as_sym_float" | "as_sym_bool"), dict()):
                return self._decode(content)
            case "as_sym_ints", list():
                return [self._decode(item) for item in content]
            case "as_name", str(name):
                return self._lookup(name)
            case "as_scalar_type", int(number) if number in DTYPES:
                return DTYPES[number]
            case (("as_memory_format" | "as_layout" | "as_device"), _):
                return None
            case "as_int", int():
                return content
            case "as_float", (float() | int()):
                return float(content)
            case "as_float", ("Infinity" | "-Infinity"):
                return float(content.replace("Infinity", "inf"))
            case ("as_bool", bool()) | ("as_string", str()):
                return content
            case ("as_ints", list()) if all(isinstance(item, int) for item in content):
                return content
            case ("as_floats", list()) if all(isinstance(item, (float, int)) for item in content):
                return content
            case ("as_bools", list()) if all(isinstance(item, bool) for item in content):
                return content
        raise self._builder.refuse(f"an argument of kind {str(tag)[:40]!r} is not supported")

    def _bind(self, node: Node, result: Result | Size, base: str | None) -> None:
        results = result if isinstance(result, list) else [result]
        # Handlers of operators with several results return those that mean something without training.
        for name, value in zip(_output_names(self._builder, node), results, strict=False):
            if name in self._values:
                raise self._builder.refuse(f"the name {name!r} is used twice")
            self._values[name] = value
            self._owner[name] = self._owner[base] if base is not None else name

    def _change_in_place(self, name: str | None, node: Node) -> None:
        if name is None:
            return
        changed, new_name = self._values[name], _first_output(node)
        if changed is self._values[new_name]:
            return  # what would change in training, such as dropout, does nothing here
        if isinstance(changed, Constant):
            raise self._builder.refuse(f"it changes the stored tensor {changed.name}")
        for other, owner in self._owner.items():
            if owner != self._owner[name] or other == new_name:
                continue
            if self._values[other] is changed:
                self._values[other] = self._values[new_name]
            else:
                self._stale.add(other)
        self._owner[new_name] = self._owner[name]

    def _bind_size(self, node: Node, function: Any) -> None:  # Any: a function of two numbers
        operands = [self._decode(argument.arg) for argument in node.inputs]
        if len(operands) != 2 or not all(isinstance(item, (int, fx.Node)) for item in operands):
            raise self._builder.refuse("it needs two whole numbers")
        if any(isinstance(item, fx.Node) for item in operands):
            result = self._builder.call(function, *operands)
        else:
            result = self._number(function, operands)
        self._bind(node, result, None)

    def _number(self, function: Any, operands: list[Any]) -> Any:  # Any: whole numbers, checked by the caller
        try:
            return function(*operands)
        except ZeroDivisionError as error:
            raise self._builder.refuse("it divides by zero") from error


def _only_entry(builder: GraphBuilder, tagged: Tagged) -> tuple[str, object]:
    if len(tagged) != 1:
        raise builder.refuse("an argument doesn't say its one type")
    return next(iter(tagged.items()))


def _is_tagged(item: object) -> bool:
    return isinstance(item, dict) and any(str(key).startswith("as_") for key in item)


def _tensor_name(tagged: Tagged) -> str | None:
    content = tagged.get("as_tensor")
    name = content.get("name") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def _output_names(builder: GraphBuilder, node: Node) -> list[str]:
    names: list[str] = []
    for tagged in node.outputs:
        tag, content = _only_entry(builder, tagged)
        match tag, content:
            case "as_tensor", {"name": str(name)}:
                names.append(name)
            case "as_tensors", list():
                names += [
                    item["name"] for item in content if isinstance(item, dict) and isinstance(item.get("name"), str)
                ]
            case "as_sym_int", {"as_name": str(name)}:
                names.append(name)
            case "as_none", _:
                continue
            case _:
                raise builder.refuse(f"an output of kind {str(tag)[:40]!r} is not supported")
    return names


def _first_output(node: Node) -> str:
    """What a node with one result is called."""
    for tagged in node.outputs:
        for content in tagged.values():
            if isinstance(content, dict):
                name = content.get("name") or content.get("as_name")
                if isinstance(name, str):
                    return name
    return node.name or "unnamed"


def _name_of(target: str) -> str | None:
    """What the table of operators calls an operator; None if it is of a namespace that is not there."""
    found = _TARGET.fullmatch(target)
    if found is None:
        return None
    return found[2] if found[1] == "aten" else f"{found[1]}::{found[2]}"


def _place(node: Node) -> str:
    """Where in the uploader's model a node comes from; the exporter notes it as `path,name,class;…`."""
    last = node.metadata.get("nn_module_stack", "").split(";")[-1].split(",")
    return f"; it comes from the layer {last[1][:200]!r}" if len(last) > 1 and last[1] else ""


def _fits(kind: str, value: object) -> bool:
    """Whether a decoded argument is what the operator's schema asks for."""
    if kind.startswith("Optional["):
        return value is None or _fits(kind[len("Optional[") : -1], value)
    if kind.startswith("List["):
        return isinstance(value, list) and all(_fits(kind[len("List[") : -1], item) for item in value)
    match kind:
        case "Tensor":
            return isinstance(value, Constant) or _is_node(value, of_tensor=True)
        case "int" | "SymInt":
            return (isinstance(value, int) and not isinstance(value, bool)) or _is_node(value, of_tensor=False)
        case "float":
            return isinstance(value, (float, int))
        case "number":
            return isinstance(value, (float, int)) or _is_node(value, of_tensor=False)
        case "bool":
            return isinstance(value, bool)
        case "str":
            return isinstance(value, str)
        case "ScalarType":
            return isinstance(value, torch.dtype)
        case "Device" | "Layout" | "MemoryFormat":
            return True  # they mean nothing here, and no handler looks at them
        case _:
            return value is None


def _is_node(value: object, *, of_tensor: bool) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta["probes"][0], torch.Tensor) == of_tensor
