"""From stored pixels to the model's input: x*scale, minus mean, over std; image files also resized and cropped."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from jobs.preflight import is_channels_last
from jobs.request import Preprocess
from workers.datasets.dataset import Dataset, Indices, Pixels
from workers.datasets.read_image_folder import FolderImages
from workers.models.graph import TensorSpec


@dataclass(frozen=True)
class InputTransform:
    """Turns batches of stored images into batches of one model's input.

    Without `preprocess` the values are fed as they are; `jobs.preflight` has made sure that this can be meant.
    """

    preprocess: Preprocess | None
    spec: TensorSpec

    def __call__(self, images: Pixels) -> Tensor:
        """The model's input for `images`, (n, C, H, W) as stored."""
        batch = torch.from_numpy(np.ascontiguousarray(images))
        if self.preprocess is not None:
            batch = _normalised(batch, self.preprocess)
        batch = batch.to(self.spec.dtype)
        if is_channels_last(tuple(batch.shape[1:]), self.spec.shape[1:]):
            batch = batch.permute(0, 2, 3, 1).contiguous()
        return batch


def _normalised(batch: Tensor, preprocess: Preprocess) -> Tensor:
    mean = torch.tensor(preprocess.mean, dtype=torch.float32).view(1, -1, 1, 1)
    std = torch.tensor(preprocess.std, dtype=torch.float32).view(1, -1, 1, 1)
    return (batch.to(torch.float32) * preprocess.scale - mean) / std


def fit_dataset(dataset: Dataset, preprocess: Preprocess | None) -> Dataset:
    """The dataset with its image files resized and cropped as asked."""
    if preprocess is None or not isinstance(dataset.images, FolderImages):
        return dataset
    return replace(dataset, images=dataset.images.fitted(preprocess.resize, preprocess.crop))


def input_batches(
    dataset: Dataset, indices: Indices, transform: InputTransform, *, batch_size: int
) -> Iterator[Tensor]:
    """The model's input for these images, `batch_size` at a time."""
    for start in range(0, len(indices), batch_size):
        yield transform(dataset.images.pick(indices[start : start + batch_size]))
