"""What the dataset readers take, and how they refuse the rest: precisely, and with nothing but `DatasetRefused`."""

import contextlib
import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.errors import DatasetRefused
from workers.datasets import archives
from workers.datasets.dataset import Dataset
from workers.datasets.read_dataset import read_dataset

X = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 6), dtype=np.uint8)
Y = np.arange(12) % 3


def picked(dataset: Dataset) -> np.ndarray:
    return dataset.images.pick(np.arange(len(dataset)))


def npz(path: Path, *, compressed: bool = False, **arrays: np.ndarray) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def safetensors(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def png(image: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", **options)
    return buffer.getvalue()


def zip_of(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tar_of(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def image_files(prefix: str = "") -> dict[str, bytes]:
    """Two classes of three colour images, whose pixels are those of X."""
    return {
        f"{prefix}{name}/{index}.png": png(X[3 * number + index].transpose(1, 2, 0))
        for number, name in enumerate(["cat", "dog"])
        for index in range(3)
    }


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_gives_its_images_and_labels_however_it_is_packed(tmp_path: Path, compression: int) -> None:
    members = {}
    for name, array in {"x": X, "y": Y, "unused": np.zeros(5)}.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        members[f"{name}.npy"] = buffer.getvalue()
    dataset = read_dataset(zip_of(tmp_path / "d.npz", members, compression), scratch=tmp_path)
    assert dataset.format == "npz"
    assert dataset.images.shape == (3, 8, 6)
    np.testing.assert_array_equal(picked(dataset), X)
    assert dataset.labels is not None
    np.testing.assert_array_equal(dataset.labels, Y)
    np.testing.assert_array_equal(dataset.images.pick(np.array([7, 2, 3, 11])), X[[7, 2, 3, 11]])


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "<f4"])
def test_floating_point_images_keep_their_values_in_native_byte_order(tmp_path: Path, dtype: str) -> None:
    dataset = read_dataset(npz(tmp_path / "d.npz", x=(X / 7).astype(dtype)))
    assert dataset.images.dtype == np.dtype(dtype).newbyteorder("=").name
    np.testing.assert_array_equal(picked(dataset), (X / 7).astype(dtype))


def test_labels_may_be_missing(tmp_path: Path) -> None:
    assert read_dataset(npz(tmp_path / "d.npz", x=X)).labels is None


def test_scratch_holds_no_file_once_a_dataset_is_read(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", compressed=True, x=X, y=Y)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    dataset = read_dataset(path, scratch=scratch)
    assert list(scratch.iterdir()) == []
    np.testing.assert_array_equal(picked(dataset), X)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": X}, "no array 'x'; its arrays: images"),
        ({"x": X[0]}, r"have the shape \(3, 8, 6\); they must have four dimensions"),
        ({"x": X[:0]}, "is empty"),
        ({"x": X.astype(np.int64)}, "stored as int64"),
        ({"x": X > 3}, "stored as bool"),
        ({"x": X.transpose(0, 2, 3, 1).copy()}, r"looks like \(N, H, W, C\)"),
        ({"x": np.asfortranarray(X)}, "Fortran order"),
        ({"x": X.astype(np.complex64)}, "holds type <c8"),
        ({"x": X, "y": Y[:-1]}, "12 images but 11 labels"),
        ({"x": X, "y": Y[:, None]}, r"labels have the shape \(12, 1\)"),
        ({"x": X, "y": Y.astype(np.float32)}, "labels are stored as float32"),
        ({"x": X, "y": Y - 1}, "label of image 0 is -1"),
        ({"x": X, "y": Y + 100_000}, "below 100,000"),
    ],
)
def test_arrays_that_are_no_images_and_labels_are_refused_with_the_reason(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(DatasetRefused, match=message):
        read_dataset(npz(tmp_path / "d.npz", **arrays))


def test_object_arrays_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    hostile = np.empty(1, dtype=object)
    hostile[0] = Payload()
    for arrays in ({"x": hostile}, {"x": X, "y": hostile}):
        with pytest.raises(DatasetRefused, match="holds Python objects"):
            read_dataset(npz(tmp_path / "d.npz", **arrays))
    (tmp_path / "d.pkl").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(DatasetRefused, match="a pickle, which is code"):
        read_dataset(tmp_path / "d.pkl")
    assert not (tmp_path / "executed").exists()


def test_values_that_are_not_finite_are_refused_by_image(tmp_path: Path) -> None:
    x = X.astype(np.float32)
    x[5, 1, 2, 3] = np.nan
    dataset = read_dataset(npz(tmp_path / "d.npz", x=x))
    with pytest.raises(DatasetRefused, match="Image 5 holds values that are not finite"):
        picked(dataset)


def test_npy_header_that_promises_other_bytes_than_there_are_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296, 1, 1), }"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
    with pytest.raises(DatasetRefused, match="its header speaks of 18,446,744,073,709,551,616 bytes, but 64 are there"):
        read_dataset(zip_of(tmp_path / "d.npz", {"x.npy": array}))


