"""Which layers a step kind can work on, and why not the others."""

import torch
from torch import Tensor

from jobs.errors import RecipeRefused
from workers.compression.fixed_point_plan import make_plan
from workers.compression.fold_batchnorm import fold_batchnorm
from workers.compression.winograd_layers import why_not_winograd
from workers.models.graph import Layer, ModelGraph

SMALLEST_LAYER = 16  # a distribution of fewer weights says nothing


def why_not(step_kind: str, layer: Layer, weight: Tensor, in_integers: str | None = None) -> str | None:
    """The reason why `step_kind` leaves a layer with this weight alone, or None if it can work on it.

    `in_integers` is why the whole network can't be made of integers (`why_not_in_integers`).
    """
    if not weight.is_floating_point():
        return f"its weights are {str(weight.dtype).removeprefix('torch.')}, not floating point"
    match step_kind:
        case "prune_weights":
            return _why_not_prune(layer, weight)
        case "prune_winograd":
            return why_not_winograd(layer, weight.dtype)
        case "quantize_fixed_point" | "assign_precision":
            return in_integers
        case "finetune":
            return None
        case _:
            return f"{step_kind} is not a step that Winnow knows"


def why_not_in_integers(graph: ModelGraph) -> str | None:
    """The reason why a network can't be made of integers, all of it or nothing; None if it can."""
    try:
        make_plan(fold_batchnorm(graph))
    except RecipeRefused as refused:
        return str(refused)
    except (
        RuntimeError
    ) as error:  # torch's, of operands that don't fit each other; it is inspection's to say whether that matters
        return f"the network can't be followed: {str(error).strip().splitlines()[0]}"
    return None


def _why_not_prune(layer: Layer, weight: Tensor) -> str | None:
    if layer.kind == "winograd_conv2d":
        return "it is a Winograd convolution; what prune_winograd keeps of it is all that it has"
    if weight.numel() < SMALLEST_LAYER:
        return f"it has only {weight.numel()} weights; a threshold needs at least {SMALLEST_LAYER}"
    if float(weight.to(torch.float64).std(unbiased=False)) == 0.0:
        return "all its weights are equal, so their distribution gives no threshold"
    return None
