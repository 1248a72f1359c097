"""A job's request, from a recipe file, from flags, or from both: flags say what the file leaves open.

What to do is said by steps, or by a goal for which the server searches the steps; never by both.
"""

import argparse
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from winnow.errors import WinnowError
from winnow.resources import Document, Kind, Upload

PREFIXES: Final[dict[Kind, str]] = {"model": "mdl", "dataset": "dst"}

# Flag of the command line -> place in the request. A step's flags are gathered under the kind of the step.
PLACES: Final = {
    "named_model": ("model",),
    "model": ("model",),
    "train": ("data", "train"),
    "selection": ("data", "selection"),
    "test": ("data", "test"),
    "scale": ("preprocess", "scale"),
    "mean": ("preprocess", "mean"),
    "std": ("preprocess", "std"),
    "resize": ("preprocess", "resize"),
    "crop": ("preprocess", "crop"),
    "limit": ("limits", "max_accuracy_drop_pp"),
    "deadline": ("limits", "deadline_seconds"),
    "seed": ("seed",),
    "outputs": ("outputs",),
    "runtime": ("target", "runtime"),
    "threads": ("target", "threads"),
    "batch_size": ("target", "batch_size"),
    "metadata": ("metadata",),
}
PRUNE_FLAGS: Final = {
    "max_drop": "max_drop_pp",
    "reference": "reference",
    "scope": "scope",
    "distribution": "distribution",
    "exclude": "exclude",
}
WINOGRAD_FLAGS: Final = {
    "winograd_drop": "max_drop_pp",
    "winograd_tile": "tile",
    "winograd_reduction": "target_reduction",
}
PRECISION_FLAGS: Final = {"assign_precision": "bits", "precision_drop": "max_drop_pp", "statistics": "statistics"}
QUANTIZE_FLAGS: Final = {"weight_bits": "weight_bits", "activation_bits": "activation_bits"}
FINETUNE_FLAGS: Final = {"finetune_epochs": "epochs", "learning_rate": "learning_rate"}
STEP_FLAGS: Final = (
    "prune",
    *PRUNE_FLAGS,
    "prune_winograd",
    *WINOGRAD_FLAGS,
    *FINETUNE_FLAGS,
    *PRECISION_FLAGS,
    "quantize",
    *QUANTIZE_FLAGS,
)

GOAL_PLACES: Final = {
    "minimise": ("goal", "minimise"),
    "max_drop": ("goal", "max_accuracy_drop_pp"),
    "max_bytes": ("goal", "constraints", "max_bytes"),
    "max_latency": ("goal", "constraints", "max_latency_ms"),
    "confidence": ("goal", "confidence"),
    "search_seconds": ("goal", "deadline_seconds"),
}


def request_of(arguments: argparse.Namespace) -> Document:
    """The request as the user wrote it: models and data may still be files instead of ids."""
    request = _read_recipe(arguments.recipe) if arguments.recipe else {}
    if arguments.minimise is not None or request.get("goal") is not None:
        _refuse_steps(request, arguments)
        _put_given(request, arguments, GOAL_PLACES)
    else:
        _add_steps(request, arguments)
    if arguments.named_model is not None and arguments.model is not None:
        raise WinnowError(f"which model? {arguments.named_model} and --model {arguments.model} are two; leave one out")
    _put_given(request, arguments, PLACES)
    if not request.get("model"):
        raise WinnowError("which model? Give its id or its file, by itself or after --model")
    return request


def _refuse_steps(request: Document, arguments: argparse.Namespace) -> None:
    """With a goal the server finds the steps. `--max-drop` belongs to either."""
    if request.get("recipe"):
        raise WinnowError(
            f"{arguments.recipe} says the steps, but a goal (--minimise) has them searched for; leave out one of the two"
        )
    given = [flag for flag in STEP_FLAGS if flag != "max_drop" and getattr(arguments, flag) not in (None, False)]
    if given:
        raise WinnowError(
            f"a goal (--minimise) has the steps and their settings searched for; leave out {_as_flags(given)}, or the goal"
        )


