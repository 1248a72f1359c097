"""The fresh process in which a delivered file proves itself: `python -m workers.measurement.verify_process ARGS.json OUT.json`.

It runs the file as a user would, with plain ONNX Runtime, plain torch, or winograd.load if it holds operators of that library,
and holds no code that knows of Winnow's networks. It stores the outputs for all given inputs, counts what Winograd convolutions
execute, and times the file by turns with the original one, in its own runtime and in others.
"""

import ctypes
import json
import os
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.measurement.latency import REST_SECONDS, alternate

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
    inputs = np.load(arguments["inputs"], mmap_mode="r", allow_pickle=False)
    delivered = _load(arguments["format"], arguments["delivered"], arguments["threads"])
    batches = _batches(inputs, arguments["batch_size"])
    first, executed = _count_operations(delivered, next(batches))
    rest = [delivered(batch)[0] for batch in batches]
    outputs = np.concatenate([first, *rest])[: len(inputs)]
    np.save(arguments["outputs"], outputs, allow_pickle=False)
    example = next(_batches(inputs, arguments["latency_batch_size"]))
    return {
        "runtime": _runtime(arguments["format"], arguments["delivered"]),
        "executed": executed,
        **_time_by_turns(arguments, delivered, example),
        "comparisons": [_compare(arguments, other, example) for other in arguments["comparisons"]],
    }


def _count_operations(model: Model, batch: Array) -> tuple[Array, dict[str, int] | None]:
    """The first output, and what its Winograd convolutions executed: GEMMs of the run, multiplications of one image."""
    if "winograd" not in sys.modules:
        return model(batch)[0], None
    import winograd

    with winograd.count_operations() as counted:
        output = model(batch)[0]
    return output, {"gemms": counted.gemms, "multiplications": counted.multiplications // len(batch)}


def _time_by_turns(arguments: dict[str, Any], delivered: Model, example: Array) -> dict[str, Any]:
    """Milliseconds of the delivered file and of the original one of the same format."""
    answer: dict[str, Any] = {"delivered_ms": [], "original_ms": [], "original_error": None}
    if arguments["original"] is None:
        return answer
    try:
        original = _load(arguments["format"], arguments["original"], arguments["threads"])
        original(example)
    except MemoryError:
        raise
    except Exception as error:  # the delivered file isn't to blame for this
        return {**answer, "original_error": _told(error)}
    original_ms, delivered_ms = alternate(
        lambda: original(example), lambda: delivered(example), seconds=arguments["latency_seconds"]
    )
    return {**answer, "delivered_ms": delivered_ms, "original_ms": original_ms}


def _compare(arguments: dict[str, Any], other: dict[str, Any], example: Array) -> dict[str, Any]:
    """Milliseconds of the delivered file and of the original one in whichever runtime, both on so many threads."""
    try:
        delivered = _load(arguments["format"], arguments["delivered"], other["threads"])
        original = _load(other["format"], other["original"], other["threads"])
        original_ms, delivered_ms = alternate(
            lambda: original(example),
            lambda: delivered(example),
            seconds=arguments["latency_seconds"],
            rest_seconds=REST_SECONDS,
        )
    except MemoryError:
        raise
    except Exception as error:  # the delivered file has run already, so it is the original that doesn't
        return {"error": _told(error)}
    return {"delivered_ms": delivered_ms, "original_ms": original_ms}


def _load(file_format: str, path: str, threads: int) -> Model:
    load = {"onnx": _load_onnx, "pt2": _load_pt2}[file_format]
    return load(Path(path), threads)


def _runtime(file_format: str, path: str) -> str:
    """What runs the file, in the report's words."""
    if file_format == "onnx":
        return "onnxruntime"
    return "torch with winograd.load" if _has_winograd(Path(path)) else "torch"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _batches(inputs: Array, size: int) -> Iterator[Array]:
    """All images in order, in arrays of exactly `size`."""
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

    torch.set_num_threads(threads)  # of all networks in this process
    network = _torch_network(path)

    def run(batch: Array) -> list[Array]:
        with torch.inference_mode():
            outputs = network(torch.from_numpy(batch))
        return [output.numpy() for output in (outputs if isinstance(outputs, tuple | list) else [outputs])]

    return run


@cache
def _torch_network(path: Path) -> Callable[..., Any]:  # what networks take and return
    """The network in the file; opening it takes seconds, so it is done once."""
    import torch

    if _has_winograd(path):
        import winograd

        return winograd.load(path)
    return torch.export.load(path).module()


def _has_winograd(path: Path) -> bool:
    """Whether the file holds operators that torch alone doesn't have."""
    with zipfile.ZipFile(path) as file:
        models = [name for name in file.namelist() if name.endswith("/models/model.json")]
        return any(b'"torch.ops.winograd.' in file.read(name) for name in models)


def die_with(parent: int) -> None:
    """End when the runner does, however it ends."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
