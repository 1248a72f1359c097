"""Is the best tile of each layer the best for the network? Every combination of tiles for the layers of each width, by turns.

    python -m benchmarks.winograd.combinations resnet18 --threads 1

All stand in one process, at batch 1, channels last; a figure is the median of the faster half of its turns. `selected` is what
winograd.selection chooses for each layer by itself.
"""

import argparse
import copy
import itertools
import statistics
import time

import torch
from torch import Tensor, nn
from winograd.module import why_not

from benchmarks.tables import table
from benchmarks.winograd import networks

# For the layers of each width: direct, weights transformed before (m) or in each call (f).
TILES: dict[str, tuple[int, dict[int, tuple[str, ...]]]] = {
    "resnet20": (32, {16: ("direct", "m2", "m4", "f2"), 32: ("direct", "m2", "m4", "f2"), 64: ("direct", "m2", "m4", "f2")}),
    "resnet18": (224, {64: ("m4",), 128: ("m4", "m2"), 256: ("m4", "m2", "f4", "direct"), 512: ("m2", "f2", "f4", "direct")}),
}  # fmt: skip
TURNS = 12
TURN_SECONDS = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=TILES)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    size, tiles = TILES[given.network]
    network = networks.seeded(given.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    candidates: dict[str, nn.Module] = {"selected": copy.deepcopy(network)}
    networks.select_tiles(candidates["selected"], x, given.threads)
    for chosen in itertools.product(*tiles.values()):
        candidates[", ".join(chosen)] = _replaced(network, dict(zip(tiles, chosen, strict=True)))
    milliseconds = _by_turns(candidates, x)
    fastest = sorted(milliseconds, key=milliseconds.__getitem__)
    shown = [*fastest[:8], *(name for name in ("selected",) if name not in fastest[:8])]
    head = (f"{given.network}, {given.threads} threads: tiles of {', '.join(map(str, tiles))} channels", "ms")
    print(table(head, [(name, f"{milliseconds[name]:.3f}") for name in shown]))


def _replaced(network: nn.Module, tiles: dict[int, str]) -> nn.Module:
    replaced = copy.deepcopy(network)
    for name, part in list(replaced.named_modules()):
        if isinstance(part, networks.Convolution) and why_not(part.conv) is None:
            tile = tiles[part.conv.out_channels]
            if tile != "direct":
                variant = "filters" if tile.startswith("f") else "weights"
                replaced.set_submodule(name, networks.packed(part, variant, int(tile[1:])))
    return replaced


def _by_turns(candidates: dict[str, nn.Module], x: Tensor) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(TURNS):
        for name, network in candidates.items():
            network(x)
            begun, runs = time.perf_counter(), 0
            while (now := time.perf_counter()) - begun < TURN_SECONDS:
                network(x)
                runs += 1
            taken[name].append(1e3 * (now - begun) / runs)
    return {name: statistics.median(sorted(times)[: TURNS // 2]) for name, times in taken.items()}


if __name__ == "__main__":
    main()
