"""Small integer networks of random integers that have Winograd convolutions in them."""

from collections.abc import Callable

import torch

from tests.workers.fixed_point.networks import LENGTH, RandomNetwork, coding
from workers.fixed_point.network import Convolution, InputTransform, OutputTransform
from workers.fixed_point.run import INT32
from workers.fixed_point.tiles import tiles

ALL = tuple(range(16))
WITHOUT_CORNERS = tuple(position for position in ALL if position not in (0, 3, 12, 15))
SOME = (1, 2, 5, 6, 8, 11)
ONE = (5,)
QUARTER = (0, 1, 4, 5)
CORNER = (0,)  # only the first of a tile's four outputs gets anything


class WinogradNetwork(RandomNetwork):
    """A random network that may have Winograd convolutions."""

    def winograd(
        self,
        source: str = "image",
        *,
        filters: int = 5,
        positions: tuple[int, ...] = ALL,
        padding: tuple[int, int] = (1, 1),
        tile_bits: int = 8,
        tile_shifts: tuple[int, int] = (0, 3),
        weight_bits: int = 8,
        largest_shift: int = 0,
        product_bias_bits: int = 10,
        left: int = 2,
        bias_bits: int = 16,
        out_shifts: tuple[int, int] = (8, 11),
        bits: int = 8,
        signed: bool = True,
        relu: bool = False,
        layer: str | None = None,
    ) -> str:
        """Three operations: to tiles of `tile_bits`, their products, and back."""
        channels, height, width = self.values[source].shape
        rows, columns = (size + 2 * pad - 2 for size, pad in zip((height, width), padding, strict=True))
        grid, count = (tiles(rows), tiles(columns)), len(positions)
        low, high = self._range(count * channels, tile_bits, signed=True)
        shifts = self.numbers(*tile_shifts, count * channels)
        to_tiles = InputTransform(source, self._name("tiles"), positions, padding, shifts, low, high)
        self._add(to_tiles, (count * channels, *grid), coding(count * channels, tile_bits))

        half, most = 1 << (weight_bits - 1), (1 << product_bias_bits) // 2
        products = count * filters
        limit = torch.full((products,), INT32)
        convolution = Convolution(
            layer=layer or f"winograd{len(self.operations)}",
            source=to_tiles.output,
            output=self._name("products"),
            weight=self.integers(-half, half - 1, products, channels, 1, 1),
            weight_bits=weight_bits,
            shifts=self.integers(0, largest_shift, products, channels),
            bias=self.integers(-most, most, products),
            bias_bits=product_bias_bits + 1,
            lengths=torch.full((products,), LENGTH),
            out_shift=torch.zeros(products, dtype=torch.int64),
            low=-limit,
            high=limit,
            groups=count,
        )
        self._add(convolution, (products, *grid), coding(products, 32))

        low, high = self._range(filters, bits, signed=signed)
        most = 1 << (bias_bits - 1)
        from_tiles = OutputTransform(
            convolution.output,
            self._name("winograd"),
            positions,
            self.numbers(-most, most - 1, filters),
            self.numbers(0, left, products),
            self.numbers(*out_shifts, filters),
            (0,) * filters if relu else low,
            high,
        )
        return self._add(from_tiles, (filters, rows, columns), coding(filters, bits, signed=signed))


def _alone(
    shape: tuple[int, int, int] = (4, 7, 6), *, bits: int = 8, signed: bool = True, **options: object
) -> WinogradNetwork:
    network = WinogradNetwork(shape, bits=bits, signed=signed)
    network.winograd(**options)  # type: ignore[arg-type]
    return network


def _between() -> WinogradNetwork:
    """Between convolutions as they usually are, and a linear layer at the end."""
    network = WinogradNetwork((3, 9, 8))
    x = network.convolve(filters=6, bits=8, signed=False)
    x = network.winograd(x, filters=7, relu=True, signed=False)
    x = network.convolve(x, filters=4, stride=(2, 2))
    network.linear(network.average_pool(x, (5, 4), (5, 4)), 3)
    return network


def _residual() -> WinogradNetwork:
    """Two in a row of different positions, the first of which is read twice."""
    network = WinogradNetwork((5, 7, 7))
    first = network.winograd(filters=6, relu=True)
    second = network.winograd(first, filters=6, positions=WITHOUT_CORNERS, weight_bits=4, largest_shift=3)
    network.add(first, second)
    return network


def _read_by_others() -> WinogradNetwork:
    """The network's input is read by a Winograd convolution and by an operation that wants its channels last."""
    network = WinogradNetwork((4, 6, 5))
    network.add(network.winograd(filters=4), network.requantize())
    return network


NETWORKS: dict[str, Callable[[], WinogradNetwork]] = {
    "all positions": _alone,
    "without corners": lambda: _alone(positions=WITHOUT_CORNERS),
    "some positions": lambda: _alone(positions=SOME),
    "one position": lambda: _alone(positions=ONE),
    "a quarter": lambda: _alone(positions=QUARTER),
    "one corner": lambda: _alone(positions=CORNER),
    "odd sizes": lambda: _alone((3, 9, 7)),
    "one row of outputs": lambda: _alone((6, 1, 11)),
    "one tile": lambda: _alone((3, 2, 2)),
    "without padding": lambda: _alone((4, 8, 6), padding=(0, 0)),
    "without padding, odd sizes": lambda: _alone((4, 7, 9), padding=(0, 0)),
    "padding downwards only": lambda: _alone((4, 7, 9), padding=(1, 0)),
    "unsigned": lambda: _alone(signed=False),
    "inputs and tiles of 16 bits": lambda: _alone(bits=16, tile_bits=16, out_shifts=(14, 20)),
    "products of more than 32 bits": lambda: _alone(
        bits=16, tile_bits=16, weight_bits=16, tile_shifts=(0, 1), out_shifts=(20, 26), bias_bits=30
    ),
    "tiles of 16 bits": lambda: _alone(tile_bits=16, tile_shifts=(-6, 0), out_shifts=(12, 16)),
    "tiles shifted left": lambda: _alone(bits=4, tile_shifts=(-2, 1)),
    "weights of 4 bits": lambda: _alone(weight_bits=4, out_shifts=(5, 8), bias_bits=12),
    "aligned weights of 4 bits": lambda: _alone((9, 6, 6), weight_bits=4, largest_shift=6, out_shifts=(9, 14)),
    "aligned weights of 8 bits": lambda: _alone(weight_bits=8, largest_shift=3),
    "one channel": lambda: _alone((1, 6, 6)),
    "one filter": lambda: _alone(filters=1),
    "many tiles": lambda: _alone((8, 27, 29), filters=3),
    "one number for all": lambda: _alone(
        tile_shifts=(1, 1), product_bias_bits=0, left=0, out_shifts=(9, 9), bias_bits=1, relu=True
    ),
    "between convolutions": _between,
    "residual": _residual,
    "input read by others": _read_by_others,
}
