"""What the API shows of an uploaded model: its surface, its layers, and which steps can work on each of them."""

from collections import Counter
from pathlib import Path

from jobs.inspection import Eligibility, LayerInfo, ModelInspection, TensorInfo
from jobs.recipe import STEP_KINDS
from workers.compression.eligibility import why_not, why_not_in_integers
from workers.models.graph import BATCH, DEFAULT_SIZE, Layer, ModelGraph, TensorSpec, layers, parameter
from workers.models.read_model import model_format, read_model
from workers.models.shapes import infer_shapes, macs


def inspect_model(path: Path) -> ModelInspection:
    """Read the file and describe it, or refuse it."""
    return describe(read_model(path), "pt2" if model_format(path) == "pt2" else "onnx")


def describe(graph: ModelGraph, file_format: str) -> ModelInspection:
    """What there is to say about a network that has been read."""
    shapes, multiply_adds = infer_shapes(graph), macs(graph)
    in_integers = why_not_in_integers(graph)
    found = tuple(_layer_info(graph, layer, shapes, multiply_adds[layer.name], in_integers) for layer in layers(graph))
    return ModelInspection(
        format="pt2" if file_format == "pt2" else "onnx",
        producer=graph.producer,
        opset=graph.opset,
        inputs=tuple(_tensor_info(spec) for spec in graph.inputs),
        outputs=tuple(_tensor_info(spec) for spec in graph.outputs),
        batch_size=graph.batch_size,
        classes=_classes(graph),
        parameters=sum(tensor.numel() for tensor in graph.module.parameters()),
        macs=sum(multiply_adds.values()),
        layers=found,
        operators=_operators(graph),
        warnings=(*graph.warnings, *_assumptions(graph)),
    )


def _layer_info(
    graph: ModelGraph, layer: Layer, shapes: dict[str, tuple[int, ...]], multiply_adds: int, in_integers: str | None
) -> LayerInfo:
    weight = parameter(graph, layer.weight)
    bias = parameter(graph, layer.bias).numel() if layer.bias is not None else 0
    return LayerInfo(
        name=layer.name,
        kind=layer.kind,
        weight_shape=layer.weight_shape,
        output_shape=shapes[layer.node][1:],
        parameters=weight.numel() + bias,
        macs=multiply_adds,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        steps={kind: _eligibility(why_not(kind, layer, weight, in_integers)) for kind in STEP_KINDS},
    )


def _eligibility(reason: str | None) -> Eligibility:
    return Eligibility(eligible=reason is None, reason=reason)


def _tensor_info(spec: TensorSpec) -> TensorInfo:
    return TensorInfo(name=spec.name, dtype=str(spec.dtype).removeprefix("torch."), shape=spec.shape)


def _classes(graph: ModelGraph) -> int | None:
    """A class score per image is a vector per image, maybe with single dimensions behind it, as fully convolutional heads leave."""
    first = graph.outputs[0]
    per_image = [size for size in first.shape[1:] if size != 1]
    one_a_batch = first.shape[:1] in ((BATCH,), (graph.batch_size,))
    if not one_a_batch or not first.dtype.is_floating_point or len(per_image) != 1 or first.shape[1] != per_image[0]:
        return None
    return per_image[0] if isinstance(per_image[0], int) else None


def _operators(graph: ModelGraph) -> dict[str, int]:
    names = [str(node.target) for node in graph.module.graph.nodes if node.op == "call_function"]
    return dict(sorted(Counter(name for name in names if name.startswith("aten.")).items()))


def _assumptions(graph: ModelGraph) -> list[str]:
    names = sorted({size for spec in graph.inputs for size in spec.shape if isinstance(size, str) and size != BATCH})
    if not names:
        return []
    return [f"shapes and multiply-adds are given for {', '.join(names)} = {DEFAULT_SIZE}, which the model leaves open"]
