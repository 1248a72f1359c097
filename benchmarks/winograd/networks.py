"""Whole networks: ResNet-20 for CIFAR-10 and those shaped like ResNet-18 and ResNet-50 at 224, batch-norm folded, weights seeded,
channels last.

Torch as it is (eager); torch compiled with frozen, so prepacked, weights; ONNX Runtime and OpenVINO; and the same network with its
3x3 convolutions of stride 1 replaced: `modules` by winograd.replace_convolutions, `selected` by what winograd.selection chooses for
each layer, with addition and ReLU in the same call; `selected compiled` also has the rest compiled; `one call m4` and `one call`
are these networks as a file would have them, exported and prepared, so that compiled code computes all of them.
"""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.winograd.engines import Runnable
from benchmarks.winograd.problems import Material, Problem
from benchmarks.winograd.turns import Runner

TORCH_VARIANTS = ("eager", "compiled")
OUR_VARIANTS = ("modules", "selected", "selected compiled", "one call m4", "one call")
PROBLEMS = (("resnet20", 32, 1), ("resnet20", 32, 64), ("resnet18", 224, 1))


class Convolution(nn.Module):
    """relu(conv(x) + residual): the one thing that these networks are made of."""

    def __init__(self, channels: int, filters: int, size: int = 3, stride: int = 1, *, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, size, stride, padding=size // 2)
        assert self.conv.bias is not None
        self.relu = relu
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu" if relu else "linear")
        nn.init.normal_(self.conv.bias, std=0.1)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        if residual is not None:
            y = y + residual
        output: Tensor = y.relu_() if self.relu else y
        return output


class Block(nn.Module):
    """Two convolutions and what leads past them."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.first = Convolution(channels, filters, stride=stride)
        self.second = Convolution(filters, filters)
        past = stride > 1 or channels != filters
        self.shortcut = Convolution(channels, filters, 1, stride, relu=False) if past else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x), self.shortcut(x))
        return y


class Bottleneck(nn.Module):
    """The block of ResNet-50: 1x1, 3x3 and 1x1, and what leads past them."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = Convolution(channels, width, 1)
        self.second = Convolution(width, width, stride=stride)
        self.third = Convolution(width, 4 * width, 1)
        past = stride > 1 or channels != 4 * width
        self.shortcut = Convolution(channels, 4 * width, 1, stride, relu=False) if past else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.second(self.first(x)), self.shortcut(x))
        return y


def resnet20() -> nn.Module:
    stages = [Block(max(16, width // 2) if b == 0 else width, width, 2 if b == 0 and width > 16 else 1)
              for width in (16, 32, 64) for b in range(3)]  # fmt: skip
    return nn.Sequential(Convolution(3, 16), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet18() -> nn.Module:
    stages = [Block(max(64, width // 2) if b == 0 else width, width, 2 if b == 0 and width > 64 else 1)
              for width in (64, 128, 256, 512) for b in range(2)]  # fmt: skip
    stem = Convolution(3, 64, 7, 2), nn.MaxPool2d(3, 2, padding=1)
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def resnet50() -> nn.Module:
    stages = [Bottleneck((width if width == 64 else 2 * width) if b == 0 else 4 * width, width, 2 if b == 0 and width > 64 else 1)
              for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)) for b in range(blocks)]  # fmt: skip
    stem = Convolution(3, 64, 7, 2), nn.MaxPool2d(3, 2, padding=1)
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet20": resnet20, "resnet18": resnet18, "resnet50": resnet50}


def network_problem(name: str, size: int, batch: int) -> Problem:
    return Problem(name, 3, 0, size, batch, chain=0)


def write_network(given: Problem, folder: Path) -> None:
    """Write what the engines' processes read: images, float64's answer, and the network as ONNX."""
    images = np.random.default_rng(0).standard_normal((given.batch, 3, given.size, given.size), dtype=np.float32)
    (folder / "problem.json").write_text(json.dumps(asdict(given)))
    np.save(folder / "images.npy", images)
    network, batch = seeded(given.layer), torch.from_numpy(images)
    with torch.inference_mode():
        exact = copy.deepcopy(network).double()(batch[given.checked_images].double())
    np.save(folder / "exact.npy", exact.numpy())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (batch,), folder / "model.onnx", dynamo=True, verbose=False, external_data=False)


def runners(*, quick: bool = False, peers: Sequence[str] = ()) -> list[Runner]:
    variants = [*TORCH_VARIANTS, *OUR_VARIANTS]
    others = [Runner(peer, "") for peer in ("onnxruntime", "openvino") if peer in peers]
    return [*(Runner("networks", v) for v in variants if not (quick and "compiled" in v)), *others]


def build(material: Material, threads: int, variant: str) -> Runnable:
    """Called in the engine's process."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    network = seeded(material.problem.layer).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.from_numpy(material.images).contiguous(memory_format=torch.channels_last)
    if variant == "modules":
        import winograd

        winograd.replace_convolutions(network, m=4, example=images[:1])
    if variant.startswith("selected"):
        select_tiles(network, images, threads)
    run: Callable[[Tensor], Any] = network
    if variant.startswith("one call"):
        run = in_one_call(network, images, m=4 if variant.endswith("m4") else None)
    if variant.endswith("compiled"):
        torch._inductor.config.freezing = True
        torch._dynamo.reset()  # of a second network it would make sizes open that frozen weights then can't have
        run = torch.compile(network)
    run(images)
    return Runnable(lambda: run(images), lambda: run(images).numpy())


def in_one_call(network: nn.Module, images: Tensor, *, m: int | None) -> nn.Module:
    """The network with Winograd convolutions of m, or of what is selected for these images, as one call."""
    import winograd

    winograd.replace_convolutions(network, m=m, example=images)
    prepared = winograd.prepare(torch.export.export(network, (images,)).module())
    if not prepared.in_one_call:
        raise RuntimeError(prepared.why_not_in_one_call)
    return prepared


def seeded(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval().requires_grad_(False)


def select_tiles(network: nn.Module, images: Tensor, threads: int) -> None:
    """Replace what winograd.selection would not convolve directly."""
    from winograd.module import why_not
    from winograd.selection import Shape, select

    outputs: dict[Convolution, torch.Size] = {}
    found = [(name, part) for name, part in network.named_modules() if isinstance(part, Convolution)]
    hooks = [
        part.register_forward_hook(lambda part, _, output: outputs.update({part: output.shape})) for _, part in found
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    for name, part in found:
        batch, filters, height, width = outputs[part]
        if why_not(part.conv) is None:
            choice = select(Shape(part.conv.in_channels, filters, height, width, batch=batch), threads=threads)
            if choice.m is not None:
                network.set_submodule(name, packed(part, choice.variant, choice.m))


def packed(replaced: Convolution, variant: str, m: int) -> nn.Module:
    """The same as a Convolution, by what winograd.selection chose for it."""
    import winograd

    weight, bias = replaced.conv.weight.detach(), replaced.conv.bias
    positions = list(range((m + 2) ** 2))
    if variant == "filters":
        packed = winograd.pack_filters(weight, positions, m)
    else:
        packed = winograd.pack_weights(winograd.transform_filters(weight, positions, m), positions, m)
    return winograd.PackedConv2d(packed, bias, padding=1, activation="relu" if replaced.relu else "none")
