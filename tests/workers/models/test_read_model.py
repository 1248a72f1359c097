"""The reader is chosen by content; what can't be read is called by its name and told how to be exported."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from jobs.errors import ErrorCode, ModelRefused
from tests.workers.networks import save_pt2, small_cnn
from workers.models.read_model import model_format, read_model
from workers.models.write_onnx import write_onnx


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


def saved(content: object, **options: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def scripted() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.ReLU()), stream)
    return stream.getvalue()


STATE = {"w": torch.ones(2)}
FILES = {
    "empty": (lambda: b"", "empty"),
    "torch_save": (lambda: saved(STATE), "pickle of torch.save"),
    "old_torch_save": (lambda: saved(STATE, _use_new_zipfile_serialization=False), "pickle of torch.save"),
    "pickle": (lambda: pickle.dumps({"w": 1}), "pickle"),
    "torchscript": (scripted, "TorchScript"),
    "safetensors": (lambda: struct.pack("<Q", 20) + b'{"w":{"dtype":"F32"}', "safetensors"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "keras": (lambda: zipped("config.json", "model.weights.h5"), "Keras"),
    "tflite": (lambda: b"\x1c\x00\x00\x00TFL3" + bytes(64), "TensorFlow Lite"),
    "plain_zip": (lambda: zipped("a.txt"), "zip archive"),
    "empty_zip": (lambda: b"PK\x05\x06" + bytes(18), "zip archive"),
    "broken_zip": (lambda: b"PK\x03\x04" + bytes(64), "damaged"),
    "gzip": (lambda: b"\x1f\x8b" + bytes(64), "compressed"),
    "json": (lambda: b'{"a": 1}', "text"),
    "html": (lambda: b"<html></html>", "text"),
    "noise": (lambda: bytes(range(256)), "no ONNX model"),
    "zeros": (lambda: bytes(1000), "no ONNX model"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("name", FILES)
def test_other_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    content, words = FILES[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(content())
    with pytest.raises(ModelRefused, match=words) as refused:
        read_model(path)
    assert refused.value.as_job_error().code == ErrorCode.MODEL_REJECTED
    assert refused.value.hint is not None or name in ("broken_zip", "noise", "zeros")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "payload_ran",))

    for content in (pickle.dumps(Payload()), saved(Payload()), saved(Payload(), _use_new_zipfile_serialization=False)):
        path = tmp_path / "model.pt"
        path.write_bytes(content)
        with pytest.raises(ModelRefused, match="pickle"):
            read_model(path)
    assert not (tmp_path / "payload_ran").exists()


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    pt2 = save_pt2(small_cnn(), torch.rand(1, 1, 8, 8), tmp_path / "called.onnx")
    graph = read_model(pt2)
    write_onnx(graph, tmp_path / "called.pt2", pack_zeros=False)
    assert (model_format(pt2), model_format(tmp_path / "called.pt2")) == ("pt2", "onnx")
    given = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(read_model(tmp_path / "called.pt2")(given)[0], graph(given)[0])
