"""Whole float32 networks in one call: on every implementation, and what its operators refuse."""

import copy
import functools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from winograd.float_program import (
    KINDS,
    Activation,
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    FloatProgram,
    Function,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Padding,
    Scaling,
    Slice,
    WinogradConvolution,
)
from winograd.prepared_float_network import PreparedFloatNetwork

import winograd
from tests.winograd import float_reference
from tests.winograd.exported_networks import (
    BATCH,
    Computes,
    Residual,
    assert_close,
    exported,
    images,
    kinds,
    program_of,
    residual_network,
    winograd_conv2d,
)
from winograd import float_operators, library

OPERATORS = torch.ops.winograd
compiled_only = pytest.mark.skipif(not library.variants(), reason=f"plain torch computes: {library.info().why}")


# ---- Whole networks -------------------------------------------------------------------------------------------------------


@functools.cache
def deep_network() -> fx.GraphModule:
    return exported(residual_network(), torch.zeros(2, 3, 32, 32))


def deep_images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_a_network_of_residual_blocks_is_as_few_operations_as_it_can_be() -> None:
    program, shape = program_of(deep_network())

    assert shape == (10,)
    narrowing = [Slice, Padding, WinogradConvolution]
    assert kinds(program) == [
        *[WinogradConvolution] * 7,
        Convolution, *narrowing, *[WinogradConvolution] * 4,
        Convolution, *narrowing, *[WinogradConvolution] * 4,
        AveragePool, Convolution,
    ]  # fmt: skip
    expected = deep_network()(deep_images(2))
    assert_close(float_reference.run(program, deep_images(2).double()).float(), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batches_and_threads_give_the_same(batch: int, threads: int, compiled: str) -> None:
    prepared, x = winograd.prepare(deep_network()), deep_images(batch)
    assert prepared.in_one_call, prepared.why_not_in_one_call

    with torch.inference_mode(), torch_threads(threads):
        assert_close(prepared(x), deep_network()(x))


@pytest.mark.parametrize("threads", [1, 2])
def test_what_was_prepared_for_some_threads_runs_on_others(threads: int, compiled: str) -> None:
    with torch_threads(3 - threads):
        prepared = winograd.prepare(deep_network())

    with torch_threads(threads):
        assert_close(prepared(deep_images(2)), deep_network()(deep_images(2)))


@pytest.mark.usefixtures("compiled")
def test_strides_of_any_kind_give_the_same() -> None:
    prepared, x = winograd.prepare(deep_network()), deep_images(2)
    expected = prepared(x)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    sliced = torch.cat([x, x], dim=3)[..., : x.shape[3]]

    for same in (x.contiguous(memory_format=torch.channels_last), turned, sliced):
        assert_close(prepared(same), expected)
    assert_close(prepared(x[:1].expand(2, -1, -1, -1)), expected[:1].repeat(2, 1))


@pytest.mark.usefixtures("compiled")
def test_images_come_out_in_their_order() -> None:
    network = exported(Computes(lambda n, x: n.conv(x)), images())
    prepared = winograd.prepare(network)

    for x in (images(), images().contiguous(memory_format=torch.channels_last)):
        output = prepared(x)
        assert output.is_contiguous()
        assert_close(output, network(x))


@pytest.mark.usefixtures("compiled")
def test_a_batch_of_none_gives_none() -> None:
    for function, shape in ((lambda n, x: n.conv(x), (0, 4, 9, 9)), (lambda n, x: n.conv(x).mean((2, 3)), (0, 4))):
        prepared = winograd.prepare(exported(Computes(function), images()))

        assert prepared(images()[:0]).shape == shape


@pytest.mark.usefixtures("compiled")
def test_one_network_runs_in_several_threads_at_once() -> None:
    prepared = winograd.prepare(deep_network())
    given = [deep_images(1 + n % 3) for n in range(12)]
    expected = [prepared(x) for x in given]

    with ThreadPoolExecutor(4) as pool:
        for output, same in zip(pool.map(prepared, given), expected, strict=True):
            assert_close(output, same)


@compiled_only
def test_inputs_and_outputs_keep_their_structure() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = winograd_conv2d(4, 4)

        def forward(self, *, given: dict[str, Tensor]) -> dict[str, list[Tensor]]:
            return {"convolved": [self.conv(given["image"])]}

    given = {"image": images()}
    original = torch.export.export(Nested().eval(), (), {"given": given}).module()

    prepared = winograd.prepare(original)

    assert prepared.in_one_call, prepared.why_not_in_one_call
    torch.testing.assert_close(prepared(given=given), original(given=given), atol=1e-4, rtol=1e-4)


@compiled_only
def test_other_sizes_than_were_exported_are_refused() -> None:
    prepared = winograd.prepare(deep_network())

    with pytest.raises(ValueError, match=r"shape \[2, 3, 8, 9\], but the network was exported for \[any, 3, 32, 32\]"):
        prepared(torch.zeros(2, 3, 8, 9))


@compiled_only
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [2, 40])
def test_w8_one_call_executes_the_same_multiplications(batch: int, threads: int) -> None:
    one, several = (winograd.prepare(deep_network(), in_one_call=choice) for choice in (True, False))

    counts = []
    for prepared in (one, several):
        with torch_threads(threads), winograd.count_operations() as counted:
            prepared(deep_images(batch))
        counts.append(counted)

    assert counts[0].multiplications == counts[1].multiplications
    # Threads take images of their own through the network, a few at a time; a GEMM counts once for the call all the same.
    assert counts[0].gemms == counts[1].gemms


