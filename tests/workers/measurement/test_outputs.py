"""The network in memory answers for every image, whatever batches it takes."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tests.workers.measurement.test_size import tiny_network
from workers.measurement.outputs import BATCH_SIZE, batch_size_of, network_outputs

IMAGES = torch.from_numpy(np.random.default_rng(0).normal(size=(11, 2, 6, 6)).astype(np.float32))


def test_outputs_come_in_order_for_any_batches() -> None:
    graph = tiny_network()
    (expected,) = graph(IMAGES)
    assert batch_size_of(graph) == BATCH_SIZE
    np.testing.assert_allclose(network_outputs(graph, IMAGES.split(4)), expected.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_batch_that_is_too_small_for_the_network_is_filled_up_and_cut() -> None:
    graph = replace(tiny_network(), batch_size=4)
    seen: list[int] = []
    graph.module.register_forward_pre_hook(lambda _module, batch: seen.append(len(batch[0])))
    (expected,) = tiny_network()(IMAGES)
    batches: tuple[Tensor, ...] = IMAGES.split(batch_size_of(graph))
    outputs = network_outputs(graph, batches)
    assert seen == [4, 4, 4]
    np.testing.assert_allclose(outputs, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
