"""The whole stack for real: API, worker, embedded Redis and SQLite, as `winnow-server up` runs them."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from winnow import Client

from demo.stack import running_stack

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small trained CNN and its images, made as the README says."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, "-m", "demo.digits", str(folder)], cwd=PROJECT, check=True)
    return folder


@pytest.fixture(scope="session")
def stack() -> Iterator[str]:
    """The address of a whole running Winnow."""
    with tempfile.TemporaryDirectory(prefix="winnow-", dir="/tmp") as folder, running_stack(Path(folder)) as url:
        yield url


@pytest.fixture
def winnow(stack: str) -> Iterator[Client]:
    with Client(stack) as client:
        yield client
