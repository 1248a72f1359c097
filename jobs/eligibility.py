"""Which layers a step kind can work on, told from a model's inspection."""

from typing import Protocol

from jobs.inspection import LayerInfo, ModelInspection
from jobs.recipe import AssignPrecision, PruneWeights, PruneWinograd, QuantizeFixedPoint

LayerStep = PruneWeights | PruneWinograd | AssignPrecision | QuantizeFixedPoint  # steps that work on some layers
# What a search for a goal makes recipes of; finetune alone compresses nothing.
SEARCHED_KINDS = ("prune_weights", "prune_winograd", "assign_precision", "quantize_fixed_point")


def why_not_in_integers(model: ModelInspection) -> str | None:
    """Why a network can't be made of integers, which is all of it or nothing; None if it can."""
    reasons = reasons_against("quantize_fixed_point", model)
    if None in reasons:
        return None
    return next((reason for reason in reasons if reason is not None), "it has no layers")


def searched_layers(model: ModelInspection) -> dict[str, list[str]]:
    """By step kind, the layers that a search for a goal may change; kinds that can work on none are left out."""
    eligible = {
        kind: [layer.name for layer in model.layers if reason_against(kind, layer) is None] for kind in SEARCHED_KINDS
    }
    return {kind: names for kind, names in eligible.items() if names}


def excluded_by(step: LayerStep) -> tuple[str, ...]:
    """Layers that the recipe wants left as they are."""
    return () if isinstance(step, QuantizeFixedPoint) else step.exclude


def why_not(layer: LayerInfo, step: LayerStep) -> str | None:
    """Why the step leaves the layer alone; None if it can work on it."""
    if layer.name in excluded_by(step):
        return "excluded"
    reason = reason_against(step.kind, layer)
    if reason is None and isinstance(step, PruneWinograd):
        return why_not_grouped(layer, step)
    return reason


class Convolution(Protocol):
    """What groups of kernels must fit."""

    @property
    def weight_shape(self) -> tuple[int, ...]: ...
    @property
    def groups(self) -> int: ...


def why_not_grouped(layer: Convolution, step: PruneWinograd) -> str | None:
    """Why the layer's kernels can't have as many groups with positions of their own as the step wants; None if they can."""
    if step.groups == 1:
        return None
    filters, channels = layer.weight_shape[0], layer.weight_shape[1]
    number = filters if step.group_by == "output_channels" else channels
    if number % step.groups:
        return f"its {number} {step.group_by.replace('_', ' ')} can't be divided into {step.groups} groups"
    if step.group_by == "input_channels" and layer.groups != 1:
        return "it is a grouped convolution, whose input channels can't be divided further"
    if step.groups % layer.groups and layer.groups % step.groups:
        return f"{step.groups} groups would straddle the {layer.groups} groups of the convolution"
    return None


def reason_against(kind: str, layer: LayerInfo) -> str | None:
    """Why no step of this kind can work on the layer, as inspection found; None if one can."""
    eligibility = layer.steps.get(kind)
    if eligibility is None or eligibility.eligible:
        return None
    return eligibility.reason or "not eligible"


def reasons_against(kind: str, model: ModelInspection) -> list[str | None]:
    """The same of all layers."""
    return [reason_against(kind, layer) for layer in model.layers]
