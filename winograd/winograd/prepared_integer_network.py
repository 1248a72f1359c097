"""`PreparedIntegerNetwork`: a whole network of integers for inference, from a program that was packed once."""

import torch
from torch import Tensor, nn


class PreparedIntegerNetwork(nn.Module):
    """Runs a program, as `IntegerProgram.to_tensor` makes it, with `outputs` integers for each image.

    What it holds is good for this process only, so it is left out of the state dict. Raises ValueError or RuntimeError for what
    is no program.
    """

    def __init__(self, program: Tensor, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.register_buffer("prepared", torch.ops.winograd.prepare_integer_network(program), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return int32 [N, outputs] for images [N, C, H, W], float32 or, as the integers that the network takes, int32."""
        output: Tensor = torch.ops.winograd.integer_network_prepared(input, self._buffers["prepared"], self.outputs)
        return output

    def extra_repr(self) -> str:
        """Show what comes out."""
        return f"{self.outputs} outputs"
