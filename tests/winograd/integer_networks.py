"""Networks of integers to test with, drawn from a seed, and each operation once more, in plain Python.

The latter shares nothing with the library but the definitions.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from winograd.integer_program import (
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    InputTransform,
    IntegerProgram,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Operation,
    OutputTransform,
    Padding,
    Permutation,
    Requantization,
    Reshape,
    Slice,
    Table,
    Value,
)

INT32 = -(2**31), 2**31 - 1
BYTES = ((0, 255), (-128, 127))  # what networks of 8 bits have
FEWER = ((0, 127), (-64, 63), (0, 15), (-8, 7), (-2, 1))
WIDE = ((-32768, 32767), (-1000, 3000), (-128, 128))
CHANNELS = (3, 5, 16, 24, 33, 64)
LIMIT = 2**31 - 1


# ---- Random networks ------------------------------------------------------------------------------------------------------


@dataclass
class NetworkBuilder:
    """Adds operations one by one; each method takes indices of values, draws the numbers, and returns the new value's index.

    Shifts are drawn so that outputs use their range and no accumulator leaves 32 bits.
    """

    draw: random.Random
    values: list[Value] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)

    def program(self, output: int) -> IntegerProgram:
        lengths = tuple(self.draw.randint(2, 8) for _ in range(self.values[0].channels))
        return IntegerProgram(0, output, lengths, tuple(self.values), tuple(self.operations))

    def value(self, shape: Sequence[int], span: tuple[int, int]) -> int:
        c, h, w = shape
        self.values.append(Value((c, h, w), *span))
        return len(self.values) - 1

    def span(self) -> tuple[int, int]:
        return self.draw.choice((*BYTES * 4, *FEWER))

    def convolution(
        self,
        source: int,
        filters: int,
        kernel: tuple[int, int] = (3, 3),
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | None = None,
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        span: tuple[int, int] | None = None,
    ) -> int:
        read = self.values[source]
        if padding is None:
            padding = (kernel[0] // 2 * dilation[0], kernel[1] // 2 * dilation[1])
        shape = (filters, read.channels // groups, *kernel)
        generator = torch.Generator().manual_seed(self.draw.randrange(2**30))
        bound = self.draw.choice((127, 127, 20, 3))
        weight = torch.randint(-bound - 1, bound + 1, shape, generator=generator).to(torch.int8)
        if self.draw.random() < 0.3:
            weight.view(-1)[:: self.draw.randint(1, 7)] = self.draw.choice((-128, 127))
        largest = max(abs(read.lowest), abs(read.highest))
        sums = [int(row.abs().sum()) * largest for row in weight.long()]
        bias = tuple(self.draw.randint(-s // 4 - 1, s // 4 + 1) for s in sums)
        bounds = [s + abs(b) for s, b in zip(sums, bias, strict=True)]
        output = [self._windows(read.shape[i + 1], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)]
        span = span or self.span()
        left, right = self._shifts(bounds, span)
        low, high = self._ends(filters, span)
        made = self.value((filters, *output), span)
        self.operations.append(
            Convolution(made, (source,), weight, bias, left, right, low, high, stride, padding, dilation, groups)
        )
        return made

    def sums(self, source: int, filters: int, groups: int) -> int:
        """Filters of 1x1 whose outputs are what they add up to, as between the transforms of a Winograd convolution."""
        made = self.convolution(source, filters, (1, 1), groups=groups, span=INT32)
        none, ends = (0,) * filters, ((INT32[0],) * filters, (INT32[1],) * filters)
        layer = self.operations.pop()
        assert isinstance(layer, Convolution)
        self.operations.append(replace(layer, left=none, right=none, low=ends[0], high=ends[1]))
        return made

    def logits(self, source: int, outputs: int) -> int:
        """A linear layer without an end: sums as they are."""
        read = self.values[source]
        generator = torch.Generator().manual_seed(self.draw.randrange(2**30))
        weight = torch.randint(-128, 128, (outputs, read.channels, 1, 1), generator=generator).to(torch.int8)
        bias, none = tuple(self.draw.randint(-(2**20), 2**20) for _ in range(outputs)), (0,) * outputs
        made = self.value((outputs, 1, 1), INT32)
        ends = (INT32[0],) * outputs, (INT32[1],) * outputs
        self.operations.append(Convolution(made, (source,), weight, bias, none, none, *ends))
        return made

    def addition(self, a: int, b: int, span: tuple[int, int] | None = None) -> int:
        span, count = span or self.span(), self.values[a].channels
        lefts = tuple(tuple(self.draw.randint(0, 3) for _ in range(count)) for _ in range(2))
        largest = [max(abs(self.values[i].lowest), abs(self.values[i].highest)) for i in (a, b)]
        bounds = [sum(one << left[c] for one, left in zip(largest, lefts, strict=True)) for c in range(count)]
        _, right = self._shifts(bounds, span, with_left=False)
        made = self.value(self.values[a].shape, span)
        self.operations.append(Addition(made, (a, b), (lefts[0], lefts[1]), right, *self._ends(count, span)))
        return made

    def multiplication(self, a: int, b: int) -> int:
        span, count = self.span(), self.values[a].channels
        bound = max(abs(self.values[a].lowest), self.values[a].highest) * max(
            abs(self.values[b].lowest), self.values[b].highest
        )
        left, right = self._shifts([bound] * count, span)
        made = self.value(self.values[a].shape, span)
        self.operations.append(Multiplication(made, (a, b), left, right, *self._ends(count, span)))
        return made

    def requantization(self, source: int, span: tuple[int, int] | None = None) -> int:
        span, read = span or self.span(), self.values[source]
        left, right = self._shifts([max(abs(read.lowest), abs(read.highest))] * read.channels, span)
        made = self.value(read.shape, span)
        self.operations.append(Requantization(made, (source,), left, right, *self._ends(read.channels, span)))
        return made

    def max_pool(self, source: int) -> int:
        read = self.values[source]
        kernel, stride, padding, dilation = self.draw.choice(
            [((2, 2), (2, 2), (0, 0), (1, 1)), ((3, 3), (2, 2), (1, 1), (1, 1)), ((3, 2), (1, 2), (1, 0), (1, 1)),
             ((3, 3), (1, 1), (2, 1), (2, 1)), ((5, 5), (1, 1), (2, 2), (1, 1)), ((1, 1), (2, 2), (0, 0), (1, 1))]
        )  # fmt: skip
        sizes = [self._windows(read.shape[i + 1], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)]
        if min(sizes) < 1 or min(read.shape[1:]) < 4:
            return source
        made = self.value((read.channels, *sizes), (read.lowest, read.highest))
        self.operations.append(MaxPool(made, (source,), kernel, stride, padding, dilation))
        return made

    def average_pool(self, source: int, kernel: tuple[int, int] | None = None) -> int:
        read = self.values[source]
        stride, padding = (1, 1), (0, 0)
        if kernel is None:
            kernel, stride, padding = self.draw.choice(
                [((2, 2), (2, 2), (0, 0)), ((3, 3), (1, 1), (1, 1)), ((3, 3), (2, 2), (1, 1)), ((2, 3), (1, 2), (0, 1))]
            )
        sizes = [self._windows(read.shape[i + 1], kernel[i], stride[i], padding[i], 1) for i in (0, 1)]
        if min(sizes) < 1:
            return source
        span, count = self.span(), kernel[0] * kernel[1]
        largest = max(abs(read.lowest), abs(read.highest)) * count
        multiplier = min(2**16 // count + 1, max(1, 2**29 // largest))
        left, right = self._shifts([largest * multiplier] * read.channels, span)
        made = self.value((read.channels, *sizes), span)
        ends = self._ends(read.channels, span)
        self.operations.append(AveragePool(made, (source,), kernel, stride, padding, multiplier, left, right, *ends))
        return made

    def table(self, source: int) -> int:
        read, span = self.values[source], self.span()
        rows = self.draw.randint(1, 4)
        tables = torch.tensor(
            [[self.draw.randint(*span) for _ in range(read.span)] for _ in range(rows)], dtype=torch.int32
        )
        made = self.value(read.shape, span)
        self.operations.append(
            Table(made, (source,), tables, tuple(self.draw.randrange(rows) for _ in range(read.channels)))
        )
        return made

    def concatenation(self, *sources: int) -> int:
        read = [self.values[source] for source in sources]
        span = min(one.lowest for one in read), max(one.highest for one in read)
        made = self.value((sum(one.channels for one in read), *read[0].shape[1:]), span)
        self.operations.append(Concatenation(made, sources))
        return made

    def slice(self, source: int, start: Sequence[int], stop: Sequence[int], step: Sequence[int]) -> int:
        read = self.values[source]
        sizes = [len(range(*part)) for part in zip(start, stop, step, strict=True)]
        made = self.value(sizes, (read.lowest, read.highest))
        self.operations.append(Slice(made, (source,), *(_triple(x) for x in (start, stop, step))))
        return made

    def padding(self, source: int, before: Sequence[int], after: Sequence[int]) -> int:
        read = self.values[source]
        sizes = [n + a + b for n, a, b in zip(read.shape, before, after, strict=True)]
        made = self.value(sizes, (read.lowest, read.highest))
        self.operations.append(Padding(made, (source,), _triple(before), _triple(after)))
        return made

    def upsample(self, source: int, scale: tuple[int, int]) -> int:
        read = self.values[source]
        made = self.value(
            (read.channels, read.shape[1] * scale[0], read.shape[2] * scale[1]), (read.lowest, read.highest)
        )
        self.operations.append(NearestUpsample(made, (source,), scale))
        return made

    def reshape(self, source: int, shape: Sequence[int]) -> int:
        made = self.value(shape, (self.values[source].lowest, self.values[source].highest))
        self.operations.append(Reshape(made, (source,)))
        return made

    def permutation(self, source: int, order: tuple[int, int, int]) -> int:
        read = self.values[source]
        made = self.value([read.shape[place] for place in order], (read.lowest, read.highest))
        self.operations.append(Permutation(made, (source,), order))
        return made

    def winograd_convolution(
        self,
        source: int,
        filters: int,
        positions: Sequence[int],
        *,
        padding: tuple[int, int] = (1, 1),
        cut: int = 0,
        span: tuple[int, int] | None = None,
        as_written: bool = False,
    ) -> int:
        """Input transform, a convolution for each position, output transform; `cut` rows and columns fewer than tiles have.

        `as_written` by what writes programs: products aren't rounded, nor V shifted further to the left than to the right.
        """
        read, kept = self.values[source], tuple(positions)
        tiles = [-(-(side + 2 * around - 2) // 2) for side, around in zip(read.shape[1:], padding, strict=True)]
        largest = max(abs(read.lowest), read.highest)
        v = self.value((len(kept) * read.channels, *tiles), BYTES[1])
        shifts = self._shifts([4 * largest] * (len(kept) * read.channels), BYTES[1])
        if as_written:
            shifts = tuple(min(pair) for pair in zip(*shifts, strict=True)), shifts[1]
        ends = self._ends(len(kept) * read.channels, BYTES[1])
        self.operations.append(InputTransform(v, (source,), kept, padding, *shifts, *ends))
        if as_written:
            m = self.sums(v, len(kept) * filters, len(kept))
        else:
            m = self.convolution(v, len(kept) * filters, (1, 1), groups=len(kept), span=(-(2**20), 2**20))
        span = span or self.span()
        y = self.value((filters, *(2 * count - cut for count in tiles)), span)
        left = tuple(self.draw.randint(0, 3) for _ in range(len(kept) * filters))
        bounds = [2**12 + 2**20 * sum(2 ** left[p * filters + k] for p in range(len(kept))) for k in range(filters)]
        right = self._shifts(bounds, span, with_left=False)[1]
        bias = tuple(self.draw.randint(-(2**12), 2**12) for _ in range(filters))
        self.operations.append(OutputTransform(y, (m,), kept, bias, left, right, *self._ends(filters, span)))
        return y

    def _shifts(
        self, bounds: Sequence[int], span: tuple[int, int], *, with_left: bool = True
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shifts left and right by channel for sums of at most `bounds`."""
        lefts, rights = [], []
        wanted = max(abs(span[0]), abs(span[1]), 1)
        for bound in bounds:
            left = self.draw.choice((0, 0, 0, 1, 5)) if with_left else 0
            while (bound << left) * 2 > LIMIT:  # what is left of 32 bits holds the half
                left -= 1
            assert left >= 0, bound
            most = max(0, (bound << left).bit_length() - wanted.bit_length())
            right = max(0, most - self.draw.randint(0, 4)) if self.draw.random() < 0.95 else min(most + 3, 31)
            right = min(right, 30)
            while (bound << left) + ((1 << right) >> 1) > LIMIT:
                right -= 1
            lefts.append(left)
            rights.append(right)
        return tuple(lefts), tuple(rights)

    def _ends(self, count: int, span: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ends of the range by channel: the whole one, that of ReLU, or any."""
        kind = self.draw.choice(("whole", "relu", "relu", "any"))
        if kind == "any":
            pairs = [sorted((self.draw.randint(*span), self.draw.randint(*span))) for _ in range(count)]
            return tuple(low for low, _ in pairs), tuple(high for _, high in pairs)
        low = max(0, span[0]) if kind == "relu" else span[0]
        return (low,) * count, (span[1],) * count

    @staticmethod
    def _windows(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
        return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def random_network(seed: int, *, steps: int = 5, size: int | None = None) -> IntegerProgram:
    """Return a network of so many random steps; every kind of operation occurs within some dozen seeds."""
    draw = random.Random(seed)
    net = NetworkBuilder(draw)
    height = size or draw.choice((5, 7, 8, 12, 14, 17))
    x = net.value((draw.choice((1, 3, 3, 4)), height, height + draw.choice((0, 0, 1, 3))), draw.choice(BYTES))
    x = net.convolution(
        x, draw.choice(CHANNELS), draw.choice(((3, 3), (5, 5), (7, 7))), stride=draw.choice(((1, 1), (2, 2)))
    )
    for _ in range(steps):
        x = draw.choice(STEPS)(net, x)
    if not net.values[x].is_byte:
        x = net.requantization(x)
    if draw.random() < 0.3:
        x = net.reshape(x, (net.values[x].size, 1, 1))
    elif draw.random() < 0.9:
        x = net.average_pool(x, net.values[x].shape[1:])
    else:
        return net.program(x)  # an image as it is
    return net.program(net.logits(x, draw.choice((1, 2, 10, 33))))


def _plain(net: NetworkBuilder, x: int) -> int:
    return net.convolution(
        _as_byte(net, x), net.draw.choice(CHANNELS), net.draw.choice(((1, 1), (3, 3), (5, 5), (1, 3)))
    )


def _strided(net: NetworkBuilder, x: int) -> int:
    kernel, stride = net.draw.choice(((1, 1), (3, 3), (5, 5))), net.draw.choice(((2, 2), (2, 1)))
    return net.convolution(_as_byte(net, x), net.draw.choice(CHANNELS), kernel, stride=stride)


def _dilated(net: NetworkBuilder, x: int) -> int:
    dilation = net.draw.choice(((2, 2), (1, 3)))
    return net.convolution(_as_byte(net, x), net.draw.choice(CHANNELS), (3, 3), dilation=dilation)


def _grouped(net: NetworkBuilder, x: int) -> int:
    x = _as_byte(net, x)
    channels = net.values[x].channels
    groups = net.draw.choice([n for n in (1, 2, 3, 4, 8, 11) if channels % n == 0])
    filters = groups * net.draw.choice([n for n in (1, 3, 4, 8, 16) if n * groups <= 64])
    return net.convolution(x, filters, net.draw.choice(((1, 1), (3, 3))), groups=groups)


def _depthwise(net: NetworkBuilder, x: int) -> int:
    x = _as_byte(net, x)
    channels = net.values[x].channels
    filters = channels * net.draw.choice((1, 1, 1, 2) if channels <= 32 else (1,))
    kernel, stride = net.draw.choice(((3, 3), (5, 5))), net.draw.choice(((1, 1), (2, 2)))
    return net.convolution(x, filters, kernel, stride=stride, groups=channels)


def _residual(net: NetworkBuilder, x: int) -> int:
    """A block whose last convolution only the addition reads."""
    x = _as_byte(net, x)
    channels = net.values[x].channels
    y = net.convolution(x, channels)
    if net.draw.random() < 0.5:
        y = net.convolution(y, channels)
    return net.addition(*net.draw.choice(((x, y), (y, x))), net.draw.choice((None, None, *WIDE)))


def _twice_read(net: NetworkBuilder, x: int) -> int:
    """An addition of a convolution that something else reads too, or the other operand is."""
    x = _as_byte(net, x)
    y = net.convolution(x, net.draw.choice(CHANNELS))
    other = y if net.draw.random() < 0.3 else net.convolution(_as_byte(net, y), net.values[y].channels)
    z = net.addition(y, other)
    return net.addition(z, y)


def _wide_sum(net: NetworkBuilder, x: int) -> int:
    """Convolutions with outputs of more than 8 bits, which an addition reads, as networks before their requantization have."""
    x = _as_byte(net, x)
    a, b = (net.convolution(x, 24, kernel, span=net.draw.choice(WIDE)) for kernel in ((1, 1), (3, 3)))
    return net.addition(a, b)


def _shortcut(net: NetworkBuilder, x: int) -> int:
    """Half the size and more channels, with a shortcut of slice and padding."""
    x = _as_byte(net, x)
    channels, h, w = net.values[x].shape
    if channels > 64:
        return x
    filters = channels + net.draw.choice((0, 2, 16))
    y = net.convolution(x, filters, stride=(2, 2))
    sides = (filters - channels) // 2, 0, 0
    past = net.padding(
        net.slice(x, (0, 0, 0), (channels, h, w), (1, 2, 2)), sides, (filters - channels - sides[0], 0, 0)
    )
    return net.addition(y, past)


def _padded(net: NetworkBuilder, x: int) -> int:
    return net.padding(x, (0, 1, 0), (net.draw.choice((0, 1)), 2, net.draw.choice((0, 1))))


def _joined(net: NetworkBuilder, x: int) -> int:
    x = _as_byte(net, x)
    span = net.span()
    parts = [net.convolution(x, n, kernel, span=span) for n, kernel in ((5, (1, 1)), (16, (3, 3)), (3, (5, 5)))]
    if net.draw.random() < 0.5:
        parts.append(net.requantization(x, span))
    return net.concatenation(*parts[net.draw.choice((0, 1)) :])


def _halves(net: NetworkBuilder, x: int) -> int:
    channels, h, w = net.values[x].shape
    if channels < 2:
        return x
    half = channels // 2
    a = net.slice(x, (0, 0, 0), (half, h, w), (1, 1, 1))
    b = net.slice(x, (half, 0, 0), (channels, h, w), (1, 1, 1))
    return net.concatenation(net.convolution(_as_byte(net, b), 16), net.requantization(a))


def _excited(net: NetworkBuilder, x: int) -> int:
    """Squeeze and excitation: a factor for each channel."""
    x = _as_byte(net, x)
    channels, *size = net.values[x].shape
    small = net.convolution(_as_byte(net, net.average_pool(x, (size[0], size[1]))), 5, (1, 1))
    return net.multiplication(x, net.table(net.convolution(small, channels, (1, 1))))


def _squared(net: NetworkBuilder, x: int) -> int:
    return net.multiplication(x, net.table(_as_byte(net, x)))


def _shuffled(net: NetworkBuilder, x: int) -> int:
    channels, h, w = net.values[x].shape
    groups = next(n for n in (4, 3, 2, 5, 11, 1, channels) if channels % n == 0)
    y = net.permutation(net.reshape(x, (groups, channels // groups, h * w)), (1, 0, 2))
    return net.reshape(y, (channels, h, w))


def _turned(net: NetworkBuilder, x: int) -> int:
    return net.permutation(x, (0, 2, 1))


def _up(net: NetworkBuilder, x: int) -> int:
    return x if max(net.values[x].shape[1:]) > 16 else net.upsample(x, net.draw.choice(((2, 2), (1, 3))))


def _as_byte(net: NetworkBuilder, x: int) -> int:
    return x if net.values[x].is_byte else net.requantization(x)


def _winograd(net: NetworkBuilder, x: int) -> int:
    x = _as_byte(net, x)
    positions = sorted(net.draw.sample(range(16), net.draw.choice((1, 9, 12, 16))))
    filters, cut, as_written = net.draw.choice((3, 16, 24)), net.draw.choice((0, 1)), net.draw.choice((True, False))
    x = net.winograd_convolution(x, filters, positions, cut=cut, as_written=as_written)
    return net.addition(x, net.requantization(x)) if net.draw.random() < 0.3 else x


STEPS = (
    _plain, _plain, _strided, _dilated, _grouped, _depthwise, _depthwise, _residual, _residual, _residual, _twice_read, _wide_sum,
    _winograd, _shortcut, _padded, _joined, _halves, _excited, _squared, _shuffled, _turned, _up, NetworkBuilder.max_pool,
    NetworkBuilder.average_pool,
)  # fmt: skip


def images_for(program: IntegerProgram, batch: int, seed: int = 0) -> Tensor:
    """Return integers [N, C, H, W], int32, that the network takes; the ends of the range are among them."""
    value = program.values[program.input]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(value.lowest, value.highest + 1, (batch, *value.shape), generator=generator)
    ends = torch.rand(x.shape, generator=generator)
    return x.masked_fill(ends < 0.1, value.lowest).masked_fill(ends > 0.9, value.highest).to(torch.int32)


# ---- Each operation once more, one integer after the other ----------------------------------------------------------------


def integers_of(program: IntegerProgram, image: Tensor) -> list[int]:
    """Return the output of one image [C, H, W] of integers, flattened. Raises OverflowError where 32 bits don't hold a sum."""
    held = {program.input: {place: int(image[place]) for place in _places(program.values[program.input].shape)}}
    for operation in program.operations:
        shape = program.values[operation.output].shape
        sources = [held[source] for source in operation.sources]
        shapes = [program.values[source].shape for source in operation.sources]
        lowest = program.values[operation.sources[0]].lowest
        held[operation.output] = {
            place: _integer_at(operation, place, sources, shapes, shape, lowest) for place in _places(shape)
        }
    return [held[program.output][place] for place in _places(program.values[program.output].shape)]


Place = tuple[int, int, int]
# Of F(2x2, 3x3) with the points 0, 1 and -1, and infinity last.
BT = (-1, 0, 1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1)
AT = (1, 1, 1, 0), (0, 1, -1, 1)


def _integer_at(
    operation: Operation, place: Place, sources: list[dict[Place, int]], shapes: list[Place], shape: Place, lowest: int
) -> int:
    k, i, j = place
    x = sources[0]
    match operation:
        case Convolution():
            _, of_group, rows, columns = operation.weight.shape
            first = k // (shape[0] // operation.groups) * of_group
            total = operation.bias[k]
            for c in range(of_group):
                for r in range(rows):
                    for s in range(columns):
                        read = x.get((first + c, *_tap(operation, (i, j), (r, s), operation.dilation)), 0)
                        total += read * int(operation.weight[k, c, r, s])
            return _end(total << operation.left[k], operation, k)
        case Addition():
            total = (x[place] << operation.left[0][k]) + (sources[1][place] << operation.left[1][k])
            return _end(total, operation, k)
        case Multiplication():
            factor = sources[1][(k, 0, 0)] if shapes[1] == (shape[0], 1, 1) else sources[1][place]
            return _end((x[place] * factor) << operation.left[k], operation, k)
        case MaxPool():
            taps = [(r, s) for r in range(operation.kernel[0]) for s in range(operation.kernel[1])]
            places = [(k, *_tap(operation, (i, j), tap, operation.dilation)) for tap in taps]
            return max(x[one] for one in places if one in x)
        case AveragePool():
            taps = [(r, s) for r in range(operation.kernel[0]) for s in range(operation.kernel[1])]
            total = sum(x.get((k, *_tap(operation, (i, j), tap, (1, 1))), 0) for tap in taps)
            return _end((total * operation.multiplier) << operation.left[k], operation, k)
        case Table():
            return int(operation.tables[operation.row[k], x[place] - lowest])
        case Requantization():
            return _end(x[place] << operation.left[k], operation, k)
        case Concatenation():
            number = 0
            while k >= shapes[number][0]:
                k -= shapes[number][0]
                number += 1
            return sources[number][(k, i, j)]
        case Slice():
            return x[_triple([a + n * b for a, n, b in zip(operation.start, place, operation.step, strict=True)])]
        case Padding():
            return x.get(_triple([n - a for n, a in zip(place, operation.before, strict=True)]), 0)
        case NearestUpsample():
            return x[(k, i // operation.scale[0], j // operation.scale[1])]
        case Reshape():
            flat = (k * shape[1] + i) * shape[2] + j
            _, h, w = shapes[0]
            return x[(flat // (h * w), flat // w % h, flat % w)]
        case Permutation():
            return x[_triple([place[operation.order.index(dimension)] for dimension in range(3)])]
        case InputTransform():
            (a, b), c = divmod(operation.positions[k // shapes[0][0]], 4), k % shapes[0][0]
            total = sum(
                BT[a][r] * BT[b][s] * x.get((c, 2 * i + r - operation.padding[0], 2 * j + s - operation.padding[1]), 0)
                for r in range(4) for s in range(4)
            )  # fmt: skip
            return _end(total << operation.left[k], operation, k)
        case OutputTransform():
            total = operation.bias[k]
            for number, position in enumerate(operation.positions):
                product = number * shape[0] + k
                sign = AT[i % 2][position // 4] * AT[j % 2][position % 4]
                total += sign * (x[(product, i // 2, j // 2)] << operation.left[product])
            return _end(total, operation, k)


def _tap(
    operation: Convolution | MaxPool | AveragePool, at: tuple[int, int], tap: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    i, j = (at[n] * operation.stride[n] - operation.padding[n] + tap[n] * dilation[n] for n in (0, 1))
    return i, j


def _end(
    total: int,
    operation: Convolution
    | Addition
    | Multiplication
    | AveragePool
    | Requantization
    | InputTransform
    | OutputTransform,
    channel: int,
) -> int:
    right = operation.right[channel]
    total += 2 ** (right - 1) if right else 0
    if not INT32[0] <= total <= INT32[1]:
        raise OverflowError(f"{operation} sums up to {total}")
    return min(max(total // 2**right, operation.low[channel]), operation.high[channel])


def _places(shape: Place) -> list[Place]:
    return [(c, i, j) for c in range(shape[0]) for i in range(shape[1]) for j in range(shape[2])]


def _triple(numbers: Sequence[int]) -> Place:
    a, b, c = numbers
    return a, b, c
