"""What stock torch exports is read into the canonical graph, with the same results and the same names."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from jobs.errors import ModelRefused
from tests.workers.models.example_networks import FUNCTIONS, LAYERS, Applied, image
from tests.workers.networks import SmallCnn, graph_of, save_pt2, small_cnn
from workers.models.graph import OPERATORS, ModelGraph, layers, parameter
from workers.models.read_pt2 import read_pt2

pytestmark = [
    # torch's own words about its own code, while it exports.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:No complete tensor found in the group:UserWarning"),
]


def targets(graph: ModelGraph) -> list[object]:
    return [node.target for node in graph.module.graph.nodes if node.op == "call_function"]


def saved_both_ways(network: nn.Module, folder: Path) -> list[Path]:
    """As exported, and decomposed into core operators."""
    program = torch.export.export(network, (image(),), dynamic_shapes=({0: Dim("n")},))
    paths = [folder / "exported.pt2", folder / "decomposed.pt2"]
    torch.export.save(program, paths[0])
    torch.export.save(program.run_decompositions(), paths[1])
    return paths


# Their decompositions need operators that have no place in a CNN; such a file is refused by name, see below.
ONLY_AS_EXPORTED = {"mish", "softplus", "reflection_padding", "replication_padding", "prelu"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_computes_the_same(name: str, tmp_path: Path) -> None:
    network, given = Applied(FUNCTIONS[name]), image(3, 4, 8, 8)
    for path in saved_both_ways(network, tmp_path)[: 1 if name in ONLY_AS_EXPORTED else 2]:
        graph = read_pt2(path)
        torch.testing.assert_close(graph(given)[0], network(given), rtol=1e-5, atol=1e-5)
        assert graph.batch_size is None
        assert set(targets(graph)) <= OPERATORS


@pytest.mark.parametrize("name", LAYERS)
def test_layer_computes_the_same_under_the_same_names(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, given = nn.Sequential(LAYERS[name]()).eval(), image(3, 4, 8, 8)
    for path in saved_both_ways(network, tmp_path)[: 1 if name in ONLY_AS_EXPORTED else 2]:
        graph = read_pt2(path)
        torch.testing.assert_close(graph(given)[0], network(given).detach(), rtol=1e-5, atol=1e-5)
        assert set(dict(network.named_parameters())) <= set(graph.module.state_dict())


def test_layers_keep_their_names_shapes_and_geometry() -> None:
    found = layers(graph_of(small_cnn(), image(2, 1, 8, 8)))
    assert [layer.name for layer in found] == ["conv1", "conv2", "fc"]
    assert (found[1].weight_shape, found[1].stride, found[1].padding, found[1].groups) == (
        (8, 8, 3, 3),
        (1, 1),
        (1, 1),
        1,
    )
    assert (found[2].kind, found[2].bias) == ("linear", "fc.bias")


def test_a_file_that_fixes_the_batch_takes_any_if_images_do_not_mix(tmp_path: Path) -> None:
    network = small_cnn()
    graph = read_pt2(save_pt2(network, image(1, 1, 8, 8), tmp_path / "n.pt2", dynamic_batch=False))
    given = image(5, 1, 8, 8)
    assert graph.batch_size is None
    assert graph.inputs[0].shape == ("batch", 1, 8, 8)
    torch.testing.assert_close(graph(given)[0], network(given).detach())


def test_a_network_that_mixes_images_keeps_its_batch(tmp_path: Path) -> None:
    network = Applied(lambda x: x - x.mean(0, keepdim=True))
    graph = read_pt2(save_pt2(network, image(), tmp_path / "n.pt2", dynamic_batch=False))
    assert graph.batch_size == 2
    assert "exactly 2 images" in graph.warnings[0]
    torch.testing.assert_close(graph(image())[0], network(image()))


def test_open_image_sizes_stay_open(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 1)).eval()
    program = torch.export.export(
        network, (image(2, 3, 8, 12),), dynamic_shapes=({0: Dim("n"), 2: Dim("h"), 3: Dim("w")},)
    )
    torch.export.save(program, tmp_path / "n.pt2")
    graph = read_pt2(tmp_path / "n.pt2")
    given = image(1, 3, 10, 6)
    assert [isinstance(size, str) for size in graph.inputs[0].shape] == [True, False, True, True]
    torch.testing.assert_close(graph(given)[0], network(given).detach())


def test_training_mode_is_read_as_evaluation(tmp_path: Path) -> None:
    network = SmallCnn().train()
    graph = read_pt2(save_pt2(network, image(2, 1, 8, 8), tmp_path / "n.pt2"))
    torch.testing.assert_close(graph(image(2, 1, 8, 8))[0], network.eval()(image(2, 1, 8, 8)).detach())
    assert graph.warnings == (
        "the model was exported in training mode; batch normalisation is used in evaluation mode",
    )
    assert not any("num_batches_tracked" in name for name in graph.module.state_dict())


def test_shared_weights_are_one_layer(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.relu(self.conv(x)))  # type: ignore[no-any-return]

    found = layers(graph_of(Twice(), image()))
    assert [(layer.name, len(layer.used_by)) for layer in found] == [("conv", 2)]


def test_weights_in_channels_last_are_read_in_order(tmp_path: Path) -> None:
    network = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    graph = graph_of(network, image())
    torch.testing.assert_close(parameter(graph, "weight"), network.weight.detach(), rtol=0, atol=0)
    assert parameter(graph, "weight").is_contiguous()


def test_names_that_python_reserves_are_changed_uniquely(tmp_path: Path) -> None:
    network = nn.ModuleDict({"training_": nn.Conv2d(4, 4, 1), "graph": nn.Conv2d(4, 4, 1)})

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = network

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["graph"](self.parts["training_"](x))  # type: ignore[no-any-return]

    graph = graph_of(Wrapped(), image())
    assert [layer.name for layer in layers(graph)] == ["parts.training_", "parts.graph_"]
    torch.testing.assert_close(graph(image())[0], Wrapped()(image()).detach())


def test_a_change_in_place_is_seen_through_every_name_of_the_tensor(tmp_path: Path) -> None:
    def changed(x: Tensor) -> Tensor:
        y = x * 2
        y.add_(1)
        return y * x

    torch.testing.assert_close(graph_of(Applied(changed), image())(image())[0], changed(image()))


def test_a_change_in_place_of_a_view_that_is_used_again_is_refused(tmp_path: Path) -> None:
    def changed(x: Tensor) -> Tensor:
        y = x * 2
        y[:, :1].relu_()
        return y

    with pytest.raises(ModelRefused, match="changed in place"):
        graph_of(Applied(changed), image())


def test_an_unknown_operator_is_refused_with_its_place(tmp_path: Path) -> None:
    class Sorting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(1).values

    with pytest.raises(ModelRefused, match="doesn't know this operator; it comes from the layer 'head'") as refused:
        graph_of(_named("head", Sorting()), image())
    assert refused.value.where["operator"] == "torch.ops.aten.sort.default"
    assert refused.value.hint


def _named(name: str, part: nn.Module) -> nn.Module:
    whole = nn.Sequential()
    whole.add_module(name, part)
    return whole


@pytest.mark.parametrize("name", ["mish", "softplus", "reflection_padding"])
def test_a_decomposition_that_is_not_read_is_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="doesn't know this operator") as refused:
        read_pt2(saved_both_ways(Applied(FUNCTIONS[name]), tmp_path)[1])
    assert "without run_decompositions()" in str(refused.value.hint)


def test_a_one_dimensional_convolution_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="conv1d"):
        graph_of(nn.Conv1d(4, 4, 3), image(2, 4, 8))


def test_nan_weights_are_refused_by_name(tmp_path: Path) -> None:
    network = small_cnn()
    with torch.no_grad():
        network.get_parameter("conv2.weight")[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelRefused, match=r"1 of the 576 values of conv2\.weight are NaN or infinite") as refused:
        graph_of(network, image(2, 1, 8, 8))
    assert refused.value.where == {"parameter": "conv2.weight"}
