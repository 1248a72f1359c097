"""What the service costs: a job over HTTP against the same job run directly by `python -m workers.runner`.

Both do the same work on the same files, one after the other in alternation, so that a busy machine slows both. Over HTTP the clock
runs from the request until the client knows that the job has succeeded; uploads are not counted, they are not part of a job.
The work itself varies more than the service costs, so what the phases of the runner's own report took is also taken off: what is
left, on both sides, is starting a process, opening and storing files, and for the service all that it adds.

    python -m benchmarks.overhead --pairs 5 --images 1000
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from winnow import Client

from benchmarks.material import CIFAR_PREPROCESS, cifar_selection, data_folder
from benchmarks.tables import table
from demo.stack import running_stack
from jobs.folder import Compress, InputFile, Request
from jobs.recipe import PruneWeights
from jobs.request import Limits, Preprocess, Target
from jobs.storage import LocalStorage

STEP = PruneWeights(kind="prune_weights", max_drop_pp=0.5)


@dataclass(frozen=True)
class Run:
    """One job, in seconds."""

    wall: float
    phases: float  # of it, by the runner's report

    @classmethod
    def of(cls, wall: float, report: dict[str, Any]) -> "Run":
        return cls(wall, sum(report["provenance"]["wall_seconds"].values()))

    @property
    def rest(self) -> float:
        return self.wall - self.phases


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--images", type=int, default=1000)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="winnow-") as name:
        folder = Path(name)
        model = data_folder() / "models" / "cifar10_resnet20.onnx"
        images = folder / "selection.npz"
        x, y = cifar_selection(given.images)
        np.savez(images, x=x, y=y)
        http, direct = [], []
        with running_stack(folder / "stack") as url, Client(url) as client:
            request = _request(client, model, images)
            for pair in range(given.pairs):
                http.append(_over_http(client, request))
                direct.append(_directly(folder / f"direct-{pair}", model, images))
                print(f"pair {pair + 1}: HTTP {http[-1]}, directly {direct[-1]}", flush=True)
    _print_summary(http, direct)


def _request(client: Client, model: Path, images: Path) -> dict[str, object]:
    uploaded = client.wait_ready(client.upload_model(model))
    selection = client.wait_ready(client.upload_dataset(images))
    return {
        "model": uploaded.id,
        "data": {"selection": selection.id},
        "preprocess": CIFAR_PREPROCESS,
        "recipe": [STEP.model_dump(mode="json")],
    }


def _over_http(client: Client, request: dict[str, object]) -> Run:
    started = time.perf_counter()
    job = client.wait(client.submit(request).id)
    seconds = time.perf_counter() - started
    assert job.state == "succeeded", job
    return Run.of(seconds, client.report(job.id))


def _directly(folder: Path, model: Path, images: Path) -> Run:
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    files = {}
    for path in (model, images):
        blob = LocalStorage(folder / "storage").add_file(path)
        (inputs / path.name).write_bytes(path.read_bytes())
        files[path] = InputFile(path=f"inputs/{path.name}", filename=path.name, sha256=blob.sha256)
    job = Compress(
        task="compress",
        model=files[model],
        data={"selection": files[images]},
        preprocess=Preprocess.model_validate(CIFAR_PREPROCESS),
        recipe=(STEP,),
        limits=Limits(),
        seed=0,
        outputs=("onnx", "pt2"),
        target=Target(),
    )
    (folder / "request.json").write_text(Request(assignment=job).model_dump_json())
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "workers.runner", str(folder)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    return Run.of(seconds, json.loads((folder / "outputs" / "report.json").read_text()))


def _print_summary(http: Sequence[Run], direct: Sequence[Run]) -> None:
    pairs = list(zip(http, direct, strict=True))
    rows = [
        (what, f"{statistics.median(values):.2f}", f"{min(values):.2f} – {max(values):.2f}")
        for what, values in (
            ("over HTTP, s", [run.wall for run in http]),
            ("directly, s", [run.wall for run in direct]),
            ("ratio", [a.wall / b.wall for a, b in pairs]),
            ("outside the phases over HTTP, s", [run.rest for run in http]),
            ("outside the phases directly, s", [run.rest for run in direct]),
            ("difference of these, s", [a.rest - b.rest for a, b in pairs]),
            ("the same over the direct run's time", [(a.rest - b.rest) / b.wall for a, b in pairs]),
        )
    ]
    print(table(("", "median", "range"), rows))


if __name__ == "__main__":
    main()
