"""What a width is predicted to cost, in the file that the target opens."""

import json
from pathlib import Path

import pytest

from jobs.request import Goal
from tests.workers.test_bench import bench_with
from workers.search.predictor import FILE_NAME, Predictor


def ladder(folder: Path, runtime: str) -> list[dict[str, int]]:
    bench = bench_with(folder, labelled=True, selection=range(1000, 1100))
    target = bench.job.target.model_copy(update={"runtime": runtime})
    bench.job = bench.job.model_copy(update={"target": target})
    return Predictor(bench, Goal(minimise="bytes"), folder, lambda _: None).ladder()


@pytest.mark.parametrize(("runtime", "widths"), [("onnxruntime", {8, 4, 3, 2}), ("torch", {8, 6, 5, 4, 3, 2})])
def test_widths_that_fill_no_bytes_are_tried_where_files_are_deflated(
    tmp_path: Path, runtime: str, widths: set[int]
) -> None:
    found = ladder(tmp_path, runtime)
    assert set(found[-1].values()) == {2}
    assert {bits for allocation in found for bits in allocation.values()} <= widths
    known = json.loads((tmp_path / FILE_NAME).read_text())
    entropies = {key: value for key, value in known.items() if key.startswith("entropy")}
    assert len(entropies) == (len(widths) * len(found[0]) if runtime == "torch" else 0)
    # A second attempt measures nothing again, and comes to the same.
    assert ladder(tmp_path, runtime) == found
    assert json.loads((tmp_path / FILE_NAME).read_text()) == known
