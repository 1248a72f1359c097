"""Roughly what a job costs, and what a goal can come to, told from inspections alone."""

from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

from jobs.data_roles import Role, confirming_images, images_by_role, learns, trainings, why_none_confirm
from jobs.eligibility import why_not, why_not_in_integers
from jobs.inspection import DatasetInspection, LayerInfo, ModelInspection
from jobs.recipe import AssignPrecision, Finetune, LearningCycles, PruneWeights, PruneWinograd, QuantizeFixedPoint, Step
from jobs.request import Goal
from jobs.tiles import best_tile, tiles_of

# Multiply-adds a second that one slow core does at the least in a convolution; only for an order of magnitude.
_MACS_PER_SECOND = 2e10
# Passes of quantize_fixed_point over its calibration images: two for distributions, and both networks walked through, in integers
# at a fraction of the speed.
_CALIBRATION_PASSES = 8
_SEARCHED_NETWORKS = 30  # that a search quantizes and measures, roughly
_GRAPH_BYTES_A_LAYER = 80  # a file's nodes and names; at the least, so that "too small to reach" is never said in vain
_BIAS_BYTES = 4
_MOST_BITS, _FEWEST_BITS, _FLOAT_BITS = 8, 2, 32
# Files that torch opens are deflated: weights of 2 bits took 1.9 there, and those of a layer with many zeros take less.
_FEWEST_DEFLATED_BITS = 1
_MOST_PRUNED = 0.99
WINOGRAD_PROBING_IMAGES = 512  # of the selection images, where a recipe doesn't say how many of each class
_FASTEST_TILES = (
    "Shown are the tiles with the fewest multiplications. Which are the fastest, and where direct convolution is faster, a "
    "worker looks up when the job runs: winograd's table comes with torch, which isn't loaded here."
)


def estimate(recipe: Sequence[Step], data: Mapping[Role, DatasetInspection], model: ModelInspection) -> dict[str, Any]:
    """Roughly what a job costs at the most: layer evaluations, multiply-adds, bytes of activations, seconds on one core."""
    images = images_by_role(data, learns=learns(recipe))
    steps = [_step_cost(step, images, model) for step in recipe]
    macs = _measuring_macs(images, model) + sum(int(step["macs"]) for step in steps)
    return {
        "images": images,
        "steps": steps,
        "layer_evaluations_at_most": sum(int(step["layer_evaluations_at_most"]) for step in steps),
        "macs_at_most": macs,
        "model_bytes": model.parameters * 4,
        "seconds_at_most": round(macs / _MACS_PER_SECOND + 10, 1),
        "note": "An upper bound of the right order of magnitude for one core; probing usually saves most of it.",
    }


def estimate_goal(
    goal: Goal, data: Mapping[Role, DatasetInspection], model: ModelInspection, *, runtime: str = "onnxruntime"
) -> dict[str, Any]:
    """Whether a goal looks reachable, between what sizes and operations a search chooses, and roughly how long it takes."""
    images = images_by_role(data, learns=True)
    sizes = _reachable_bytes(model, runtime)
    why_not = _why_not_reachable(goal, model, sizes)
    macs = _search_macs(images, model)
    seconds = min(macs / _MACS_PER_SECOND + 10, goal.deadline_seconds)
    return {
        "images": images,
        "confirming_images": confirming_images(images.get("selection", 0), goal),
        "reachable": why_not is None,
        "why_not_reachable": why_not,
        "bytes": sizes,
        "bit_operations": _reachable_operations(model),
        "model_bytes": model.parameters * 4,
        "macs_at_most": macs,
        "search_seconds_at_most": round(seconds, 1),
        "seconds_at_most": round(seconds + _measuring_macs(images, model) / _MACS_PER_SECOND + 10, 1),
        "note": _goal_note(goal, model, images),
    }


