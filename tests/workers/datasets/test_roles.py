"""Roles never mix: who gets which images, and what is refused or warned of."""

from pathlib import Path

import numpy as np
import pytest

from jobs.data_roles import Role
from jobs.errors import RecipeRefused
from workers.datasets.read_dataset import read_dataset
from workers.datasets.roles import RoleFile, assign_roles

GENERATOR = np.random.default_rng(2)


def role_file(path: Path, images: int, sha256: str = "", *, labelled: bool = True) -> RoleFile:
    x = GENERATOR.integers(0, 256, (images, 1, 4, 4), dtype=np.uint8)
    np.savez(path, x=x, y=np.arange(images) % 2) if labelled else np.savez(path, x=x)
    return RoleFile(read_dataset(path), sha256 or path.name)


def test_several_datasets_keep_their_roles_whole(tmp_path: Path) -> None:
    given: dict[Role, RoleFile] = {
        "selection": role_file(tmp_path / "s.npz", 6),
        "test": role_file(tmp_path / "t.npz", 8),
    }
    parts = assign_roles(given, learns=False, seed=0)
    assert {role: len(part) for role, part in parts.items()} == {"selection": 6, "test": 8}
    assert all(part.origin == "the whole dataset" and part.warnings == () for part in parts.values())
    assert parts["test"].as_report().class_counts == {"0": 4, "1": 4}


def test_same_file_under_two_roles_is_refused_naming_both(tmp_path: Path) -> None:
    file = role_file(tmp_path / "s.npz", 6)
    with pytest.raises(RecipeRefused, match="The roles selection and test were given the same file"):
        assign_roles({"selection": file, "test": file}, learns=False, seed=0)


def test_images_that_roles_have_in_common_are_counted_and_warned_of(tmp_path: Path) -> None:
    selection = role_file(tmp_path / "s.npz", 6)
    x = selection.dataset.images.pick(np.array([1, 4, 4, 4, 4, 4]))
    x[2:] = np.arange(4, dtype=np.uint8)[:, None, None, None]
    np.savez(tmp_path / "t.npz", x=x)
    parts = assign_roles(
        {"selection": selection, "test": RoleFile(read_dataset(tmp_path / "t.npz"), "t")}, learns=False, seed=0
    )
    assert parts["test"].warnings == ("2 of the images are also among those for selection.",)


@pytest.mark.parametrize(
    ("learns", "sizes"),
    [(False, {"selection": 50, "test": 50}), (True, {"train": 60, "selection": 20, "test": 20})],
)
def test_one_dataset_alone_is_split_by_class_without_overlap(
    tmp_path: Path, learns: bool, sizes: dict[Role, int]
) -> None:
    file = role_file(tmp_path / "s.npz", 100)
    parts = assign_roles({"selection": file}, learns=learns, seed=7)
    assert {role: len(part) for role, part in parts.items()} == sizes
    assert sorted(np.concatenate([part.indices for part in parts.values()]).tolist()) == list(range(100))
    for part in parts.values():
        assert len(set(part.as_report().class_counts.values())) == 1
        assert "of the one dataset given for selection, split by class with seed 7" in part.origin
    again = assign_roles({"selection": file}, learns=learns, seed=7)
    assert all((again[role].indices == part.indices).all() for role, part in parts.items())


def test_unlabelled_dataset_alone_is_split_at_random(tmp_path: Path) -> None:
    parts = assign_roles({"selection": role_file(tmp_path / "s.npz", 10, labelled=False)}, learns=False, seed=0)
    assert parts["test"].labels is None
    assert "split at random with seed 0" in parts["test"].origin


def test_test_data_alone_are_never_split(tmp_path: Path) -> None:
    parts = assign_roles({"test": role_file(tmp_path / "t.npz", 10)}, learns=False, seed=0)
    assert {role: len(part) for role, part in parts.items()} == {"test": 10}


def test_dataset_too_small_to_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeRefused, match="too small to be split: none is left for"):
        assign_roles({"selection": role_file(tmp_path / "s.npz", 1)}, learns=True, seed=0)
