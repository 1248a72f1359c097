"""The fresh process that calls a compiled network: `python -m workers.measurement.verify_c_process LIBRARY NAME OUTPUTS IN OUT`."""

import ctypes
import os
import sys
import time
from pathlib import Path

import numpy as np

from workers.measurement.verify_process import die_with


def main(library: Path, name: str, outputs: int, inputs_path: Path, logits_path: Path) -> None:
    """Run every image, and store the logits and how long each took."""
    die_with(int(os.environ["WINNOW_PARENT"]))
    function = getattr(ctypes.CDLL(str(library)), f"{name}_run")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    inputs = np.load(inputs_path, allow_pickle=False)
    logits = np.zeros((len(inputs), outputs), np.int32)
    milliseconds = np.zeros(len(inputs))
    for number, image in enumerate(inputs):
        given = np.ascontiguousarray(image)
        started = time.perf_counter()
        function(given.ctypes.data, logits[number].ctypes.data)
        milliseconds[number] = 1000 * (time.perf_counter() - started)
    np.savez(logits_path, logits=logits, milliseconds=milliseconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
