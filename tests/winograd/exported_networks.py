"""Networks with Winograd convolutions, as torch.export gives them: what `winograd.prepare` is tested on."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from winograd.float_program import FloatProgram, Operation
from winograd.fuse_epilogues import fuse_epilogues
from winograd.write_float_program import write_float_program

from winograd import WinogradConv2d

KEPT = [position for position in range(36) if position % 5]
BATCH = torch.export.Dim("batch", min=1)


def winograd_conv2d(
    channels: int, filters: int, *, dtype: torch.dtype = torch.float32, **options: Any
) -> WinogradConv2d:
    torch.manual_seed(channels + filters)
    conv = nn.Conv2d(channels, filters, 3, padding=1, dtype=dtype, **options)
    return WinogradConv2d.from_conv2d(conv, m=4, positions=KEPT)


def images(*, channels: int = 4, size: int = 9, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, channels, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """What networks of residual blocks are made of: a stem, two kinds of blocks, pooling, scores."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.stem, self.first, self.second = (winograd_conv2d(c, 8, dtype=dtype) for c in (4, 8, 8))
        torch.manual_seed(3)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1, dtype=dtype)
        self.past = nn.Conv2d(8, 16, 1, stride=2, dtype=dtype)
        self.third = winograd_conv2d(16, 16, dtype=dtype, bias=False)
        self.scores = nn.Linear(16, 10, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        y = self.third(self.down(x).relu())
        x = (y + self.past(x)).relu()  # the residual is computed after the convolution
        scores: Tensor = self.scores(x.mean((2, 3)))
        return scores


class Computes(nn.Module):
    """`convolution` by itself, and `function` of it and of the inputs."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in ({"conv": winograd_conv2d(4, 4)} | parts).items():
            self.add_module(name, part)
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def exported(network: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    shapes = tuple({0: BATCH} for _ in inputs)
    shapes = (shapes,) if isinstance(network, Computes) else shapes  # its inputs are one *inputs
    return torch.export.export(network.eval(), inputs, dynamic_shapes=shapes).module()


class ResidualBlock(nn.Module):
    """Two convolutions with batch norms, around which the image passes: made smaller and filled up with zeros if need be."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.filled = (filters - channels) // 2
        self.first = (
            winograd_conv2d(channels, filters, bias=False)
            if filters == channels
            else nn.Conv2d(channels, filters, 3, 2, 1, bias=False)
        )
        self.second = winograd_conv2d(filters, filters, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(filters) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(self.norms[0](self.first(x)).relu()))
        if self.filled:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.filled, self.filled))
        return (x + y).relu()


def residual_network() -> nn.Module:
    """ResNet-20 of images [N, 3, 32, 32] as far as its shapes go."""
    torch.manual_seed(5)
    sides = [(16, 16)] * 3 + [(16, 32)] + [(32, 32)] * 2 + [(32, 64)] + [(64, 64)] * 2
    blocks = [ResidualBlock(*side) for side in sides]
    stem = winograd_conv2d(3, 16), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
    network = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        network(torch.randn(16, 3, 32, 32))  # so that the batch norms know something
    return network.eval()


def program_of(network: fx.GraphModule) -> tuple[FloatProgram, tuple[int, ...]]:
    """What `prepare` would write, and the shape that comes out."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(network.graph, {}))
    graph.eliminate_dead_code(lambda node: node.op == "call_module" or node.is_impure())
    fuse_epilogues(graph)
    names = {str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")}
    return write_float_program(graph, {name: attrgetter(name)(network) for name in names})


def kinds(program: FloatProgram) -> list[type[Operation]]:
    return [type(operation) for operation in program.operations]


def assert_close(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)
