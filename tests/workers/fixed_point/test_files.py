"""What integer networks are stored as: Winnow's own file, and simulations whose weights are integers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.workers.fixed_point.qdq_networks import builder
from tests.workers.integer_networks import every_operation, example_images, quantized
from tests.workers.networks import graph_of
from workers.fixed_point.network import IntegerNetwork
from workers.fixed_point.pack_weights import packed_bytes, packed_codes, with_stored_integers
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
    # No weight is left that isn't an integer: only lengths, and what unpacks codes, are stored as powers of two.
    for name, value in packed.module.state_dict().items():
        if value.is_floating_point():
            factors = value[value != 0].abs()
            assert torch.equal(factors, torch.exp2(torch.log2(factors).round())), name
    write_pt2(packed, tmp_path / "packed.pt2", pack_zeros=False)
    write_pt2(result.graph, tmp_path / "plain.pt2", pack_zeros=False)
    weights_of = [sum(v.nbytes for v in graph.module.state_dict().values()) for graph in (packed, result.graph)]
    assert weights_of[0] < (0.35 if bits <= 4 and align != "shift" else 0.6) * weights_of[1]
    loaded = torch.export.load(tmp_path / "packed.pt2").module()
    assert torch.equal(loaded(images), wanted)
    assert torch.equal(read_pt2(tmp_path / "packed.pt2")(images)[0], wanted)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("count", [1, 7, 8, 24, 1001])
def test_packed_codes_take_the_fewest_whole_words(bits: int, count: int) -> None:
    half = 1 << (bits - 1)
    integers = torch.randint(-half, half, (3, count), generator=torch.Generator().manual_seed(count))
    packed = packed_codes(integers, bits)
    assert packed[0].numel() == packed_bytes(count, bits)
    words = (packed.long() << (8 * torch.arange(packed.shape[1]))[:, None]).sum(1)
    codes = torch.cat([(words >> (bits * place)) % (1 << bits) for place in range(8 * packed.shape[1] // bits)], 1)
    assert torch.equal(codes[:, :count] - half, integers)


def test_packed_codes_lie_in_the_documented_order() -> None:
    assert packed_codes(torch.tensor([-2, -1, 0, 1, 1]), 2).tolist() == [
        [0 | 2 << 2 | 3 << 4 | 2 << 6, 1 | 3 << 2 | 2 << 4 | 2 << 6]
    ]
    word = sum(code << (3 * place) for place, code in enumerate(range(8)))
    assert packed_codes(torch.arange(-4, 4), 3).tolist() == [[byte] for byte in word.to_bytes(3, "little")]


CHANNELS = 16


def test_pt2_with_layers_of_all_widths_gives_the_same_numbers(tmp_path: Path) -> None:
    bits = (8, 2, 3, 4)
    graph, network = layers_of(bits)
    packed = with_stored_integers(graph, network)
    images = torch.rand(2, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(1))
    wanted = graph(images)[0]
    assert torch.equal(packed(images)[0], wanted)
    stored = {value.numel(): value.dtype for value in packed.module.state_dict().values()}
    weights = CHANNELS * CHANNELS * 9
    assert stored[weights] == torch.int8
    for narrow in (2, 4):  # weights of 3 bits lie as those of 4 do
        assert stored[packed_bytes(weights, narrow)] == torch.uint8
    write_pt2(packed, tmp_path / "packed.pt2", pack_zeros=True)
    assert torch.equal(torch.export.load(tmp_path / "packed.pt2").module()(images), wanted)
    assert torch.equal(read_pt2(tmp_path / "packed.pt2")(images)[0], wanted)


def test_fewer_bits_make_smaller_pt2_files(tmp_path: Path) -> None:
    sizes, layers = {}, 4
    for bits in (8, 4, 3, 2):
        graph, network = layers_of([bits] * layers)
        write_pt2(with_stored_integers(graph, network), tmp_path / f"{bits}.pt2", pack_zeros=True)
        sizes[bits] = (tmp_path / f"{bits}.pt2").stat().st_size
    weights = layers * CHANNELS * CHANNELS * 9
    # Layers of 8 bits have no nodes that unpack, which take a fifth of what so few weights save; those of others are alike. Of 3
    # bits, Deflate needs a little more than 3 for weights that are all equally frequent, as here.
    for wider, narrower, part in ((8, 4, 0.7), (4, 3, 0.8), (3, 2, 0.8)):
        assert sizes[wider] - sizes[narrower] > part * weights * (wider - narrower) / 8


def layers_of(bits: Sequence[int]) -> tuple[ModelGraph, IntegerNetwork]:
    """Convolutions whose weights are integers of so many bits, each with its layer of an integer network of lengths 0."""
    made = builder()
    source = made.input((CHANNELS, 6, 6))
    for weight_bits in bits:
        source = made.convolution(source, CHANNELS, weight_bits=weight_bits)
    network = made.network(source)
    named = tuple(replace(layer, layer=str(place)) for place, layer in enumerate(network.convolutions[:-1]))
    module = nn.Sequential(*(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in named))
    for layer, integers in zip(module, named, strict=True):
        layer.load_state_dict({"weight": integers.weight.float(), "bias": integers.bias.float()})
    return graph_of(module.eval(), torch.zeros(2, CHANNELS, 6, 6)), replace(network, operations=named)
