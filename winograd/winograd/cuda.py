"""Winograd convolutions of CUDA tensors: csrc/cuda through ctypes, and torch's matrix multiplication where that is better.

    for each chunk of tiles:    V = B^T d B        M = V U^T        y = activation(A^T M A + bias + residual)

One batch of matrix multiplications serves all kept positions, groups and groups of filters; winograd_cuda.h has the
layouts. Weights lie in memory as they are, [P, K, C/g], so packing copies them only.

Who multiplies float32 follows torch's setting for *matrix multiplications*, torch.backends.cuda.matmul.fp32_precision:

    "none"   as torch leaves it: csrc/cuda/multiply.hpp, on tensor cores, with the error of float32 units
    "ieee"   torch.bmm on float32 units; so do .allow_tf32 = False and torch.set_float32_matmul_precision("highest")
    "tf32"   torch.bmm with TF32, three digits

The setting for convolutions, torch.backends.cudnn.allow_tf32, which is on by default, changes nothing here: Winograd multiplies
rounding errors, and TF32 in F(6, 3) leaves two digits. Halves are multiplied by torch.bmm.
"""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from winograd import arguments
from winograd.matrices import FILTER_SIZE
from winograd.operations import count_executed
from winograd.reference import memory_format_of

# V and M of a chunk, in bytes, at most. Chunks that stay in the L2 cache are slower: docs/winograd.md.
WORKSPACE_BYTES = 512 << 20

REMEMBERED = 1024  # convolutions, by their sizes: to describe one again takes as long as to run a small one

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # enum winograd_cuda_type
ACTIVATIONS = {"none": 0, "relu": 1}  # enum winograd_activation


class Problem(ctypes.Structure):
    """winograd_problem."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width", "filters", "groups")),
        *((name, ctypes.c_int32) for name in ("pad_height", "pad_width", "m", "kernel_groups", "kept")),
        ("positions", ctypes.POINTER(ctypes.c_int32)),
    )


class Plan(ctypes.Structure):
    """winograd_cuda_plan."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("tiles", "chunk_tiles", "blocks"))


class Chunk(ctypes.Structure):
    """winograd_cuda_chunk."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("first_tile", "tiles"))


class Epilogue(ctypes.Structure):
    """winograd_cuda_epilogue."""

    _fields_ = (("bias", ctypes.c_void_p), ("residual", ctypes.c_void_p), ("activation", ctypes.c_int32))


class Done(ctypes.Structure):
    """winograd_cuda_done."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("gemms", "multiplications"))


@dataclass(frozen=True)
class Stages:
    """The library's functions. They return at once: kernels run in the order of the stream that they are given."""

    library: ctypes.CDLL

    @classmethod
    def load(cls, path: Path) -> "Stages":
        """Load libwinograd_cuda.so, which needs neither a GPU nor a driver until a kernel is to run."""
        library = ctypes.CDLL(str(path))
        library.winograd_cuda_last_error.restype = ctypes.c_char_p
        problem, chunk, pointer, number = (
            ctypes.POINTER(Problem),
            ctypes.POINTER(Chunk),
            ctypes.c_void_p,
            ctypes.c_int32,
        )
        library.winograd_cuda_make_plan.argtypes = (problem, number, ctypes.c_int64, ctypes.POINTER(Plan))
        library.winograd_cuda_transform_filters.argtypes = (problem, number, *[pointer] * 3)
        library.winograd_cuda_transform_input.argtypes = (problem, chunk, number, number, *[pointer] * 3)
        epilogue = ctypes.POINTER(Epilogue)
        library.winograd_cuda_transform_output.argtypes = (
            problem,
            chunk,
            number,
            number,
            pointer,
            epilogue,
            *[pointer] * 2,
        )
        library.winograd_cuda_multiply.argtypes = (problem, chunk, number, number, *[pointer] * 4)
        library.winograd_cuda_workspace_floats.argtypes = (problem, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64))
        library.winograd_cuda_convolve.argtypes = (
            problem,
            ctypes.c_int64,
            number,
            *[pointer] * 2,
            epilogue,
            *[pointer] * 3,
            ctypes.POINTER(Done),
        )
        return cls(library)

    def call(self, name: str, *given: object) -> None:
        """Call winograd_cuda_<name>; ValueError with the library's sentence where it refuses."""
        if getattr(self.library, f"winograd_cuda_{name}")(*given) != 0:
            raise ValueError(self.library.winograd_cuda_last_error().decode())


