"""One command against a running server: upload, search, download, verdict."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from winnow.cli.main import main

from tests.end_to_end.test_compression import predicted


def compress(url: str, digits: Path, output: Path, *words: str) -> int:
    arguments = ["--selection", str(digits / "selection.npz"), "--test", str(digits / "test.npz"), "--scale", "0.0625"]
    return main(
        [
            "--url",
            url,
            "compress",
            str(digits / "digits.onnx"),
            *arguments,
            *words,
            "--format",
            "onnx",
            "-o",
            str(output),
        ]
    )


@pytest.mark.parametrize("minimise", ["bytes", "latency"])
def test_compress_reaches_a_goal_as_one_command(
    stack: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], minimise: str
) -> None:
    words = ["--max-drop", "1.0", "--minimise", minimise, "--search-seconds", "60"]
    assert compress(stack, digits, tmp_path / "out", *words) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    search, (file,) = report["search"], report["files"]
    tried = [search["original"], *search["candidates"]]
    delivered = tried[search["delivered"]]
    assert delivered["meets_goal"]
    field = {"bytes": "bytes", "latency": "latency_ms"}[minimise]
    assert delivered[field] == min(each[field] for each in tried if each["meets_goal"])
    assert report["provenance"]["recipe"] == delivered["recipe"]
    found = predicted(tmp_path / "out" / "model.onnx", digits / "test.npz", {"scale": 0.0625})
    assert found == {"images": file["accuracy"]["images"], "correct": file["accuracy"]["correct"]}
    ElementTree.fromstring((tmp_path / "out" / "front.svg").read_text())
    shown = capsys.readouterr()
    assert report["verdict"]["sentence"].split(";")[0] in " ".join((shown.out + shown.err).split())


def test_missed_constraint_is_said_and_the_nearest_is_delivered(stack: str, digits: Path, tmp_path: Path) -> None:
    words = ["--minimise", "bytes", "--max-bytes", "1000", "--search-seconds", "30"]
    limit_missed = 5
    assert compress(stack, digits, tmp_path / "out", *words) == limit_missed
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert not report["verdict"]["limits_kept"]
    assert (tmp_path / "out" / "model.onnx").stat().st_size > 1000
