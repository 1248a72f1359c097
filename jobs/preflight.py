"""Whether a recipe can run on a model and data, told from their inspections alone; the API asks before it accepts a job, the
runner once more before it starts.

The rules of data roles are written here and nowhere else:

* `prune_weights`, `prune_winograd`, `assign_precision` and `quantize_fixed_point` decide on `selection`; `finetune`, and the
  others where they train, learn from `train`; figures are taken on `test`.
* One dataset alone is split by class: into halves for selection and test, or, if the recipe learns, into 60 % train,
  20 % selection and 20 % test. A lone `test` dataset is never split: it is not for decisions.
* Several datasets keep their roles whole.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args

from jobs.inspection import DatasetInspection, LayerInfo, ModelInspection
from jobs.recipe import (
    AssignPrecision,
    Finetune,
    OutputFormat,
    Preprocess,
    PruneWeights,
    PruneWinograd,
    QuantizeFixedPoint,
    Step,
    TrainingOptions,
)
from jobs.tiles import best_tile, tiles_of

Role = Literal["train", "selection", "test"]
LayerStep = PruneWeights | PruneWinograd | AssignPrecision | QuantizeFixedPoint  # steps that work on some layers
ROLES: tuple[Role, ...] = get_args(Role)
NEEDS: dict[str, tuple[Role, str]] = {
    "prune_weights": ("selection", "decides on selection images"),
    "prune_winograd": ("selection", "decides on selection images"),
    "assign_precision": ("selection", "decides on selection images"),
    "quantize_fixed_point": ("selection", "measures distributions on selection images"),
    "finetune": ("train", "learns from training images"),
}

_INPUT_DTYPES = ("float16", "float32", "float64", "uint8")

# Multiply-adds a second that one slow core does at the least in a convolution; only for an order of magnitude.
_MACS_PER_SECOND = 2e10


@dataclass(frozen=True)
class Problem:
    """A reason why a job can't run, and the JSON pointer to the part of the request that it is about."""

    pointer: str
    message: str
    hint: str | None = None


def learns(recipe: Iterable[Step]) -> bool:
    """Whether any step trains the model."""
    return any(role == "train" for step in recipe for role, _ in needs(step))


def needs(step: Step) -> list[tuple[Role, str]]:
    """The roles without whose images a step can't run, and why."""
    always = NEEDS[step.kind]
    if any(training is not None for _, training in _trainings(step)):
        return [always, ("train", "trains on training images")]
    return [always]


def _trainings(step: Step) -> list[tuple[str, TrainingOptions | None]]:
    """What a step may train with besides what it does, and where the recipe says so."""
    match step:
        case PruneWinograd():
            return [("training", step.training)]
        case AssignPrecision():
            return [("learning", step.learning if step.statistics is None else None)]
        case QuantizeFixedPoint():
            return [("pretraining", step.pretraining), ("training", step.training)]
        case _:
            return []


def split_of(role: Role, *, learns: bool) -> dict[Role, float] | None:
    """The fractions into which a dataset given alone for `role` is split; None if it stays whole."""
    if role == "test":
        return None
    if learns:
        return {"train": 0.6, "selection": 0.2, "test": 0.2}
    return {"selection": 0.5, "test": 0.5}


def roles_played(given: Collection[Role], *, learns: bool) -> frozenset[Role]:
    """The roles that have images once a dataset given alone was split."""
    if len(given) == 1:
        (role,) = given
        return frozenset(split_of(role, learns=learns) or given)
    return frozenset(given)


def check_recipe(
    recipe: Sequence[Step],
    data: Mapping[Role, DatasetInspection],
    model: ModelInspection,
    preprocess: Preprocess | None,
    outputs: Sequence[OutputFormat] = (),
) -> list[Problem]:
    """Everything that is known to be wrong with a job before it runs; empty if nothing is."""
    problems = [*_model_problems(model), *_missing_roles(recipe, data)]
    for role, dataset in data.items():
        problems += _dataset_problems(role, dataset, model, preprocess)
    problems += _preprocess_problems(data, preprocess)
    for index, step in enumerate(recipe):
        problems += _step_problems(f"/recipe/{index}", step, recipe, data, model)
    return problems + _order_problems(recipe, outputs)