def _add_steps(request: Document, arguments: argparse.Namespace) -> None:
    orphans = [flag for flag in GOAL_PLACES if flag != "max_drop" and getattr(arguments, flag) is not None]
    if orphans:
        raise WinnowError(f"{_as_flags(orphans)} belong to a goal: add --minimise latency, bytes or operations")
    steps = _steps(arguments)
    if steps and "recipe" in request:
        raise WinnowError(
            f"{arguments.recipe} already says the steps; leave out --prune, --quantize, --finetune-epochs and the like"
        )
    if steps:
        request["recipe"] = steps
    if not request.get("recipe"):
        raise WinnowError(
            "what shall be done? Say what to reach, with --minimise latency, bytes or operations; or what to do, with --prune, "
            "--prune-winograd, --quantize, --assign-precision 8,4, --finetune-epochs N, or --recipe FILE"
        )


def _steps(arguments: argparse.Namespace) -> list[Document]:
    prune = _given(arguments, PRUNE_FLAGS)
    winograd = _given(arguments, WINOGRAD_FLAGS)
    finetune = _given(arguments, FINETUNE_FLAGS)
    if finetune and "epochs" not in finetune:
        raise WinnowError("--learning-rate needs --finetune-epochs")
    precision = _precision(arguments)
    quantize = _given(arguments, QUANTIZE_FLAGS)
    steps: list[Document] = []
    if arguments.prune or prune:
        steps.append({"kind": "prune_weights", **prune})
    if arguments.prune_winograd or winograd:
        steps.append({"kind": "prune_winograd", **winograd})
    if finetune:
        steps.append({"kind": "finetune", **finetune})
    if precision:
        steps.append({"kind": "assign_precision", **precision})
        quantize = {"weight_bits": precision["bits"][0], **quantize}
    if arguments.quantize or quantize:
        steps.append({"kind": "quantize_fixed_point", **quantize})
    return steps


def _precision(arguments: argparse.Namespace) -> Document:
    precision = _given(arguments, PRECISION_FLAGS)
    if precision and "bits" not in precision:
        raise WinnowError("--precision-drop and --statistics need --assign-precision, such as --assign-precision 8,4")
    if "statistics" in precision:
        precision["statistics"] = _read_document(precision["statistics"])
    return precision


def _given(arguments: argparse.Namespace, flags: dict[str, str]) -> Document:
    values = {field: getattr(arguments, flag) for flag, field in flags.items()}
    return {field: value for field, value in values.items() if value is not None}


def _as_flags(names: Sequence[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def _put_given(request: Document, arguments: argparse.Namespace, places: Mapping[str, tuple[str, ...]]) -> None:
    for flag, place in places.items():
        value = getattr(arguments, flag)
        if value is not None:
            _put(request, place, value)


def _put(request: Document, place: tuple[str, ...], value: Any) -> None:  # whatever JSON can say
    *folders, name = place
    for folder in folders:
        request = request.setdefault(folder, {})
    request[name] = value


def _read_recipe(path: Path) -> Document:
    """A whole request, with steps or with a goal, or just the list of its steps, as JSON or TOML."""
    document = _read_document(path)
    if isinstance(document, list):
        return {"recipe": document}
    if not isinstance(document, dict):
        raise WinnowError(f"{path} must hold a request or a list of steps")
    return document


def _read_document(path: Path) -> Any:  # whatever JSON or TOML can say
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as failure:
        raise WinnowError(f"can't read {path}: {failure.strerror}") from failure
    except ValueError as failure:
        raise WinnowError(f"{path} is no {'TOML' if path.suffix == '.toml' else 'JSON'}: {failure}") from failure


class Uploader:
    """Turns the files named in a request into ids; a file that is named twice is uploaded once."""

    def __init__(self, upload: Callable[[Kind, Path], Upload]) -> None:
        self._upload = upload
        self._uploads: dict[Path, Upload] = {}

    @property
    def uploads(self) -> tuple[Upload, ...]:
        """What was uploaded."""
        return tuple(self._uploads.values())

    def resolved(self, request: Document) -> Document:
        """The request with ids only."""
        resolved = dict(request, model=self._id_of("model", request["model"]))
        if "data" in request:
            resolved["data"] = {role: self._id_of("dataset", value) for role, value in request["data"].items()}
        return resolved

    def _id_of(self, kind: Kind, reference: str) -> str:
        if re.fullmatch(PREFIXES[kind] + r"_[0-9a-z]{26}", reference):
            return reference
        path = Path(reference)
        if not path.is_file():
            raise WinnowError(f"{reference} is neither a {kind}'s id nor a file")
        key = path.resolve()
        if key not in self._uploads:
            self._uploads[key] = self._upload(kind, path)
        return self._uploads[key].id
