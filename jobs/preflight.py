"""Whether a recipe can run on a model and data, or a goal be searched for, told from their inspections alone; the API asks before
it accepts a job, the runner once more before it starts.

What a goal asks for besides, so that no search begins that can't deliver: the file that its target opens is among the outputs,
C source only of networks that can be made of integers, at least one layer that some step can work on, and time left after the
search in which the best network is written and verified.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from jobs.data_roles import ROLES, Role, learns, needs, roles_played, source_of, trainings
from jobs.eligibility import (
    SEARCHED_KINDS,
    LayerStep,
    excluded_by,
    reasons_against,
    searched_layers,
    why_not,
    why_not_in_integers,
)
from jobs.folder import Compress
from jobs.inspection import DatasetInspection, ModelInspection
from jobs.recipe import (
    AssignPrecision,
    Finetune,
    PruneWeights,
    PruneWinograd,
    QuantizeFixedPoint,
    Step,
    TrainingOptions,
)
from jobs.request import Goal, JobRequest, Limits, OutputFormat, Preprocess, Target

OPENED_FORMATS: dict[str, OutputFormat] = {"onnxruntime": "onnx", "torch": "pt2"}
# Written of networks in integers only; called so in sentences.
OF_INTEGERS: dict[OutputFormat, str] = {"c": "C source is", "pt2_integers": "pt2_integers is"}

_INPUT_DTYPES = ("float16", "float32", "float64", "uint8")


@dataclass(frozen=True)
class Problem:
    """A reason why a job can't run, and the JSON pointer to the part of the request that it is about."""

    pointer: str
    message: str
    hint: str | None = None


def check_request(
    request: JobRequest | Compress, data: Mapping[Role, DatasetInspection], model: ModelInspection
) -> list[Problem]:
    """Everything that is known to be wrong with a job before it runs, whichever way it says what to do; empty if nothing is."""
    if request.goal is None:
        return check_recipe(request.recipe, data, model, request.preprocess, request.outputs)
    return check_goal(
        request.goal, data, model, request.preprocess, request.outputs, request.target, limits=request.limits
    )


def check_recipe(
    recipe: Sequence[Step],
    data: Mapping[Role, DatasetInspection],
    model: ModelInspection,
    preprocess: Preprocess | None,
    outputs: Sequence[OutputFormat] = (),
) -> list[Problem]:
    """Everything that is known to be wrong with a recipe before it runs; empty if nothing is."""
    problems = [
        *_model_problems(model),
        *_missing_roles(recipe, data),
        *_data_problems(data, model, preprocess),
    ]
    for index, step in enumerate(recipe):
        problems += _step_problems(f"/recipe/{index}", step, recipe, data, model)
    return problems + _order_problems(recipe, outputs) + _operator_problems(recipe, outputs)


def check_goal(
    goal: Goal,
    data: Mapping[Role, DatasetInspection],
    model: ModelInspection,
    preprocess: Preprocess | None,
    outputs: Sequence[OutputFormat],
    target: Target,
    *,
    limits: Limits,
) -> list[Problem]:
    """Everything that is known to be wrong with a goal before a search for it begins; empty if nothing is."""
    return [
        *_model_problems(model),
        *_nothing_to_search(model),
        *_missing_selection(data),
        *_data_problems(data, model, preprocess),
        *_target_problems(outputs, target),
        *_source_problems(outputs, model),
        *_deadline_problems(goal, limits),
    ]


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
    problems: list[Problem] = []
    wanted = [(index, step.kind, *need) for index, step in enumerate(recipe) for need in needs(step)]
    for index, kind, role, why in wanted:
        if role in played or any(problem.pointer == f"/data/{role}" for problem in problems):
            continue
        problems.append(
            Problem(
                f"/data/{role}",
                f"Step {index} ({kind}) {why}, but no dataset plays the role {role} (given: {_given_roles(data)}).",
                _how_to_give(role, data),
            )
        )
    return problems


def _missing_selection(data: Mapping[Role, DatasetInspection]) -> list[Problem]:
    if "selection" in roles_played(data.keys(), learns=True):
        return []
    return [
        Problem(
            "/data/selection",
            f"The search decides on selection images, but no dataset plays the role selection (given: {_given_roles(data)}).",
            _how_to_give("selection", data),
        )
    ]


def _given_roles(data: Mapping[Role, DatasetInspection]) -> str:
    return ", ".join(role for role in ROLES if role in data) or "none"


