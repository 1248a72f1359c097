"""The evaluator on a real network with shortcuts that slice and pad."""

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.request import Preprocess
from workers.compression.examples import Examples
from workers.compression.suffix_evaluator import SuffixEvaluator
from workers.compression.thresholds import pruned
from workers.datasets.preprocess import InputTransform
from workers.models.graph import ModelGraph, copy_graph, layers, parameter, set_parameter
from workers.models.read_pt2 import read_pt2

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def resnet20(data_folder: Path) -> ModelGraph:
    return read_pt2(data_folder / "models" / "cifar10_resnet20.pt2")


@pytest.fixture(scope="module")
def test_images(data_folder: Path, resnet20: ModelGraph) -> Examples:
    with np.load(data_folder / "images" / "cifar10_test_0000_4999.npz") as stored:
        pixels, labels = stored["x"][:100], stored["y"][:100].astype(np.int64)
    preprocess = Preprocess(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return Examples(lambda indices: pixels[indices], InputTransform(preprocess, resnet20.inputs[0]), labels)


def test_a_probe_of_every_layer_counts_what_the_whole_network_answers(
    resnet20: ModelGraph, test_images: Examples
) -> None:
    images = test_images.inputs(np.arange(100))
    evaluator = SuffixEvaluator(resnet20, test_images, cache_mib=64)
    assert len(layers(resnet20)) == 20
    for layer in layers(resnet20):
        weight = parameter(resnet20, layer.weight).detach()
        candidate = pruned(weight, 2 * float(weight.std()))  # some 95 % of the weights: many answers change
        changed = copy_graph(resnet20)
        set_parameter(changed, layer.weight, candidate)
        with torch.inference_mode():
            classes = changed(images)[0].argmax(dim=1).numpy()
        expected = int((classes == test_images.targets).sum())
        # Whole networks run in another memory layout here, so that a tie of scores could fall the other way.
        assert abs(evaluator.probe(layer, candidate, at_least=0).correct - expected) <= 1
