"""`WinogradConv2d`: a 3x3 convolution that holds its weights in the Winograd domain, where positions can be pruned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from winograd import arguments, library, ops, selection
from winograd.matrices import FILTER_SIZE, MATRICES
from winograd.packed_conv2d import measured_blocking


@dataclass
class _Cache:
    """Packed weights and what they were made from; holding that keeps its address from being given to other weights.

    `blocking` is that of the last input, `sizes` its shape and the number of threads.
    """

    key: tuple[object, ...]
    weights: Tensor
    packed: ops.Packed
    sizes: tuple[torch.Size, int] | None = None
    blocking: selection.Blocking = ()


class WinogradConv2d(nn.Module):
    """activation(convolution with 3x3 filters, stride 1 + bias), computed as F(m x m, 3x3) at the kept positions only.

    `weights` is a parameter [P, K, C/g] of the Winograd domain; gradients and optimisers act on it there. `positions` lists
    the P kept positions (row * (m + 2) + column) of each of `kernel_groups` equal runs of filters, in one flat list; they are
    part of the state dict. Input [N, C, H, W] or [C, H, W].
    """

    def __init__(
        self,
        weights: Tensor,
        bias: Tensor | None = None,
        *,
        positions: Sequence[int],
        m: int,
        padding: int | Sequence[int] = 0,
        groups: int = 1,
        activation: str = "none",
    ) -> None:
        super().__init__()
        self.kernel_groups = arguments.check_weights(weights, positions, m, groups)
        self.padding = (padding, padding) if isinstance(padding, int) else tuple(padding)
        arguments.check_padding(self.padding)
        arguments.check_epilogue(weights.shape[1], bias, activation)
        self.weights = nn.Parameter(weights.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.positions = list(positions)
        self.m = m
        self.groups = groups
        self.activation = activation
        self._cache: _Cache | None = None

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        *,
        m: int,
        positions: Sequence[int] | None = None,
        kernel_groups: int = 1,
        activation: str = "none",
    ) -> "WinogradConv2d":
        """Return the same convolution as `conv`, up to rounding, at all positions, or only at `positions`.

        Raises ValueError, with the reason, for a convolution that has no Winograd form.
        """
        reason = why_not(conv)
        if reason is not None:
            raise ValueError(f"{conv} can't become a Winograd convolution: {reason}.")
        if positions is None:
            arguments.check_positions([0], m, 1)
            positions = list(range(MATRICES[m].t ** 2)) * kernel_groups
        weights = ops.transform_filters(conv.weight.detach(), positions, m, kernel_groups=kernel_groups)
        padding = {"same": (1, 1), "valid": (0, 0)}[conv.padding] if isinstance(conv.padding, str) else conv.padding
        module = cls(
            weights, conv.bias, positions=positions, m=m, padding=padding, groups=conv.groups, activation=activation
        )
        module.weights.requires_grad_(conv.weight.requires_grad)
        if module.bias is not None and conv.bias is not None:
            module.bias.requires_grad_(conv.bias.requires_grad)
        return module.train(conv.training)

    @property
    def in_channels(self) -> int:
        """C."""
        return self.weights.shape[2] * self.groups

    @property
    def out_channels(self) -> int:
        """K."""
        return self.weights.shape[1]

    def forward(self, input: Tensor) -> Tensor:
        """Convolve [N, C, H, W], or a single [C, H, W]."""
        if input.dim() == 3:
            return self.forward(input[None])[0]
        weights, bias = self._parameter("weights"), self._parameter("bias")
        if self._runs_packed(input, weights, bias):
            cache = self._packed_weights(weights)
            return ops.conv2d_packed(
                input, cache.packed, self.padding,
                bias=bias, activation=self.activation, blocking=self._blocking(input, cache),
            )  # fmt: skip
        return ops.conv2d(
            input, weights, self.positions, self.m, self.padding,
            bias=bias, activation=self.activation, groups=self.groups,
        )  # fmt: skip

    def prune(self, *positions: Sequence[int]) -> None:
        """Drop positions, so that they are never multiplied again: the same for all filters, or a list for each group of them.

        The parameter `weights` is replaced by a smaller one, so give it to a new optimiser. Raises ValueError for positions
        that are not there, if none would be left, and if groups would keep different numbers of them.
        """
        dropped = [set(group) for group in (positions * self.kernel_groups if len(positions) == 1 else positions)]
        if len(dropped) != self.kernel_groups or len({len(group) for group in dropped}) != 1:
            raise ValueError(
                f"{list(positions)} were to be pruned; pass one list, or equally long ones for each of the {self.kernel_groups} "
                "groups of filters."
            )
        kept = self._positions_by_group()
        for gone, there in zip(dropped, kept, strict=True):
            if not gone <= set(there) or len(gone) == len(there):
                raise ValueError(
                    f"{sorted(gone)} were to be pruned of the positions {there}; name some of these, but not all."
                )
        rows = [
            [row for row, p in enumerate(there) if p not in gone] for gone, there in zip(dropped, kept, strict=True)
        ]
        runs = self.weights.detach().chunk(self.kernel_groups, dim=1)
        weights = torch.cat([run[left] for run, left in zip(runs, rows, strict=True)], dim=1)
        self.weights = nn.Parameter(weights, requires_grad=self.weights.requires_grad)
        self.positions = [there[row] for there, left in zip(kept, rows, strict=True) for row in left]

    def _positions_by_group(self) -> list[list[int]]:
        kept = self.weights.shape[0]
        return [self.positions[i * kept : (i + 1) * kept] for i in range(self.kernel_groups)]

    # ---- Packed weights -------------------------------------------------------------------------------------------------

    def _parameter(self, name: str) -> Any:  # a tensor, or no bias
        """What the attribute is, without torch's slow way to parameters."""
        parameter = self._parameters.get(name)
        return getattr(self, name) if parameter is None else parameter

    def _runs_packed(self, x: Tensor, weights: Tensor, bias: Tensor | None) -> bool:
        """Packing pays for weights that stay; graphs that are traced get the weights themselves."""
        if torch.compiler.is_compiling() or weights.dtype != torch.float32 or weights.is_inference() or weights.is_meta:
            return False
        wants_gradients = x.requires_grad or weights.requires_grad or (bias is not None and bias.requires_grad)
        return not (wants_gradients and torch.is_grad_enabled())

    def _packed_weights(self, weights: Tensor) -> _Cache:
        # Writing through `.data` changes no version: whoever does that writes past this cache.
        made_for = library.implementation(), weights.shape, self.positions
        key = (weights._version, weights.data_ptr(), *made_for)
        cache = self._cache
        if cache is None or cache.key != key:
            with torch.no_grad():
                packed = ops.pack_weights(weights, self.positions, self.m, groups=self.groups)
            cache = self._cache = _Cache((*key[:-1], list(self.positions)), weights.detach(), packed)
        return cache

    def _blocking(self, x: Tensor, cache: _Cache) -> selection.Blocking:
        sizes = x.shape, torch.get_num_threads()
        if cache.sizes != sizes:
            cache.sizes = sizes
            cache.blocking = measured_blocking(
                x, self.out_channels, self.m, self.padding, groups=self.groups, threads=sizes[1]
            )
        return cache.blocking

    def __getstate__(self) -> dict[str, Any]:  # attributes of all kinds
        """Leave the packed weights out of copies and pickles."""
        return {**self.__dict__, "_cache": None}

    # ---- State dict: the weights mean nothing without their positions ----------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """Return m and the kept positions of each group, [1 + kernel_groups * P]."""
        return torch.tensor([self.m, *self.positions])

    def set_extra_state(self, state: Tensor) -> None:
        """Do nothing: positions are taken together with the weights, below."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:  # torch's hook
        weights = state_dict.get(f"{prefix}weights")
        state = state_dict.get(f"{prefix}_extra_state")
        # Weights of other filters are left to torch, which says what doesn't fit.
        if weights is not None and state is not None and weights.shape[1:] == self.weights.shape[1:]:
            m, *positions = state.tolist()
            self.kernel_groups = arguments.check_weights(weights, positions, m, self.groups)
            self.m, self.positions = m, positions
            if weights.shape != self.weights.shape:  # pruned before they were saved
                empty = self.weights.new_empty(weights.shape)
                self.weights = nn.Parameter(empty, requires_grad=self.weights.requires_grad)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        """Show as torch shows convolutions, and how it is computed."""
        m, t = self.m, MATRICES[self.m].t
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size=(3, 3), padding={self.padding}"
        shown += f", groups={self.groups}" if self.groups != 1 else ""
        shown += ", bias=False" if self.bias is None else ""
        shown += f", activation={self.activation}" if self.activation != "none" else ""
        shown += f", F({m}x{m}, 3x3), {self.weights.shape[0]} of {t * t} positions"
        return shown + (f" in each of {self.kernel_groups} groups" if self.kernel_groups != 1 else "")


def why_not(module: nn.Module) -> str | None:
    """Say why a module can't become a Winograd convolution; None if it can."""
    if type(module) is not nn.Conv2d:
        return f"it is a {type(module).__name__}, not a plain Conv2d"
    if module.kernel_size != (FILTER_SIZE, FILTER_SIZE):
        return f"its filters are {'x'.join(map(str, module.kernel_size))}, only 3x3 has a Winograd form here"
    if module.stride != (1, 1):
        return f"its stride is {module.stride}, only stride 1 has a Winograd form"
    if module.dilation != (1, 1):
        return f"its dilation is {module.dilation}, only dilation 1 has a Winograd form"
    if module.padding_mode != "zeros":
        return f"it pads with {module.padding_mode!r}, only zeros can be padded; pad before it"
    if module.weight.dtype not in arguments.DTYPES:
        return f"its weights are {module.weight.dtype}; convert them to float32"
    if module._forward_pre_hooks or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it has hooks, which would be lost; remove them first"
    return None
