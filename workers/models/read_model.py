"""Reads an uploaded model, whatever it is called: what the file is shows in its first bytes."""

import zipfile
from pathlib import Path

from jobs.errors import ModelRefused
from workers.models.graph import ModelGraph
from workers.models.read_onnx import read_onnx
from workers.models.read_pt2 import read_pt2

_EXPORT = (
    "Export the network with torch.export.save(torch.export.export(model.eval(), (example,), dynamic_shapes="
    "({0: torch.export.Dim('batch')},)), 'model.pt2'), or with torch.onnx.export(model, (example,), 'model.onnx', dynamo=True)."
)
_CONVERT_KERAS = "Convert it to ONNX: python -m tf2onnx.convert --keras model.keras --output model.onnx."
_CONVERT_TFLITE = "Convert it to ONNX: python -m tf2onnx.convert --tflite model.tflite --output model.onnx."

_ZIP = b"PK\x03\x04"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_PICKLE = b"\x80"
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickled magic number


def read_model(path: Path) -> ModelGraph:
    """The network in the file, or a `ModelRefused` that says what the file is and how to export it."""
    return read_pt2(path) if model_format(path) == "pt2" else read_onnx(path)


def model_format(path: Path) -> str:
    """`pt2` or `onnx`; anything else that can be recognised is refused by name."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ModelRefused("the file is empty", hint=_EXPORT)
    if head.startswith(_ZIP):
        return _zip_format(path)
    if head.startswith(b"PK"):
        raise ModelRefused("the file is an empty or split zip archive", hint=_EXPORT)
    _refuse_known(head)
    return "onnx"


def _refuse_known(head: bytes) -> None:
    if head.startswith(_LEGACY_TORCH):
        raise ModelRefused(
            "the file is a pickle of torch.save, which can run code; Winnow never opens it", hint=_EXPORT
        )
    if head.startswith(_PICKLE) and head[1:2] in b"\x02\x03\x04\x05":
        raise ModelRefused("the file is a pickle, which can run code; Winnow never opens it", hint=_EXPORT)
    if head.startswith(_HDF5):
        raise ModelRefused("the file is HDF5, as Keras saves it", hint=_CONVERT_KERAS)
    if head[4:8] == b"TFL3":
        raise ModelRefused("the file is a TensorFlow Lite model", hint=_CONVERT_TFLITE)
    if _is_safetensors(head):
        raise ModelRefused("the file is safetensors, which holds weights without a network", hint=_EXPORT)
    if head.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"\xfd7zXZ", b"BZh")):
        raise ModelRefused("the file is compressed", hint="Upload the model file itself.")
    if head.lstrip().startswith((b"{", b"<")):
        raise ModelRefused("the file is text, not a model", hint=_EXPORT)


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of header length, then the header, which is JSON."""
    return len(head) > 9 and int.from_bytes(head[:8], "little") < 2**32 and head[8:9] == b"{"


def _zip_format(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelRefused(f"the archive is damaged: {error}") from error
    paths = {name.partition("/")[2] for name in names}
    if "models/model.json" in paths:
        return "pt2"
    if any(name.startswith("code/") for name in paths) or "constants.pkl" in paths:
        raise ModelRefused("the file is TorchScript, which holds code; Winnow never opens it", hint=_EXPORT)
    if "data.pkl" in paths:
        raise ModelRefused(
            "the file is a pickle of torch.save, which can run code; Winnow never opens it", hint=_EXPORT
        )
    if "config.json" in names and any(name.endswith(".h5") for name in names):
        raise ModelRefused("the file is a Keras archive", hint=_CONVERT_KERAS)
    raise ModelRefused("the file is a zip archive, but not one of torch.export.save", hint=_EXPORT)
