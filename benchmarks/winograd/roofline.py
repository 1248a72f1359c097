"""The least time that a convolution can take on this machine, by a small model.

Multiplications at the peak of multiply-adds and transforms at one vector operation where a multiply-add would go, one after the
other; or, where that takes longer, reading the weights and moving images and results: from memory if they are larger than
three quarters of the last cache, else from there. A layer whose weights stay in the cache from call to call can beat this.
"""

import math
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.winograd.problems import Problem

# Vector operations of the input and the output transform of one tile, for 16 channels (counted in the fastest ones known).
TRANSFORM_OPERATIONS = {2: (32, 24), 4: (144, 120), 6: (416, 280), 7: (648, 560)}
LANES = 16


@dataclass(frozen=True)
class Peak:
    """What the threads together can do: 1e9 operations (bytes) a second."""

    threads: int
    gflops: float
    cache_gbs: float
    memory_gbs: float
    cache_bytes: int


@cache
def measured_peak(threads: int, seconds: float = 1.0) -> Peak | None:
    """Measured by peak.c; None where there is no C compiler."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        source = Path(__file__).with_name("peak.c")
        try:
            subprocess.run(["cc", "-O3", "-march=native", "-o", program, source, "-lpthread"], check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        done = subprocess.run([program, str(threads), str(seconds)], check=True, capture_output=True, text=True)
    gflops, cache_gbs, memory_gbs = map(float, done.stdout.split())
    return Peak(threads, gflops, cache_gbs, memory_gbs, _last_cache_bytes())


def direct_ms(given: Problem, peak: Peak) -> float:
    weights = 4 * 9 * given.channels * given.filters
    return given.chain * max(_one(given).operations / peak.gflops / 1e6, _moving_ms(given, weights, peak))


def winograd_ms(given: Problem, m: int, peak: Peak, *, pruned: float = 0.0, from_filters: bool = False) -> float:
    tiles = given.batch * math.ceil(given.size / m) ** 2
    kept = (m + 2) ** 2 * (1 - pruned)
    per_input_tile, per_output_tile = TRANSFORM_OPERATIONS[m]
    multiply = 2 * kept * tiles * given.channels * given.filters
    transform = tiles * 2 * (given.channels * per_input_tile + given.filters * per_output_tile)
    weights = 4 * (9 if from_filters else kept) * given.channels * given.filters
    return given.chain * max((multiply + transform) / peak.gflops / 1e6, _moving_ms(given, weights, peak))


def _moving_ms(given: Problem, weight_bytes: float, peak: Peak) -> float:
    def one(size: float) -> float:
        return size / 1e6 / (peak.memory_gbs if size > 0.75 * peak.cache_bytes else peak.cache_gbs)

    pixels = given.batch * given.size**2
    return one(weight_bytes) + one(4 * pixels * given.channels) + one(4 * pixels * given.filters)


def _one(given: Problem) -> Problem:
    return Problem(given.layer, given.channels, given.filters, given.size, given.batch)


def _last_cache_bytes() -> int:
    sizes = [
        int(path.read_text().strip().removesuffix("K")) << 10
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return max(sizes, default=32 << 20)