def fitted_shape(dataset: DatasetInspection, preprocess: Preprocess | None) -> tuple[int | str, ...]:
    """The shape of one image, channels first, after resizing and cropping."""
    channels, *sides = dataset.shape
    if preprocess is None or dataset.format != "image_folder" or len(sides) != 2:
        return dataset.shape
    if preprocess.resize is not None:
        known = [side for side in sides if isinstance(side, int)]
        short = min(known) if len(known) == 2 else None
        sides = [
            max(1, preprocess.resize * side // short) if short and isinstance(side, int) else side for side in sides
        ]
    if preprocess.crop is not None:
        sides = [preprocess.crop, preprocess.crop]
    return (channels, *sides)


def fits(shape: Sequence[int | str], wanted: Sequence[int | str]) -> bool:
    """Whether images of `shape` can be fed where `wanted` is asked; a string in `wanted` stands for any size."""
    return len(shape) == len(wanted) and all(
        isinstance(side, int) and (isinstance(want, str) or side == want)
        for side, want in zip(shape, wanted, strict=True)
    )


def is_channels_last(shape: Sequence[int | str], wanted: Sequence[int | str]) -> bool:
    """Whether images (C, H, W) fit the model's input only with their channels last."""
    if len(shape) != 3 or fits(shape, wanted):
        return False
    channels, height, width = shape
    return fits((height, width, channels), wanted)


def estimate(recipe: Sequence[Step], data: Mapping[Role, DatasetInspection], model: ModelInspection) -> dict[str, Any]:
    """Roughly what a job costs at the most: layer evaluations, multiply-adds, bytes of activations, seconds on one core."""
    images = _images_by_role(recipe, data)
    steps = [_step_cost(step, images, model) for step in recipe]
    measuring = (images.get("test", 0) * 4 + images.get("selection", 0) * 2) * model.macs
    macs = measuring + sum(int(step["macs"]) for step in steps)
    return {
        "images": images,
        "steps": steps,
        "layer_evaluations_at_most": sum(int(step["layer_evaluations_at_most"]) for step in steps),
        "macs_at_most": macs,
        "model_bytes": model.parameters * 4,
        "seconds_at_most": round(macs / _MACS_PER_SECOND + 10, 1),
        "note": "An upper bound of the right order of magnitude for one core; probing usually saves most of it.",
    }


def _model_problems(model: ModelInspection) -> list[Problem]:
    problems = []
    if len(model.inputs) != 1:
        names = ", ".join(tensor.name for tensor in model.inputs)
        problems.append(
            Problem(
                "/model", f"The model has {len(model.inputs)} inputs ({names}); a job feeds exactly one, the images."
            )
        )
    first = model.inputs[0] if model.inputs else None
    if first is not None and first.dtype not in _INPUT_DTYPES:
        fed = ", ".join(_INPUT_DTYPES)
        problems.append(
            Problem("/model", f"The model's input {first.name!r} is {first.dtype}; images can be fed as {fed}.")
        )
    if model.classes is None:
        shapes = ", ".join(f"{tensor.name} {_product(tensor.shape)}" for tensor in model.outputs)
        problems.append(
            Problem(
                "/model",
                f"The model's first output is not one score a class for each image ({shapes}).",
                "Accuracy can't be measured without class scores; only classifiers can be compressed so far.",
            )
        )
    return problems


def _missing_roles(recipe: Sequence[Step], data: Mapping[Role, DatasetInspection]) -> list[Problem]:
    played = roles_played(data.keys(), learns=learns(recipe))
    given = ", ".join(role for role in ROLES if role in data) or "none"
    problems: list[Problem] = []
    wanted = [(index, step.kind, *need) for index, step in enumerate(recipe) for need in needs(step)]
    for index, kind, role, why in wanted:
        if role in played or any(problem.pointer == f"/data/{role}" for problem in problems):
            continue
        problems.append(
            Problem(
                f"/data/{role}",
                f"Step {index} ({kind}) {why}, but no dataset plays the role {role} (given: {given}).",
                f'Add "{role}" to "data".' if data else 'Give a dataset: {"data": {"selection": "dst_…"}}.',
            )
        )
    return problems


def _dataset_problems(
    role: Role, dataset: DatasetInspection, model: ModelInspection, preprocess: Preprocess | None
) -> list[Problem]:
    pointer = f"/data/{role}"
    problems = []
    if len(model.inputs) == 1:
        taken = model.inputs[0]
        shape, wanted = fitted_shape(dataset, preprocess), taken.shape[1:]
        if not fits(shape, wanted) and not is_channels_last(shape, wanted):
            problems.append(
                Problem(
                    pointer,
                    f"The images are {_product(shape)} (channels first), but the model's input {taken.name!r} takes "
                    f"{_product(wanted)}.",
                    'Image files can be resized: "preprocess": {"resize": …, "crop": …}.'
                    if dataset.format == "image_folder"
                    else None,
                )
            )
        if dataset.dtype == "uint8" and preprocess is None and taken.dtype != "uint8":
            problems.append(
                Problem(
                    "/preprocess",
                    f"The {role} images are stored as uint8, but the model's input {taken.name!r} is {taken.dtype}, and "
                    "nothing says how one becomes the other.",
                    'Give "preprocess", for instance {"scale": 0.00392156862745098} for values between 0 and 1.',
                )
            )
    if dataset.labelled and model.classes is not None:
        classes = _classes(dataset)
        if classes > model.classes:
            problems.append(
                Problem(pointer, f"The data have {classes} classes, but the model gives scores for {model.classes}.")
            )
    return problems


def _preprocess_problems(data: Mapping[Role, DatasetInspection], preprocess: Preprocess | None) -> list[Problem]:
    if preprocess is None or not data:
        return []
    problems = []
    channels = next(iter(data.values())).shape[0]
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(values) not in (1, channels):
            problems.append(
                Problem(
                    f"/preprocess/{name}",
                    f"{name} has {len(values)} values, but the images have {channels} channels.",
                    "Give one value, or one a channel.",
                )
            )
    arrays = [role for role, dataset in data.items() if dataset.format != "image_folder"]
    problems.extend(
        Problem(
            f"/preprocess/{name}",
            f"{name} works on image files, but the {arrays[0]} data are arrays.",
            "Resize arrays before uploading them.",
        )
        for name in ("resize", "crop")
        if arrays and getattr(preprocess, name) is not None
    )
    return problems


def _step_problems(
    pointer: str, step: Step, recipe: Sequence[Step], data: Mapping[Role, DatasetInspection], model: ModelInspection
) -> list[Problem]:
    match step:
        case PruneWeights():
            return [*_layer_problems(pointer, step, model), *_sample_problems(pointer, step, recipe, data)]
        case PruneWinograd():
            return [
                *_layer_problems(pointer, step, model),
                *_sample_problems(pointer, step, recipe, data),
                *_winograd_problems(pointer, step, model),
                *_training_problems(pointer, step, recipe, data),
            ]
        case AssignPrecision():
            return [
                *_layer_problems(pointer, step, model),
                *_statistics_problems(pointer, step, model),
                *_training_problems(pointer, step, recipe, data),
            ]
        case QuantizeFixedPoint():
            return [*_layer_problems(pointer, step, model), *_training_problems(pointer, step, recipe, data)]
        case Finetune():
            return _loss_problems(pointer, step, recipe, data)


def _order_problems(recipe: Sequence[Step], outputs: Sequence[OutputFormat]) -> list[Problem]:
    """Integers are the end of a network: nothing can work on them, and C is written of nothing else."""
    problems = _precision_problems(recipe)
    kinds = [step.kind for step in recipe]
    for index, kind in enumerate(kinds[:-1]):
        if kind == "quantize_fixed_point":
            problems.append(
                Problem(
                    f"/recipe/{index}",
                    f"quantize_fixed_point makes a network of integers, on which {kinds[index + 1]} can't work.",
                    "Make it the last step.",
                )
            )
        elif kind == "prune_winograd" and "quantize_fixed_point" in kinds[index:]:
            problems.append(
                Problem(
                    f"/recipe/{index}",
                    "prune_winograd makes Winograd convolutions, which quantize_fixed_point can't make integers of yet.",
                )
            )
    if "c" in outputs and kinds[-1:] != ["quantize_fixed_point"]:
        problems.append(
            Problem(
                f"/outputs/{list(outputs).index('c')}",
                "C source is written of networks in integers, and the recipe doesn't end in one.",
                'End the recipe with {"kind": "quantize_fixed_point"}, or ask for "onnx" or "pt2".',
            )
        )
    return problems


def _precision_problems(recipe: Sequence[Step]) -> list[Problem]:
    """Assigned bits are for a network in integers, and its weights keep the first of them."""
    problems = []
    assigned = [index for index, step in enumerate(recipe) if isinstance(step, AssignPrecision)]
    problems += [
        Problem(f"/recipe/{index}", "assign_precision is in the recipe before; bits are assigned once.")
        for index in assigned[1:]
    ]
    for index in assigned[:1]:
        step, quantization = recipe[index], recipe[-1]
        assert isinstance(step, AssignPrecision)
        if not isinstance(quantization, QuantizeFixedPoint):
            problems.append(
                Problem(
                    f"/recipe/{index}",
                    "assign_precision says with how many bits the weights of each layer are stored, but the recipe doesn't end in "
                    "quantize_fixed_point, which stores them.",
                    'End the recipe with {"kind": "quantize_fixed_point"}.',
                )
            )
        elif quantization.weight_bits != step.bits[0]:
            problems.append(
                Problem(
                    f"/recipe/{len(recipe) - 1}/weight_bits",
                    f"Layers that get no fewer bits keep {quantization.weight_bits} here, but the first precision of "
                    f"assign_precision is {step.bits[0]}.",
                    f"Say {step.bits[0]} in both.",
                )
            )
    return problems


def _statistics_problems(pointer: str, step: AssignPrecision, model: ModelInspection) -> list[Problem]:
    """Recorded statistics are of exactly the layers of the model."""
    if step.statistics is None:
        return []
    recorded, names = set(step.statistics.variances), [layer.name for layer in model.layers]
    missing, unknown = [name for name in names if name not in recorded], sorted(recorded - set(names))
    problems = []
    if missing:
        listed = ", ".join(repr(name) for name in missing[:5])
        problems.append(
            Problem(
                f"{pointer}/statistics",
                f"The statistics lack {len(missing)} of the model's {len(names)} layers: {listed}.",
                "Record all convolutions and linear layers, called as in the model.",
            )
        )
    if unknown:
        listed = ", ".join(repr(name) for name in unknown[:5])
        problems.append(Problem(f"{pointer}/statistics", f"The model has no layers called {listed}."))
    return problems


def _winograd_problems(pointer: str, step: PruneWinograd, model: ModelInspection) -> list[Problem]:
    problems = []
    names = [layer.name for layer in model.layers]
    for name in step.rates:
        if name not in names:
            close = get_close_matches(name, names, n=1, cutoff=0.0)
            hint = f"Did you mean {close[0]!r}?" if close else None
            problems.append(Problem(f"{pointer}/rates", f"The model has no layer called {name!r}.", hint))
    open_sizes = [size for tensor in model.inputs for size in tensor.shape[1:] if isinstance(size, str)]
    if open_sizes:
        problems.append(
            Problem(
                pointer,
                f"The model leaves the size {open_sizes[0]} of its images open; Winograd tiles are chosen and counted for one "
                "size.",
                "Export the model for the size of image that it will run on.",
            )
        )
    return problems


def _layer_problems(pointer: str, step: LayerStep, model: ModelInspection) -> list[Problem]:
    names = [layer.name for layer in model.layers]
    problems = []
    for index, name in enumerate(_excluded(step)):
        if name not in names:
            close = get_close_matches(name, names, n=1, cutoff=0.0)
            hint = f"Did you mean {close[0]!r}?" if close else None
            problems.append(Problem(f"{pointer}/exclude/{index}", f"The model has no layer called {name!r}.", hint))
    reasons = {layer.name: _why_not(layer, step) for layer in model.layers}
    if all(reason is not None for reason in reasons.values()):
        listed = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:10])
        problems.append(
            Problem(pointer, f"{step.kind} can't work on any layer of the model ({listed or 'it has no layers'}).")
        )
    return problems


