"""The CUDA code, without a GPU: its source runs on the host, compiles for every architecture, and there spills no register.

With a GPU, and an installation of winograd that has the CUDA library, the last tests run there too.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from winograd.cuda import Problem as CudaProblem
from winograd.cuda import Stages, convolve, operators, prepare, problem_of, transform_filters

import winograd
from tests.winograd.gpu import matmul_precision, needs_gpu, two_convolutions
from tests.winograd.problems import Operands, Problem, every_position, exact_output, problems, rounding_bound
from winograd import count_operations, reference

SOURCE = Path(__file__).parents[2] / "winograd" / "csrc" / "cuda"
ARCHITECTURES = ("80", "90a", "100")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """The stages compiled by g++: a loop over all threads in place of each kernel launch. The stream is not used."""
    path = tmp_path_factory.mktemp("cuda") / "libwinograd_cuda_host.so"
    compile_on_host(path, "-O1", "-shared", "-fPIC")
    return Stages.load(path)


def compile_on_host(path: Path, *options: str) -> None:
    command = [
        "g++",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        *options,
        str(SOURCE / "host_check.cpp"),
        "-o",
        str(path),
    ]
    subprocess.run(command, check=True)


def cuda_problem(problem: Problem, given: Operands) -> CudaProblem:
    return problem_of(
        given.x.shape,
        problem.filters,
        problem.positions,
        problem.kernel_groups,
        problem.m,
        problem.padding,
        problem.groups,
    )


def run_on_host(stages: Stages, problem: Problem, given: Operands, weights: Tensor, *, chunk_tiles: int = 0) -> Tensor:
    prepared = prepare(stages, cuda_problem(problem, given), given.x.dtype, chunk_tiles)
    return convolve(stages, 0, given.x, weights, prepared, given.bias, given.residual, problem.activation)


# ---- On the host ------------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.slow
def test_every_variant_does_what_it_is_defined_to_do_and_nothing_forbidden(tmp_path: Path) -> None:
    program = tmp_path / "host_check"
    compile_on_host(program, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    output = subprocess.run([program], capture_output=True, text=True)
    assert output.returncode == 0, output.stdout + output.stderr
    assert output.stdout.endswith("840 cases, 0 failures\n")


@needs_compiler
@given(problem=problems())
@settings(max_examples=100, deadline=None)
def test_any_convolution_is_as_near_to_the_exact_one_as_rounding_allows(stages: Stages, problem: Problem) -> None:
    given = problem.operands()
    output = run_on_host(stages, problem, given, given.weights)
    assert ((output.double() - exact_output(problem)).abs() <= rounding_bound(problem)).all()
    assert output.is_contiguous(memory_format=reference.memory_format_of(given.x))


@needs_compiler
@given(problem=problems())
@settings(max_examples=30, deadline=None)
def test_transformed_filters_are_the_nearest_numbers(stages: Stages, problem: Problem) -> None:
    given = problem.operands()
    weights = transform_filters(stages, 0, given.filters, cuda_problem(problem, given))
    torch.testing.assert_close(weights, given.weights, rtol=2**-23, atol=0)


LAYER = Problem(
    batch=3, channels=16, filters=24, height=13, width=11, m=4, padding=(1, 1), positions=every_position(4),
    bias=True, residual=True, activation="relu", channels_last=True,
)  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("chunk_tiles", [1, 7, 8, 36, 1000])
def test_how_tiles_are_cut_into_chunks_does_not_matter(stages: Stages, chunk_tiles: int) -> None:
    given = LAYER.operands()
    output = run_on_host(stages, LAYER, given, given.weights, chunk_tiles=chunk_tiles)
    assert ((output.double() - exact_output(LAYER)).abs() <= rounding_bound(LAYER)).all()


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)], ids=["float16", "bfloat16"]
)
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_halves_lose_what_halves_lose(
    stages: Stages, dtype: torch.dtype, tolerance: float, channels_last: bool
) -> None:
    problem = Problem(
        2, 32, 32, 14, 14, 2, (1, 1), every_position(2), bias=True, residual=True, channels_last=channels_last
    )
    given, exact = problem.operands(dtype), exact_output(problem)
    output = run_on_host(stages, problem, given, given.weights)
    assert output.dtype == dtype
    # U, V, M and the output are rounded, and transforms multiply the error of the former by about 2 (docs/winograd.md).
    assert (output.double() - exact).abs().max() <= tolerance * exact.abs().max()


DEEP = replace(LAYER, channels=256, bias=False, residual=False, activation="none")


@needs_compiler
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_split_factors_lose_no_more_than_float32_units(stages: Stages, channels_last: bool) -> None:
    problem = replace(DEEP, channels_last=channels_last)
    given, exact = problem.operands(), exact_output(problem)
    split_error = (run_on_host(stages, problem, given, given.weights).double() - exact).square().mean().sqrt()
    with matmul_precision("ieee"):
        float_error = (run_on_host(stages, problem, given, given.weights).double() - exact).square().mean().sqrt()
    assert 0 < split_error <= 2 * float_error


@needs_compiler
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_torchs_setting_says_who_multiplies(stages: Stages, precision: str) -> None:
    given = LAYER.operands()
    with patch.object(torch, "bmm", wraps=torch.bmm) as bmm:
        run_on_host(stages, LAYER, given, given.weights)
        assert bmm.call_count == 0
        with matmul_precision(precision):
            run_on_host(stages, LAYER, given, given.weights)
        assert bmm.call_count == 1


@needs_compiler
def test_pruned_positions_are_not_multiplied(stages: Stages) -> None:
    half = every_position(4)[::2]
    problem = Problem(1, 16, 32, 12, 12, 4, (1, 1), half)
    given = problem.operands()
    with count_operations() as counted:
        run_on_host(stages, problem, given, given.weights)
    assert (counted.gemms, counted.multiplications) == (18, 18 * 9 * 16 * 32)


@needs_compiler
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"m": 3}, "m must be 2, 4, 6 or 7"),
        ({"kept": 0}, "0 positions are kept"),
        ({"batch": 2**31 - 1}, "more than 2^31 - 1 tiles"),
        ({"pad_height": -1}, "padding must not be negative"),
        ({"height": 2**31}, "at most 2^30"),
        ({"groups": 3}, "groups must divide"),
    ],
    ids=["m", "kept", "batch", "padding", "height", "groups"],
)
def test_the_library_refuses_with_a_sentence(stages: Stages, change: dict[str, int], sentence: str) -> None:
    given = LAYER.operands()
    problem = cuda_problem(LAYER, given)
    for name, value in change.items():
        setattr(problem, name, value)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        prepare(stages, problem, torch.float32)


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets operators for CUDA run on tensors of the host: no device to switch to, no stream."""
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))


