"""What integer networks are stored as: Winnow's own file, and simulations whose weights are integers."""

from pathlib import Path

import pytest
import torch

from tests.workers.integer_networks import every_operation, example_images, quantized
from workers.fixed_point.pack_weights import with_stored_integers
from workers.fixed_point.run import IntegerRunner
from workers.fixed_point.storage import load_network, save_network
from workers.models.graph import ModelGraph
from workers.models.read_pt2 import read_pt2
from workers.models.write_pt2 import write_pt2


@pytest.fixture(scope="module")
def network() -> ModelGraph:
    return every_operation()


@pytest.mark.parametrize(("bits", "align"), [(8, "shift"), (4, "retune_opt"), (16, "shift"), (3, "retune")])
def test_stored_network_is_the_same_network(tmp_path: Path, network: ModelGraph, bits: int, align: str) -> None:
    images = example_images()
    result = quantized(network, images, weight_bits=bits, activation_bits=min(bits, 8), align=align)
    save_network(result.network, tmp_path / "one.npz")
    save_network(result.network, tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    again = load_network(tmp_path / "one.npz")
    assert again.values == result.network.values
    assert [type(each) for each in again.operations] == [type(each) for each in result.network.operations]
    before, after = IntegerRunner(result.network), IntegerRunner(again)
    integers = before.quantize_input(images)
    assert torch.equal(before.run(integers), after.run(after.quantize_input(images)))


@pytest.mark.parametrize(("bits", "align"), [(8, "retune_opt"), (8, "shift"), (4, "retune_opt"), (3, "shift")])
@pytest.mark.parametrize("weights", ["per_output_channel", "per_layer"])
def test_pt2_of_stored_integers_gives_the_same_numbers_and_is_smaller(
    tmp_path: Path, network: ModelGraph, bits: int, align: str, weights: str
) -> None:
    images = example_images()
    result = quantized(network, images, weight_bits=bits, align=align, weight_lengths=weights)
    packed = with_stored_integers(result.graph, result.network)
    wanted = result.graph(images)[0]
    assert torch.equal(packed(images)[0], wanted)
    types = {value.dtype for value in packed.module.state_dict().values()}
    assert torch.int32 in types  # biases
    assert (torch.uint8 if bits <= 4 and align != "shift" else torch.int8) in types
    # No weight is left that isn't an integer: only lengths are stored as powers of two.
    for name, value in packed.module.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, torch.exp2(torch.log2(value).round())), name
    write_pt2(packed, tmp_path / "packed.pt2", pack_zeros=False)
    write_pt2(result.graph, tmp_path / "plain.pt2", pack_zeros=False)
    weights_of = [sum(v.nbytes for v in graph.module.state_dict().values()) for graph in (packed, result.graph)]
    assert weights_of[0] < (0.35 if bits <= 4 and align != "shift" else 0.6) * weights_of[1]
    loaded = torch.export.load(tmp_path / "packed.pt2").module()
    assert torch.equal(loaded(images), wanted)
    assert torch.equal(read_pt2(tmp_path / "packed.pt2")(images)[0], wanted)
