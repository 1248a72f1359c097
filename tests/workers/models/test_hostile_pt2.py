"""A `.pt2` file that wants to run code, or to be larger than it is, is refused; nothing in it ever runs."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.errors import ModelRefused
from tests.workers.networks import save_pt2, small_cnn
from workers.models.read_model import read_model
from workers.models.read_pt2 import read_pt2

MODEL = "network/models/model.json"
WEIGHTS = "network/data/weights/model_weights_config.json"
Entries = dict[str, bytes]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Entries:
    """The entries of a good file."""
    path = save_pt2(small_cnn(), torch.rand(1, 1, 8, 8), tmp_path_factory.mktemp("clean") / "network.pt2")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that exists only if a payload ran."""
    return tmp_path / "payload_ran"


def archive(entries: Entries, folder: Path, *, compression: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "hostile.pt2"
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, content in entries.items():
            target.writestr(name, content)
    return path


def changed(entries: Entries, entry: str, change: Callable[[Any], None]) -> Entries:
    """The entries with one JSON document changed."""
    document = json.loads(entries[entry])
    change(document)
    return {**entries, entry: json.dumps(document).encode()}


def nodes(document: Any) -> Any:
    return document["graph_module"]["graph"]["nodes"]


class Payload:
    """Unpickling this writes the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def code(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def test_the_clean_file_is_read(clean: Entries, tmp_path: Path) -> None:
    assert read_pt2(archive(clean, tmp_path)).batch_size is None


def test_the_payloads_work_where_they_are_meant_to(marker: Path) -> None:
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


def test_pickled_sample_inputs_are_never_opened(clean: Entries, marker: Path, tmp_path: Path) -> None:
    hostile = {**clean, "network/data/sample_inputs/model.pt": pickle.dumps(Payload(marker))}
    read_pt2(archive(hostile, tmp_path))
    assert not marker.exists()


def test_pickled_weights_are_refused(clean: Entries, marker: Path, tmp_path: Path) -> None:
    def use_pickle(document: Any) -> None:
        document["config"]["conv1.weight"]["use_pickle"] = True

    hostile = changed(clean, WEIGHTS, use_pickle)
    place = json.loads(clean[WEIGHTS])["config"]["conv1.weight"]["path_name"]
    hostile[f"network/data/weights/{place}"] = pickle.dumps(Payload(marker))
    with pytest.raises(ModelRefused, match=r"conv1\.weight is stored as a pickle"):
        read_pt2(archive(hostile, tmp_path))
    assert not marker.exists()


@pytest.mark.parametrize("where", ["input", "inner"])
def test_expressions_are_never_evaluated(where: str, clean: Entries, marker: Path, tmp_path: Path) -> None:
    def add_code(document: Any) -> None:
        values = document["graph_module"]["graph"]["tensor_values"]
        given = document["graph_module"]["graph"]["inputs"][-1]
        chosen = given if where == "input" else nodes(document)[0]["outputs"][0]
        values[chosen["as_tensor"]["name"]]["sizes"][0] = {"as_expr": {"expr_str": code(marker), "hint": None}}

    path = archive(changed(clean, MODEL, add_code), tmp_path)
    if where == "input":
        with pytest.raises(ModelRefused, match="neither a number nor a plain symbol"):
            read_pt2(path)
    else:
        read_pt2(path)  # sizes of inner tensors are worked out, not believed
    assert not marker.exists()


def test_guards_are_never_executed(clean: Entries, marker: Path, tmp_path: Path) -> None:
    def add_guard(document: Any) -> None:
        document["guards_code"] = [code(marker)]

    read_pt2(archive(changed(clean, MODEL, add_guard), tmp_path))
    assert not marker.exists()


def test_compiled_libraries_are_refused(clean: Entries, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="compiled code"):
        read_pt2(archive({**clean, "network/data/aotinductor/model/m.so": b"\x7fELF"}, tmp_path))


def test_custom_objects_are_refused(clean: Entries, marker: Path, tmp_path: Path) -> None:
    def add_object(document: Any) -> None:
        specs = document["graph_module"]["signature"]["input_specs"]
        specs.insert(0, {"custom_obj": {"arg": {"name": "obj", "class_fqn": "x"}, "custom_obj_name": "obj"}})

    hostile = changed(clean, MODEL, add_object)
    hostile["network/data/constants/custom_obj_0"] = pickle.dumps(Payload(marker))
    with pytest.raises(ModelRefused, match="custom_obj"):
        read_pt2(archive(hostile, tmp_path))
    assert not marker.exists()


TARGETS = [
    "torch.ops.aten.load_library",
    "torch.ops.higher_order.cond",
    "torch.ops.aten.__class__.default",
    "os.system",
    "builtins.eval",
    "_operator.call",
]


@pytest.mark.parametrize("target", TARGETS)
def test_operators_are_looked_up_and_not_imported(target: str, clean: Entries, tmp_path: Path) -> None:
    def call(document: Any) -> None:
        nodes(document)[0]["target"] = target

    with pytest.raises(ModelRefused, match="doesn't know this operator") as refused:
        read_pt2(archive(changed(clean, MODEL, call), tmp_path))
    assert refused.value.where["operator"] == target


def test_names_cannot_break_out_of_generated_code(clean: Entries, marker: Path, tmp_path: Path) -> None:
    """fx pastes names into Python source; a name that is source must come out as a harmless one."""
    bad_input, bad_weight = f"x):\n  {code(marker)}\n  return (x\n#", f'w")\n{code(marker)}\n#.weight'
    text = clean[MODEL].decode()
    name = json.loads(text)["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"]
    document = text.replace(f'"{name}"', json.dumps(bad_input)).replace('"conv1.weight"', json.dumps(bad_weight))
    weights = clean[WEIGHTS].decode().replace('"conv1.weight"', json.dumps(bad_weight))
    graph = read_pt2(archive({**clean, MODEL: document.encode(), WEIGHTS: weights.encode()}, tmp_path))
    graph(torch.rand(2, 1, 8, 8))
    assert not marker.exists()
    assert code(marker) not in graph.module.code


def change_weight(**changes: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        document["config"]["conv2.weight"]["tensor_meta"].update(changes)

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": [{"as_int": 2**20}] * 4}, "needs more than the 576 elements"),
        ({"sizes": [{"as_int": 9}, {"as_int": 8}, {"as_int": 3}, {"as_int": 3}]}, "needs more than the 576 elements"),
        ({"storage_offset": {"as_int": 1}}, "needs more than the 576 elements"),
        ({"strides": [{"as_int": 0}] * 4, "sizes": [{"as_int": 2**15}] * 4}, "needs more than the 576 elements"),
        ({"strides": [{"as_int": 2**39}] * 4}, "needs more than the 576 elements"),
        ({"sizes": [{"as_int": -8}, {"as_int": 8}, {"as_int": 3}, {"as_int": 3}]}, "not a plain number"),
        ({"sizes": [{"as_expr": {"expr_str": "1"}}] * 4}, "not a plain number"),
        ({"storage_offset": {"as_int": -1}}, "not a plain number"),
        ({"strides": [{"as_int": 1}]}, "4 sizes and 1 strides"),
        ({"dtype": 9}, "element type"),
        ({"layout": 1}, "element type or layout"),
        ({"dtype": "7"}, "not as torch writes it"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_weights_stay_inside_their_bytes(changes: dict[str, Any], message: str, clean: Entries, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=message):
        read_pt2(archive(changed(clean, WEIGHTS, change_weight(**changes)), tmp_path))


@pytest.mark.parametrize("place", ["../../etc/passwd", "/etc/passwd", "a/../../b", "x" * 300])
def test_paths_of_weights_stay_in_their_folder(place: str, clean: Entries, tmp_path: Path) -> None:
    def elsewhere(document: Any) -> None:
        document["config"]["conv2.weight"]["path_name"] = place

    with pytest.raises(ModelRefused, match="unsafe path"):
        read_pt2(archive(changed(clean, WEIGHTS, elsewhere), tmp_path))


def test_a_huge_activation_is_refused_before_it_exists(clean: Entries, tmp_path: Path) -> None:
    def grow(document: Any) -> None:
        first = next(node for node in nodes(document) if node["target"].endswith("conv2d.default"))
        for argument in first["inputs"]:
            if argument["name"] == "padding":
                argument["arg"] = {"as_ints": [2**20, 2**20]}

    with pytest.raises(ModelRefused, match="more than"):
        read_pt2(archive(changed(clean, MODEL, grow), tmp_path))


@pytest.mark.parametrize("version", [7, 9, "8"])
def test_other_versions_of_the_schema_are_refused(version: object, clean: Entries, tmp_path: Path) -> None:
    def set_version(document: Any) -> None:
        document["schema_version"]["major"] = version

    with pytest.raises(ModelRefused, match="schema"):
        read_pt2(archive(changed(clean, MODEL, set_version), tmp_path))


def test_deep_json_is_refused(clean: Entries, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="not valid JSON"):
        read_pt2(archive({**clean, MODEL: b"[" * 10**6}, tmp_path))


def test_a_long_number_is_refused(clean: Entries, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="not valid JSON"):
        read_pt2(archive({**clean, MODEL: b"9" * 10**6}, tmp_path))


def test_a_zip_bomb_is_refused_unread(clean: Entries, tmp_path: Path) -> None:
    bomb = {**clean, "network/data/extra": bytes(200 * 2**20)}
    path = archive(bomb, tmp_path, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    with pytest.raises(ModelRefused, match="unpacks to"):
        read_pt2(path)


def test_compressed_weights_are_read(clean: Entries, tmp_path: Path) -> None:
    read_pt2(archive(clean, tmp_path, compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_compression_is_refused(compression: int, clean: Entries, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="compressed by a method"):
        read_pt2(archive(clean, tmp_path, compression=compression))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_duplicate_entries_are_refused(clean: Entries, tmp_path: Path) -> None:
    path = archive(clean, tmp_path)
    with zipfile.ZipFile(path, "a") as target:
        target.writestr(MODEL, b"{}")
    with pytest.raises(ModelRefused, match="twice"):
        read_pt2(path)


@pytest.mark.parametrize("name", ["network/../../evil", "network/./x", "network\\..\\x"])
def test_unsafe_entry_names_are_refused(name: str, clean: Entries, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"unsafe path|exactly one top folder"):
        read_pt2(archive({**clean, name: b""}, tmp_path))


def test_encrypted_entries_are_refused(clean: Entries, tmp_path: Path) -> None:
    path = archive(clean, tmp_path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(ModelRefused, match="encrypted"):
        read_pt2(path)


def test_overlapping_entries_are_refused(clean: Entries, tmp_path: Path) -> None:
    """Two directory records that point at one place: a quine of a bomb."""
    path = archive(clean, tmp_path)
    content = bytearray(path.read_bytes())
    records = [place for place in range(len(content)) if content[place : place + 4] == b"PK\x01\x02"]
    content[records[-1] + 42 : records[-1] + 46] = content[records[-2] + 42 : records[-2] + 46]
    path.write_bytes(content)
    with pytest.raises(ModelRefused, match="overlaps"):
        read_pt2(path)


def test_a_truncated_file_is_refused(clean: Entries, tmp_path: Path) -> None:
    path = archive(clean, tmp_path)
    whole = path.read_bytes()
    for length in range(4, len(whole), len(whole) // 20):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelRefused):
            read_model(path)


def test_a_missing_weight_is_refused_by_name(clean: Entries, tmp_path: Path) -> None:
    def rename(document: Any) -> None:
        document["config"]["other"] = document["config"].pop("conv2.weight")

    with pytest.raises(ModelRefused, match=r"no weight called 'conv2\.weight'"):
        read_pt2(archive(changed(clean, WEIGHTS, rename), tmp_path))


def test_values_used_before_they_exist_are_refused(clean: Entries, tmp_path: Path) -> None:
    def turn_around(document: Any) -> None:
        nodes(document).reverse()

    with pytest.raises(ModelRefused, match="nothing is called"):
        read_pt2(archive(changed(clean, MODEL, turn_around), tmp_path))