@needs_compiler
@pytest.mark.usefixtures("no_device")
@given(problem=problems())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_operators_take_weights_packed_weights_and_packed_filters(stages: Stages, problem: Problem) -> None:
    given, exact, run = problem.operands(), exact_output(problem), operators(stages)
    epilogue = (given.bias, given.residual, problem.activation, problem.groups)
    positions = torch.tensor(problem.positions, dtype=torch.int32).reshape(problem.kernel_groups, -1)
    common = (positions, problem.filters, problem.m, *problem.padding, *epilogue)
    outputs = (
        run["conv2d"](given.x, given.weights, problem.positions, problem.m, problem.padding, *epilogue),
        run["conv2d_packed"](given.x, given.weights.flatten(), *common, block_tiles=9),
        run["conv2d_packed_filters"](given.x, given.filters.flatten(), *common),
    )
    bound = rounding_bound(problem, from_filters=True)
    assert all(((output.double() - exact).abs() <= bound).all() for output in outputs)


@needs_compiler
def test_the_operators_leave_float64_to_plain_torch(stages: Stages) -> None:
    given = LAYER.operands(torch.float64)
    output = operators(stages)["conv2d"](given.x, given.weights, LAYER.positions, LAYER.m, LAYER.padding)
    expected = reference.conv2d(given.x, given.weights, LAYER.positions, LAYER.m, LAYER.padding)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


