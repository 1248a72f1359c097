"""Datasets as archives (zip, tar, tar.gz) of image files, one folder a class.

Labels follow the folders' names in alphabetical order, as the usual loaders of image folders number them. A file
`LABELS` at the top of the archive, one folder name a line, sets another order: the first line is class 0. Images that lie
in no folder are unlabelled.
"""

import io
import warnings
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image

from jobs.errors import DatasetRefused
from workers.datasets.archives import Entry, index_tar, open_zip, read_entry, unpack_gzip
from workers.datasets.dataset import MAX_CLASSES, Dataset, HeldFile, Indices, Pixels, refusing_broken_files

MAX_IMAGE_PIXELS = 64 * 2**20
MAX_IMAGE_BYTES = 128 * 2**20
LABELS_FILE = "LABELS"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"}
_DECODERS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")
_ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"}
_GREY_MODES = {"1", "L", "LA", "I", "I;16", "F"}


class FolderImages:
    """Image files in an archive, decoded when they are asked for; optionally resized and cropped."""

    def __init__(
        self,
        file: HeldFile,
        archive: zipfile.ZipFile | None,
        entries: list[Entry],
        *,
        mode: Literal["L", "RGB"],
        sizes: list[tuple[int, int]],
        resize: int | None = None,
        crop: int | None = None,
    ) -> None:
        self._file = file
        self._archive = archive
        self._entries = entries
        self._mode: Literal["L", "RGB"] = mode
        self._sizes = sizes  # (height, width) as stored
        self._resize = resize
        self._crop = crop

    @property
    def dtype(self) -> str:
        return "uint8"

    @property
    def shape(self) -> tuple[int | str, ...]:
        fitted = {_fitted_size(size, self._resize, self._crop) for size in self._sizes}
        heights, widths = {height for height, _ in fitted}, {width for _, width in fitted}
        height = heights.pop() if len(heights) == 1 else "height"
        width = widths.pop() if len(widths) == 1 else "width"
        return (1 if self._mode == "L" else 3, height, width)

    def __len__(self) -> int:
        return len(self._entries)

    def fitted(self, resize: int | None, crop: int | None) -> "FolderImages":
        """The same images with the shorter side resized to `resize` pixels and a centred square of `crop` cut out."""
        return FolderImages(
            self._file, self._archive, self._entries, mode=self._mode, sizes=self._sizes, resize=resize, crop=crop
        )

    def pick(self, indices: Indices) -> Pixels:
        """The images with these numbers; they must be of one size by now."""
        images = [self.decode(int(index)) for index in indices]
        if len({image.shape for image in images}) > 1:
            raise DatasetRefused(
                "The images are of different sizes.", hint='Give "resize" and "crop" in the job\'s preprocess.'
            )
        return np.stack(images)

    def content(self, index: int) -> bytes:
        """The image file as it is."""
        return read_entry(self._file, self._archive, self._entries[index])

    def decode(self, index: int) -> Pixels:
        """One image, (C, H, W)."""
        name = self._entries[index].name
        with refusing_broken_files(f"The image {name!r}"), _open_image(self.content(index)) as image:
            converted = image.convert(self._mode)
            pixels = np.asarray(_fit(converted, self._resize, self._crop))
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_image_folder_zip(file: HeldFile) -> Dataset:
    """The images of an open zip archive."""
    archive, entries = open_zip(file)
    return _read(file, archive, entries)


def read_image_folder_tar(path: Path, file: HeldFile, scratch: Path) -> Dataset:
    """The images of an open tar archive; a packed one is unpacked into `scratch`."""
    if _is_gzip(file):
        file = unpack_gzip(path, scratch)
    return _read(file, None, index_tar(file))


def _is_gzip(file: HeldFile) -> bool:
    """Whether the file is packed by gzip."""
    file.seek(0)
    return file.read(2) == b"\x1f\x8b"


def _read(file: HeldFile, archive: zipfile.ZipFile | None, entries: list[Entry]) -> Dataset:
    visible = [entry for entry in entries if not _is_hidden(entry)]
    for entry in visible:
        if PurePosixPath(entry.name).suffix.lower() in _ARCHIVES:
            raise DatasetRefused(
                f"The archive holds another archive, {entry.name!r}.", hint="Pack the image files themselves."
            )
    images = sorted((entry for entry in visible if _is_image(entry)), key=lambda entry: entry.name)
    if not images:
        raise DatasetRefused(
            "The archive holds no images.", hint=f"Images end in {', '.join(sorted(_SUFFIXES))}, one folder a class."
        )
    folders = _class_folders(images)
    labels_file = next((entry for entry in visible if PurePosixPath(entry.name).name == LABELS_FILE), None)
    names = _class_order(folders, read_entry(file, archive, labels_file) if labels_file else None)
    modes, sizes = _headers(file, archive, images)
    mode: Literal["L", "RGB"] = "L" if all(kind in _GREY_MODES for kind in modes) else "RGB"
    others = [entry.name for entry in visible if not _is_image(entry) and entry is not labels_file]
    dataset = Dataset(
        "image_folder",
        FolderImages(file, archive, images, mode=mode, sizes=sizes),
        labels=None,
        warnings=(*_conversion_warnings(modes, mode), *_name_warnings(names, labels_file), *_other_files(others)),
    )
    if not names:
        return dataset
    numbers = {name: number for number, name in enumerate(names)}
    return replace(
        dataset, labels=np.array([numbers[str(folder)] for folder in folders], np.int64), class_names=tuple(names)
    )


