"""What must happen now and then: nothing owed is lost, nothing needed is collected."""

import os
from pathlib import Path

import pytest

from jobs.database import Database
from jobs.housekeeping import ABANDONED_UPLOAD_SECONDS, collect_garbage, reap, remind, send_owed_hints
from jobs.messages import QueueUnavailable
from jobs.repository.idempotency import begin_request
from jobs.repository.lifecycle import request_cancel
from jobs.repository.uploads import add_upload, delete_upload
from jobs.storage import LocalStorage
from jobs.tables import JobRow, ModelRow
from tests.jobs.rows import LEASE_SECONDS, Clock, claim, load, owed, submit


class Broker:
    """A queue that remembers what it was sent, and can be away."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.room = 1_000_000

    def send_hint(self, job_id: str) -> None:
        if self.room == 0:
            raise QueueUnavailable("connection refused")
        self.room -= 1
        self.sent.append(job_id)


class Killed(BaseException):
    """As if the process ended here."""


@pytest.fixture
def broker() -> Broker:
    return Broker()


def submit_many(database: Database, count: int) -> list[str]:
    with database.writing() as session:
        return [submit(session).id for _ in range(count)]


class TestSending:
    def test_everything_owed_is_sent_once_in_order(self, sqlite_database: Database, broker: Broker) -> None:
        job_ids = submit_many(sqlite_database, 250)
        assert send_owed_hints(sqlite_database, broker)
        assert send_owed_hints(sqlite_database, broker)
        assert broker.sent == job_ids

    def test_while_the_broker_is_away_everything_stays_owed(self, database: Database, broker: Broker) -> None:
        job_ids = submit_many(database, 3)
        broker.room = 0
        assert not send_owed_hints(database, broker)
        assert owed(database) == job_ids
        broker.room = 10
        assert send_owed_hints(database, broker)
        assert broker.sent == job_ids

    def test_a_broker_that_goes_away_in_between_gets_the_rest_later(self, database: Database, broker: Broker) -> None:
        job_ids = submit_many(database, 5)
        broker.room = 2
        assert not send_owed_hints(database, broker)
        assert owed(database) == job_ids[2:]
        broker.room = 10
        send_owed_hints(database, broker)
        assert broker.sent == job_ids

    def test_a_crash_between_sending_and_forgetting_sends_twice(
        self, database: Database, queued_job: JobRow, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*_: object) -> None:
            raise Killed

        with monkeypatch.context() as patched:
            patched.setattr("jobs.housekeeping.forget_hints", die)
            with pytest.raises(Killed):
                send_owed_hints(database, broker)
        send_owed_hints(database, broker)
        assert broker.sent == [queued_job.id] * 2

    def test_a_hint_for_a_job_that_no_longer_waits_does_no_harm(
        self, database: Database, queued_job: JobRow, broker: Broker
    ) -> None:
        with database.writing() as session:
            request_cancel(session, queued_job.id)
        assert send_owed_hints(database, broker)
        assert owed(database) == []


def test_a_silent_worker_loses_its_job_and_the_job_is_sent_again(
    database: Database, queued_job: JobRow, clock: Clock, broker: Broker
) -> None:
    send_owed_hints(database, broker)
    claim(database, queued_job.id)
    clock.advance(LEASE_SECONDS + 1)
    reap(database, retry_delay_seconds=5)
    assert load(database, queued_job.id).state == "queued"
    send_owed_hints(database, broker)
    assert broker.sent == [queued_job.id]
    clock.advance(5)
    send_owed_hints(database, broker)
    assert broker.sent == [queued_job.id] * 2


def test_a_message_that_the_broker_lost_is_sent_again(
    database: Database, queued_job: JobRow, clock: Clock, broker: Broker
) -> None:
    send_owed_hints(database, broker)
    broker.sent.clear()  # the broker was restarted without its data
    clock.advance(61)
    remind(database, reminder_seconds=60)
    send_owed_hints(database, broker)
    assert broker.sent == [queued_job.id]


class TestCollecting:
    KEEP_SECONDS = 1000.0

    @pytest.fixture
    def storage(self, tmp_path: Path) -> LocalStorage:
        return LocalStorage(tmp_path / "storage")

    def collect(self, database: Database, storage: LocalStorage) -> None:
        collect_garbage(database, storage, keep_blobs_seconds=self.KEEP_SECONDS)

    @staticmethod
    def store(storage: LocalStorage, content: bytes) -> str:
        writer = storage.new_blob()
        writer.write(content)
        return writer.finish().sha256

    def make_old(self, tmp_path: Path, *digests: str) -> None:
        for digest in digests:
            (path,) = tmp_path.rglob(digest)
            os.utime(path, (0, path.stat().st_mtime - self.KEEP_SECONDS - 1))

    def stored(self, tmp_path: Path) -> set[str]:
        return {path.name for path in (tmp_path / "storage" / "sha256").rglob("*") if path.is_file()}

    def test_only_old_files_that_nothing_refers_to_are_removed(
        self, database: Database, storage: LocalStorage, tmp_path: Path
    ) -> None:
        referenced, forgotten, young = (self.store(storage, name) for name in (b"referenced", b"forgotten", b"young"))
        with database.writing() as session:
            add_upload(session, ModelRow, filename="x", size_bytes=1, sha256=referenced)
        self.make_old(tmp_path, referenced, forgotten)
        self.collect(database, storage)
        assert self.stored(tmp_path) == {referenced, young}

    def test_the_file_of_a_deleted_upload_stays_as_long_as_the_setting_says(
        self, database: Database, storage: LocalStorage, tmp_path: Path, clock: Clock
    ) -> None:
        digest = self.store(storage, b"deleted")
        with database.writing() as session:
            model = add_upload(session, ModelRow, filename="x", size_bytes=1, sha256=digest)
            delete_upload(session, ModelRow, model.id)
        self.make_old(tmp_path, digest)
        self.collect(database, storage)
        assert self.stored(tmp_path) == {digest}
        clock.advance(self.KEEP_SECONDS + 1)
        self.collect(database, storage)
        assert self.stored(tmp_path) == set()

    def test_a_file_that_is_stored_again_while_it_is_collected_stays(
        self, sqlite_database: Database, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest = self.store(storage, b"again")
        self.make_old(tmp_path, digest)

        def answer_after_another_upload(*_: object, **__: object) -> set[str]:
            self.store(storage, b"again")
            return set()  # its row was not there yet when this question was asked

        monkeypatch.setattr("jobs.housekeeping.referenced_blobs", answer_after_another_upload)
        self.collect(sqlite_database, storage)
        assert self.stored(tmp_path) == {digest}

    def test_many_files_are_asked_about_together(
        self, sqlite_database: Database, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("jobs.housekeeping.BLOBS_AT_ONCE", 4)
        digests = [self.store(storage, bytes([number])) for number in range(10)]
        with sqlite_database.writing() as session:
            for digest in digests[:3]:
                add_upload(session, ModelRow, filename="x", size_bytes=1, sha256=digest)
        self.make_old(tmp_path, *digests)
        self.collect(sqlite_database, storage)
        assert self.stored(tmp_path) == set(digests[:3])

    def test_broken_uploads_and_old_answers_go_too(
        self, database: Database, storage: LocalStorage, tmp_path: Path, clock: Clock
    ) -> None:
        storage.new_blob()._file.close()
        (partial,) = (tmp_path / "storage" / "incoming").iterdir()
        os.utime(partial, (0, partial.stat().st_mtime - ABANDONED_UPLOAD_SECONDS - 1))
        with database.writing() as session:
            begin_request(session, route="r", key="k", fingerprint="f", keep_seconds=10)
        clock.advance(11)
        self.collect(database, storage)
        assert list((tmp_path / "storage" / "incoming").iterdir()) == []
        with database.writing() as session:
            assert begin_request(session, route="r", key="k", fingerprint="other", keep_seconds=10) is None
