"""The part of torch's export schema (version 8) that Winnow reads from model.json and the weights' configuration."""

from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.errors import ModelRefused

# Element types by their number in the schema (the order of c10::ScalarType, from 1); complex and 8-bit floats are not supported.
DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
STRIDED = 7

# A one-key dictionary that says its own type, such as {"as_int": 3}; decoded by `read_pt2` where it is used.
Tagged = dict[str, Any]


class Read(BaseModel):
    """Strict in what it reads, silent about what it does not need."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class NamedArgument(Read):
    name: str
    arg: Tagged


class Node(Read):
    target: str
    inputs: list[NamedArgument]
    outputs: list[Tagged]
    name: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)


class TensorMeta(Read):
    dtype: int
    sizes: list[Tagged]
    strides: list[Tagged]
    storage_offset: Tagged
    layout: int


class Graph(Read):
    inputs: list[Tagged]
    outputs: list[Tagged]
    nodes: list[Node]
    tensor_values: dict[str, TensorMeta]


class Signature(Read):
    input_specs: list[Tagged]
    output_specs: list[Tagged]


class GraphModule(Read):
    graph: Graph
    signature: Signature


class SchemaVersion(Read):
    major: int
    minor: int


class ExportedProgram(Read):
    graph_module: GraphModule
    schema_version: SchemaVersion
    torch_version: str = "unknown"


class Payload(Read):
    path_name: str
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta | None


class PayloadConfig(Read):
    config: dict[str, Payload]


_Parsed = TypeVar("_Parsed", bound=BaseModel)


def parsed(schema: type[_Parsed], content: object, entry: str) -> _Parsed:
    """`content` as `schema`, or a refusal that says where in the entry it differs."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:64] for part in first["loc"])
        raise ModelRefused(f"{entry} is not as torch writes it: {place}: {first['msg']}", entry=entry) from error
