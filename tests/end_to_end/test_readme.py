"""What the README tells a user to type works when it is typed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import onnxruntime
from winnow import Client

from tests.end_to_end.conftest import PROJECT


def test_the_curl_session_works_when_pasted(stack: str, winnow: Client, tmp_path: Path) -> None:
    found = re.search(r"<!-- curl-session -->\s*```bash\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    # The clone that the user stands in has these.
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "demo").symlink_to(PROJECT / "demo")
    jobs_before = {job.id for job in winnow.jobs()}
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", found[1]], cwd=tmp_path, env={**os.environ, "WINNOW_URL": stack},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (job,) = [job for job in winnow.jobs() if job.id not in jobs_before]
    assert job.state == "succeeded" and job.verdict is not None
    assert job.verdict in ended.stdout
    onnxruntime.InferenceSession(tmp_path / "demo-output" / "compressed-model.onnx", providers=["CPUExecutionProvider"])


def test_the_demo_works(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    ended = subprocess.run(
        [sys.executable, "-m", "demo.run"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    delivered = {path.name for path in (tmp_path / "demo-output").iterdir() if path.is_file()}
    assert delivered == {"model.onnx", "model.pt2", "report.json"}
    said, truth = re.search(r"model\.onnx says (\d); it is a (\d)", ended.stdout).groups()  # type: ignore[union-attr]
    assert said == truth
    assert "Everything is stopped" in ended.stdout
