"""What databases can't hold is replaced before it reaches them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from jobs.database import Database
from jobs.tables import DatasetRow, JobRow, ModelRow, storable
from tests.jobs.rows import Clock, add_model, digest_of, load, submit

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
    max_leaves=20,
)


@given(anything)
def test_storable_documents_are_proper_json_and_stay_as_they_are(document: object) -> None:
    once = storable(document)
    assert storable(once) == once
    assert "\0" not in str(once)
    str(once).encode()  # raises on lone surrogates


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        pytest.param("a\0b", "a\ufffdb", id="NUL"),
        pytest.param("\ud800", "\ufffd", id="lone surrogate"),
        pytest.param("\U0001f600é", "\U0001f600é", id="other characters stay"),
        pytest.param(math.nan, None, id="not a number"),
        pytest.param(-math.inf, None, id="infinity"),
        pytest.param({"\0": [1.5, (math.inf, "\udfff")]}, {"\ufffd": [1.5, [None, "\ufffd"]]}, id="deep inside"),
    ],
)
def test_unstorable_values_are_replaced(given: object, kept: object) -> None:
    assert storable(given) == kept


def test_documents_come_back_as_they_were_stored(database: Database) -> None:
    document = {
        "text": "é \U0001f600",
        "nested": [{"a": None, "b": [True, 1, 2.5, 2**60]}],
        "nul": "\0",
        "nan": math.nan,
    }
    with database.writing() as session:
        job = submit(session, request=document)
    assert load(database, job.id).request == document | {"nul": "\ufffd", "nan": None}


def test_names_of_users_can_be_kept_whatever_they_hold(database: Database) -> None:
    with database.writing() as session:
        model = add_model(session)
        model.filename = "a\0b\ud800.onnx"
    with database.reading() as session:
        assert session.execute(select(ModelRow.filename)).scalar_one() == "a\ufffdb\ufffd.onnx"


def test_files_may_be_larger_than_32_bits_can_count(database: Database) -> None:
    with database.writing() as session:
        row = DatasetRow(
            id="dst_" + "0" * 26, state="inspecting", filename="large.npz", size_bytes=2**40, sha256=digest_of(""),
            created_at=Clock()(),
        )  # fmt: skip
        session.add(row)
    with database.reading() as session:
        assert session.execute(select(DatasetRow.size_bytes)).scalar_one() == 2**40


def test_moments_come_back_aware_and_equal(database: Database, clock: Clock) -> None:
    clock.advance(0.123456)
    with database.writing() as session:
        job = submit(session)
    found = load(database, job.id).created_at
    assert found == clock()
    assert found.tzinfo is not None


def test_an_absent_document_is_null(database: Database) -> None:
    with database.writing() as session:
        submit(session)
    with database.reading() as session:
        assert session.execute(select(JobRow.id).where(JobRow.error.is_(None))).scalar_one()
