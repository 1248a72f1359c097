"""What a search for a goal reaches on a real network, candidate by candidate.

    python -m benchmarks.goals bytes                              at most 1 pp, fewest bytes, in 10 minutes
    python -m benchmarks.goals bytes --output pt2_integers        the same for a file that torch opens with winograd
    python -m benchmarks.goals latency                            lowest latency in ONNX Runtime on one thread
    python -m benchmarks.goals latency --runtime torch            the same in our own runtime
    python -m benchmarks.goals operations

With --svg FILE also the figure of accuracy against what is minimised, with all candidates and their front.

ResNet-20 on CIFAR-10 as a user would upload it. Needs the folder of models and images that WINNOW_DATA names. The network knows its
training images by heart, so the search decides on the first 2,000 test images, a third of which confirm its choice, and the verdict
is on the other 3,000.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.material import CIFAR_PREPROCESS, cifar_learning, cifar_test, data_folder
from benchmarks.tables import table
from jobs.folder import Progress
from jobs.preflight import OPENED_FORMATS
from jobs.report import Candidate, Report, SearchReport
from workers.runner import run_folder

MODEL = "cifar10_resnet20.onnx"


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _lay_out(folder, options)
        outcome = run_folder(folder, report_progress=_tell)
        if outcome.error is not None:
            sys.exit(outcome.error.message)
        report = Report.model_validate_json((folder / "outputs" / "report.json").read_bytes())
        if options.svg is not None:
            options.svg.write_bytes((folder / "outputs" / "front.svg").read_bytes())
    found = report.search
    assert found is not None
    rows = [_row(each, found) for each in (found.original, *found.candidates)]
    head = (
        "",
        "recipe",
        "predicted, pp",
        "drop, pp",
        "with confidence",
        "confirming, pp",
        "with confidence",
        "bytes",
        "ms",
        "G bit operations",
        "seconds",
        "",
    )
    print(table(head, rows))
    images = f"{found.selection_images} images to compare on, {found.confirming_images} to confirm"
    print(f"\n{images}; {found.ended} after {found.seconds:.0f} s. {report.verdict.sentence}")


def _row(candidate: Candidate, found: SearchReport) -> list[object]:
    numbers = {"front": found.front, "delivered": (found.delivered,), "not confirmed": found.unconfirmed}
    marks = [mark for mark, marked in numbers.items() if candidate.number in marked]
    predicted, latency = candidate.predicted_drop_pp, candidate.latency_ms
    confirming, confirming_bound = candidate.confirming_drop_pp, candidate.confirming_drop_bound_pp
    return [
        candidate.number,
        ", ".join(map(_words, candidate.recipe)) or "as uploaded",
        "" if predicted is None else f"{predicted:.2f}",
        f"{candidate.drop_pp:.2f}",
        f"{candidate.drop_bound_pp:.2f}",
        "" if confirming is None else f"{confirming:.2f}",
        "" if confirming_bound is None else f"{confirming_bound:.2f}",
        f"{candidate.bytes:,}",
        "" if latency is None else f"{latency:.3f}",
        f"{candidate.operations / 1e9:.3f}",
        f"{candidate.seconds:.0f}",
        ", ".join(marks),
    ]


def _words(step: dict[str, Any]) -> str:
    match step:
        case {"kind": "quantize_fixed_point", "layer_bits": bits, "training": training}:
            counts = {width: list(bits.values()).count(width) for width in sorted(set(bits.values()), reverse=True)}
            mixed = " + ".join(f"{count} layers at {width}" for width, count in counts.items())
            return (mixed or "8 bits") + (", retrained" if training else "")
        case {"kind": "prune_winograd", "tile": tile, "max_drop_pp": drop, "count": count, "training": training}:
            return (
                f"Winograd, tile {tile}, "
                + ("whole" if count == 0 else f"pruned for {drop} pp")
                + (", trained" if training else "")
            )
        case _:
            return str(step["kind"])


def _lay_out(folder: Path, options: argparse.Namespace) -> None:
    """A job folder as the supervisor lays it out."""
    inputs = folder / "inputs"
    inputs.mkdir()
    (inputs / MODEL).write_bytes((data_folder() / "models" / MODEL).read_bytes())
    x, y = cifar_test()
    arrays = {
        "train": cifar_learning(options.learning_images),
        "selection": (x[: options.images], y[: options.images]),
        "test": (x[options.images :], y[options.images :]),
    }
    goal = {
        "minimise": options.minimise,
        "max_accuracy_drop_pp": options.drop,
        "confidence": options.confidence,
        "deadline_seconds": options.seconds,
    }
    assignment = {
        "task": "compress",
        "model": _file(inputs / MODEL),
        "data": {role: _file(_save(inputs / f"{role}.npz", *images)) for role, images in arrays.items()},
        "preprocess": CIFAR_PREPROCESS,
        "recipe": [],
        "goal": goal,
        "limits": {},
        "seed": options.seed,
        "outputs": [options.output],
        "target": {"runtime": options.runtime},
    }
    (folder / "request.json").write_text(json.dumps({"assignment": assignment}))


def _save(path: Path, x: NDArray[np.uint8], y: NDArray[np.int64]) -> Path:
    np.savez(path, x=x, y=y)
    return path


def _file(path: Path) -> dict[str, str]:
    return {
        "path": f"inputs/{path.name}",
        "filename": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _tell(progress: Progress) -> None:
    if progress.message and sys.stderr.isatty():
        print(f"\r{progress.message[:120]:120}", end="", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minimise", choices=("bytes", "latency", "operations"))
    parser.add_argument("--runtime", choices=("onnxruntime", "torch"), help="default: what opens the output")
    parser.add_argument("--output", choices=("onnx", "pt2", "pt2_integers"), help="default: what the runtime opens")
    parser.add_argument("--drop", type=float, default=1.0)
    parser.add_argument("--confidence", type=float, default=0.8)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--images", type=int, default=2000, help="test images that the search decides on")
    parser.add_argument("--learning-images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--svg", type=Path, help="file for the figure")
    options = parser.parse_args()
    options.runtime = options.runtime or ("onnxruntime" if options.output in (None, "onnx") else "torch")
    options.output = options.output or OPENED_FORMATS[options.runtime]
    return options


if __name__ == "__main__":
    main()