def _how_to_give(role: Role, data: Mapping[Role, DatasetInspection]) -> str:
    return f'Add "{role}" to "data".' if data else 'Give a dataset: {"data": {"selection": "dst_…"}}.'


def _data_problems(
    data: Mapping[Role, DatasetInspection], model: ModelInspection, preprocess: Preprocess | None
) -> list[Problem]:
    problems = [
        problem for role, dataset in data.items() for problem in _dataset_problems(role, dataset, model, preprocess)
    ]
    return problems + _preprocess_problems(data, preprocess)


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


def _nothing_to_search(model: ModelInspection) -> list[Problem]:
    if searched_layers(model):
        return []
    reasons = {kind: dict.fromkeys(filter(None, reasons_against(kind, model))) for kind in SEARCHED_KINDS}
    listed = "; ".join(f"{kind}: {', '.join(list(against)[:3])}" for kind, against in reasons.items() if against)
    return [Problem("/model", f"No step can work on any layer of the model ({listed or 'it has no layers'}).")]


def _target_problems(outputs: Sequence[OutputFormat], target: Target) -> list[Problem]:
    """A goal is about one file, the one that its target runs."""
    opened = OPENED_FORMATS[target.runtime]
    if opened in outputs or (target.runtime == "torch" and "pt2_integers" in outputs):
        return []
    others = [runtime for runtime, form in OPENED_FORMATS.items() if form in outputs]
    instead = f', or say "target": {{"runtime": "{others[0]}"}}' if others else ""
    return [
        Problem(
            "/outputs",
            f"The goal is measured on the file that {target.runtime} opens, but {opened!r} is not among the outputs "
            f"({', '.join(outputs)}).",
            f'Add "{opened}" to "outputs"{instead}.',
        )
    ]


def _source_problems(outputs: Sequence[OutputFormat], model: ModelInspection) -> list[Problem]:
    reason = why_not_in_integers(model)
    problems = []
    for index, output in enumerate(outputs):
        if output in OF_INTEGERS and reason is not None:
            problems.append(
                Problem(
                    f"/outputs/{index}",
                    f"{OF_INTEGERS[output]} written of networks in integers, and this one can't be made of integers: {reason}",
                    'Ask for "onnx" or "pt2" only.',
                )
            )
    return problems


def _deadline_problems(goal: Goal, limits: Limits) -> list[Problem]:
    """A job that is ended in the middle of its search delivers nothing."""
    if goal.deadline_seconds < limits.deadline_seconds:
        return []
    return [
        Problem(
            "/goal/deadline_seconds",
            f"The search may take {goal.deadline_seconds} s, but the whole job is ended after {limits.deadline_seconds} s, before "
            "its result could be written and verified.",
            'Give the search less time, or the job more: "limits": {"deadline_seconds": …}.',
        )
    ]


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
            return [
                *_layer_problems(pointer, step, model),
                *_unknown_layers(f"{pointer}/layer_bits", step.layer_bits, model),
                *_training_problems(pointer, step, recipe, data),
            ]
        case Finetune():
            return _loss_problems(pointer, step, recipe, data)


def _order_problems(recipe: Sequence[Step], outputs: Sequence[OutputFormat]) -> list[Problem]:
    """Integers are the end of a network: nothing can work on them, and some files are written of nothing else."""
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
    problems += _tile_problems(recipe)
    for index, output in enumerate(outputs):
        if output in OF_INTEGERS and kinds[-1:] != ["quantize_fixed_point"]:
            problems.append(
                Problem(
                    f"/outputs/{index}",
                    f"{OF_INTEGERS[output]} written of networks in integers, and the recipe doesn't end in one.",
                    'End the recipe with {"kind": "quantize_fixed_point"}, or ask for "onnx" or "pt2".',
                )
            )
    return problems


def _operator_problems(recipe: Sequence[Step], outputs: Sequence[OutputFormat]) -> list[Problem]:
    """The operator that runs a whole network in integers multiplies bytes."""
    if "pt2_integers" not in outputs:
        return []
    quantizing = [(index, step) for index, step in enumerate(recipe) if isinstance(step, QuantizeFixedPoint)]
    return [problem for index, step in quantizing for problem in _width_problems(f"/recipe/{index}", step)]


