"""Which implementation runs, that it is said truly, and that the operators' C++ side refuses nonsense in a sentence."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import winograd
from winograd import library

M, T = 4, 6
EVERY_POSITION = list(range(T * T))
OPERATORS = torch.ops.winograd
needs_compiled_code = pytest.mark.skipif(not library.variants(), reason=f"plain torch computes: {library.info().why}")
each_implementation = pytest.mark.parametrize("name", [*library.variants(), library.REFERENCE])


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 8, 11, 13, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def weights() -> Tensor:
    filters = torch.randn(32, 8, 3, 3, generator=torch.Generator().manual_seed(2))
    return winograd.transform_filters(filters, EVERY_POSITION, M)


def convolve(images: Tensor, weights: Tensor) -> Tensor:
    return winograd.conv2d(images, weights, EVERY_POSITION, M, 1)


def in_a_new_process(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}
    )


# ---- Which one runs -----------------------------------------------------------------------------------------------


def test_info_names_the_implementation_and_the_reason() -> None:
    info = library.info()
    assert info.cpu in library.IMPLEMENTATIONS
    assert info.why
    assert info.cuda or info.why_not_cuda
    assert (info.torch, info.threads) == (torch.__version__, torch.get_num_threads())
    assert str(info).startswith(f"cpu: {info.cpu} (")


@needs_compiled_code
def test_the_best_implementation_of_this_processor_runs() -> None:
    assert library.info().cpu == library.variants()[0]


@each_implementation
def test_a_forced_implementation_is_named_and_forgotten_afterwards(name: str) -> None:
    before = library.info()
    with library.force(name):
        assert (library.info().cpu, library.info().why) == (name, "forced")
    assert library.info() == before


@needs_compiled_code
def test_the_reference_bypasses_compiled_code(images: Tensor, weights: Tensor) -> None:
    before = library.native_operation_counts()
    with library.force("reference"):
        convolve(images, weights)
    assert library.native_operation_counts() == before


@needs_compiled_code
def test_forcing_may_be_nested() -> None:
    with library.force("portable"):
        with library.force("reference"):
            assert library.info().cpu == "reference"
        assert library.info().cpu == "portable"


def test_an_implementation_that_is_not_there_can_not_be_forced() -> None:
    with (
        pytest.raises(library.ImplementationUnavailable, match=r"no implementation 'neon' here, only .*reference"),
        library.force("neon"),
    ):
        pass


@each_implementation
def test_the_environment_may_choose(name: str) -> None:
    program = "import winograd; print(winograd.info().cpu)"
    assert in_a_new_process(program, WINOGRAD_IMPLEMENTATION=name).stdout.strip() == name


def test_a_wrong_choice_in_the_environment_is_said_at_import() -> None:
    result = in_a_new_process("import winograd", WINOGRAD_IMPLEMENTATION="neon")
    assert "ImplementationUnavailable: There is no implementation 'neon' here" in result.stderr


def test_what_runs_is_logged_once() -> None:
    program = "import logging; logging.basicConfig(level=logging.INFO); import winograd; winograd.library.load()"
    lines = [line for line in in_a_new_process(program).stderr.splitlines() if line.startswith("INFO:winograd:")]
    assert lines == [f"INFO:winograd:{library.info()}"]


def test_a_library_that_does_not_load_leaves_plain_torch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "built.json").write_text(
        '{"without_cpu": "", "cuda_architectures": "", "without_cuda": "it was built without nvcc"}'
    )
    (tmp_path / "libwinograd.so").write_text("not a library")
    with caplog.at_level(logging.WARNING, "winograd"):
        loaded = library._load_from([tmp_path])
    assert loaded.variants == ()
    assert "can't be loaded" in loaded.without_cpu
    assert "can't be loaded" in caplog.text


def test_a_folder_that_was_never_built_says_so(tmp_path: Path) -> None:
    assert "never built" in library._load_from([tmp_path]).without_cpu


# ---- What it does -------------------------------------------------------------------------------------------------


@each_implementation
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def test_the_output_lies_as_the_input_does(
    name: str, memory_format: torch.memory_format, images: Tensor, weights: Tensor
) -> None:
    with library.force(name):
        output = convolve(images.contiguous(memory_format=memory_format), weights)
    assert output.is_contiguous(memory_format=memory_format)


@each_implementation
def test_strides_of_any_kind_give_the_same(name: str, images: Tensor, weights: Tensor) -> None:
    with library.force(name):
        transposed = images.transpose(2, 3).contiguous().transpose(2, 3)
        sliced = torch.cat([images, images], dim=3)[..., : images.shape[3]]
        last = images.contiguous(memory_format=torch.channels_last)
        expected = convolve(images, weights)
        for same in (transposed, sliced, last):
            torch.testing.assert_close(convolve(same, weights), expected)


@each_implementation
def test_a_residual_may_lie_otherwise_than_the_input(name: str, images: Tensor, weights: Tensor) -> None:
    residual = torch.randn(2, 32, 11, 13).contiguous(memory_format=torch.channels_last)
    with library.force(name):
        output = winograd.conv2d(images, weights, EVERY_POSITION, M, 1, residual=residual)
        torch.testing.assert_close(output, convolve(images, weights) + residual, rtol=1e-5, atol=1e-4)


@needs_compiled_code
def test_float64_is_computed_by_plain_torch(images: Tensor, weights: Tensor) -> None:
    before = library.native_operation_counts()
    output = convolve(images.double(), weights.double())
    assert output.dtype == torch.float64
    assert library.native_operation_counts() == before
    torch.testing.assert_close(output.float(), convolve(images, weights), rtol=1e-4, atol=1e-4)


def test_gradients_of_float64_are_exact_with_the_library_loaded() -> None:
    positions = [0, 3, 5, 10]
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    u = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, u: winograd.conv2d(x, u, positions, 2, 1), (x, u))


@needs_compiled_code
def test_one_thread_and_more_give_the_same(images: Tensor, weights: Tensor) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = convolve(images, weights)
        torch.set_num_threads(3)
        torch.testing.assert_close(convolve(images, weights), alone)
    finally:
        torch.set_num_threads(threads)


@needs_compiled_code
def test_weights_packed_by_another_implementation_are_refused(images: Tensor, weights: Tensor) -> None:
    # 32 filters fill a panel: both orders would have the same length, if the compiled code did not mark its own.
    compiled = winograd.pack_weights(weights, EVERY_POSITION, M)
    with library.force("reference"):
        plain = winograd.pack_weights(weights, EVERY_POSITION, M)
        with pytest.raises((ValueError, RuntimeError), match="pack again"):
            winograd.conv2d_packed(images, compiled, 1)
    with pytest.raises((ValueError, RuntimeError), match="pack again"):
        winograd.conv2d_packed(images, plain, 1)


@needs_compiled_code
def test_operations_are_counted_from_the_last_reset(images: Tensor, weights: Tensor) -> None:
    library.reset_native_operation_counts()
    convolve(images, weights)
    tiles = 2 * 3 * 4
    assert library.native_operation_counts() == (T * T, T * T * 32 * 8 * tiles)
    library.reset_native_operation_counts()
    assert library.native_operation_counts() == (0, 0)


@needs_compiled_code
def test_workspace_is_kept_and_given_back(images: Tensor, weights: Tensor) -> None:
    convolve(images, weights)
    assert library.workspace_bytes() > 0
    library.release_workspace()
    assert library.workspace_bytes() == 0


# ---- torch.ops.winograd called directly ---------------------------------------------------------------------------

Call = Callable[[Tensor, Tensor], Any]
ALL = torch.tensor([EVERY_POSITION], dtype=torch.int32)
NONSENSE: dict[str, tuple[Call, str]] = {
    "input without batch": (lambda x, u: OPERATORS.conv2d(x[0], u, EVERY_POSITION, M, [1, 1]), "shape"),
    "weights without positions": (lambda x, u: OPERATORS.conv2d(x, u[0], EVERY_POSITION, M, [1, 1]), "shape"),
    "other channels": (lambda x, u: OPERATORS.conv2d(x[:, :5], u, EVERY_POSITION, M, [1, 1]), "channels"),
    "no positions": (lambda x, u: OPERATORS.conv2d(x, u, [], M, [1, 1]), "positions"),
    "too few positions": (lambda x, u: OPERATORS.conv2d(x, u, [1, 2], M, [1, 1]), "positions"),
    "a position outside": (lambda x, u: OPERATORS.conv2d(x, u, [*EVERY_POSITION[:-1], 36], M, [1, 1]), "osition"),
    "a huge position": (lambda x, u: OPERATORS.conv2d(x, u, [*EVERY_POSITION[:-1], 2**40], M, [1, 1]), "osition"),
    "m of 3": (lambda x, u: OPERATORS.conv2d(x, u, EVERY_POSITION, 3, [1, 1]), "m "),
    "a huge m": (lambda x, u: OPERATORS.conv2d(x, u, EVERY_POSITION, 2**40, [1, 1]), "m is"),
    "negative padding": (lambda x, u: OPERATORS.conv2d(x, u, EVERY_POSITION, M, [-1, 1]), "padding"),
    "huge padding": (lambda x, u: OPERATORS.conv2d(x, u, EVERY_POSITION, M, [2**31 - 1, 2**31 - 1]), "padding|memory|size|large"),
    "three paddings": (lambda x, u: OPERATORS.conv2d(x, u, EVERY_POSITION, M, [1, 1, 1]), "padding"),
    "no groups": (lambda x, u: OPERATORS.conv2d(x, u, EVERY_POSITION, M, [1, 1], groups=0), "groups"),
    "huge groups": (lambda x, u: OPERATORS.conv2d(x, u, EVERY_POSITION, M, [1, 1], groups=2**62), "groups"),
    "another activation": (lambda x, u: OPERATORS.conv2d(x, u, EVERY_POSITION, M, [1, 1], activation="gelu"), "gelu"),
    "a bias for others": (lambda x, u: OPERATORS.conv2d(x, u, EVERY_POSITION, M, [1, 1], x[0, 0, 0]), "bias"),
    "a residual of another shape": (lambda x, u: OPERATORS.conv2d(x, u, EVERY_POSITION, M, [1, 1], None, x), "residual"),
    "mixed types": (lambda x, u: OPERATORS.conv2d(x, u.double(), EVERY_POSITION, M, [1, 1]), "float"),
    "an empty image": (lambda x, u: OPERATORS.conv2d(x[:, :, :0], u, EVERY_POSITION, M, [1, 1]), "input|height"),
    "weights for packed": (lambda x, u: OPERATORS.conv2d_packed(x, u, ALL, 32, M, 1, 1), "packed"),
    "packed for others": (lambda x, u: OPERATORS.conv2d_packed(x, u.flatten()[1:], ALL, 32, M, 1, 1), "packed"),
    "no filters": (lambda x, u: OPERATORS.conv2d_packed(x, u.flatten(), ALL, 0, M, 1, 1), "filters"),
    "no kernel groups": (lambda x, u: OPERATORS.conv2d_packed(x, u.flatten(), ALL[:0], 32, M, 1, 1), "groups"),
    "no packed positions": (lambda x, u: OPERATORS.conv2d_packed(x, u.flatten(), ALL[:, :0], 32, M, 1, 1), "positions"),
    "many packed positions": (
        lambda x, u: OPERATORS.conv2d_packed(x, u.flatten(), ALL.repeat(1, 99), 32, M, 1, 1), "positions"
    ),
    "positions of floats": (lambda x, u: OPERATORS.conv2d_packed(x, u.flatten(), ALL.float(), 32, M, 1, 1), "positions"),
    "a huge packed padding": (lambda x, u: OPERATORS.conv2d_packed(x, u.flatten(), ALL, 32, M, 2**40, 1), "padding|large|pack"),
    "negative blocking": (
        lambda x, u: OPERATORS.conv2d_packed(
            x, OPERATORS.pack_weights(u, EVERY_POSITION, M), ALL, 32, M, 1, 1, block_filters=-32
        ),
        "blocking",
    ),
    "filters of 5x5": (lambda x, u: OPERATORS.pack_filters(x.new_ones(4, 4, 5, 5), EVERY_POSITION, M), "filters"),
}  # fmt: skip


@each_implementation
@pytest.mark.parametrize(("call", "says"), NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_raises_a_sentence(name: str, call: Call, says: str, images: Tensor, weights: Tensor) -> None:
    refused = pytest.raises((RuntimeError, ValueError, TypeError), match=says)
    with library.force(name), torch.inference_mode(), refused as refusal:
        call(images, weights)
    assert len(str(refusal.value)) > 20
