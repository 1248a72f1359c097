"""Models and datasets: found, listed, hidden, kept from being collected."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.errors import ErrorCode, JobError
from jobs.repository.lifecycle import NewArtifact, fail_job, succeed_job
from jobs.repository.uploads import (
    add_upload,
    delete_upload,
    find_upload,
    is_in_use,
    referenced_blobs,
    upload_version,
    uploads_page,
)
from jobs.tables import DatasetRow, ModelRow
from tests.jobs.rows import Clock, add_dataset, add_model, claim, digest_of, submit

Table = Any  # one of the two: mypy takes a union of them for neither
ERROR = JobError(code=ErrorCode.INTERNAL, message="It broke.")


def add(session: Session, table: Table, content: str = "a file") -> str:
    return (add_model(session, content) if table is ModelRow else add_dataset(session, content)).id


both_tables = pytest.mark.parametrize("table", [ModelRow, DatasetRow], ids=["models", "datasets"])


@both_tables
class TestEachKind:
    def test_a_new_upload_is_found_under_its_id(self, table: Table, database: Database, clock: Clock) -> None:
        with database.writing() as session:
            row = add_upload(session, table, filename="ünï.bin", size_bytes=7, sha256=digest_of("x"))
        with database.reading() as session:
            found = find_upload(session, table, row.id)
        assert found is not None
        assert (found.state, found.filename, found.size_bytes, found.version) == ("inspecting", "ünï.bin", 7, 1)
        assert found.created_at == clock()
        assert found.id.startswith("mdl_" if table is ModelRow else "dst_")

    def test_a_deleted_upload_is_gone_for_clients(self, table: Table, database: Database) -> None:
        with database.writing() as session:
            upload_id = add(session, table)
            assert delete_upload(session, table, upload_id)
        with database.writing() as session:
            assert find_upload(session, table, upload_id) is None
            assert upload_version(session, table, upload_id) is None
            assert list(uploads_page(session, table, before=None, limit=10)) == []
            assert not delete_upload(session, table, upload_id)

    def test_pages_hold_every_upload_once_newest_first(self, table: Table, database: Database) -> None:
        with database.writing() as session:
            made = sorted(add(session, table) for _ in range(7))
        seen: list[str] = []
        with database.reading() as session:
            while page := uploads_page(session, table, before=seen[-1] if seen else None, limit=3):
                seen += [row.id for row in page]
        assert seen == made[::-1]

    def test_pages_can_be_of_one_state(self, table: Table, database: Database) -> None:
        with database.writing() as session:
            ready = add(session, table)
            add(session, table)
            row = find_upload(session, table, ready)
            assert row is not None
            row.state = "ready"
        with database.reading() as session:
            assert [row.id for row in uploads_page(session, table, before=None, limit=9, state="ready")] == [ready]

    def test_an_upload_is_in_use_until_its_jobs_end(self, table: Table, database: Database) -> None:
        with database.writing() as session:
            upload_id = add(session, table)
            assert not is_in_use(session, table, upload_id)
            works_on = {"model_id": upload_id} if table is ModelRow else {"inputs": {"test": upload_id}}
            job = submit(session, **works_on)
            assert is_in_use(session, table, upload_id)
        token = claim(database, job.id)
        with database.writing() as session:
            assert is_in_use(session, table, upload_id)
            fail_job(session, job.id, token, ERROR)
            assert not is_in_use(session, table, upload_id)

    def test_an_inspection_does_not_keep_a_file_in_use(self, table: Table, database: Database) -> None:
        with database.writing() as session:
            upload_id = add(session, table)
            submit_inspection(session, table, upload_id)
            assert not is_in_use(session, table, upload_id)


def submit_inspection(session: Session, table: Table, upload_id: str) -> str:
    if table is ModelRow:
        return submit(session, kind="inspect_model", model_id=upload_id).id
    return submit(session, kind="inspect_dataset", model_id=None, dataset_id=upload_id).id


class TestReferencedBlobs:
    KEEP_SECONDS = 100.0

    def referenced(self, database: Database, *contents: str) -> set[str]:
        digests = [digest_of(content) for content in contents]
        with database.reading() as session:
            found = referenced_blobs(session, digests, keep_seconds=self.KEEP_SECONDS)
        return {content for content in contents if digest_of(content) in found}

    def test_what_nobody_refers_to_is_not_referenced(self, database: Database) -> None:
        assert self.referenced(database, "unknown") == set()

    @both_tables
    def test_uploads_are_referenced_until_some_time_after_they_were_deleted(
        self, table: Table, database: Database, clock: Clock
    ) -> None:
        with database.writing() as session:
            add(session, table, "kept")
            deleted = add(session, table, "deleted")
        assert self.referenced(database, "kept", "deleted", "other") == {"kept", "deleted"}
        with database.writing() as session:
            delete_upload(session, table, deleted)
        clock.advance(self.KEEP_SECONDS - 1)
        assert self.referenced(database, "kept", "deleted") == {"kept", "deleted"}
        clock.advance(2)
        assert self.referenced(database, "kept", "deleted") == {"kept"}

    @pytest.mark.parametrize(
        "start",
        [
            pytest.param(lambda session, upload: submit(session, model_id=upload("model")).id, id="compress"),
            pytest.param(
                lambda session, upload: submit(session, inputs={"train": upload("dataset")}).id, id="compress with data"
            ),
            pytest.param(
                lambda session, upload: submit_inspection(session, ModelRow, upload("model")), id="inspect model"
            ),
            pytest.param(
                lambda session, upload: submit_inspection(session, DatasetRow, upload("dataset")), id="inspect dataset"
            ),
        ],
    )
    def test_a_job_that_has_not_ended_keeps_its_deleted_files(
        self, start: Callable[[Session, Callable[[str], str]], str], database: Database, clock: Clock
    ) -> None:
        def upload(kind: str) -> str:
            return add(session, ModelRow if kind == "model" else DatasetRow, "in use")

        with database.writing() as session:
            job_id = start(session, upload)
            tables: tuple[Table, ...] = (ModelRow, DatasetRow)
            for table in tables:
                for row in uploads_page(session, table, before=None, limit=10):
                    delete_upload(session, table, row.id)
        clock.advance(self.KEEP_SECONDS + 1)
        assert self.referenced(database, "in use") == {"in use"}
        token = claim(database, job_id)
        with database.writing() as session:
            fail_job(session, job_id, token, ERROR)
        assert self.referenced(database, "in use") == set()

    def test_artifacts_are_referenced(self, database: Database) -> None:
        with database.writing() as session:
            job = submit(session)
        token = claim(database, job.id)
        delivered = NewArtifact(
            name="model.onnx", kind="model", media_type="x/y", size_bytes=1, sha256=digest_of("delivered")
        )
        with database.writing() as session:
            succeed_job(session, job.id, token, artifacts=[delivered])
        assert self.referenced(database, "delivered", "other") == {"delivered"}

    def test_one_of_two_uploads_of_the_same_bytes_is_enough(self, database: Database, clock: Clock) -> None:
        with database.writing() as session:
            delete_upload(session, ModelRow, add_model(session, "same").id)
            add_model(session, "same")
        clock.advance(self.KEEP_SECONDS + 1)
        assert self.referenced(database, "same") == {"same"}
