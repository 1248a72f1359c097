"""Tensors and attributes of ONNX files as torch tensors and Python values, with every size checked before it is believed."""

import math
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from jobs.errors import ModelRefused

MAX_DIMENSIONS = 8

# Element type → torch type, numpy type of raw bytes (little-endian), field that holds values which are not raw.
_TYPES: dict[int, tuple[torch.dtype, str, str]] = {
    onnx.TensorProto.FLOAT: (torch.float32, "<f4", "float_data"),
    onnx.TensorProto.DOUBLE: (torch.float64, "<f8", "double_data"),
    onnx.TensorProto.FLOAT16: (torch.float16, "<f2", "int32_data"),
    onnx.TensorProto.BFLOAT16: (torch.bfloat16, "<i2", "int32_data"),
    onnx.TensorProto.INT8: (torch.int8, "<i1", "int32_data"),
    onnx.TensorProto.UINT8: (torch.uint8, "<u1", "int32_data"),
    onnx.TensorProto.INT16: (torch.int16, "<i2", "int32_data"),
    onnx.TensorProto.INT32: (torch.int32, "<i4", "int32_data"),
    onnx.TensorProto.INT64: (torch.int64, "<i8", "int64_data"),
    onnx.TensorProto.BOOL: (torch.bool, "?", "int32_data"),
}


def element_type(code: int, what: str) -> torch.dtype:
    """The torch type of an ONNX element type."""
    if code not in _TYPES:
        name = onnx.TensorProto.DataType.Name(code) if code in onnx.TensorProto.DataType.values() else str(code)
        raise ModelRefused(f"{what} has the element type {name}, which Winnow doesn't read", name=what)
    return _TYPES[code][0]


def read_tensor(proto: onnx.TensorProto, name: str) -> Tensor:
    """The tensor that `proto` holds itself. Nothing outside the file is ever looked at."""
    if proto.data_location == onnx.TensorProto.EXTERNAL or proto.external_data:
        raise ModelRefused(
            f"the weight {name} is not in the file but refers to another one",
            hint="Upload a single file: onnx.save(model, path, save_as_external_data=False).",
            parameter=name,
        )
    if proto.HasField("segment"):
        raise ModelRefused(f"the weight {name} is stored in segments", parameter=name)
    dtype, raw_type, field = _TYPES[proto.data_type] if proto.data_type in _TYPES else _refuse_type(proto, name)
    shape = tuple(proto.dims)
    if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise ModelRefused(f"the weight {name} has the impossible shape {shape[:16]}", parameter=name)
    elements = math.prod(shape)
    if proto.raw_data or not len(getattr(proto, field)):
        _check_count(len(proto.raw_data), elements * np.dtype(raw_type).itemsize, "bytes", shape, name)
        values = np.frombuffer(proto.raw_data, dtype=raw_type).copy()
    else:
        stored = getattr(proto, field)
        _check_count(len(stored), elements, "values", shape, name)
        values = _from_field(np.array(stored), raw_type, proto.data_type)
    tensor = torch.from_numpy(values).reshape(shape)
    return tensor.view(torch.bfloat16) if dtype is torch.bfloat16 else tensor


def read_attribute(proto: onnx.AttributeProto) -> Any:  # Any: what the attribute's type says
    """The value of an attribute, None for kinds that no supported operator has."""
    match proto.type:
        case onnx.AttributeProto.FLOAT:
            return float(proto.f)
        case onnx.AttributeProto.INT:
            return int(proto.i)
        case onnx.AttributeProto.STRING:
            return proto.s.decode("utf-8", errors="replace")
        case onnx.AttributeProto.TENSOR:
            return read_tensor(proto.t, proto.t.name or proto.name)
        case onnx.AttributeProto.FLOATS:
            return [float(value) for value in proto.floats]
        case onnx.AttributeProto.INTS:
            return [int(value) for value in proto.ints]
        case _:
            return None


def _from_field(stored: "np.ndarray[Any, Any]", raw_type: str, code: int) -> "np.ndarray[Any, Any]":
    if code in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
        return stored.astype(np.uint16).view(raw_type)  # the bits stand in whole numbers
    return stored.astype(raw_type)


def _check_count(found: int, needed: int, unit: str, shape: tuple[int, ...], name: str) -> None:
    if found != needed:
        raise ModelRefused(
            f"the weight {name} of shape {shape} needs {needed} {unit}; the file holds {found}", parameter=name
        )


def _refuse_type(proto: onnx.TensorProto, name: str) -> tuple[torch.dtype, str, str]:
    element_type(proto.data_type, name)
    raise AssertionError("a type that is read is in the table")