@compiled_only
def test_weights_that_were_packed_are_not_kept_a_second_time() -> None:
    prepared = winograd.prepare(deep_network())

    assert list(prepared.parameters()) == []
    assert prepared.state_dict() == {}
    assert [name for name, _ in prepared.named_buffers()] == ["network.whole_network.prepared"]


@compiled_only
def test_a_copy_gives_the_same() -> None:
    network = PreparedFloatNetwork(small().to_tensor(), (2, 4, 4))

    assert torch.equal(copy.deepcopy(network)(SMALL_INPUT), network(SMALL_INPUT))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("function", list(Function))
def test_functions_are_right_wherever_they_are_taken(function: Function) -> None:
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([0.0, -0.0, math.inf, math.nan, 1e-30])])[
        None, None, None
    ]
    program = FloatProgram(0, 1, ((1, 1, x.numel()),) * 2, (Activation(1, (0,), function=function, slope=0.1),))

    found = PreparedFloatNetwork(program.to_tensor(), (x.numel(),))(x)

    expected = float_reference.run(program, x.double()).float()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-7, equal_nan=True)


# ---- Which networks are ---------------------------------------------------------------------------------------------------


@compiled_only
def test_a_network_says_that_it_is_one_call() -> None:
    prepared = winograd.prepare(deep_network())

    assert (prepared.in_one_call, prepared.why_not_in_one_call) == (True, "")
    assert "in one call" in repr(prepared)
    assert [type(part) for part in prepared.network.children()].count(PreparedFloatNetwork) == 1


@compiled_only
def test_a_network_says_why_it_is_not_one_call() -> None:
    prepared = winograd.prepare(exported(Computes(lambda n, x: n.conv(x).erf()), images()))

    assert not prepared.in_one_call
    assert prepared.why_not_in_one_call == "aten.erf.default isn't among the operators of one call"
    assert f"operator by operator: {prepared.why_not_in_one_call}" in repr(prepared)


@compiled_only
def test_networks_without_winograd_convolutions_stay_as_they_are() -> None:
    prepared = winograd.prepare(exported(Computes(lambda n, x: n.direct(x), direct=nn.Conv2d(4, 4, 3)), images()))

    assert prepared.why_not_in_one_call == "it has no Winograd convolutions"


def test_one_call_can_be_done_without(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Residual().eval(), (images(),)), tmp_path / "model.pt2")

    for prepared in (
        winograd.prepare(deep_network(), in_one_call=False),
        winograd.load(tmp_path / "model.pt2", in_one_call=False),
    ):
        assert prepared.why_not_in_one_call == "in_one_call is False"


def test_plain_torch_runs_operator_by_operator() -> None:
    with library.force(library.REFERENCE):
        prepared = winograd.prepare(deep_network())

    assert prepared.why_not_in_one_call.startswith("plain torch computes: ")


