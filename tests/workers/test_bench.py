"""Which images a job uses for what."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from jobs.data_roles import Role
from jobs.folder import Compress
from tests.workers.digits_network import PREPROCESS, digits, save_pt2, to_input
from workers.bench import Bench
from workers.datasets.read_dataset import read_dataset
from workers.datasets.roles import Part
from workers.models.inspect_model import describe
from workers.models.read_model import read_model


def bench_with(folder: Path, *, labelled: bool = False, **ranges: range) -> Bench:
    """The digits network, with these images of digits by role."""
    uploaded = read_model(save_pt2(folder / "digits.pt2"))
    job = Compress.model_validate(
        {
            "task": "compress", "model": {"path": "digits.pt2", "filename": "digits.pt2", "sha256": "0"}, "data": {},
            "preprocess": PREPROCESS, "recipe": (), "limits": {}, "seed": 3, "outputs": ("pt2",), "target": {},
        }
    )  # fmt: skip
    parts: dict[Role, Part] = {}
    for name, numbers in ranges.items():
        x, y = (values[list(numbers)] for values in digits())
        np.savez(folder / f"{name}.npz", x=x, **({"y": y} if labelled else {}))
        role = cast("Role", name)
        parts[role] = Part(
            role, read_dataset(folder / f"{name}.npz"), np.arange(len(numbers)), sha256=name, origin="all"
        )
    return Bench(job, uploaded, describe(uploaded, "pt2"), parts)


def is_of(batches: torch.Tensor, numbers: range) -> bool:
    known = {tuple(image.flatten().tolist()) for image in to_input(digits()[0][list(numbers)])}
    return all(tuple(image.flatten().tolist()) in known for image in batches)


def test_networks_are_fitted_to_training_images_so_that_selection_images_can_judge_them(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, train=range(900, 1000), selection=range(1000, 1100))
    fitted = torch.cat(list(bench.calibration_batches(bench.uploaded, 30)))
    assert len(fitted) == 30
    assert is_of(fitted, range(900, 1000))
    assert not is_of(fitted, range(1000, 1100))


def test_without_training_images_networks_are_fitted_to_selection_images(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, selection=range(1000, 1100), test=range(1100, 1200))
    assert is_of(torch.cat(list(bench.calibration_batches(bench.uploaded, 30))), range(1000, 1100))


def test_unlabelled_training_images_have_the_answers_of_a_network_where_it_is_named(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, train=range(900, 1000), selection=range(1000, 1100))
    assert bench.training_images().labels is None
    labels = bench.training_images(answers_of=bench.uploaded).labels
    assert labels is not None
    wanted = bench.uploaded(to_input(digits()[0][900:1000]))[0].argmax(1).numpy()
    assert np.array_equal(labels, wanted)


def test_probing_takes_as_many_images_of_each_class_as_are_enough(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, labelled=True, selection=range(1000, 1400))
    everything = bench.pruning_examples(None)
    per_class = len(everything.targets) // 10
    assert np.bincount(everything.targets).tolist() == [per_class] * 10
    assert np.bincount(bench.pruning_examples(None, enough=95).targets).tolist() == [10] * 10
    assert np.bincount(bench.pruning_examples(3, enough=95).targets).tolist() == [3] * 10
    assert len(bench.pruning_examples(None, enough=10**6).targets) == len(everything.targets)


def test_probing_without_labels_takes_some_images_at_random(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, selection=range(1000, 1400))
    assert len(bench.pruning_examples(None).targets) == 400
    some = bench.pruning_examples(None, enough=95)
    assert len(some.targets) == 95
    assert is_of(to_input(some.pick(np.arange(95))), range(1000, 1400))


def test_whoever_takes_images_can_be_ended_before_each_batch(tmp_path: Path) -> None:
    bench = bench_with(tmp_path, labelled=True, selection=range(1000, 1400))
    looks = 0

    def check_wanted() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise InterruptedError

    with bench.interruptible(check_wanted):
        with pytest.raises(InterruptedError):
            bench.selection_right(bench.uploaded)
        assert looks == 3
        # What was in progress is lost, and is there whole once it is asked for again.
        assert len(bench.selection_right(bench.uploaded)) == 400
    looks = 0
    assert len(list(bench.calibration_batches(bench.uploaded))) == 7
    assert looks == 0
    with bench.interruptible(check_wanted), pytest.raises(InterruptedError):
        list(bench.calibration_batches(bench.uploaded))
