"""Winograd convolutions on a CUDA device: how far from float64, and how fast beside cuDNN.

    python -m benchmarks.winograd_cuda exact                            every variant, shape and type against float64
    python -m benchmarks.winograd_cuda fast --batch 1 32                times beside cuDNN
    python -m benchmarks.winograd_cuda networks --batch 1 32            whole networks, every 3x3 convolution of stride 1 replaced
    python -m benchmarks.winograd_cuda table GRAPHS EAGER               from what `fast` and `fast --eager --batch 1` printed of
                                                                        float32: winograd/selection_table_sm_90.py

Times are taken by CUDA events around as many runs as last 2 ms, each candidate in turn, in rounds that begin elsewhere each
time; a figure is the median of the rounds. Candidates are captured in CUDA graphs, which takes the host out of them (--eager: run
as a program would call them, one layer after the other). cuDNN searches its algorithms (benchmark mode) for both orders of memory
and the faster one counts; so does ours. Our float32 stands beside cuDNN's exact one and beside its TF32, which torch allows
unless told otherwise. Pruned variants (p25, p50: that many per cent of the positions, at random, seeded) have no counterpart in
cuDNN; they stand beside the dense convolution.
"""

import argparse
import copy
import datetime
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from winograd.selection import Coefficients, Measured, Row, Shape, Table

import winograd
from benchmarks.tables import table
from winograd import reference

