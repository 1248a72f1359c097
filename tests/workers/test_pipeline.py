"""What a job does with its data and its files, within this process but for the verification."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from jobs.errors import ErrorCode
from jobs.folder import Outcome, Progress
from jobs.report import Report
from tests.workers.digits_network import digits, held_out, lay_out_job, save_pt2, to_input, trained_network
from tests.workers.networks import save_pt2 as save_module_as_pt2
from workers import delivery
from workers.bench import Bench
from workers.measurement.accuracy import Right
from workers.models.graph import ModelGraph
from workers.runner import run_folder
from workers.search.search import Clock


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pt2(tmp_path_factory.mktemp("model") / "digits.pt2")


@pytest.fixture(autouse=True)
def _quick_and_without_traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short timing on one thread; what the runner sets for its whole process is set back."""
    monkeypatch.setattr(delivery, "LATENCY_SECONDS", 0.05)
    monkeypatch.setenv("WINNOW_THREADS", "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def run(folder: Path) -> tuple[Outcome, list[Progress]]:
    progress: list[Progress] = []
    return run_folder(folder, report_progress=progress.append), progress


def report_of(folder: Path) -> Report:
    return Report.model_validate_json((folder / "outputs" / "report.json").read_bytes())


def test_without_labels_accuracy_is_the_agreement_with_the_uploaded_model(tmp_path: Path, model: Path) -> None:
    folder = lay_out_job(tmp_path / "job", model, held_out(labelled=False), outputs=["onnx"])
    outcome, _ = run(folder)
    assert outcome.error is None
    report = report_of(folder)
    assert report.measure == "agreement"
    assert report.accuracy_before is not None
    assert report.accuracy_before.percent == 100
    assert report.steps[0].accuracy_before is not None
    assert report.steps[0].accuracy_before.percent == 100
    assert report.verdict.sentence.startswith("Agreement with the uploaded model ")
    assert any("The data have no labels" in warning for warning in report.warnings)


def test_lone_dataset_is_split_and_the_recipe_learns_from_its_part(tmp_path: Path, model: Path) -> None:
    x, y = digits()
    folder = lay_out_job(
        tmp_path / "job",
        model,
        {"selection": {"x": x[900:], "y": y[900:]}},
        recipe=[
            {"kind": "prune_weights", "max_drop_pp": 5.0, "rate_step": 0.3},
            {"kind": "finetune", "epochs": 2, "batch_size": 32},
        ],
        outputs=["pt2"],
        target={"runtime": "torch"},
    )
    outcome, _ = run(folder)
    assert outcome.error is None
    report = report_of(folder)
    images = {part.role: part.images for part in report.data}
    assert sum(images.values()) == 897
    assert images["train"] > 2 * images["selection"]
    assert all("split by class with seed 0" in part.origin for part in report.data)
    assert [step.kind for step in report.steps] == ["prune_weights", "finetune"]
    pruned = {layer["layer"]: layer["zeros"] for layer in report.steps[0].details["layers"]}
    for layer in report.layers:
        # Learning leaves every zero where it was.
        assert layer.weights - layer.nonzeros >= pruned[layer.name]


@pytest.mark.parametrize(
    "options",
    [
        {"training": {"epochs": 1, "batch_size": 32, "domain": "winograd"}},
        {"training": {"epochs": 1, "batch_size": 32, "domain": "spatial"}},
        {"training": {"epochs": 1, "batch_size": 32}, "groups": 2, "group_by": "input_channels"},
        {"groups": 3},
    ],
)
def test_w9_winograd_pruning_is_delivered_and_verified(tmp_path: Path, model: Path, options: dict[str, Any]) -> None:
    x, y = digits()
    folder = lay_out_job(
        tmp_path / "job",
        model,
        {"selection": {"x": x[900:], "y": y[900:]}},
        recipe=[{"kind": "prune_winograd", "select": "rate", "rate": 0.25, "rounds": 2, "max_drop_pp": 5.0, **options}],
    )
    outcome, _ = run(folder)
    assert outcome.error is None, outcome.error
    (step,) = report_of(folder).steps
    details = step.details
    (layer,) = details["layers"]
    assert layer["layer"] == "conv2"
    assert len(layer["pruned"]) == options.get("groups", 1)
    assert all(len(group) == 9 for group in layer["pruned"])
    assert details["rounds"][-1]["ended"] == "kept"
    assert details["is_trained"] == ("training" in options)
    assert (details["learned_on"] is not None) == ("training" in options)
    assert details["accuracy_after"] >= details["accuracy_before"] - 5.0
    report = report_of(folder)
    assert {file.name for file in report.files} == {"model.onnx", "model.pt2"}
    assert report.after.multiplications == details["multiplications"]
    again = lay_out_job(
        tmp_path / "again",
        folder / "outputs" / "model.pt2",
        {"selection": {"x": x[900:], "y": y[900:]}},
        recipe=[{"kind": "finetune", "epochs": 1, "batch_size": 32, "learning_rate": 0.001}],
        outputs=["pt2"],
    )
    outcome, _ = run(again)
    assert outcome.error is None, outcome.error


def test_winograd_convolutions_are_delivered_in_standard_operators_for_who_cannot_install_ours(
    tmp_path: Path, model: Path
) -> None:
    folder = lay_out_job(
        tmp_path / "job",
        model,
        held_out(),
        recipe=[{"kind": "prune_winograd", "select": "count", "count": 4, "max_drop_pp": 100}],
        outputs=["pt2", "pt2_standard"],
        target={"runtime": "torch"},
    )
    outcome, _ = run(folder)
    assert outcome.error is None, outcome.error
    ours, standard = report_of(folder).files
    assert (ours.name, standard.name) == ("model.pt2", "model.standard.pt2")
    assert ours.executed is not None
    assert standard.executed is None
    assert standard.agreement_percent == 100
    assert standard.accuracy == ours.accuracy
    assert not any("winograd" in note for note in standard.notes)
    networks = [torch.export.load(folder / "outputs" / file.name) for file in (ours, standard)]
    namespaces = [{str(node.target).split(".")[0] for node in network.graph.nodes} for network in networks]
    assert "winograd" in namespaces[0]
    assert "winograd" not in namespaces[1]


@pytest.mark.parametrize(("runtime", "output"), [("torch", "pt2"), ("onnxruntime", "onnx")])
def test_winograd_pruning_by_time_is_for_the_target_and_says_where_times_hold(
    tmp_path: Path, model: Path, runtime: str, output: str
) -> None:
    folder = lay_out_job(
        tmp_path / "job",
        model,
        held_out(),
        recipe=[{"kind": "prune_winograd", "tile": 4, "saves": "time", "max_drop_pp": 5.0}],
        outputs=[output],
        target={"runtime": runtime, "threads": 2, "batch_size": 3},
    )
    outcome, _ = run(folder)
    assert outcome.error is None, outcome.error
    (step,) = report_of(folder).steps
    asked_for = {"batch_size": 3, "threads": 2, "runtime": "torch with winograd.load"}
    assert step.details["modelled_for"].items() >= asked_for.items()
    (layer,) = step.details["layers"]
    assert all(0 < one["saved"] < layer["modelled_us_winograd"] for one in step.details["allocation"]["sensitivities"])
    warned = any("the target is onnxruntime" in warning for warning in step.warnings)
    assert warned == (runtime == "onnxruntime")


def test_f8_integers_are_delivered_and_verified(tmp_path: Path, model: Path) -> None:
    """Pruned zeros stay zeros, each file is measured, and the same request gives the same bytes, also after an interruption."""
    recipe: list[dict[str, Any]] = [
        {"kind": "prune_weights", "max_drop_pp": 2.0, "rate_step": 0.3},
        {"kind": "quantize_fixed_point", "calibration_images": 200},
    ]
    folders = [
        lay_out_job(tmp_path / name, model, held_out(), recipe=recipe, outputs=["onnx", "pt2", "c"])
        for name in ("job", "again")
    ]
    for folder in folders:
        outcome, _ = run(folder)
        assert outcome.error is None, outcome.error
    report = report_of(folders[0])
    files = {file.format: file for file in report.files}
    assert {file.name for file in report.files} == {"model.onnx", "model.pt2", "model.c.zip"}
    assert report.integers is not None
    assert files["c"].accuracy is not None
    assert report.integers.images == files["c"].accuracy.images
    assert (report.integers.differing_logits, report.integers.overflows) == (0, 0)
    # C and torch compute the same integers; ONNX Runtime rounds a few in another way.
    assert files["c"].accuracy == files["pt2"].accuracy
    assert files["pt2"].max_abs_difference == 0
    assert files["onnx"].agreement_percent is not None
    assert files["onnx"].agreement_percent >= 99
    assert files["c"].memory is not None
    assert files["c"].memory.flash_bytes < 0.4 * report.before.dense_bytes
    assert all(layer.bits == 8 for layer in report.layers)
    assert report.after.weight_bits * 4 == report.before.weight_bits
    zeros = {layer["layer"]: layer["zeros"] for layer in report.steps[0].details["layers"]}
    for layer in report.layers:
        assert layer.weights - layer.nonzeros >= zeros[layer.name]
    details = report.steps[1].details
    assert [layer["layer"] for layer in details["layers"]] == [layer.name for layer in report.layers]

    # A lost attempt goes on from the checkpoints, and ends in the same bytes.
    names = [file.name for file in report.files]
    first = [(folders[0] / "outputs" / name).read_bytes() for name in names]
    assert first == [(folders[1] / "outputs" / name).read_bytes() for name in names]
    for name in names:
        (folders[0] / "outputs" / name).unlink()
    outcome, progress = run(folders[0])
    assert outcome.error is None
    assert first == [(folders[0] / "outputs" / name).read_bytes() for name in names]
    assert not any(line.message and line.message.startswith("Quantizing") for line in progress)


def test_f8_integers_are_delivered_as_one_operator_that_computes_them(tmp_path: Path, model: Path) -> None:
    folders = [
        lay_out_job(
            tmp_path / name,
            model,
            held_out(),
            recipe=[{"kind": "quantize_fixed_point", "calibration_images": 200}],
            outputs=["pt2", "pt2_integers"],
            target={"runtime": "torch"},
        )
        for name in ("job", "again")
    ]
    for folder in folders:
        outcome, _ = run(folder)
        assert outcome.error is None, outcome.error
    report = report_of(folders[0])
    floats, integers = report.files
    assert (integers.name, integers.max_abs_difference, integers.agreement_percent) == ("model.integers.pt2", 0, 100)
    assert integers.accuracy == floats.accuracy == report.accuracy_after
    assert integers.executed is None
    assert integers.latency is not None
    assert integers.latency.runtime == "torch with winograd.load"
    assert {one.runtime for one in integers.comparisons} == {"torch", "onnxruntime"}
    assert floats.comparisons == ()
    assert any('winograd.load("model.integers.pt2")' in note for note in integers.notes)
    assert any("to the last bit" in note for note in integers.notes)
    assert "pt2_integers" in report.verdict.sentence
    written = [(folder / "outputs" / "model.integers.pt2").read_bytes() for folder in folders]
    assert written[0] == written[1]


class ResizedDigits(nn.Module):
    """The digits' network on images that were resized bilinearly to and fro, neither time by a whole factor."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained_network()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        larger = functional.interpolate(image, size=(13, 11), mode="bilinear", align_corners=True)
        result: torch.Tensor = self.network(functional.interpolate(larger, size=(8, 8), mode="bilinear"))
        return result


def test_f8_images_resized_bilinearly_are_delivered_and_verified_in_integers(tmp_path: Path) -> None:
    model = save_module_as_pt2(ResizedDigits().eval(), to_input(digits()[0][:4]), tmp_path / "resized.pt2")
    folder = lay_out_job(
        tmp_path / "job",
        model,
        held_out(),
        recipe=[{"kind": "quantize_fixed_point", "calibration_images": 200}],
        outputs=["onnx", "pt2", "c", "pt2_integers"],
    )
    outcome, _ = run(folder)
    assert outcome.error is None, outcome.error
    report = report_of(folder)
    files = {file.format: file for file in report.files}
    assert files.keys() == {"onnx", "pt2", "c"}
    (warning,) = [warning for warning in report.warnings if "not written" in warning]
    assert "resizes images bilinearly, which that operator doesn't do." in warning
    assert report.integers is not None
    assert (report.integers.differing_logits, report.integers.overflows) == (0, 0)
    assert files["pt2"].max_abs_difference == 0
    assert files["c"].accuracy == files["pt2"].accuracy == report.accuracy_after
    assert files["onnx"].agreement_percent is not None
    assert files["onnx"].agreement_percent >= 99
    assert report.accuracy_before is not None
    assert report.accuracy_after is not None
    assert report.accuracy_after.percent > report.accuracy_before.percent - 3


def lay_out_wide(folder: Path, model: Path, outputs: list[str]) -> Path:
    """A job whose weights take more than 8 bits once they are shifted, which shows only in the network."""
    step = {
        "kind": "quantize_fixed_point",
        "calibration_images": 50,
        "weight_bits": 7,
        "align": "shift",
        "rule": "max_abs",
    }
    return lay_out_job(folder, model, held_out(), recipe=[step], outputs=outputs, target={"runtime": "torch"})


def test_integers_that_are_no_operator_are_delivered_in_the_other_files(tmp_path: Path, model: Path) -> None:
    folder = lay_out_wide(tmp_path / "job", model, ["pt2", "pt2_integers"])
    outcome, _ = run(folder)
    assert outcome.error is None, outcome.error
    assert [output.path for output in outcome.outputs] == ["model.pt2", "report.json"]
    report = report_of(folder)
    assert [file.format for file in report.files] == ["pt2"]
    (warning,) = [warning for warning in report.warnings if "not written" in warning]
    assert warning.startswith("model.integers.pt2 was asked for, but not written. The network can't be one operator")


def test_integers_that_are_no_operator_are_refused_where_nothing_else_was_asked_for(
    tmp_path: Path, model: Path
) -> None:
    outcome, _ = run(lay_out_wide(tmp_path / "job", model, ["pt2_integers"]))
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.RECIPE_REFUSED
    assert "shifted to meet partial sums" in outcome.error.message


def test_latency_in_torch_is_searched_for_among_integers_and_delivered_as_what_was_measured(
    tmp_path: Path, model: Path
) -> None:
    goal = {"max_accuracy_drop_pp": 50.0, "minimise": "latency", "deadline_seconds": 3600}
    folder = lay_out_job(
        tmp_path / "job", model, held_out(), recipe=[], goal=goal, outputs=["pt2"], target={"runtime": "torch"}
    )
    outcome, _ = run(folder)
    assert outcome.error is None, outcome.error
    report = report_of(folder)
    assert report.search is not None
    kinds = [each.recipe[0]["kind"] for each in report.search.candidates]
    assert kinds[:2] == ["quantize_fixed_point"] * 2
    assert "prune_winograd" in kinds
    chosen = ([report.search.original, *report.search.candidates])[report.search.delivered]
    in_integers = bool(chosen.recipe) and chosen.recipe[0]["kind"] == "quantize_fixed_point"
    assert [file.format for file in report.files] == (["pt2", "pt2_integers"] if in_integers else ["pt2"])
    assert report.files[-1].size.bytes == chosen.bytes


def test_bytes_in_torch_are_searched_for_in_the_file_of_one_operator_where_that_was_asked_for(
    tmp_path: Path, model: Path
) -> None:
    goal = {"max_accuracy_drop_pp": 3.0, "minimise": "bytes", "deadline_seconds": 3600}
    folder = lay_out_job(
        tmp_path / "job", model, held_out(), recipe=[], goal=goal, outputs=["pt2_integers"], target={"runtime": "torch"}
    )
    outcome, _ = run(folder)
    assert outcome.error is None, outcome.error
    report = report_of(folder)
    assert report.search is not None
    chosen = ([report.search.original, *report.search.candidates])[report.search.delivered]
    (file,) = report.files
    assert (file.format, file.size.bytes) == ("pt2_integers", chosen.bytes)
    assert chosen.bytes == min(each.bytes for each in report.search.candidates if each.meets_goal)
    assert chosen.bytes < report.search.candidates[0].bytes


@pytest.mark.parametrize("options", [{"groups": 1}, {"groups": 2, "group_by": "input_channels"}], ids=str)
def test_w8_and_f8_pruned_winograd_convolutions_are_delivered_in_integers(
    tmp_path: Path, model: Path, options: dict[str, Any]
) -> None:
    pruning = {"kind": "prune_winograd", "tile": 2, "select": "rate", "rate": 0.25, "rounds": 1, "max_drop_pp": 5.0}
    folder = lay_out_job(
        tmp_path / "job",
        model,
        held_out(),
        recipe=[{**pruning, **options}, {"kind": "quantize_fixed_point", "calibration_images": 200}],
        outputs=["onnx", "pt2", "pt2_integers", "c"],
    )
    outcome, _ = run(folder)
    assert outcome.error is None, outcome.error
    report = report_of(folder)
    files = {file.format: file for file in report.files}
    assert report.integers is not None
    assert (report.integers.differing_logits, report.integers.overflows) == (0, 0)
    assert files["c"].accuracy == files["pt2"].accuracy == files["pt2_integers"].accuracy
    assert files["pt2"].max_abs_difference == files["pt2_integers"].max_abs_difference == 0
    assert files["onnx"].agreement_percent is not None
    assert files["onnx"].agreement_percent >= 99
    parts = options["groups"]
    (note,) = [note for note in files["onnx"].notes if "Winograd" in note]
    assert note.startswith(f"{parts} of the layers are Winograd convolutions in integers")
    # Twelve of sixteen positions: what is multiplied is what is in the weights, transforms count for nothing.
    pruned, quantized = report.steps
    assert report.after.multiplications == pruned.details["multiplications"]
    shapes = {layer["layer"]: layer["shape"] for layer in quantized.details["layers"]}
    winograd = [shape for name, shape in shapes.items() if name.startswith("conv2") or "input_group" in name]
    assert winograd == [[12 * 24, 12 // parts, 1, 1]] * parts
    assert {layer.name for layer in report.layers} == set(shapes)


def test_q9_precision_is_carried_to_the_integers(tmp_path: Path, model: Path) -> None:
    recipe: list[dict[str, Any]] = [
        {"kind": "prune_weights", "max_drop_pp": 2.0, "rate_step": 0.3},
        {"kind": "finetune", "epochs": 1, "batch_size": 32, "learning_rate": 0.001},
        {
            "kind": "assign_precision",
            "bits": [8, 4, 2],
            "max_drop_pp": 2.0,
            "learning": {"batch_size": 32},
            "controls": 2,
        },
        {"kind": "quantize_fixed_point", "calibration_images": 100},
    ]
    x, y = digits()
    folder = lay_out_job(
        tmp_path / "job",
        model,
        {"selection": {"x": x[900:], "y": y[900:]}},
        recipe=recipe,
        outputs=["onnx", "pt2", "c"],
    )
    outcome, _ = run(folder)
    assert outcome.error is None, outcome.error
    report = report_of(folder)
    assigned = {layer["layer"]: layer["bits"] for layer in report.steps[2].details["layers"]}
    assert {layer.name: layer.bits for layer in report.layers} == assigned
    assert {layer["layer"]: layer["weight_bits"] for layer in report.steps[3].details["layers"]} == assigned
    assert any(bits < 8 for bits in assigned.values())
    assert report.after.weight_bits == sum(layer.bits * layer.weights for layer in report.layers)
    pruned = {layer["layer"]: layer["zeros"] for layer in report.steps[0].details["layers"]}
    assert all(layer.weights - layer.nonzeros >= pruned[layer.name] for layer in report.layers)
    assert report.steps[2].predicted_change_pp is not None


def test_goal_is_searched_for_and_the_search_survives_an_interruption(tmp_path: Path, model: Path) -> None:
    x, y = digits()
    data = {"selection": {"x": x[900:], "y": y[900:]}}
    goal = {"max_accuracy_drop_pp": 1.0, "minimise": "bytes", "deadline_seconds": 3600}
    undisturbed, disturbed = (
        lay_out_job(tmp_path / name, model, data, recipe=[], goal=goal, outputs=["onnx"]) for name in ("one", "two")
    )
    outcome, progress = run(undisturbed)
    assert outcome.error is None, outcome.error
    assert [output.kind for output in outcome.outputs] == ["model", "report", "figure"]
    report = report_of(undisturbed)
    found = report.search
    assert found is not None
    assert found.ended == "exhausted"
    assert found.abandoned == ()
    assert report.provenance.recipe == found.candidates[found.delivered - 1].recipe
    assert report.files[0].size.bytes == found.candidates[found.delivered - 1].bytes
    allowed = [each for each in found.candidates if each.drop_bound_pp <= 1.0 + 1e-9]
    assert [each.number for each in found.candidates if each.meets_goal] == [each.number for each in allowed]
    assert report.files[0].size.bytes == min(each.bytes for each in allowed) < found.candidates[0].bytes
    assert found.delivered in found.front
    assert any("best so far" in (line.message or "") for line in progress)

    for words in ("Predicting what 3 bits", "Candidate 2: Quantizing", "Candidate 4: Quantizing"):
        with pytest.raises(_LostError):
            run_folder(disturbed, report_progress=_lose_at_words(words))
    outcome, progress = run(disturbed)
    assert outcome.error is None, outcome.error
    assert not any((line.message or "").startswith("Candidate 1:") for line in progress)  # it isn't tried again
    again = report_of(disturbed).search
    assert again is not None
    timeless = {"seconds": 0.0}
    assert [each.model_copy(update=timeless) for each in again.candidates] == [
        each.model_copy(update=timeless) for each in found.candidates
    ]
    for name in ("model.onnx", "front.svg"):
        assert (undisturbed / "outputs" / name).read_bytes() == (disturbed / "outputs" / name).read_bytes()


def test_search_ends_at_its_deadline_and_the_verdict_says_what_was_missed(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = digits()
    goal = {"max_accuracy_drop_pp": 1.0, "constraints": {"max_bytes": 1000}, "deadline_seconds": 10}
    folder = lay_out_job(
        tmp_path / "job", model, {"selection": {"x": x[900:], "y": y[900:]}}, recipe=[], goal=goal, outputs=["onnx"]
    )

    def elapsed(_: Clock) -> float:
        """Time is up once the original and two candidates were measured."""
        return 11.0 if len(list(folder.glob("work/checkpoints/search/*/candidate.json"))) == 3 else 1.0

    monkeypatch.setattr(Clock, "elapsed", property(elapsed))
    outcome, _ = run(folder)
    assert outcome.error is None, outcome.error
    report = report_of(folder)
    assert report.search is not None
    assert report.search.ended == "deadline"
    assert len(report.search.candidates) == 2
    assert report.search.delivered in (1, 2)
    assert not report.verdict.limits_kept
    size = report.files[0].size.bytes
    assert f"the file has {size:,} bytes, which is {size - 1000:,} more than 1,000" in report.verdict.sentence


def test_choice_is_confirmed_on_images_of_its_own_and_the_same_after_an_interruption(
    tmp_path: Path, model: Path
) -> None:
    goal = {"max_accuracy_drop_pp": 3.0, "minimise": "bytes", "deadline_seconds": 3600}
    undisturbed, disturbed = (
        lay_out_job(tmp_path / name, model, held_out(), recipe=[], goal=goal, outputs=["onnx"])
        for name in ("one", "two")
    )
    outcome, _ = run(undisturbed)
    assert outcome.error is None, outcome.error
    found = report_of(undisturbed).search
    assert found is not None
    assert found.selection_images is not None
    assert found.selection_images + found.confirming_images == 500
    assert found.confirming_images == pytest.approx(500 / 3, abs=5)
    assert not any("too few to keep some back" in warning for warning in report_of(undisturbed).warnings)
    delivered = found.candidates[found.delivered - 1]
    assert delivered.meets_goal
    assert delivered.confirming_drop_bound_pp is not None
    assert max(delivered.drop_bound_pp, delivered.confirming_drop_bound_pp) <= 3.0

    for words in ("Candidate 1: Quantizing", "Candidate 2: Quantizing"):
        with pytest.raises(_LostError):
            run_folder(disturbed, report_progress=_lose_at_words(words))
    outcome, _ = run(disturbed)
    assert outcome.error is None, outcome.error
    again = report_of(disturbed).search
    assert again is not None
    timeless = {"seconds": 0.0}
    assert [each.model_copy(update=timeless) for each in again.candidates] == [
        each.model_copy(update=timeless) for each in found.candidates
    ]
    assert (again.delivered, again.unconfirmed) == (found.delivered, found.unconfirmed)
    for name in ("model.onnx", "front.svg"):
        assert (undisturbed / "outputs" / name).read_bytes() == (disturbed / "outputs" / name).read_bytes()

    # The same search, but for what the confirming images say of its choice.
    for sealed in (disturbed / "work" / "checkpoints" / "search").glob("*/confirming.json"):
        if json.loads((sealed.parent / "candidate.json").read_bytes())["number"] == delivered.number:
            sealed.write_text('{"drop_pp": 4.0, "drop_bound_pp": 5.0}')
    outcome, _ = run(disturbed)
    assert outcome.error is None, outcome.error
    report = report_of(disturbed)
    assert report.search is not None
    assert delivered.number in report.search.unconfirmed
    assert report.search.delivered != delivered.number
    refused = report.search.candidates[delivered.number - 1]
    assert (refused.meets_goal, refused.confirming_drop_pp) == (False, 4.0)
    assert refused.drop_bound_pp == delivered.drop_bound_pp <= 3.0
    instead = ([report.search.original, *report.search.candidates])[report.search.delivered]
    assert instead.meets_goal
    assert report.provenance.recipe == instead.recipe
    assert report.files[0].size.bytes > delivered.bytes


def test_search_on_few_images_says_that_none_confirm_its_choice(tmp_path: Path, model: Path) -> None:
    folder = lay_out_search(tmp_path / "job", model)
    (folder / "finish").touch()
    outcome, _ = run(folder)
    assert outcome.error is None, outcome.error
    report = report_of(folder)
    assert report.search is not None
    assert (report.search.selection_images, report.search.confirming_images) == (179, 0)
    assert any("The 179 selection images are too few to keep some back" in warning for warning in report.warnings)


def lay_out_search(folder: Path, model: Path) -> Path:
    """A job that searches for a small file, for an hour if it must."""
    x, y = digits()
    goal = {"max_accuracy_drop_pp": 1.0, "minimise": "bytes", "deadline_seconds": 3600}
    return lay_out_job(
        folder, model, {"selection": {"x": x[900:], "y": y[900:]}}, recipe=[], goal=goal, outputs=["onnx"]
    )


def test_search_that_is_finished_early_delivers_the_best_so_far(tmp_path: Path, model: Path) -> None:
    folder = lay_out_search(tmp_path / "job", model)

    def finish(progress: Progress) -> None:
        if "(best so far: " in (progress.message or ""):
            (folder / "finish").touch()

    outcome = run_folder(folder, report_progress=finish)
    assert outcome.error is None, outcome.error
    report = report_of(folder)
    assert report.search is not None
    assert report.search.ended == "finished"
    assert report.search.delivered == report.search.candidates[0].number == 1
    assert report.files[0].size.bytes == report.search.candidates[0].bytes
    assert report.provenance.recipe == report.search.candidates[0].recipe


def test_search_is_finished_in_the_midst_of_an_evaluation(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only between layers: the wish comes when the last layer of the second candidate has been quantized."""
    folder, answered = lay_out_search(tmp_path / "job", model), Bench.selection_right
    is_under_way, evaluated = False, list[ModelGraph]()

    def tell(line: Progress) -> None:
        nonlocal is_under_way
        is_under_way = (line.message or "").startswith("Candidate 2: Quantizing")

    def answer(bench: Bench, graph: ModelGraph) -> Right:
        if is_under_way and graph is not bench.uploaded:
            (folder / "finish").touch()
        found = answered(bench, graph)
        if is_under_way and graph is not bench.uploaded:
            evaluated.append(graph)
        return found

    monkeypatch.setattr(Bench, "selection_right", answer)
    monkeypatch.setattr("workers.search.search.FINISH_CHECK_SECONDS", 0.0)
    outcome = run_folder(folder, report_progress=tell)
    assert outcome.error is None, outcome.error
    report = report_of(folder)
    assert report.search is not None
    assert (report.search.ended, report.search.delivered) == ("finished", 1)
    assert evaluated == []
    assert report.files[0].size.bytes == report.search.candidates[0].bytes


def test_search_that_is_finished_before_it_found_anything_gives_back_the_uploaded_model(
    tmp_path: Path, model: Path
) -> None:
    folder = lay_out_search(tmp_path / "job", model)
    (folder / "finish").touch()
    outcome, _ = run(folder)
    assert outcome.error is None, outcome.error
    report = report_of(folder)
    assert report.search is not None
    assert (report.search.ended, report.search.candidates, report.search.delivered) == ("finished", (), 0)
    assert report.change is not None
    assert report.change.change_pp == 0
    assert report.verdict.limits_kept
    assert report.verdict.sentence.endswith(
        "The search was finished before it had measured any recipe: this is the uploaded model."
    )


def test_interrupted_search_that_is_then_finished_delivers_what_the_first_attempt_found(
    tmp_path: Path, model: Path
) -> None:
    folder = lay_out_search(tmp_path / "job", model)
    with pytest.raises(_LostError):
        run_folder(folder, report_progress=_lose_at_words("Candidate 2:"))
    (folder / "finish").touch()
    outcome, progress = run(folder)
    assert outcome.error is None, outcome.error
    found = report_of(folder).search
    assert found is not None
    assert (found.ended, found.delivered, len(found.candidates)) == ("finished", 1, 1)
    assert not any("Candidate" in (line.message or "") for line in progress)


class _LostError(BaseException):
    """Ends a job as suddenly as a signal does: nothing in it catches this."""


def _lose_at_words(words: str) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if words in (progress.message or ""):
            raise _LostError

    return report


def test_f2_and_f10_integers_learn_from_training_images(tmp_path: Path, model: Path) -> None:
    step = {
        "kind": "quantize_fixed_point",
        "weight_bits": 3,
        "rule": "pdf_sqnr",
        "statistics": "training",
        "pretraining": {"epochs": 1, "learning_rate": 0.001},
        "training": {"epochs": 2, "batch_size": 32},
    }
    x, y = digits()
    folder = lay_out_job(
        tmp_path / "job", model, {"selection": {"x": x[900:], "y": y[900:]}}, recipe=[step], outputs=["pt2"]
    )
    outcome, _ = run(folder)
    assert outcome.error is None, outcome.error
    report = report_of(folder)
    training = report.steps[0].details["training"]
    assert training["is_kept"] == (training["accuracy_after"] >= training["accuracy_before"])
    assert report.steps[0].details["channels"]
    assert report.integers is not None
    assert report.integers.weight_bits == 3


def test_missed_limit_is_in_the_verdict_and_the_best_result_is_delivered(tmp_path: Path, model: Path) -> None:
    folder = lay_out_job(
        tmp_path / "job",
        model,
        held_out(),
        recipe=[{"kind": "prune_weights", "max_drop_pp": 40.0, "rate_step": 0.3, "reference": "layer_start"}],
        limits={"max_accuracy_drop_pp": 0.5},
        outputs=["onnx"],
    )
    outcome, _ = run(folder)
    assert outcome.error is None
    assert (folder / "outputs" / "model.onnx").exists()
    verdict = report_of(folder).verdict
    assert not verdict.limits_kept
    assert "more than the limit of 0.50 pp" in verdict.missed[0]
    assert verdict.missed[0] in verdict.sentence


def test_file_that_was_changed_after_writing_fails_the_job(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = delivery.write_onnx

    def write_and_tamper(graph: Any, path: Path, **options: Any) -> None:
        real(graph, path, **options)
        if path.parent.name == "outputs":
            import onnx
            from onnx import numpy_helper

            written = onnx.load(path)
            bias = next(tensor for tensor in written.graph.initializer if tensor.dims == [10])
            bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.5), bias.name))
            onnx.save(written, path)

    monkeypatch.setattr(delivery, "write_onnx", write_and_tamper)
    folder = lay_out_job(tmp_path / "job", model, held_out(), outputs=["onnx"])
    outcome, _ = run(folder)
    assert outcome.error is not None
    assert outcome.error.code == ErrorCode.VERIFICATION_FAILED
    assert "model.onnx differs from the network in memory" in outcome.error.message
    assert outcome.outputs == ()