@pytest.mark.parametrize("pack", ["zip", "deflated", "tar", "tar.gz"])
@pytest.mark.parametrize("prefix", ["", "photos/all/"])
def test_image_folders_give_one_class_a_folder(tmp_path: Path, pack: str, prefix: str) -> None:
    files = {
        **image_files(prefix),
        "__MACOSX/cat/._0.png": b"junk",
        f"{prefix}cat/.DS_Store": b"junk",
        f"{prefix}readme.txt": b"hello",
    }
    match pack:
        case "zip":
            path = zip_of(tmp_path / "d.zip", files)
        case "deflated":
            path = zip_of(tmp_path / "d.zip", files, zipfile.ZIP_DEFLATED)
        case "tar":
            path = tar_of(tmp_path / "d.tar", files)
        case _:
            path = tar_of(tmp_path / "d.tar.gz", files, "w:gz")
    dataset = read_dataset(path, scratch=tmp_path)
    assert dataset.format == "image_folder"
    assert dataset.class_names == ("cat", "dog")
    assert dataset.class_counts() == {"cat": 3, "dog": 3}
    np.testing.assert_array_equal(picked(dataset), X[:6])
    assert dataset.warnings == (f"1 files that are no images were left out, such as '{prefix}readme.txt'.",)


def test_long_tar_names_of_both_dialects_are_read(tmp_path: Path) -> None:
    files = {f"{'very_long_folder_name_' * 12}/{name}": content for name, content in image_files().items()}
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        (tmp_path / "d.tar").write_bytes(buffer.getvalue())
        dataset = read_dataset(tmp_path / "d.tar")
        assert dataset.class_names == ("cat", "dog")
        np.testing.assert_array_equal(picked(dataset), X[:6])


def test_grey_image_files_have_one_channel_and_mixed_ones_three(tmp_path: Path) -> None:
    grey = {"a/0.png": png(X[0, 0]), "b/0.png": png(X[1, 0])}
    assert picked(read_dataset(zip_of(tmp_path / "grey.zip", grey))).shape == (2, 1, 8, 6)
    mixed = {**grey, "b/1.png": png(X[2].transpose(1, 2, 0))}
    assert picked(read_dataset(zip_of(tmp_path / "mixed.zip", mixed))).shape == (3, 3, 8, 6)


def test_labels_file_sets_the_order_of_classes(tmp_path: Path) -> None:
    files = {**image_files(), "LABELS": b"fish\ndog\ncat\n"}
    dataset = read_dataset(zip_of(tmp_path / "d.zip", files))
    assert dataset.class_names == ("fish", "dog", "cat")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [2, 2, 2, 1, 1, 1]
    with pytest.raises(DatasetRefused, match="doesn't list the folder 'dog'"):
        read_dataset(zip_of(tmp_path / "d.zip", {**files, "LABELS": b"cat"}))
    with pytest.raises(DatasetRefused, match="lists 'cat' twice"):
        read_dataset(zip_of(tmp_path / "d.zip", {**files, "LABELS": b"cat\ndog\ncat"}))


def test_numeric_folders_in_alphabetical_order_are_warned_of(tmp_path: Path) -> None:
    files = {f"{number}/0.png": png(X[0, 0]) for number in range(11)}
    (warning,) = read_dataset(zip_of(tmp_path / "d.zip", files)).warnings
    assert "alphabetical order (0, 1, 10, 2, …)" in warning


def test_images_outside_folders_are_unlabelled(tmp_path: Path) -> None:
    dataset = read_dataset(zip_of(tmp_path / "d.zip", {f"{i}.png": png(X[i, 0]) for i in range(3)}))
    assert dataset.labels is None


