"""Winograd convolutions on a CUDA device: how far from float64, and how fast beside cuDNN.

    python -m benchmarks.winograd_cuda exact                     every variant, shape and type against float64
    python -m benchmarks.winograd_cuda fast --batch 1 32 256     times beside cuDNN

Times are taken by CUDA events around as many runs as last 5 ms, each candidate in turn, in rounds that begin elsewhere each
time; a figure is the median of the rounds. Each candidate runs as a program would call it ("eager") and as a captured CUDA
graph, which takes the host out of it. cuDNN searches its algorithms (benchmark mode) for both orders of memory and the
faster one counts. float32 is measured twice: exactly, and with TF32 allowed to both sides. Pruned variants (p25, p50: that
many per cent of the positions, at random, seeded) have no counterpart in cuDNN; they stand beside the dense convolution.
"""

import argparse
import datetime
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

import winograd
from benchmarks.material import table
from winograd import reference

LAYERS = {  # channels = filters, height = width
    "64@56": (64, 56),
    "128@28": (128, 28),
    "128@112": (128, 112),
    "256@14": (256, 14),
    "256@56": (256, 56),
    "512@7": (512, 7),
    "512@14": (512, 14),
    "512@28": (512, 28),
}
VARIANTS = (2, 4, 6, 7)
PRUNED = {"": 0.0, "p25": 0.25, "p50": 0.5}
FORMATS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
ROUND_MS = 5.0


@dataclass(frozen=True)
class Arithmetic:
    """A type of elements, and whether both sides may use TF32."""

    dtype: torch.dtype
    tf32: bool = False

    @contextmanager
    def allowed(self) -> Iterator[None]:
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


ARITHMETICS = {
    "float32": Arithmetic(torch.float32),
    "tf32": Arithmetic(torch.float32, tf32=True),
    "float16": Arithmetic(torch.float16),
    "bfloat16": Arithmetic(torch.bfloat16),
}


