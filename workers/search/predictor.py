"""What fewer bits cost, cheaply: from networks that are put together of layers quantized once at every width.

All that is found is kept in a file, so that a search that was interrupted doesn't measure it again.
"""

import json
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from jobs.folder import write_atomically
from jobs.recipe import QuantizeFixedPoint
from jobs.request import Goal
from workers.bench import Bench
from workers.compression.second_networks import SecondNetworks
from workers.measurement.accuracy import least_change_pp
from workers.models.graph import layers, parameter
from workers.models.shapes import macs
from workers.models.tail import without_tail
from workers.search.allocation import Bits, allocations, measured_sensitivities

QUANTIZATION = QuantizeFixedPoint(kind="quantize_fixed_point")
FILE_NAME = "predictions.json"

WIDTHS = (8, 6, 5, 4, 3, 2)
WIDTHS_OF_ONNX = (8, 4, 3, 2)  # such a file holds weights of 5 to 7 bits in whole bytes
SENSITIVITY_IMAGES = 128


class Predictor:
    """Predictions for one network. `check_time` is told what goes on, and raises `TimeIsUpError`."""

    def __init__(self, bench: Bench, goal: Goal, folder: Path, check_time: Callable[[str], None]) -> None:
        self._bench = bench
        self._confidence = goal.confidence
        self._counts_operations = goal.minimise == "operations"
        self._is_deflated = bench.job.target.runtime == "torch"  # as .pt2 files are, and .onnx files can't be
        self._widths = WIDTHS if self._counts_operations or self._is_deflated else WIDTHS_OF_ONNX
        self._check_time = check_time
        self._path = folder / FILE_NAME
        self._known: dict[str, float] = _read(self._path)  # errors and drops by the bits that they are of
        self._started = time.monotonic()
        self._spent_before = self._known.get(SECONDS, 0.0)

    def ladder(self) -> list[Bits]:
        """Allocations of bits to layers, from the widest to the narrowest, each the cheapest in accuracy for its size."""
        names = [layer.name for layer in layers(self._bench.uploaded)]
        return allocations(measured_sensitivities(self._widths, names, self._cost_of, self._error_of))

    def drop_of(self, bits: Bits) -> float:
        """The drop of accuracy, in percentage points, that isn't expected to be exceeded with the goal's confidence."""

        def measure() -> float:
            self._check_time("Predicting the accuracy of an allocation of bits")
            networks = (self._bench.uploaded, self._networks.simulated(bits))
            before, after = (self._bench.selection_right(network) for network in networks)
            return -least_change_pp(before, after, self._confidence)

        return self._once(_key("drop", bits), measure)

    def known_drop_of(self, bits: Bits) -> float | None:
        """The same, if it was asked for before."""
        return self._known.get(_key("drop", bits))

    def _cost_of(self, layer: str, width: int) -> int:
        """Bit operations, or the bits that the file takes for the weights."""
        if self._is_deflated and not self._counts_operations:
            return round(self._once(_key("entropy", {layer: width}), lambda: self._entropies[width][layer]))
        return self._cost_of_a_bit[layer] * width

    def _error_of(self, bits: Mapping[str, int]) -> float:
        """What happens to the scores: their mean squared difference, over their variance."""

        def measure() -> float:
            ((layer, width),) = bits.items()
            self._check_time(f"Predicting what {width} bits cost in {layer}")
            exact = self._exact_scores
            return float((self._scores(bits) - exact).double().square().mean() / exact.double().var())

        return self._once(_key("error", bits), measure)

    def _once(self, key: str, measure: Callable[[], float]) -> float:
        if key not in self._known:
            self._known[key] = measure()
            self._known[SECONDS] = self._spent_before + time.monotonic() - self._started
            write_atomically(self._path, json.dumps(self._known))
        return self._known[key]

    @cached_property
    def _networks(self) -> SecondNetworks:
        return SecondNetworks(
            self._bench.uploaded, QUANTIZATION, self._widths, self._bench.calibration_batches,
            lambda _, message, __: self._check_time(message), self._bench.preparations,
        )  # fmt: skip

    @cached_property
    def _cost_of_a_bit(self) -> dict[str, int]:
        graph = self._bench.uploaded
        if self._counts_operations:
            return {name: count * QUANTIZATION.activation_bits for name, count in macs(graph).items()}
        return {layer.name: parameter(graph, layer.weight).numel() for layer in layers(graph)}

    @cached_property
    def _entropies(self) -> dict[int, dict[str, float]]:
        return {width: self._networks.entropies(width) for width in self._widths}

    @cached_property
    def _images(self) -> list[Tensor]:
        return list(self._bench.calibration_batches(self._bench.uploaded, SENSITIVITY_IMAGES))

    @cached_property
    def _exact_scores(self) -> Tensor:
        return self._scores({})

    @torch.inference_mode()
    def _scores(self, bits: Mapping[str, int]) -> Tensor:
        network = without_tail(self._networks.simulated(bits))
        return torch.cat([network(batch)[0].flatten(1) for batch in self._images])


SECONDS = "seconds"  # what all predictions have taken


def seconds_spent(folder: Path) -> float:
    """What predictions kept in this folder have taken."""
    return _read(folder / FILE_NAME).get(SECONDS, 0.0)


def _key(what: str, bits: Mapping[str, int]) -> str:
    return f"{what} {json.dumps(bits, sort_keys=True)}"


def _read(path: Path) -> dict[str, float]:
    try:
        return {str(key): float(value) for key, value in json.loads(path.read_bytes()).items()}
    except (FileNotFoundError, ValueError):
        return {}
