"""Winograd convolutions in C give the integers of the reference, bit for bit, in little memory."""

import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.fixed_point.test_write_c import STRICT, assert_same, assert_sound, logits_in_c, source_of
from tests.workers.fixed_point.winograd_networks import ALL, NETWORKS, WITHOUT_CORNERS, WinogradNetwork
from workers.fixed_point.c_types import type_of
from workers.fixed_point.compile_c import find_compiler
from workers.fixed_point.network import Convolution, InputTransform, IntegerNetwork, OutputTransform
from workers.fixed_point.run import IntegerRunner
from workers.fixed_point.write_c import lay_out, write_c


@pytest.fixture(scope="session")
def compiler() -> str:
    found = find_compiler()
    if found is None:
        pytest.fail("no C compiler (cc, gcc or clang) is on the PATH; Winnow needs one")
    return found


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_network_is_the_reference(make: Callable[[], WinogradNetwork], compiler: str) -> None:
    assert_same(make(), compiler)


def test_sums_are_as_wide_as_they_need_to_be() -> None:
    """Products that 32 bits might not hold end at their limits, as in the reference; the others are nowhere clamped."""
    network = NETWORKS["products of more than 32 bits"]()
    made = network.made()
    runner = IntegerRunner(made)
    runner.run(network.images(4))
    assert runner.executed.overflows > 0
    source = source_of(made)
    assert "int64_t *restrict products" in source
    assert "-2147483647, 2147483647)" in source
    assert not re.search("int64|2147483647, ", source_of(NETWORKS["all positions"]().made()))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_winograd_convolution_is_the_reference(data: st.DataObject) -> None:
    compiler = find_compiler()
    assert compiler is not None

    def pick(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    padding = (pick(0, 2), pick(0, 2))
    height, width = (pick(3, 12) - pad for pad in padding)
    random = WinogradNetwork(
        (pick(1, 11), height, width), bits=pick(2, 16), signed=data.draw(st.booleans()), seed=pick(0, 999)
    )
    source = (
        random.requantize(bits=pick(2, 16), signed=data.draw(st.booleans())) if data.draw(st.booleans()) else "image"
    )
    random.winograd(
        source, filters=pick(1, 9), padding=padding,
        positions=tuple(sorted(data.draw(st.sets(st.sampled_from(ALL), min_size=1)))),
        tile_bits=pick(2, 16), tile_shifts=(pick(-2, 0), pick(0, 6)), weight_bits=pick(2, 16), largest_shift=pick(0, 6),
        product_bias_bits=pick(0, 16), left=pick(0, 6), bias_bits=pick(1, 24), out_shifts=(pick(-2, 3), pick(4, 20)),
        bits=pick(2, 16), signed=data.draw(st.booleans()),
    )  # fmt: skip
    assert_same(random, compiler)


@pytest.mark.parametrize(
    "name", ["without padding, odd sizes", "products of more than 32 bits", "residual", "many tiles"]
)
def test_nothing_undefined_is_done(name: str, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # the leak checker traces, which containers forbid
    random = NETWORKS[name]()
    network, images = random.made(), random.images(3)
    flags = ("-std=c99", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    assert torch.equal(logits_in_c(network, images, compiler, flags), IntegerRunner(network).run(images))


@pytest.mark.parametrize("flags", [("-O0",), ("-O3", "-funroll-loops", "-ftree-vectorize")], ids=" ".join)
def test_every_optimisation_gives_the_same(flags: tuple[str, ...], compiler: str) -> None:
    random = NETWORKS["residual"]()
    network, images = random.made(), random.images(3)
    strict = tuple(flag for flag in STRICT if flag != "-O2")
    assert torch.equal(logits_in_c(network, images, compiler, (*strict, *flags)), IntegerRunner(network).run(images))


# ---- Memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [ALL, WITHOUT_CORNERS], ids=["all positions", "without corners"])
def test_only_a_block_of_tiles_is_in_memory(positions: tuple[int, ...], tmp_path: Path) -> None:
    network = _of_16_channels(positions)
    written, memory = write_c(network, tmp_path / "n.zip", name="n", example=None), lay_out(network).memory
    assert_sound(list(memory.buffers.values()))
    in_between = [
        network.values[operation.output] for operation in network.operations if _is_within(operation, network)
    ]
    whole = sum(type_of(value.coding).size_bytes * _count(value.shape) for value in in_between)
    outputs = 2 * 16 * 32 * 32
    assert whole == len(positions) * 16 * 16 * 16 * (1 + 4)
    # The tensors before and after, and less for what is in between than a block of pixels of any convolution gets.
    assert outputs < written.ram_bytes < outputs + 8192 < whole
    assert not any(value.name in name for value in in_between for name in memory.buffers)


def test_weights_are_as_narrow_as_they_are_stored_elsewhere(tmp_path: Path) -> None:
    sizes = []
    for bits in (2, 4, 8):
        random = WinogradNetwork((16, 4, 4))
        random.winograd(filters=8, weight_bits=bits)
        sizes.append(write_c(random.made(), tmp_path / "n.zip", name="n", example=None).flash_bytes)
    assert [sizes[1] - sizes[0], sizes[2] - sizes[1]] == [16 * 8 * 16 * 2 // 8, 16 * 8 * 16 * 4 // 8]


def _of_16_channels(positions: tuple[int, ...]) -> IntegerNetwork:
    random = WinogradNetwork((3, 32, 32))
    x = random.winograd(random.convolve(filters=16), filters=16, positions=positions)
    random.linear(random.average_pool(x, (32, 32), (32, 32)), 10)
    return random.made()


def _is_within(operation: object, network: IntegerNetwork) -> bool:
    is_last = [each.source for each in network.operations if isinstance(each, OutputTransform)]
    return isinstance(operation, InputTransform) or (isinstance(operation, Convolution) and operation.output in is_last)


def _count(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


# ---- What is said, and what is refused ------------------------------------------------------------------------------


def test_title_says_how_much_less_is_multiplied(tmp_path: Path) -> None:
    random = WinogradNetwork((4, 7, 6))
    random.winograd(filters=5, positions=WITHOUT_CORNERS, layer="conv.1")
    written = write_c(random.made(), tmp_path / "n.zip", name="n", example=None)
    text = (
        "Winograd convolution conv.1: 4x7x6 to 5x7x6; F(2x2, 3x3), padding 1x1, 12 of 16 positions, "
        f"{12 * 4 * 3 * 4 * 5} multiplications, where the direct convolution makes {9 * 7 * 6 * 4 * 5}; 8-bit weights"
    )
    with zipfile.ZipFile(written.path) as archive:
        assert f"  1: {text}\n" in archive.read("README.txt").decode()
        assert f"/* 1: {text} */" in archive.read("n.c").decode()


def test_layers_alike_share_one_function() -> None:
    random = WinogradNetwork((6, 7, 7))
    x = "image"
    for _ in range(4):
        x = random.winograd(x, filters=6)
    # The first reads channels first, and the others channels last.
    assert len(re.findall(r"^static void winograd_\w+\($", source_of(random.made()), re.MULTILINE)) == 2


def test_hostile_names_are_only_words(compiler: str) -> None:
    random = WinogradNetwork((3, 5, 5))
    random.winograd(layer="*/ int x; /*")
    assert_same(random, compiler)


def _without_the_end(network: IntegerNetwork) -> IntegerNetwork:
    return replace(network, output=network.operations[1].output, operations=network.operations[:2])


def _only_the_end(network: IntegerNetwork) -> IntegerNetwork:
    first = network.operations[1].output
    return replace(network, input=first, operations=network.operations[2:])


def _read_in_between(network: IntegerNetwork) -> IntegerNetwork:
    return replace(network, output=network.operations[0].output)


def _of_other_positions(network: IntegerNetwork) -> IntegerNetwork:
    last = network.operations[2]
    assert isinstance(last, OutputTransform)
    return replace(network, operations=(*network.operations[:2], replace(last, positions=tuple(range(1, 13)))))


def _shifted(network: IntegerNetwork) -> IntegerNetwork:
    first, products, last = network.operations
    assert isinstance(products, Convolution)
    return replace(network, operations=(first, replace(products, out_shift=products.out_shift + 1), last))


@pytest.mark.parametrize("change", [_without_the_end, _only_the_end, _read_in_between, _of_other_positions, _shifted])
def test_half_a_winograd_convolution_is_refused(change: Callable[[IntegerNetwork], IntegerNetwork]) -> None:
    random = WinogradNetwork((3, 6, 6))
    random.winograd(positions=WITHOUT_CORNERS)
    with pytest.raises(ValueError, match=r"'\w+' can't be written as C: it isn't part of a Winograd convolution"):
        lay_out(change(random.made()))


def test_sums_beyond_64_bits_are_refused() -> None:
    random = WinogradNetwork((3, 6, 6))
    random.winograd(layer="far", left=0)
    last = random.operations[2]
    assert isinstance(last, OutputTransform)
    random.operations[2] = replace(last, left=(60,) * len(last.left))
    with pytest.raises(ValueError, match=r"'far' can't be written as C: .* 64 bits"):
        lay_out(random.made())
