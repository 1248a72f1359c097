"""Networks of integers in one call: the program's bytes, plain torch, every implementation, and what is refused."""

import functools
import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from winograd.integer_program import (
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    InputTransform,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Operation,
    OutputTransform,
    Padding,
    Permutation,
    Requantization,
    Reshape,
    Slice,
    Table,
    Value,
)
from winograd.prepared_integer_network import PreparedIntegerNetwork

import winograd
from tests.winograd.integer_networks import INT32, NetworkBuilder, images_for, integers_of, random_network
from winograd import IntegerProgram, PreparedNetwork, integer_bytes, integer_operators, integer_reference, library

OPERATORS = torch.ops.winograd
BYTE, SIGNED = (0, 255), (-128, 127)
SEEDS = 120
REFUSALS = (ValueError, RuntimeError)  # of Python and of C++
every_implementation = pytest.mark.usefixtures("implementation")


def outputs_of(program: IntegerProgram) -> int:
    return program.values[program.output].size


def run(program: IntegerProgram, x: Tensor) -> Tensor:
    """Run it as it is and prepared; both give the same."""
    packed = program.to_tensor()
    output: Tensor = OPERATORS.integer_network(x, packed, outputs_of(program))
    prepared = OPERATORS.prepare_integer_network(packed)
    again = OPERATORS.integer_network_prepared(x, prepared, outputs_of(program))
    assert output.dtype == torch.int32
    assert torch.equal(output, again)
    return output


def assert_as_reference(program: IntegerProgram, x: Tensor, expected: Tensor | None = None) -> None:
    output, expected = run(program, x), integer_reference.run(program, x) if expected is None else expected
    wrong = (output != expected).nonzero().tolist()
    assert not wrong, f"{len(wrong)} of {expected.numel()} differ, such as {wrong[:3]}, in {_told(program)}"


def _told(program: IntegerProgram) -> str:
    lines = [
        f"{type(one).__name__} {one.sources} {[program.values[s].shape for s in one.sources]} -> {one.output} "
        f"{program.values[one.output]}"
        for one in program.operations
    ]
    return "\n".join(lines)


# ---- One operation at a time ----------------------------------------------------------------------------------------------

Build = Callable[[NetworkBuilder, int], int]


def tap(net: NetworkBuilder, x: int) -> int:
    """A copy of x that more than one operation reads."""
    return net.requantization(x, (-128, 127))


ONE_OPERATION: dict[str, Build] = {
    "convolution 1x1": lambda net, x: net.convolution(x, 5, (1, 1)),
    "convolution 3x3": lambda net, x: net.convolution(x, 5),
    "convolution 5x5": lambda net, x: net.convolution(x, 2, (5, 5)),
    "convolution 2x3, unpadded": lambda net, x: net.convolution(x, 17, (2, 3), padding=(0, 0)),
    "convolution 3x3, padded more": lambda net, x: net.convolution(x, 3, (3, 3), padding=(2, 3)),
    "convolution of stride 2": lambda net, x: net.convolution(x, 5, stride=(2, 2)),
    "convolution of strides 3 and 1": lambda net, x: net.convolution(x, 5, stride=(3, 1)),
    "dilated convolution": lambda net, x: net.convolution(x, 3, dilation=(2, 3)),
    "dilated convolution of stride 2": lambda net, x: net.convolution(x, 3, dilation=(2, 2), stride=(2, 2)),
    "convolution of 2 groups": lambda net, x: net.convolution(x, 6, groups=2),
    "depthwise convolution": lambda net, x: net.convolution(x, 6, groups=6),
    "depthwise convolution, 2 filters each": lambda net, x: net.convolution(x, 12, groups=6, stride=(2, 1)),
    "convolution to more than bytes": lambda net, x: net.convolution(x, 5, span=(-3000, 30000)),
    "logits": lambda net, x: net.logits(net.reshape(x, (net.values[x].size, 1, 1)), 7),
    "Winograd convolution": lambda net, x: net.winograd_convolution(x, 5, range(16)),
    "pruned Winograd convolution": lambda net, x: net.winograd_convolution(x, 17, (0, 1, 5, 6, 9, 15), cut=1),
    "Winograd convolution, padded more": lambda net, x: net.winograd_convolution(x, 3, (2, 5, 10), padding=(2, 3)),
    "Winograd convolution, unpadded": lambda net, x: net.winograd_convolution(x, 3, range(16), padding=(0, 0)),
    "Winograd convolution, as written": lambda net, x: net.winograd_convolution(x, 5, range(16), as_written=True),
    "addition": lambda net, x: net.addition(x, tap(net, x)),
    "addition of itself": lambda net, x: net.addition(x, x),
    "addition of more than bytes": lambda net, x: net.addition(net.requantization(x, (-5000, 5000)), tap(net, x)),
    "addition to a convolution": lambda net, x: net.addition(net.convolution(x, 6), x),
    "addition of a convolution": lambda net, x: net.addition(x, net.convolution(x, 6)),
    "addition of two convolutions": lambda net, x: net.addition(net.convolution(x, 3), net.convolution(x, 3, (1, 1))),
    "multiplication": lambda net, x: net.multiplication(x, tap(net, x)),
    "multiplication by channel": lambda net, x: net.multiplication(x, net.average_pool(x, net.values[x].shape[1:])),
    "global average": lambda net, x: net.average_pool(x, net.values[x].shape[1:]),
    "table": lambda net, x: net.table(x),
    "requantization": lambda net, x: net.requantization(x),
    "concatenation": lambda net, x: net.concatenation(x, net.requantization(x, (-8, 7)), x),
    "one value concatenated": lambda net, x: net.concatenation(x),
    "slice": lambda net, x: net.slice(x, (1, 0, 2), (6, 5, 6), (2, 1, 3)),
    "slice of a step of 2": lambda net, x: net.slice(x, (0, 0, 0), net.values[x].shape, (1, 2, 2)),
    "padding of channels": lambda net, x: net.padding(x, (3, 0, 0), (2, 0, 0)),
    "padding everywhere": lambda net, x: net.padding(x, (1, 2, 0), (0, 1, 3)),
    "upsampling": lambda net, x: net.upsample(x, (2, 3)),
    "reshape": lambda net, x: net.reshape(x, (7, 6, 5)),
    "reshape to a vector": lambda net, x: net.reshape(x, (210, 1, 1)),
    "nothing": lambda _net, x: x,
    **{f"permutation {order}": lambda net, x, order=order: net.permutation(x, order)
       for order in ((0, 2, 1), (1, 0, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0), (0, 1, 2))},
    **{f"max pool {number}": NetworkBuilder.max_pool for number in range(6)},
    **{f"average pool {number}": NetworkBuilder.average_pool for number in range(4)},
}  # fmt: skip