@compiled_only
def test_a_file_becomes_one_call(tmp_path: Path) -> None:
    export = torch.export.export(Residual().eval(), (images(),), dynamic_shapes=({0: BATCH},))
    torch.export.save(export, tmp_path / "model.pt2")

    prepared = winograd.load(tmp_path / "model.pt2")

    assert prepared.in_one_call, prepared.why_not_in_one_call
    assert_close(prepared(images()), export.module()(images()))


# ---- The operators --------------------------------------------------------------------------------------------------------


def small() -> FloatProgram:
    """One of each kind of operation, in few words."""
    image = (2, 4, 4)
    ones, one = torch.ones(2), torch.ones(2, 2, 1, 1)
    operations = (
        Convolution(1, (0, 0), 0, 6, weights=one, bias=ones),
        WinogradConvolution(
            2, (1, 0), weights=torch.ones(3, 2, 2), bias=ones, positions=(0, 5, 10), m=2, padding=(1, 1)
        ),
        Addition(3, (1, 2)),
        Scaling(4, (3,), -1, scale=ones, shift=ones),
        MaxPool(5, (4,), kernel=(3, 3), stride=(1, 1), padding=(1, 1)),
        AveragePool(6, (5,), kernel=(3, 3), stride=(1, 1), padding=(1, 1)),
        Concatenation(7, (6, 6)),
        Slice(8, (7,), start=(0, 1, 0), stop=(4, 4, 4), step=(2, 2, 1)),
        Padding(9, (8,), before=(0, 1, 0), after=(0, 1, 0)),
        Activation(10, (9,), function=Function.SILU),
        Multiplication(11, (10, 9)),
        NearestUpsample(12, (11,), scale=(1, 1)),
    )
    return FloatProgram(0, 12, (*[image] * 7, (4, 4, 4), (2, 2, 4), *[image] * 4), operations)


SMALL_INPUT = torch.linspace(-2, 2, 64).reshape(2, 2, 4, 4)


def test_the_small_program_is_none_of_those_refused(compiled: str) -> None:
    prepared = OPERATORS.prepare_float_network(small().to_tensor())

    output = OPERATORS.float_network_prepared(SMALL_INPUT, prepared, 32)
    assert_close(output, float_reference.run(small(), SMALL_INPUT.double()).float())
    assert set(kinds(small())) == set(KINDS)


def assert_refused(packed: Tensor) -> None:
    with pytest.raises((RuntimeError, ValueError)) as refused:
        OPERATORS.prepare_float_network(packed)
    assert " " in str(refused.value).strip()


def test_a_program_that_ends_too_early_or_late_is_refused(compiled: str) -> None:
    packed = small().to_tensor()
    for length in range(0, len(packed), 4):
        assert_refused(packed[:length])
    for length in (1, 2, 3, 25, len(packed) - 1):
        assert_refused(packed[:length])
    assert_refused(torch.cat([packed, packed.new_zeros(4)]))


