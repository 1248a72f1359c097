"""From the uploaded model to the file that a user runs: what the report says is what plain runtimes find."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from winnow import Client, Document, UploadRejected

PREDICT = Path(__file__).with_name("predict.py")
DIGITS_PREPROCESS = {"scale": 0.0625}
CIFAR_PREPROCESS = {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Finished:
    """A job that succeeded, and what it delivered."""

    job_id: str
    report: Document
    files: dict[str, Path]


def ready(winnow: Client, kind: str, path: Path) -> str:
    send = winnow.upload_model if kind == "model" else winnow.upload_dataset
    return winnow.wait_ready(send(path)).id


def compress(winnow: Client, model: Path, data: dict[str, Path], folder: Path, **request: object) -> Finished:
    document = {
        "model": ready(winnow, "model", model),
        "data": {role: ready(winnow, "dataset", path) for role, path in data.items()},
        **request,
    }
    return finished(winnow, winnow.submit(document).id, folder)


def finished(winnow: Client, job_id: str, folder: Path) -> Finished:
    job = winnow.wait(job_id)
    assert job.state == "succeeded", job.error
    files = {artifact.name: winnow.download(artifact, folder / artifact.name) for artifact in winnow.artifacts(job_id)}
    return Finished(job_id, winnow.report(job_id), files)


def moments_of(winnow: Client, job_id: str, *fields: str) -> list[np.datetime64]:
    document = winnow.job(job_id).document
    return [np.datetime64(document[field].rstrip("Z")) for field in fields]


def predicted(model: Path, images: Path, preprocess: Document) -> dict[str, int]:
    """What a user's own process finds with the file."""
    arguments = [preprocess["scale"], preprocess.get("mean", [0.0]), preprocess.get("std", [1.0])]
    command = [sys.executable, "-I", str(PREDICT), str(model), str(images), *map(json.dumps, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, int] = json.loads(ended.stdout)
    return found


def check_files(done: Finished, test: Path, preprocess: Document) -> None:
    """Every delivered file is exactly what the report says of it."""
    assert {file["name"] for file in done.report["files"]} == done.files.keys() - {"report.json"}
    for file in done.report["files"]:
        path = done.files[file["name"]]
        assert path.stat().st_size == file["size"]["bytes"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]
        found = predicted(path, test, preprocess)
        assert found == {"images": file["accuracy"]["images"], "correct": file["accuracy"]["correct"]}, file["name"]


@pytest.fixture(scope="module")
def pruned(digits: Path, stack: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The demo's model as PyTorch exported it, pruned."""
    data = {"selection": digits / "selection.npz", "test": digits / "test.npz"}
    recipe = [{"kind": "prune_weights", "max_drop_pp": 1.0}]
    with Client(stack) as winnow:
        return compress(
            winnow, digits / "digits.pt2", data, tmp_path_factory.mktemp("pruned"),
            preprocess=DIGITS_PREPROCESS, recipe=recipe,
        )  # fmt: skip


def test_delivered_files_are_what_the_report_says(pruned: Finished, digits: Path) -> None:
    assert pruned.files.keys() == {"model.onnx", "model.pt2", "report.json"}
    check_files(pruned, digits / "test.npz", DIGITS_PREPROCESS)


def test_the_uploaded_models_accuracy_is_what_plain_torch_finds(pruned: Finished, digits: Path) -> None:
    found = predicted(digits / "digits.pt2", digits / "test.npz", DIGITS_PREPROCESS)
    assert pruned.report["accuracy_before"]["correct"] == found["correct"]


def test_pruning_pays_in_bytes_on_disk(pruned: Finished, digits: Path) -> None:
    assert pruned.report["after"]["nonzeros"] < 0.5 * pruned.report["before"]["nonzeros"]
    smallest = min(path.stat().st_size for name, path in pruned.files.items() if name != "report.json")
    assert smallest < 0.5 * (digits / "digits.pt2").stat().st_size


def test_pruning_spends_no_more_than_it_may_on_the_images_that_it_decides_with(pruned: Finished) -> None:
    (step,) = pruned.report["steps"]
    assert step["details"]["accuracy_before"] - step["details"]["accuracy_after"] <= 1.0


def test_the_downloaded_report_is_the_served_one(pruned: Finished) -> None:
    assert json.loads(pruned.files["report.json"].read_text()) == pruned.report


def test_the_same_request_gives_the_same_bytes(pruned: Finished, winnow: Client, tmp_path: Path) -> None:
    again = finished(winnow, winnow.retry(pruned.job_id).id, tmp_path)
    for name in ("model.onnx", "model.pt2"):
        assert again.files[name].read_bytes() == pruned.files[name].read_bytes(), name


class Opener:
    """Whoever unpickles this makes a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._marker}",)


def test_a_model_that_is_a_pickle_is_refused_unopened_and_the_worker_serves_on(
    winnow: Client, digits: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "opened"
    hostile = tmp_path / "model.pt2"
    hostile.write_bytes(pickle.dumps(Opener(marker)))
    with pytest.raises(UploadRejected) as refused:
        winnow.wait_ready(winnow.upload_model(hostile))
    assert refused.value.error["code"] == "model_rejected" and refused.value.error["hint"]
    assert ready(winnow, "model", digits / "digits.onnx").startswith("mdl_")
    assert not marker.exists()


def test_a_job_is_cancelled_within_three_seconds(winnow: Client, digits: Path) -> None:
    request = {
        "model": ready(winnow, "model", digits / "digits.onnx"),
        "data": {"train": ready(winnow, "dataset", digits / "train.npz")},
        "preprocess": DIGITS_PREPROCESS,
        "recipe": [{"kind": "finetune", "epochs": 1000}],
    }
    job = winnow.submit(request)
    next(state for state in winnow.watch(job.id) if state.phase == "finetune")
    winnow.cancel(job.id)
    assert winnow.wait(job.id).state == "cancelled"
    asked_at, ended_at = moments_of(winnow, job.id, "cancel_requested_at", "finished_at")
    assert ended_at - asked_at < np.timedelta64(3, "s")


def test_a_search_is_finished_early_with_the_best_so_far(winnow: Client, digits: Path, tmp_path: Path) -> None:
    request = {
        "model": ready(winnow, "model", digits / "digits.onnx"),
        "data": {role: ready(winnow, "dataset", digits / f"{role}.npz") for role in ("train", "selection", "test")},
        "preprocess": DIGITS_PREPROCESS,
        "goal": {"max_accuracy_drop_pp": 1.0, "minimise": "bytes", "deadline_seconds": 3000},
        "outputs": ["onnx"],
    }
    job = winnow.submit(request)
    next(state for state in winnow.watch(job.id) if "best so far" in (state.message or ""))
    winnow.finish(job.id)
    done = finished(winnow, job.id, tmp_path)
    assert done.files.keys() == {"model.onnx", "report.json", "front.svg"}
    search = done.report["search"]
    assert search["ended"] == "finished"
    assert search["delivered"] in {candidate["number"] for candidate in search["candidates"]}
    asked_at, ended_at = moments_of(winnow, job.id, "finish_requested_at", "finished_at")
    assert ended_at - asked_at < np.timedelta64(60, "s")


@pytest.mark.data
@pytest.mark.slow
def test_w13_a_stored_job_prunes_winograd_positions_over_http(winnow: Client, digits: Path, tmp_path: Path) -> None:
    """Claim 12: the method as an apparatus; what it would do is told before, what it did is stored and served."""
    request = {
        "model": ready(winnow, "model", digits / "digits.pt2"),
        "data": {role: ready(winnow, "dataset", digits / f"{role}.npz") for role in ("selection", "test")},
        "preprocess": DIGITS_PREPROCESS,
        "recipe": [{"kind": "prune_winograd", "max_drop_pp": 2.0}],
    }
    foreseen = winnow.check(request)
    (planned,) = foreseen["estimate"]["steps"]
    assert planned["layers"], planned
    done = finished(winnow, winnow.submit(request).id, tmp_path)
    (step,) = done.report["steps"]
    assert [layer["layer"] for layer in step["details"]["layers"]] == [layer["layer"] for layer in planned["layers"]]
    for before, after in zip(planned["layers"], step["details"]["layers"], strict=True):
        assert after["tile"] == before["tile"]
        assert after["multiplications"] <= after["multiplications_winograd"] == before["multiplications_winograd"]
        assert after["multiplications"] >= before["multiplications_at_least"]
    assert step["details"]["multiplications"] < step["details"]["multiplications_direct"]
    assert any("Nothing was trained" in warning for warning in step["warnings"])
    check_files(done, digits / "test.npz", DIGITS_PREPROCESS)


def test_f11_a_stored_job_makes_integers_over_http(winnow: Client, digits: Path, tmp_path: Path) -> None:
    """Claims 11 to 21: the device that uses the network is any with a C compiler; it finds what the report says."""
    request = {
        "model": ready(winnow, "model", digits / "digits.onnx"),
        "data": {role: ready(winnow, "dataset", digits / f"{role}.npz") for role in ("selection", "test")},
        "preprocess": DIGITS_PREPROCESS,
        "recipe": [{"kind": "quantize_fixed_point"}],
        "outputs": ["onnx", "pt2", "c"],
    }
    done = finished(winnow, winnow.submit(request).id, tmp_path)
    assert done.files.keys() == {"model.onnx", "model.pt2", "model.c.zip", "report.json"}
    assert done.report["integers"]["differing_logits"] == 0
    (source,) = [file for file in done.report["files"] if file["format"] == "c"]
    assert "its logits are those of the integer network on all" in " ".join(source["notes"])
    assert source["memory"]["flash_bytes"] < 0.3 * (digits / "digits.onnx").stat().st_size
    check_files(done, digits / "test.npz", DIGITS_PREPROCESS)


def test_q11_a_stored_job_assigns_precision_over_http(winnow: Client, digits: Path, tmp_path: Path) -> None:
    """Claims 8, 9 and 11: the apparatus and the medium; what was learned elsewhere comes along as statistics."""
    model = ready(winnow, "model", digits / "digits.onnx")
    names = [layer["name"] for layer in winnow.model(model).document["inspection"]["layers"]]
    moved = {name: {"cycle_start": 1.0 / (1 + place), "initial": 1.0 / (1 + place)} for place, name in enumerate(names)}
    statistics = {"cycles": [moved], "variances": dict.fromkeys(names, 1.0)}
    request = {
        "model": model,
        "data": {role: ready(winnow, "dataset", digits / f"{role}.npz") for role in ("selection", "test")},
        "preprocess": DIGITS_PREPROCESS,
        "recipe": [
            {"kind": "assign_precision", "bits": [8, 4], "max_drop_pp": 1.0, "statistics": statistics},
            {"kind": "quantize_fixed_point"},
        ],
        "outputs": ["onnx"],
    }
    done = finished(winnow, winnow.submit(request).id, tmp_path)
    assigned = done.report["steps"][0]["details"]
    assert assigned["order"] == names[::-1]
    assert {layer["layer"]: layer["bits"] for layer in assigned["layers"]} == {
        layer["name"]: layer["bits"] for layer in done.report["layers"]
    }
    check_files(done, digits / "test.npz", DIGITS_PREPROCESS)


def test_resnet20_is_pruned_and_verified(winnow: Client, data_folder: Path, tmp_path: Path) -> None:
    data = {}
    for role, source in (("selection", "cifar10_train_25000_39999"), ("test", "cifar10_test_0000_4999")):
        with np.load(data_folder / "images" / f"{source}.npz") as images:
            chosen = np.concatenate([np.flatnonzero(images["y"] == label)[:20] for label in range(10)])
            data[role] = tmp_path / f"{role}.npz"
            np.savez(data[role], x=images["x"][chosen], y=images["y"][chosen])
    step = {"kind": "prune_weights", "max_drop_pp": 2.0, "first_rate": 0.3, "rate_step": 0.2, "stop": {"layers": 2}}
    done = compress(
        winnow, data_folder / "models" / "cifar10_resnet20.onnx", data, tmp_path / "out",
        preprocess=CIFAR_PREPROCESS, recipe=[step], outputs=["onnx"],
    )  # fmt: skip
    assert done.report["accuracy_before"]["images"] == 200
    check_files(done, data["test"], CIFAR_PREPROCESS)