# ---- Compiled for devices -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompiledKernel:
    """What ptxas says of a kernel."""

    name: str
    architecture: str
    registers: int
    stack_bytes: int
    spilled_bytes: int


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every .cu file, compiled as it would be for release; ptxas's report is beside it."""
    folder = tmp_path_factory.mktemp("nvcc")
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in ARCHITECTURES]
    compiled = {}
    for source in sorted(SOURCE.glob("*.cu")):
        compiled[source.stem] = folder / f"{source.stem}.o"
        command = [
            "nvcc",
            "-std=c++17",
            "-O3",
            *targets,
            "-Xptxas",
            "-v",
            "-Werror",
            "all-warnings",
            "-Xcompiler",
            "-fPIC",
        ]
        run = subprocess.run([*command, "-c", source, "-o", compiled[source.stem]], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        compiled[source.stem].with_suffix(".ptxas").write_text(run.stderr)
    return compiled


def kernels(report: str) -> Iterator[CompiledKernel]:
    pattern = (
        r"Compiling entry function '\w*?((?:transform|multiply)_\w+)' for 'sm_(\w+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    for name, architecture, stack, stores, loads, registers in re.findall(pattern, report, re.DOTALL):
        yield CompiledKernel(name, architecture, int(registers), int(stack), int(stores) + int(loads))


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["transform_filters", "transform_input", "transform_output"])
def test_kernels_keep_everything_in_registers(objects: dict[str, Path], stage: str) -> None:
    found = list(kernels(objects[stage].with_suffix(".ptxas").read_text()))
    variants = {"transform_filters": 12, "transform_input": 20, "transform_output": 34}[stage]
    assert len(found) == variants * len(ARCHITECTURES)
    assert [kernel for kernel in found if kernel.spilled_bytes or kernel.stack_bytes] == []
    # Three blocks of 128 threads share the 65536 registers of a multiprocessor.
    assert max(kernel.registers for kernel in found) <= 170


@needs_nvcc
@pytest.mark.slow
def test_the_multiplication_keeps_its_sums_in_registers(objects: dict[str, Path]) -> None:
    found = list(kernels(objects["multiply"].with_suffix(".ptxas").read_text()))
    assert len(found) == 8 * len(ARCHITECTURES)  # four tiles, two orders of memory
    assert [kernel for kernel in found if kernel.spilled_bytes and kernel.architecture in ("80", "90a")] == []
    assert max(kernel.spilled_bytes for kernel in found) <= 140, "stores and loads, of two variants, on sm_100"


@needs_nvcc
@pytest.mark.slow
def test_groups_of_warps_multiply_on_sm_90_without_waiting_for_registers(objects: dict[str, Path]) -> None:
    report = objects["multiply_warpgroups"].with_suffix(".ptxas").read_text()
    found = list(kernels(report))
    assert len(found) == 4 * len(ARCHITECTURES)  # two tiles, two orders of memory
    assert [kernel for kernel in found if kernel.spilled_bytes or kernel.stack_bytes] == []
    assert {kernel.registers for kernel in found if kernel.architecture != "90a"} <= set(range(9)), "empty elsewhere"
    assert "serialized" not in report, (
        "ptxas waits for each multiplication where it can't see that registers are left alone"
    )
    assert "setmaxnreg" not in report, "ptxas ignores it where it can't tell how many registers there are"


@needs_nvcc
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_library_loads_and_a_launch_says_so(objects: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "libwinograd_cuda.so"
    subprocess.run(["nvcc", "-shared", "--cudart", "static", *objects.values(), "-o", path], check=True)
    given = LAYER.operands()
    with pytest.raises(ValueError, match="CUDA did not start a Winograd kernel"):
        transform_filters(Stages.load(path), 0, given.filters, cuda_problem(LAYER, given))


# ---- On a GPU -----------------------------------------------------------------------------------------------------------------


def on_gpu(problem: Problem, given: Operands) -> Tensor:
    def moved(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.cuda()

    return winograd.conv2d(
        given.x.cuda(), given.weights.cuda(), problem.positions, problem.m, problem.padding,
        bias=moved(given.bias), residual=moved(given.residual), activation=problem.activation, groups=problem.groups,
    )  # fmt: skip


@needs_gpu
def test_the_kernels_are_what_runs_on_a_gpu() -> None:
    assert winograd.info().cuda, winograd.info()


@needs_gpu
@given(problem=problems())
@settings(max_examples=150, deadline=None)
def test_any_convolution_on_a_gpu_is_as_near_to_the_exact_one_as_rounding_allows(problem: Problem) -> None:
    output = on_gpu(problem, problem.operands()).cpu()
    assert ((output.double() - exact_output(problem)).abs() <= rounding_bound(problem)).all()


@needs_gpu
@pytest.mark.parametrize("m", [2, 4, 6, 7])
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_the_setting_for_convolutions_leaves_float32_as_it_is(m: int, channels_last: bool) -> None:
    problem = Problem(2, 64, 64, 14, 14, m, (1, 1), every_position(m), channels_last=channels_last)
    with torch.backends.cudnn.flags(allow_tf32=True):
        output = on_gpu(problem, problem.operands()).cpu()
    assert ((output.double() - exact_output(problem)).abs() <= rounding_bound(problem)).all()


@needs_gpu
def test_a_convolution_can_be_captured_in_a_graph() -> None:
    given = LAYER.operands()
    x, weights = given.x.cuda(), given.weights.cuda()

    def run() -> Tensor:
        return winograd.conv2d(x, weights, LAYER.positions, LAYER.m, LAYER.padding)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        eager = run().clone()  # cuBLAS makes its workspace before the capture
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = run()
    captured.zero_()
    graph.replay()
    torch.testing.assert_close(captured, eager, rtol=0, atol=0)


def to_gpu(arguments: Any) -> Any:
    """The same arguments with their tensors on the GPU, but for positions, which stay on the host."""
    if isinstance(arguments, tuple | list):
        return type(arguments)(map(to_gpu, arguments))
    return arguments.cuda() if isinstance(arguments, Tensor) and arguments.dtype != torch.int32 else arguments


@needs_gpu
@needs_nvcc
def test_every_variant_does_on_a_gpu_what_it_is_defined_to_do(tmp_path: Path) -> None:
    program = tmp_path / "device_check"
    sources = [SOURCE / "device_check.cpp", *sorted(SOURCE.glob("*.cu"))]
    subprocess.run(["nvcc", "-std=c++17", "-O2", "-arch=native", *sources, "-o", program], check=True)
    output = subprocess.run([program], capture_output=True, text=True)
    assert output.stdout.endswith("840 cases, 0 failures\n"), output.stdout + output.stderr


@needs_gpu
@pytest.mark.parametrize("name", ["conv2d", "conv2d_packed", "conv2d_packed_filters"])
def test_the_operators_pass_opcheck_on_a_gpu(name: str) -> None:
    given = LAYER.operands()
    epilogue = (given.bias, given.residual, LAYER.activation, LAYER.groups)
    positions = list(LAYER.positions)
    arguments: tuple[Any, ...]
    if name == "conv2d":
        arguments = (given.x, given.weights, positions, LAYER.m, list(LAYER.padding), *epilogue)
    else:
        packed = given.filters if name.endswith("filters") else given.weights
        by_group = torch.tensor([positions], dtype=torch.int32)
        arguments = (given.x, packed.flatten(), by_group, LAYER.filters, LAYER.m, *LAYER.padding, *epilogue)
    torch.library.opcheck(getattr(torch.ops.winograd, name), to_gpu(arguments))


@needs_gpu
def test_gradients_on_a_gpu_are_those_of_the_host() -> None:
    def gradients(given: Operands, device: str) -> list[Tensor]:
        leaves = [
            x.to(device).requires_grad_() for x in (given.x, given.weights, given.bias, given.residual) if x is not None
        ]
        x, weights, bias, residual = leaves
        output = winograd.conv2d(
            x, weights, LAYER.positions, LAYER.m, LAYER.padding, bias=bias, residual=residual, activation="relu"
        )
        return [gradient.cpu() for gradient in torch.autograd.grad(output.square().sum(), leaves)]

    found, expected = gradients(LAYER.operands(), "cuda"), gradients(LAYER.operands(torch.float64), "cpu")
    for ours, exact in zip(found, expected, strict=True):
        assert (ours.double() - exact).abs().max() <= 1e-5 * exact.abs().max()


@needs_gpu
def test_a_network_with_winograd_convolutions_moves_to_a_gpu() -> None:
    network, x = two_convolutions(), torch.randn(2, 16, 20, 20)
    expected = network.double()(x.double())
    network.float()
    winograd.replace_convolutions(network, m=4)
    network.cuda()
    with torch.inference_mode():
        output = network(x.cuda())
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)(x.cuda())
    assert (output.cpu().double() - expected).abs().max() <= 1e-5 * expected.abs().max()
    torch.testing.assert_close(compiled, output, rtol=1e-5, atol=1e-5)


@needs_gpu
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
def test_a_network_is_prepared_for_a_gpu(channels_last: bool) -> None:
    network = two_convolutions()
    winograd.replace_convolutions(network, m=4)
    network.cuda()
    x = torch.randn(2, 16, 20, 20, device="cuda")
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    prepared = winograd.prepare(torch.export.export(network, (x,)).module())
    with torch.inference_mode():
        torch.testing.assert_close(prepared(x), network(x), rtol=1e-5, atol=1e-5)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_on_a_gpu_computes_in_float32(dtype: torch.dtype) -> None:
    given = LAYER.operands()
    x, weights = given.x.cuda(), given.weights.cuda()
    with torch.autocast("cuda", dtype):
        output = winograd.conv2d(x.to(dtype), weights, LAYER.positions, LAYER.m, LAYER.padding)
    assert output.dtype == torch.float32
    torch.testing.assert_close(
        output, winograd.conv2d(x.to(dtype).float(), weights, LAYER.positions, LAYER.m, LAYER.padding), rtol=0, atol=0
    )


@needs_gpu
def test_numbers_of_another_device_are_refused() -> None:
    given = LAYER.operands()
    with pytest.raises(ValueError, match="move all of them to one device"):
        winograd.conv2d(given.x.cuda(), given.weights, LAYER.positions, LAYER.m, LAYER.padding)


@needs_gpu
def test_every_stream_waits_for_its_own_work_only() -> None:
    given = LAYER.operands()
    x, weights = given.x.cuda(), given.weights.cuda()
    expected = winograd.conv2d(x, weights, LAYER.positions, LAYER.m, LAYER.padding)
    streams = [torch.cuda.Stream() for _ in range(4)]
    outputs = []
    torch.cuda.synchronize()
    for stream in streams * 8:
        with torch.cuda.stream(stream):
            outputs.append(winograd.conv2d(x, weights, LAYER.positions, LAYER.m, LAYER.padding))
    torch.cuda.synchronize()
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
