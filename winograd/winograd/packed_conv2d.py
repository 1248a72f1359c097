"""`PackedConv2d`: a 3x3 convolution for inference, on weights that were packed once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from winograd import arguments, ops, selection


class PackedConv2d(nn.Module):
    """activation(convolution + bias + residual) on packed weights, without gradients.

    WinogradConv2d looks for changes of its weights in every call; this one has no weights that could change, and is called in
    half the time. Packed weights are good for this process and device only, so they are left out of the state dict.
    """

    def __init__(
        self,
        packed: ops.Packed,
        bias: Tensor | None = None,
        *,
        padding: int | Sequence[int] = 0,
        activation: str = "none",
    ) -> None:
        super().__init__()
        pair = [padding, padding] if isinstance(padding, int) else list(padding)
        arguments.check_padding(pair)
        arguments.check_epilogue(packed.filters, bias, activation)
        self.filters, self.m, self.groups = packed.filters, packed.m, packed.groups
        self.padding = pair[0], pair[1]
        self.activation = activation
        self.positions = packed.positions  # an attribute and no buffer: it stays on the CPU wherever the buffers go
        self.register_buffer("numbers", packed.numbers, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)
        self._operator = packed.operator
        self._sizes: tuple[torch.Size, int] | None = None  # the shape of the last input, and the number of threads
        self._blocking: Sequence[int] = ops.CHOSEN_BY_LIBRARY

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve [N, C, H, W]; residual: [N, K, OH, OW] to add before the activation."""
        # torch.compile would break its graph where the number of threads is asked for, in every layer.
        blocking = ops.CHOSEN_BY_LIBRARY if torch.compiler.is_compiling() else self._remembered_blocking(input)
        held = self._buffers  # torch's way to attributes takes ten times as long
        return self._operator(
            input, held["numbers"], self.positions, self.filters, self.m, *self.padding,
            held["bias"], residual, self.activation, self.groups, *blocking,
        )  # fmt: skip

    def _remembered_blocking(self, x: Tensor) -> Sequence[int]:
        sizes = x.shape, torch.get_num_threads()
        if sizes != self._sizes:
            self._sizes, self._blocking = sizes, self._measured_blocking(x, sizes[1])
        return self._blocking

    def _measured_blocking(self, x: Tensor, threads: int) -> Sequence[int]:
        measured = measured_blocking(x, self.filters, self.m, self.padding, groups=self.groups, threads=threads)
        return measured or ops.CHOSEN_BY_LIBRARY

    def extra_repr(self) -> str:
        """Show how it is computed."""
        shown = f"{self.filters} filters, padding={self.padding}"
        shown += f", groups={self.groups}" if self.groups != 1 else ""
        shown += f", activation={self.activation}" if self.activation != "none" else ""
        groups, kept = self.positions.shape
        shown += f", F({self.m}x{self.m}, 3x3), {kept} of {(self.m + 2) ** 2} positions"
        return shown + (f" in each of {groups} groups" if groups != 1 else "")


def measured_blocking(
    x: Tensor, filters: int, m: int, padding: Sequence[int], *, groups: int, threads: int
) -> selection.Blocking:
    """Return the blocking that was measured to be fastest for an input [N, C, H, W]; nothing where none was, or for no CPU."""
    if x.device.type != "cpu" or x.dim() != 4:
        return ()
    batch, _, height, width = arguments.output_shape(x, filters, padding)
    if min(batch, x.shape[1], height, width) < 1 or x.shape[1] % groups:
        return ()  # the operator says what is wrong, or there is nothing to do
    shape = selection.Shape(x.shape[1], filters, height, width, batch, groups)
    return selection.default_blocking(shape, m, threads)