def test_images_of_different_sizes_are_resized_and_cropped(tmp_path: Path) -> None:
    from workers.datasets.read_image_folder import FolderImages

    wide, tall = np.zeros((10, 20, 3), np.uint8), np.full((30, 12, 3), 255, np.uint8)
    images = read_dataset(zip_of(tmp_path / "d.zip", {"a/0.png": png(wide), "b/0.png": png(tall)})).images
    assert isinstance(images, FolderImages)
    assert images.shape == (3, "height", "width")
    fitted = images.fitted(8, 6)
    assert fitted.shape == (3, 6, 6)
    assert fitted.pick(np.array([0, 1])).shape == (2, 3, 6, 6)
    with pytest.raises(DatasetRefused, match="different sizes"):
        images.pick(np.array([0, 1]))
    with pytest.raises(DatasetRefused, match="too small for a crop of 16"):
        images.fitted(None, 16).pick(np.array([0]))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"/etc/x.png": b""}, "leads outside the archive"),
        ({"a/../../x.png": b""}, "leads outside the archive"),
        ({"C:x.png": b""}, "no plain path"),
        ({"a\\x.png": b""}, "no plain path"),
        ({"a/inner.zip": b"", **image_files()}, "holds another archive, 'a/inner.zip'"),
        ({"a/inner.tar.gz": b"", **image_files()}, "holds another archive"),
        ({"notes.txt": b"hello"}, "holds no images"),
        ({"a/x.png": b"not an image"}, "The image 'a/x.png' is broken"),
        (
            {"a/x.png": png(X[0, 0]), "a/b/y.png": png(X[0, 0])},
            "lie deeper in folders than others, such as 'a/b/y.png'",
        ),
        ({"train/a/x.png": png(X[0, 0]), "test/a/y.png": png(X[0, 0])}, "different places, such as 'test' and 'train'"),
    ],
)
def test_hostile_and_confusing_archives_are_refused_with_the_entry(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    for path in (zip_of(tmp_path / "d.zip", files), tar_of(tmp_path / "d.tar", files)):
        with pytest.raises(DatasetRefused, match=message):
            read_dataset(path)


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        with tarfile.open(tmp_path / "d.tar", "w") as archive:
            info = tarfile.TarInfo("a/x.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        with pytest.raises(DatasetRefused, match="a link, a device or another special file"):
            read_dataset(tmp_path / "d.tar")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        info = zipfile.ZipInfo("a/x.png")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DatasetRefused, match="a link, a device or another special file"):
        read_dataset(tmp_path / "d.zip")


def test_negative_and_endless_tar_headers_are_refused(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("a/x.png").tobuf())
    for size in (b"\xff" * 12, b"77777777777\0", b"-0000000010\0"):
        header[124:136] = size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        (tmp_path / "d.tar").write_bytes(bytes(header) + bytes(2048))
        with pytest.raises(DatasetRefused, match="The tar archive is broken"):
            read_dataset(tmp_path / "d.tar")


def test_doubled_zip_entries_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("a/x.png", png(X[0, 0]))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/x.png", png(X[1, 0]))
    with pytest.raises(DatasetRefused, match=r"holds the entry 'a/x\.png' twice"):
        read_dataset(tmp_path / "d.zip")


def test_overlapping_zip_entries_are_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "d.zip", {"a/x.png": bytes(1000), "a/y.png": bytes(1000)})
    content = bytearray(path.read_bytes())
    second = content.rfind(b"PK\x01\x02")
    content[second + 42 : second + 46] = struct.pack("<I", 0)  # its data are the first one's
    path.write_bytes(content)
    with pytest.raises(DatasetRefused, match="overlaps"):
        read_dataset(path)


def test_encrypted_entries_are_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "d.zip", {"a/x.png": png(X[0, 0])})
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DatasetRefused, match="encrypted"):
        read_dataset(path)


def test_bombs_are_refused_before_they_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "HARMLESS_BYTES", 2**16)
    monkeypatch.setattr(archives, "MAX_RATIO", 10)
    x = np.zeros((2000, 1, 16, 16), np.uint8)
    with pytest.raises(DatasetRefused, match="claims to unpack to 51"):
        read_dataset(npz(tmp_path / "d.npz", compressed=True, x=x))
    (tmp_path / "d.tar.gz").write_bytes(gzip.compress(bytes(2**20)))
    with pytest.raises(DatasetRefused, match="unpacks to more than 65,536 bytes"):
        read_dataset(tmp_path / "d.tar.gz")


def test_lzma_dictionaries_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "d.npz", {"x.npy": bytes(1000)}, zipfile.ZIP_LZMA)
    content = bytearray(path.read_bytes())
    start = 30 + len("x.npy")
    content[start + 5 : start + 9] = struct.pack("<I", 2**32 - 1)
    path.write_bytes(content)
    with pytest.raises(DatasetRefused, match="needs 4,294,967,295 bytes to unpack"):
        read_dataset(path)


def test_image_of_too_many_pixels_is_refused_without_decoding_it(tmp_path: Path) -> None:
    content = bytearray(png(X[0, 0]))
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    import zlib

    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(DatasetRefused, match=r"The image 'a/x\.png' is broken"):
        read_dataset(zip_of(tmp_path / "d.zip", {"a/x.png": bytes(content)}))