def _excluded(step: LayerStep) -> tuple[str, ...]:
    return () if isinstance(step, QuantizeFixedPoint) else step.exclude


def _why_not(layer: LayerInfo, step: LayerStep) -> str | None:
    if layer.name in _excluded(step):
        return "excluded"
    eligibility = layer.steps.get(step.kind)
    if eligibility is None or eligibility.eligible:
        return None
    return eligibility.reason or "not eligible"


def _sample_problems(
    pointer: str, step: PruneWeights | PruneWinograd, recipe: Sequence[Step], data: Mapping[Role, DatasetInspection]
) -> list[Problem]:
    if step.images_per_class is None:
        return []
    fraction, source = _source_of("selection", recipe, data)
    if source is None or not source.class_counts:
        return []
    name, count = min(source.class_counts.items(), key=lambda item: item[1])
    # Rounding may give a class one image more than its fraction; the runner counts exactly.
    available = int(count * fraction + 0.5)
    if step.images_per_class <= available:
        return []
    part = "" if fraction == 1 else f" in the {fraction:.0%} of the data that are for selection"
    return [
        Problem(
            f"{pointer}/images_per_class",
            f"{step.images_per_class} images are asked of each class, but class {name!r} has {available}{part}.",
            f"Ask for {available} at the most, or leave it out to take as many as the smallest class has.",
        )
    ]


