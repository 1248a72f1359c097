"""Reads a `.pt2` file, as `torch.export.save` writes it, into the canonical graph.

`torch.export.load` runs code from the file in several ways: pickled sample inputs, expressions that are evaluated, guards that
are executed, libraries that are loaded. Here a file is data: a zip of JSON and raw bytes. Operators are looked up in a table.
"""

import re
from pathlib import Path

from torch import fx

from jobs.errors import ModelRefused
from workers.models.graph import ModelGraph
from workers.models.graph_builder import Constant, GraphBuilder, Value
from workers.models.input_shapes import DeclaredInput, Varying, build_with_batch
from workers.models.pt2_archive import Pt2Archive, open_archive
from workers.models.pt2_nodes import NodeReader
from workers.models.pt2_schema import DTYPES, ExportedProgram, Tagged, parsed
from workers.models.pt2_weights import read_weights

SCHEMA_MAJOR = 8
MODEL_ENTRY = "models/model.json"

# A size in model.json is a number, a symbol, or a whole multiple of one. It is matched as text; nothing ever evaluates it.
_SIZE = re.compile(
    r"(?:Mul\(Integer\((?P<multiple>[1-9]\d{0,5})\), )?"
    r"(?:Symbol\('(?P<symbol>[A-Za-z_]\w{0,63})'(?:, \w+=(?:True|False))*\)|(?P<plain>[A-Za-z_]\w{0,63}))\)?",
    re.ASCII,
)
_RE_EXPORT = "Export the network with torch.export.export and torch.export.save of torch 2.13."


def read_pt2(path: Path) -> ModelGraph:
    """The network in the file."""
    with open_archive(path) as archive:
        _check_contents(archive)
        program = parsed(ExportedProgram, archive.read_json(MODEL_ENTRY), MODEL_ENTRY)
        if program.schema_version.major != SCHEMA_MAJOR:
            raise ModelRefused(
                f"the file has version {program.schema_version.major} of the export schema; Winnow reads version {SCHEMA_MAJOR}",
                hint=_RE_EXPORT,
                entry=MODEL_ENTRY,
            )
        stored = _stored_values(program, read_weights(archive))
    inputs = _user_inputs(program)

    def add_nodes(builder: GraphBuilder, nodes: list[fx.Node]) -> list[tuple[str, Value]]:
        values: dict[str, Value] = {**stored, **dict(zip((given.name for given in inputs), nodes, strict=True))}
        reader = NodeReader(builder, values)
        for node in program.graph_module.graph.nodes:
            reader.read(node)
        builder.operator = builder.node = ""
        return [(name, reader.value(name)) for name in _user_outputs(program)]

    graph = build_with_batch(inputs, add_nodes)
    graph.producer = f"torch {program.torch_version[:64]}"
    return graph


def _check_contents(archive: Pt2Archive) -> None:
    for folder in ("data/aotinductor", "data/executorch"):
        if folder in archive.folders():
            raise ModelRefused("the file holds compiled code, which Winnow never loads", hint=_RE_EXPORT, entry=folder)


def _stored_values(program: ExportedProgram, weights: dict[str, Constant]) -> dict[str, Value]:
    """What the graph's first inputs stand for: parameters, buffers and constants, by their name in the graph."""
    stored: dict[str, Value] = {}
    for spec in program.graph_module.signature.input_specs:
        match _only_entry(spec):
            case "parameter", {"arg": {"name": str(name)}, "parameter_name": str(weight)}:
                stored[name] = _weight(weights, weight)
            case "buffer", {"arg": {"name": str(name)}, "buffer_name": str(weight)}:
                stored[name] = _weight(weights, weight)
            case "tensor_constant", {"arg": {"name": str(name)}, "tensor_constant_name": str(weight)}:
                stored[name] = _weight(weights, weight)
            case "user_input", _:
                continue
            case kind, _:
                raise ModelRefused(
                    f"the network takes an input of the kind {str(kind)[:64]!r}, which Winnow never reads"
                )
    return stored


def _weight(weights: dict[str, Constant], name: str) -> Constant:
    if name not in weights:
        raise ModelRefused(f"the archive holds no weight called {name[:256]!r}", entry="data/weights")
    return weights[name]


def _user_inputs(program: ExportedProgram) -> list[DeclaredInput]:
    inputs = []
    for spec in program.graph_module.signature.input_specs:
        match _only_entry(spec):
            case "user_input", {"arg": {"as_tensor": {"name": str(name)}}}:
                inputs.append(_declared_input(program, name))
            case "user_input", _:
                raise ModelRefused("the network takes an input that is not a tensor", hint=_RE_EXPORT)
    return inputs


def _declared_input(program: ExportedProgram, name: str) -> DeclaredInput:
    meta = program.graph_module.graph.tensor_values.get(name)
    if meta is None or meta.dtype not in DTYPES:
        raise ModelRefused(f"the input {name!r} has no element type that Winnow knows", entry=MODEL_ENTRY)
    return DeclaredInput(name, DTYPES[meta.dtype], tuple(_declared_size(size, name) for size in meta.sizes))


def _declared_size(size: Tagged, name: str) -> int | Varying:
    match _only_entry(size):
        case "as_int", int(number) if number >= 0:
            return number
        case "as_expr", {"expr_str": str(text)} if (found := _SIZE.fullmatch(text)) is not None:
            return Varying(found["symbol"] or found["plain"], int(found["multiple"] or 1))
    raise ModelRefused(
        f"a size of the input {name!r} is neither a number nor a plain symbol",
        hint="Export with plain torch.export.Dim symbols in dynamic_shapes.",
        entry=MODEL_ENTRY,
    )


def _user_outputs(program: ExportedProgram) -> list[str]:
    names = []
    for spec in program.graph_module.signature.output_specs:
        match _only_entry(spec):
            case "user_output", {"arg": {"as_tensor": {"name": str(name)}}}:
                names.append(name)
            case "buffer_mutation", _:
                continue  # statistics that a training run would keep
            case kind, _:
                raise ModelRefused(f"the network returns something that is not a tensor ({str(kind)[:64]})")
    if not names:
        raise ModelRefused("the network returns nothing")
    return names


def _only_entry(tagged: Tagged) -> tuple[str, object]:
    if len(tagged) != 1:
        raise ModelRefused("model.json holds a value that doesn't say its one type", entry=MODEL_ENTRY)
    return next(iter(tagged.items()))