@every_implementation
@pytest.mark.parametrize("span", [BYTE, SIGNED, (-8, 7), (0, 1)], ids=str)
@pytest.mark.parametrize("name", ONE_OPERATION)
def test_operation_gives_what_its_definition_says(name: str, span: tuple[int, int]) -> None:
    net = NetworkBuilder(random.Random(name + str(span)))
    x = net.value((6, 5, 7), span)
    program = net.program(ONE_OPERATION[name](net, x))
    images = images_for(program, 2, seed=len(name))

    assert run(program, images).tolist() == [integers_of(program, image) for image in images]


def test_every_operation_is_among_those_of_random_networks() -> None:
    kinds = {type(operation) for seed in range(SEEDS) for operation in random_network(seed).operations}

    assert kinds == set(Operation.__args__)


def test_the_reference_agrees_with_torch_in_floating_point() -> None:
    """A network as such: exact in float64, where rounding is floor(x + 0.5)."""
    net = NetworkBuilder(random.Random(1))
    x = net.value((16, 9, 9), BYTE)
    program = net.program(net.convolution(x, 24, stride=(2, 2), span=SIGNED))
    (layer,) = program.operations
    assert isinstance(layer, Convolution)
    images = images_for(program, 3)

    sums = nn.functional.conv2d(images.double(), layer.weight.double(), torch.tensor(layer.bias).double(), 2, 1)
    left, right, low, high = (
        torch.tensor(numbers).double()[:, None, None] for numbers in (layer.left, layer.right, layer.low, layer.high)
    )
    expected = torch.floor(sums * 2**left / 2**right + 0.5).clamp(low, high)

    assert torch.equal(integer_reference.run(program, images), expected.flatten(1).int())


# ---- Winograd convolutions as they are written ------------------------------------------------------------------------------


@dataclass(frozen=True)
class WinogradCase:
    channels: int = 16
    filters: int = 16
    size: tuple[int, int] = (8, 8)
    span: tuple[int, int] = BYTE
    positions: Sequence[int] = range(16)
    padding: tuple[int, int] = (1, 1)
    cut: int = 0
    output_span: tuple[int, int] | None = None

    def network(self, draw: random.Random, after: Callable[[NetworkBuilder, int, int], int]) -> IntegerProgram:
        net = NetworkBuilder(draw)
        x = net.value((self.channels, *self.size), self.span)
        y = net.winograd_convolution(
            x, self.filters, self.positions,
            padding=self.padding, cut=self.cut, span=self.output_span, as_written=True,
        )  # fmt: skip
        return net.program(after(net, x, y))


