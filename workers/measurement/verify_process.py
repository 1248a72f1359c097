"""The fresh process in which a delivered file proves itself: `python -m workers.measurement.verify_process ARGS.json OUT.json`.

It runs the file as a user would, with plain ONNX Runtime or plain torch, and holds no code that knows of Winnow's networks. It
stores the outputs for all given inputs, and times the file by turns with the original one.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.measurement.latency import alternate

Array = npt.NDArray[np.generic]
Model = Callable[[Array], list[Array]]


def main(arguments_path: Path, answer_path: Path) -> None:
    """Read the arguments, run, and write the answer; what the file does wrong is an answer too."""
    arguments = json.loads(arguments_path.read_text())
    die_with(int(arguments["parent"]))
    try:
        answer = _verify(arguments)
    except MemoryError:
        raise
    except Exception as error:  # whatever a runtime throws at a file it can't run
        answer = {"error": _told(error)}
    answer_path.write_text(json.dumps(answer))


def _verify(arguments: dict[str, Any]) -> dict[str, Any]:
    load = {"onnx": _load_onnx, "pt2": _load_pt2}[arguments["format"]]
    inputs = np.load(arguments["inputs"], mmap_mode="r", allow_pickle=False)
    delivered = load(Path(arguments["delivered"]), arguments["threads"])
    batches = [delivered(batch)[0] for batch in _batches(inputs, arguments["batch_size"])]
    outputs = np.concatenate(batches)[: len(inputs)]
    np.save(arguments["outputs"], outputs, allow_pickle=False)
    answer: dict[str, Any] = {"delivered_ms": [], "original_ms": [], "original_error": None}
    if arguments["original"] is None:
        return answer
    example = next(_batches(inputs, arguments["latency_batch_size"]))
    try:
        original = load(Path(arguments["original"]), arguments["threads"])
        original(example)
    except MemoryError:
        raise
    except Exception as error:  # the delivered file isn't to blame for this
        return {**answer, "original_error": _told(error)}
    original_ms, delivered_ms = alternate(
        lambda: original(example), lambda: delivered(example), seconds=arguments["latency_seconds"]
    )
    return {**answer, "delivered_ms": delivered_ms, "original_ms": original_ms}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _batches(inputs: Array, size: int) -> "Any":  # an iterator of arrays, each of exactly `size` images
    for start in range(0, len(inputs), size):
        batch = np.ascontiguousarray(inputs[start : start + size])
        missing = size - len(batch)
        # Filled up by repeating, because a file may take only one batch size.
        yield np.concatenate([batch, np.resize(batch, (missing, *batch.shape[1:]))]) if missing else batch


def _load_onnx(path: Path, threads: int) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})


def _load_pt2(path: Path, threads: int) -> Model:
    import torch

    torch.set_num_threads(threads)
    network = torch.export.load(path).module()

    def run(batch: Array) -> list[Array]:
        with torch.inference_mode():
            outputs = network(torch.from_numpy(batch))
        return [output.numpy() for output in (outputs if isinstance(outputs, tuple | list) else [outputs])]

    return run


def die_with(parent: int) -> None:
    """End when the runner does, however it ends."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
