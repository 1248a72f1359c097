"""An integer network as an ONNX file: ONNX Runtime gives its integers, and computes them in its 8-bit kernels."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from tests.workers.fixed_point.qdq_networks import (
    LOGITS,
    Builder,
    assert_same,
    builder,
    images_of,
    optimised,
    run,
    scores_surface,
    surface,
)
from tests.workers.integer_networks import every_operation, example_images, quantized
from workers.fixed_point.interpolation import Sampling
from workers.fixed_point.network import (
    AveragePool,
    BilinearResize,
    Concatenation,
    IntegerNetwork,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Padding,
    Permutation,
    Requantization,
    Reshape,
    Slice,
    Table,
)
from workers.fixed_point.qdq_tensors import BYTE_BITS
from workers.fixed_point.qdq_weights import CODES_BYTES, NODE_BYTES
from workers.fixed_point.run import IntegerRunner
from workers.fixed_point.write_qdq import write_qdq
from workers.models.graph import ModelGraph
from workers.models.tail import logits_of

SHAPE = (4, 6, 6)
FLOAT_BYTES = 4


@pytest.fixture(scope="module")
def network() -> ModelGraph:
    return every_operation()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_bits": 4, "align": "shift", "activation_bits": 4},
        {"activation_bits": 12},
        {"activation_lengths": "per_layer"},
        {"weight_lengths": "per_plane", "align": "shift"},
    ],
    ids=str,
)
def test_file_gives_what_the_simulation_gives(tmp_path: Path, network: ModelGraph, options: dict[str, Any]) -> None:
    images = example_images()
    result = quantized(network, images, rounding="nearest", correct_bias=False, **options)
    report = write_qdq(result.network, result.graph, tmp_path / "n.onnx", pack_int4=True)
    assert report.is_exact
    assert torch.allclose(run(tmp_path / "n.onnx", images), result.graph(images)[0], rtol=0, atol=1e-5)


def test_convolutions_of_8_bits_become_qlinear(tmp_path: Path, network: ModelGraph) -> None:
    result = quantized(network, example_images(), rounding="nearest", correct_bias=False)
    report = write_qdq(result.network, result.graph, tmp_path / "n.onnx")
    assert report.is_integer
    found = optimised(tmp_path / "n.onnx")
    assert found["QLinearConv"] >= len(result.network.convolutions) - 1  # the last one gives logits
    assert found["MatMulInteger"] == 1
    assert found["Gemm"] == 0


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("out_shift", [(-1, 0), (1, 2), (8, 14)], ids=str)
def test_requantization_rounds_half_up(tmp_path: Path, signed: bool, kernel: int, out_shift: tuple[int, int]) -> None:
    made = builder()
    few = made.convolution(made.input(SHAPE, signed=signed), 6, kernel, signed=signed, weight_bits=3, out_shift=(1, 2))
    many = made.convolution(few, 6, kernel, signed=signed, out_shift=out_shift)
    report = assert_same(tmp_path, made.network(many))
    assert report.is_exact
    assert report.is_integer


def test_input_rounds_half_up(tmp_path: Path) -> None:
    made = builder()
    network = made.network(made.input(SHAPE, signed=True, length=3))
    images = torch.arange(-144, 144).reshape(2, *SHAPE) / 16.0  # every second one lies between two integers
    assert_same(tmp_path, network, images)


@pytest.mark.parametrize("bits", [3, 8, 12, 16])
@pytest.mark.parametrize("weight_bits", [2, 4, 8, 12])
def test_any_bit_width_gives_the_same_integers(tmp_path: Path, bits: int, weight_bits: int) -> None:
    made = builder()
    first = made.convolution(made.input(SHAPE, bits), 6, bits=bits, weight_bits=weight_bits, most_shifted=2)
    second = made.convolution(first, 4, bits=bits, signed=True, weight_bits=weight_bits, out_shift=(4, 9))
    report = assert_same(tmp_path, made.network(second))
    assert all(each.exact for each in report.convolutions[:-1])
    assert report.convolutions[1].integer == (bits <= 8 and weight_bits <= 8)


def test_weights_that_alignment_makes_wide_are_computed_in_floats(tmp_path: Path) -> None:
    made = builder()
    wide = made.convolution(made.input(SHAPE, signed=True), 6, most_shifted=4, out_shift=(9, 12))
    report = assert_same(tmp_path, made.network(wide))
    assert [each.integer for each in report.convolutions] == [False, True]
    assert report.is_exact
    # ONNX Runtime would quantize float weights between DequantizeLinear and QuantizeLinear by itself.
    assert optimised(tmp_path / "n.onnx")["QLinearConv"] == 0


@pytest.mark.parametrize("most_shifted", [6, 9, 12])
def test_sums_beyond_what_float32_holds_are_exact(tmp_path: Path, most_shifted: int) -> None:
    made = builder()
    wide = made.convolution(made.input(SHAPE), 6, most_shifted=most_shifted, out_shift=(12, 18))
    assert assert_same(tmp_path, made.network(wide)).is_exact


def test_channel_that_always_rounds_to_zero_stays_exact(tmp_path: Path) -> None:
    made = builder()
    dead = made.convolution(made.input(SHAPE), 4, signed=True, out_shift=(28, 30))
    report = assert_same(tmp_path, made.network(dead))
    assert report.is_exact
    assert report.is_integer


def test_clamps_within_bytes_are_kept(tmp_path: Path) -> None:
    made = builder()
    clamped = made.convolution(made.input(SHAPE), 6)
    operation = made.network(clamped).convolutions[0]
    operation.low.copy_(torch.tensor([0, 0, 3, 0, 0, 0]))
    operation.high.copy_(torch.tensor([255, 192, 255, 96, 255, 255]))
    assert_same(tmp_path, IntegerNetwork("image", "logits", made.values, tuple(made.operations)))


@pytest.mark.parametrize(
    ("groups", "stride", "dilation"), [(4, (1, 1), (1, 1)), (2, (2, 1), (1, 1)), (1, (1, 1), (1, 1))], ids=str
)
def test_geometry(tmp_path: Path, groups: int, stride: tuple[int, int], dilation: tuple[int, int]) -> None:
    made = builder()
    source = made.input(SHAPE, signed=True)
    output = made.convolution(source, 4, groups=groups, stride=stride, dilation=dilation)
    height = (SHAPE[1] - 1) // stride[0] + 1
    made.values[output] = replace(made.values[output], shape=(4, height, SHAPE[2]))
    assert_same(tmp_path, made.network(output))


def test_three_channels_are_computed_as_four(tmp_path: Path) -> None:
    made = builder()
    output = made.convolution(made.input((3, 6, 6), signed=True), 4, most_shifted=1, weight_bits=4)
    assert_same(tmp_path, made.network(output))


def test_hidden_linear_layer_is_an_integer_convolution_of_the_batch(tmp_path: Path) -> None:
    made = builder()
    flat = made.add(Reshape(made.input(SHAPE), "rows"), (144, 1, 1))
    hidden = made.convolution(flat, 8, 1, is_linear=True, out_shift=(9, 12))
    report = assert_same(tmp_path, made.network(hidden))
    assert report.is_integer
    assert optimised(tmp_path / "n.onnx")["QLinearConv"] == 1


@pytest.mark.parametrize(
    ("left", "out_shift", "becomes"),
    [
        ((0, 0), 0, "QLinearAdd"),
        ((2, 1), 1, "QLinearAdd"),
        ((0, 0), 1, "QLinearConv"),
        ((0, 6), 5, "QLinearConv"),
        (([0, 1, 2, 0], [3, 0, 0, 1]), [2, 0, 3, -1], "QLinearConv"),
        (([9, 0, 11, 0], [0, 0, 0, 9]), [9, 1, 11, 9], "QLinearConv"),  # the other operand never counts
        (([9, 0, 0, 0], [0, 0, 0, 0]), [4, 1, 1, 1], "Add"),
    ],
    ids=str,
)
@pytest.mark.parametrize("signs", [(False, False), (True, True), (False, True)], ids=str)
def test_additions(tmp_path: Path, left: Any, out_shift: Any, becomes: str, signs: tuple[bool, bool]) -> None:
    made = builder()
    first = made.convolution(made.input(SHAPE), 4, 1, signed=signs[0])
    second = made.convolution(first, 4, 1, signed=signs[1])
    output = made.addition(first, second, left, out_shift, signed=signs[0])
    assert_same(tmp_path, made.network(output))
    found = optimised(tmp_path / "n.onnx")
    assert found["QLinearAdd"] == (becomes == "QLinearAdd")
    assert found["QLinearConv"] == 2 + (becomes == "QLinearConv")


def test_sums_beyond_what_float32_holds_are_exact_in_additions_and_averages(tmp_path: Path) -> None:
    made, shape, kind = builder(), (2, 24, 24), (16, True)
    ends = ((-(2**15),) * 2, (2**15 - 1,) * 2)
    image = made.input(shape, *kind[:1], signed=True)
    other = made.add(Slice(image, "other", (0, 23, 0), (2, 24, 24), (1, 1, 1)), (2, 1, 24), *kind)
    other = made.add(NearestUpsample(other, "spread", (24, 1)), shape, *kind)
    total = made.addition(image, other, (0, 12), 12, 16, signed=True)
    mean = made.add(AveragePool(total, "mean", (24, 24), (1, 1), (0, 0), 3641, (21, 20), *ends), (2, 1, 1), *kind)
    network = made.network(mean)
    assert_same(tmp_path, network, images_of(network, count=200))


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_other_operations(tmp_path: Path, bits: int, signed: bool) -> None:
    made = builder()
    image = made.convolution(made.input(SHAPE, bits), 4, bits=bits, signed=signed, weight_bits=7, out_shift=(4, 8))
    assert_same(tmp_path, made.network(_everything(made, image, bits, signed=signed)))


@pytest.mark.parametrize("bits", [2, 8, 12, 16])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("align_corners", [False, True], ids=["half pixels", "corners"])
def test_bilinear_resizing_is_exact_in_standard_operators(
    tmp_path: Path, bits: int, signed: bool, align_corners: bool
) -> None:
    made, kind = builder(), (bits, signed)
    image = made.input(SHAPE, bits, signed=signed)
    for number, size in enumerate([(12, 11), (4, 7), (1, 3), (5, 6)]):
        sizes = zip(made.values[image].shape[1:], size, strict=True)
        rows, columns = (Sampling.of(*each, align_corners=align_corners, scale=None).taps() for each in sizes)
        image = made.add(BilinearResize(image, f"resized{number}", rows, columns), (4, *size), *kind)
    network = made.network(image)
    assert_same(tmp_path, network, images_of(network, count=64))
    assert optimised(tmp_path / "n.onnx")["Resize"] == 0  # it would have weights of its own


def test_fewer_bytes_with_packed_weights_and_the_same_integers(tmp_path: Path) -> None:
    made = builder()
    first = made.convolution(made.input(SHAPE), 32, weight_bits=4, most_shifted=3)
    network = made.network(made.convolution(first, 32, weight_bits=4), weight_bits=4)
    packed = assert_same(tmp_path, network, pack_int4=True)
    assert packed.size_bytes == (tmp_path / "n.onnx").stat().st_size
    assert optimised(tmp_path / "n.onnx")["QLinearConv"] == 2
    plain = assert_same(tmp_path, network)
    assert (packed.opset, plain.opset) == (21, 18)
    weights = sum(operation.weight.numel() for operation in network.convolutions)
    assert plain.size_bytes - packed.size_bytes > 0.45 * weights


@pytest.mark.parametrize("weight_bits", [2, 3])
@pytest.mark.parametrize("filters", [32, 33], ids=["whole words", "a word left over"])
@pytest.mark.parametrize("most_shifted", [0, 3])
def test_weights_of_2_and_3_bits_take_no_more(
    tmp_path: Path, weight_bits: int, filters: int, most_shifted: int
) -> None:
    made = builder()
    first = made.convolution(made.input(SHAPE), 32, weight_bits=weight_bits, most_shifted=most_shifted)
    second = made.convolution(first, filters, weight_bits=weight_bits, most_shifted=most_shifted)
    network = made.network(second, weight_bits=weight_bits)
    packed = assert_same(tmp_path, network, pack_int4=True)
    assert packed.is_integer
    found = optimised(tmp_path / "n.onnx")
    plain = assert_same(tmp_path, network)
    assert found == optimised(tmp_path / "n.onnx")
    assert plain.size_bytes - packed.size_bytes > least_saved_bytes(network)


def test_layers_of_all_widths_share_a_file(tmp_path: Path) -> None:
    made = builder()
    source = made.input(SHAPE)
    for weight_bits in (8, 2, 3, 4):
        source = made.convolution(source, 32, weight_bits=weight_bits)
    network = made.network(source, weight_bits=2)
    packed = assert_same(tmp_path, network, pack_int4=True)
    assert packed.is_integer
    found = optimised(tmp_path / "n.onnx")
    assert (found["QLinearConv"], found["MatMulInteger"]) == (4, 1)
    plain = assert_same(tmp_path, network)
    assert plain.size_bytes - packed.size_bytes > least_saved_bytes(network)


@pytest.mark.parametrize("weight_bits", [2, 3])
def test_float_convolutions_unpack_narrow_weights_too(tmp_path: Path, weight_bits: int) -> None:
    made = builder()
    wide = made.convolution(made.input(SHAPE, 12), 32, bits=12, weight_bits=weight_bits, most_shifted=2)
    wide = made.convolution(wide, 33, bits=12, weight_bits=weight_bits)
    report = assert_same(tmp_path, made.network(wide), pack_int4=True)
    assert not any(each.integer for each in report.convolutions[:-1])
    stored = [tensor.data_type for tensor in onnx.load(tmp_path / "n.onnx").graph.initializer if len(tensor.dims) == 4]
    assert onnx.TensorProto.INT8 not in stored


def test_layers_too_small_for_codes_stay_as_they_are(tmp_path: Path) -> None:
    made = builder()
    network = made.network(made.convolution(made.input(SHAPE), 8, weight_bits=2))
    assert_same(tmp_path, network, pack_int4=True)
    stored = Counter(tensor.data_type for tensor in onnx.load(tmp_path / "n.onnx").graph.initializer)
    assert stored[onnx.TensorProto.INT4] == 1


def test_names_batch_and_tail_are_those_of_the_graph(tmp_path: Path) -> None:
    made = builder()
    network, graph = made.network(made.convolution(made.input(SHAPE), 4)), surface(SHAPE)
    write_qdq(network, graph, tmp_path / "n.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "n.onnx")
    for given, spec in zip(
        (*session.get_inputs(), *session.get_outputs()), (*graph.inputs, *graph.outputs), strict=True
    ):
        assert (given.name, given.shape, given.type) == (spec.name, list(spec.shape), "tensor(float)")
    for count in (1, 5):
        probabilities = run(tmp_path / "n.onnx", images_of(network, count))
        runner = IntegerRunner(network)
        scores = runner.scores(runner.run(runner.quantize_input(images_of(network, count))))
        assert torch.allclose(probabilities.double(), scores.softmax(1), atol=1e-6)


def test_logits_are_found_before_the_tail() -> None:
    assert logits_of(surface(SHAPE)).name == LOGITS
    assert logits_of(scores_surface(SHAPE)).name == LOGITS


def test_same_network_same_bytes(tmp_path: Path) -> None:
    made = builder()
    network, graph = made.network(made.convolution(made.input(SHAPE), 4)), surface(SHAPE)
    for name in ("one", "two"):
        write_qdq(network, graph, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(("weight_bits", "needs_vnni"), [(8, True), (7, False)])
def test_products_that_16_bits_cannot_add_are_reported(tmp_path: Path, weight_bits: int, needs_vnni: bool) -> None:
    made = builder()
    network = made.network(made.convolution(made.input(SHAPE), 32, weight_bits=weight_bits))
    report = write_qdq(network, surface(SHAPE), tmp_path / "n.onnx")
    assert report.convolutions[0].needs_vnni == needs_vnni


def least_saved_bytes(network: IntegerNetwork) -> int:
    """What weights of so many bits save of a byte each, without what unpacks and aligns them."""
    saved = -CODES_BYTES  # what layers share
    for layer in network.convolutions:
        saved += layer.weight.numel() * (BYTE_BITS - layer.weight_bits) // BYTE_BITS - CODES_BYTES - NODE_BYTES
        if layer.shifts.any():
            saved -= layer.shifts.numel() * FLOAT_BYTES + 2 * NODE_BYTES
    return saved


def _everything(made: Builder, image: str, bits: int, *, signed: bool) -> str:
    """One operation of each kind, behind each other; `image` is 4x6x6."""
    low = (made.values[image].coding.lowest,) * 4
    high = (made.values[image].coding.highest,) * 4
    size, kind = 1 << bits, (bits, signed)
    tables = made.random(low[0], high[0], (2, size))
    x = made.add(Table(image, "table", "any", tables, (0, 1, 1, 0)), SHAPE, *kind)
    x = made.add(Requantization(x, "finer", (1, 2, 0, -1), low, high), SHAPE, *kind)
    mean = made.add(AveragePool(x, "mean", (6, 6), (1, 1), (0, 0), 455, (14, 13, 14, 14), low, high), (4, 1, 1), *kind)
    scaled = made.add(Multiplication((x, mean), "scaled", (5, 4, 6, 5), low, high), SHAPE, *kind)
    thirds = made.add(AveragePool(scaled, "ninths", (3, 3), (1, 1), (1, 1), 7282, (16,) * 4, low, high), SHAPE, *kind)
    halves = made.add(AveragePool(thirds, "halves", (2, 2), (2, 2), (0, 0), 1, (2,) * 4, low, high), (4, 3, 3), *kind)
    large = made.add(NearestUpsample(halves, "large", (2, 2)), SHAPE, *kind)
    both = made.add(Concatenation((large, x), "both"), (8, 6, 6), *kind)
    part = made.add(Slice(both, "part", (1, 0, 1), (8, 6, 6), (2, 1, 1)), (4, 6, 5), *kind)
    padded = made.add(Padding(part, "padded", (0, 1, 0), (1, 0, 2)), (5, 7, 7), *kind)
    pooled = made.add(MaxPool(padded, "pooled", (3, 3), (2, 2), (1, 1)), (5, 4, 4), *kind)
    return made.add(Permutation(pooled, "turned", (1, 2, 0)), (4, 4, 5), *kind)
