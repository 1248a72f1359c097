"""Every ONNX operator that is read computes what ONNX Runtime computes, for many combinations of attributes; and so does what is
written again."""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from jobs.errors import ModelRefused
from tests.workers.models.onnx_files import Array, node, onnx_model, random_inputs, run_onnx, save
from workers.models.graph import ModelGraph
from workers.models.read_onnx import read_onnx
from workers.models.write_onnx import write_onnx

RANDOM = np.random.default_rng(7)


def weights(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def numbers(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def check(
    model: onnx.ModelProto, folder: Path, *, tolerance: float = 2e-5, batches: Sequence[int] = (1, 3)
) -> ModelGraph:
    """The model as read, and as read and written again, agrees with ONNX Runtime for every batch that it takes."""
    path = save(model, folder / "model.onnx")
    graph = read_onnx(path)
    write_onnx(graph, folder / "again.onnx", pack_zeros=False)
    declared = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    for batch in batches if graph.batch_size is None else [graph.batch_size]:
        given = random_inputs(graph, batch)
        with torch.no_grad():
            found = graph(*given)
        if not declared or declared == batch:
            expected = run_onnx(path, *given)
        else:  # the file takes one batch only, the graph any: image by image must be the same
            expected = [
                torch.cat(parts)
                for parts in zip(*[run_onnx(path, *[g[i : i + 1] for g in given]) for i in range(batch)], strict=True)
            ]
        for one, other, written in zip(found, expected, run_onnx(folder / "again.onnx", *given), strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
            torch.testing.assert_close(written, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    return graph


def cases(makes_sense: Callable[[dict[str, Any]], bool] = bool, /, **choices: Sequence[Any]) -> list[Any]:
    """Every combination of the choices that makes sense, as parameters with readable names."""
    combinations = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    return [
        pytest.param(case, id="-".join(str(value).replace(" ", "") for value in case.values()))
        for case in combinations
        if makes_sense(case)
    ]


@pytest.mark.parametrize(
    "c",
    cases(
        # ONNX Runtime has no dilated SAME padding.
        lambda case: not (str(case["pads"]).startswith("SAME") and case["dilations"] != (1, 1)),
        kernel=[(3, 3), (1, 5), (2, 2)],
        strides=[(1, 1), (2, 1)],
        pads=[None, (1, 1, 1, 1), (0, 1, 2, 0), "SAME_UPPER", "SAME_LOWER", "VALID"],
        dilations=[(1, 1), (2, 1)],
        group=[1, 2],
    ),
)
def test_conv(c: dict[str, Any], tmp_path: Path) -> None:
    padding = (
        {} if c["pads"] is None else {"auto_pad": c["pads"]} if isinstance(c["pads"], str) else {"pads": c["pads"]}
    )
    model = onnx_model(
        [node("Conv", ["x", "w", "b"], strides=c["strides"], dilations=c["dilations"], group=c["group"], **padding)],
        inputs={"x": ["n", 4, 9, 8]},
        weights={"w": weights(6, 4 // c["group"], *c["kernel"]), "b": weights(6)},
    )
    check(model, tmp_path)


@pytest.mark.parametrize(
    "c",
    cases(
        # The spec wants less extra than stride.
        lambda case: all(extra < stride for extra, stride in zip(case["extra"], case["strides"], strict=True)),
        kernel=[(3, 3), (2, 4)],
        strides=[(1, 1), (2, 3)],
        pads=[(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 1, 0)],
        extra=[(0, 0), (1, 0)],
        dilations=[(1, 1), (2, 1)],
        group=[1, 2],
    ),
)
def test_conv_transpose(c: dict[str, Any], tmp_path: Path) -> None:
    attributes = {"strides": c["strides"], "pads": c["pads"], "output_padding": c["extra"], "dilations": c["dilations"]}
    model = onnx_model(
        [node("ConvTranspose", ["x", "w"], group=c["group"], **attributes)],
        inputs={"x": ["n", 4, 5, 6]},
        weights={"w": weights(4, 3, *c["kernel"])},
    )
    check(model, tmp_path)


@pytest.mark.parametrize("word", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_conv_transpose_with_padding_by_word(word: str, tmp_path: Path) -> None:
    model = onnx_model(
        [node("ConvTranspose", ["x", "w"], strides=(2, 2), auto_pad=word)],
        inputs={"x": ["n", 4, 5, 6]},
        weights={"w": weights(4, 3, 3, 3)},
    )
    check(model, tmp_path)


@pytest.mark.parametrize("shape", [(10, 12), (11, 13)])
def test_conv_transpose_to_a_given_shape(shape: tuple[int, int], tmp_path: Path) -> None:
    model = onnx_model(
        [node("ConvTranspose", ["x", "w"], strides=(2, 2), output_shape=shape)],
        inputs={"x": ["n", 4, 5, 6]},
        weights={"w": weights(4, 3, 3, 3)},
    )
    check(model, tmp_path)


def _pool_makes_sense(case: dict[str, Any]) -> bool:
    """Rounding up means nothing with padding by word, and is refused for averages that are padded differently from side to side."""
    if not case["ceil"]:
        return True
    uneven = case["pads"][:2] != case["pads"][2:]
    return not isinstance(case["pads"], str) and not (case["operator"] != "MaxPool" and uneven)


@pytest.mark.parametrize(
    "c",
    cases(
        _pool_makes_sense,
        operator=["MaxPool", "AveragePool", "AveragePool counting"],
        kernel=[(2, 2), (3, 2)],
        strides=[(1, 1), (2, 2), (3, 3)],
        pads=[(0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 1, 1), "SAME_UPPER", "SAME_LOWER"],
        ceil=[0, 1],
    ),
)
def test_pooling(c: dict[str, Any], tmp_path: Path) -> None:
    operator, _, counting = c["operator"].partition(" ")
    attributes = {"auto_pad": c["pads"]} if isinstance(c["pads"], str) else {"pads": c["pads"]}
    if counting:
        attributes["count_include_pad"] = 1
    model = onnx_model(
        [node(operator, ["x"], kernel_shape=c["kernel"], strides=c["strides"], ceil_mode=c["ceil"], **attributes)],
        inputs={"x": ["n", 2, 7, 8]},
    )
    check(model, tmp_path)


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1)])
def test_dilated_max_pool(pads: tuple[int, ...], tmp_path: Path) -> None:
    model = onnx_model(
        [node("MaxPool", ["x"], kernel_shape=(2, 3), dilations=(2, 1), pads=pads)], inputs={"x": ["n", 2, 7, 8]}
    )
    check(model, tmp_path)


@pytest.mark.parametrize("operator", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pooling(operator: str, tmp_path: Path) -> None:
    check(onnx_model([node(operator, ["x"])], inputs={"x": ["n", 3, 5, 4]}), tmp_path)


@pytest.mark.parametrize(
    "c", cases(transA=[0], transB=[0, 1], alpha=[1.0, 0.5], beta=[1.0, 2.0], bias=[None, (5,), (1, 5), (1,), ()])
)
def test_gemm(c: dict[str, Any], tmp_path: Path) -> None:
    stored = {"w": weights(5, 6) if c["transB"] else weights(6, 5)}
    if c["bias"] is not None:
        stored["b"] = weights(*c["bias"])
    model = onnx_model(
        [node("Gemm", ["x", *stored], transA=c["transA"], transB=c["transB"], alpha=c["alpha"], beta=c["beta"])],
        inputs={"x": ["n", 6]},
        weights=stored,
    )
    check(model, tmp_path)


def test_gemm_of_a_transposed_result(tmp_path: Path) -> None:
    model = onnx_model([node("Gemm", ["x", "w"], transA=1)], inputs={"x": [6, 4]}, weights={"w": weights(6, 5)})
    assert check(model, tmp_path).batch_size == 6


@pytest.mark.parametrize("shape", [(5,), (1, 5)])
def test_matmul_and_add_are_one_linear_layer(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = onnx_model(
        [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"])],
        inputs={"x": ["n", 6]},
        weights={"w": weights(6, 5), "b": weights(*shape)},
    )
    graph = check(model, tmp_path)
    assert [str(n.target) for n in graph.module.graph.nodes if n.op == "call_function"] == ["aten.linear.default"]


def test_conv_and_add_are_one_layer_with_a_bias(tmp_path: Path) -> None:
    model = onnx_model(
        [node("Conv", ["x", "w"], ["m"]), node("Add", ["b", "m"])],
        inputs={"x": ["n", 2, 5, 5]},
        weights={"w": weights(4, 2, 3, 3), "b": weights(4, 1, 1)},
    )
    graph = check(model, tmp_path)
    assert [str(n.target) for n in graph.module.graph.nodes if n.op == "call_function"] == ["aten.conv2d.default"]


def test_a_sum_over_pixels_is_no_bias(tmp_path: Path) -> None:
    model = onnx_model(
        [node("Conv", ["x", "w"], ["m"]), node("Add", ["m", "b"])],
        inputs={"x": ["n", 2, 6, 6]},
        weights={"w": weights(4, 2, 3, 3), "b": weights(4, 4)},
    )
    check(model, tmp_path)


@pytest.mark.parametrize("shape", [("n", 4, 5, 6), ("n", 4)])
@pytest.mark.parametrize("opset", [7, 9, 14, 18])
def test_batch_normalization(shape: tuple[int | str, ...], opset: int, tmp_path: Path) -> None:
    stored = {"s": weights(4), "b": weights(4), "m": weights(4), "v": np.abs(weights(4)) + 0.5}
    model = onnx_model(
        [node("BatchNormalization", ["x", *stored], epsilon=1e-3)], inputs={"x": shape}, weights=stored, opset=opset
    )
    check(model, tmp_path)


def test_instance_normalization(tmp_path: Path) -> None:
    stored = {"s": weights(4), "b": weights(4)}
    check(
        onnx_model([node("InstanceNormalization", ["x", *stored])], inputs={"x": ["n", 4, 5, 6]}, weights=stored),
        tmp_path,
    )


@pytest.mark.parametrize(("opset", "count"), [(18, 2), (21, 4)])
def test_group_normalization(opset: int, count: int, tmp_path: Path) -> None:
    stored = {"s": weights(count), "b": weights(count)}
    model = onnx_model(
        [node("GroupNormalization", ["x", *stored], num_groups=2)],
        inputs={"x": ["n", 4, 5, 6]},
        weights=stored,
        opset=opset,
    )
    check(model, tmp_path)


@pytest.mark.parametrize(("axis", "shape"), [(-1, (6,)), (2, (5, 6))])
def test_layer_normalization(axis: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    stored = {"s": weights(*shape), "b": weights(*shape)}
    model = onnx_model(
        [node("LayerNormalization", ["x", *stored], axis=axis)], inputs={"x": ["n", 4, 5, 6]}, weights=stored
    )
    check(model, tmp_path)


@pytest.mark.parametrize("size", [3, 5])
def test_local_response_normalization(size: int, tmp_path: Path) -> None:
    check(onnx_model([node("LRN", ["x"], size=size, alpha=0.1, bias=2.0)], inputs={"x": ["n", 6, 4, 5]}), tmp_path)


ACTIVATIONS = [
    ("Relu", {}, 18), ("LeakyRelu", {}, 18), ("LeakyRelu", {"alpha": 0.3}, 9), ("Elu", {}, 18), ("Elu", {"alpha": 0.5}, 18),
    ("Selu", {}, 18), ("Selu", {"alpha": 2.0, "gamma": 0.5}, 18), ("Sigmoid", {}, 18), ("HardSigmoid", {}, 18),
    ("HardSigmoid", {"alpha": 1 / 6}, 18), ("HardSwish", {}, 18), ("Tanh", {}, 18), ("Softplus", {}, 18), ("Gelu", {}, 20),
    ("Gelu", {"approximate": "tanh"}, 20), ("Mish", {}, 18), ("Erf", {}, 18), ("Exp", {}, 18), ("Abs", {}, 18), ("Neg", {}, 18),
    ("Reciprocal", {}, 18), ("Floor", {}, 18), ("Ceil", {}, 18), ("Identity", {}, 18), ("Clip", {"min": -0.2, "max": 0.3}, 7),
    ("Clip", {"min": 0.0}, 10), ("Clip", {}, 10), ("Dropout", {"ratio": 0.3}, 7),
]  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "attributes", "opset"), ACTIVATIONS, ids=lambda value: str(value).replace(" ", "")
)
def test_activation(operator: str, attributes: dict[str, Any], opset: int, tmp_path: Path) -> None:
    check(onnx_model([node(operator, ["x"], **attributes)], inputs={"x": ["n", 3, 4, 5]}, opset=opset), tmp_path)


@pytest.mark.parametrize(
    "limits", [("lo", "hi"), ("lo", ""), ("", "hi"), ("zero", "six"), ("zero", ""), ("low", "high")]
)
def test_clip_with_limits_as_inputs(limits: tuple[str, str], tmp_path: Path) -> None:
    values = {
        "lo": -0.3,
        "hi": 0.4,
        "zero": 0.0,
        "six": 6.0,
        "low": np.finfo(np.float32).min,
        "high": np.finfo(np.float32).max,
    }
    stored = {name: np.array(values[name], dtype=np.float32) for name in limits if name}
    names = ["x", *limits] if limits[1] else ["x", limits[0]]
    check(onnx_model([node("Clip", names)], inputs={"x": ["n", 3, 4]}, weights=stored, opset=13), tmp_path)


@pytest.mark.parametrize("shape", [(3, 1, 1), (1,), (1, 1, 1), (1, 3, 1, 1)])
def test_prelu(shape: tuple[int, ...], tmp_path: Path) -> None:
    check(
        onnx_model([node("PRelu", ["x", "s"])], inputs={"x": ["n", 3, 4, 5]}, weights={"s": weights(*shape)}), tmp_path
    )


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 1, 1), (1, 3, 4, 5), (1, 1, 1, 1)])
@pytest.mark.parametrize("constant_first", [False, True])
def test_arithmetic_with_a_constant(
    operator: str, shape: tuple[int, ...], constant_first: bool, tmp_path: Path
) -> None:
    order = ["c", "x"] if constant_first else ["x", "c"]
    model = onnx_model([node(operator, order)], inputs={"x": ["n", 3, 4, 5]}, weights={"c": weights(*shape) + 3})
    check(model, tmp_path)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"])
def test_arithmetic_of_two_results(operator: str, tmp_path: Path) -> None:
    model = onnx_model([node("Exp", ["x"], ["e"]), node(operator, ["x", "e"])], inputs={"x": ["n", 3, 4]})
    check(model, tmp_path)


def test_sum_of_three(tmp_path: Path) -> None:
    nodes = [node("Exp", ["x"], ["e"]), node("Abs", ["x"], ["a"]), node("Sum", ["x", "e", "a"])]
    check(onnx_model(nodes, inputs={"x": ["n", 3, 4]}), tmp_path)


@pytest.mark.parametrize("exponent", [2.0, 0.5, 3.0, -1.0])
def test_pow(exponent: float, tmp_path: Path) -> None:
    nodes = [node("Abs", ["x"], ["a"]), node("Pow", ["a", "p"])]
    check(onnx_model(nodes, inputs={"x": ["n", 3]}, weights={"p": np.array(exponent, dtype=np.float32)}), tmp_path)


def test_sqrt_and_log(tmp_path: Path) -> None:
    nodes = [node("Abs", ["x"], ["a"]), node("Sqrt", ["a"], ["s"]), node("Log", ["s"])]
    check(onnx_model(nodes, inputs={"x": ["n", 3]}), tmp_path)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [None, 1, 2, 3, -1])
@pytest.mark.parametrize("opset", [9, 11, 13])
def test_softmax(operator: str, axis: int | None, opset: int, tmp_path: Path) -> None:
    if axis == -1 and opset < 11:
        axis = 3
    attributes = {} if axis is None else {"axis": axis}
    model = onnx_model([node(operator, ["x"], **attributes)], inputs={"x": ["n", 3, 4, 5]}, opset=opset)
    check(model, tmp_path)


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("axes", [(2, 3), (1,), (-1,)])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [11, 18])
def test_reduction(operator: str, axes: tuple[int, ...], keepdims: int, opset: int, tmp_path: Path) -> None:
    as_input = opset >= 18
    operation = (
        node(operator, ["x", "a"], keepdims=keepdims)
        if as_input
        else node(operator, ["x"], axes=axes, keepdims=keepdims)
    )
    model = onnx_model(
        [operation], inputs={"x": ["n", 3, 4, 5]}, weights={"a": numbers(*axes)} if as_input else None, opset=opset
    )
    check(model, tmp_path)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_arg_max(keepdims: int, tmp_path: Path) -> None:
    model = onnx_model([node("ArgMax", ["x"], axis=1, keepdims=keepdims)], inputs={"x": ["n", 5, 3]})
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    check(model, tmp_path)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(axis: int, tmp_path: Path) -> None:
    check(onnx_model([node("Flatten", ["x"], axis=axis)], inputs={"x": ["n", 3, 4, 5]}), tmp_path)


@pytest.mark.parametrize("shape", [(0, -1), (-1, 60), (0, 3, 20), (0, 0, -1), (0, 2, 2, 15), (-1, 4, 15)])
@pytest.mark.parametrize("batch", ["n", 1])
def test_reshape(shape: tuple[int, ...], batch: int | str, tmp_path: Path) -> None:
    model = onnx_model([node("Reshape", ["x", "s"])], inputs={"x": [batch, 3, 4, 5]}, weights={"s": numbers(*shape)})
    assert check(model, tmp_path).batch_size is None


@pytest.mark.parametrize("shape", [(1, 60), (1, -1), (1, 3, 20), (1, 2, 2, 15)])
def test_reshape_to_one_image_takes_any_batch(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = onnx_model([node("Reshape", ["x", "s"])], inputs={"x": [1, 3, 4, 5]}, weights={"s": numbers(*shape)})
    assert check(model, tmp_path).batch_size is None


def test_reshape_that_drops_the_batch_keeps_it_fixed(tmp_path: Path) -> None:
    nodes = [
        node("Reshape", ["x", "s"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[1, 0]),
        node("Reshape", ["t", "z"]),
    ]
    stored = {"s": numbers(2, 6), "z": numbers(1, 12)}
    assert check(onnx_model(nodes, inputs={"x": [1, 12]}, weights=stored), tmp_path).batch_size == 1


def test_softmax_over_images_keeps_the_batch_fixed(tmp_path: Path) -> None:
    model = onnx_model([node("Softmax", ["x"], axis=0)], inputs={"x": [1, 12]})
    assert check(model, tmp_path).batch_size == 1


@pytest.mark.parametrize("channels_first", [False, True])
def test_shape_arithmetic_of_exporters(channels_first: bool, tmp_path: Path) -> None:
    """Shape, Gather, Unsqueeze, Concat, Reshape: the flattening that PyTorch 1.x wrote."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n"], ["n1"], axes=[0]),
        node("Concat", ["n1", "rest"], ["t"], axis=0),
        node("Reshape", ["x", "t"]),
    ]
    stored = {"zero": np.array(0, dtype=np.int64), "rest": numbers(-1)}
    model = onnx_model(nodes, inputs={"x": ["n" if channels_first else 1, 3, 4, 5]}, weights=stored, opset=11)
    assert check(model, tmp_path).batch_size is None


def test_sizes_are_computed_with(tmp_path: Path) -> None:
    """Two sizes vary, so the new shape is computed while the network runs: (n, 3, h, w) to (n, 3 * h, w)."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "i0"], ["n"]),
        node("Gather", ["s", "i2"], ["h"]),
        node("Gather", ["s", "i3"], ["w"]),
        node("Mul", ["h", "three"], ["h3"]),
        node("Concat", ["n", "h3", "w"], ["t"], axis=0),
        node("Reshape", ["x", "t"]),
    ]
    stored = {"i0": numbers(0), "i2": numbers(2), "i3": numbers(3), "three": numbers(3)}
    model = onnx_model(nodes, inputs={"x": ["n", 3, "h", "w"]}, weights=stored)
    path = save(model, tmp_path / "model.onnx")
    graph = read_onnx(path)
    write_onnx(graph, tmp_path / "again.onnx", pack_zeros=False)
    given = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    for found in (graph(given)[0], run_onnx(tmp_path / "again.onnx", given)[0]):
        torch.testing.assert_close(found, run_onnx(path, given)[0])


@pytest.mark.parametrize("opset", [11, 13])
def test_squeeze_and_unsqueeze(opset: int, tmp_path: Path) -> None:
    as_input = opset >= 13
    nodes = [
        node("Unsqueeze", ["x", "a"], ["u"]) if as_input else node("Unsqueeze", ["x"], ["u"], axes=[1, 3]),
        node("Exp", ["u"], ["e"]),
        node("Squeeze", ["e", "b"]) if as_input else node("Squeeze", ["e"], axes=[3]),
    ]
    stored = {"a": numbers(1, 3), "b": numbers(3)} if as_input else None
    check(onnx_model(nodes, inputs={"x": ["n", 3, 4]}, weights=stored, opset=opset), tmp_path)


def test_squeeze_of_all_single_dimensions(tmp_path: Path) -> None:
    check(onnx_model([node("Squeeze", ["x"])], inputs={"x": ["n", 3, 1, 1]}), tmp_path, batches=(2, 3))


@pytest.mark.parametrize("perm", [(0, 2, 3, 1), (0, 3, 1, 2), (0, 1, 2, 3), (0, 1, 3, 2)])
def test_transpose(perm: tuple[int, ...], tmp_path: Path) -> None:
    check(onnx_model([node("Transpose", ["x"], perm=perm)], inputs={"x": ["n", 3, 4, 5]}), tmp_path)


SLICES = [
    ((1,), (3,), (1,), (1,)), ((0,), (2**63 - 1,), (2,), (2,)), ((-3,), (-1,), (3,), (1,)), ((1, 0), (3, 4), (1, 3), (1, 2)),
    ((0,), (-1,), (2,), (1,)), ((2,), (100,), (1,), (1,)),
]  # fmt: skip


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), SLICES)
@pytest.mark.parametrize("opset", [9, 13])
def test_slice(
    starts: tuple[int, ...],
    ends: tuple[int, ...],
    axes: tuple[int, ...],
    steps: tuple[int, ...],
    opset: int,
    tmp_path: Path,
) -> None:
    if opset < 10:
        operation, stored = node("Slice", ["x"], starts=starts, ends=ends, axes=axes), None
    else:
        stored = {"s": numbers(*starts), "e": numbers(*ends), "a": numbers(*axes), "t": numbers(*steps)}
        operation = node("Slice", ["x", *stored])
    check(onnx_model([operation], inputs={"x": ["n", 4, 5, 6]}, weights=stored, opset=opset), tmp_path)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("parts", [None, (1, 3), (2, 2)])