WINOGRAD_CASES = {
    "as in ResNet-20": WinogradCase(),
    "many channels and filters": WinogradCase(channels=40, filters=72),
    "an input channel": WinogradCase(channels=1, filters=33),
    "a filter": WinogradCase(channels=17, filters=1),
    "nothing fills registers": WinogradCase(channels=3, filters=5, size=(5, 7), padding=(2, 0), cut=1),
    "one tile": WinogradCase(size=(1, 1), padding=(1, 1), cut=1),
    "rows of more than a strip": WinogradCase(filters=8, size=(6, 71), cut=1),
    "columns of more than a strip": WinogradCase(size=(71, 4), span=SIGNED),
    "one position": WinogradCase(positions=(5,), span=SIGNED),
    "the middle is pruned": WinogradCase(positions=(0, 3, 4, 12, 15), filters=32),
    "few bits": WinogradCase(span=(-8, 7), channels=24),
    "below zero": WinogradCase(span=(-255, 0), filters=20),
    "of 9 bits": WinogradCase(span=(-255, 255)),
    "to more than bytes": WinogradCase(filters=18, output_span=(-3000, 30000)),
}
AFTERWARDS: dict[str, Callable[[NetworkBuilder, int, int], int]] = {
    "": lambda net, x, y: y,
    "then an addition": lambda net, x, y: net.addition(y, net.requantization(y)),
    "that is added to a convolution": lambda net, x, y: net.addition(
        net.convolution(tap(net, y), net.values[y].channels), y
    ),
    "and its input is read later": lambda net, x, y: net.concatenation(
        net.reshape(tap(net, y), (net.values[y].size, 1, 1)), net.reshape(x, (net.values[x].size, 1, 1))
    ),
}  # fmt: skip


@every_implementation
@pytest.mark.parametrize("after", AFTERWARDS)
@pytest.mark.parametrize("name", WINOGRAD_CASES)
def test_winograd_convolutions_run_at_once_as_they_do_in_steps(name: str, after: str) -> None:
    for seed in range(2):
        program = WINOGRAD_CASES[name].network(random.Random(seed), AFTERWARDS[after])
        assert_as_reference(program, images_for(program, 2, seed))


@every_implementation
@pytest.mark.parametrize("span", [BYTE, SIGNED], ids=str)
@pytest.mark.parametrize("shift", [0, 1, 2, 5, 9, 10, 11, 12, 13, 20, 30])
def test_what_winograd_transforms_is_rounded_half_up_at_every_shift(shift: int, span: tuple[int, int]) -> None:
    """At the ends of the range, where 16 bits hold the least to spare."""
    case, left = WinogradCase(span=span), min(shift, 20)
    drawn = case.network(random.Random(shift), AFTERWARDS[""])
    transform = drawn.operations[0]
    assert isinstance(transform, InputTransform)
    rights = ((shift,) * len(transform.right), tuple(shift + n % 3 for n in range(len(transform.right))))
    images = images_for(drawn, 2, shift)
    images[0] = torch.where(torch.rand(images[0].shape) < 0.5, torch.tensor(span[0]), torch.tensor(span[1]))
    for right, given_left in product((rights[0], tuple(min(r, 30) for r in rights[1])), (0, left)):
        changed = replace(transform, left=(given_left,) * len(right), right=right)
        assert_as_reference(replace(drawn, operations=(changed, *drawn.operations[1:])), images)


@every_implementation
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_tiles_of_one_image(threads: int) -> None:
    """Of layers that are large enough to be worth it."""
    case = WinogradCase(channels=48, filters=64, size=(29, 31), cut=1)
    program = case.network(random.Random(1), AFTERWARDS["then an addition"])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_as_reference(program, images_for(program, 1))
    finally:
        torch.set_num_threads(before)


# ---- Random networks ------------------------------------------------------------------------------------------------------


@functools.cache
def random_case(seed: int) -> tuple[IntegerProgram, Tensor, Tensor]:
    """A network, images, and what the reference makes of them: once for all implementations."""
    program = random_network(seed)
    x = images_for(program, 1 + seed % 3, seed)
    return program, x, integer_reference.run(program, x)


@every_implementation
@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_networks_give_what_the_reference_gives(seed: int) -> None:
    assert_as_reference(*random_case(seed))


