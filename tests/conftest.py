"""What all tests share."""

import os
from pathlib import Path

import pytest

DATA_FOLDER = Path(os.environ.get("WINNOW_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real models and images (WINNOW_DATA)."""
    return DATA_FOLDER


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of real models are skipped, visibly, where the collection is missing."""
    if (DATA_FOLDER / "MANIFEST.md").is_file():
        return
    reason = f"no model and image collection at {DATA_FOLDER}; set WINNOW_DATA to its folder"
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=reason))
