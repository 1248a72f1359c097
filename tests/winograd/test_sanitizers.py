"""The C interface under the address and undefined-behaviour sanitizers.

csrc/tests/test_convolve.cpp draws convolutions; csrc/tests/test_networks.cpp takes networks that are drawn here.
"""

import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.winograd import float_networks, float_reference, integer_networks
from winograd import integer_reference

NETWORKS = 40
FLOAT_NETWORKS = 120
SOURCE = Path(__file__).parents[2] / "winograd"
# make setup puts cmake and ninja beside this Python.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
COMPILER = next(
    (name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and shutil.which(name)), None
)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the C++ tests with sanitizers, built from the sources as they are now."""
    if COMPILER is None:
        pytest.skip("there is no C++ compiler")
    build = tmp_path_factory.mktemp("sanitized")
    options = ["WINOGRAD_SANITIZE=ON", "WINOGRAD_TESTS=ON", "WINOGRAD_CUDA=OFF", "WINOGRAD_TORCH=OFF"]
    definitions = [f"-D{option}" for option in options]
    _run("cmake", "-S", str(SOURCE), "-B", str(build), "-G", "Ninja", *definitions)
    _run("cmake", "--build", str(build), "--target", "test_convolve", "test_networks")
    return build / "csrc" / "tests"


@pytest.mark.slow
def test_convolutions_are_right_and_touch_only_their_own_memory(sanitized: Path) -> None:
    assert _checks_passed(str(sanitized / "test_convolve"), "200") > 1000


@pytest.mark.slow
def test_integer_networks_are_right_and_touch_only_their_own_memory(sanitized: Path, tmp_path: Path) -> None:
    with (tmp_path / "cases").open("wb") as file:
        for seed in range(NETWORKS):
            program = integer_networks.random_network(seed, steps=3, size=7)
            images = integer_networks.images_for(program, 2, seed)
            file.write(_case(program.to_tensor(), images, integer_reference.run(program, images)))
    assert _checks_passed(str(sanitized / "test_networks"), "integers", str(tmp_path / "cases"), "30") > 10 * NETWORKS


@pytest.mark.slow
def test_float_networks_are_right_and_touch_only_their_own_memory(sanitized: Path, tmp_path: Path) -> None:
    with (tmp_path / "cases").open("wb") as file:
        for seed in range(FLOAT_NETWORKS):
            program = float_networks.random_network(seed, steps=5)
            images = torch.randn(3, *program.values[0], generator=torch.Generator().manual_seed(seed))
            outputs = float_reference.run(program, images.double()).float()
            file.write(_case(program.to_tensor(), images, outputs))
    assert (
        _checks_passed(str(sanitized / "test_networks"), "floats", str(tmp_path / "cases"), "20") > 10 * FLOAT_NETWORKS
    )


def _case(program: Tensor, images: Tensor, outputs: Tensor) -> bytes:
    """As test_networks.cpp reads it."""
    sizes = struct.pack("<4q", len(program), len(images), images[0].numel(), outputs.shape[1])
    return sizes + program.numpy().tobytes() + images.numpy().tobytes() + outputs.numpy().tobytes()


def _checks_passed(*command: str) -> int:
    # The leak checker traces, which containers forbid; the test of convolutions checks that all workspace is given back.
    output = _run(*command, ASAN_OPTIONS="detect_leaks=0", UBSAN_OPTIONS="print_stacktrace=1")
    counted = re.search(r"^(\d+) passed, 0 failed$", output, re.MULTILINE)
    assert counted is not None
    return int(counted[1])


def _run(*command: str, **environment: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": PATH, **environment})
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