def _training_problems(
    pointer: str, step: Step, recipe: Sequence[Step], data: Mapping[Role, DatasetInspection]
) -> list[Problem]:
    return [
        problem
        for name, training in _trainings(step)
        if training is not None
        for problem in _loss_problems(f"{pointer}/{name}", training, recipe, data)
    ]


def _loss_problems(
    pointer: str, step: TrainingOptions, recipe: Sequence[Step], data: Mapping[Role, DatasetInspection]
) -> list[Problem]:
    _, source = _source_of("train", recipe, data)
    if step.loss != "labels" or source is None or source.labelled:
        return []
    return [
        Problem(
            f"{pointer}/loss",
            "The loss is to come from labels, but the training data have none.",
            'Use "distillation", or "auto", which takes labels where there are any.',
        )
    ]


def _source_of(
    role: Role, recipe: Sequence[Step], data: Mapping[Role, DatasetInspection]
) -> tuple[float, DatasetInspection | None]:
    """Which dataset the images of a role come from, and what fraction of it they are."""
    if len(data) == 1:
        ((given, dataset),) = data.items()
        fractions = split_of(given, learns=learns(recipe))
        if fractions is not None:
            return fractions.get(role, 0.0), dataset if role in fractions else None
    return 1.0, data.get(role)


def _images_by_role(recipe: Sequence[Step], data: Mapping[Role, DatasetInspection]) -> dict[Role, int]:
    images: dict[Role, int] = {}
    for role in ROLES:
        fraction, source = _source_of(role, recipe, data)
        if source is not None:
            images[role] = round(source.images * fraction)
    return images


