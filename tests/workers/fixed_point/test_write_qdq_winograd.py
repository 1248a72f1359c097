"""Winograd convolutions of an integer network as an ONNX file: ONNX Runtime gives the integers of the reference runner."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from tests.workers.fixed_point.networks import LENGTH
from tests.workers.fixed_point.qdq_networks import assert_same, optimised, run, scores_surface
from tests.workers.fixed_point.winograd_networks import NETWORKS, SOME, WITHOUT_CORNERS, WinogradNetwork
from workers.fixed_point.coding import Coding
from workers.fixed_point.network import InputTransform, Operation, OutputTransform
from workers.fixed_point.run import IntegerRunner
from workers.fixed_point.write_qdq import write_qdq

OVERFLOWS = "products of more than 32 bits"
SHAPE = (4, 7, 6)


@pytest.mark.parametrize("name", NETWORKS)
def test_file_gives_the_integers_of_the_network(tmp_path: Path, name: str) -> None:
    made = NETWORKS[name]()
    report = assert_same(tmp_path, made.made(), images_of(made), overflows=name == OVERFLOWS)
    assert report.is_exact


@pytest.mark.parametrize("tile_bits", [8, 9, 12, 16])
@pytest.mark.parametrize("weight_bits", [3, 4, 8])
@pytest.mark.parametrize("positions", [WITHOUT_CORNERS, SOME], ids=["without corners", "some positions"])
def test_widths(tmp_path: Path, tile_bits: int, weight_bits: int, positions: tuple[int, ...]) -> None:
    made = network(
        positions=positions, tile_bits=tile_bits, tile_shifts=(8 - tile_bits, 2), weight_bits=weight_bits,
        out_shifts=(weight_bits + tile_bits - 8, weight_bits + tile_bits - 4), bias_bits=weight_bits + tile_bits,
    )  # fmt: skip
    report = assert_same(tmp_path, made.made(), images_of(made))
    assert report.is_exact
    assert report.is_integer == (tile_bits == 8)


@pytest.mark.parametrize("bits", [3, 8, 16])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_outputs_of_any_width(tmp_path: Path, bits: int, signed: bool) -> None:
    made = network(bits=bits, signed=signed, out_shifts=(14 - bits, 17 - bits))
    assert assert_same(tmp_path, made.made(), images_of(made)).is_integer


@pytest.mark.parametrize(
    ("channels", "left", "bias", "rounds"),
    [(4, 0, 1 << 19, "moved"), (4, 3, 1 << 22, "floored"), (40, 9, 1 << 22, "doubles"), (4, 0, 1 << 29, "doubles")],
    ids=str,
)
@pytest.mark.parametrize("out_shifts", [(-1, 0, 1, 2, 3), (8, 9, 10, 11, 12), (12, 20, 5, 40, 15)], ids=str)
def test_sums_of_any_size_round_half_up(
    tmp_path: Path, channels: int, left: int, bias: int, rounds: str, out_shifts: tuple[int, ...]
) -> None:
    """Sums below 2**22 are moved off ties, those below 2**24 are rounded down, and larger ones made in float64."""
    if rounds == "floored" and max(out_shifts) > 24:
        rounds = "doubles"  # half of such a step has no room
    made = network((channels, 6, 6), weight_bits=6, left=left, bits=16)
    change(made, OutputTransform, bias=(bias, -bias, 1, 0, 77), out_shift=out_shifts)
    assert_same(tmp_path, made.made(), images_of(made))
    found = optimised(tmp_path / "n.onnx")
    assert (found["Floor"], found["Round"]) == {"moved": (1, 1), "floored": (2, 1), "doubles": (1, 1)}[rounds]
    signs = [tensor for tensor in onnx.load(tmp_path / "n.onnx").graph.initializer if list(tensor.dims) == [4, 16]]
    wanted = onnx.TensorProto.DOUBLE if rounds == "doubles" else onnx.TensorProto.FLOAT
    assert [tensor.data_type for tensor in signs] == [wanted]


def test_sums_of_25_bits_keep_their_last_bit(tmp_path: Path) -> None:
    made = network(bits=24, out_shifts=(2, 2))
    change(made, OutputTransform, bias=tuple(sign * ((3 << 23) + 1) for sign in (1, -1, 1, -1, 1)))
    assert_same(tmp_path, made.made(), images_of(made))


def test_ties_go_up(tmp_path: Path) -> None:
    made = network((1, 8, 8), tile_shifts=(1, 1), weight_bits=2, left=0, out_shifts=(2, 2), bits=8)
    assert_same(tmp_path, made.made(), images_of(made, 200))


def test_lengths_of_products_are_no_matter(tmp_path: Path) -> None:
    made = network(left=5)
    products = made.operations[-1].sources[0]
    value = made.values[products]
    lengths = tuple(range(value.shape[0]))
    made.values[products] = replace(value, coding=Coding(32, signed=True, lengths=lengths))
    assert assert_same(tmp_path, made.made(), images_of(made)).is_exact


def test_channels_that_always_round_to_zero(tmp_path: Path) -> None:
    made = network()
    change(made, InputTransform, out_shift=tuple(30 if n % 3 else 1 for n in range(64)))
    assert assert_same(tmp_path, made.made(), images_of(made)).is_integer


def test_last_layer(tmp_path: Path) -> None:
    """Logits of 32 bits."""
    made = network((4, 3, 4), padding=(0, 0), positions=SOME)
    limit = (2**31 - 1,) * 5
    output = change(made, OutputTransform, out_shift=(0,) * 5, low=tuple(-n for n in limit), high=limit)
    made.values[output] = replace(made.values[output], coding=Coding(32, signed=True, lengths=(LENGTH,) * 5))
    assert assert_same(tmp_path, made.made(), images_of(made)).is_exact


@pytest.mark.parametrize("weight_bits", [2, 3, 4])
@pytest.mark.parametrize("tile_bits", [8, 16])
def test_packed_weights(tmp_path: Path, weight_bits: int, tile_bits: int) -> None:
    made = network((32, 6, 6), filters=32, weight_bits=weight_bits, tile_bits=tile_bits, tile_shifts=(8 - tile_bits, 2))
    packed = assert_same(tmp_path, made.made(), images_of(made), pack_int4=True)
    found = optimised(tmp_path / "n.onnx")
    plain = assert_same(tmp_path, made.made(), images_of(made))
    assert found == optimised(tmp_path / "n.onnx")
    assert plain.size_bytes - packed.size_bytes > 16 * 32 * 32 * (8 - weight_bits) // 8 - 500


def test_bytes_take_the_kernels_of_bytes(tmp_path: Path) -> None:
    """Nothing is turned around between convolutions of bytes, whose channels ONNX Runtime has last."""
    made = NETWORKS["between convolutions"]()
    report = assert_same(tmp_path, made.made(), images_of(made))
    assert report.is_integer
    found = optimised(tmp_path / "n.onnx")
    assert (found["QLinearConv"], found["MatMulInteger"], found["Conv"], found["MatMul"]) == (3, 2, 0, 1)
    before_and_after_rows, of_the_image, before_the_pool = 2, 1, 1
    assert found["Transpose"] <= before_and_after_rows + of_the_image + before_the_pool


def test_any_number_of_images(tmp_path: Path) -> None:
    made = NETWORKS["residual"]()
    integers, whole = made.images(5), made.made()
    value = whole.values[whole.output]
    surface = scores_surface(whole.values["image"].shape, torch.Size(value.shape).numel())
    write_qdq(whole, surface, tmp_path / "n.onnx")
    for count in (1, 5):
        wanted = value.coding.values_of(IntegerRunner(whole).run_all(integers[:count])[whole.output])
        assert torch.equal(run(tmp_path / "n.onnx", floats_of(integers[:count])), wanted.flatten(1).float())


@pytest.mark.parametrize(("weight_bits", "needs_vnni"), [(8, True), (7, False)])
def test_products_that_16_bits_cannot_add_are_reported(tmp_path: Path, weight_bits: int, needs_vnni: bool) -> None:
    made = network((8, 6, 6), weight_bits=weight_bits)
    report = assert_same(tmp_path, made.made(), images_of(made))
    assert report.convolutions[0].needs_vnni == needs_vnni


def test_weights_that_alignment_makes_wide_are_multiplied_in_floats(tmp_path: Path) -> None:
    made = network(largest_shift=4, out_shifts=(12, 15), layer="named")
    report = assert_same(tmp_path, made.made(), images_of(made))
    assert [(each.layer, each.integer, each.needs_vnni) for each in report.convolutions] == [("named", False, False)]
    assert optimised(tmp_path / "n.onnx")["MatMulInteger"] == 0


def test_same_network_same_bytes(tmp_path: Path) -> None:
    whole = network().made()
    surface = scores_surface(SHAPE, torch.Size(whole.values[whole.output].shape).numel())
    for name in ("one", "two"):
        write_qdq(whole, surface, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def network(shape: tuple[int, int, int] = SHAPE, **options: Any) -> WinogradNetwork:
    made = WinogradNetwork(shape)
    made.winograd(**options)
    return made


def change(made: WinogradNetwork, kind: type[Operation], **fields: object) -> str:
    """Give the last operation of a kind other numbers; returns what it makes."""
    place = max(number for number, operation in enumerate(made.operations) if isinstance(operation, kind))
    made.operations[place] = replace(made.operations[place], **fields)  # type: ignore[arg-type]
    return made.operations[place].output


def images_of(made: WinogradNetwork, count: int = 16) -> Tensor:
    return floats_of(made.images(count))


def floats_of(integers: Tensor) -> Tensor:
    return (integers.double() * 2.0**-LENGTH).float()
