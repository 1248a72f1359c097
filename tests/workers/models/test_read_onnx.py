"""ONNX files become the canonical graph under the uploader's names, or are refused with operator and node."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from jobs.errors import ModelRefused
from tests.workers.models.onnx_files import node, onnx_model, random_inputs, run_onnx, save
from workers.models.graph import layers
from workers.models.read_onnx import read_onnx


def weights(*shape: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def classifier(
    *, batch: int | str = "n", weight: str = "conv1.weight", conv: str = "", opset: int = 18
) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", weight], ["c"], name=conv),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "fc.weight", "fc.bias"], transB=1),
    ]
    stored = {weight: weights(4, 3, 3, 3), "fc.weight": weights(5, 4), "fc.bias": weights(5)}
    return onnx_model(nodes, inputs={"x": [batch, 3, 8, 8]}, weights=stored, opset=opset)


def refused(model: onnx.ModelProto, folder: Path) -> ModelRefused:
    with pytest.raises(ModelRefused) as caught:
        read_onnx(save(model, folder / "model.onnx"))
    return caught.value


def test_layers_are_called_as_their_weights_are(tmp_path: Path) -> None:
    graph = read_onnx(save(classifier(), tmp_path / "m.onnx"))
    assert [layer.name for layer in layers(graph)] == ["conv1", "fc"]
    assert set(graph.module.state_dict()) == {"conv1.weight", "fc.weight", "fc.bias"}
    assert (graph.inputs[0].name, graph.inputs[0].shape, graph.outputs[0].name) == ("x", ("batch", 3, 8, 8), "y")
    assert graph.outputs[0].shape == ("batch", 5)
    assert graph.opset == 18


@pytest.mark.parametrize(
    ("weight", "conv", "name"),
    [
        ("123", "Conv_5", "Conv_5"),
        ("onnx::Conv_77", "/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("Parameter193", "Convolution28", "Convolution28"),
        ("451", "", "conv_0"),
        ("block/conv2d/kernel:0", "conv", "block_conv2d_kernel_0"),
        ("W", "conv", "W"),
    ],
)
def test_a_layer_is_called_as_its_node_where_the_weight_says_nothing(
    weight: str, conv: str, name: str, tmp_path: Path
) -> None:
    graph = read_onnx(save(classifier(weight=weight, conv=conv), tmp_path / "m.onnx"))
    assert layers(graph)[0].name == name


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 20, 22, 24])
def test_every_opset_is_read(opset: int, tmp_path: Path) -> None:
    path = save(classifier(opset=opset), tmp_path / "m.onnx")
    graph = read_onnx(path)
    given = random_inputs(graph, 2)
    torch.testing.assert_close(graph(*given)[0].detach(), run_onnx(path, *given)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [6, 25, 10**6])
def test_other_opsets_are_refused(opset: int, tmp_path: Path) -> None:
    assert "Winnow reads 7 to 24" in str(refused(classifier(opset=opset), tmp_path))


def test_initializers_may_be_inputs_too(tmp_path: Path) -> None:
    model = classifier()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    assert [spec.name for spec in read_onnx(save(model, tmp_path / "m.onnx")).inputs] == ["x"]


def test_an_image_size_that_the_file_leaves_open_is_found(tmp_path: Path) -> None:
    """Height and width are free in the file, but the linear layer fits 32x32 only."""
    nodes = [node("Flatten", ["x"], ["f"]), node("MatMul", ["f", "w"])]
    model = onnx_model(nodes, inputs={"x": ["n", 1, "h", "w"]}, weights={"w": weights(1024, 3)})
    graph = read_onnx(save(model, tmp_path / "m.onnx"))
    assert graph.inputs[0].shape == ("batch", 1, 32, 32)
    assert "found to run with 32" in graph.warnings[0]


def test_a_batch_of_one_in_the_file_becomes_any_batch(tmp_path: Path) -> None:
    graph = read_onnx(save(classifier(batch=1), tmp_path / "m.onnx"))
    assert (graph.batch_size, graph.inputs[0].shape[0]) == (None, "batch")


def test_float16_stays_float16(tmp_path: Path) -> None:
    model = onnx_model(
        [node("Conv", ["x", "w"])],
        inputs={"x": ["n", 2, 5, 5]},
        weights={"w": weights(3, 2, 3, 3).astype(np.float16)},
        element_type=onnx.TensorProto.FLOAT16,
    )
    graph = read_onnx(save(model, tmp_path / "m.onnx"))
    assert graph(torch.rand(1, 2, 5, 5).half())[0].dtype == torch.float16


def test_an_unknown_operator_is_refused_by_name(tmp_path: Path) -> None:
    model = onnx_model([helper.make_node("TopK", ["x", "k"], ["y", "i"], name="best")], inputs={"x": [1, 4]})
    found = refused(model, tmp_path)
    assert found.where == {"operator": "TopK", "node": "best"}
    assert str(found) == "TopK at node 'best': Winnow doesn't know this operator"


def test_a_foreign_domain_is_refused(tmp_path: Path) -> None:
    model = onnx_model([helper.make_node("Relu", ["x"], ["y"], domain="com.example")], inputs={"x": [1, 4]})
    assert "com.example" in str(refused(model, tmp_path))


def test_functions_are_refused(tmp_path: Path) -> None:
    model = classifier()
    model.functions.append(
        helper.make_function("here", "F", ["a"], ["b"], [node("Relu", ["a"], ["b"])], model.opset_import)
    )
    assert "functions" in str(refused(model, tmp_path))


@pytest.mark.parametrize("operator", ["If", "Loop"])
def test_control_flow_is_refused(operator: str, tmp_path: Path) -> None:
    branch = helper.make_graph([node("Relu", ["x"])], "branch", [], [helper.make_empty_tensor_value_info("y")])
    model = onnx_model([helper.make_node(operator, ["x"], ["y"], body=branch)], inputs={"x": [1, 4]})
    assert "control flow" in str(refused(model, tmp_path))


def test_a_hidden_subgraph_is_refused(tmp_path: Path) -> None:
    branch = helper.make_graph([node("Relu", ["x"])], "branch", [], [helper.make_empty_tensor_value_info("y")])
    model = onnx_model([helper.make_node("Relu", ["x"], ["y"], body=branch)], inputs={"x": [1, 4]})
    assert "graph of its own" in str(refused(model, tmp_path))


@pytest.mark.parametrize("operator", ["QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"])
def test_quantized_models_are_refused_as_such(operator: str, tmp_path: Path) -> None:
    found = refused(onnx_model([node(operator, ["x", "s"])], inputs={"x": [1, 4]}), tmp_path)
    assert "quantized already" in str(found)
    assert "floating-point" in str(found.hint)


def test_a_one_dimensional_convolution_is_refused(tmp_path: Path) -> None:
    model = onnx_model([node("Conv", ["x", "w"])], inputs={"x": ["n", 2, 9]}, weights={"w": weights(3, 2, 3)})
    assert "two dimensions" in str(refused(model, tmp_path))


def test_weights_that_are_inputs_are_refused(tmp_path: Path) -> None:
    model = onnx_model([node("Conv", ["x", "w"])], inputs={"x": ["n", 2, 5, 5], "w": [3, 2, 3, 3]})
    assert "stored in the file" in str(refused(model, tmp_path))


def test_sizes_that_do_not_fit_are_refused_with_the_node(tmp_path: Path) -> None:
    model = onnx_model(
        [node("Conv", ["x", "w"], name="c1")], inputs={"x": ["n", 5, 5, 5]}, weights={"w": weights(3, 2, 3, 3)}
    )
    assert refused(model, tmp_path).where == {"operator": "Conv", "node": "c1"}


def test_a_bool_mask_is_not_confused_with_numbers(tmp_path: Path) -> None:
    model = onnx_model(
        [node("MatMul", ["x", "w"])], inputs={"x": ["n", 4]}, weights={"w": np.ones((4, 2), dtype=np.int64)}
    )
    refused(model, tmp_path)


def test_an_undefined_name_is_refused(tmp_path: Path) -> None:
    assert "nothing is called 'z'" in str(refused(onnx_model([node("Relu", ["z"])], inputs={"x": [1, 4]}), tmp_path))


def test_an_undefined_output_is_refused(tmp_path: Path) -> None:
    model = onnx_model([node("Relu", ["x"])], inputs={"x": [1, 4]}, outputs=["other"])
    assert "'other'" in str(refused(model, tmp_path))
