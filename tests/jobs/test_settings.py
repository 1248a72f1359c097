"""Settings come from the environment and refuse what can't work."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.settings import Settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"WINNOW_{name.upper()}", raising=False)


def test_the_database_is_a_file_in_the_data_folder_unless_told_otherwise(tmp_path: Path) -> None:
    assert Settings(data_folder=tmp_path).database_url == f"sqlite:///{tmp_path}/winnow.sqlite"


def test_a_relative_data_folder_gives_absolute_addresses() -> None:
    settings = Settings(data_folder=Path("var"))
    assert settings.database_url == f"sqlite:///{Path.cwd()}/var/winnow.sqlite"
    assert settings.storage_folder == Path.cwd() / "var" / "storage"
    assert settings.jobs_folder == Path.cwd() / "var" / "jobs"


def test_a_given_database_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_DATABASE_URL", "postgresql+psycopg://winnow@db/winnow")
    assert Settings().database_url == "postgresql+psycopg://winnow@db/winnow"


def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WINNOW_DATABASE_URL", "")
    assert Settings(data_folder=tmp_path).database_url == f"sqlite:///{tmp_path}/winnow.sqlite"


def test_settings_can_not_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.queue = "other"  # type: ignore[misc]


def test_a_lease_shorter_than_three_heartbeats_is_refused() -> None:
    with pytest.raises(ValidationError, match="three heartbeats"):
        Settings(lease_seconds=5, heartbeat_seconds=2)


@pytest.mark.parametrize(
    ("name", "value"), [("max_attempts", "0"), ("lease_seconds", "-1"), ("max_upload_bytes", "0"), ("sandbox", "maybe")]
)
def test_impossible_values_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"WINNOW_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name):
        Settings()
