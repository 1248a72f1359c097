"""How fast is the C source of an integer network, against plain loops of floating-point numbers in C?

ResNet-20's shapes (3x32x32 images) with random weights. Two forms of the same float network: `plain`, the loops as one writes them
down (sum over c, r, s for each output), and `rows`, with the loops ordered so that compilers can vectorise along rows of the
image. All programs are compiled alike and run by turns; times are processor time of one image, one thread.

    python -m benchmarks.c_source --rounds 15
"""

import argparse
import statistics
import subprocess
import tempfile
import zipfile
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.tables import table
from workers.fixed_point.coding import Coding
from workers.fixed_point.compile_c import find_compiler
from workers.fixed_point.network import Addition, AveragePool, Convolution, IntegerNetwork, Operation, Shape, Value
from workers.fixed_point.write_c import CSource, write_c

FLAGS = (("-O2",), ("-O3",), ("-O3", "-march=native"))
STAGES = ((16, 32), (32, 16), (64, 8))  # channels, height and width
BLOCKS = 3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--images", type=int, default=5, help="of each program in each round")
    given = arguments.parse_args()
    compiler = find_compiler()
    assert compiler is not None, "no C compiler is on the PATH"
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    print(version.splitlines()[0])
    with tempfile.TemporaryDirectory(prefix="winnow-") as name:
        folder = Path(name)
        sources = {f"integers, {bits}-bit weights": _integer_sources(folder, bits) for bits in (8, 4, 16)}
        sources |= {f"float, {form}": _float_source(folder, form) for form in ("plain", "rows")}
        for flags in FLAGS:
            programs = {}
            for number, (what, files) in enumerate(sources.items()):
                programs[what] = folder / f"program{number}"
                subprocess.run([compiler, "-std=c99", *flags, "-o", programs[what], *files], check=True)
            _report(programs, flags, given.rounds, given.images)


def _report(programs: dict[str, Path], flags: tuple[str, ...], rounds: int, images: int) -> None:
    times: dict[str, list[float]] = {what: [] for what in programs}
    for _ in range(rounds):
        for what, program in programs.items():
            output = subprocess.run([program, str(images)], capture_output=True, text=True, check=True).stdout
            times[what].append(float(output))
    rows = []
    for what, milliseconds in times.items():
        ratios = []
        for form in ("plain", "rows"):
            by_round = sorted(a / b for a, b in zip(times[f"float, {form}"], milliseconds, strict=True))
            quartiles = statistics.quantiles(by_round, n=4)
            ratios.append(f"{quartiles[1]:.2f} [{quartiles[0]:.2f}, {quartiles[2]:.2f}]")
        rows.append((what, f"{statistics.median(milliseconds):.2f}", *ratios))
    print(f"\n{' '.join(flags)}\n")
    print(
        table(("", "ms an image, median", "float plain's time over it", "float rows' time over it"), rows), flush=True
    )


# ---- Integers -------------------------------------------------------------------------------------------------------

TIMED_INTEGERS = """\
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "resnet20.h"
#include "expected.h"
int main(int argc, char **argv)
{
    int32_t logits[RESNET20_OUTPUT_SIZE];
    int images = argc > 1 ? atoi(argv[1]) : 1;
    resnet20_run(example_input, logits);
    clock_t begin = clock();
    for (int i = 0; i < images; i++) {
        resnet20_run(example_input, logits);
    }
    printf("%f\\n", (double)(clock() - begin) * 1e3 / CLOCKS_PER_SEC / images);
    return logits[0] != example_logits[0];
}
"""


def _integer_sources(folder: Path, weight_bits: int) -> list[Path]:
    written, files = timed_sources(resnet20(weight_bits), folder / f"integers{weight_bits}")
    print(f"{weight_bits}-bit weights: {written.flash_bytes} bytes of constants, {written.ram_bytes} of RAM")
    return files


def timed_sources(network: IntegerNetwork, place: Path) -> tuple[CSource, list[Path]]:
    """The C source of a network in a new folder, and the files of a program that prints milliseconds of an image."""
    place.mkdir()
    written = write_c(network, place / "resnet20.zip", name="resnet20", example=None)
    with zipfile.ZipFile(written.path) as archive:
        archive.extractall(place)
    (place / "timed.c").write_text(TIMED_INTEGERS)
    return written, [place / "resnet20.c", place / "timed.c"]


