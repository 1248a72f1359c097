"""Training a network without its pruned positions (W-9): they aren't there, so nothing can bring them back.

Batch normalisation keeps its statistics. They are those of the training that the network comes from; images that vary less, or
otherwise, than those did would move them, and cost more than a short training gains. Networks whose batch normalisation was
folded into the weights before are then trained in the same way as others, too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

import winograd
from jobs.recipe import WinogradTraining
from workers.compression.finetune import Direction, OnProgress, TrainingImages, finetune
from workers.compression.learning_device import CPU
from workers.compression.winograd_scores import filter_moves
from workers.models.graph import Layer, ModelGraph, copy_graph, layers, parameter, set_parameter

FILTERS = "_filters"  # after the name of a layer's weights: the 3x3 filters that they are made from


@dataclass
class Trainer:
    """Trains networks of pruned Winograd convolutions, from labels or from the outputs of `teacher`."""

    images: TrainingImages
    options: WinogradTraining
    seed: int
    start: ModelGraph  # the network that the step was given, with 3x3 filters
    teacher: ModelGraph
    on_progress: OnProgress
    device: torch.device = CPU  # where it learns
    filters: dict[str, Tensor] = field(
        default_factory=dict
    )  # spatial domain: [K, C/g, 3, 3] as trained last, by weight

    def __call__(self, graph: ModelGraph, number: int) -> ModelGraph:
        """A trained copy of `graph`; `number` is that of the round, for a seed of its own."""
        if self.options.domain == "winograd":
            return self._finetuned(graph, number, _directions(graph, self.device))
        return self._trained_in_space(graph, number)

    def _trained_in_space(self, graph: ModelGraph, number: int) -> ModelGraph:
        pruned = [layer for layer in layers(graph) if layer.kind == "winograd_conv2d"]
        filters = {
            layer.weight: self.filters.get(layer.weight, parameter(self.start, layer.weight).detach())
            for layer in pruned
        }
        trained = self._finetuned(_with_filters(graph, pruned, filters), number, {})
        self.filters = {weight: parameter(trained, weight + FILTERS).detach() for weight in filters}
        result = copy_graph(graph)
        for name, _ in (*graph.module.named_parameters(), *graph.module.named_buffers()):
            if name not in filters:
                set_parameter(result, name, parameter(trained, name).detach())
        for layer in pruned:
            set_parameter(result, layer.weight, _transform_of(layer)(self.filters[layer.weight]))
        return result

    def _finetuned(self, graph: ModelGraph, number: int, directions: Mapping[str, Direction]) -> ModelGraph:
        # Whether the round is kept is for the search to judge, so nothing is evaluated here.
        result = finetune(
            graph, self.images, self.options, seed=self.seed + number, teacher=self.teacher, evaluate=None,
            on_progress=self.on_progress, directions=directions, learns_statistics=False, device=self.device,
        )  # fmt: skip
        return result.graph


def _directions(graph: ModelGraph, device: torch.device) -> dict[str, Direction]:
    """For each Winograd weight [P, K, C/g], how its gradient becomes the step that 3x3 filters would make it take."""
    directions = {}
    for layer in layers(graph):
        if layer.kind == "winograd_conv2d":
            assert layer.m is not None
            of_groups = torch.tensor(layer.positions).reshape(-1, layer.weight_shape[0])  # (kernel groups, P)
            moves = filter_moves(layer.m)
            directions[layer.weight] = _along(torch.stack([moves[of][:, of] for of in of_groups]).float().to(device))
    return directions


def _along(moves: Tensor) -> Direction:
    """Gradients [P, K, C/g] times moves [kernel groups, P, P]."""

    def direction(gradient: Tensor) -> Tensor:
        by_group = gradient.reshape(len(gradient), len(moves), -1, gradient.shape[2])
        return torch.einsum("gpq,qgkc->pgkc", moves, by_group).flatten(1, 2)

    return direction


def _transform_of(layer: Layer) -> Callable[[Tensor], Tensor]:
    """Filters [K, C/g, 3, 3] to the layer's weights [P, K, C/g]."""
    assert layer.m is not None
    m, positions = layer.m, list(layer.positions)
    groups = len(positions) // layer.weight_shape[0]

    def transform(filters: Tensor) -> Tensor:
        return winograd.transform_filters(filters, positions, m, kernel_groups=groups)

    return transform


def _with_filters(graph: ModelGraph, pruned: list[Layer], filters: Mapping[str, Tensor]) -> ModelGraph:
    """A copy whose Winograd weights are made anew from 3x3 filters in every pass. It is for training only."""
    made = copy_graph(graph)
    for layer in pruned:
        owner, _, leaf = layer.weight.rpartition(".")
        parent = made.module.get_submodule(owner)
        parent.register_parameter(leaf + FILTERS, nn.Parameter(filters[layer.weight].clone(), requires_grad=False))
        transform = _transform_of(layer)
        for node in [n for n in made.module.graph.nodes if n.op == "get_attr" and n.target == layer.weight]:
            _replace_by_transformed(node, layer.weight + FILTERS, transform)
        del parent._parameters[leaf]
    made.module.recompile()
    return made


def _replace_by_transformed(node: fx.Node, filters: str, transform: Callable[[Tensor], Tensor]) -> None:
    with node.graph.inserting_before(node):
        weights = node.graph.call_function(transform, (node.graph.get_attr(filters),))
    node.replace_all_uses_with(weights)
    node.graph.erase_node(node)