@every_implementation
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_batches_and_threads_give_the_same(batch: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for seed in (1, 2):
            program = random_network(seed)
            assert_as_reference(program, images_for(program, batch))
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(
    "avx512" not in library.variants(), reason="without AVX-512 there are no tile registers to do without"
)
@pytest.mark.parametrize("seed", range(0, SEEDS, 2))
def test_random_networks_give_the_same_without_tile_registers(seed: int) -> None:
    with library.force("avx512"), library.without_tiles():
        assert not library.has_tiles()
        assert_as_reference(*random_case(seed))


@every_implementation
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_rows_of_one_image(threads: int) -> None:
    """Of layers that are large enough to be worth it."""
    net = NetworkBuilder(random.Random(1))
    x = net.convolution(net.value((24, 29, 31), BYTE), 48)
    program = net.program(net.addition(x, net.convolution(x, 48)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_as_reference(program, images_for(program, 1))
    finally:
        torch.set_num_threads(before)


@every_implementation
def test_a_batch_of_none_gives_none() -> None:
    program = random_network(3)
    for dtype in (torch.int32, torch.float32):
        assert run(program, images_for(program, 0).to(dtype)).shape == (0, outputs_of(program))


# ---- The input ------------------------------------------------------------------------------------------------------------


def passing(span: tuple[int, int], lengths: tuple[int, ...], *, size: tuple[int, int] = (5, 6)) -> IntegerProgram:
    """A network that gives the integers of its input."""
    shape = len(lengths), *size
    return IntegerProgram(0, 1, lengths, (Value(shape, *span), Value(shape, *span)), (Reshape(1, (0,)),))


@every_implementation
@pytest.mark.parametrize("seed", range(12))
def test_floats_give_what_their_integers_give(seed: int) -> None:
    program = random_network(seed)
    integers = images_for(program, 2, seed)
    steps = torch.tensor(program.input_lengths).double().neg().exp2()[:, None, None]
    # Within the half below and above that rounding takes away.
    shifts = torch.rand(integers.shape, generator=torch.Generator().manual_seed(seed)).double() * 0.99 - 0.495
    floats = ((integers + shifts) * steps).float()

    assert torch.equal(run(program, floats), run(program, integers))


@every_implementation
@pytest.mark.parametrize("span", [BYTE, SIGNED, (-8, 7), (0, 9), (-1000, 1000)], ids=str)
def test_numbers_are_rounded_half_up_and_kept_in_range(span: tuple[int, int]) -> None:
    inf, nan = math.inf, math.nan
    row = [
        0.5,
        -0.5,
        1.5,
        -1.5,
        0.49999997,
        -0.49999997,
        -0.50000006,
        2.5,
        1e30,
        -1e30,
        inf,
        -inf,
        nan,
        0.0,
        -0.0,
        1e-40,
    ]
    row += [float(edge) + shift for edge in span for shift in (-1.0, -0.5, 0.0, 0.25, 0.5, 1.0)]
    lengths = (0, 3, -2, 24, -8)
    x = torch.tensor(row)[None, None, None, :].repeat(2, len(lengths), 1, 1)
    x = x * torch.tensor([2.0**-length for length in lengths])[:, None, None]

    def rounded(number: float, length: int) -> int:
        if math.isnan(number):
            return span[0]
        if math.isinf(number):
            return span[number > 0]
        return min(max(math.floor(number * 2.0**length + 0.5), span[0]), span[1])

    expected = [[rounded(number, n) for c, n in enumerate(lengths) for number in x[i, c, 0].tolist()] for i in (0, 1)]
    assert run(passing(span, lengths, size=(1, len(row))), x).tolist() == expected


@every_implementation
def test_integers_are_kept_in_range() -> None:
    x = torch.tensor([-(2**31), -129, -128, -1, 0, 127, 128, 2**31 - 1], dtype=torch.int32).reshape(1, 1, 2, 4)

    assert run(passing(SIGNED, (7,), size=(2, 4)), x).tolist() == [[-128, -128, -128, -1, 0, 127, 127, 127]]


@every_implementation
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32], ids=str)
def test_strides_of_any_kind_give_the_same(dtype: torch.dtype) -> None:
    program = random_network(5)
    x = images_for(program, 2).to(dtype)
    expected = run(program, x)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    sliced = torch.cat([x, x], dim=3)[..., : x.shape[3]]
    one = x[:1].expand(2, -1, -1, -1)

    for same in (x.contiguous(memory_format=torch.channels_last), turned, sliced):
        assert torch.equal(run(program, same), expected)
    assert torch.equal(run(program, one), expected[:1].repeat(2, 1))


@every_implementation
def test_a_program_may_be_a_part_of_a_tensor() -> None:
    program = random_network(5)
    x, packed = images_for(program, 1), program.to_tensor()
    shifted = torch.cat([packed.new_zeros(1), packed, packed])[1 : len(packed) + 1]
    spread = packed.repeat_interleave(2)[::2]

    for same in (shifted, spread):
        assert torch.equal(OPERATORS.integer_network(x, same, outputs_of(program)), run(program, x))


# ---- Bytes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(0, SEEDS, 4))
def test_a_program_comes_back_from_its_bytes(seed: int) -> None:
    program = random_network(seed)
    packed = program.to_tensor()
    again = IntegerProgram.from_tensor(packed)

    assert packed.dtype == torch.uint8
    assert bytes(packed.tolist()) == program.to_bytes()
    assert torch.equal(again.to_tensor(), packed)
    assert (again.values, again.input_lengths, again.output) == (program.values, program.input_lengths, program.output)
    for one, other in zip(again.operations, program.operations, strict=True):
        for name, given in vars(other).items():
            found = getattr(one, name)
            assert torch.equal(found, given) if isinstance(given, Tensor) else found == given, name


def words_of(program: IntegerProgram) -> list[int]:
    words: list[int] = program.to_tensor().view(torch.int32).tolist()
    return words


def test_the_bytes_lie_as_they_are_described() -> None:
    values = (Value((3, 2, 2), 0, 255), Value((1, 1, 2), *INT32), Value((1, 1, 2), -5, 5))
    weight = torch.tensor([1, -1, 2, -2, 3, -3], dtype=torch.int8).reshape(1, 3, 2, 1)
    convolution = Convolution(1, (0,), weight, (9,), (1,), (2,), (-7,), (8,), stride=(1, 1), padding=(0, 0))
    addition = Addition(2, (1, 1), ((1,), (2,)), (3,), (-4,), (5,))

    assert words_of(IntegerProgram(0, 2, (7, 8, 9), values, (convolution, addition))) == [
        0x4E494957, 1, 3, 2, 0, 2,
        3, 2, 2, 0, 255, 1, 1, 2, *INT32, 1, 1, 2, -5, 5,
        7, 8, 9,
        1, 1, 1, 0, 2, 1, 1, 1, 0, 0, 1, 1, 1, 9, 1, 2, -7, 8, 0xFE02FF01 - 2**32, 0x0000FD03,
        2, 2, 2, 1, 1, 1, 2, 3, -4, 5,
    ]  # fmt: skip
    assert IntegerProgram(0, 2, (7, 8, 9), values, (convolution, addition)).to_bytes().startswith(b"WIIN\x01\0\0\0")


def small() -> IntegerProgram:
    """One of each kind of operation, in few words."""
    vector, image = (2, 1, 1), (2, 4, 4)
    one, zero, low, high = (1, 1), (0, 0), (-128, -128), (127, 127)
    shapes: list[tuple[int, int, int]] = [image] * 6
    shapes += [(4, 4, 4), (2, 2, 4), (2, 4, 4), (2, 8, 8), (8, 4, 4), (4, 8, 4), vector, image, (4, 2, 2), image]
    ends, positions = (low, high), (5, 10)
    tile_shifts = zero * 2, one * 2, low * 2, high * 2
    operations = (
        Convolution(1, (0,), torch.ones(2, 2, 1, 1, dtype=torch.int8), one, zero, one, *ends),
        Addition(2, (1, 0), (zero, one), one, *ends),
        Requantization(3, (2,), zero, one, *ends),
        Table(4, (3,), torch.arange(256, dtype=torch.int32)[None] - 128, zero),
        MaxPool(5, (4,), (3, 3), (1, 1), (1, 1)),
        Concatenation(6, (5, 5)),
        Slice(7, (6,), (0, 1, 0), (4, 4, 4), (2, 2, 1)),
        Padding(8, (7,), (0, 1, 0), (0, 1, 0)),
        NearestUpsample(9, (8,), (2, 2)),
        Reshape(10, (9,)),
        Permutation(11, (10,), (1, 0, 2)),
        AveragePool(12, (8,), (4, 4), (1, 1), (0, 0), 3, zero, one, *ends),
        Multiplication(13, (8, 12), zero, one, *ends),
        InputTransform(14, (13,), positions, (1, 1), *tile_shifts),
        OutputTransform(15, (14,), positions, zero, zero * 2, one, *ends),
    )
    values = tuple(Value(shape, *SIGNED) for shape in shapes)
    return IntegerProgram(0, 15, (7, 7), values, operations)


# ---- What is refused ------------------------------------------------------------------------------------------------------


def assert_refused(packed: Tensor) -> None:
    for call in (
        lambda: OPERATORS.prepare_integer_network(packed),
        lambda: OPERATORS.integer_network(torch.zeros(1, 2, 4, 4), packed, 32),
    ):
        with pytest.raises(REFUSALS) as refused:
            call()
        assert " " in str(refused.value).strip()


@every_implementation
def test_the_small_program_is_none_of_those_refused() -> None:
    assert_as_reference(small(), images_for(small(), 2))
    assert {type(operation) for operation in small().operations} == set(Operation.__args__)


@every_implementation
def test_a_program_that_ends_too_early_or_late_is_refused() -> None:
    packed = small().to_tensor()
    for length in range(0, len(packed), 4):
        assert_refused(packed[:length])
    for length in (1, 2, 3, 25, len(packed) - 1):
        assert_refused(packed[:length])
    assert_refused(torch.cat([packed, packed.new_zeros(4)]))


@every_implementation
@pytest.mark.parametrize("word", [-(2**31), -1, 2**31 - 1])
def test_wrong_words_end_in_sentences_or_do_no_harm(word: int) -> None:
    """Whatever stands in a word: a sentence, or a network."""
    program, x = small(), images_for(small(), 1)
    for place in range(len(words_of(program))):
        words = program.to_tensor().view(torch.int32).clone()
        words[place] = word
        packed = words.view(torch.uint8)
        try:
            expected = IntegerProgram.from_tensor(packed)
        except ValueError as error:
            assert " " in str(error)  # noqa: PT017
            assert_refused(packed)
        else:
            if _does_not_overflow(expected):
                assert torch.equal(OPERATORS.integer_network(x, packed, 32), integer_reference.run(expected, x))


def _does_not_overflow(program: IntegerProgram) -> bool:
    """Whether no number is so large that sums may leave 32 bits."""
    sums = [one for one in program.operations if isinstance(one, Convolution | OutputTransform)]
    pools = [one for one in program.operations if isinstance(one, AveragePool)]
    return all(abs(n) < 2**20 for one in sums for n in one.bias) and all(abs(one.multiplier) < 2**10 for one in pools)


Parts = dict[str, Any]  # of an IntegerProgram, right or wrong


def with_parts(**parts: Any) -> Parts:
    return vars(small()) | parts


def with_operation(number: int, **parts: Any) -> Parts:
    operations = list(small().operations)
    changed = object.__new__(type(operations[number]))
    vars(changed).update(vars(operations[number]) | parts)
    operations[number] = changed
    return with_parts(operations=tuple(operations))


def with_one_pool(rows: int, **parts: Any) -> Parts:
    """A network of one max pool, of so many rows and 4 columns."""
    values = Value((2, 4, 4), *SIGNED), Value((2, rows, 4), *SIGNED)
    pool = object.__new__(MaxPool)
    vars(pool).update({"output": 1, "sources": (0,), "stride": (1, 1), "dilation": (1, 1)} | parts)
    return {"input": 0, "output": 1, "input_lengths": (7, 7), "values": values, "operations": (pool,)}


WRONG: dict[str, tuple[Parts, str]] = {
    "an input that isn't there": (with_parts(input=16), "input names value 16"),
    "an output that isn't there": (with_parts(output=-1), "output names value -1"),
    "too few lengths": (with_parts(input_lengths=(7,)), "one a channel"),
    "lengths beyond all numbers": (with_parts(input_lengths=(7, 1000)), "from -64 to 64"),
    "an output that nothing writes": (with_parts(operations=small().operations[:-1]), "nothing writes"),
    "a value written twice": (with_operation(1, output=1), "written already"),
    "the input written": (with_operation(1, output=0), "written already"),
    "a value read too early": (with_operation(1, sources=(2, 0)), "written before"),
    "too many operands": (with_operation(2, sources=(2, 2)), "reads 2 values, not 1"),
    "too few operands": (with_operation(1, sources=(1,)), "reads 1 values, not 2"),
    "no operand": (with_operation(5, sources=()), "reads 0 values, not 1"),
    "shapes that don't meet": (with_operation(9, sources=(8,)), "it makes"),
    "shifts of 32 bits": (with_operation(2, right=(32, 0)), "right"),
    "shifts below zero": (with_operation(2, left=(-1, 0)), "left"),
    "shifts of too many channels": (with_operation(2, left=(0, 0, 0)), "left"),
    "ends beyond the output": (with_operation(2, high=(128, 0)), "high"),
    "ends that cross": (with_operation(2, high=(-5, 0), low=(-4, 0)), "above"),
    "weights of another kind": (with_operation(0, weight=torch.ones(2, 2, 1, 1)), "int8"),
    "weights for other channels": (with_operation(0, weight=torch.ones(2, 1, 1, 1, dtype=torch.int8)), "channels"),
    "weights of other filters": (with_operation(0, weight=torch.ones(3, 2, 1, 1, dtype=torch.int8)), "would be"),
    "groups that don't divide": (with_operation(0, groups=3), "groups"),
    "a bias that is too long": (with_operation(0, bias=(2**31, 0)), "bias"),
    "no stride": (with_operation(0, stride=(0, 1)), "stride"),
    "padding below zero": (with_operation(0, padding=(-1, 0)), "padding"),
    "a kernel larger than the image": (with_operation(11, kernel=(5, 4)), "larger"),
    "windows of padding alone": (with_one_pool(6, kernel=(1, 1), padding=(1, 0)), "nothing but padding"),
    "dilated windows of padding alone": (
        with_one_pool(1, kernel=(2, 1), padding=(1, 0), dilation=(5, 1)), "nothing but padding"),
    "a multiplier that is too long": (with_operation(11, multiplier=2**31), "multiplier"),
    "rows that aren't there": (with_operation(3, row=(0, 1)), "row"),
    "tables that are too short": (with_operation(3, tables=torch.zeros(1, 255, dtype=torch.int32)), "tables"),
    "tables beyond the output": (with_operation(3, tables=torch.full((1, 256), 128)), "tables"),
    "a slice beyond its source": (with_operation(6, stop=(5, 4, 4)), "takes"),
    "a step of zero": (with_operation(6, step=(0, 2, 1)), "takes"),
    "padding by less than nothing": (with_operation(7, before=(0, -1, 0)), "pads"),
    "an order that is none": (with_operation(10, order=(0, 0, 2)), "order"),
    "a scale of zero": (with_operation(8, scale=(0, 2)), "scale"),
    "positions that fall": (with_operation(13, positions=(10, 5)), "positions"),
    "a position twice": (with_operation(14, positions=(5, 5)), "positions"),
    "a position that isn't there": (with_operation(14, positions=(5, 16)), "positions"),
    "positions of other products": (with_operation(14, positions=(5,), left=(0, 0)), "it makes"),
    "tiles of fewer positions": (with_operation(13, positions=(5,)), "would be"),
    "shifts of products below zero": (with_operation(14, left=(0, 0, 0, -1)), "shifts"),
}  # fmt: skip


# What can't be written, or looks like something else once it is.
NO_BYTES = (
    "weights of another kind",
    "weights for other channels",
    "a bias that is too long",
    "a multiplier that is too long",
)


@every_implementation
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_says_what_is_wrong(name: str) -> None:
    parts, match = WRONG[name]
    with pytest.raises(ValueError, match=match):
        IntegerProgram(**parts)
    if name not in NO_BYTES:
        assert_refused(integer_bytes.write(**parts))


@pytest.mark.parametrize(
    ("shape", "lowest", "highest"),
    [((0, 1, 1), 0, 1), ((2**16, 2**16, 1), 0, 1), ((1, 1, 1), 1, 0), ((1, 1, 1), 0, 2**31), ((1, 1, 1), 1, 9)],
)
def test_a_value_that_can_not_be_is_refused(shape: tuple[int, int, int], lowest: int, highest: int) -> None:
    with pytest.raises(ValueError, match="A value"):
        Value(shape, lowest, highest)


@pytest.mark.parametrize(
    ("operation", "span", "match"),
    [
        (Reshape(1, (0,)), (0, 100), "which is less"),
        (Padding(1, (0,), (0, 0, 0), (0, 0, 0)), (-127, 127), "which is less"),
        (Convolution(1, (0,), torch.ones(1, 1, 1, 1, dtype=torch.int8), *((0,),) * 5), (0, 100), "more than 256"),
    ],
    ids=str,
)
def test_ranges_that_do_not_fit_are_refused(operation: Operation, span: tuple[int, int], match: str) -> None:
    read = Value((1, 3, 3), *((-200, 200) if "256" in match else SIGNED))
    with pytest.raises(ValueError, match=match):
        IntegerProgram(0, 1, (7,), (read, Value((1, 3, 3), *span)), (operation,))


@pytest.mark.parametrize("span", [(0, 2**16), (-(2**15) - 1, 2**15 - 1)], ids=str)
def test_an_input_of_more_than_16_bits_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"more than 2\*\*16"):
        passing(span, (7,))


