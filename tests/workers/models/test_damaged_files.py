"""Whatever happens to a file's bytes, reading it gives a network or a refusal: no other error, no hang, no flood of memory."""

import io
import json
import random
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from jobs.errors import ModelRefused
from tests.workers.models.example_networks import with_zeros
from tests.workers.networks import save_pt2, small_cnn
from workers.models.inspect_model import inspect_model
from workers.models.read_model import read_model
from workers.models.write_onnx import write_onnx

DAMAGED_FILES = 250  # of each kind
SECONDS_FOR_ONE = 20.0

STRANGE: list[Any] = [
    None, True, -1, 0, 1, 2, 3, 7, 2**31, 2**63 - 1, -(2**63), 0.5, 1e308, "", "x", "as_int", [], [[]], {}, [0], [-1], [2**40],
    {"as_int": -1}, {"as_none": True}, {"as_ints": [0, 0]}, {"as_tensor": {"name": "relu"}}, {"as_sym_int": {"as_name": "x"}},
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same small network in every form."""
    folder = tmp_path_factory.mktemp("whole")
    graph = read_model(save_pt2(small_cnn(), torch.rand(1, 1, 8, 8), folder / "pt2"))
    write_onnx(graph, folder / "onnx", pack_zeros=False)
    write_onnx(with_zeros(graph, 0.7), folder / "packed", pack_zeros=True)
    return {name: (folder / name).read_bytes() for name in ("pt2", "onnx", "packed")}


def damaged_bytes(content: bytes, seed: int) -> Iterator[bytes]:
    """Flipped bits, other bytes, missing and additional ones."""
    chance = random.Random(seed)
    for _ in range(DAMAGED_FILES):
        changed = bytearray(content)
        for _ in range(chance.choice([1, 1, 2, 4, 16])):
            place, kind = chance.randrange(len(changed)), chance.random()
            if kind < 0.6:
                changed[place] ^= 1 << chance.randrange(8)
            elif kind < 0.8:
                changed[place] = chance.randrange(256)
            elif kind < 0.9:
                del changed[place : place + chance.randrange(1, 8)]
            else:
                changed[place:place] = chance.randbytes(chance.randrange(1, 5))
        yield bytes(changed)


def damaged_documents(content: bytes, seed: int) -> Iterator[bytes]:
    """Archives whose JSON is well-formed but says strange things."""
    chance = random.Random(seed)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    documents = [name for name in entries if name.endswith(("model.json", "weights_config.json"))]
    for _ in range(DAMAGED_FILES):
        name = chance.choice(documents)
        document = json.loads(entries[name])
        for _ in range(chance.choice([1, 1, 2])):
            replace_somewhere(document, chance)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as target:
            for entry, plain in entries.items():
                target.writestr(entry, json.dumps(document) if entry == name else plain)
        yield stream.getvalue()


def replace_somewhere(document: Any, chance: random.Random) -> None:
    """Walk down at random and put something strange there."""
    while True:
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        if not keys:
            return
        key = chance.choice(keys)
        inner = document[key]
        if not isinstance(inner, (dict, list)) or not inner or chance.random() < 0.1:
            document[key] = chance.choice(STRANGE)
            return
        document = inner


def damaged_protos(content: bytes, seed: int) -> Iterator[bytes]:
    """ONNX models that parse but whose attributes, sizes and edges are strange."""
    chance = random.Random(seed)
    for _ in range(DAMAGED_FILES):
        model = onnx.load_from_string(content)
        for _ in range(chance.choice([1, 1, 2])):
            damage_proto(model.graph, chance)
        yield model.SerializeToString()


def damage_proto(graph: onnx.GraphProto, chance: random.Random) -> None:
    number = chance.choice([-(2**63), -5, -1, 0, 1, 2, 3, 7, 64, 2**31, 2**62])
    node = chance.choice(graph.node)
    match chance.randrange(6):
        case 0 if node.attribute:
            attribute = chance.choice(node.attribute)
            if attribute.ints:
                attribute.ints[chance.randrange(len(attribute.ints))] = number
            else:
                attribute.i, attribute.f = number, float(number)
        case 1 if node.input:
            node.input[chance.randrange(len(node.input))] = chance.choice([tensor.name for tensor in graph.initializer])
        case 2:
            node.op_type = chance.choice([other.op_type for other in graph.node])
        case 3:
            tensor = chance.choice(graph.initializer)
            if tensor.dims:
                tensor.dims[chance.randrange(len(tensor.dims))] = number
        case 4:
            tensor = chance.choice(graph.initializer)
            tensor.data_type = chance.choice(range(24))
        case _:
            chance.choice(graph.input[0].type.tensor_type.shape.dim).dim_value = number


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("pt2", damaged_bytes), ("onnx", damaged_bytes), ("packed", damaged_bytes),
        ("pt2", damaged_documents), ("onnx", damaged_protos), ("packed", damaged_protos),
    ],
    ids=["pt2-bytes", "onnx-bytes", "packed-bytes", "pt2-documents", "onnx-protos", "packed-protos"],
)  # fmt: skip
def test_damaged_files_are_read_or_refused(name: str, damage: Any, files: dict[str, bytes], tmp_path: Path) -> None:
    path, refused = tmp_path / "damaged", 0
    for content in damage(files[name], seed=11):
        path.write_bytes(content)
        begun = time.monotonic()
        try:
            inspect_model(path)
        except ModelRefused:
            refused += 1
        assert time.monotonic() - begun < SECONDS_FOR_ONE
    assert refused > DAMAGED_FILES // 10
