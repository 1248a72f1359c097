"""Which dataset plays which part.

The rules of data roles are written here and nowhere else:

* `prune_weights`, `prune_winograd`, `assign_precision` and `quantize_fixed_point` decide on `selection`; `finetune`, and the
  others where they train, learn from `train`; figures are taken on `test`.
* One dataset alone is split by class: into halves for selection and test, or, if the recipe learns, into 60 % train,
  20 % selection and 20 % test. A lone `test` dataset is never split: it is not for decisions.
* Several datasets keep their roles whole.
* The search for a goal decides on `selection`, and learns from `train` where there is any: one dataset alone is always split
  into all three, and without training images nothing is tried that learns.
* Of the selection images, a search keeps a third back (by class): candidates aren't compared on these *confirming* images, which
  only judge what the comparisons found. Where a third is too few to tell, all images are for comparisons.
"""

from collections.abc import Collection, Iterable, Mapping
from math import ceil
from statistics import NormalDist
from typing import Literal, get_args

from jobs.folder import Compress
from jobs.inspection import DatasetInspection
from jobs.recipe import AssignPrecision, PruneWinograd, QuantizeFixedPoint, Step, TrainingOptions
from jobs.request import Goal, JobRequest

Role = Literal["train", "selection", "test"]
ROLES: tuple[Role, ...] = get_args(Role)
NEEDS: dict[str, tuple[Role, str]] = {
    "prune_weights": ("selection", "decides on selection images"),
    "prune_winograd": ("selection", "decides on selection images"),
    "assign_precision": ("selection", "decides on selection images"),
    "quantize_fixed_point": ("selection", "is judged on selection images"),
    "finetune": ("train", "learns from training images"),
}

CONFIRMING_SHARE = 1 / 3  # of the selection images of a search
_FEWEST_CONFIRMING = 100  # of fewer, one image is more than a percentage point
_FLIPPED_SHARE = 0.02  # of the answers, between a network and its compressed form: for better or for worse
_SMALLEST_LIMIT_PP = 0.001  # smaller ones would take more images than there are


def learns(recipe: Iterable[Step]) -> bool:
    """Whether any step trains the model."""
    return any(role == "train" for step in recipe for role, _ in needs(step))


def may_learn(request: JobRequest | Compress) -> bool:
    """Whether a dataset given alone has to give training images too: a search learns wherever it can."""
    return request.goal is not None or learns(request.recipe)


def needs(step: Step) -> list[tuple[Role, str]]:
    """The roles without whose images a step can't run, and why."""
    always = NEEDS[step.kind]
    if any(training is not None for _, training in trainings(step)):
        return [always, ("train", "trains on training images")]
    return [always]


def trainings(step: Step) -> list[tuple[str, TrainingOptions | None]]:
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


def source_of(
    role: Role, data: Mapping[Role, DatasetInspection], *, learns: bool
) -> tuple[float, DatasetInspection | None]:
    """Which dataset the images of a role come from, and what fraction of it they are."""
    if len(data) == 1:
        ((given, dataset),) = data.items()
        fractions = split_of(given, learns=learns)
        if fractions is not None:
            return fractions.get(role, 0.0), dataset if role in fractions else None
    return 1.0, data.get(role)


def images_by_role(data: Mapping[Role, DatasetInspection], *, learns: bool) -> dict[Role, int]:
    """How many images each role has, once a dataset given alone was split."""
    images: dict[Role, int] = {}
    for role in ROLES:
        fraction, source = source_of(role, data, learns=learns)
        if source is not None:
            images[role] = round(source.images * fraction)
    return images


def confirming_images_needed(goal: Goal) -> int | None:
    """How many images are enough to confirm that a network keeps the goal's limit; None if no number is.

    Enough means that a network which loses half of the limit is confirmed as often as not: what chance may add to its loss, with
    the goal's confidence, is then the other half. With fewer, good networks would be thrown away for want of proof.
    """
    z = NormalDist().inv_cdf(goal.confidence)
    if z <= 0:
        return _FEWEST_CONFIRMING
    if goal.max_accuracy_drop_pp < _SMALLEST_LIMIT_PP:
        return None
    half_of_limit = goal.max_accuracy_drop_pp / 100 / 2
    return max(_FEWEST_CONFIRMING, ceil(_FLIPPED_SHARE * (z / half_of_limit) ** 2))


def confirming_images(selection: int, goal: Goal) -> int:
    """How many of so many selection images a search keeps back, to within a few; 0 if a third isn't enough."""
    needed, kept_back = confirming_images_needed(goal), round(selection * CONFIRMING_SHARE)
    return 0 if needed is None or kept_back < needed else kept_back


def why_none_confirm(selection: int, goal: Goal) -> str:
    """A sentence for a search that keeps none of its selection images back."""
    needed = confirming_images_needed(goal)
    if needed is None:
        why = (
            f"No number of images can confirm, with a confidence of {goal.confidence:g}, that not more than "
            f"{goal.max_accuracy_drop_pp:g} pp are lost, so none are kept back for that"
        )
    else:
        why = (
            f"The {selection:,} selection images are too few to keep some back that confirm the choice "
            f"(about {ceil(needed / CONFIRMING_SHARE):,} would do)"
        )
    return f"{why}: the images that recipes are compared on also vouch for the best of them, and there it looks better than it is."
