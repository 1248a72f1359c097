"""Replacing the convolutions of a model by Winograd convolutions.

Replace those that become faster, or all with one tile; prune four of the 36 positions of each, and measure what is left:

    names = winograd.replace_convolutions(model, m=4)
    for name in names:
        model.get_submodule(name).prune([7, 10, 25, 28])
    with torch.inference_mode(), winograd.count_operations() as counted:
        model(images)
    print(counted.multiplications)
"""

from typing import Any

import torch
from torch import Tensor, nn

from winograd import arguments, selection
from winograd.matrices import FILTER_SIZE, MATRICES
from winograd.module import WinogradConv2d, why_not

TRANSFORMED_BEFORE: tuple[selection.Variant, ...] = ("weights",)
Sizes = list[torch.Size]  # of the outputs [N, K, OH, OW] that a convolution has in one run of the model


def replace_convolutions(
    model: nn.Module,
    *,
    m: int | None = None,
    example: Tensor | None = None,
    max_relative_error: float = selection.DEFAULT_MAX_RELATIVE_ERROR,
) -> list[str]:
    """Replace convolutions of `model` that have a Winograd form, in place; return their names.

    Without m, each becomes the F(m x m, 3x3) that `selection` expects to be fastest for the sizes that it has in one run on
    the `example` input, with torch's number of threads and within `max_relative_error`; where that is the direct convolution,
    it stays. With m, all become F(m x m, 3x3); with an example too, only those for which that takes fewer multiplications:
    small maps fill large tiles badly.
    """
    if m is None and example is None:
        raise ValueError("Pass an example input, so that the best tile of each convolution can be found, or m.")
    if m is not None:
        arguments.check_positions([0], m, 1)
    if why_not(model) is None:
        raise ValueError(
            "The model itself is a convolution and can't be replaced in place; call WinogradConv2d.from_conv2d."
        )
    able = {module for module in model.modules() if isinstance(module, nn.Conv2d) and why_not(module) is None}
    sizes: dict[nn.Conv2d, Sizes] = {} if example is None else _output_sizes(model, able, example)
    replacements = {}
    for conv in able:
        tile = m
        if m is None:
            tile = _fastest_tile(conv, sizes[conv], max_relative_error)
        elif example is not None and not _has_fewer_multiplications(sizes[conv], m):
            tile = None
        if tile is not None:
            replacements[conv] = WinogradConv2d.from_conv2d(conv, m=tile)
    names = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.Conv2d) and module in replacements:
            model.set_submodule(name, replacements[module])
            names.append(name)
    return names


def _fastest_tile(conv: nn.Conv2d, sizes: Sizes, max_relative_error: float) -> int | None:
    """The tile of the largest of its outputs: that is where the time goes."""
    if not sizes:
        return None
    batch, _, height, width = max(sizes, key=lambda size: size.numel())
    choice = selection.select(
        selection.Shape(conv.in_channels, conv.out_channels, height, width, batch, conv.groups),
        threads=torch.get_num_threads() if conv.weight.device.type == "cpu" else 1,
        device=selection_device(conv.weight.device),
        dtype=str(conv.weight.dtype).removeprefix("torch."),
        max_relative_error=max_relative_error,
        variants=TRANSFORMED_BEFORE,
    )
    return choice.m


def selection_device(device: torch.device) -> str:
    """Its name in selection.py. Where torch lets convolutions use TF32, which it does unless told otherwise, they are faster."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    uses_tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]  # torch's stub
    return f"sm_{major}{minor}" + (" with TF32" if uses_tf32 else "")


def _has_fewer_multiplications(sizes: Sizes, m: int) -> bool:
    saved = 0  # for each image, filter and channel
    for *_, height, width in sizes:
        saved += height * width * FILTER_SIZE**2 - -(-height // m) * -(-width // m) * MATRICES[m].t ** 2
    return saved > 0


def _output_sizes(model: nn.Module, convolutions: set[nn.Conv2d], example: Tensor) -> dict[nn.Conv2d, Sizes]:
    """The sizes of all outputs of each convolution in one run of the model; a single image counts as a batch of one."""
    sizes: dict[nn.Conv2d, Sizes] = {conv: [] for conv in convolutions}

    def note(module: nn.Module, _: Any, output: Tensor) -> None:  # torch's signature of a hook
        assert isinstance(module, nn.Conv2d)
        sizes[module].append(torch.Size([1] * (4 - output.dim()) + list(output.shape)))

    hooks = [conv.register_forward_hook(note) for conv in convolutions]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    return sizes