@dataclass(frozen=True)
class Prepared:
    """A convolution as the library takes it, and how it is cut up."""

    problem: Problem
    matrices: int
    tiles: int
    chunk_tiles: int
    workspace_floats: int  # where the library multiplies


def prepare(stages: Stages, problem: Problem, dtype: torch.dtype, chunk_tiles: int = 0) -> Prepared:
    """Return what `convolve` needs to know of a problem; ValueError where the library refuses it.

    chunk_tiles: how many tiles go through all stages together; 0 takes as many as fit WORKSPACE_BYTES.
    """
    plan, floats = Plan(), ctypes.c_int64()
    stages.call("make_plan", problem, TYPES[dtype], WORKSPACE_BYTES, plan)
    chunk_tiles = min(chunk_tiles or plan.chunk_tiles, plan.tiles)
    stages.call("workspace_floats", problem, chunk_tiles, floats)
    return Prepared(problem, problem.kept * plan.blocks, plan.tiles, chunk_tiles, floats.value)


def convolve(
    stages: Stages,
    stream: int,
    x: Tensor,
    weights: Tensor,
    prepared: Prepared,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """Return the convolution of x with weights of P * K * C/g numbers, made on the stream with that handle."""
    problem, chunk_tiles, matrices = prepared.problem, prepared.chunk_tiles, prepared.matrices
    memory_format = memory_format_of(x)
    x, weights = x.contiguous(memory_format=memory_format), weights.contiguous()
    bias = bias if bias is None else bias.contiguous()
    residual = residual if residual is None else residual.contiguous(memory_format=memory_format)
    shape = arguments.output_shape(x, problem.filters, (problem.pad_height, problem.pad_width))
    output = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    if prepared.tiles == 0:
        return output
    channels_last = int(memory_format == torch.channels_last)
    epilogue = Epilogue(_pointer(bias), _pointer(residual), ACTIVATIONS[activation])
    channels = problem.channels // problem.groups
    if _library_multiplies(x.dtype, channels, weights):
        done, workspace = Done(), x.new_empty(prepared.workspace_floats)
        operands = x.data_ptr(), weights.data_ptr(), epilogue, workspace.data_ptr(), output.data_ptr()
        stages.call("convolve", problem, chunk_tiles, channels_last, *operands, stream, done)
        count_executed(gemms=done.gemms, multiplications=done.multiplications)
        return output

    u = weights.view(matrices, -1, channels)
    buffer = x.new_empty(matrices * channels * _length(chunk_tiles, channels_last))
    for first in range(0, prepared.tiles, chunk_tiles):
        chunk = Chunk(first, min(chunk_tiles, prepared.tiles - first))
        common = (problem, chunk, TYPES[x.dtype], channels_last)
        length = _length(chunk.tiles, channels_last)
        v = buffer[: matrices * channels * length]
        stages.call("transform_input", *common, x.data_ptr(), v.data_ptr(), stream)
        if channels_last:
            products = torch.bmm(v.view(matrices, length, channels), u.mT)  # [P*B, tiles, K/B]
        else:
            products = torch.bmm(u, v.view(matrices, channels, length))  # [P*B, K/B, tiles]
        count_executed(gemms=matrices, multiplications=chunk.tiles * weights.numel())
        stages.call("transform_output", *common, products.data_ptr(), epilogue, output.data_ptr(), stream)
    return output


def _library_multiplies(dtype: torch.dtype, channels: int, weights: Tensor) -> bool:
    """Whether csrc/cuda/multiply.hpp takes these operands, is faster here, and torch's settings leave the choice."""
    can = dtype == torch.float32 and channels % 4 == 0 and weights.data_ptr() % 16 == 0
    return can and torch.backends.cuda.matmul.fp32_precision == "none" and _has_fast_tensor_cores(weights.device)


@cache
def _has_fast_tensor_cores(device: torch.device) -> bool:
    """Whether TF32 is at least eight times as fast as float32: by the data sheets on sm_80, 90 and 100, not on 86 and 89."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[1] == 0


def _length(tiles: int, channels_last: int) -> int:
    """How many tiles a row of V and M has room for: see winograd_cuda.h."""
    return tiles if channels_last else -(-tiles // 4) * 4


def transform_filters(stages: Stages, stream: int, filters: Tensor, problem: Problem) -> Tensor:
    """Return the weights [P, K, C/g] of K * C/g * 9 filter taps, made on that stream."""
    filters = filters.contiguous()
    weights = filters.new_empty(problem.kept, problem.filters, problem.channels // problem.groups)
    stages.call("transform_filters", problem, TYPES[filters.dtype], filters.data_ptr(), weights.data_ptr(), stream)
    return weights


def problem_of(
    shape: Sequence[int],
    filters: int,
    positions: Sequence[int],
    kernel_groups: int,
    m: int,
    padding: Sequence[int],
    groups: int,
) -> Problem:
    """Return the description that the library takes of a convolution of inputs [N, C, H, W]."""
    kept = len(positions) // kernel_groups
    return Problem(
        *shape, filters, groups, *padding, m, kernel_groups, kept, (ctypes.c_int32 * len(positions))(*positions)
    )


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


# ---- The operators --------------------------------------------------------------------------------------------------------


def operators(stages: Stages) -> dict[str, Callable[..., Tensor]]:
    """Return the convolutions of torch.ops.winograd for CUDA tensors, by name; winograd.library registers them.

    The operators that pack need none of their own. What is not done here, float64, goes to plain torch.
    """

    @lru_cache(maxsize=REMEMBERED)
    def prepared(dtype: torch.dtype, chunk_tiles: int, *given: Any) -> Prepared:
        return prepare(stages, problem_of(*given), dtype, chunk_tiles)

    def conv2d(
        input: Tensor,
        weights: Tensor,
        positions: Sequence[int],
        m: int,
        padding: Sequence[int],
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str = "none",
        groups: int = 1,
    ) -> Tensor:
        given = (positions, m, padding, bias, residual, activation, groups)
        if input.dtype not in TYPES:
            return _reference("conv2d", input, weights, *given)
        arguments.check_conv2d(input, weights, *given)
        kernel_groups = len(positions) // weights.shape[0]
        sizes = input.shape, weights.shape[1], tuple(positions), kernel_groups, m, tuple(padding), groups
        with _on_device_of(input):
            known = prepared(input.dtype, 0, *sizes)
            return convolve(stages, _stream(), input, weights, known, bias, residual, activation)

    def conv2d_packed(
        input: Tensor,
        packed: Tensor,
        positions: Tensor,
        filters: int,
        m: int,
        pad_height: int,
        pad_width: int,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str = "none",
        groups: int = 1,
        block_tiles: int = 0,
        block_filters: int = 0,
        block_shared: int = -1,
        *,
        of_filters: bool = False,
    ) -> Tensor:
        padding, epilogue = (pad_height, pad_width), (bias, residual, activation, groups)
        blocking = block_tiles, block_filters, block_shared
        if input.dtype not in TYPES:
            name = "conv2d_packed_filters" if of_filters else "conv2d_packed"
            return _reference(name, input, packed, positions, filters, m, *padding, *epilogue, *blocking)
        arguments.check_conv2d_packed(input, packed, positions, filters, m, padding, *epilogue, blocking)
        sizes = input.shape, filters, tuple(positions.flatten().tolist()), positions.shape[0], m, padding, groups
        with _on_device_of(input):
            known = prepared(input.dtype, block_tiles, *sizes)
            expected = filters * (input.shape[1] // groups) * (FILTER_SIZE**2 if of_filters else known.problem.kept)
            if packed.numel() != expected:
                raise ValueError(
                    f"packed holds {packed.numel()} numbers, not {expected}; pack again for this convolution."
                )
            weights = transform_filters(stages, _stream(), packed, known.problem) if of_filters else packed
            return convolve(stages, _stream(), input, weights, known, bias, residual, activation)

    return {
        "conv2d": conv2d,
        "conv2d_packed": conv2d_packed,
        "conv2d_packed_filters": partial(conv2d_packed, of_filters=True),
    }


def _on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Switches to the tensor's device, where that is another one: switching takes longer than asking."""
    return nullcontext() if x.device.index == torch.cuda.current_device() else torch.cuda.device(x.device)


def _stream() -> int:
    handle: int = torch.cuda.current_stream().cuda_stream
    return handle


def _reference(name: str, *given: object) -> Tensor:
    output: Tensor = getattr(torch.ops.winograd, f"reference_{name}")(*given)
    return output
