"""Compile and run what `write_c` wrote, to prove it."""

import math
import os
import re
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror")
_COMPILE_SECONDS = 900
_RUN_SECONDS = 3600
_MESSAGE_CHARACTERS = 2000


class CSourceFailed(Exception):
    """The C source doesn't compile or doesn't run."""


def find_compiler() -> str | None:
    """The path of a C compiler, or nothing if there is none on the PATH."""
    return next((found for found in map(shutil.which, COMPILERS) if found is not None), None)


def run_c(
    zip_path: Path, inputs: npt.NDArray[np.integer], scratch: Path, compiler: str, *, flags: tuple[str, ...] = FLAGS
) -> npt.NDArray[np.int32]:
    """Logits [N, K] of integers [N, C, H, W], by the compiled source.

    Raises:
        CSourceFailed: if it can't be compiled or run.
        ValueError: if the integers aren't such as the network takes.
    """
    program = compile_c(zip_path, scratch, compiler, flags=flags)
    return program.run(inputs, scratch)


class CProgram:
    """A compiled network."""

    def __init__(self, path: Path, header: str) -> None:
        self.path = path
        self.name = _in_header(r"void (\w+)_run\(", header)  # before every public name
        self.input_type = np.dtype(_in_header(r"typedef (u?int\d+)_t \w+_input_t;", header))
        self.input_size = int(_in_header(r"#define \w+_INPUT_SIZE (\d+)", header))
        self.output_size = int(_in_header(r"#define \w+_OUTPUT_SIZE (\d+)", header))

    def run(self, inputs: npt.NDArray[np.integer], scratch: Path) -> npt.NDArray[np.int32]:
        """Logits [N, K] of integers [N, C, H, W]."""
        flat = inputs.reshape(len(inputs), math.prod(inputs.shape[1:]))
        if flat.shape[1] != self.input_size:
            raise ValueError(f"an input has {self.input_size} integers, and these have {flat.shape[1]}")
        limits = np.iinfo(self.input_type)
        if flat.size and (flat.min() < limits.min or flat.max() > limits.max):
            raise ValueError(f"integers from {flat.min()} to {flat.max()} are more than {self.input_type} holds")
        inputs_path = scratch / "inputs.bin"
        flat.astype(self.input_type).tofile(inputs_path)
        found = self.run_file(inputs_path, scratch)
        if len(found) != len(inputs):
            raise CSourceFailed(f"the program wrote logits of {len(found)} inputs instead of {len(inputs)}")
        return found

    def run_file(self, inputs_path: Path, scratch: Path) -> npt.NDArray[np.int32]:
        """Logits [N, K] of a file of inputs, one after the other.

        Raises:
            CSourceFailed: if the program fails, or if the file doesn't hold whole inputs.
        """
        logits_path = scratch / "logits.bin"
        with logits_path.open("wb") as logits:
            _run([str(self.path), str(inputs_path)], scratch, _RUN_SECONDS, stdout=logits.fileno())
        found = np.fromfile(logits_path, np.int32)
        if found.size % self.output_size:
            raise CSourceFailed(f"the program wrote {found.size} logits, which aren't {self.output_size} of each input")
        return found.reshape(-1, self.output_size)

    def test_example(self, scratch: Path) -> str:
        """What the self test says.

        Raises:
            CSourceFailed: if it fails.
        """
        return _run([str(self.path)], scratch, _RUN_SECONDS)


def compile_c(zip_path: Path, scratch: Path, compiler: str, *, flags: tuple[str, ...] = FLAGS) -> CProgram:
    """Unpack a source into `scratch` and compile it.

    Raises:
        CSourceFailed: if the archive isn't such a source, or if the compiler refuses it.
    """
    with zipfile.ZipFile(zip_path) as archive:
        names = archive.namelist()
        sources = [name for name in names if re.fullmatch(r"\w+\.[ch]", name)]
        headers = [name for name in sources if name.endswith(".h") and name != "expected.h"]
        if len(headers) != 1:
            raise CSourceFailed(f"{zip_path.name} holds {', '.join(names)} instead of one network's source")
        for name in sources:
            (scratch / name).write_bytes(archive.read(name))
    program = scratch / "program"
    _run([compiler, *flags, "-o", str(program), *(name for name in sources if name.endswith(".c"))],
         scratch, _COMPILE_SECONDS)  # fmt: skip
    return CProgram(program, (scratch / headers[0]).read_text())


def _run(command: list[str], folder: Path, timeout_seconds: float, *, stdout: int = subprocess.PIPE) -> str:
    """Run a command to its end, or end it and all that it started."""
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}
    what = Path(command[0]).name
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise CSourceFailed(f"{what} took more than {timeout_seconds:g} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        said = ((output or "") + errors).strip()[:_MESSAGE_CHARACTERS]
        raise CSourceFailed(f"{what} ended with {process.returncode}: {said}")
    return output or ""


def _in_header(pattern: str, header: str) -> str:
    found = re.search(pattern, header)
    if found is None:
        raise CSourceFailed(f"the header has nothing like {pattern}")
    return found[1]