def test_split(opset: int, parts: tuple[int, ...] | None, tmp_path: Path) -> None:
    attributes: dict[str, Any] = {"axis": 1}
    stored = None
    if parts is not None and opset < 13:
        attributes["split"] = parts
    elif parts is not None:
        stored = {"p": numbers(*parts)}
    elif opset >= 18:
        attributes["num_outputs"] = 2
    operation = node("Split", ["x", *(stored or {})], ["y", "z"], **attributes)
    check(onnx_model([operation], inputs={"x": ["n", 4, 5]}, outputs=["y", "z"], weights=stored, opset=opset), tmp_path)


@pytest.mark.parametrize("index", [np.array(2), np.array(-1), np.array([1, 2]), np.array([3, 0, 0])], ids=str)
@pytest.mark.parametrize("axis", [1, 2])
def test_gather(index: Array, axis: int, tmp_path: Path) -> None:
    model = onnx_model(
        [node("Gather", ["x", "i"], axis=axis)], inputs={"x": ["n", 4, 5]}, weights={"i": index.astype(np.int64)}
    )
    check(model, tmp_path)


@pytest.mark.parametrize("axis", [1, -1])
def test_concat(axis: int, tmp_path: Path) -> None:
    nodes = [node("Exp", ["x"], ["e"]), node("Concat", ["x", "e", "x"], axis=axis)]
    check(onnx_model(nodes, inputs={"x": ["n", 3, 4]}), tmp_path)


