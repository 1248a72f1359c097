"""The implementations of the operators that this machine has; every test that takes `implementation` runs on each."""

from collections.abc import Iterator

import pytest

from winograd import library


@pytest.fixture(scope="module", params=[library.REFERENCE, *library.variants()])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the implementation that runs now: plain torch, and the compiled ones that this processor can run."""
    with library.force(request.param):
        yield request.param


@pytest.fixture(scope="module", params=library.variants())
def compiled(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the compiled implementation that runs now; each that this processor can run."""
    with library.force(request.param):
        yield request.param