def _class_folders(images: list[Entry]) -> list[str | None]:
    """The folder that each image lies in; None for all if they lie in none."""
    paths = [PurePosixPath(image.name).parts for image in images]
    depths = {len(path) for path in paths}
    if len(depths) > 1:
        deep = next(path for path in paths if len(path) == max(depths))
        raise DatasetRefused(
            f"Some images lie deeper in folders than others, such as {'/'.join(deep)!r}.",
            hint="Put every image into the folder of its class, and all of these folders into the same place.",
        )
    depth = depths.pop()
    if depth == 1:
        return [None] * len(images)
    above = {path[: depth - 2] for path in paths}
    if len(above) > 1:
        first, second = ("/".join(parts) for parts in sorted(above)[:2])
        raise DatasetRefused(
            f"The folders of classes lie in different places, such as {first!r} and {second!r}.",
            hint="Make one archive a data role, for instance one for training and one for testing.",
        )
    return [path[depth - 2] for path in paths]


def _class_order(folders: list[str | None], listed: bytes | None) -> list[str]:
    names = sorted({folder for folder in folders if folder is not None})
    if len(names) > MAX_CLASSES:
        raise DatasetRefused(f"The archive has {len(names):,} class folders; at most {MAX_CLASSES:,} are read.")
    if listed is None:
        return names
    with refusing_broken_files(f"The file {LABELS_FILE}"):
        order = [line.strip() for line in listed.decode("utf-8").splitlines() if line.strip()]
    doubled = [name for name, count in Counter(order).items() if count > 1]
    if doubled:
        raise DatasetRefused(f"The file {LABELS_FILE} lists {doubled[0]!r} twice.")
    missing = sorted(set(names) - set(order))
    if missing:
        raise DatasetRefused(
            f"The file {LABELS_FILE} doesn't list the folder {missing[0]!r}.", hint="List every folder, one a line."
        )
    return order


def _headers(
    file: HeldFile, archive: zipfile.ZipFile | None, images: list[Entry]
) -> tuple[Counter[str], list[tuple[int, int]]]:
    """Pixel formats and sizes, from the beginning of each image file; nothing is decoded."""
    modes: Counter[str] = Counter()
    sizes = []
    for entry in images:
        if entry.size > MAX_IMAGE_BYTES:
            raise DatasetRefused(
                f"The image {entry.name!r} has {entry.size:,} bytes; the limit is {MAX_IMAGE_BYTES:,}."
            )
        content = read_entry(file, archive, entry)
        with refusing_broken_files(f"The image {entry.name!r}"), _open_image(content) as image:
            modes[image.mode] += 1
            sizes.append((image.height, image.width))
    return modes, sizes


def _open_image(content: bytes) -> Image.Image:
    # Pillow warns of, or refuses, images that decode to very many pixels by a global limit; ours is stated here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(content), formats=_DECODERS)
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than {MAX_IMAGE_PIXELS:,}")
    return image


def _fitted_size(size: tuple[int, int], resize: int | None, crop: int | None) -> tuple[int, int]:
    """(height, width) after resizing the shorter side and cropping."""
    height, width = size
    if resize is not None:
        short = min(height, width)
        height, width = (max(1, resize * side // short) for side in (height, width))
    return (height, width) if crop is None else (crop, crop)


def _fit(image: Image.Image, resize: int | None, crop: int | None) -> Image.Image:
    if resize is not None:
        height, width = _fitted_size((image.height, image.width), resize, None)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if crop is not None:
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        if left < 0 or top < 0:
            raise DatasetRefused(
                f"An image of {image.width} x {image.height} pixels is too small for a crop of {crop}.",
                hint='Give a "resize" that is at least as large as "crop".',
            )
        image = image.crop((left, top, left + crop, top + crop))
    return image


def _is_hidden(entry: Entry) -> bool:
    return any(
        part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini")
        for part in PurePosixPath(entry.name).parts
    )


def _is_image(entry: Entry) -> bool:
    return PurePosixPath(entry.name).suffix.lower() in _SUFFIXES


def _conversion_warnings(modes: Counter[str], mode: str) -> list[str]:
    exact = {"L": {"1", "L"}, "RGB": {"RGB", "L", "1", "P"}}[mode]
    changed = {kind: count for kind, count in modes.items() if kind not in exact}
    listed = ", ".join(f"{count} of mode {kind}" for kind, count in sorted(changed.items()))
    return (
        [f"Some images were converted to {mode} and lost something (transparency, depth): {listed}."] if listed else []
    )


def _name_warnings(names: list[str], labels_file: Entry | None) -> list[str]:
    if labels_file is None and all(name.isdecimal() for name in names) and names != sorted(names, key=int):
        return [
            f"The folders are numbers, but classes are counted in alphabetical order ({', '.join(names[:4])}, …); "
            f"a file {LABELS_FILE} with one folder a line sets another order."
        ]
    return []


def _other_files(others: list[str]) -> list[str]:
    return [f"{len(others)} files that are no images were left out, such as {others[0]!r}."] if others else []
