"""Random variations of training images: of pixels, which leave the class as it is, and blends of input, which don't."""

import numpy as np
import torch
from torch import Tensor

from workers.datasets.dataset import Pixels


def flip_and_crop(pixels: Pixels, generator: torch.Generator) -> Pixels:
    """(n, C, H, W) of the same size: half of the images mirrored, each shifted by up to an eighth of its side; zeros move in."""
    count, _, height, width = pixels.shape
    margin = max(1, min(height, width) // 8)
    padded = np.pad(pixels, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    top = torch.randint(0, 2 * margin + 1, (count, 1), generator=generator).numpy()
    left = torch.randint(0, 2 * margin + 1, (count, 1), generator=generator).numpy()
    is_flipped = torch.rand(count, 1, generator=generator).numpy() < 0.5
    rows = top + np.arange(height)  # (n, H)
    columns = left + np.where(is_flipped, np.arange(width)[::-1], np.arange(width))  # (n, W)
    image = np.arange(count)[:, None, None]
    # Advanced indices around the slice put the channels last.
    cropped: Pixels = padded[image, :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)
    return np.ascontiguousarray(cropped)


def blended(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Input [n, ...] of the same size: each image a x + (1 - a) y with y another of them, a uniform in [0, 1].

    For learning from another network's outputs (mixup, Zhang et al. 2018; Beyer et al. 2022 learn functions with it).
    """
    shares = torch.rand(len(batch), *[1] * (batch.dim() - 1), generator=generator)
    others = batch[torch.randperm(len(batch), generator=generator)]
    return (others + shares * (batch - others)).to(batch.dtype)