def resnet20(weight_bits: int) -> IntegerNetwork:
    """An integer network of ResNet-20's shapes: 8-bit activations, random weights, shortcuts by 1x1 convolutions."""
    network = _Network(torch.Generator().manual_seed(0), weight_bits)
    x = network.convolve("image", "stem", 16, 3)
    for number, (channels, _) in enumerate(STAGES):
        for block in range(BLOCKS):
            name, stride = f"stage{number + 1}.{block}", 2 if number and not block else 1
            first = network.convolve(x, f"{name}.conv1", channels, 3, stride=stride)
            second = network.convolve(first, f"{name}.conv2", channels, 3)
            shortcut = network.convolve(x, f"{name}.shortcut", channels, 1, stride=stride) if stride > 1 else x
            x = network.add(second, shortcut, name)
    network.convolve(network.average(x), "fc", 10, 1, is_last=True)
    return IntegerNetwork("image", "fc", network.values, tuple(network.operations))


class _Network:
    """A network while it is made."""

    def __init__(self, generator: torch.Generator, weight_bits: int) -> None:
        self._generator = generator
        self._weight_bits = weight_bits
        self.values = {"image": Value("image", (3, 32, 32), Coding(8, True, (6,) * 3))}
        self.operations: list[Operation] = []

    def convolve(
        self, source: str, name: str, filters: int, size: int, *, stride: int = 1, is_last: bool = False
    ) -> str:
        channels, height, width = self.values[source].shape
        half = 1 << (self._weight_bits - 1)
        weight = torch.randint(-half, half, (filters, channels, size, size), generator=self._generator)
        shift = 0 if is_last else self._weight_bits + 2
        limits = (-(2**31) + 1, 2**31 - 1) if is_last else (0, 255)
        operation = Convolution(
            layer=name,
            source=source,
            output=name,
            weight=weight,
            weight_bits=self._weight_bits,
            shifts=torch.zeros(filters, channels, dtype=torch.int64),
            bias=torch.randint(-1000, 1000, (filters,), generator=self._generator),
            bias_bits=16,
            lengths=torch.full((filters,), 8),
            out_shift=shift + torch.randint(0, 1 if is_last else 3, (filters,), generator=self._generator),
            low=torch.full((filters,), limits[0]),
            high=torch.full((filters,), limits[1]),
            stride=(stride, stride),
            padding=(size // 2, size // 2),
        )
        coding = Coding(32, True, (8,) * filters) if is_last else Coding(8, False, (6,) * filters)
        return self._added(operation, (filters, height // stride, width // stride), coding)

    def add(self, a: str, b: str, name: str) -> str:
        channels = self.values[a].shape[0]
        zeros, ones = (0,) * channels, (1,) * channels
        operation = Addition((a, b), name, (zeros, zeros), ones, zeros, (255,) * channels)
        return self._added(operation, self.values[a].shape, Coding(8, False, (5,) * channels))

    def average(self, source: str) -> str:
        channels, height, width = self.values[source].shape
        window, numbers = (height, width), (0,) * channels
        operation = AveragePool(source, "pool", window, window, (0, 0), 1, (6,) * channels, numbers, (255,) * channels)
        return self._added(operation, (channels, 1, 1), Coding(8, False, (5,) * channels))

    def _added(self, operation: Operation, shape: Shape, coding: Coding) -> str:
        self.operations.append(operation)
        self.values[operation.output] = Value(operation.output, shape, coding)
        return operation.output


# ---- Floating point -------------------------------------------------------------------------------------------------

FLOAT = """\
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static float image[3 * 32 * 32], a[16 * 32 * 32], b[16 * 32 * 32], c[16 * 32 * 32], logits[10];
static float weights[400000];
static const float *next;

$CONVOLVE

static void add(const float *restrict x, const float *restrict y, float *restrict output, int count)
{
    for (int i = 0; i < count; i++) {
        float sum = x[i] + y[i];
        output[i] = sum > 0.0f ? sum : 0.0f;
    }
}

static void average(const float *restrict x, float *restrict output, int channels, int pixels)
{
    for (int k = 0; k < channels; k++) {
        float sum = 0.0f;
        for (int i = 0; i < pixels; i++) {
            sum += x[k * pixels + i];
        }
        output[k] = sum / (float)pixels;
    }
}

static void run(void)
{
    next = weights;
$RUN
}

int main(int argc, char **argv)
{
    int images = argc > 1 ? atoi(argv[1]) : 1;
    for (size_t i = 0; i < sizeof weights / sizeof weights[0]; i++) {
        weights[i] = (float)rand() / (float)RAND_MAX * 0.1f - 0.05f;
    }
    for (size_t i = 0; i < sizeof image / sizeof image[0]; i++) {
        image[i] = (float)rand() / (float)RAND_MAX;
    }
    run();
    clock_t begin = clock();
    for (int i = 0; i < images; i++) {
        run();
    }
    printf("%f\\n", (double)(clock() - begin) * 1e3 / CLOCKS_PER_SEC / images);
    return logits[0] != logits[0];
}
"""

PLAIN = """\
static void convolve(const float *restrict x, int channels, int size, float *restrict y, int filters, int kernel, int stride)
{
    const float *restrict weight = next;
    const float *restrict bias = next + filters * channels * kernel * kernel;
    int out = size / stride, padding = kernel / 2;
    for (int k = 0; k < filters; k++) {
        for (int p = 0; p < out; p++) {
            for (int q = 0; q < out; q++) {
                float sum = bias[k];
                for (int c = 0; c < channels; c++) {
                    for (int r = 0; r < kernel; r++) {
                        int row = p * stride + r - padding;
                        if (row < 0 || row >= size) {
                            continue;
                        }
                        for (int s = 0; s < kernel; s++) {
                            int column = q * stride + s - padding;
                            if (column >= 0 && column < size) {
                                sum += weight[((k * channels + c) * kernel + r) * kernel + s] * x[(c * size + row) * size + column];
                            }
                        }
                    }
                }
                y[(k * out + p) * out + q] = sum > 0.0f ? sum : 0.0f;
            }
        }
    }
    next = bias + filters;
}
"""

ROWS = """\
static void convolve(const float *restrict x, int channels, int size, float *restrict y, int filters, int kernel, int stride)
{
    const float *restrict weight = next;
    const float *restrict bias = next + filters * channels * kernel * kernel;
    static float padded[64 * 34 * 34];
    int out = size / stride, padding = kernel / 2, wide = size + 2 * padding;
    for (int c = 0; c < channels; c++) {
        for (int row = 0; row < wide; row++) {
            for (int column = 0; column < wide; column++) {
                int inside = row >= padding && row < size + padding && column >= padding && column < size + padding;
                padded[(c * wide + row) * wide + column] =
                    inside ? x[(c * size + row - padding) * size + column - padding] : 0.0f;
            }
        }
    }
    for (int k = 0; k < filters; k++) {
        for (int p = 0; p < out; p++) {
            float *restrict sums = y + (k * out + p) * out;
            for (int q = 0; q < out; q++) {
                sums[q] = bias[k];
            }
            for (int c = 0; c < channels; c++) {
                for (int r = 0; r < kernel; r++) {
                    for (int s = 0; s < kernel; s++) {
                        float w = weight[((k * channels + c) * kernel + r) * kernel + s];
                        const float *restrict seen = padded + (c * wide + p * stride + r) * wide + s;
                        if (stride == 1) {
                            for (int q = 0; q < out; q++) {
                                sums[q] += w * seen[q];
                            }
                        } else {
                            for (int q = 0; q < out; q++) {
                                sums[q] += w * seen[q * stride];
                            }
                        }
                    }
                }
            }
            for (int q = 0; q < out; q++) {
                sums[q] = sums[q] > 0.0f ? sums[q] : 0.0f;
            }
        }
    }
    next = bias + filters;
}
"""


def _float_source(folder: Path, form: str) -> list[Path]:
    lines = ["convolve(image, 3, 32, a, 16, 3, 1);"]
    for _ in range(BLOCKS):
        lines += _block("a", 16, 32, 16, 1)
    for (channels, size), (filters, _) in pairwise(STAGES):
        lines += _block("a", channels, size, filters, 2)
        for _ in range(BLOCKS - 1):
            lines += _block("a", filters, size // 2, filters, 1)
    lines += ["average(a, b, 64, 64);", "convolve(b, 64, 1, logits, 10, 1, 1);"]
    path = folder / f"float_{form}.c"
    run = "\n".join(f"    {line}" for line in lines)
    path.write_text(FLOAT.replace("$CONVOLVE", PLAIN if form == "plain" else ROWS).replace("$RUN", run))
    return [path]


def _block(x: str, channels: int, size: int, filters: int, stride: int) -> list[str]:
    """Two convolutions and a shortcut, from and to `x`."""
    out = size // stride
    lines = [f"convolve({x}, {channels}, {size}, b, {filters}, 3, {stride});"]
    lines += [f"convolve(b, {filters}, {out}, c, {filters}, 3, 1);"]
    if stride > 1:
        lines += [
            f"convolve({x}, {channels}, {size}, b, {filters}, 1, {stride});",
            f"add(b, c, {x}, {filters * out * out});",
        ]
    else:
        # The sum needs another place than its operands.
        lines += [
            f"add({x}, c, b, {filters * out * out});",
            f"for (int i = 0; i < {filters * out * out}; i++) {{ {x}[i] = b[i]; }}",
        ]
    return lines


if __name__ == "__main__":
    main()
