"""Files under their digests: complete or not there at all, never collected while somebody may need them."""

import errno
import hashlib
import io
import os
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.storage import Blob, BlobMissing, LocalStorage

CONTENT = b"the weights of a network"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def storage(folder: Path) -> LocalStorage:
    return LocalStorage(folder)


def store(storage: LocalStorage, content: bytes = CONTENT) -> Blob:
    writer = storage.new_blob()
    writer.write(content)
    return writer.finish()


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def make_old(folder: Path, seconds: float = 1000) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (path.stat().st_atime - seconds, path.stat().st_mtime - seconds))


class TestStoring:
    def test_what_was_stored_can_be_read_under_its_digest(self, storage: LocalStorage, folder: Path) -> None:
        assert store(storage) == Blob(sha256=SHA256, size_bytes=len(CONTENT))
        with storage.open(SHA256) as file:
            assert file.read() == CONTENT
        assert storage.size(SHA256) == len(CONTENT)
        assert files_in(folder) == [SHA256]

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(chunks=st.lists(st.binary(max_size=1000), max_size=10))
    def test_the_digest_is_of_all_chunks_in_order(self, chunks: list[bytes], storage: LocalStorage) -> None:
        writer = storage.new_blob()
        for chunk in chunks:
            writer.write(memoryview(chunk))
        content = b"".join(chunks)
        assert writer.digest() == hashlib.sha256(content).hexdigest()
        assert writer.size_bytes == len(content)
        with storage.open(writer.finish().sha256) as file:
            assert file.read() == content

    def test_nothing_is_visible_before_it_is_finished(self, storage: LocalStorage) -> None:
        writer = storage.new_blob()
        writer.write(CONTENT)
        with pytest.raises(BlobMissing):
            storage.open(SHA256)
        writer.finish()
        assert storage.size(SHA256) == len(CONTENT)

    def test_what_is_discarded_leaves_nothing(self, storage: LocalStorage, folder: Path) -> None:
        writer = storage.new_blob()
        writer.write(CONTENT)
        writer.discard()
        assert files_in(folder) == []

    def test_discarding_after_the_end_is_harmless(self, storage: LocalStorage) -> None:
        writer = storage.new_blob()
        writer.write(CONTENT)
        writer.finish()
        writer.discard()
        assert storage.size(SHA256) == len(CONTENT)

    def test_the_same_bytes_are_stored_once(self, storage: LocalStorage, folder: Path) -> None:
        store(storage)
        store(storage)
        assert files_in(folder) == [SHA256]

    def test_a_reader_keeps_its_file_while_it_is_stored_again(self, storage: LocalStorage) -> None:
        store(storage)
        with storage.open(SHA256) as file:
            store(storage)
            assert file.read() == CONTENT

    def test_a_file_can_be_stored_from_its_path(self, storage: LocalStorage, tmp_path: Path, folder: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(CONTENT)
        assert storage.add_file(source).sha256 == SHA256
        assert source.read_bytes() == CONTENT
        assert files_in(folder) == [SHA256]

    def test_nobody_else_on_the_machine_can_read_it(self, storage: LocalStorage, folder: Path) -> None:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    @pytest.mark.parametrize("name", ["", "../../etc/passwd", "0" * 63, "0" * 63 + "/", "0" * 65, "A" * 64, "٣" * 64])
    def test_only_digests_lead_to_files(self, name: str, storage: LocalStorage) -> None:
        with pytest.raises(ValueError, match="no digest"):
            storage.open(name)

    @pytest.mark.parametrize("ask", [LocalStorage.open, LocalStorage.size], ids=["open", "size"])
    def test_a_missing_file_is_named(self, ask: Any, storage: LocalStorage) -> None:
        with pytest.raises(BlobMissing, match=SHA256):
            ask(storage, SHA256)

    def test_free_space_is_told(self, storage: LocalStorage) -> None:
        assert storage.free_bytes() > 0


class FullDisk(io.BytesIO):
    """A file on a disk with room for ten bytes, which then takes part of a write, then none."""

    def write(self, chunk: Any) -> int:
        taken = super().write(bytes(chunk)[: 10 - self.tell()])
        if taken == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return taken


class TestFullDisk:
    def test_a_write_that_does_not_fit_fails_and_leaves_nothing(self, storage: LocalStorage, folder: Path) -> None:
        writer = storage.new_blob()
        writer._file.close()
        writer._file = FullDisk()  # type: ignore[assignment]
        with pytest.raises(OSError, match="No space"):
            writer.write(CONTENT)
        writer.discard()
        assert files_in(folder) == []

    def test_a_file_beyond_the_limit_of_its_process_leaves_nothing(self, tmp_path: Path, folder: Path) -> None:
        program = """
import resource, signal, sys
from pathlib import Path
from jobs.storage import LocalStorage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    LocalStorage(Path(sys.argv[1])).add_file(Path(sys.argv[2]))
except OSError as refused:
    print(refused.errno)
"""
        source = tmp_path / "source"
        source.write_bytes(bytes(3_000_000))
        command = [sys.executable, "-c", program, str(folder), str(source)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert int(output) == errno.EFBIG
        assert files_in(folder) == []


class TestCollecting:
    def test_young_files_are_not_offered(self, storage: LocalStorage, folder: Path) -> None:
        store(storage)
        assert list(storage.old_blobs(older_than_seconds=100)) == []
        make_old(folder)
        assert list(storage.old_blobs(older_than_seconds=100)) == [SHA256]

    def test_old_files_are_removed(self, storage: LocalStorage, folder: Path) -> None:
        store(storage)
        make_old(folder)
        assert storage.collect(SHA256, older_than_seconds=100)
        assert files_in(folder) == []
        assert not storage.collect(SHA256, older_than_seconds=100)

    def test_a_file_that_was_stored_again_meanwhile_stays(self, storage: LocalStorage, folder: Path) -> None:
        store(storage)
        make_old(folder)
        (offered,) = storage.old_blobs(older_than_seconds=100)
        store(storage)
        assert not storage.collect(offered, older_than_seconds=100)
        assert storage.size(SHA256) == len(CONTENT)

    def test_a_file_that_took_long_to_arrive_is_young_when_it_is_there(
        self, storage: LocalStorage, folder: Path
    ) -> None:
        writer = storage.new_blob()
        writer.write(CONTENT)
        make_old(folder)
        writer.finish()
        assert list(storage.old_blobs(older_than_seconds=100)) == []

    def test_collecting_and_storing_the_same_bytes_at_once_never_loses_them(
        self, storage: LocalStorage, folder: Path
    ) -> None:
        over = threading.Event()

        def collect_all_the_time() -> None:
            while not over.is_set():
                storage.collect(SHA256, older_than_seconds=100)

        collector = threading.Thread(target=collect_all_the_time)
        collector.start()
        try:
            for _ in range(100):
                with suppress(FileNotFoundError):  # the collector was faster
                    make_old(folder / "sha256")
                store(storage)
                assert storage.size(SHA256) == len(CONTENT)
        finally:
            over.set()
            collector.join()


class TestSweeping:
    def test_what_a_killed_upload_left_is_removed_when_it_is_old(self, storage: LocalStorage, folder: Path) -> None:
        storage.new_blob()._file.close()  # and the process is gone
        assert storage.sweep_incoming(older_than_seconds=100) == 0
        make_old(folder)
        assert storage.sweep_incoming(older_than_seconds=100) == 1
        assert files_in(folder) == []

    def test_finished_files_are_not_swept(self, storage: LocalStorage, folder: Path) -> None:
        store(storage)
        make_old(folder)
        assert storage.sweep_incoming(older_than_seconds=100) == 0
        assert files_in(folder) == [SHA256]
