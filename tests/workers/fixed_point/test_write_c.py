"""The C source gives the integers of the reference, bit for bit, and its memory plan holds."""

import hashlib
import itertools
import re
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.fixed_point.networks import RandomNetwork
from tests.workers.integer_networks import every_operation, example_images, quantized
from workers.fixed_point.c_memory import ALIGNMENT_BYTES, Buffer, plan_memory
from workers.fixed_point.c_types import INT8, INT16, INT32, INT64, UINT8, CType, packed
from workers.fixed_point.compile_c import FLAGS, CSourceFailed, compile_c, find_compiler, run_c
from workers.fixed_point.network import IntegerNetwork
from workers.fixed_point.run import IntegerRunner
from workers.fixed_point.write_c import lay_out, write_c

STRICT = (*FLAGS, "-Wconversion", "-Wshadow", "-pedantic")
SANITIZED = ("-std=c99", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="session")
def compiler() -> str:
    found = find_compiler()
    if found is None:
        pytest.fail("no C compiler (cc, gcc or clang) is on the PATH; Winnow needs one")
    return found


def logits_in_c(
    network: IntegerNetwork, images: torch.Tensor, compiler: str, flags: tuple[str, ...] = STRICT
) -> torch.Tensor:
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_c(network, folder / "network.zip", name="network", example=None)
        found = run_c(folder / "network.zip", images.numpy(), folder, compiler, flags=flags)
    return torch.from_numpy(found).long()


def assert_same(random: RandomNetwork, compiler: str, output: str | None = None) -> None:
    network, images = random.made(output), random.images(4)
    assert torch.equal(logits_in_c(network, images, compiler), IntegerRunner(network).run(images))


# ---- Convolutions ---------------------------------------------------------------------------------------------------

