"""Data and models that don't belong together are noticed."""

import numpy as np
import torch
from torch import fx, nn

from workers.datasets.health import input_warnings, prediction_warnings
from workers.models.graph import ModelGraph, TensorSpec, aten

GENERATOR = np.random.default_rng(0)


def test_good_answers_are_not_warned_of() -> None:
    labels = GENERATOR.integers(0, 10, 500)
    assert prediction_warnings(labels.copy(), labels, 10) == []


def test_answers_near_guessing_are_warned_of() -> None:
    labels = GENERATOR.integers(0, 10, 500)
    (warning,) = prediction_warnings(GENERATOR.permutation(labels), labels, 10)
    assert "hardly better than guessing (10.00 %)" in warning


def test_classes_that_are_never_predicted_are_named() -> None:
    labels = np.repeat(np.arange(4), 50)
    predicted = np.where(labels == 2, 1, labels)
    assert prediction_warnings(predicted, labels, 4) == ["1 of the 4 classes are never predicted: 2."]


def batchnorm_graph(mean: float, variance: float) -> ModelGraph:
    """relu(batch_norm(image)) with statistics of a training whose input had this mean and variance."""
    root = nn.Module()
    for name, value in {"weight": 1.0, "bias": 0.0, "mean": mean, "var": variance}.items():
        root.register_buffer(name, torch.full((3,), value))
    graph = fx.Graph()
    image = graph.placeholder("image")
    weight, bias, running_mean, running_var = (graph.get_attr(name) for name in ("weight", "bias", "mean", "var"))
    normal = graph.call_function(
        aten.batch_norm.default, (image, weight, bias, running_mean, running_var, False, 0.1, 1e-5, False)
    )
    graph.output((graph.call_function(aten.relu.default, (normal,)),))
    shape = ("N", 3, 8, 8)
    return ModelGraph(
        fx.GraphModule(root, graph),
        (TensorSpec("image", torch.float32, shape),),
        (TensorSpec("scores", torch.float32, shape),),
        None,
    )


def test_input_like_that_of_the_training_is_not_warned_of() -> None:
    images = torch.from_numpy(GENERATOR.normal(2.0, 3.0, (50, 3, 8, 8)).astype(np.float32))
    assert input_warnings(batchnorm_graph(2.0, 9.0), images) == []


def test_input_unlike_that_of_the_training_is_warned_of() -> None:
    images = torch.from_numpy(GENERATOR.normal(0.5, 0.25, (50, 3, 8, 8)).astype(np.float32))
    (scale,) = input_warnings(batchnorm_graph(0.0, 100.0**2), images * 100)
    assert "the spread is 0.247 times as large" in scale
    (shift,) = input_warnings(batchnorm_graph(0.0, 0.25**2), images)
    assert "the means are off by 2.0 standard deviations" in shift
