"""Random programs of floats, small, of all kinds of operations in turn."""

import random

import torch
from torch import Tensor
from winograd.float_program import (
    Activation,
    Addition,
    AveragePool,
    Concatenation,
    Convolution,
    FloatProgram,
    Function,
    MaxPool,
    Multiplication,
    NearestUpsample,
    Operation,
    Padding,
    Pair,
    Scaling,
    Shape,
    Slice,
    WinogradConvolution,
)

LARGEST_SIDE = 12


def random_network(seed: int, *, steps: int) -> FloatProgram:
    """A program of so many operations, whose images have sides of 3 to 12."""
    drawn = _Network(seed)
    for _ in range(steps):
        drawn.add_operation()
    return FloatProgram(0, len(drawn.values) - 1, tuple(drawn.values), tuple(drawn.operations))


class _Network:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        side = self.random.randint(5, 9)
        self.values: list[Shape] = [(self.random.choice((1, 3, 4, 17)), side, side + self.random.randint(0, 2))]
        self.operations: list[Operation] = []

    def add_operation(self) -> None:
        kinds = [
            self.convolution,
            self.depthwise,
            self.addition,
            self.scaling,
            self.pool,
            self.concatenation,
            self.slice,
            self.upsample,
            self.multiplication,
            self.activation,
            self.padding,
        ]
        if min(self.values[-1][1:]) >= 3:
            kinds += [self.winograd] * 3
        self.random.choice(kinds)(len(self.values) - 1, len(self.values))

    def put(self, operation: Operation, shape: Shape) -> None:
        self.operations.append(operation)
        self.values.append(shape)

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator) / 2

    def like(self, shape: Shape) -> tuple[int, ...]:
        """A residual of that shape, if there is one."""
        found = [number for number, value in enumerate(self.values) if value == shape]
        return (self.random.choice(found),) if found and self.random.random() < 0.7 else ()

    def ends(self) -> tuple[float, float]:
        return self.random.choice([(-torch.inf, torch.inf), (0.0, torch.inf), (0.0, 6.0)])

    def windows(self, x: int) -> tuple[Pair, Pair, Pair, Pair, Pair]:
        """Kernel, stride, padding and dilation that fit the image, and the size that comes out."""
        _, height, width = self.values[x]
        kernel = self.random.randint(1, min(3, height)), self.random.randint(1, min(3, width))
        stride = self.random.randint(1, 2), self.random.randint(1, 2)
        padding = self.random.randint(0, kernel[0] // 2), self.random.randint(0, kernel[1] // 2)
        dilation = tuple(
            2 if self.random.random() < 0.2 and 2 * (k - 1) < size else 1
            for k, size in zip(kernel, (height, width), strict=True)
        )
        rows, columns = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip((height, width), padding, dilation, kernel, stride, strict=True)
        )
        return kernel, stride, padding, (dilation[0], dilation[1]), (rows, columns)

    def convolution(self, x: int, output: int) -> None:
        channels = self.values[x][0]
        groups = self.random.choice([g for g in (1, 2, 3, channels) if channels % g == 0])
        self.convolve(x, output, groups * self.random.choice((1, 3, 9, 20) if groups < 4 else (1, 2)), groups)

    def depthwise(self, x: int, output: int) -> None:
        self.convolve(x, output, self.values[x][0], self.values[x][0])

    def convolve(self, x: int, output: int, filters: int, groups: int) -> None:
        kernel, stride, padding, dilation, size = self.windows(x)
        shape = filters, *size
        weights = self.numbers(filters, self.values[x][0] // groups, *kernel)
        self.put(
            Convolution(
                output, (x, *self.like(shape)), *self.ends(), weights=weights, bias=self.numbers(filters),
                stride=stride, padding=padding, dilation=dilation, groups=groups,
            ),
            shape,
        )  # fmt: skip

    def winograd(self, x: int, output: int) -> None:
        channels, height, width = self.values[x]
        groups = self.random.choice([g for g in (1, 2, 3) if channels % g == 0])
        filters, m = groups * self.random.choice((1, 3, 33)), self.random.choice((2, 4, 6, 7))
        every = (m + 2) ** 2
        kept = self.random.choice((every, self.random.randint(1, every)))
        positions = tuple(sorted(self.random.sample(range(every), kept)))
        rows, columns = self.random.randint(0, 1), self.random.randint(0, 1)
        shape = filters, height + 2 * rows - 2, width + 2 * columns - 2
        self.put(
            WinogradConvolution(
                output, (x, *self.like(shape)), weights=self.numbers(kept, filters, channels // groups), bias=self.numbers(filters),
                positions=positions, m=m, padding=(rows, columns), groups=groups, has_relu=self.random.random() < 0.5,
            ),
            shape,
        )  # fmt: skip

    def addition(self, x: int, output: int) -> None:
        [other] = self.like(self.values[x]) or (x,)
        self.put(Addition(output, (x, other), *self.ends()), self.values[x])

    def scaling(self, x: int, output: int) -> None:
        channels = self.values[x][0]
        numbers = {"scale": self.numbers(channels), "shift": self.numbers(channels)}
        self.put(Scaling(output, (x,), *self.ends(), **numbers), self.values[x])

    def pool(self, x: int, output: int) -> None:
        kernel, stride, padding, dilation, size = self.windows(x)
        shape = self.values[x][0], *size
        if self.random.random() < 0.5 or dilation != (1, 1):
            pool: Operation = MaxPool(output, (x,), kernel=kernel, stride=stride, padding=padding, dilation=dilation)
        else:
            counts = self.random.random() < 0.5
            pool = AveragePool(output, (x,), kernel=kernel, stride=stride, padding=padding, counts_padding=counts)
        self.put(pool, shape)

    def concatenation(self, x: int, output: int) -> None:
        size = self.values[x][1:]
        others = [number for number, value in enumerate(self.values) if value[1:] == size]
        sources = x, *self.random.choices(others, k=self.random.randint(0, 2))
        self.put(Concatenation(output, sources), (sum(self.values[source][0] for source in sources), *size))

    def slice(self, x: int, output: int) -> None:
        start, stop, step = zip(*(self.cut(size) for size in self.values[x]), strict=True)
        c, h, w = (-(-(b - a) // s) for a, b, s in zip(start, stop, step, strict=True))
        self.put(Slice(output, (x,), start=start, stop=stop, step=step), (c, h, w))

    def cut(self, size: int) -> tuple[int, int, int]:
        start = self.random.randint(0, size // 3)
        return start, self.random.randint(max(start + 1, size - 1), size), self.random.choice((1, 1, 2))

    def upsample(self, x: int, output: int) -> None:
        c, h, w = self.values[x]
        scale = self.random.choice([(1, 1), (2, 1), (1, 3)] if max(h, w) < LARGEST_SIDE else [(1, 1)])
        self.put(NearestUpsample(output, (x,), scale=scale), (c, h * scale[0], w * scale[1]))

    def multiplication(self, x: int, output: int) -> None:
        shape = self.values[x]
        others = [number for number, value in enumerate(self.values) if value in (shape, (shape[0], 1, 1))]
        self.put(Multiplication(output, (x, self.random.choice(others))), shape)

    def activation(self, x: int, output: int) -> None:
        function = self.random.choice(list(Function))
        self.put(Activation(output, (x,), function=function, slope=0.1), self.values[x])

    def padding(self, x: int, output: int) -> None:
        ends = [self.random.randint(0, 1 if size < LARGEST_SIDE else 0) for size in (*self.values[x], *self.values[x])]
        before, after = (ends[0], ends[1], ends[2]), (ends[3], ends[4], ends[5])
        c, h, w = (a + size + b for a, size, b in zip(before, self.values[x], after, strict=True))
        self.put(Padding(output, (x,), before=before, after=after), (c, h, w))
