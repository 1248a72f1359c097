"""Small ONNX files for tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from workers.models.graph import ModelGraph

Array = np.ndarray[Any, Any]
onnxruntime.set_default_logger_severity(3)


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), list(outputs), **attributes)


def onnx_model(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str] = ("y",),
    weights: Mapping[str, Array] | None = None,
    opset: int = 18,
    element_type: int = onnx.TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model whose outputs have no declared shape, as many exporters leave it."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, element_type, list(shape)) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        initializer=[numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    for output in graph.output:
        output.type.tensor_type.elem_type = element_type
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def run_onnx(path: Path, *inputs: Tensor) -> list[Tensor]:
    """What ONNX Runtime computes, one thread, no rewriting of the graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return [torch.from_numpy(np.asarray(value)) for value in session.run(None, feeds)]


def random_inputs(graph: ModelGraph, batch: int, seed: int = 0) -> list[Tensor]:
    """Inputs of the network for `batch` images, between -1 and 1."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [[batch if isinstance(size, str) else size for size in spec.shape] for spec in graph.inputs]
    return [
        (torch.rand(shape, generator=generator) * 2 - 1).to(spec.dtype)
        for shape, spec in zip(shapes, graph.inputs, strict=True)
    ]
