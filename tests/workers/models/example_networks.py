"""Networks that between them use every operator that is read from torch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from workers.models.graph import ModelGraph, copy_graph, layers, parameter, set_parameter


class Applied(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor) -> Tensor:
        return self.function(image)


def image(*shape: int) -> Tensor:
    """Seeded values between -1 and 1: two images of 4x8x8 if nothing else is said."""
    return torch.rand(shape or (2, 4, 8, 8), generator=torch.Generator().manual_seed(1)) * 2 - 1


class Wide(nn.Module):
    """Enough weights for zeros to matter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 32, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def with_zeros(graph: ModelGraph, sparsity: float) -> ModelGraph:
    """A copy whose layers have this part of their weights at zero, the smallest ones."""
    pruned = copy_graph(graph)
    for layer in layers(pruned):
        weight = parameter(pruned, layer.weight).clone()
        weight.view(-1)[weight.abs().view(-1).argsort()[: int(sparsity * weight.numel())]] = 0
        set_parameter(pruned, layer.weight, weight)
    return pruned


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": f.relu,
    "relu6": f.relu6,
    "hardtanh": lambda x: f.hardtanh(x, -0.3, 0.4),
    "clamp": lambda x: x.clamp(-0.2, 0.5),
    "clamp_min": lambda x: x.clamp_min(-0.2),
    "leaky_relu": f.leaky_relu,
    "elu": f.elu,
    "selu": f.selu,
    "gelu": f.gelu,
    "gelu_tanh": lambda x: f.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "hardsigmoid": f.hardsigmoid,
    "silu": f.silu,
    "hardswish": f.hardswish,
    "mish": f.mish,
    "tanh": torch.tanh,
    "softplus": lambda x: f.softplus(x, beta=2.0),
    "softmax": lambda x: f.softmax(x, 1),
    "log_softmax": lambda x: f.log_softmax(x, -1),
    "exp_log_sqrt": lambda x: (x.exp().log().abs() + 1).sqrt(),
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(),
    "square": torch.square,
    "reciprocal": lambda x: (x + 3).reciprocal(),
    "power": lambda x: x**3,
    "arithmetic": lambda x: (x * 2 + 1) / 3 - x,
    "reverse_subtraction": lambda x: 1 - x,
    "alpha": lambda x: torch.add(x, x * x, alpha=2),
    "maximum": lambda x: torch.maximum(x, -x),
    "minimum": lambda x: torch.minimum(x, x * x),
    "erf": torch.erf,
    "dropout": lambda x: f.dropout(x, 0.5, training=False),
    "max_pool": lambda x: f.max_pool2d(x, 3, 2, 1),
    "max_pool_rounded_up": lambda x: f.max_pool2d(x, 3, 2, ceil_mode=True),
    "average_pool": lambda x: f.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average_pool_divisor": lambda x: f.avg_pool2d(x, 2, divisor_override=3),
    "global_average": lambda x: f.adaptive_avg_pool2d(x, 1),
    "adaptive_average_of_equal_windows": lambda x: f.adaptive_avg_pool2d(x, (4, 2)),
    "adaptive_average_of_unequal_windows": lambda x: f.adaptive_avg_pool2d(x, (3, 5)),
    "adaptive_maximum": lambda x: f.adaptive_max_pool2d(x, 1),
    "mean": lambda x: x.mean((2, 3)),
    "mean_kept": lambda x: x.mean((2, 3), keepdim=True),
    "sum": lambda x: x.sum(1),
    "maximum_along": lambda x: x.amax((2, 3)),
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(x.size(0), -1),
    "view_with_a_number": lambda x: x.view(-1, 4 * 8 * 8),
    "reshape": lambda x: x.reshape(x.shape[0], 2, 2, 8, 8),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "squeeze": lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "concatenation": lambda x: torch.cat([x, x * 2], 1),
    "stack": lambda x: torch.stack([x, x * 2], 1),
    "slice": lambda x: x[:, 1:3, ::2, :-1],
    "select": lambda x: x[:, 1],
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1),
    "unbind": lambda x: x.unbind(1)[2],
    "channel_shuffle": lambda x: x.view(-1, 2, 2, 8, 8).transpose(1, 2).reshape(-1, 4, 8, 8),
    "zero_padding": lambda x: f.pad(x, (1, 2, 0, 1)),
    "channel_padding": lambda x: f.pad(x, (0, 0, 0, 0, 2, 2)),
    "reflection_padding": lambda x: f.pad(x, (1, 2, 2, 1), mode="reflect"),
    "replication_padding": lambda x: f.pad(x, (1, 2, 2, 1), mode="replicate"),
    "nearest": lambda x: f.interpolate(x, scale_factor=2.0),
    "nearest_to_size": lambda x: f.interpolate(x, size=(12, 20)),
    "bilinear": lambda x: f.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "bilinear_corners": lambda x: f.interpolate(x, size=(12, 20), mode="bilinear", align_corners=True),
    "pixel_shuffle": lambda x: f.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: f.pixel_unshuffle(x, 2),
    "matrix_product": lambda x: x @ x.transpose(2, 3),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1) + x,
    "cast": lambda x: x.half().float(),
    "normalize": lambda x: (x - x.mean(1, keepdim=True)) / 2,
    "number_of_images": lambda x: x * x.size(0),
    "in_place": lambda x: f.relu(x * 1, inplace=True) + 1,
}  # fmt: skip


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
    "conv_same": lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2),
    "conv_same_even": lambda: nn.Conv2d(4, 6, (2, 4), padding="same"),
    "conv_valid": lambda: nn.Conv2d(4, 6, 3, padding="valid", bias=False),
    "conv_transpose": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    "batch_norm": lambda: nn.BatchNorm2d(4),
    "batch_norm_without_weights": lambda: nn.BatchNorm2d(4, affine=False),
    "group_norm": lambda: nn.GroupNorm(2, 4),
    "layer_norm": lambda: nn.LayerNorm((8, 8)),
    "prelu": lambda: nn.PReLU(4),
    "linear": lambda: nn.Linear(8, 5),
    "classifier": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 5)),
}
