"""The C interface under the address and undefined-behaviour sanitizers: csrc/tests/test_convolve.cpp draws the convolutions."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "winograd"
# make setup puts cmake and ninja beside this Python.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
COMPILER = next(
    (name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and shutil.which(name)), None
)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ test with sanitizers, built from the sources as they are now."""
    if COMPILER is None:
        pytest.skip("there is no C++ compiler")
    build = tmp_path_factory.mktemp("sanitized")
    options = ["WINOGRAD_SANITIZE=ON", "WINOGRAD_TESTS=ON", "WINOGRAD_CUDA=OFF", "WINOGRAD_TORCH=OFF"]
    definitions = [f"-D{option}" for option in options]
    _run("cmake", "-S", str(SOURCE), "-B", str(build), "-G", "Ninja", *definitions)
    _run("cmake", "--build", str(build), "--target", "test_convolve")
    return build / "csrc" / "tests" / "test_convolve"


@pytest.mark.slow
def test_convolutions_are_right_and_touch_only_their_own_memory(sanitized: Path) -> None:
    # The leak checker traces, which containers forbid; the test itself checks that all workspace is given back.
    output = _run(str(sanitized), "200", ASAN_OPTIONS="detect_leaks=0", UBSAN_OPTIONS="print_stacktrace=1")
    counted = re.search(r"^(\d+) passed, 0 failed$", output, re.MULTILINE)
    assert counted is not None
    assert int(counted[1]) > 1000


def _run(*command: str, **environment: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": PATH, **environment})
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
