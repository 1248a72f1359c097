"""Weights that are no numbers make every measurement meaningless, so they are refused where they are read."""

import torch
from torch import Tensor

from jobs.errors import ModelRefused


def check_finite(tensor: Tensor, name: str) -> None:
    """Refuse a tensor that holds NaN or infinity, by name."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    raise ModelRefused(f"{bad} of the {tensor.numel()} values of {name} are NaN or infinite", parameter=name)