LAYERS = {  # channels = filters, height = width
    "16@32": (16, 32),
    "32@16": (32, 16),
    "64@8": (64, 8),
    "64@56": (64, 56),
    "64@224": (64, 224),
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
ROUND_MS = 2.0
MOST_OPERATIONS = 3e12  # of a layer


@dataclass(frozen=True)
class Arithmetic:
    """A type of elements, and torch's settings: whether cuDNN may use TF32, and who multiplies our float32."""

    dtype: torch.dtype
    cudnn_tf32: bool = False
    ours: str = "none"  # see winograd/cuda.py

    @contextmanager
    def allowed(self) -> Iterator[None]:
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.fp32_precision, cudnn.allow_tf32
        matmul.fp32_precision, cudnn.allow_tf32 = self.ours, self.cudnn_tf32
        try:
            yield
        finally:
            matmul.fp32_precision, cudnn.allow_tf32 = before


ARITHMETICS = {
    "float32": Arithmetic(torch.float32),
    "ieee": Arithmetic(torch.float32, ours="ieee"),
    "default": Arithmetic(torch.float32, cudnn_tf32=True),
    "tf32": Arithmetic(torch.float32, cudnn_tf32=True, ours="tf32"),
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

    def stored(self, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
        """The input, as it lies in memory."""
        return self.x.to(dtype).contiguous(memory_format=memory_format)

    def direct(self, x: Tensor, memory_format: torch.memory_format) -> Callable[[], Tensor]:
        """cuDNN's convolution of a stored input (torch's own, for float64)."""
        w = self.filters.to(x.dtype).contiguous(memory_format=memory_format)
        return lambda: functional.conv2d(x, w, padding=self.padding, groups=self.groups)

    def winograd(self, x: Tensor, m: int, positions: Sequence[int]) -> Callable[[], Tensor]:
        """Ours. Packed weights are plain ones, flattened; `winograd.pack_weights` would refuse half precision."""
        filters = self.filters.shape[0]
        packed = reference.transform_filters(self.filters, positions, m).to(x.dtype).flatten()
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
    stored = (layer.stored(dtype, memory) for memory in FORMATS.values())
    return max(_relative(layer.winograd(x, m, positions)(), exact) for x in stored)


def _cudnn_error(layer: Layer, dtype: torch.dtype) -> float:
    exact = layer.direct(layer.x, torch.contiguous_format)()
    stored = ((layer.stored(dtype, memory), memory) for memory in FORMATS.values())
    return max(_relative(layer.direct(x, memory)(), exact) for x, memory in stored)


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


# ---- Speed ------------------------------------------------------------------------------------------------------------------


def measure(
    name: str, layers: Sequence[str], batches: Sequence[int], rounds: int, *, eager: bool
) -> Iterator[dict[str, object]]:
    """For each layer and batch, the milliseconds of each candidate, by its name and order of memory."""
    arithmetic = ARITHMETICS[name]
    for layer_name, batch in itertools.product(layers, batches):
        channels, size = LAYERS[layer_name]
        operations = 2 * 9 * batch * channels**2 * size**2
        if operations > MOST_OPERATIONS:
            continue
        layer = Layer.random(batch, channels, size)
        candidates: dict[str, Callable[[], object]] = {}
        for memory_name, memory in FORMATS.items():
            x = layer.stored(arithmetic.dtype, memory)
            candidates[f"cuDNN {memory_name}"] = layer.direct(x, memory)
            for m, pruned in VARIANTS_AND_PARTS:
                run = layer.winograd(x, m, positions_of(m, PRUNED[pruned]))
                candidates[f"F{m}{pruned} {memory_name}"] = run
        torch.cuda.empty_cache()
        pool = torch.cuda.graph_pool_handle()  # all graphs take turns in the same memory
        with arithmetic.allowed():
            found = times({one: run if eager else _captured(run, pool) for one, run in candidates.items()}, rounds)
        yield {
            "arithmetic": name,
            "eager": eager,
            "layer": layer_name,
            "batch": batch,
            "operations": operations,
            "ms": found,
        }


VARIANTS_AND_PARTS = list(itertools.product(VARIANTS, PRUNED))


def print_times(rows: Sequence[dict[str, Any]]) -> None:
    """One row a layer and batch: milliseconds of cuDNN, then those of every variant and how many times as fast it is."""
    names = [f"F{m}{pruned}" for m, pruned in VARIANTS_AND_PARTS]
    cells = []
    for row in rows:
        best = min(row["ms"][f"cuDNN {memory}"] for memory in FORMATS)
        ours = [min(row["ms"][f"{name} {memory}"] for memory in FORMATS) for name in names]
        head = f"{row['layer']} x{row['batch']}", f"{best:.3f} ({row['operations'] / best / 1e9:.0f})"
        cells.append((*head, *(f"{ms:.3f} ({best / ms:.2f}x)" for ms in ours)))
    print(f"\n{rows[0]['arithmetic']}, {'eager' if rows[0]['eager'] else 'CUDA graph'}:\n")
    print(table(("layer", "cuDNN ms (TFLOP/s)", *names), cells), flush=True)


def write_table(graphs: str, eager: str) -> None:
    """Writes what `select` is to know of a device from two printed tables.

    A layer takes as long as its graph, or as long as a program needs to call it, where that is longer: so Winograd is not
    chosen for layers that are over before the next call is made. The time of a call is the least that was seen of small layers.
    """
    from benchmarks.winograd import tuning  # here, because only this needs it

    date, device = graphs.split(",")[:2]
    captured, called = _printed(graphs), _printed(eager)
    call = {name: min(ms[name] for ms in called.values()) for name in TABLE_COLUMNS}
    rows = []
    for (layer, batch), ms in captured.items():
        channels, size = LAYERS[layer]
        found = {name: Measured(round(max(ms[name], call[name]), 4)) for name in TABLE_COLUMNS}
        rows.append(Row(1, Shape(channels, channels, size, size, batch), found))
    known = Table("sm_90", device.strip(), date, tuning.fitted(rows, GUESSED), tuple(rows), only_near=True)
    path = tuning.TABLE.with_name("selection_table_sm_90.py")
    path.write_text(tuning.source("SM_90", known, "benchmarks.winograd_cuda table"))


# Nanoseconds on an H100: 30 to 40 Tera multiply-adds a second, 3 TB/s, of which a convolution moves each number a few times.
GUESSED = Coefficients(2e4, 6e-4, 5e-4, 1e-3, 3e-4, 2e-3)
TABLE_COLUMNS = {"direct": 1, **{f"m{m}": 2 + 3 * i for i, m in enumerate(VARIANTS)}}  # of a printed row


def _printed(text: str) -> dict[tuple[str, int], dict[str, float]]:
    """Milliseconds by layer and batch, and by the names of selection.CANDIDATES, of the first table in the text."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        layer, _, batch = cells[0].partition(" x")
        if layer in LAYERS and (layer, int(batch)) not in found:
            found[layer, int(batch)] = {name: float(cells[at].split()[0]) for name, at in TABLE_COLUMNS.items()}
    return found


# ---- Networks -------------------------------------------------------------------------------------------------------------------


def print_networks(batches: Sequence[int], rounds: int) -> None:
    """Networks of benchmarks/winograd/networks.py: cuDNN's in both orders of memory, exact and in TF32, and ours.

    All are captured; float32 is also called from Python, as a program would: cuDNN's layer by layer, ours as `prepare` gives it.
    """
    from benchmarks.winograd import networks  # here, because it needs ONNX

    builders = {
        "resnet20": (networks.resnet20, 32),
        "resnet18": (networks.resnet18, 224),
        "resnet50": (networks.resnet50, 224),
    }
    rows = []
    for (name, (build, size)), batch in itertools.product(builders.items(), batches):
        torch.manual_seed(0)
        model = build().eval().cuda()
        x = torch.randn(batch, 3, size, size, device="cuda")
        exact = copy.deepcopy(model).double()(x.double())
        candidates, errors = {}, {}
        pool = torch.cuda.graph_pool_handle()
        for arithmetic, (kind, memory) in itertools.product(("float32", "default"), FORMATS.items()):
            given = x.contiguous(memory_format=memory)
            direct = copy.deepcopy(model).to(memory_format=memory)  # type: ignore[call-overload]
            with ARITHMETICS[arithmetic].allowed():
                candidates[f"{arithmetic} {kind}"] = _captured(partial(direct, given), pool)
                errors[arithmetic] = _relative(direct(given), exact)
            if arithmetic == "float32":
                candidates[f"called float32 {kind}"] = partial(_called, direct, given)
        for m, (kind, memory) in itertools.product((2, 4), FORMATS.items()):
            given = x.contiguous(memory_format=memory)
            replaced = copy.deepcopy(model).to(memory_format=memory)  # type: ignore[call-overload]
            winograd.replace_convolutions(replaced, m=m)
            prepared = winograd.prepare(torch.export.export(replaced, (given,)).module())
            with ARITHMETICS["float32"].allowed():
                candidates[f"F{m} {kind}"] = _captured(partial(prepared, given), pool)
                errors[f"F{m}"] = _relative(prepared(given), exact)
            candidates[f"called F{m} {kind}"] = partial(_called, prepared, given)
        found = times(candidates, rounds)
        best = {one: min(found[f"{one} {kind}"] for kind in FORMATS) for one in ("float32", "default", "F2", "F4")}
        called = {one: min(found[f"called {one} {kind}"] for kind in FORMATS) for one in ("float32", "F2", "F4")}
        ours, ours_called = min(best["F2"], best["F4"]), min(called["F2"], called["F4"])
        rows.append(
            (f"{name} x{batch}", *(f"{ms:.3f} ({errors[one]:.0e})" for one, ms in best.items()),
             f"{best['float32'] / ours:.2f}", f"{best['default'] / ours:.2f}",
             f"{called['float32']:.3f}", f"{ours_called:.3f}", f"{called['float32'] / ours_called:.2f}")
        )  # fmt: skip
    head = "ms (error)", "cuDNN float32", "cuDNN TF32", "F2", "F4", "ours to float32", "ours to TF32"
    print(table((*head, "cuDNN float32, called", "ours, called", "ours to it"), rows))


def _called(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with ARITHMETICS["float32"].allowed():
        return network(x)


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


def _captured(run: Callable[[], object], pool: Any) -> Callable[[], object]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        run()

    def replay() -> Callable[[], object]:
        graph.replay()
        return run  # which keeps what the graph reads: it has addresses only

    return replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("exact", "fast", "networks", "table"))
    parser.add_argument("printed", nargs="*", type=Path, help="for `table`")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--arithmetic", nargs="+", choices=ARITHMETICS, default=list(ARITHMETICS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--eager", action="store_true")
    given = parser.parse_args()
    if given.what == "table":
        graphs, eager = (path.read_text() for path in given.printed)
        write_table(graphs, eager)
        return
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
            return
        if given.what == "networks":
            print_networks(given.batch, given.rounds)
            return
        for name in given.arithmetic:
            print_times(list(measure(name, given.layers, given.batch, given.rounds, eager=given.eager)))


if __name__ == "__main__":
    main()
