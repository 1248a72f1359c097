"""An uploaded dataset file, recognised by its content, as a `Dataset`."""

import os
import tempfile
from pathlib import Path

from jobs.errors import DatasetRefused
from workers.datasets.archives import open_zip
from workers.datasets.dataset import Dataset, HeldFile
from workers.datasets.read_image_folder import read_image_folder_tar, read_image_folder_zip
from workers.datasets.read_npz import is_npz, read_npz
from workers.datasets.read_safetensors import looks_like_safetensors, read_safetensors

_FORMATS = "an .npz with arrays x and y, a .zip or .tar of images with one folder a class, or .safetensors with x and y"


def read_dataset(path: Path, *, scratch: Path | None = None) -> Dataset:
    """The dataset in the file at `path`. Packed data are unpacked into anonymous files under `scratch`.

    Raises `DatasetRefused` for everything that can be wrong with the file, and nothing else.
    """
    file = HeldFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    return _read(path, file, scratch or Path(tempfile.gettempdir()))


def _read(path: Path, file: HeldFile, scratch: Path) -> Dataset:
    start = file.read(512)
    if start[:4] == b"PK\x03\x04":
        _, entries = open_zip(file)
        return read_npz(file, scratch) if is_npz(entries) else read_image_folder_zip(file)
    if start[:2] == b"\x1f\x8b" or start[257:262] == b"ustar":
        return read_image_folder_tar(path, file, scratch)
    if start[:4] == b"PK\x05\x06":
        raise DatasetRefused("The zip archive is empty.")
    if not start:
        raise DatasetRefused("The file is empty.")
    if start[:6] == b"\x93NUMPY":
        raise DatasetRefused(
            "The file is a single .npy array.", hint="Save images and labels together: np.savez(path, x=x, y=y)."
        )
    if start[:1] == b"\x80":
        raise DatasetRefused("The file is a pickle, which is code and is never read.", hint=f"Upload {_FORMATS}.")
    if looks_like_safetensors(start):
        return read_safetensors(file)
    raise DatasetRefused("The file is of no kind that Winnow reads as a dataset.", hint=f"Upload {_FORMATS}.")