def test_safetensors_give_their_images_and_labels(tmp_path: Path) -> None:
    y = Y.astype(np.int64)
    header = {
        "__metadata__": {"made_by": "hand"},
        "y": {"dtype": "I64", "shape": [12], "data_offsets": [0, 96]},
        "x": {"dtype": "U8", "shape": list(X.shape), "data_offsets": [96, 96 + X.size]},
    }
    dataset = read_dataset(safetensors(tmp_path / "d.safetensors", header, y.tobytes() + X.tobytes()))
    assert dataset.format == "safetensors"
    np.testing.assert_array_equal(picked(dataset), X)
    assert dataset.labels is not None
    np.testing.assert_array_equal(dataset.labels, Y)


def test_safetensors_of_the_library_are_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": X.astype(np.float32), "y": Y}, tmp_path / "d.safetensors")
    dataset = read_dataset(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(picked(dataset), X.astype(np.float32))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"images": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, "no tensor 'x'; its tensors: images"),
        ({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 3]}}, "needs 4 bytes but has 3"),
        ({"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, "end at byte"),
        ({"x": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}, "overlap or leave a hole"),
        (
            {
                "x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                "y": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
            },
            "overlap or leave a hole",
        ),
        ({"x": {"dtype": "U8", "shape": [-4], "data_offsets": [0, 4]}}, "not well formed"),
        ({"x": {"dtype": "U8", "shape": [True], "data_offsets": [0, 4]}}, "not well formed"),
        ({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, "is of type 'BF16'"),
        ({"x": [1, 2]}, "not described by"),
        (b'{"x": {"dtype": "U8"}, "x": 1}', "names a tensor twice"),
        (b'{"a":' * 5000, "header of the safetensors file is broken"),
        (b"{" + b"9" * 5000, "header of the safetensors file is broken"),
    ],
)
def test_broken_safetensors_are_refused_with_the_reason(tmp_path: Path, header: object, message: str) -> None:
    with pytest.raises(DatasetRefused, match=message):
        read_dataset(safetensors(tmp_path / "d.safetensors", header, bytes(4)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello", "of no kind that Winnow reads"),
        (b"\x93NUMPY\x01\x00", "single .npy array"),
        (b"PK\x05\x06" + bytes(18), "zip archive is empty"),
        (b"PK\x03\x04" + bytes(18), "cut off or is no zip archive"),
        (b"\x1f\x8b" + bytes(18), "gzip file is broken"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "d").write_bytes(content)
    with pytest.raises(DatasetRefused, match=message):
        read_dataset(tmp_path / "d")


@pytest.fixture(scope="module")
def good_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small dataset of every kind."""
    folder = tmp_path_factory.mktemp("good")
    from safetensors.numpy import save_file

    save_file({"x": X, "y": Y}, folder / "d.safetensors")
    lzma = io.BytesIO()
    np.save(lzma, X)
    paths = {
        "npz": npz(folder / "d.npz", x=X, y=Y),
        "deflated npz": npz(folder / "e.npz", compressed=True, x=X, y=Y),
        "lzma npz": zip_of(folder / "f.npz", {"x.npy": lzma.getvalue()}, zipfile.ZIP_LZMA),
        "safetensors": folder / "d.safetensors",
        "zip": zip_of(folder / "d.zip", image_files()),
        "tar": tar_of(folder / "d.tar", image_files()),
        "tar.gz": tar_of(folder / "d.tar.gz", image_files(), "w:gz"),
    }
    return {name: path.read_bytes() for name, path in paths.items()}


KINDS = ["npz", "deflated npz", "lzma npz", "safetensors", "zip", "tar", "tar.gz"]


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_files_are_read_or_refused_and_nothing_else(
    tmp_path: Path, good_files: dict[str, bytes], kind: str, data: st.DataObject
) -> None:
    content = bytearray(good_files[kind])
    # Most structure stands in the first and last bytes, so damage these more often than the pixels.
    positions = st.one_of(
        st.integers(0, min(600, len(content) - 1)),
        st.integers(max(0, len(content) - 600), len(content) - 1),
        st.integers(0, len(content) - 1),
    )
    for position in data.draw(st.lists(positions, max_size=4), "positions"):
        content[position] = data.draw(st.integers(0, 255), "byte")
    length = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))), "length")
    path = tmp_path / "damaged"
    path.write_bytes(content[:length])
    with contextlib.suppress(DatasetRefused):
        picked(read_dataset(path, scratch=tmp_path))
