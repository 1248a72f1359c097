"""How long a layer is foretold to take, convolved directly and in the Winograd domain: winograd's table of measured times says it
where it knows the shape, and its cost model everywhere else.

Nothing is timed here, so that a recipe comes to the same network on every machine. What the delivered file takes is measured.
"""

from dataclasses import dataclass, replace
from typing import Any

from winograd.selection import Shape, default_table, estimated_ms

from jobs.tiles import TILES
from workers.compression.winograd_layers import Mask
from workers.models.graph import Layer


@dataclass(frozen=True)
class Load:
    """What the network is to be run with."""

    batch_size: int = 1
    threads: int = 1

    def as_details(self) -> dict[str, Any]:
        """For the report: what modelled times hold for, and where they come from."""
        table = default_table()
        return {**vars(self), "runtime": "torch with winograd.load", "machine": table.machine, "date": table.date}


@dataclass(frozen=True)
class ModelledTimes:
    """Microseconds that one layer takes for a batch, wherever the network uses it."""

    shape: Shape
    threads: int
    uses: int

    @classmethod
    def of(cls, layer: Layer, sides: tuple[int, int], load: Load) -> "ModelledTimes":
        """Those of a 3x3 convolution [K, C/g, 3, 3] whose output has these sides."""
        filters, channels, *_ = layer.weight_shape
        shape = Shape(channels * layer.groups, filters, *sides, load.batch_size, layer.groups)
        return cls(shape, load.threads, len(layer.used_by))

    @property
    def direct_us(self) -> float:
        return self._us(self.shape, "direct")

    def winograd_us(self, m: int, mask: Mask) -> float:
        """As F(m x m, 3x3) at the positions that are kept."""
        if mask.group_by == "output_channels":
            return self._us(self.shape, f"m{m}", mask.share())
        # Groups of input channels are convolutions of their own, whose outputs are added up.
        part = replace(self.shape, channels=self.shape.channels // mask.groups)
        return sum(self._us(part, f"m{m}", kept) for kept in mask.kept.double().mean(1).tolist())

    def fastest_tile(self) -> int | None:
        """The tile of the fastest Winograd convolution at all positions; None where none is faster than direct convolution.

        Large tiles are not held against the library's bound for rounding: this step may spend accuracy, and measures it.
        """
        us = {m: self._us(self.shape, f"m{m}") for m in TILES}
        fastest = min(TILES, key=us.__getitem__)
        return fastest if us[fastest] < self.direct_us else None

    def _us(self, shape: Shape, candidate: str, kept: float = 1.0) -> float:
        return 1e3 * self.uses * estimated_ms(shape, candidate, self.threads, kept=kept)