GEOMETRIES: dict[str, dict[str, Any]] = {
    "3x3": {},
    "one pixel": {"kernel": (7, 6), "padding": (0, 0)},
    "two pixels": {"kernel": (7, 5), "padding": (0, 0)},
    "without padding": {"padding": (0, 0)},
    "padding downwards only": {"padding": (1, 0)},
    "padding sideways only": {"padding": (0, 1)},
    "1x1": {"kernel": (1, 1), "padding": (0, 0)},
    "column": {"kernel": (3, 1), "padding": (1, 0)},
    "row": {"kernel": (1, 3), "padding": (0, 1)},
    "stride": {"stride": (2, 3)},
    "dilation": {"dilation": (2, 1), "padding": (2, 1)},
    "dilation sideways": {"dilation": (1, 2), "padding": (0, 2)},
    "groups": {"filters": 6, "groups": 2},
    "groups with dilation": {"filters": 6, "groups": 2, "dilation": (2, 2), "padding": (2, 2)},
    "depthwise": {"filters": 4, "groups": 4},
    "depthwise, stride and dilation": {
        "filters": 4,
        "groups": 4,
        "stride": (2, 1),
        "dilation": (1, 2),
        "padding": (1, 2),
    },
    "depthwise without padding": {"filters": 4, "groups": 4, "padding": (0, 0)},
    "depthwise, two filters each": {"filters": 8, "groups": 4},
    "one filter": {"filters": 1},
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_convolution_is_the_reference(geometry: dict[str, Any], compiler: str) -> None:
    random = RandomNetwork((4, 7, 6))
    # The first reads the input, which has its channels first; the second a tensor with its channels last.
    random.convolve(random.requantize(bits=6, signed=False), **geometry)
    second = random.convolve(**geometry)
    assert_same(random, compiler, random.add(random.operations[1].output, second))


@pytest.mark.parametrize("bits", [*range(2, 17)])
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
def test_weights_of_all_bits_are_the_reference(bits: int, depthwise: bool, compiler: str) -> None:
    random = RandomNetwork((6, 5, 5), bits=bits, seed=bits)
    filters, groups = (6, 6) if depthwise else (5, 1)
    shifts = (bits, bits + 4)
    first = random.convolve(
        weight_bits=bits, bits=bits, signed=False, groups=groups, filters=filters, out_shifts=shifts
    )
    random.convolve(first, weight_bits=bits, bits=bits, kernel=(1, 1), padding=(0, 0), out_shifts=shifts)
    assert_same(random, compiler)


@pytest.mark.parametrize("first_bits", [2, 3, 4, 8])
def test_layers_of_all_widths_are_the_reference(first_bits: int, compiler: str) -> None:
    random = RandomNetwork((5, 6, 6), seed=first_bits)
    x = random.convolve(filters=6, weight_bits=first_bits)
    for weight_bits in (3, 8, 2, 4):
        x = random.convolve(x, filters=7 if weight_bits > 2 else 9, weight_bits=weight_bits)
    assert_same(random, compiler)


@pytest.mark.parametrize("largest_shift", [1, 6, 14, 20])
@pytest.mark.parametrize("weight_bits", [2, 3, 4, 8, 11])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_aligned_partial_sums_are_the_reference(
    largest_shift: int, weight_bits: int, groups: int, compiler: str
) -> None:
    random = RandomNetwork((6, 5, 5), bits=8, seed=largest_shift)
    random.convolve(
        filters=6,
        groups=groups,
        weight_bits=weight_bits,
        largest_shift=largest_shift,
        out_shifts=(8, 14 + largest_shift),
    )
    assert_same(random, compiler)


def test_linear_layers_are_the_reference(compiler: str) -> None:
    random = RandomNetwork((37, 1, 1), bits=8)
    hidden = random.convolve(filters=19, kernel=(1, 1), padding=(0, 0), weight_bits=4, largest_shift=3)
    random.linear(hidden, 7)
    assert_same(random, compiler)


def test_accumulators_of_64_bits_are_the_reference(compiler: str) -> None:
    random = RandomNetwork((6, 5, 5), bits=16, signed=False)
    first = random.convolve(weight_bits=16, out_shifts=(12, 24), bias_bits=32, bits=16, signed=False)
    random.convolve(
        first, weight_bits=16, largest_shift=20, filters=5, groups=5, out_shifts=(30, 45), bias_bits=40, bits=16
    )
    network = random.made()
    assert network.convolutions[1].accumulator_bound(network.values[first].coding) > 2**40
    assert "int64_t *restrict sums" in source_of(network)
    assert_same(random, compiler)


def test_accumulators_of_64_bits_are_used_only_where_32_might_not_suffice() -> None:
    random = RandomNetwork((6, 5, 5))
    random.convolve()
    assert "int64" not in source_of(random.made())


@pytest.mark.parametrize("out_shifts", [(-3, -3), (-6, 4), (-20, -10), (0, 0), (28, 30)])
def test_shifts_of_all_signs_are_the_reference(out_shifts: tuple[int, int], compiler: str) -> None:
    random = RandomNetwork((3, 4, 5), bits=4)
    random.convolve(weight_bits=3, bias_bits=6, out_shifts=out_shifts, bits=12)
    assert_same(random, compiler)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_convolution_is_the_reference(data: st.DataObject) -> None:
    compiler = find_compiler()
    assert compiler is not None

    def pick(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    groups, per_group = pick(1, 3), pick(1, 9)
    kernel, dilation = (pick(1, 4), pick(1, 4)), (pick(1, 2), pick(1, 2))
    reach = [step * (taps - 1) + 1 for step, taps in zip(dilation, kernel, strict=True)]
    padding = (pick(0, kernel[0] // 2), pick(0, kernel[1] // 2))
    height, width = (max(1, size - 2 * pad) + pick(0, 9) for size, pad in zip(reach, padding, strict=True))
    random = RandomNetwork(
        (groups * per_group, height, width), bits=pick(2, 16), signed=data.draw(st.booleans()), seed=pick(0, 999)
    )
    random.convolve(
        filters=groups * pick(1, 4), kernel=kernel, stride=(pick(1, 3), pick(1, 3)), padding=padding, dilation=dilation,
        groups=groups, weight_bits=pick(2, 16), largest_shift=pick(0, 9), out_shifts=(pick(-2, 3), pick(4, 20)),
        bits=pick(2, 16), signed=data.draw(st.booleans()),
    )  # fmt: skip
    assert_same(random, compiler)


# ---- Everything else ------------------------------------------------------------------------------------------------


def _both(random: RandomNetwork) -> tuple[str, str]:
    """Two tensors of the input's shape, one signed and one not."""
    return random.requantize(bits=8), random.requantize(bits=7, signed=False)


OPERATIONS: dict[str, Callable[[RandomNetwork], object]] = {
    "addition": lambda r: r.add(*_both(r)),
    "addition of itself": lambda r: r.add("image", "image"),
    "addition, shifted far": lambda r: r.add(*_both(r), left=22, shifts=(20, 24)),
    "addition, 64 bits": lambda r: r.add(*_both(r), left=30, shifts=(20, 31)),
    "addition, shifted left": lambda r: r.add(*_both(r), bits=16, shifts=(-4, 2)),
    "multiplication": lambda r: r.multiply(*_both(r)),
    "multiplication by channel": lambda r: r.multiply("image", r.average_pool("image", (6, 8), (6, 8))),
    "multiplication by one plane": lambda r: r.multiply("image", r.slice("image", (1, 0, 0), (2, 6, 8), (1, 1, 1))),
    "multiplication by one number": lambda r: r.multiply("image", r.slice("image", (1, 2, 3), (2, 3, 4), (1, 1, 1))),
    "max pool": lambda r: r.max_pool("image", (2, 2), (2, 2)),
    "max pool, overlapping": lambda r: r.max_pool("image", (3, 3), (2, 2), (1, 1)),
    "max pool, dilated": lambda r: r.max_pool("image", (2, 3), (1, 2), (1, 1), (2, 2)),
    "average pool": lambda r: r.average_pool("image", (2, 2), (2, 2)),
    "average pool by multiplication": lambda r: r.average_pool("image", (3, 3), (2, 1), (1, 1), multiplier=7282, shifts=(15, 18)),
    "average pool, 64 bits": lambda r: r.average_pool("image", (6, 8), (6, 8), multiplier=1 << 22, shifts=(25, 30)),
    "table": lambda r: r.look_up(tables=3, signed=False),
    "one table": lambda r: r.look_up(tables=1),
    "table of unsigned": lambda r: r.look_up(r.requantize(bits=5, signed=False), bits=14),
    "table of 12 bits": lambda r: r.look_up(r.requantize(bits=12, shifts=(-4, 0))),
    "requantization": lambda r: r.requantize(),
    "requantization to the right": lambda r: r.requantize(shifts=(2, 2), bits=4),
    "requantization far to the left": lambda r: r.requantize(shifts=(-40, -20), bits=16, signed=False),
    "requantization to 32 bits": lambda r: r.requantize(shifts=(-24, -10), bits=32),
    "requantization to 32 bits without a sign": lambda r: r.slice(
        r.requantize(r.requantize(shifts=(-24, -20), bits=32, signed=False), shifts=(2, 9), bits=31),
        (0, 0, 0), (4, 6, 8), (1, 1, 1)),
    "concatenation": lambda r: r.concatenate(["image", r.requantize(), "image"]),
    "slice": lambda r: r.slice("image", (1, 1, 0), (4, 6, 7), (2, 1, 3)),
    "padding": lambda r: r.pad("image", (1, 2, 0), (0, 1, 3)),
    "negative padding": lambda r: r.pad("image", (-1, -2, 1), (0, 1, -3)),
    "nearest upsampling": lambda r: r.upsample("image", (2, 3)),
    "bilinear upsampling": lambda r: r.resize("image", (12, 16)),
    "bilinear upsampling to corners": lambda r: r.resize("image", (9, 17), align_corners=True),
    "bilinear downsampling": lambda r: r.resize("image", (3, 5)),
    "bilinear of one pixel": lambda r: r.resize(r.resize("image", (1, 1)), (3, 2)),
    "bilinear, 64 bits": lambda r: r.requantize(
        r.resize(r.requantize(shifts=(-24, -20), bits=32, signed=False), (7, 9)), shifts=(2, 9), bits=31),
    "reshape to a vector": lambda r: r.reshape("image", (4 * 6 * 8, 1, 1)),
    "reshape to other channels": lambda r: r.reshape("image", (12, 4, 4)),
    "reshape of planes": lambda r: r.reshape("image", (4, 8, 6)),
    "reshape to one plane and back": lambda r: r.reshape(r.reshape("image", (1, 24, 8)), (4, 6, 8)),
    "permutation": lambda r: r.permute("image", (2, 0, 1)),
    "permutation of planes": lambda r: r.permute(r.convolve(), (0, 2, 1)),
    "nothing": lambda r: None,
}  # fmt: skip


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("add_operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_operation_is_the_reference(add_operation: Callable[[RandomNetwork], object], bits: int, compiler: str) -> None:
    random = RandomNetwork((4, 6, 8), bits=bits, seed=bits)
    add_operation(random)
    assert_same(random, compiler, None if random.operations else "image")


@pytest.mark.parametrize("bits", [8, 16])
def test_bilinear_resizing_is_done_by_tables_without_division(bits: int) -> None:
    random = RandomNetwork((4, 6, 8), bits=bits, signed=False)
    random.resize("image", (9, 17), align_corners=True)
    source = re.sub(r"/\*.*?\*/", "", source_of(random.made()), flags=re.DOTALL)
    assert not re.search(r"[/%]|int64|float|double", source)
    assert "c01_resized0_rows[27]" in source
    assert "c01_resized0_columns[51]" in source


def test_a_vector_as_input_is_read_where_it_is(compiler: str) -> None:
    random = RandomNetwork((6, 1, 1))
    random.linear(random.reshape(random.requantize(random.reshape("image", (1, 2, 3))), (6, 1, 1)), 3)
    assert not lay_out(random.made()).is_input_copied
    assert_same(random, compiler)


@cache
def quantized_network(weight_bits: int, align: str) -> tuple[IntegerNetwork, torch.Tensor]:
    """A network of every operation as method F makes it, and input integers."""
    images = example_images()
    network = quantized(every_operation(), images, weight_bits=weight_bits, activation_bits=8, align=align).network
    return network, IntegerRunner(network).quantize_input(images)


@pytest.mark.parametrize(("weight_bits", "align"), [(8, "shift"), (4, "retune_opt"), (16, "shift")])
def test_network_of_every_operation_is_the_reference(weight_bits: int, align: str, compiler: str) -> None:
    network, integers = quantized_network(weight_bits, align)
    assert torch.equal(logits_in_c(network, integers, compiler), IntegerRunner(network).run(integers))


def test_network_of_every_operation_does_nothing_undefined(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # the leak checker traces, which containers forbid
    network, integers = quantized_network(4, "retune_opt")
    assert torch.equal(logits_in_c(network, integers, compiler, SANITIZED), IntegerRunner(network).run(integers))


@pytest.mark.parametrize("size", [(1, 1), (3, 20), (12, 16)], ids=str)
def test_bilinear_resizing_reads_nothing_beyond_its_source(
    size: tuple[int, int], compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")
    random = RandomNetwork((4, 6, 8), bits=16, signed=False)
    random.resize(random.resize("image", size), (6, 8), align_corners=True)
    network, images = random.made(), random.images(3)
    assert torch.equal(logits_in_c(network, images, compiler, SANITIZED), IntegerRunner(network).run(images))


@pytest.mark.parametrize("flags", [("-O0",), ("-O3",), ("-O3", "-funroll-loops", "-ftree-vectorize")], ids=" ".join)
def test_every_optimisation_gives_the_same(flags: tuple[str, ...], compiler: str) -> None:
    random = RandomNetwork((4, 9, 9))
    first = random.convolve(filters=9, weight_bits=4, largest_shift=2)
    random.convolve(random.add(first, random.convolve(first, filters=9, groups=9)), filters=3)
    network, images = random.made(), random.images(3)
    strict = tuple(flag for flag in STRICT if flag != "-O2")
    assert torch.equal(logits_in_c(network, images, compiler, (*strict, *flags)), IntegerRunner(network).run(images))


# ---- The archive ----------------------------------------------------------------------------------------------------


def source_of(network: IntegerNetwork, name: str = "network") -> str:
    with TemporaryDirectory() as folder:
        written = write_c(network, Path(folder) / "n.zip", name=name, example=None)
        with zipfile.ZipFile(written.path) as archive:
            return archive.read(f"{written.name}.c").decode()


def _small() -> RandomNetwork:
    random = RandomNetwork((3, 6, 6))
    first = random.convolve(filters=8, weight_bits=4)
    random.linear(random.average_pool(random.add(first, first), (6, 6), (6, 6)), 10)
    return random


def test_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for name in ("one.zip", "two.zip"):
        write_c(_small().made(), tmp_path / name, name="small", example=torch.ones(3, 6, 6, dtype=torch.int64))
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_archive_holds_a_program_that_tests_itself(tmp_path: Path, compiler: str) -> None:
    network, example = _small().made(), _small().images(3)[2:]
    written = write_c(network, tmp_path / "small.zip", name="small", example=example)
    with zipfile.ZipFile(written.path) as archive:
        assert archive.namelist() == ["README.txt", "small.h", "small.c", "main.c", "expected.h"]
    best = int(IntegerRunner(network).run(example).argmax())
    assert compile_c(written.path, tmp_path, compiler).test_example(tmp_path) == f"ok, class {best}\n"


def test_self_test_notices_a_wrong_weight(tmp_path: Path, compiler: str) -> None:
    written = write_c(_small().made(), tmp_path / "small.zip", name="small", example=None)
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(written.path) as archive, zipfile.ZipFile(broken, "w") as other:
        for name in archive.namelist():
            text = archive.read(name).decode()
            other.writestr(
                name, re.sub(r"(bias\[10\] = \{\n    )-?\d+", r"\g<1>9", text) if name == "small.c" else text
            )
    with pytest.raises(CSourceFailed, match="differ"):
        compile_c(broken, tmp_path, compiler).test_example(tmp_path)


def test_example_of_numbers_is_quantized(tmp_path: Path, compiler: str) -> None:
    random = _small()
    example = torch.rand(3, 6, 6)
    written = write_c(random.made(), tmp_path / "small.zip", name="small", example=example)
    integers = IntegerRunner(random.made()).quantize_input(example[None]).flatten().tolist()
    with zipfile.ZipFile(written.path) as archive:
        stored = archive.read("expected.h").decode().partition("{")[2].partition("}")[0]
    assert [int(number) for number in stored.replace("\n", " ").split(",")] == integers


def test_source_needs_nothing_but_stdint() -> None:
    source = source_of(_small().made())
    assert re.findall(r"#include (\S+)", source) == ['"network.h"']
    for word in ("malloc", "float", "double", "long"):
        assert not re.search(rf"\b{word}\b", source.partition("*/")[2]), word


@pytest.mark.parametrize(
    "hostile",
    ["*/ int x; /*", 'a"b\\', "??/\n#error", "", "é中", "int", "a" * 500, "conv.0.weight", "\\\n}", "// %s $NAME"],
)
def test_hostile_names_are_only_words(hostile: str, compiler: str) -> None:
    random = RandomNetwork((3, 5, 5))
    first = random.requantize(random.convolve(layer=hostile), name=f"{hostile}!")
    second = random.requantize(first, name=f"{hostile}?")
    random.look_up(random.add(first, random.convolve(second, layer=hostile)))
    assert_same(random, compiler)


@pytest.mark.parametrize(
    "name", ["*/", "", "main", "9lives", "a b", "../../etc", "Expected", "é", "int", "x" * 99, "_run"]
)
def test_hostile_public_names_become_names(name: str, tmp_path: Path, compiler: str) -> None:
    random = _small()
    written = write_c(random.made(), tmp_path / "n.zip", name=name, example=None)
    assert re.fullmatch(r"[A-Za-z]\w{0,23}", written.name)
    assert compile_c(written.path, tmp_path, compiler, flags=STRICT).test_example(tmp_path).startswith("ok")


def test_layers_alike_share_one_function() -> None:
    random = RandomNetwork((4, 6, 6))
    x = "image"
    for _ in range(4):
        x = random.convolve(x, filters=4, out_shifts=(7, 9), bias_bits=12)
    source = source_of(random.made())
    # The first reads channels first, and the others channels last.
    assert len(re.findall(r"^static void convolution_\w+\($", source, re.MULTILINE)) == 2


@pytest.mark.parametrize("weight_bits", [2, 3, 4, 8])
def test_flash_is_the_constants(tmp_path: Path, weight_bits: int) -> None:
    random = RandomNetwork((8, 4, 4))
    random.convolve(filters=16, kernel=(3, 3), weight_bits=weight_bits, out_shifts=(6, 6), bias_bits=8)
    network = random.made()
    written = write_c(network, tmp_path / "n.zip", name="n", example=None)
    weights, biases, ranges, lengths = 16 * 8 * 9 * weight_bits // 8, 16, 2 * 16, 8
    assert written.flash_bytes == weights + biases + ranges + lengths


def test_short_rows_of_3_bits_do_not_fill_words_of_3_bytes(tmp_path: Path) -> None:
    sizes = []
    for weight_bits in (3, 4):
        random = RandomNetwork((4, 4, 4))
        random.convolve(
            filters=16, kernel=(1, 1), padding=(0, 0), weight_bits=weight_bits, out_shifts=(6, 6), bias_bits=8
        )
        sizes.append(write_c(random.made(), tmp_path / "n.zip", name="n", example=None).flash_bytes)
    assert sizes[0] == sizes[1]


def test_logits_of_several_lengths_are_refused(tmp_path: Path) -> None:
    random = _small()
    network = random.made()
    value = network.values[network.output]
    lengths = (*value.coding.lengths[:-1], 9)
    odd = type(value)(value.name, value.shape, type(value.coding)(32, True, lengths))
    with pytest.raises(ValueError, match="one fractional length"):
        write_c(
            IntegerNetwork(network.input, network.output, network.values | {network.output: odd}, network.operations),
            tmp_path / "n.zip", name="n", example=None,
        )  # fmt: skip


def test_sums_beyond_64_bits_are_refused(tmp_path: Path) -> None:
    random = RandomNetwork((3, 4, 4), bits=16)
    random.convolve(weight_bits=16, largest_shift=40, layer="far")
    random.operations[0].shifts[:] = 40  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"'far' can't be written as C: .* 64 bits"):
        write_c(random.made(), tmp_path / "n.zip", name="n", example=None)


# ---- Compiling ------------------------------------------------------------------------------------------------------


def test_what_does_not_compile_says_why(tmp_path: Path, compiler: str) -> None:
    with zipfile.ZipFile(tmp_path / "n.zip", "w") as archive:
        archive.writestr("n.h", "")
        archive.writestr("n.c", "int f(void) { return undeclared; }")
    with pytest.raises(CSourceFailed, match="undeclared"):
        compile_c(tmp_path / "n.zip", tmp_path, compiler)


def test_inputs_of_another_size_or_range_are_refused(tmp_path: Path, compiler: str) -> None:
    written = write_c(_small().made(), tmp_path / "n.zip", name="n", example=None)
    program = compile_c(written.path, tmp_path, compiler)
    with pytest.raises(ValueError, match="108 integers"):
        program.run(np.zeros((2, 3, 6, 5), np.int64), tmp_path)
    with pytest.raises(ValueError, match="int8"):
        program.run(np.full((2, 3, 6, 6), 200), tmp_path)
    assert program.run(np.zeros((0, 3, 6, 6), np.int64), tmp_path).shape == (0, 10)


def test_an_input_that_ends_early_is_an_error(tmp_path: Path, compiler: str) -> None:
    written = write_c(_small().made(), tmp_path / "n.zip", name="n", example=None)
    program = compile_c(written.path, tmp_path, compiler)
    (tmp_path / "short.bin").write_bytes(bytes(100))
    with pytest.raises(CSourceFailed, match="whole input"):
        program.run_file(tmp_path / "short.bin", tmp_path)


# ---- Memory ---------------------------------------------------------------------------------------------------------


def assert_sound(buffers: list[Buffer]) -> None:
    plan = plan_memory(buffers)
    for a, b in itertools.combinations(buffers, 2):
        begin_a, begin_b = plan.offsets[a.name], plan.offsets[b.name]
        apart = begin_a + a.size_bytes <= begin_b or begin_b + b.size_bytes <= begin_a
        assert apart or a.arena != b.arena or not a.meets(b), (a, b)
    for buffer in buffers:
        assert plan.offsets[buffer.name] % ALIGNMENT_BYTES == 0
        assert plan.offsets[buffer.name] + buffer.size_bytes <= plan.arena_bytes[buffer.arena]
    rounded = sum(-(-buffer.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for buffer in buffers)
    assert plan.ram_bytes <= rounded


TYPES: list[CType] = [INT8, UINT8, INT16, INT32, INT64]


@given(
    st.lists(
        st.tuples(st.sampled_from(TYPES), st.integers(1, 500), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=25,
    )
)
def test_buffers_that_meet_never_overlap(drawn: list[tuple[CType, int, int, int]]) -> None:
    assert_sound(
        [
            Buffer(str(number), kind, count, min(a, b), max(a, b))
            for number, (kind, count, a, b) in enumerate(drawn)
        ]
    )  # fmt: skip


def test_plan_of_a_network_is_sound_and_shares_memory() -> None:
    network, _ = quantized_network(8, "shift")
    buffers = list(lay_out(network).memory.buffers.values())
    assert_sound(buffers)
    assert plan_memory(buffers).ram_bytes < sum(buffer.size_bytes for buffer in buffers) / 3


def test_a_chain_needs_two_tensors_at_a_time() -> None:
    buffers = [Buffer(str(number), INT8, 64, number, number + 1) for number in range(9)]
    assert plan_memory(buffers).ram_bytes == 128


def test_packed_parts_lie_in_the_documented_order() -> None:
    assert packed(np.array([[1, -1, 2]]), 4).tolist() == [[1 | 2 << 4, 15]]
    assert packed(np.array([[1, -1, 0, -2, 1]]), 2).tolist() == [[1 | 0 << 2 | 1 << 4, 3 | 2 << 2]]