def _width_problems(pointer: str, step: QuantizeFixedPoint) -> list[Problem]:
    """What makes factors wider than a byte for certain; whether shifted weights stay narrow shows only in the network."""
    problems = []
    asked = {
        "activation_bits": step.activation_bits,
        "weight_bits": step.weight_bits,
        "layer_bits": max(step.layer_bits.values(), default=0),
    }
    for name, bits in asked.items():
        if bits > 8:
            problems.append(
                Problem(
                    f"{pointer}/{name}",
                    f"pt2_integers computes with numbers of 8 bits at most, and {name} asks for {bits}.",
                    'Ask for 8 bits or fewer, or for "c", "onnx" or "pt2".',
                )
            )
    differ = step.activation_lengths == "per_channel" or step.weight_lengths == "per_plane"
    if step.align == "shift" and differ and step.weight_bits == 8 and not step.layer_bits:
        problems.append(
            Problem(
                f"{pointer}/align",
                "pt2_integers computes with weights of 8 bits at most, and 8 bits shifted to where partial sums meet take more.",
                'Ask for "align": "retune_opt", or for one length a layer ("activation_lengths": "per_layer").',
            )
        )
    return problems


def _tile_problems(recipe: Sequence[Step]) -> list[Problem]:
    """Integers take Winograd convolutions of F(2x2, 3x3), whose filters keep the same positions."""
    if not any(isinstance(step, QuantizeFixedPoint) for step in recipe):
        return []
    problems = []
    for index, step in enumerate(recipe):
        if isinstance(step, PruneWinograd) and step.tile != 2:
            problems.append(
                Problem(
                    f"/recipe/{index}/tile",
                    f"quantize_fixed_point makes integers of Winograd convolutions with tiles of 2x2 outputs, and tile {step.tile} "
                    "may make larger ones, whose transforms have fractions.",
                    'Ask for "tile": 2.',
                )
            )
        if isinstance(step, PruneWinograd) and step.groups != 1 and step.group_by == "output_channels":
            problems.append(
                Problem(
                    f"/recipe/{index}/groups",
                    "quantize_fixed_point makes integers of Winograd convolutions whose filters all keep the same positions, and "
                    f"here {step.groups} groups of filters have positions of their own.",
                    'Ask for one group, or for "group_by": "input_channels".',
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


def _unknown_layers(pointer: str, named: Iterable[str], model: ModelInspection) -> list[Problem]:
    """Settings of layers that aren't there, at `pointer`, with the names that are closest."""
    names = [layer.name for layer in model.layers]
    problems = []
    for name in named:
        if name not in names:
            close = get_close_matches(name, names, n=1, cutoff=0.0)
            hint = f"Did you mean {close[0]!r}?" if close else None
            problems.append(Problem(pointer, f"The model has no layer called {name!r}.", hint))
    return problems


def _winograd_problems(pointer: str, step: PruneWinograd, model: ModelInspection) -> list[Problem]:
    problems = _unknown_layers(f"{pointer}/rates", step.rates, model)
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
    problems = []
    for index, name in enumerate(excluded_by(step)):
        problems += _unknown_layers(f"{pointer}/exclude/{index}", [name], model)
    reasons = {layer.name: why_not(layer, step) for layer in model.layers}
    if all(reason is not None for reason in reasons.values()):
        listed = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:10])
        problems.append(
            Problem(pointer, f"{step.kind} can't work on any layer of the model ({listed or 'it has no layers'}).")
        )
    return problems


def _sample_problems(
    pointer: str, step: PruneWeights | PruneWinograd, recipe: Sequence[Step], data: Mapping[Role, DatasetInspection]
) -> list[Problem]:
    if step.images_per_class is None:
        return []
    fraction, source = source_of("selection", data, learns=learns(recipe))
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
        for name, training in trainings(step)
        if training is not None
        for problem in _loss_problems(f"{pointer}/{name}", training, recipe, data)
    ]


def _loss_problems(
    pointer: str, step: TrainingOptions, recipe: Sequence[Step], data: Mapping[Role, DatasetInspection]
) -> list[Problem]:
    _, source = source_of("train", data, learns=learns(recipe))
    if step.loss != "labels" or source is None or source.labelled:
        return []
    return [
        Problem(
            f"{pointer}/loss",
            "The loss is to come from labels, but the training data have none.",
            'Use "distillation", or "auto", which takes labels where there are any.',
        )
    ]


def _classes(dataset: DatasetInspection) -> int:
    if dataset.format == "image_folder":
        return len(dataset.class_counts)
    return max((int(name) for name in dataset.class_counts), default=-1) + 1


def _product(shape: Sequence[int | str]) -> str:
    return " x ".join(str(side) for side in shape) or "a single number"
