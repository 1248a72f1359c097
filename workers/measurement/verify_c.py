"""Compile delivered C source and run it on images in a fresh process.

It is compiled as a library that a fresh Python process loads: in the runner's sandbox nothing that was written may be executed
as a program. A crash of the compiled code ends that process only.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.errors import VerificationFailed
from workers.fixed_point.compile_c import FLAGS, CSourceFailed, compile_c

_SECONDS = 3600
_AS_LIBRARY = (*FLAGS, "-shared", "-fPIC")


@dataclass(frozen=True)
class CRun:
    """What the compiled source gave."""

    logits: npt.NDArray[np.int32]  # [N, K]
    milliseconds: float  # median of one image
    command: str  # that compiled it


def run_c_source(path: Path, inputs: npt.NDArray[np.integer], *, scratch: Path, compiler: str) -> CRun:
    """Logits of integers [N, C, H, W] by the source in the archive at `path`; raises `VerificationFailed`."""
    folder = scratch / "c"
    folder.mkdir(exist_ok=True)
    try:
        program = compile_c(path, folder, compiler, flags=_AS_LIBRARY)
    except CSourceFailed as failed:
        raise VerificationFailed(f"{path.name}: {failed}", file=path.name) from failed
    inputs_path, logits_path = folder / "inputs.npy", folder / "logits.npz"
    np.save(inputs_path, inputs.reshape(len(inputs), -1).astype(program.input_type), allow_pickle=False)
    arguments = [str(program.path), program.name, str(program.output_size), str(inputs_path), str(logits_path)]
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "workers.measurement.verify_c_process", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the runner's standard output carries progress
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            env={**os.environ, "WINNOW_PARENT": str(os.getpid())},
        )
    except subprocess.TimeoutExpired as late:
        raise VerificationFailed(f"{path.name} ran for more than {_SECONDS} s.", file=path.name) from late
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise VerificationFailed(f"{path.name} crashed the process that ran it: {last[:500]}", file=path.name)
    with np.load(logits_path, allow_pickle=False) as answer:
        run = CRun(
            answer["logits"], float(np.median(answer["milliseconds"])), " ".join([Path(compiler).name, *_AS_LIBRARY])
        )
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()
    return run
