"""Identifiers: unmistakable, unguessable, in order of creation."""

import time

import pytest

from jobs.identifiers import Prefix, is_id, new_id


@pytest.mark.parametrize("prefix", ["mdl", "dst", "job", "art"])
def test_a_new_id_is_an_id_of_its_kind_only(prefix: Prefix) -> None:
    made = new_id(prefix)
    assert [kind for kind in ("mdl", "dst", "job", "art") if is_id(made, kind)] == [prefix]
    assert len(made) == 30


def test_later_ids_sort_after_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [1, 1_000_000, 1_700_000_000_000_000_000, 1_700_000_000_001_000_000, 2_000_000_000_000_000_000]
    made = []
    for moment in moments:
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment * 1_000)
        made.append(new_id("job"))
    assert made == sorted(made)


def test_ids_made_at_once_differ() -> None:
    assert len({new_id("art") for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("job_", id="prefix only"),
        pytest.param("job_" + "0" * 25, id="too short"),
        pytest.param("job_" + "0" * 27, id="too long"),
        pytest.param("job_" + "0" * 26 + "\n", id="newline after"),
        pytest.param("job_" + "A" * 26, id="upper case"),
        pytest.param("job_" + "0" * 25 + "\0", id="NUL"),
        pytest.param("job_" + "٣" * 26, id="other digits"),
        pytest.param("job_../../../../../etc/passwd", id="path"),
        pytest.param("mdl_" + "0" * 26, id="other kind"),
    ],
)
def test_nothing_else_is_an_id(text: str) -> None:
    assert not is_id(text, "job")
