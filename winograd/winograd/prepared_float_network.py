"""`PreparedFloatNetwork`: a whole float32 network for inference, from a program that was packed once."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PreparedFloatNetwork(nn.Module):
    """Runs a program, as `FloatProgram.to_tensor` makes it, whose outputs have the shape [K] or [K, H, W] for each image.

    What it holds is good for this process only, so it is left out of the state dict. Raises RuntimeError for what is no program,
    or none that the implementation in use can run.
    """

    def __init__(self, program: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.outputs = math.prod(self.shape)
        self.register_buffer("prepared", torch.ops.winograd.prepare_float_network(program), persistent=False)
        self._operator = torch.ops.winograd.float_network_prepared.default

    def forward(self, input: Tensor) -> Tensor:
        """Return float32 [N, K] or [N, K, H, W] for float32 images [N, C, H, W]."""
        # torch's way to attributes takes ten times as long
        output: Tensor = self._operator(input, self._buffers["prepared"], self.outputs)
        return output if len(self.shape) == 1 else output.view(output.shape[0], *self.shape)

    def extra_repr(self) -> str:
        """Show what comes out."""
        return f"outputs of {list(self.shape)}"
