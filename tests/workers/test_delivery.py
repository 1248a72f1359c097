"""What is said of a delivered file whose convolutions are in the Winograd domain: counted, and compared with the original."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import winograd
from jobs.errors import VerificationFailed
from jobs.folder import Compress
from jobs.report import DeliveredFile
from tests.workers.digits_network import PREPROCESS, digits
from tests.workers.networks import graph_of, small_cnn
from workers import delivery
from workers.bench import Bench
from workers.checkpoints import State
from workers.datasets.read_dataset import read_dataset
from workers.datasets.roles import Part
from workers.delivery import Delivery, Format, write_model
from workers.models.graph import ModelGraph, copy_graph, layers, parameter, set_parameter, winograd_conv2d
from workers.models.inspect_model import describe
from workers.models.lower_winograd import lower_winograd

KEPT = [position for position in range(36) if position not in (7, 10, 25, 28)]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "LATENCY_SECONDS", 0.05)
        yield


@pytest.fixture(scope="module")
def uploaded() -> ModelGraph:
    return graph_of(small_cnn(), torch.rand(2, 1, 8, 8))


@pytest.fixture(scope="module")
def winograd_pt2(uploaded: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> tuple[DeliveredFile, Path]:
    """What is said of a .pt2 file made from a .pt2 upload, and the folder of the job, cleaned up."""
    folder = tmp_path_factory.mktemp("job")
    graph = in_winograd_domain(uploaded)
    made = delivery_of(graph, uploaded, folder)
    write_model(graph, folder / "model.pt2", "pt2", pack_zeros=False)
    found = made.measure(folder / "model.pt2", "pt2")
    made.clean_up()
    return found, folder


def in_winograd_domain(graph: ModelGraph) -> ModelGraph:
    """A copy in which the second convolution keeps 32 of 36 positions."""
    changed = copy_graph(graph)
    layer = next(layer for layer in layers(changed) if layer.name == "conv2")
    node = next(node for node in changed.module.graph.nodes if node.name == layer.node)
    weights = winograd.transform_filters(parameter(changed, layer.weight).detach(), KEPT, 4)
    set_parameter(changed, layer.weight, weights)
    node.args = (node.args[0], node.args[1], KEPT, 4, [1, 1], node.args[2], None, "none", 1)
    node.target = winograd_conv2d
    changed.module.recompile()
    return changed


def delivery_of(graph: ModelGraph, uploaded: ModelGraph, folder: Path, *, uploaded_as: Format = "pt2") -> Delivery:
    """A job that was given `uploaded` and 40 images, and came to `graph`."""
    (folder / "work").mkdir()
    write_model(uploaded, folder / f"upload.{uploaded_as}", uploaded_as, pack_zeros=False)
    x, y = digits()
    np.savez_compressed(folder / "images.npz", x=x[900:940], y=y[900:940])
    job = Compress.model_validate(
        {
            "task": "compress",
            "model": {"path": f"upload.{uploaded_as}", "filename": "model", "sha256": "0"},
            "data": {},
            "preprocess": PREPROCESS,
            "recipe": (),
            "limits": {},
            "seed": 0,
            "outputs": ("onnx", "pt2"),
            "target": {"threads": 1},
        }
    )
    part = Part("selection", read_dataset(folder / "images.npz"), np.arange(40), sha256="0", origin="all")
    bench = Bench(job, uploaded, describe(uploaded, uploaded_as), {"selection": part})
    return Delivery(job, folder, uploaded, State(graph), bench)


def all_threads() -> list[int]:
    return sorted({1, len(os.sched_getaffinity(0))})


def test_pt2_is_compared_with_the_original_in_both_runtimes(winograd_pt2: tuple[DeliveredFile, Path]) -> None:
    found, _ = winograd_pt2
    assert [(one.runtime, one.threads) for one in found.comparisons] == [
        (runtime, threads) for runtime in ("torch", "onnxruntime") for threads in all_threads()
    ]
    for one in found.comparisons:
        assert one.delivered_runtime == "torch with winograd.load"
        assert one.batch_size == 1
        assert one.rounds >= 5
        assert one.speedup == pytest.approx(one.original_ms / one.delivered_ms)
        assert one.speedup_interval[0] <= one.speedup <= one.speedup_interval[1]
    assert not [note for note in found.notes if "could not be compared" in note]


def test_winograd_pt2_is_run_as_users_are_told_to_run_it(winograd_pt2: tuple[DeliveredFile, Path]) -> None:
    found, _ = winograd_pt2
    assert found.latency is not None
    assert found.latency_original is not None
    assert (found.latency.runtime, found.latency_original.runtime) == ("torch with winograd.load", "torch")
    assert [note for note in found.notes if 'import winograd; model = winograd.load("model.pt2")' in note]


def test_pt2_tells_what_was_executed_for_one_image(winograd_pt2: tuple[DeliveredFile, Path]) -> None:
    found, _ = winograd_pt2
    assert found.executed is not None
    tiles, filters, channels = 2 * 2, 8, 8
    assert (found.executed.gemms, found.executed.multiplications) == (32, tiles * 32 * filters * channels)


def test_nothing_of_the_verification_is_left_behind(winograd_pt2: tuple[DeliveredFile, Path]) -> None:
    _, folder = winograd_pt2
    assert [path.name for path in (folder / "work").iterdir() if not path.name.startswith("verify.")] == []


def test_networks_without_winograd_convolutions_are_timed_as_ever(uploaded: ModelGraph, tmp_path: Path) -> None:
    made = delivery_of(uploaded, uploaded, tmp_path)
    write_model(uploaded, tmp_path / "model.onnx", "onnx", pack_zeros=False)
    found = made.measure(tmp_path / "model.onnx", "onnx")
    assert (found.comparisons, found.executed) == ((), None)
    assert found.speedup is not None


def test_a_file_that_multiplies_pruned_positions_is_not_delivered(uploaded: ModelGraph, tmp_path: Path) -> None:
    """One that computes the same with all positions, or without the operator that counts."""
    graph = in_winograd_domain(uploaded)
    made = delivery_of(graph, uploaded, tmp_path)
    whole = copy_graph(graph)
    node = next(node for node in whole.module.graph.nodes if node.target is winograd_conv2d)
    weights = torch.zeros(36, 8, 8)
    weights[KEPT] = parameter(whole, "conv2.weight").detach()
    set_parameter(whole, "conv2.weight", weights)
    node.update_arg(2, list(range(36)))
    for other, gemms in ((whole, 36), (lower_winograd(graph), 0)):
        write_model(other, tmp_path / "model.pt2", "pt2", pack_zeros=False)
        with pytest.raises(VerificationFailed, match=rf"takes {gemms} matrix multiplications .* make 32"):
            made.measure(tmp_path / "model.pt2", "pt2")


def test_onnx_is_compared_in_its_own_runtime(uploaded: ModelGraph, tmp_path: Path) -> None:
    graph = in_winograd_domain(uploaded)
    made = delivery_of(graph, uploaded, tmp_path, uploaded_as="onnx")
    write_model(graph, tmp_path / "model.onnx", "onnx", pack_zeros=False)
    found = made.measure(tmp_path / "model.onnx", "onnx")
    assert [(one.runtime, one.threads) for one in found.comparisons] == [("onnxruntime", n) for n in all_threads()]
    assert found.executed is None


def test_an_original_that_cannot_be_run_is_told_of(uploaded: ModelGraph, tmp_path: Path) -> None:
    graph = in_winograd_domain(uploaded)
    made = delivery_of(graph, uploaded, tmp_path, uploaded_as="onnx")
    (tmp_path / "upload.onnx").write_bytes(b"this is no model")
    write_model(graph, tmp_path / "model.pt2", "pt2", pack_zeros=False)
    found = made.measure(tmp_path / "model.pt2", "pt2")
    assert [one.runtime for one in found.comparisons] == ["torch"] * len(all_threads())
    assert any(note.startswith("The original could not be compared with: ") for note in found.notes)