@every_implementation
@pytest.mark.parametrize("as_it_is", [True, False], ids=["program", "prepared"])
@pytest.mark.parametrize(
    ("input", "outputs"),
    [
        (torch.zeros(2, 4, 4), 32), (torch.zeros(1, 3, 4, 4), 32), (torch.zeros(1, 2, 5, 4), 32), (torch.zeros(1, 2, 4, 3), 32),
        (torch.zeros(1, 2, 4, 4), 31), (torch.zeros(1, 2, 4, 4), 0), (torch.zeros(1, 2, 4, 4), -1),
        (torch.zeros(1, 2, 4, 4), 2**40), (torch.zeros(1, 2, 4, 4, dtype=torch.float64), 32),
        (torch.zeros(1, 2, 4, 4, dtype=torch.float16), 32), (torch.zeros(1, 2, 4, 4, dtype=torch.int64), 32),
        (torch.zeros(1, 2, 4, 4, dtype=torch.uint8), 32), (torch.zeros(0, 3, 4, 4), 32),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused(input: Tensor, outputs: int, as_it_is: bool) -> None:
    packed, operator = small().to_tensor(), OPERATORS.integer_network
    if not as_it_is:
        packed, operator = OPERATORS.prepare_integer_network(packed), OPERATORS.integer_network_prepared
    with pytest.raises((*REFUSALS, TypeError), match=r"input|outputs"):
        operator(input, packed, outputs)


@every_implementation
def test_programs_that_are_no_bytes_are_refused() -> None:
    packed = small().to_tensor()
    for wrong in (packed.int(), packed.view(torch.int8), packed[None], packed[:0], packed.flip(0)):
        assert_refused(wrong)


@every_implementation
def test_what_was_not_prepared_here_is_refused() -> None:
    prepared = OPERATORS.prepare_integer_network(small().to_tensor())
    x = torch.zeros(1, 2, 4, 4)
    for wrong in (prepared[:-4], prepared[:0], prepared[4:], prepared.int(), torch.zeros_like(prepared)):
        with pytest.raises((*REFUSALS, TypeError)) as refused:
            OPERATORS.integer_network_prepared(x, wrong, 32)
        assert " " in str(refused.value)


def test_other_devices_are_refused_in_a_sentence() -> None:
    packed = small().to_tensor()
    with pytest.raises(ValueError, match="run on the CPU only"):
        integer_operators.DEFAULTS["integer_network"](torch.zeros(1, 2, 4, 4, device="meta"), packed, 32)
    with pytest.raises(ValueError, match="run on the CPU only"):
        integer_operators.DEFAULTS["prepare_integer_network"](packed.to("meta"))


# ---- What torch expects of an operator ------------------------------------------------------------------------------------


@every_implementation
@pytest.mark.parametrize("prefix", ["", "reference_"], ids=["active", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32], ids=str)
@pytest.mark.parametrize("name", integer_operators.SCHEMAS)
def test_operator_passes_opcheck(name: str, dtype: torch.dtype, prefix: str) -> None:
    packed, x = small().to_tensor(), images_for(small(), 2).to(dtype)
    prepared = getattr(OPERATORS, f"{prefix}prepare_integer_network")(packed)
    arguments = {
        "integer_network": (x, packed, 32),
        "prepare_integer_network": (packed,),
        "integer_network_prepared": (x, prepared, 32),
    }

    torch.library.opcheck(getattr(OPERATORS, prefix + name), arguments[name])


@every_implementation
def test_there_are_no_gradients() -> None:
    x = torch.zeros(1, 2, 4, 4, requires_grad=True)
    output = OPERATORS.integer_network(x, small().to_tensor(), 32)

    assert not output.requires_grad


@every_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32], ids=str)
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    program = small()
    x = images_for(program, 2).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        output = run(program, x)

    assert torch.equal(output, run(program, x.float() if dtype == torch.bfloat16 else x))


