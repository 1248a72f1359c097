"""An ONNX file that points elsewhere or lies about sizes is refused; nothing but the file itself is ever opened."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from jobs.errors import ModelRefused
from tests.workers.models.onnx_files import node, onnx_model, save
from workers.models.read_onnx import read_onnx


def model(weight: onnx.TensorProto) -> onnx.ModelProto:
    made = onnx_model([node("MatMul", ["x", "w"])], inputs={"x": ["n", 4]})
    made.graph.initializer.append(weight)
    return made


def external(location: str, **more: str) -> onnx.ModelProto:
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4, 2])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        weight.external_data.add(key=key, value=value)
    return model(weight)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside the upload's folder whose bytes would fit the weight."""
    path = tmp_path / "secret"
    path.write_bytes(np.arange(8, dtype=np.float32).tobytes())
    return path


@pytest.mark.parametrize("kind", ["traversal", "absolute", "symlink", "hardlink", "plain"])
def test_external_data_is_refused_unopened(kind: str, secret: Path, tmp_path: Path) -> None:
    folder = tmp_path / "upload"
    folder.mkdir()
    location = {"traversal": "../secret", "absolute": str(secret)}.get(kind, "weights.bin")
    if kind == "symlink":
        (folder / "weights.bin").symlink_to(secret)
    elif kind == "hardlink":
        (folder / "weights.bin").hardlink_to(secret)
    elif kind == "plain":
        (folder / "weights.bin").write_bytes(secret.read_bytes())
    os.utime(secret, ns=(0, 0))
    before = secret.stat().st_atime_ns
    with pytest.raises(ModelRefused, match="refers to another") as refused:
        read_onnx(save(external(location), folder / "model.onnx"))
    assert "save_as_external_data=False" in str(refused.value.hint)
    assert refused.value.where == {"parameter": "w"}
    assert secret.stat().st_atime_ns == before


def test_a_device_is_never_read(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="refers to another"):
        read_onnx(save(external("/dev/zero", offset="0", length="32"), tmp_path / "model.onnx"))


def test_external_data_without_saying_so_is_refused(tmp_path: Path) -> None:
    made = external("../secret")
    made.graph.initializer[0].data_location = onnx.TensorProto.DEFAULT
    with pytest.raises(ModelRefused, match="refers to another"):
        read_onnx(save(made, tmp_path / "model.onnx"))


def test_external_data_in_a_constant_is_refused(tmp_path: Path) -> None:
    weight = external("../secret").graph.initializer[0]
    made = onnx_model([node("Constant", [], ["w"], value=weight), node("MatMul", ["x", "w"])], inputs={"x": ["n", 4]})
    with pytest.raises(ModelRefused, match="refers to another"):
        read_onnx(save(made, tmp_path / "model.onnx"))


@pytest.mark.parametrize(
    ("dims", "size", "message"),
    [
        ([2**31, 2**31], 32, "needs"),
        ([4, 3], 32, "needs 48 bytes; the file holds 32"),
        ([4, 1], 32, "needs 16 bytes; the file holds 32"),
        ([-4, -2], 32, "impossible shape"),
        ([1] * 9, 4, "impossible shape"),
        ([2**62, 4], 32, "needs"),
    ],
)
def test_weights_are_as_large_as_they_say(dims: list[int], size: int, message: str, tmp_path: Path) -> None:
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=dims, raw_data=bytes(size))
    with pytest.raises(ModelRefused, match=message) as refused:
        read_onnx(save(model(weight), tmp_path / "model.onnx"))
    assert refused.value.where == {"parameter": "w"}