@dataclass(frozen=True)
class Layer:
    """Operands of one layer on the device, in float64; `convolve` rounds them first."""

    x: Tensor
    filters: Tensor
    groups: int = 1
    padding: tuple[int, int] = (1, 1)

    @classmethod
    def random(
        cls, batch: int, channels: int, size: int, *, filters: int = 0, groups: int = 1, pad: int = 1
    ) -> "Layer":
        """Activations after a ReLU, and weights that keep their scale."""
        generator = torch.Generator(device="cuda").manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device="cuda").double()

        scale: float = (2 / (9 * channels // groups)) ** 0.5
        w = random(filters or channels, channels // groups, 3, 3) * scale
        return cls(random(batch, channels, size, size).relu(), w, groups, (pad, pad))

    def direct(self, dtype: torch.dtype, memory_format: torch.memory_format) -> Callable[[], Tensor]:
        """cuDNN's convolution (torch's own, for float64)."""
        x = self.x.to(dtype).contiguous(memory_format=memory_format)
        w = self.filters.to(dtype).contiguous(memory_format=memory_format)
        return lambda: functional.conv2d(x, w, padding=self.padding, groups=self.groups)

    def winograd(
        self, dtype: torch.dtype, memory_format: torch.memory_format, m: int, positions: Sequence[int]
    ) -> Callable[[], Tensor]:
        """Ours. Packed weights are plain ones, flattened; `winograd.pack_weights` would refuse half precision."""
        x = self.x.to(dtype).contiguous(memory_format=memory_format)
        filters = self.filters.shape[0]
        packed = reference.transform_filters(self.filters, positions, m).to(dtype).flatten()
        kept = torch.tensor([list(positions)], dtype=torch.int32)
        return lambda: torch.ops.winograd.conv2d_packed(x, packed, kept, filters, m, *self.padding, groups=self.groups)

    def exact(self, m: int, positions: Sequence[int]) -> Tensor:
        """The float64 result with these positions, by plain torch."""
        weights = reference.transform_filters(self.filters, positions, m)
        return reference.conv2d(self.x, weights, positions, m, self.padding, groups=self.groups)


def positions_of(m: int, pruned: float) -> list[int]:
    """What remains of the positions of F(m x m, 3x3)."""
    count = (m + 2) ** 2
    order = torch.randperm(count, generator=torch.Generator().manual_seed(m)).tolist()
    return sorted(order[: count - round(count * pruned)])


# ---- Exactness --------------------------------------------------------------------------------------------------------------


def print_exactness() -> None:
    """One row a variant: the largest error, as a part of the largest output, over all shapes and both orders of memory."""
    shapes = [
        Layer.random(2, 64, 14),
        Layer.random(1, 512, 7),
        Layer.random(3, 17, 9, filters=5),
        Layer.random(2, 32, 11, groups=4),
        Layer.random(1, 32, 8, pad=0),
        Layer.random(1, 3, 20, filters=64, pad=2),
    ]
    rows = []
    for m, (pruned, part) in itertools.product(VARIANTS, PRUNED.items()):
        positions = positions_of(m, part)
        row = [f"F({m}, 3) {pruned}"]
        for arithmetic in ARITHMETICS.values():
            with arithmetic.allowed():
                row.append(f"{max(_error(layer, arithmetic.dtype, m, positions) for layer in shapes):.1e}")
        rows.append(row)
    row = ["cuDNN"]
    for arithmetic in ARITHMETICS.values():
        with arithmetic.allowed():
            row.append(f"{max(_cudnn_error(layer, arithmetic.dtype) for layer in shapes):.1e}")
    print(table(("max error / max output", *ARITHMETICS), [*rows, row]))


def _error(layer: Layer, dtype: torch.dtype, m: int, positions: Sequence[int]) -> float:
    exact = layer.exact(m, positions)
    return max(_relative(layer.winograd(dtype, memory, m, positions)(), exact) for memory in FORMATS.values())


def _cudnn_error(layer: Layer, dtype: torch.dtype) -> float:
    exact = layer.direct(torch.float64, torch.contiguous_format)()
    return max(_relative(layer.direct(dtype, memory)(), exact) for memory in FORMATS.values())


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


# ---- Speed ------------------------------------------------------------------------------------------------------------------


def print_times(arithmetic: Arithmetic, name: str, layers: Sequence[str], batches: Sequence[int], rounds: int) -> None:
    """One row a layer and batch: milliseconds of the dense variants, and all ratios to cuDNN."""
    variants = [(m, pruned) for m in VARIANTS for pruned in PRUNED]
    head = ("layer", "cuDNN ms (TFLOP/s)", *(f"F{m} {pruned}".strip() for m, pruned in variants))
    for captured in (False, True):
        rows = []
        for layer_name, batch in itertools.product(layers, batches):
            channels, size = LAYERS[layer_name]
            layer = Layer.random(batch, channels, size)
            candidates: dict[str, Callable[[], object]] = {}
            for memory_name, memory in FORMATS.items():
                candidates[f"cuDNN {memory_name}"] = layer.direct(arithmetic.dtype, memory)
                for m, pruned in variants:
                    run = layer.winograd(arithmetic.dtype, memory, m, positions_of(m, PRUNED[pruned]))
                    candidates[f"{m}{pruned} {memory_name}"] = run
            with arithmetic.allowed():
                found = times({name: _captured(run) if captured else run for name, run in candidates.items()}, rounds)
            best = min(found[f"cuDNN {memory_name}"] for memory_name in FORMATS)
            tera = 2 * 9 * batch * channels**2 * size**2 / best / 1e9
            ours = [min(found[f"{m}{pruned} {memory_name}"] for memory_name in FORMATS) for m, pruned in variants]
            rows.append(
                (f"{layer_name} x{batch}", f"{best:.3f} ({tera:.0f})", *(f"{ms:.3f} ({best / ms:.2f}×)" for ms in ours))
            )
        print(f"\n{name}, {'CUDA graph' if captured else 'eager'}:\n")
        print(table(head, rows), flush=True)


def times(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of one run of each: medians of rounds in which all take turns."""
    names = list(candidates)
    for run in candidates.values():  # cuDNN searches, cuBLAS allocates
        for _ in range(3):
            run()
    repeats = {name: max(1, round(ROUND_MS / _milliseconds(candidates[name], 3))) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn * 7 % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(_milliseconds(candidates[name], repeats[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def _milliseconds(run: Callable[[], object], repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return max(float(start.elapsed_time(end)) / repeats, 1e-4)


def _captured(run: Callable[[], object]) -> Callable[[], object]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("exact", "fast"))
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--arithmetic", nargs="+", choices=ARITHMETICS, default=list(ARITHMETICS))
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device here (or this torch was built without CUDA); run this on a machine with one")
    if not winograd.info().cuda:
        sys.exit(f"winograd has no CUDA library here: {winograd.info()}; install it where nvcc is")
    torch.backends.cudnn.benchmark = True
    today = datetime.datetime.now(datetime.UTC).date()
    device = torch.cuda.get_device_properties(0)
    cudnn: int = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # torch's
    print(f"{today}, {device.name} ({device.multi_processor_count} SMs), torch {torch.__version__}, CUDA {torch.version.cuda}, "
          f"cuDNN {cudnn}\n")  # fmt: skip
    with torch.inference_mode():
        if given.what == "exact":
            print_exactness()
        else:
            for name in given.arithmetic:
                print_times(ARITHMETICS[name], name, given.layers, given.batch, given.rounds)


if __name__ == "__main__":
    main()