PADS = [
    ("constant", (0, 0, 1, 2, 0, 0, 3, 4)),
    ("constant", (0, 1, 0, 0, 0, 2, 0, 0)),
    ("constant", (0, 0, -1, 0, 0, 0, 0, -2)),
    ("reflect", (0, 0, 1, 2, 0, 0, 3, 1)),
    ("reflect", (0, 0, 0, 2, 0, 0, 0, 1)),
    ("edge", (0, 0, 1, 2, 0, 0, 3, 4)),
]


@pytest.mark.parametrize(("mode", "pads"), PADS)
@pytest.mark.parametrize("opset", [9, 13])
def test_pad(mode: str, pads: tuple[int, ...], opset: int, tmp_path: Path) -> None:
    if opset < 11:
        operation, stored = node("Pad", ["x"], mode=mode, pads=pads, value=0.5), None
    else:
        stored = {"p": numbers(*pads), "v": np.array(0.5, dtype=np.float32)}
        operation = node("Pad", ["x", *stored], mode=mode)
    check(onnx_model([operation], inputs={"x": ["n", 3, 5, 6]}, weights=stored, opset=opset), tmp_path)


def test_pad_of_chosen_axes(tmp_path: Path) -> None:
    stored = {"p": numbers(1, 2, 3, 4), "a": numbers(3, 1)}
    model = onnx_model([node("Pad", ["x", "p", "", "a"])], inputs={"x": ["n", 3, 5, 6]}, weights=stored)
    check(model, tmp_path)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str, tmp_path: Path) -> None:
    model = onnx_model([node("DepthToSpace", ["x"], blocksize=2, mode=mode)], inputs={"x": ["n", 12, 3, 4]}, opset=13)
    check(model, tmp_path)


