"""A delivered file is believed only for what it does in a fresh process."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import psutil
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from jobs.errors import VerificationFailed
from tests.workers.digits_network import digits, save_pt2, to_input, trained_network
from workers.measurement import verify
from workers.measurement.verify import Conditions, compare_outputs, verify_file

CONDITIONS = Conditions(
    threads=1, batch_size=16, latency_batch_size=2, latency_seconds=0.05, device="test machine", seed=0
)
WEIGHT = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)


def save_linear_onnx(path: Path, weight: np.ndarray = WEIGHT) -> Path:
    """(N, 1, 8, 8) flattened and multiplied by a matrix."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
        ],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", weight.shape[1]])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, path)
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """37 images, so that the last batch of 16 isn't full."""
    path = tmp_path / "inputs.npy"
    np.save(path, to_input(digits()[0][900:937]).numpy())
    return path


def expected_of(form: str, inputs: Path) -> np.ndarray:
    images = np.load(inputs)
    if form == "onnx":
        return np.asarray(images.reshape(len(images), -1) @ WEIGHT)
    with torch.no_grad():
        return np.asarray(trained_network()(torch.from_numpy(images)).numpy())


@pytest.mark.parametrize(("form", "runtime"), [("onnx", "onnxruntime"), ("pt2", "torch")])
def test_file_is_run_and_timed_in_a_fresh_process(
    tmp_path: Path, inputs: Path, form: Literal["onnx", "pt2"], runtime: str
) -> None:
    path = tmp_path / f"model.{form}"
    save_linear_onnx(path) if form == "onnx" else save_pt2(path)
    expected = expected_of(form, inputs)
    found = verify_file(
        path, form, inputs=inputs, expected=expected, original=path, conditions=CONDITIONS, scratch=tmp_path
    )
    np.testing.assert_allclose(found.outputs, expected, atol=1e-4)
    assert found.max_abs_difference == pytest.approx(np.abs(found.outputs - expected).max())
    assert found.agreement_percent == 100
    assert found.latency is not None
    assert found.latency_original is not None
    assert (found.latency.runtime, found.latency.threads, found.latency.batch_size) == (runtime, 1, 2)
    assert found.latency.runs == found.latency_original.runs >= 10
    assert found.speedup is not None
    assert found.speedup_interval is not None
    # The same file by turns with itself.
    assert 0.5 < found.speedup < 2
    assert found.speedup_interval[0] <= found.speedup <= found.speedup_interval[1]


def test_original_that_cannot_be_timed_is_not_held_against_the_delivered_file(tmp_path: Path, inputs: Path) -> None:
    path = save_linear_onnx(tmp_path / "model.onnx")
    original = tmp_path / "original.onnx"
    original.write_bytes(b"this is no model")
    found = verify_file(
        path,
        "onnx",
        inputs=inputs,
        expected=expected_of("onnx", inputs),
        original=original,
        conditions=CONDITIONS,
        scratch=tmp_path,
    )
    assert found.original_error is not None
    assert "INVALID_PROTOBUF" in found.original_error or "original.onnx" in found.original_error
    assert (found.latency, found.speedup, found.agreement_percent) == (None, None, 100)


class _NotWantedError(Exception):
    """What a search raises that is to end."""


def test_process_that_is_not_wanted_any_more_is_ended_at_once(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "LOOK_SECONDS", 0.01)
    path, looks = save_linear_onnx(tmp_path / "model.onnx"), 0

    def while_waiting() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise _NotWantedError

    with pytest.raises(_NotWantedError):
        verify_file(
            path,
            "onnx",
            inputs=inputs,
            expected=expected_of("onnx", inputs),
            original=path,
            conditions=replace(CONDITIONS, latency_seconds=60.0),
            scratch=tmp_path,
            while_waiting=while_waiting,
        )
    assert looks == 2
    assert not any("verify_process" in " ".join(child.cmdline()) for child in psutil.Process().children())


def test_process_that_is_wanted_is_waited_for_however_often_one_looks(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "LOOK_SECONDS", 0.01)
    path, looks = save_linear_onnx(tmp_path / "model.onnx"), []
    found = verify_file(
        path,
        "onnx",
        inputs=inputs,
        expected=expected_of("onnx", inputs),
        original=path,
        conditions=replace(CONDITIONS, latency_seconds=1.0),
        scratch=tmp_path,
        while_waiting=lambda: looks.append(1),
    )
    assert looks
    assert found.agreement_percent == 100


def test_changed_weights_fail(tmp_path: Path, inputs: Path) -> None:
    changed = WEIGHT.copy()
    changed[:, 3] *= 1.05
    path = save_linear_onnx(tmp_path / "model.onnx", changed)
    with pytest.raises(VerificationFailed, match=r"model\.onnx differs from the network in memory by up to"):
        verify_file(
            path,
            "onnx",
            inputs=inputs,
            expected=expected_of("onnx", inputs),
            original=None,
            conditions=CONDITIONS,
            scratch=tmp_path,
        )


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_file_that_the_runtime_refuses_fails_with_its_reason(
    tmp_path: Path, inputs: Path, form: Literal["onnx", "pt2"]
) -> None:
    path = tmp_path / f"model.{form}"
    path.write_bytes(b"this is no model")
    with pytest.raises(VerificationFailed, match=rf"model\.{form} can't be run: \w+"):
        verify_file(
            path,
            form,
            inputs=inputs,
            expected=expected_of(form, inputs),
            original=None,
            conditions=CONDITIONS,
            scratch=tmp_path,
        )


SCORES = np.random.default_rng(1).normal(size=(400, 10)).astype(np.float32)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (SCORES[:-1], r"gives float32 \(399, 10\) where the network in memory gives float32 \(400, 10\)"),
        (SCORES.astype(np.float64), "gives float64"),
        (np.where(SCORES > 2, np.float32(np.nan), SCORES), "not finite"),
        (SCORES + np.float32(0.01), "differs from the network in memory"),
    ],
)
def test_outputs_of_another_network_fail(outputs: np.ndarray, message: str) -> None:
    with pytest.raises(VerificationFailed, match=message):
        compare_outputs(outputs, SCORES, name="model.onnx")


def test_outputs_within_the_tolerance_pass_unless_the_classes_change() -> None:
    noise = np.random.default_rng(2).uniform(-1e-4, 1e-4, SCORES.shape).astype(np.float32)
    difference, agreement = compare_outputs(SCORES + noise, SCORES, name="model.onnx")
    assert difference == pytest.approx(1e-4, rel=0.1)
    assert agreement > 99.5
    ties = np.zeros((200, 10), np.float32)
    flipped = ties.copy()
    flipped[:3, 5] = 1e-5
    with pytest.raises(VerificationFailed, match=r"gives only 98\.50 % of the images the class"):
        compare_outputs(flipped, ties, name="model.onnx")


def test_half_precision_is_allowed_less_precision() -> None:
    half = SCORES.astype(np.float16)
    compare_outputs(half + np.float16(0.01), half, name="model.onnx")


def test_verifying_process_dies_with_the_runner() -> None:
    child = (
        "import os, sys, time; from workers.measurement.verify_process import die_with\n"
        "die_with(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, str(os.getpid())])"
    runner = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    verifier = psutil.Process(int(runner.stdout.readline()))
    runner.kill()
    runner.wait()
    runner.stdout.close()
    gone, _ = psutil.wait_procs([verifier], timeout=10)
    assert gone == [verifier]