def test_values_that_are_not_raw_are_counted_too(tmp_path: Path) -> None:
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4, 2], float_data=[1.0] * 7)
    with pytest.raises(ModelRefused, match="needs 8 values; the file holds 7"):
        read_onnx(save(model(weight), tmp_path / "model.onnx"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float, tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.full((4, 2), value, dtype=np.float32), "w")
    with pytest.raises(ModelRefused, match="8 of the 8 values of w are NaN or infinite"):
        read_onnx(save(model(weight), tmp_path / "model.onnx"))


@pytest.mark.parametrize("code", [0, 8, 14, 17, 22, 999])
def test_strange_element_types_are_refused(code: int, tmp_path: Path) -> None:
    weight = onnx.TensorProto(name="w", dims=[4, 2], raw_data=bytes(32))
    weight.data_type = code
    with pytest.raises(ModelRefused, match="element type"):
        read_onnx(save(model(weight), tmp_path / "model.onnx"))


def test_two_weights_of_one_name_are_refused(tmp_path: Path) -> None:
    made = model(onnx.numpy_helper.from_array(np.ones((4, 2), dtype=np.float32), "w"))
    made.graph.initializer.append(made.graph.initializer[0])
    with pytest.raises(ModelRefused, match="two weights called 'w'"):
        read_onnx(save(made, tmp_path / "model.onnx"))


HUGE = np.array([2**20, 2**20, 64], dtype=np.int64)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ConstantOfShape", ["huge"], ["c"]), node("MatMul", ["x", "c"])],
        [node("Expand", ["x", "huge"])],
        [node("Pad", ["x", "pads"])],
        [node("Tile", ["x", "huge2"])],
        [node("Expand", ["one", "huge"], ["c"]), node("Mul", ["x", "c"])],
    ],
    ids=["constant_of_shape", "expand", "pad", "tile", "constant_expand"],
)
def test_shape_bombs_are_refused_while_they_are_numbers(nodes: list[onnx.NodeProto], tmp_path: Path) -> None:
    stored = {
        "huge": HUGE,
        "huge2": np.array([1, 2**40], dtype=np.int64),
        "pads": np.array([0, 0, 0, 2**40], dtype=np.int64),
    }
    made = onnx_model(nodes, inputs={"x": ["n", 1]}, weights={**stored, "one": np.ones(1, dtype=np.float32)})
    with pytest.raises(ModelRefused):
        read_onnx(save(made, tmp_path / "model.onnx"))


def test_doubling_forty_times_is_refused(tmp_path: Path) -> None:
    nodes = [node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=1) for i in range(40)]
    made = onnx_model([node("Relu", ["x"], ["v0"]), *nodes], inputs={"x": ["n", 1]}, outputs=["v40"])
    with pytest.raises(ModelRefused, match="more than"):
        read_onnx(save(made, tmp_path / "model.onnx"))


def test_names_cannot_break_out_of_generated_code(tmp_path: Path) -> None:
    marker = tmp_path / "payload_ran"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    bad = f'x"):\n  {code}\n#'
    nodes = [helper.make_node("MatMul", [bad, f"w{bad}.weight"], [f"y{bad}"], name=f"n{bad}")]
    weight = {f"w{bad}.weight": np.ones((4, 2), dtype=np.float32)}
    graph = read_onnx(
        save(onnx_model(nodes, inputs={bad: ["n", 4]}, outputs=[f"y{bad}"], weights=weight), tmp_path / "m.onnx")
    )
    assert not marker.exists()
    assert code not in graph.module.code


def nested(levels: int) -> bytes:
    """A model whose graph holds a node that holds a graph, and so on: fields 7, then 1, 5 and 6 again and again."""
    content = b""
    for _ in range(levels):
        for field in (6, 5, 1):
            content = bytes([field << 3 | 2]) + _varint(len(content)) + content
    return bytes([7 << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    low = b""
    while number > 127:
        low += bytes([number & 127 | 128])
        number >>= 7
    return low + bytes([number])


@pytest.mark.parametrize("levels", [20, 1000])
def test_deep_nesting_is_refused(levels: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(nested(levels))
    with pytest.raises(ModelRefused):
        read_onnx(path)