# ---- In a file ------------------------------------------------------------------------------------------------------------


class Scores(nn.Module):
    """What a delivered file holds: a program, and what makes numbers of its integers."""

    def __init__(self, program: IntegerProgram) -> None:
        super().__init__()
        self.register_buffer("program", program.to_tensor())
        self.outputs = outputs_of(program)

    def forward(self, x: Tensor) -> Tensor:
        integers = torch.ops.winograd.integer_network(x, self.program, self.outputs)
        return integers.float() * 2.0**-12


class Twice(nn.Module):
    """Two calls on one program, inside a larger network."""

    def __init__(self, program: IntegerProgram) -> None:
        super().__init__()
        self.net = Scores(program)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x.relu()) + self.net(x)
        return scores


def integer_networks(prepared: PreparedNetwork) -> list[PreparedIntegerNetwork]:
    return [part for part in prepared.network.modules() if isinstance(part, PreparedIntegerNetwork)]


@every_implementation
@pytest.mark.parametrize("network_type", [Scores, Twice])
def test_a_network_comes_back_from_its_file(network_type: type[nn.Module]) -> None:
    program = random_network(7)
    network = network_type(program).eval()
    value = program.values[program.input]
    x = torch.randn(3, *value.shape, generator=torch.Generator().manual_seed(1))
    file = io.BytesIO()
    torch.export.save(torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)), file)
    file.seek(0)

    loaded = winograd.load(file)

    for mode in (torch.inference_mode(), torch.no_grad(), torch.enable_grad()):
        with mode:
            for batch in (x, x[:1]):
                assert torch.equal(loaded(batch), network(batch))
    assert len(integer_networks(loaded)) == 1
    assert not loaded.state_dict()
    with pytest.raises(ValueError, match="exported for"):
        loaded(x[:, :, 1:])


def test_a_program_that_changes_is_not_packed() -> None:
    class Changing(Scores):
        def forward(self, x: Tensor) -> Tensor:
            self.program.add_(0)
            return super().forward(x)

    network = Changing(small()).eval()
    x = torch.randn(2, 2, 4, 4)
    prepared = winograd.prepare(torch.export.export(network, (x,)).module())

    assert not integer_networks(prepared)
    assert torch.equal(prepared(x), network(x))