@pytest.mark.parametrize("word", [-(2**31), -1, 0, 7, 2**31 - 1])
def test_wrong_words_end_in_sentences_or_do_no_harm(word: int, compiled: str) -> None:
    packed = small().to_tensor()
    for place in range(len(packed) // 4):
        words = packed.view(torch.int32).clone()
        words[place] = word
        try:
            prepared = OPERATORS.prepare_float_network(words.view(torch.uint8))
        except RuntimeError as error:
            assert " " in str(error)  # noqa: PT017
            continue
        with suppress(RuntimeError):  # where the network now has another input or output
            OPERATORS.float_network_prepared(SMALL_INPUT, prepared, 32)


@pytest.mark.parametrize(
    ("input", "outputs"),
    [
        (torch.zeros(2, 4, 4), 32), (torch.zeros(1, 3, 4, 4), 32), (torch.zeros(1, 2, 5, 4), 32),
        (torch.zeros(1, 2, 4, 3), 32), (torch.zeros(1, 2, 4, 4), 31), (torch.zeros(1, 2, 4, 4), 0),
        (torch.zeros(1, 2, 4, 4), 2**40), (torch.zeros(1, 2, 4, 4).double(), 32), (torch.zeros(1, 2, 4, 4).half(), 32),
        (torch.zeros(1, 2, 4, 4).int(), 32), (torch.zeros(0, 3, 4, 4), 32),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused(input: Tensor, outputs: int, compiled: str) -> None:
    prepared = OPERATORS.prepare_float_network(small().to_tensor())

    with pytest.raises((RuntimeError, ValueError, TypeError), match=r"input|outputs"):
        OPERATORS.float_network_prepared(input, prepared, outputs)


def test_what_was_not_prepared_here_is_refused(compiled: str) -> None:
    prepared = OPERATORS.prepare_float_network(small().to_tensor())
    integers = torch.zeros_like(prepared)

    for wrong in (prepared[:-4], prepared[:0], prepared[4:], prepared.int(), integers, small().to_tensor()):
        with pytest.raises((RuntimeError, ValueError)) as refused:
            OPERATORS.float_network_prepared(SMALL_INPUT, wrong, 32)
        assert " " in str(refused.value)


@compiled_only
def test_plain_torch_refuses_what_was_prepared_for_compiled_code() -> None:
    network = PreparedFloatNetwork(small().to_tensor(), (2, 4, 4))

    with library.force(library.REFERENCE), pytest.raises(RuntimeError, match="prepare the network again"):
        network(SMALL_INPUT)


def test_plain_torch_says_that_it_runs_no_whole_networks() -> None:
    packed = small().to_tensor()

    with pytest.raises(NotImplementedError, match="prepare the network again"):
        float_operators.DEFAULTS["prepare_float_network"](packed)
    with pytest.raises(NotImplementedError, match="prepare the network again"):
        float_operators.DEFAULTS["float_network_prepared"](SMALL_INPUT, packed, 32)


@pytest.mark.parametrize(
    ("input", "prepared", "outputs", "error", "words"),
    [
        (torch.zeros(2, 4, 4), torch.zeros(4, dtype=torch.uint8), 1, ValueError, "also for a single image"),
        (torch.zeros(1, 2, 4, 4).half(), torch.zeros(4, dtype=torch.uint8), 1, TypeError, "pass float32"),
        (torch.zeros(1, 2, 4, 4), torch.zeros(4), 1, ValueError, "of uint8"),
        (torch.zeros(1, 2, 4, 4), torch.zeros(4, dtype=torch.uint8), 0, ValueError, "outputs is 0"),
    ],
    ids=["dimensions", "type", "bytes", "outputs"],
)  # fmt: skip
def test_shapes_are_checked_when_traced(
    input: Tensor, prepared: Tensor, outputs: int, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        float_operators.FAKES["float_network_prepared"](input, prepared, outputs)


@pytest.mark.parametrize("name", float_operators.SCHEMAS)
def test_operator_passes_opcheck(name: str, compiled: str) -> None:
    packed = small().to_tensor()
    prepared = OPERATORS.prepare_float_network(packed)
    arguments = {"prepare_float_network": (packed,), "float_network_prepared": (SMALL_INPUT, prepared, 32)}

    torch.library.opcheck(getattr(OPERATORS, name), arguments[name])


@pytest.mark.usefixtures("compiled")
def test_one_call_compiles_as_one_graph() -> None:
    for function in (lambda n, x: n.conv(x).relu(), lambda n, x: n.conv(x).mean((2, 3))):
        prepared = winograd.prepare(exported(Computes(function), images()))
        compiled = torch.compile(prepared, fullgraph=True, backend="aot_eager")

        for x in (images(), torch.cat([images(), images()])):
            with torch.inference_mode():
                assert_close(compiled(x), prepared(x))


@pytest.mark.usefixtures("compiled")
def test_autocast_computes_in_float32() -> None:
    prepared = winograd.prepare(exported(Computes(lambda n, x: n.conv(x)), images()))
    x = images().bfloat16()

    with torch.autocast("cpu", torch.bfloat16):
        output = prepared(x)

    assert output.dtype == torch.float32
    assert torch.equal(output, prepared(x.float()))


@pytest.mark.usefixtures("compiled")
def test_there_are_no_gradients() -> None:
    prepared = winograd.prepare(exported(Computes(lambda n, x: n.conv(x)), images()))

    assert not prepared(images().requires_grad_()).requires_grad
