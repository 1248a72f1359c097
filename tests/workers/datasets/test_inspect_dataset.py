"""What is said of a dataset before any model is known."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.errors import DatasetRefused
from workers.datasets import dataset as dataset_module
from workers.datasets.inspect_dataset import inspect_dataset

GENERATOR = np.random.default_rng(1)


def saved(path: Path, x: np.ndarray, y: np.ndarray | None = None) -> Path:
    np.savez(path, x=x) if y is None else np.savez(path, x=x, y=y)
    return path


def test_figures_are_those_of_all_images_whatever_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = GENERATOR.normal([[[5.0]], [[1000.0]]], 3.0, (50, 2, 4, 5)).astype(np.float32)
    path = saved(tmp_path / "d.npz", x, np.arange(50) % 5)
    whole = inspect_dataset(path)
    monkeypatch.setattr(dataset_module.chunks, "__kwdefaults__", {"chunk_bytes": 7 * 160})
    assert inspect_dataset(path).channel_mean == pytest.approx(whole.channel_mean, rel=1e-12)
    np.testing.assert_allclose(whole.channel_mean, x.astype(np.float64).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(whole.channel_std, x.astype(np.float64).std(axis=(0, 2, 3)), rtol=1e-9)
    assert (whole.images, whole.shape, whole.dtype, whole.labelled) == (50, (2, 4, 5), "float32", True)
    assert whole.class_counts == {str(label): 10 for label in range(5)}
    assert whole.warnings == ()


def test_unlabelled_data_have_no_class_counts(tmp_path: Path) -> None:
    found = inspect_dataset(saved(tmp_path / "d.npz", GENERATOR.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)))
    assert (found.labelled, found.class_counts) == (False, {})


def test_what_looks_odd_is_warned_of(tmp_path: Path) -> None:
    x = GENERATOR.integers(0, 256, (24, 1, 4, 4), dtype=np.uint8)
    x[3] = x[7]
    x[5] = 9
    labels = np.array([0] * 22 + [1, 3])
    warnings = inspect_dataset(saved(tmp_path / "d.npz", x, labels)).warnings
    assert warnings == (
        "The classes are very uneven: 22 images of '0', 1 of '1'.",
        "1 of the 4 classes have no image.",
        "1 images are of one single value.",
        "1 images are exact copies of others.",
    )
    (one_class,) = inspect_dataset(saved(tmp_path / "d.npz", x[:3], np.full(3, 2))).warnings
    assert one_class == "All images are of the one class '2'."
    (scaled,) = inspect_dataset(saved(tmp_path / "d.npz", (x[:3] > 127).astype(np.uint8))).warnings
    assert scaled.startswith("All pixels are 0 or 1")
    (range_hint,) = inspect_dataset(saved(tmp_path / "d.npz", x[:3].astype(np.float32))).warnings
    assert "The values reach from" in range_hint


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    x = np.ones((4, 1, 2, 2), np.float32)
    x[2] = np.inf
    with pytest.raises(DatasetRefused, match="Image 2 holds values that are not finite"):
        inspect_dataset(saved(tmp_path / "d.npz", x))


def test_inspecting_a_dataset_loads_no_torch() -> None:
    code = "import sys, workers.datasets.inspect_dataset; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from workers.datasets.inspect_dataset import inspect_dataset\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "inspect_dataset(Path(sys.argv[1]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    x = np.zeros((12_000, 3, 64, 64), np.uint8)  # 147 MB
    x[:, 0, 0, 0] = np.arange(12_000) % 251
    path = saved(tmp_path / "d.npz", x, np.arange(12_000) % 10)
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    # A chunk of 1 MiB as stored, a few times as float64, and what numpy keeps for itself.
    assert int(ended.stdout) < 60 * 1024
