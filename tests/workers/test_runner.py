"""The runner as a command: a job folder in, a job folder out, without any server."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from jobs.errors import ErrorCode, RecipeRefused
from jobs.folder import Outcome, Progress
from jobs.report import Report
from tests.workers.digits_network import digits, held_out, input_file, lay_out_job, save_pt2, to_input, write_request
from workers.runner import job_error, run_folder

TWO_STEPS = [
    {"kind": "prune_weights", "max_drop_pp": 1.0, "rate_step": 0.2},
    {"kind": "prune_weights", "max_drop_pp": 2.0, "rate_step": 0.2},
]


def start(folder: Path) -> "subprocess.Popen[str]":
    with (folder / "runner.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "workers.runner", str(folder)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "WINNOW_THREADS": "1"},
        )


def run(folder: Path) -> list[Progress]:
    """Run the folder to its end; its progress."""
    with start(folder) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0, (folder / "runner.log").read_text()
    return [Progress.model_validate_json(line) for line in lines]


def result(folder: Path) -> Outcome:
    return Outcome.model_validate_json((folder / "result.json").read_bytes())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pt2(tmp_path_factory.mktemp("model") / "digits.pt2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Path, list[Progress]]:
    """The folder of a whole job of two steps that nothing disturbed, and what it said meanwhile."""
    folder = lay_out_job(
        tmp_path_factory.mktemp("finished") / "job",
        model,
        held_out(),
        recipe=TWO_STEPS,
        limits={"max_accuracy_drop_pp": 10.0},
        sandbox={"network": "none"},
    )
    return folder, run(folder)


def test_job_ends_with_verified_files_and_a_report(finished: tuple[Path, list[Progress]]) -> None:
    folder, _ = finished
    outcome = result(folder)
    assert outcome.error is None
    assert [(output.path, output.kind) for output in outcome.outputs] == [
        ("model.onnx", "model"),
        ("model.pt2", "model"),
        ("report.json", "report"),
    ]
    assert sorted(path.name for path in (folder / "outputs").iterdir()) == ["model.onnx", "model.pt2", "report.json"]
    report = Report.model_validate_json((folder / "outputs" / "report.json").read_bytes())
    assert report.verdict.sentence == outcome.verdict
    assert report.verdict.limits_kept
    assert report.measure == "top1"
    assert report.accuracy_before is not None
    assert report.accuracy_before.percent > 90
    for file in report.files:
        path = folder / "outputs" / file.name
        assert (file.sha256, file.size.bytes) == (digest(path), path.stat().st_size)
        assert file.agreement_percent is not None
        assert file.agreement_percent >= 99.5
        assert file.latency is not None
        assert file.latency.threads == 1
        assert file.accuracy is not None
        assert file.accuracy.role == "test"
        assert file.accuracy.images == 397
    assert [step.kind for step in report.steps] == ["prune_weights", "prune_weights"]
    assert report.after.nonzeros < report.before.nonzeros
    assert report.after.effective_multiplications < report.after.multiplications == report.before.multiplications
    assert {layer.name for layer in report.layers} == {"conv1", "conv2", "fc"}
    assert {part.role: part.images for part in report.data} == {"selection": 500, "test": 397}
    assert report.provenance.sandbox == {"network": "none"}
    assert any("don't speed up dense kernels" in warning for warning in report.warnings)


def test_reported_accuracy_is_what_a_user_measures_with_the_file(finished: tuple[Path, list[Progress]]) -> None:
    folder, _ = finished
    report = json.loads((folder / "outputs" / "report.json").read_text())
    x, y = digits()
    session = onnxruntime.InferenceSession(folder / "outputs" / "model.onnx", providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: to_input(x[1400:]).numpy()})
    assert report["files"][0]["accuracy"]["correct"] == int((scores.argmax(axis=1) == y[1400:]).sum())


def test_progress_only_grows_and_names_phases_and_steps(finished: tuple[Path, list[Progress]]) -> None:
    _, progress = finished
    fractions = [line.fraction for line in progress if line.fraction is not None]
    assert fractions == sorted(fractions)
    phases = [line.phase for line in progress if line.type == "event"]
    assert phases == ["reading", "baseline", "prune_weights", "prune_weights", "writing", "verifying", "finished"]
    assert {line.step for line in progress if line.phase == "prune_weights"} == {0, 1}


def test_killed_job_goes_on_from_its_checkpoint_and_ends_in_the_same_bytes(
    finished: tuple[Path, list[Progress]], tmp_path: Path, model: Path
) -> None:
    folder = lay_out_job(tmp_path / "job", model, held_out(), recipe=TWO_STEPS)
    with start(folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if Progress.model_validate_json(line).step == 1:
                process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    manifest = json.loads((folder / "work" / "checkpoints" / "step-0.json").read_text())

    run(folder)
    report = json.loads((folder / "outputs" / "report.json").read_text())
    assert report["steps"][0]["seconds"] == manifest["report"]["seconds"]  # it was not done again
    for name in ("model.onnx", "model.pt2"):
        assert digest(folder / "outputs" / name) == digest(finished[0] / "outputs" / name)


def test_job_that_is_killed_in_each_of_its_steps_ends_in_the_bytes_of_one_that_is_not(
    tmp_path: Path, model: Path
) -> None:
    """Masks and bits that steps hand on survive; and two undisturbed runs are alike."""
    x, y = digits()
    recipe = [
        {"kind": "prune_weights", "max_drop_pp": 2.0, "rate_step": 0.3},
        {"kind": "finetune", "epochs": 1, "batch_size": 32, "learning_rate": 0.001},
        {"kind": "assign_precision", "bits": [8, 4, 2], "max_drop_pp": 2.0, "learning": {"batch_size": 32}},
        {"kind": "quantize_fixed_point", "calibration_images": 100},
    ]
    first, second, killed = (
        lay_out_job(
            tmp_path / name,
            model,
            {"selection": {"x": x[900:], "y": y[900:]}},
            recipe=recipe,
            outputs=["onnx", "pt2", "c"],
        )
        for name in ("first", "second", "killed")
    )
    run(first)
    run(second)
    for step in range(len(recipe)):
        with start(killed) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if Progress.model_validate_json(line).step == step:
                    process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not (killed / "result.json").exists()
    run(killed)
    for name in ("model.onnx", "model.pt2", "model.c.zip"):
        assert (
            digest(first / "outputs" / name) == digest(second / "outputs" / name) == digest(killed / "outputs" / name)
        )


def test_refusal_is_a_result(tmp_path: Path, model: Path) -> None:
    folder = lay_out_job(tmp_path / "job", model, {})
    run(folder)
    error = result(folder).error
    assert error is not None
    assert error.code == ErrorCode.RECIPE_REFUSED
    assert "no dataset plays the role selection" in error.message
    assert error.where["pointer"] == "/data/selection"


def dataset_folder(folder: Path, content: bytes | None = None) -> Path:
    (folder / "inputs").mkdir(parents=True)
    path = folder / "inputs" / "digits.npz"
    if content is None:
        x, y = digits()
        np.savez(path, x=x, y=y)
    else:
        path.write_bytes(content)
    write_request(folder, {"task": "inspect_dataset", "file": input_file(path)})
    return folder


def test_dataset_is_inspected(tmp_path: Path) -> None:
    folder = dataset_folder(tmp_path / "job")
    run(folder)
    inspection = result(folder).dataset
    assert inspection is not None
    assert (inspection.images, inspection.shape, inspection.dtype) == (1797, (1, 8, 8), "uint8")


def test_broken_dataset_is_rejected(tmp_path: Path) -> None:
    folder = dataset_folder(tmp_path / "job", b"PK\x03\x04 and nothing more")
    run(folder)
    error = result(folder).error
    assert error is not None
    assert error.code == ErrorCode.DATASET_REJECTED


def test_model_is_inspected(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "job"
    (folder / "inputs").mkdir(parents=True)
    (folder / "inputs" / "digits.pt2").write_bytes(model.read_bytes())
    write_request(folder, {"task": "inspect_model", "file": input_file(folder / "inputs" / "digits.pt2")})
    run(folder)
    inspection = result(folder).model
    assert inspection is not None
    assert [layer.name for layer in inspection.layers] == ["conv1", "conv2", "fc"]
    assert inspection.classes == 10


def test_sigterm_stops_at_once_without_a_result(tmp_path: Path, model: Path) -> None:
    folder = lay_out_job(tmp_path / "job", model, held_out())
    with start(folder) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it runs
        stopped_at = time.monotonic()
        process.terminate()
        process.wait(timeout=30)
    assert process.returncode == 143
    assert time.monotonic() - stopped_at < 3
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (RecipeRefused("no"), ErrorCode.RECIPE_REFUSED, False),
        (MemoryError(), ErrorCode.OUT_OF_MEMORY, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), ErrorCode.OUT_OF_MEMORY, False),
        (OSError(errno.ENOSPC, "No space left on device"), ErrorCode.DISK_FULL, True),
        (OSError(errno.EFBIG, "File too large"), ErrorCode.DISK_FULL, True),
        (KeyError("secret"), ErrorCode.INTERNAL, False),
    ],
)
def test_every_exception_becomes_an_error_that_tells_no_secrets(
    error: Exception, code: ErrorCode, retryable: bool
) -> None:
    found = job_error(error)
    assert (found.code, found.retryable) == (code, retryable)
    assert "secret" not in found.message


def test_unexpected_exception_is_a_result_and_its_traceback_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_arguments: Any, **_options: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("workers.datasets.inspect_dataset.inspect_dataset", broken)
    folder = dataset_folder(tmp_path / "job")
    run_folder(folder, report_progress=lambda _progress: None)
    error = result(folder).error
    assert error is not None
    assert (error.code, error.message) == (ErrorCode.INTERNAL, "The runner failed unexpectedly (ZeroDivisionError).")
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err


@pytest.mark.data
def test_resnet20_is_pruned_end_to_end(tmp_path: Path, data_folder: Path) -> None:
    """A few of the real images are enough to see the whole line work."""
    selection = np.load(data_folder / "images" / "cifar10_train_25000_39999.npz")
    test = np.load(data_folder / "images" / "cifar10_test_0000_4999.npz")
    folder = lay_out_job(
        tmp_path / "job",
        data_folder / "models" / "cifar10_resnet20.onnx",
        {
            "selection": {"x": selection["x"][:300], "y": selection["y"][:300]},
            "test": {"x": test["x"][:500], "y": test["y"][:500]},
        },
        preprocess={"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        recipe=[{"kind": "prune_weights", "max_drop_pp": 2.0, "rate_step": 0.2, "rounds": 1, "stop": {"layers": 5}}],
    )
    run(folder)
    outcome = result(folder)
    assert outcome.error is None
    report = Report.model_validate_json((folder / "outputs" / "report.json").read_bytes())
    assert report.accuracy_before is not None
    assert 88 < report.accuracy_before.percent < 95
    assert report.change is not None
    assert report.change.change_pp > -8
    assert report.after.nonzeros < report.before.nonzeros
    assert len(report.steps[0].details["iterations"]) == 5
    notes = {file.format: file.notes for file in report.files}
    assert notes["onnx"] == ("Latency is compared with the uploaded file itself.",)
    assert notes["pt2"] == ("Latency is compared with the uploaded onnx model as Winnow writes it to pt2.",)
    assert report.warnings[0].startswith("Unstructured zeros don't speed up dense kernels")