def _measuring_macs(images: Mapping[Role, int], model: ModelInspection) -> int:
    """Of the uploaded and the delivered network, before and after everything else."""
    return (images.get("test", 0) * 4 + images.get("selection", 0) * 2) * model.macs


def _step_cost(step: Step, images: Mapping[Role, int], model: ModelInspection) -> dict[str, Any]:
    match step:
        case PruneWeights():
            eligible = sum(why_not(layer, step) is None for layer in model.layers)
            layers = min(eligible, step.stop.layers or eligible)
            rates = int((step.max_rate - step.first_rate) / step.rate_step) + 1
            # An extra round is for layers that rose by all steps of the last one.
            rounds = step.rounds_to_run + (rates // step.steps_per_round if step.rounds_to_run > 1 else 0)
            # In each round L + (L-1) + … sensitivities.
            probes = rounds * sum(eligible - done for done in range(layers))
            # Each subject layer tried at every rate, and in each further round once more at one that was too much before.
            evaluations = probes + min(eligible, rounds * layers) * rates + (rounds - 1) * layers
            seen = images.get("selection", 0)
            return {
                "kind": step.kind,
                "layer_evaluations_at_most": evaluations,
                "images": seen,
                "macs": evaluations * seen * model.macs,
            }
        case PruneWinograd():
            return _winograd_cost(step, images, model)
        case AssignPrecision():
            seen = images.get("selection", 0)
            learned = images.get("train", 0) * step.learning.epochs if step.statistics is None else 0
            tried = _networks_tried(step, len(model.layers))
            return {
                "kind": step.kind,
                "layer_evaluations_at_most": tried * len(model.layers),
                "images": seen + learned,
                "macs": ((tried + 8) * seen + 3 * learned) * model.macs,
            }
        case QuantizeFixedPoint():
            seen = min(step.calibration_images, images.get("train") or images.get("selection", 0))
            epochs = sum(training.epochs for _, training in trainings(step) if training is not None)
            learned = images.get("train", 0) * epochs
            return {
                "kind": step.kind,
                "layer_evaluations_at_most": 0,
                "images": seen + learned,
                "macs": (_CALIBRATION_PASSES * seen + 3 * learned) * model.macs,
            }
        case Finetune():
            seen = images.get("train", 0) * step.epochs
            return {
                "kind": step.kind,
                "layer_evaluations_at_most": 0,
                "images": seen,
                "macs": 3 * seen * model.macs,  # forward, and twice as much backward
            }


def _networks_tried(step: AssignPrecision, layers: int) -> int:
    """Networks that a search measures at the most, with those that it is compared with."""
    searched = layers if step.search == "linear" else layers.bit_length() + 2
    return 1 + searched * len(step.bits[1:]) + (step.controls + 4 if step.controls else 0)


def _winograd_cost(step: PruneWinograd, images: Mapping[Role, int], model: ModelInspection) -> dict[str, Any]:
    eligible = [layer for layer in model.layers if why_not(layer, step) is None]
    selection, trained = images.get("selection", 0), 0
    if step.training is not None:
        trained = images.get("train", 0) * step.training.epochs * step.rounds
    probes = 9 * len(eligible) if step.select == "allocate" else 0
    probed = min(selection, WINOGRAD_PROBING_IMAGES)
    if step.images_per_class is not None:
        probed = min(selection, step.images_per_class * (model.classes or 1))
    passes = 4 * step.rounds  # measured, and judged before and after training
    cost = {
        "kind": step.kind,
        "layer_evaluations_at_most": probes,
        "images": selection + trained,
        "macs": (probes * probed + passes * selection + 3 * trained) * model.macs,
        "layers": [_winograd_savings(layer, step) for layer in eligible],
    }
    return cost if step.tile != "fastest" else {**cost, "note": _FASTEST_TILES}


def _winograd_savings(layer: LayerInfo, step: PruneWinograd) -> dict[str, Any]:
    """What the step would do to one layer: its tile, and multiplications of one image."""
    sides = (layer.output_shape[1], layer.output_shape[2])
    tile = step.tile if isinstance(step.tile, int) else best_tile(sides)
    positions = (tile + 2) ** 2
    whole = tiles_of(tile, sides) * positions * layer.weight_shape[0] * layer.weight_shape[1]
    own_rate = step.rates.get(layer.name)
    pruned = int(step.max_rate * positions) if own_rate is None else round(own_rate * positions)
    return {
        "layer": layer.name,
        "tile": tile,
        "positions": positions,
        "multiplications_direct": layer.macs,
        "multiplications_winograd": whole,
        "multiplications_at_least": whole // positions * (positions - pruned),
    }


def _reachable_bytes(model: ModelInspection, runtime: str) -> dict[str, int]:
    """Of the file: weights and biases, and the least that its graph takes."""
    graph = sum(_GRAPH_BYTES_A_LAYER + _BIAS_BYTES * layer.weight_shape[0] for layer in model.layers)
    weights = sum(prod(layer.weight_shape) for layer in model.layers)
    if why_not_in_integers(model) is None:
        fewest = _FEWEST_DEFLATED_BITS if runtime == "torch" else _FEWEST_BITS
        return {
            "at_least": graph + ceil(weights * fewest / 8),
            "at_most": graph + weights * _MOST_BITS // 8,
        }
    # A bit for each weight, and the values that pruning leaves.
    pruned = ceil(weights / 8) + round(weights * (1 - _MOST_PRUNED)) * 4
    return {"at_least": graph + pruned, "at_most": graph + weights * 4}


def _reachable_operations(model: ModelInspection) -> dict[str, int]:
    """Multiplications of one image times the bits of both factors."""
    if why_not_in_integers(model) is None:
        return {"at_least": model.macs * _FEWEST_BITS * 8, "at_most": model.macs * _MOST_BITS * 8}
    most = model.macs * _FLOAT_BITS**2
    return {"at_least": round(most * (1 - _MOST_PRUNED)), "at_most": most}


def _why_not_reachable(goal: Goal, model: ModelInspection, sizes: Mapping[str, int]) -> str | None:
    wanted, smallest = goal.constraints.max_bytes, sizes["at_least"]
    if wanted is None or wanted >= smallest:
        return None
    against = why_not_in_integers(model)
    how = f"with {_FEWEST_BITS}-bit weights" if against is None else f"with {_MOST_PRUNED:.0%} of all weights pruned"
    return f"max_bytes is {wanted:,}, but even {how} the file has about {smallest:,} bytes."


def _search_macs(images: Mapping[Role, int], model: ModelInspection) -> int:
    """Networks measured on selection images and calibrated on some of them; and learning, where there are images for it."""
    selection = images.get("selection", 0)
    calibration = min(QuantizeFixedPoint(kind="quantize_fixed_point").calibration_images, selection)
    measured = _SEARCHED_NETWORKS * (selection + _CALIBRATION_PASSES * calibration)
    learned = LearningCycles().epochs * images.get("train", 0)
    return (measured + 3 * learned) * model.macs  # forward, and twice as much backward


def _goal_note(goal: Goal, model: ModelInspection, images: Mapping[Role, int]) -> str:
    sentences = [
        "Rough: bytes are those of weights and biases, and an allowance for the graph; what accuracy allows, and how long one "
        "inference takes, only the search can tell."
    ]
    against = why_not_in_integers(model)
    if against is not None:
        sentences.append(f"The network can't be made of integers ({against}), so its bytes only fall by pruning.")
    if "train" not in images:
        sentences.append('Nothing learns without training images; give them as "train", or one dataset alone.')
    selection = images.get("selection", 0)
    held = confirming_images(selection, goal)
    sentences.append(
        f"About {held:,} of the {selection:,} selection images have no part in the search, but confirm its choice."
        if held
        else why_none_confirm(selection, goal)
    )
    return " ".join(sentences)
