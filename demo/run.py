"""The demo: a CNN is trained, compressed over HTTP by a Winnow that runs on this machine, and used.

Everything that is kept ends up in demo-output/.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from rich.console import Console
from winnow import Client, Document, OnProgress, Upload, WinnowError
from winnow.cli.progress import show_job, transfer
from winnow.cli.tables import print_page, report_view, upload_summary

from demo.digits import SCALE, Files, make_files
from demo.stack import StackFailed, running_stack

OUTPUT = Path("demo-output")
MAX_DROP_PP = 1.0
SHADES = " .:-=+*#%@"

RECIPE = [
    {"kind": "prune_weights", "max_drop_pp": MAX_DROP_PP},
    {"kind": "finetune", "epochs": 2},
]


def main() -> int:
    console = Console()
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="winnow-") as folder:
            delivered = demonstrate(console, Path(folder))
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    except (WinnowError, StackFailed) as failure:
        _say(console, f"the demo failed: {failure}")
        return 1
    files = ", ".join(path.name for path in delivered)
    _say(console, f"\n{OUTPUT}/ has {files}. Everything is stopped; that took {time.monotonic() - started:.0f} s.")
    return 0


def demonstrate(console: Console, folder: Path) -> list[Path]:
    """The whole story. Returns what was downloaded."""
    _heading(console, "1  Train a small CNN on 997 handwritten digits, and export it with PyTorch's own exporters")
    files = make_files(OUTPUT / "input")
    _say(console, f"{files.onnx} finds {files.test_accuracy:.2f} % of the test images' classes")

    _heading(console, "2  Start Winnow: API, worker, embedded Redis, SQLite")
    with running_stack(folder) as url, Client(url) as winnow:
        _say(console, f"running at {url}")
        _heading(
            console, f"3  Compress it over HTTP: spend at most {MAX_DROP_PP} percentage point, then train 2 epochs"
        )
        delivered, report = _compress(console, winnow, files)
        _heading(console, "4  The report")
        print_page(console, report_view(report))
    _heading(console, "5  Use the downloaded file with plain ONNX Runtime; Winnow isn't running any more")
    _predict(console, OUTPUT / "model.onnx", files.test)
    return delivered


def _compress(console: Console, winnow: Client, files: Files) -> tuple[list[Path], Document]:
    model = _uploaded(console, winnow.upload_model, files.onnx)
    roles = {"train": files.train, "selection": files.selection, "test": files.test}
    data = {role: _uploaded(console, winnow.upload_dataset, path) for role, path in roles.items()}
    for upload in (model, *data.values()):
        _say(console, upload_summary(winnow.wait_ready(upload)))
    request = {
        "model": model.id,
        "data": {role: upload.id for role, upload in data.items()},
        "preprocess": {"scale": SCALE},
        "recipe": RECIPE,
        "limits": {"max_accuracy_drop_pp": MAX_DROP_PP},
    }
    job = show_job(console, winnow.watch(winnow.submit(request).id))
    if job.state != "succeeded":
        raise WinnowError(f"the job {job.state}: {job.error}")
    delivered = []
    for artifact in winnow.artifacts(job.id):
        with transfer(console, f"downloading {artifact.name}") as on_progress:
            delivered.append(winnow.download(artifact, OUTPUT / artifact.name, on_progress))
    return delivered, winnow.report(job.id)


def _uploaded(console: Console, send: Callable[[Path, OnProgress], Upload], path: Path) -> Upload:
    with transfer(console, f"uploading {path.name}") as on_progress:
        return send(path, on_progress)


def _predict(console: Console, model: Path, test: Path) -> None:
    """One image that the network never saw, and what the compressed file says it is."""
    with np.load(test) as images:
        x, y = images["x"][0], int(images["y"][0])
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: x[None].astype(np.float32) * np.float32(SCALE)})
    for row in x[0]:
        console.print(
            "".join(SHADES[min(int(pixel), 16) * 9 // 16] * 2 for pixel in row), markup=False, highlight=False
        )
    console.print(f"{model} says {int(np.argmax(scores))}; it is a {y}")


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]", highlight=False, soft_wrap=True)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
