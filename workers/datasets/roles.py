"""Which images play which part in a job. Roles never mix (docs/methods.md): `train` for learning, `selection` for every
decision, `test` looked at once at the end.

* Several datasets: each plays the role it was given for, whole. The same file under two roles is refused, and images that
  two roles have in common are counted and warned of.
* One dataset alone: it is split by class, seeded, as `jobs.preflight.SPLITS` says.
* No test images: the figures are taken on the selection images, and the report warns that decisions were made on them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from jobs.data_roles import Role, split_of
from jobs.errors import RecipeRefused
from jobs.report import DataReport
from workers.datasets.dataset import Dataset, Indices
from workers.datasets.inspect_dataset import Hashes, image_hashes
from workers.datasets.splits import split_by_class


@dataclass(frozen=True)
class RoleFile:
    """A dataset as it was given for a role."""

    dataset: Dataset
    sha256: str


@dataclass(frozen=True)
class Part:
    """The images that play one role."""

    role: Role
    dataset: Dataset
    indices: Indices
    sha256: str
    origin: str
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Indices | None:
        return None if self.dataset.labels is None else self.dataset.labels[self.indices]

    def as_report(self) -> DataReport:
        return DataReport(
            role=self.role,
            sha256=self.sha256,
            images=len(self),
            class_counts=self.dataset.class_counts(self.indices),
            origin=self.origin,
            warnings=(*self.dataset.warnings, *self.warnings),
        )


def assign_roles(given: Mapping[Role, RoleFile], *, learns: bool, seed: int) -> dict[Role, Part]:
    """The images of each role. `learns` says whether the recipe trains, so that a lone dataset gives training images too."""
    _refuse_same_file(given)
    if len(given) == 1:
        ((role, file),) = given.items()
        fractions = split_of(role, learns=learns)
        if fractions is not None:
            return _split(role, file, fractions, seed)
    parts = {
        role: Part(role, file.dataset, np.arange(len(file.dataset)), file.sha256, "the whole dataset")
        for role, file in given.items()
    }
    return _warn_of_common_images(parts)


def _refuse_same_file(given: Mapping[Role, RoleFile]) -> None:
    for first, second in combinations(given, 2):
        if given[first].sha256 == given[second].sha256:
            raise RecipeRefused(
                f"The roles {first} and {second} were given the same file; roles never share images.",
                hint="Give it for selection alone, and it is split by class.",
                role=second,
            )


def _split(role: Role, file: RoleFile, fractions: Mapping[Role, float], seed: int) -> dict[Role, Part]:
    labels = file.dataset.labels
    # Without labels all images count as one class.
    groups = np.zeros(len(file.dataset), np.int64) if labels is None else labels
    by_role = split_by_class(groups, fractions, seed)
    empty = [name for name in fractions if not len(by_role[name])]
    if empty:
        raise RecipeRefused(
            f"The dataset of {len(file.dataset)} images is too small to be split: none is left for {empty[0]}.",
            hint="Give more images, or a dataset for each role.",
            role=empty[0],
        )
    how = "by class" if labels is not None else "at random"
    shares = ", ".join(f"{name} {fraction:.0%}" for name, fraction in fractions.items())
    doubles = _common_warnings({name: image_hashes(file.dataset, by_role[name]) for name in fractions})
    return {
        name: Part(
            name,
            file.dataset,
            by_role[name],
            file.sha256,
            f"{fraction:.0%} of the one dataset given for {role}, split {how} with seed {seed} ({shares})",
            doubles[name],
        )
        for name, fraction in fractions.items()
    }


def _warn_of_common_images(parts: dict[Role, Part]) -> dict[Role, Part]:
    warnings = _common_warnings({role: image_hashes(part.dataset, part.indices) for role, part in parts.items()})
    return {
        role: Part(role, part.dataset, part.indices, part.sha256, part.origin, warnings[role])
        for role, part in parts.items()
    }


def _common_warnings(hashes: dict[Role, Hashes]) -> dict[Role, tuple[str, ...]]:
    found: dict[Role, tuple[str, ...]] = dict.fromkeys(hashes, ())
    for first, second in combinations(hashes, 2):
        common = int(np.isin(hashes[second], hashes[first]).sum())
        if common:
            found[second] = (*found[second], f"{common} of the images are also among those for {first}.")
    return found
