"""Stored pixels become the model's input exactly as the request says."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.request import Preprocess
from workers.datasets.preprocess import InputTransform, fit_dataset, input_batches
from workers.datasets.read_dataset import read_dataset
from workers.models.graph import TensorSpec

IMAGES = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)


def spec(*shape: int | str, dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec("image", dtype, ("N", *shape))


def test_pixels_are_scaled_shifted_and_divided_by_channel() -> None:
    preprocess = Preprocess(scale=0.5, mean=(1.0, 2.0, 3.0), std=(1.0, 4.0, 0.5))
    found = InputTransform(preprocess, spec(3, 4, 5))(IMAGES)
    assert found.dtype == torch.float32
    expected = (IMAGES * 0.5 - np.array([1, 2, 3]).reshape(1, 3, 1, 1)) / np.array([1, 4, 0.5]).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_one_value_serves_all_channels() -> None:
    found = InputTransform(Preprocess(scale=1 / 255, mean=(0.5,), std=(0.25,)), spec(3, 4, 5))(IMAGES)
    np.testing.assert_allclose(found.numpy(), (IMAGES / 255 - 0.5) / 0.25, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.uint8])
def test_input_has_the_type_that_the_model_takes(dtype: torch.dtype) -> None:
    found = InputTransform(None, spec(3, 4, 5, dtype=dtype))(IMAGES)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.numpy(), IMAGES)


def test_channels_go_last_where_the_model_takes_them_so() -> None:
    found = InputTransform(None, spec(4, 5, 3))(IMAGES)
    np.testing.assert_array_equal(found.numpy(), IMAGES.transpose(0, 2, 3, 1))


def test_image_files_are_resized_and_cropped_as_asked_and_arrays_stay(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for number, size in enumerate([(12, 20), (16, 10)]):
            buffer = io.BytesIO()
            Image.new("RGB", size, (10 * number, 20, 30)).save(buffer, "PNG")
            archive.writestr(f"class/{number}.png", buffer.getvalue())
    dataset = fit_dataset(read_dataset(tmp_path / "d.zip"), Preprocess(scale=1 / 255, resize=8, crop=6))
    assert dataset.images.shape == (3, 6, 6)
    (batch,) = input_batches(dataset, np.array([1, 0]), InputTransform(None, spec(3, 6, 6)), batch_size=8)
    assert batch[:, :, 0, 0].tolist() == [[10, 20, 30], [0, 20, 30]]
    np.savez(tmp_path / "d.npz", x=IMAGES)
    arrays = read_dataset(tmp_path / "d.npz")
    assert fit_dataset(arrays, Preprocess(scale=1 / 255)) is arrays


def test_batches_come_in_order_and_the_last_one_may_be_smaller(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(7, dtype=np.float32).reshape(7, 1, 1, 1))
    dataset = read_dataset(tmp_path / "d.npz")
    batches = input_batches(dataset, np.array([6, 0, 1, 2, 5]), InputTransform(None, spec(1, 1, 1)), batch_size=2)
    assert [batch.flatten().tolist() for batch in batches] == [[6, 0], [1, 2], [5]]
