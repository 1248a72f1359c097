"""An integer network as one operator of winograd: the same integers, whatever it is made of, or a sentence that says why not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import winograd
from jobs.errors import RecipeRefused
from tests.workers.fixed_point.networks import RandomNetwork
from tests.workers.fixed_point.winograd_networks import CORNER, ONE, QUARTER, SOME, WITHOUT_CORNERS, WinogradNetwork
from tests.workers.integer_networks import every_operation, example_images, quantized
from tests.workers.networks import graph_of
from workers.fixed_point.coding import Coding
from workers.fixed_point.network import IntegerNetwork
from workers.fixed_point.program_graph import with_program
from workers.fixed_point.run import IntegerRunner
from workers.fixed_point.write_program import integer_program
from workers.models.write_pt2 import write_pt2

SHAPE = (4, 6, 6)
integer_network = torch.ops.winograd.integer_network


def assert_same(network: IntegerNetwork, integers: Tensor) -> None:
    """By the operator as it is here, compiled or not, and by the default in plain torch."""
    program = integer_program(network)
    wanted = IntegerRunner(network).run(integers)
    assert wanted.double().std() > 0
    operands = integers.int(), program.to_tensor(), wanted.shape[1]
    assert torch.equal(integer_network(*operands).long(), wanted)
    assert torch.equal(torch.ops.winograd.reference_integer_network(*operands).long(), wanted)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(
    "add",
    [
        pytest.param(lambda made: made.convolve(), id="convolution"),
        pytest.param(lambda made: made.convolve(weight_bits=5, largest_shift=3), id="aligned weights"),
        pytest.param(lambda made: made.convolve(weight_bits=4, bias_bits=6, out_shifts=(-3, 0)), id="shifts to the left"),
        pytest.param(lambda made: made.convolve(stride=(2, 1), dilation=(1, 2), groups=2, filters=6), id="geometry"),
        pytest.param(lambda made: made.requantize(), id="requantization"),
        pytest.param(lambda made: made.add("image", made.requantize()), id="addition"),
        pytest.param(lambda made: made.add("image", made.requantize(), shifts=(-2, 1)), id="addition to the left"),
        pytest.param(lambda made: made.multiply("image", made.requantize()), id="multiplication"),
        pytest.param(lambda made: made.max_pool("image", (3, 2), (2, 1), (1, 0)), id="maxima"),
        pytest.param(lambda made: made.average_pool("image", (3, 3), (1, 1), (1, 1), multiplier=57, shifts=(8, 10)), id="means"),
        pytest.param(lambda made: made.look_up(), id="table"),
        pytest.param(lambda made: made.concatenate(["image", "image"]), id="concatenation"),
        pytest.param(lambda made: made.slice("image", (1, 0, 1), (4, 6, 5), (2, 1, 2)), id="slice"),
        pytest.param(lambda made: made.pad("image", (1, 0, 2), (0, 1, 1)), id="padding"),
        pytest.param(lambda made: made.upsample("image", (2, 3)), id="upsampling"),
        pytest.param(lambda made: made.reshape("image", (144, 1, 1)), id="reshape"),
        pytest.param(lambda made: made.permute("image", (2, 0, 1)), id="permutation"),
    ],
)  # fmt: skip
def test_operation_is_the_reference(add: Callable[[RandomNetwork], str], signed: bool) -> None:
    made = RandomNetwork(SHAPE, signed=signed)
    add(made)
    assert_same(made.made(), made.images(9))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positions": WITHOUT_CORNERS, "relu": True, "signed": False},
        {"positions": SOME, "filters": 3, "padding": (0, 0)},
        {"positions": ONE, "padding": (2, 1)},
        {"positions": QUARTER, "weight_bits": 4, "largest_shift": 3},
        {"positions": CORNER, "tile_bits": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [SHAPE, (17, 5, 9)], ids=str)
def test_w8_and_f8_winograd_convolutions_are_the_reference(
    shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    made = WinogradNetwork(shape)
    made.winograd(**options)
    assert_same(made.made(), made.images(5))


def test_linear_layer_gives_whole_accumulators() -> None:
    made = RandomNetwork((40, 1, 1), signed=False)
    made.linear("image", 7)
    assert_same(made.made(), made.images(9))


def test_channels_that_always_round_to_zero_may_have_any_shift() -> None:
    made = RandomNetwork(SHAPE)
    made.convolve()
    network = made.made()
    (convolution,) = network.convolutions
    shifted = replace(convolution, out_shift=torch.tensor([6, 31, 40, 22, 8]))
    assert_same(replace(network, operations=(shifted,)), made.images(9))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_bits": 4, "activation_bits": 4},
        {"activation_lengths": "per_layer", "align": "shift"},
        {"activation_bits": 5, "weight_bits": 3},
    ],
    ids=str,
)
def test_network_of_every_operation_gives_what_its_simulation_gives(tmp_path: Path, options: dict[str, Any]) -> None:
    images = example_images()
    result = quantized(every_operation(), images, rounding="nearest", correct_bias=False, **options)
    runner = IntegerRunner(result.network)
    assert_same(result.network, runner.quantize_input(images))
    write_pt2(with_program(result.graph, result.network), tmp_path / "n.pt2", pack_zeros=True)
    loaded = winograd.load(tmp_path / "n.pt2")
    wanted = result.graph(images)[0]
    with torch.inference_mode():
        for size in (1, 3, len(images)):
            assert torch.equal(loaded(images[:size]), wanted[:size])
    assert torch.equal(torch.export.load(tmp_path / "n.pt2").module()(images), wanted)


def test_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.pt2", "two.pt2"):
        result = quantized(every_operation(), example_images(), rounding="nearest", correct_bias=False)
        write_pt2(with_program(result.graph, result.network), tmp_path / name, pack_zeros=True)
    assert (tmp_path / "one.pt2").read_bytes() == (tmp_path / "two.pt2").read_bytes()


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Sequential(nn.Conv2d(2, 5, 4), nn.Flatten(), nn.Softmax(1)), (2, 4, 4)),
        (nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)), (12,)),
    ],
    ids=["logits of four dimensions", "input of two"],
)
def test_shapes_are_those_of_the_network(network: nn.Module, shape: tuple[int, ...]) -> None:
    images = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0))
    result = quantized(graph_of(network.eval(), images[:2]), images, rounding="nearest", correct_bias=False)
    assert torch.equal(with_program(result.graph, result.network)(images)[0], result.graph(images)[0])


# ---- What can't be one operator -------------------------------------------------------------------------------------


def refusal(network: IntegerNetwork) -> RecipeRefused:
    with pytest.raises(RecipeRefused) as caught:
        integer_program(network)
    return caught.value


def test_activations_of_more_than_8_bits_are_refused() -> None:
    made = RandomNetwork(SHAPE, bits=9)
    made.convolve(layer="conv1")
    assert "the layer conv1 reads activations of 9 bits" in str(refusal(made.made()))


def test_weights_that_alignment_makes_wide_are_refused() -> None:
    made = RandomNetwork(SHAPE)
    made.convolve(layer="conv1", largest_shift=3)
    refused = refusal(made.made())
    assert "weights of the layer conv1, shifted to meet partial sums, take 11 bits" in str(refused)
    assert refused.hint is not None
    assert "retune_opt" in refused.hint


def test_bilinear_resizing_is_refused() -> None:
    made = RandomNetwork(SHAPE)
    made.resize("image", (12, 12))
    assert "8-bit integers: resized0 resizes images bilinearly, which that operator doesn't do." in str(
        refusal(made.made())
    )


@pytest.mark.parametrize(
    "add",
    [
        pytest.param(lambda made: made.convolve(out_shifts=(-14, -14)), id="convolution"),
        pytest.param(lambda made: made.add("image", "image", left=20, shifts=(-16, -16)), id="addition"),
        pytest.param(lambda made: made.requantize(shifts=(-25, -25)), id="requantization"),
        pytest.param(lambda made: made.average_pool("image", (3, 3), (1, 1), multiplier=1 << 22), id="means"),
    ],
)
def test_sums_that_may_leave_32_bits_are_refused(add: Callable[[RandomNetwork], str]) -> None:
    made = RandomNetwork(SHAPE)
    add(made)
    assert "may leave 32 bits" in str(refusal(made.made()))


def test_sums_are_refused_by_what_any_image_could_make_of_them() -> None:
    made = RandomNetwork((4, 1, 1))
    made.linear("image", 3)
    network = made.made()
    (layer,) = network.convolutions
    close = 2**31 - 1 - int((layer.weight.abs().sum((1, 2, 3)) * Coding(8, True, (0,)).largest).max())
    layer.bias.fill_(close)
    assert_same(network, made.images(9))
    layer.bias.fill_(close + 1)
    assert "fc" in str(refusal(network))
