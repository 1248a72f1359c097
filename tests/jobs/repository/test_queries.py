"""What clients read."""

import pytest
from sqlalchemy import event

from jobs.database import Database
from jobs.errors import ErrorCode, JobError
from jobs.repository.lifecycle import NewArtifact, Wishes, fail_job, succeed_job
from jobs.repository.queries import (
    artifacts_of,
    events_after,
    find_artifact,
    find_job,
    inputs_of,
    job_version,
    jobs_ahead,
    jobs_page,
)
from jobs.repository.worker_queries import wishes_for
from jobs.tables import JobRow
from tests.jobs.rows import add_dataset, add_model, claim, digest_of, submit

UNKNOWN = "job_" + "0" * 26


def test_a_job_is_found_with_its_version(database: Database, queued_job: JobRow) -> None:
    with database.reading() as session:
        found = find_job(session, queued_job.id)
        assert found is not None
        assert found.id == queued_job.id
        assert job_version(session, queued_job.id) == 1


def test_clients_see_no_inspections(database: Database) -> None:
    with database.writing() as session:
        inspection = submit(session, kind="inspect_model")
    with database.reading() as session:
        assert find_job(session, inspection.id) is None
        assert job_version(session, inspection.id) is None
        assert list(jobs_page(session, before=None, limit=10)) == []


def test_an_unknown_job_is_none(database: Database) -> None:
    with database.reading() as session:
        assert find_job(session, UNKNOWN) is None
        assert job_version(session, UNKNOWN) is None
        assert wishes_for(session, UNKNOWN) == Wishes(cancel=False, finish=False)


def test_pages_hold_every_job_once_newest_first(database: Database) -> None:
    with database.writing() as session:
        made = sorted(submit(session).id for _ in range(7))
    seen: list[str] = []
    with database.reading() as session:
        while page := jobs_page(session, before=seen[-1] if seen else None, limit=3):
            seen += [job.id for job in page]
    assert seen == made[::-1]


def test_jobs_that_come_while_somebody_turns_pages_shift_none(database: Database) -> None:
    with database.writing() as session:
        made = sorted(submit(session).id for _ in range(4))
    with database.reading() as session:
        first = [job.id for job in jobs_page(session, before=None, limit=2)]
    with database.writing() as session:
        submit(session)
    with database.reading() as session:
        second = [job.id for job in jobs_page(session, before=first[-1], limit=2)]
    assert first + second == made[::-1]


def test_pages_can_be_narrowed(database: Database) -> None:
    with database.writing() as session:
        waiting, failed = submit(session), submit(session)
        child = submit(session, model_id=waiting.model_id, parent_id=failed.id)
    token = claim(database, failed.id)
    with database.writing() as session:
        fail_job(session, failed.id, token, JobError(code=ErrorCode.INTERNAL, message="It broke."))
    with database.reading() as session:
        assert [job.id for job in jobs_page(session, before=None, limit=9, states=["failed"])] == [failed.id]
        found = jobs_page(session, before=None, limit=9, model_id=waiting.model_id)
        assert {job.id for job in found} == {waiting.id, child.id}
        assert [job.id for job in jobs_page(session, before=None, limit=9, parent_id=failed.id)] == [child.id]


def test_a_page_of_jobs_is_one_statement(database: Database) -> None:
    with database.writing() as session:
        for _ in range(5):
            submit(session)
    statements: list[str] = []
    with database.reading() as session:
        event.listen(session.get_bind(), "before_cursor_execute", lambda *args: statements.append(args[2]))
        assert [len(job.request) for job in jobs_page(session, before=None, limit=5)] == [1] * 5
    assert len([statement for statement in statements if statement.startswith("SELECT")]) == 1


def test_jobs_ahead_are_those_that_waited_longer(database: Database) -> None:
    with database.writing() as session:
        jobs = sorted((submit(session) for _ in range(3)), key=lambda job: job.id)
    claim(database, jobs[0].id)
    with database.reading() as session:
        assert [jobs_ahead(session, job) for job in jobs] == [0, 0, 1]


@pytest.mark.parametrize(
    ("after", "expected"),
    [(0, [1, 2]), (1, [2]), (2, []), (-5, [1, 2]), (2**31, []), (2**63, []), (-(2**70), [1, 2])],
)
def test_events_after_any_number_can_be_asked_for(
    after: int, expected: list[int], database: Database, queued_job: JobRow
) -> None:
    claim(database, queued_job.id)
    with database.reading() as session:
        assert [event.seq for event in events_after(session, queued_job.id, after, limit=10)] == expected


def test_events_come_in_pages(database: Database, queued_job: JobRow) -> None:
    claim(database, queued_job.id)
    with database.reading() as session:
        assert [event.seq for event in events_after(session, queued_job.id, 0, limit=1)] == [1]


def test_artifacts_are_found_by_job_and_by_id(database: Database, queued_job: JobRow) -> None:
    token = claim(database, queued_job.id)
    files = [
        NewArtifact(name=name, kind="model", media_type="x/y", size_bytes=1, sha256=digest_of(name))
        for name in ("model.pt2", "model.onnx")
    ]
    with database.writing() as session:
        succeed_job(session, queued_job.id, token, artifacts=files)
    with database.reading() as session:
        first, second = artifacts_of(session, queued_job.id)
        assert [first.name, second.name] == ["model.onnx", "model.pt2"]
        assert find_artifact(session, first.id) is first
        assert find_artifact(session, "art_" + "0" * 26) is None


def test_the_inputs_of_a_compression_are_its_model_and_its_data_by_role(database: Database) -> None:
    with database.writing() as session:
        train, test = add_dataset(session), add_dataset(session)
        job = submit(session, inputs={"train": train.id, "test": test.id})
    with database.reading() as session:
        model, datasets = inputs_of(session, job)
    assert model is not None
    assert model.id == job.model_id
    assert {role: row.id for role, row in datasets.items()} == {"train": train.id, "test": test.id}


def test_the_input_of_an_inspection_is_its_file(database: Database) -> None:
    with database.writing() as session:
        of_model = submit(session, kind="inspect_model", model_id=add_model(session).id)
        of_dataset = submit(session, kind="inspect_dataset", model_id=None, dataset_id=add_dataset(session).id)
    with database.reading() as session:
        model, nothing = inputs_of(session, of_model)
        no_model, datasets = inputs_of(session, of_dataset)
    assert model is not None
    assert nothing == {}
    assert no_model is None
    assert list(datasets) == ["inspected"]