def test_checkpoint_that_was_changed_is_ignored(tmp_path: Path, model: Path) -> None:
    folder = lay_out_job(tmp_path / "job", model, held_out(), outputs=["onnx"])
    run(folder)
    first = (folder / "outputs" / "model.onnx").read_bytes()
    checkpoint = folder / "work" / "checkpoints" / "step-0.pt2"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    outcome, _ = run(folder)
    assert outcome.error is None
    assert (folder / "outputs" / "model.onnx").read_bytes() == first


@pytest.mark.parametrize(
    ("changes", "pointer", "message"),
    [
        ({"preprocess": None}, "/preprocess", "stored as uint8"),
        (
            {"recipe": [{"kind": "prune_weights", "exclude": ["conv3"]}]},
            "/recipe/0/exclude/0",
            "no layer called 'conv3'",
        ),
        ({"recipe": [{"kind": "finetune"}]}, "/data/train", "no dataset plays the role train"),
    ],
)
def test_recipe_that_cannot_run_is_refused_before_anything_is_computed(
    tmp_path: Path, model: Path, changes: dict[str, Any], pointer: str, message: str
) -> None:
    folder = lay_out_job(tmp_path / "job", model, held_out(), **changes)
    outcome, progress = run(folder)
    assert outcome.error is not None
    assert outcome.error.code == ErrorCode.RECIPE_REFUSED
    assert outcome.error.where["pointer"] == pointer
    assert message in outcome.error.message
    assert {line.phase for line in progress} == {"reading"}


def test_report_is_canonical(tmp_path: Path, model: Path) -> None:
    folder = lay_out_job(tmp_path / "job", model, held_out(), outputs=["onnx"])
    run(folder)
    text = (folder / "outputs" / "report.json").read_text()
    assert text == json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False, indent=1)
