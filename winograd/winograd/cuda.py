"""Winograd convolutions of CUDA tensors: the stages of csrc/cuda through ctypes, and torch's matrix multiplication between.

    for each chunk of tiles:    V = B^T d B        M = V U^T (cuBLAS)        y = activation(A^T M A + bias + residual)

One batch of matrix multiplications serves all kept positions, groups and groups of filters; winograd_cuda.h has the
layouts. Weights lie in memory as they are, [P, K, C/g], so packing copies them only.

The multiplications are torch.bmm, so for float32 they follow torch's settings for *matrix multiplications*: full precision
unless torch.backends.cuda.matmul.allow_tf32 or .fp32_precision says "tf32". The setting for convolutions,
torch.backends.cudnn.allow_tf32, which is on by default, changes nothing here: Winograd multiplies rounding errors, and TF32
in F(6, 3) leaves two digits.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from winograd import arguments
from winograd.matrices import FILTER_SIZE
from winograd.operations import multiply_counted
from winograd.reference import memory_format_of

# V and M of a chunk, in bytes: they stay in the L2 cache (50 MB on an H100), with room for the weights. An estimate.
WORKSPACE_BYTES = 24 << 20

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
        return cls(library)

    def call(self, name: str, *given: object) -> None:
        """Call winograd_cuda_<name>; ValueError with the library's sentence where it refuses."""
        if getattr(self.library, f"winograd_cuda_{name}")(*given) != 0:
            raise ValueError(self.library.winograd_cuda_last_error().decode())


def convolve(
    stages: Stages,
    stream: int,
    x: Tensor,
    weights: Tensor,
    problem: Problem,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    *,
    chunk_tiles: int = 0,
) -> Tensor:
    """Return the convolution of x with weights of P * K * C/g numbers, made on the stream with that handle.

    chunk_tiles: how many tiles go through all stages together; 0 takes as many as fit WORKSPACE_BYTES.
    """
    memory_format = memory_format_of(x)
    x, weights = x.contiguous(memory_format=memory_format), weights.contiguous()
    bias = bias if bias is None else bias.contiguous()
    residual = residual if residual is None else residual.contiguous(memory_format=memory_format)
    shape = arguments.output_shape(x, problem.filters, (problem.pad_height, problem.pad_width))
    output = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)

    plan = Plan()
    stages.call("make_plan", problem, TYPES[x.dtype], WORKSPACE_BYTES, plan)
    chunk_tiles = chunk_tiles or plan.chunk_tiles
    channels_last = memory_format == torch.channels_last
    matrices, channels = problem.kept * plan.blocks, problem.channels // problem.groups
    u = weights.view(matrices, problem.filters // plan.blocks, channels)
    buffer = x.new_empty(matrices * channels * min(chunk_tiles, plan.tiles))
    epilogue = Epilogue(_pointer(bias), _pointer(residual), ACTIVATIONS[activation])
    for first in range(0, plan.tiles, max(1, chunk_tiles)):
        chunk = Chunk(first, min(chunk_tiles, plan.tiles - first))
        common = (problem, chunk, TYPES[x.dtype], int(channels_last))
        v = buffer[: matrices * channels * chunk.tiles]
        stages.call("transform_input", *common, x.data_ptr(), v.data_ptr(), stream)
        if channels_last:
            products = multiply_counted(v.view(matrices, chunk.tiles, channels), u.mT)  # [P*B, tiles, K/B]
        else:
            products = multiply_counted(u, v.view(matrices, channels, chunk.tiles))  # [P*B, K/B, tiles]
        stages.call("transform_output", *common, products.data_ptr(), epilogue, output.data_ptr(), stream)
    return output


def transform_filters(stages: Stages, stream: int, filters: Tensor, problem: Problem) -> Tensor:
    """Return the weights [P, K, C/g] of K * C/g * 9 filter taps, made on that stream."""
    stages.call(
        "make_plan", problem, TYPES[filters.dtype], WORKSPACE_BYTES, Plan()
    )  # refuses what is wrong with the sizes
    filters = filters.contiguous()
    weights = filters.new_empty(problem.kept, problem.filters, problem.channels // problem.groups)
    stages.call("transform_filters", problem, TYPES[filters.dtype], filters.data_ptr(), weights.data_ptr(), stream)
    return weights


def problem_of(
    x: Tensor, filters: int, positions: Sequence[int], kernel_groups: int, m: int, padding: Sequence[int], groups: int
) -> Problem:
    """Return the description of a convolution of x that the library takes."""
    kept = len(positions) // kernel_groups
    return Problem(
        *x.shape, filters, groups, *padding, m, kernel_groups, kept, (ctypes.c_int32 * len(positions))(*positions)
    )


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


# ---- The operators --------------------------------------------------------------------------------------------------------


def operators(stages: Stages) -> dict[str, Callable[..., Tensor]]:
    """Return the convolutions of torch.ops.winograd for CUDA tensors, by name; winograd.library registers them.

    The operators that pack need none of their own. What is not done here, float64, goes to plain torch.
    """

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
        problem = problem_of(input, weights.shape[1], positions, len(positions) // weights.shape[0], m, padding, groups)
        with torch.cuda.device(input.device):
            return convolve(stages, _stream(), input, weights, problem, bias, residual, activation)

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
        listed = positions.flatten().tolist()
        problem = problem_of(input, filters, listed, positions.shape[0], m, padding, groups)
        expected = filters * (input.shape[1] // groups) * (FILTER_SIZE**2 if of_filters else problem.kept)
        if packed.numel() != expected:
            raise ValueError(f"packed holds {packed.numel()} numbers, not {expected}; pack again for this convolution.")
        with torch.cuda.device(input.device):
            weights = transform_filters(stages, _stream(), packed, problem) if of_filters else packed
            return convolve(
                stages, _stream(), input, weights, problem, bias, residual, activation, chunk_tiles=block_tiles
            )

    return {
        "conv2d": conv2d,
        "conv2d_packed": conv2d_packed,
        "conv2d_packed_filters": partial(conv2d_packed, of_filters=True),
    }


def _stream() -> int:
    handle: int = torch.cuda.current_stream().cuda_stream
    return handle


def _reference(name: str, *given: object) -> Tensor:
    output: Tensor = getattr(torch.ops.winograd, f"reference_{name}")(*given)
    return output