def _step_cost(step: Step, images: Mapping[Role, int], model: ModelInspection) -> dict[str, Any]:
    match step:
        case PruneWeights():
            eligible = sum(_why_not(layer, step) is None for layer in model.layers)
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
            passes = (
                8  # two for distributions, and both networks walked through, in integers at a fraction of the speed
            )
            seen = min(step.calibration_images, images.get("selection", 0))
            epochs = sum(training.epochs for _, training in _trainings(step) if training is not None)
            learned = images.get("train", 0) * epochs
            return {
                "kind": step.kind,
                "layer_evaluations_at_most": 0,
                "images": seen + learned,
                "macs": (passes * seen + 3 * learned) * model.macs,
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
    eligible = [layer for layer in model.layers if _why_not(layer, step) is None]
    selection, trained = images.get("selection", 0), 0
    if step.training is not None:
        trained = images.get("train", 0) * step.training.epochs * step.rounds
    probes = 18 * len(eligible) if step.select == "allocate" else 0
    passes = probes + 4 * step.rounds  # measured, and judged before and after training
    return {
        "kind": step.kind,
        "layer_evaluations_at_most": probes,
        "images": selection + trained,
        "macs": (passes * selection + 3 * trained) * model.macs,
        "layers": [_winograd_savings(layer, step) for layer in eligible],
    }


def _winograd_savings(layer: LayerInfo, step: PruneWinograd) -> dict[str, Any]:
    """What the step would do to one layer: its tile, and multiplications of one image."""
    sides = (layer.output_shape[1], layer.output_shape[2])
    tile = best_tile(sides) if step.tile == "auto" else step.tile
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


def _classes(dataset: DatasetInspection) -> int:
    if dataset.format == "image_folder":
        return len(dataset.class_counts)
    return max((int(name) for name in dataset.class_counts), default=-1) + 1


def _product(shape: Sequence[int | str]) -> str:
    return " x ".join(str(side) for side in shape) or "a single number"
