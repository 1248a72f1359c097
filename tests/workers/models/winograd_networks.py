"""Networks of one Winograd convolution between other layers, and what they must compute."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import winograd
from tests.workers.networks import graph_of
from workers.models.graph import ModelGraph


@dataclass(frozen=True)
class Problem:
    """One Winograd convolution: which positions of how many runs of filters are kept, and of what size everything is."""

    m: int = 4
    channels: int = 6
    filters: int = 8
    height: int = 13
    width: int = 10
    padding: tuple[int, int] = (1, 1)
    groups: int = 1
    kernel_groups: int = 1
    pruned: int = 0
    bias: bool = True
    seed: int = 0

    @property
    def kept(self) -> int:
        return (self.m + 2) ** 2 - self.pruned

    @property
    def gemms(self) -> int:
        """Matrix multiplications of one call, as the operator counts them."""
        return self.kept * max(self.groups, self.kernel_groups)

    @property
    def multiplications(self) -> int:
        """Of those, for one image: tiles * P * K * C/g."""
        rows, columns = (
            -(-(side + 2 * padding - 2) // self.m)
            for side, padding in zip((self.height, self.width), self.padding, strict=True)
        )
        return rows * columns * self.kept * self.filters * (self.channels // self.groups)

    def positions(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed)
        size = (self.m + 2) ** 2
        runs = [torch.randperm(size, generator=generator)[: self.kept].sort().values for _ in range(self.kernel_groups)]
        return [int(position) for run in runs for position in run]

    def filters_in_space(self) -> Tensor:
        """[K, C/g, 3, 3]"""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.filters, self.channels // self.groups, 3, 3)
        return torch.randn(shape, generator=generator) / (9 * shape[1]) ** 0.5

    def images(self, batch: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(batch, self.channels, self.height, self.width, generator=generator)


PROBLEMS = {
    "f2": Problem(m=2, pruned=5),
    "f4": Problem(m=4, pruned=12),
    "f6": Problem(m=6, pruned=20),
    "f7": Problem(m=7, pruned=30),
    "nothing pruned": Problem(),
    "one position": Problem(m=4, pruned=35),
    "whole tiles": Problem(height=16, width=8, pruned=10),
    "image smaller than a tile": Problem(m=6, height=3, width=4, pruned=7),
    "no padding": Problem(padding=(0, 0), pruned=9),
    "unequal padding": Problem(padding=(0, 3), pruned=9),
    "one filter of one channel": Problem(channels=1, filters=1, pruned=3),
    "no bias": Problem(bias=False, pruned=4),
    "groups": Problem(groups=2, pruned=11),
    "depthwise": Problem(groups=6, filters=6, pruned=11),
    "kernel groups": Problem(kernel_groups=4, pruned=17),
    "as many kernel groups as groups": Problem(groups=2, kernel_groups=2, pruned=17),
    "kernel groups within groups": Problem(groups=2, kernel_groups=4, pruned=17),
    "groups within kernel groups": Problem(channels=8, groups=4, kernel_groups=2, pruned=17),
}


class WinogradLayer(nn.Module):
    """A Winograd convolution with its weights under the names that a 3x3 convolution has."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        positions = problem.positions()
        filters = problem.filters_in_space()
        weights = winograd.transform_filters(filters, positions, problem.m, kernel_groups=problem.kernel_groups)
        self.weight = nn.Parameter(weights)
        self.bias = nn.Parameter(torch.linspace(-1, 1, problem.filters)) if problem.bias else None
        self._problem, self._positions = problem, positions

    def forward(self, image: Tensor) -> Tensor:
        problem = self._problem
        return winograd.conv2d(
            image,
            self.weight,
            self._positions,
            problem.m,
            problem.padding,
            bias=self.bias,
            groups=problem.groups,
        )


class WinogradNetwork(nn.Module):
    """A Winograd convolution called `conv` with a ReLU behind it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.conv = WinogradLayer(problem)

    def forward(self, image: Tensor) -> Tensor:
        return torch.relu(self.conv(image))


@cache
def winograd_graph(problem: Problem) -> ModelGraph:
    """The network as Winnow reads it; not to be changed."""
    return graph_of(WinogradNetwork(problem).eval(), problem.images())


def expected(problem: Problem, images: Tensor) -> Tensor:
    """What the network answers, by the formulas in double precision: the plain-torch operator, from the exact matrices."""
    double = WinogradNetwork(problem).double()
    with torch.no_grad():
        answer: Tensor = double(images.double())
    return answer.float()


def expected_directly(problem: Problem, images: Tensor) -> Tensor:
    """What a network with nothing pruned answers, by direct convolution in double precision."""
    bias = torch.linspace(-1, 1, problem.filters).double() if problem.bias else None
    filters = problem.filters_in_space().double()
    answer = nn.functional.conv2d(images.double(), filters, bias, padding=problem.padding, groups=problem.groups)
    return answer.relu().float()
