"""Signs that data and model don't belong together: preprocessing that can't be right, classes that are never found."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from workers.datasets.dataset import Indices
from workers.models.graph import ModelGraph, aten, parameter

# A network whose accuracy is within this many points of guessing has most likely been fed the wrong values.
NEAR_CHANCE_PP = 5.0
# How far from the statistics of the training the input of the first batch normalisation may lie: standard deviations of the mean,
# and factor of the standard deviation, each as the median over the channels.
FAR_MEAN = 1.5
FAR_STD_FACTOR = 3.0


def prediction_warnings(predicted: Indices, labels: Indices, classes: int) -> list[str]:
    """What the uploaded network's answers say about the data."""
    right, chance = 100 * float(np.mean(predicted == labels)), 100 / classes
    margin = max(NEAR_CHANCE_PP, 300 * float(np.sqrt(chance / 100 * (1 - chance / 100) / len(labels))))
    found = []
    if right < chance + margin:
        found.append(
            f"The uploaded model is right on {right:.2f} % of these images, hardly better than guessing ({chance:.2f} %): "
            "the preprocessing or the order of the classes can't be right."
        )
    present, answered = np.unique(labels), np.unique(predicted)
    never = np.setdiff1d(present, answered)
    if len(never):
        listed = ", ".join(str(label) for label in never[:10])
        found.append(f"{len(never)} of the {len(present)} classes are never predicted: {listed}.")
    return found


def input_warnings(graph: ModelGraph, images: Tensor) -> list[str]:
    """Compare what reaches the first batch normalisation with what it saw in training, if there is one."""
    seen = _first_batchnorm(graph, images)
    if seen is None:
        return []
    values, mean, variance = seen
    flat = values.transpose(0, 1).reshape(values.shape[1], -1).double()
    std = variance.double().clamp_min(1e-12).sqrt()
    shift = float(((flat.mean(dim=1) - mean.double()).abs() / std).median())
    factor = float((flat.std(dim=1) / std).median())
    if shift <= FAR_MEAN and 1 / FAR_STD_FACTOR <= factor <= FAR_STD_FACTOR:
        return []
    return [
        "The input is unlike that of the training: before the first batch normalisation the means are off by "
        f"{shift:.1f} standard deviations and the spread is {factor:.3g} times as large (medians over the channels). "
        'Check "preprocess": scale, mean, std and the order of the colours.'
    ]


def _first_batchnorm(graph: ModelGraph, images: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Its input (N, C, …), running mean and running variance; None if the network has none."""
    values: dict[fx.Node, Any] = {}
    with torch.inference_mode():
        for node in graph.module.graph.nodes:
            arguments = fx.node.map_arg(node.args, values.__getitem__)
            if node.op == "placeholder":
                values[node] = images
            elif node.op == "get_attr":
                values[node] = parameter(graph, str(node.target))
            elif node.target is aten.batch_norm.default:
                # batch_norm(input, weight, bias, running_mean, running_var, …)
                return arguments[0], arguments[3], arguments[4]
            elif node.op == "call_function":
                values[node] = node.target(*arguments, **fx.node.map_arg(node.kwargs, values.__getitem__))
    return None
