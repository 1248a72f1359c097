"""A job's request, from a recipe file, from flags, or from both: flags say what the file leaves open."""

import argparse
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from winnow.errors import WinnowError
from winnow.resources import Document, Kind, Upload

PREFIXES: Final[dict[Kind, str]] = {"model": "mdl", "dataset": "dst"}

# Flag of the command line -> place in the request. A step's flags are gathered under the kind of the step.
PLACES: Final = {
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
PRECISION_FLAGS: Final = {"assign_precision": "bits", "precision_drop": "max_drop_pp", "statistics": "statistics"}
QUANTIZE_FLAGS: Final = {"weight_bits": "weight_bits", "activation_bits": "activation_bits"}
FINETUNE_FLAGS: Final = {"finetune_epochs": "epochs", "learning_rate": "learning_rate"}


def request_of(arguments: argparse.Namespace) -> Document:
    """The request as the user wrote it: models and data may still be files instead of ids."""
    request = _read_recipe(arguments.recipe) if arguments.recipe else {}
    steps = _steps(arguments)
    if steps and "recipe" in request:
        raise WinnowError(
            f"{arguments.recipe} already says the steps; leave out --prune, --quantize, --finetune-epochs and the like"
        )
    if steps:
        request["recipe"] = steps
    if not request.get("recipe"):
        raise WinnowError(
            "what shall be done? Give --prune, --quantize, --assign-precision 8,4, --finetune-epochs N, or --recipe FILE"
        )
    for flag, place in PLACES.items():
        value = getattr(arguments, flag, None)
        if value is not None:
            _put(request, place, value)
    if not request.get("model"):
        raise WinnowError("which model? Give --model with an id or a file")
    return request


def _steps(arguments: argparse.Namespace) -> list[Document]:
    prune = _given(arguments, PRUNE_FLAGS)
    finetune = _given(arguments, FINETUNE_FLAGS)
    if finetune and "epochs" not in finetune:
        raise WinnowError("--learning-rate needs --finetune-epochs")
    precision = _precision(arguments)
    quantize = _given(arguments, QUANTIZE_FLAGS)
    steps: list[Document] = []
    if arguments.prune or prune:
        steps.append({"kind": "prune_weights", **prune})
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


def _put(request: Document, place: tuple[str, ...], value: Any) -> None:  # whatever JSON can say
    *folders, name = place
    for folder in folders:
        request = request.setdefault(folder, {})
    request[name] = value


def _read_recipe(path: Path) -> Document:
    """A whole request, or just the list of its steps, as JSON or TOML."""
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