def test_space_to_depth(tmp_path: Path) -> None:
    check(onnx_model([node("SpaceToDepth", ["x"], blocksize=2)], inputs={"x": ["n", 3, 4, 6]}), tmp_path)


def _resize(c: dict[str, Any]) -> onnx.ModelProto:
    sizes = numbers(1, 2, int(4 * c["scale"][0]), int(6 * c["scale"][1]))
    stored = {"z": sizes} if c["by_size"] else {"s": np.array([1, 1, *c["scale"]], dtype=np.float32)}
    names = ["x", "", "", "z"] if c["by_size"] else ["x", "", "s"]
    attributes = {"coordinate_transformation_mode": c["transform"], "nearest_mode": c["rounding"]}
    operation = node("Resize", names, mode=c["mode"], **attributes)
    return onnx_model([operation], inputs={"x": [1, 2, 4, 6]}, weights=stored, opset=13)


DOUBLE, UNEVEN, HALF = (2.0, 2.0), (3.0, 1.0), (0.5, 0.5)
ANY_SCALE = [DOUBLE, UNEVEN, HALF, (1.5, 2.0)]
EITHER = [False, True]
FLOOR, HALF_PIXEL = ["floor"], ["half_pixel"]
SMOOTH = ["half_pixel", "align_corners", "pytorch_half_pixel"]
EXACT = [
    *cases(mode=["nearest"], transform=["asymmetric"], rounding=FLOOR, scale=ANY_SCALE, by_size=EITHER),
    *cases(
        mode=["nearest"],
        transform=HALF_PIXEL,
        rounding=["round_prefer_floor"],
        scale=[DOUBLE, UNEVEN, HALF],
        by_size=EITHER,
    ),
    *cases(mode=["linear"], transform=SMOOTH, rounding=FLOOR, scale=ANY_SCALE, by_size=EITHER),
]
LACKING = [
    *cases(mode=["nearest"], transform=["half_pixel", "asymmetric"], rounding=["ceil"], scale=[DOUBLE], by_size=EITHER),
    *cases(mode=["nearest"], transform=["align_corners"], rounding=FLOOR, scale=[DOUBLE], by_size=EITHER),
    *cases(mode=["linear"], transform=["asymmetric"], rounding=FLOOR, scale=[DOUBLE], by_size=EITHER),
    *cases(mode=["cubic"], transform=HALF_PIXEL, rounding=FLOOR, scale=[DOUBLE], by_size=EITHER),
]


