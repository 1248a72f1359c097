"""What a network in memory answers: the reference that every delivered file is held against."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers.models.graph import ModelGraph

BATCH_SIZE = 100


def batch_size_of(graph: ModelGraph) -> int:
    """How many images to feed at once."""
    return graph.batch_size or BATCH_SIZE


@torch.inference_mode()
def network_outputs(graph: ModelGraph, batches: Iterable[Tensor]) -> npt.NDArray[np.floating]:
    """The first output for all images of all batches, in order. A batch that is too small is filled up and cut again."""
    outputs = []
    for batch in batches:
        size = graph.batch_size or len(batch)
        filled = batch if len(batch) == size else _filled(batch, size)
        outputs.append(graph(filled)[0][: len(batch)].numpy())
    return np.concatenate(outputs)


def _filled(batch: Tensor, size: int) -> Tensor:
    return batch[torch.arange(size) % len(batch)]
