"""What the arrays of a dataset must look like, whichever file they came in."""

import numpy as np
import numpy.typing as npt

from jobs.errors import DatasetRefused
from workers.datasets.dataset import MAX_CLASSES, Indices

MAX_IMAGES = 100_000_000
_CHANNELS_LAST = (1, 3, 4)


def check_images(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    """Refuse an array that can't be a batch of images, (N, C, H, W)."""
    if dtype != np.uint8 and dtype.kind != "f":
        raise DatasetRefused(
            f"The images are stored as {dtype.name}.", hint="Store pixels as uint8, or values as float32."
        )
    if len(shape) != 4:
        raise DatasetRefused(
            f"The images have the shape {shape}; they must have four dimensions: (N, C, H, W).",
            hint="For grey images without a channel dimension, save x[:, None]." if len(shape) == 3 else None,
        )
    if 0 in shape:
        raise DatasetRefused(f"The dataset is empty: the images have the shape {shape}.")
    if shape[0] > MAX_IMAGES:
        raise DatasetRefused(f"The dataset has {shape[0]:,} images; at most {MAX_IMAGES:,} are read.")
    if dtype == np.uint8 and shape[3] in _CHANNELS_LAST and shape[1] not in _CHANNELS_LAST:
        raise DatasetRefused(
            f"The images have the shape {shape}, which looks like (N, H, W, C).",
            hint="Channels come first here: save np.ascontiguousarray(x.transpose(0, 3, 1, 2)).",
        )


def check_labels(labels: npt.NDArray[np.generic], images: int) -> Indices:
    """The labels as int64, or a refusal that says what is wrong with them."""
    if labels.dtype.kind not in "iu":
        raise DatasetRefused(
            f"The labels are stored as {labels.dtype.name}, not as integers.",
            hint="Save y.astype(np.int64), one class number an image.",
        )
    if labels.ndim != 1:
        hint = "Save y.argmax(axis=1) if these are one-hot rows, or y.ravel() if there is one number a row."
        raise DatasetRefused(f"The labels have the shape {labels.shape}; they must have one dimension.", hint=hint)
    if len(labels) != images:
        raise DatasetRefused(f"There are {images:,} images but {len(labels):,} labels.")
    if labels.dtype.kind == "i" and labels.min() < 0:
        where = int(labels.argmin())
        raise DatasetRefused(f"The label of image {where} is {labels[where]}; labels start at 0.", image=where)
    if labels.max() >= MAX_CLASSES:
        where = int(labels.argmax())
        raise DatasetRefused(
            f"The label of image {where} is {labels[where]}; class numbers must be below {MAX_CLASSES:,}.", image=where
        )
    return labels.astype(np.int64)