@pytest.mark.parametrize("c", EXACT)
def test_resize(c: dict[str, Any], tmp_path: Path) -> None:
    check(_resize(c), tmp_path)


@pytest.mark.parametrize("c", LACKING)
def test_resize_that_aten_lacks_is_refused(c: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="not supported") as refused:
        read_onnx(save(_resize(c), tmp_path / "model.onnx"))
    assert refused.value.where["operator"] == "Resize"


@pytest.mark.parametrize("opset", [7, 9])
def test_upsample(opset: int, tmp_path: Path) -> None:
    scales = [1.0, 1.0, 2.0, 3.0]
    if opset < 9:
        operation, stored = node("Upsample", ["x"], mode="nearest", scales=scales), None
    else:
        stored = {"s": np.array(scales, dtype=np.float32)}
        operation = node("Upsample", ["x", "s"], mode="nearest")
    check(onnx_model([operation], inputs={"x": ["n", 2, 3, 4]}, weights=stored, opset=opset), tmp_path)


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (4, 5), (2, 1, 3, 4, 5)])
def test_expand(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = onnx_model([node("Expand", ["x", "s"])], inputs={"x": ["n", 3, 1, 5]}, weights={"s": numbers(*shape)})
    check(model, tmp_path)


def test_tile(tmp_path: Path) -> None:
    check(onnx_model([node("Tile", ["x", "r"])], inputs={"x": ["n", 3, 4]}, weights={"r": numbers(1, 2, 3)}), tmp_path)


def test_cast_there_and_back(tmp_path: Path) -> None:
    nodes = [node("Cast", ["x"], ["h"], to=onnx.TensorProto.FLOAT16), node("Cast", ["h"], to=onnx.TensorProto.FLOAT)]
    check(onnx_model(nodes, inputs={"x": ["n", 3]}), tmp_path)


def test_constants_in_nodes(tmp_path: Path) -> None:
    value = onnx.numpy_helper.from_array(weights(3))
    shape = onnx.numpy_helper.from_array(np.array([0.5], dtype=np.float32))
    nodes = [
        node("Constant", [], ["c"], value=value),
        node("Constant", [], ["d"], value_float=2.0),
        node("ConstantOfShape", ["k"], ["e"], value=shape),
        node("Mul", ["x", "c"], ["m"]),
        node("Add", ["m", "d"], ["a"]),
        node("Add", ["a", "e"]),
    ]
    check(onnx_model(nodes, inputs={"x": ["n", 3]}, weights={"k": numbers(3)}), tmp_path)


def test_weights_computed_from_constants(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("Mul", ["t", "two"], ["u"]),
        node("Reshape", ["u", "s"], ["v"]),
        node("MatMul", ["x", "v"]),
    ]
    stored = {"w": weights(5, 6), "two": np.array(2.0, dtype=np.float32), "s": numbers(6, 5)}
    graph = check(onnx_model(nodes, inputs={"x": ["n", 6]}, weights=stored), tmp_path)
    assert list(graph.module.state_dict()) == ["w"]
