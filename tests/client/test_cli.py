"""The command `winnow` against Winnow's real service: what it prints, where, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from winnow import Client, Document
from winnow.cli.main import main
from winnow.cli.tables import report_view

from tests.client.played_worker import PlayedWorker
from tests.client.sample_report import sample_report, sample_search
from tests.client.service_process import ServiceProcess

pytestmark = pytest.mark.usefixtures("winnow")

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def user(service: ServiceProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user in a folder with a model and some data, whose environment names the service."""
    monkeypatch.setenv("WINNOW_URL", service.url)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    for name in ("net.onnx", "train.npz", "selection.npz", "test.npz"):
        Path(name).write_bytes(os.urandom(1000))
    Path("pickle.pt").write_bytes(b"\x80\x04pickle")


def uploaded(kind: str, name: str, capsys: Output) -> str:
    assert main(["upload", kind, name, "--json"]) == 0
    identifier = json.loads(capsys.readouterr().out)["id"]
    assert isinstance(identifier, str)
    return identifier


def finished_job(capsys: Output) -> str:
    assert main(["submit", "--model", "net.onnx", "--data", "selection.npz", "--scale", "1/16", "--prune"]) == 0
    job_id = capsys.readouterr().out.strip()
    assert main(["follow", job_id]) == 0
    capsys.readouterr()
    return job_id


def test_an_upload_prints_what_a_worker_found(capsys: Output) -> None:
    assert main(["upload", "model", "net.onnx"]) == 0
    assert re.fullmatch(
        r"mdl_\w{26}  net\.onnx: 2 layers, 740 parameters, 7,000 multiply-adds\n", capsys.readouterr().out
    )
    assert main(["upload", "data", "selection.npz"]) == 0
    assert "selection.npz: 200 images of 1×8×8 float32, labelled" in capsys.readouterr().out


def test_a_rejected_upload_ends_with_1_and_the_reason(capsys: Output) -> None:
    assert main(["upload", "model", "pickle.pt"]) == 1
    assert capsys.readouterr().err.endswith("was rejected: It is a pickle.\nhint: Export it again.\n")


def test_a_file_that_is_not_there_is_wrong_usage(capsys: Output) -> None:
    assert main(["upload", "model", "nowhere.onnx"]) == 2
    assert capsys.readouterr().err == "winnow: there is no file nowhere.onnx\n"


def test_compress_does_everything(capsys: Output) -> None:
    assert main(["compress", "net.onnx", "--data", "selection.npz", "--scale", "1/16", "--max-drop", "1.5"]) == 0
    printed = capsys.readouterr()
    assert Path("net-compressed/model.onnx").read_bytes() == b"a smaller model" * 100_000
    assert Path("net-compressed/report.json").is_file()
    assert printed.out.startswith("The file is 2.5 times smaller.\n")
    assert "saved in net-compressed" in printed.err


def test_compress_prints_one_json_document(capsys: Output) -> None:
    assert main(["compress", "net.onnx", "--data", "selection.npz", "--scale", "1/16", "--prune", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["job"]["state"] == "succeeded"
    assert document["files"] == ["net-compressed/model.onnx", "net-compressed/report.json"]
    assert document["report"]["version"] == 1


def test_a_report_is_shown_in_tables(capsys: Output) -> None:
    job_id = finished_job(capsys)
    assert main(["report", job_id]) == 0
    lines = table_lines(capsys.readouterr().out)
    assert "accuracy (test, n=400) | 99.00 % | 98.00 % | -1.00 pp [-2.25, +0.25]" in lines
    assert "model.onnx, bytes | 50,000 | 20,000 | -60.0%" in lines
    assert "non-zero parameters | 9,000 | 3,600 | -60.0%" in lines
    assert "multiplications by non-zeros | 500,000 | 123,456 | -75.3%" in lines
    assert "model.onnx | 20,000 | 98.00 % | 99.75 % | 0.111 | 0.122 | 1.10×" in lines
    assert "prune_weights | 12.3 | 99.00 % | 98.00 % | -0.75 pp | -1.00 pp" in lines
    assert "- model.onnx: Zeros don't speed dense kernels up." in lines
    assert "- test data: Class 3 is rare." in lines


def table_lines(printed: str) -> list[str]:
    return [re.sub(r"  +", " | ", line.strip()) for line in printed.splitlines()]


def test_a_search_is_shown_with_its_front_first_and_what_was_delivered(capsys: Output) -> None:
    job_id = finished_job(capsys)
    assert main(["report", job_id]) == 0
    lines = table_lines(capsys.readouterr().out)
    first = lines.index("Search: 4 recipes tried in 61 s, until time was up; drops on selection images")
    assert lines[first + 1 : first + 7] == [
        "tried | steps | drop | bytes | median ms | bit operations",
        "0 | the uploaded model | 0.00 pp | 40,000 | 0.321 | 64,000,000",
        "3 | quantize_fixed_point 8 bits | 0.25 pp | 37,000 | 0.321 | 64,000,000 | front",
        "4 | prune_weights 0.5 pp, then quantize_fixed_point 8 bits, 4 in 2 layers, 2 in 1 layer | 0.75 pp | 36,000 | 0.321 "
        "| 64,000,000 | delivered, front",
        "1 | quantize_fixed_point 8 bits, 4 in 2 layers, 2 in 1 layer | 9.50 pp | 39,000 | 0.321 | 64,000,000 | misses the goal",
        "2 | quantize_fixed_point 8 bits, 4 in 2 layers, 2 in 1 layer | 9.50 pp | 38,000 | 0.321 | 64,000,000 | misses the goal",
    ]
    assert "- search: prune_winograd: no layer has 3x3 filters." in lines


def test_a_search_with_confirming_images_shows_what_they_say() -> None:
    search = sample_search()
    lost = {3: 0.5, 4: 1.75}
    candidates = tuple(
        each.model_copy(update={"confirming_drop_pp": lost.get(each.number), "meets_goal": each.number == 3})
        for each in search.candidates
    )
    search = search.model_copy(
        update={"candidates": candidates, "delivered": 3, "confirming_images": 667, "unconfirmed": (4,)}
    )
    console = Console(width=200)
    with console.capture() as captured:
        console.print(report_view(sample_report().model_copy(update={"search": search}).model_dump(mode="json")))
    lines = table_lines(captured.get())
    heading = (
        "Search: 4 recipes tried in 61 s, until time was up; drops on selection images, of which 667 were kept back to "
    )
    heading += "confirm"
    first = lines.index(heading)
    assert lines[first + 1] == "tried | steps | drop | confirming | bytes | median ms | bit operations"
    rows = {line.split(" | ")[0]: line.split(" | ") for line in lines[first + 2 : first + 7]}
    assert rows["3"][2:4] == ["0.25 pp", "0.50 pp"]
    assert rows["3"][-1] == "delivered, front"
    assert rows["4"][2:4] == ["0.75 pp", "1.75 pp"]
    assert rows["4"][-1] == "front, not confirmed"
    assert rows["1"][2:4] == ["9.50 pp", "–"]
    assert rows["1"][-1] == "misses the goal"


def test_a_long_search_is_cut_to_a_page_that_has_what_was_delivered() -> None:
    report = sample_report().model_copy(update={"search": sample_search(others=100)})
    console = Console(width=200)
    with console.capture() as captured:
        console.print(report_view(report.model_dump(mode="json")))
    lines = table_lines(captured.get())
    assert "and 88 more in the report as JSON" in lines
    rows = [line for line in lines if line.endswith(("front", "misses the goal"))]
    assert [row.split(" | ")[0] for row in rows] == ["101", "102", *map(str, range(1, 13))]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"kind": "assign_precision", "bits": [8, 4], "max_drop_pp": 0.5}, "assign_precision 8/4 bits"),
        ({"kind": "prune_weights", "stop": {"target_sparsity": 0.6}, "max_drop_pp": 1.0}, "prune_weights 60% zeros"),
        ({"kind": "prune_winograd", "rate": 0.25, "training": {"epochs": 1}}, "prune_winograd 25% of positions + training"),
        ({"kind": "finetune", "epochs": 2}, "finetune 2 epochs"),
        ({"kind": "something_new"}, "something_new"),
    ],
)  # fmt: skip
def test_a_step_is_told_by_what_says_most(step: Document, words: str) -> None:
    report = sample_report().model_dump(mode="json")
    report["search"]["original"]["recipe"] = [step]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(report_view(report))
    assert any(line.startswith(f"0 | {words} | ") for line in table_lines(captured.get()))


def test_a_report_without_a_search_shows_none() -> None:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(report_view(sample_report().model_copy(update={"search": None}).model_dump(mode="json")))
    assert "recipes tried" not in captured.get()


def test_a_missed_limit_ends_with_5_and_is_named(worker: PlayedWorker, capsys: Output) -> None:
    worker.keeps_limits = False
    assert main(["compress", "net.onnx", "--data", "selection.npz", "--scale", "1/16", "--prune"]) == 5
    assert "missed: the accuracy fell by 1.00 pp" in capsys.readouterr().out


def test_a_failed_job_ends_with_1_and_says_why(worker: PlayedWorker, capsys: Output) -> None:
    worker.fails = True
    words = ["submit", "--model", "net.onnx", "--data", "selection.npz", "--scale", "1/16", "--prune", "--follow"]
    assert main(words) == 1
    assert "failed: The runner fell silent." in capsys.readouterr().out


def test_progress_without_a_terminal_is_plain_lines(capsys: Output) -> None:
    words = ["submit", "--model", "net.onnx", "--data", "selection.npz", "--scale", "1/16", "--prune", "--follow"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "uploading net.onnx\n" in said
    assert "100%  succeeded\n" in said
    assert "\x1b" not in said


def test_following_in_json_is_a_line_an_event(capsys: Output) -> None:
    job_id = finished_job(capsys)
    assert main(["follow", job_id, "--json"]) == 0
    *events, end = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"]["seq"] for line in events] == list(range(1, 7))
    assert end["job"]["id"] == job_id


def test_a_recipe_file_says_what_flags_leave_open(capsys: Output) -> None:
    Path("recipe.toml").write_text(
        "seed = 7\npreprocess = { scale = 0.0625 }\n"
        "[data]\ntrain = 'train.npz'\nselection = 'selection.npz'\ntest = 'test.npz'\n"
        "[[recipe]]\nkind = 'prune_weights'\nmax_drop_pp = 0.5\n[[recipe]]\nkind = 'finetune'\nepochs = 1\n"
    )
    assert main(["submit", "--model", "net.onnx", "--recipe", "recipe.toml", "--limit", "2", "--json"]) == 0
    request = json.loads(capsys.readouterr().out)["request"]
    assert [step["kind"] for step in request["recipe"]] == ["prune_weights", "finetune"]
    assert (request["seed"], request["limits"]["max_accuracy_drop_pp"]) == (7, 2.0)
    assert len({*request["data"].values()}) == 3


def test_a_goal_takes_one_command(winnow: Client, capsys: Output) -> None:
    words = ["--data", "selection.npz", "--scale", "1/16", "--max-drop", "1.0", "--minimise", "latency"]
    assert main(["compress", "net.onnx", *words]) == 0
    assert "saved in net-compressed" in capsys.readouterr().err
    request = next(winnow.jobs()).document["request"]
    assert (request["goal"]["minimise"], request["goal"]["max_accuracy_drop_pp"], request["recipe"]) == (
        "latency",
        1.0,
        [],
    )


def test_flags_say_all_of_a_goal(capsys: Output) -> None:
    words = ["--max-bytes", "20000", "--max-latency", "1/2", "--search-seconds", "60", "--minimise", "bytes"]
    words += ["--confidence", "0.9"]
    assert main(["submit", "--data", "selection.npz", "net.onnx", "--scale", "1/16", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["request"]["goal"] == {
        "max_accuracy_drop_pp": 1.0,
        "minimise": "bytes",
        "constraints": {"max_bytes": 20_000, "max_latency_ms": 0.5},
        "confidence": 0.9,
        "deadline_seconds": 60,
    }


def test_flags_say_what_a_goal_in_a_file_leaves_open(capsys: Output) -> None:
    Path("goal.toml").write_text("[goal]\nminimise = 'operations'\nconstraints = { max_bytes = 20000 }\n")
    words = ["--recipe", "goal.toml", "--max-drop", "0.5", "--max-latency", "2"]
    assert main(["submit", "net.onnx", "--data", "selection.npz", "--scale", "1/16", *words, "--json"]) == 0
    goal = json.loads(capsys.readouterr().out)["request"]["goal"]
    assert (goal["minimise"], goal["max_accuracy_drop_pp"]) == ("operations", 0.5)
    assert goal["constraints"] == {"max_bytes": 20_000, "max_latency_ms": 2.0}


def test_a_check_says_whether_a_goal_looks_reachable(capsys: Output) -> None:
    words = ["check", "net.onnx", "--data", "selection.npz", "--scale", "1/16", "--minimise", "bytes"]
    assert main(words) == 0
    assert "reachable: yes\nbytes: 410 to 944\n" in capsys.readouterr().out
    assert main([*words, "--max-bytes", "100"]) == 0
    said = capsys.readouterr().out
    assert (
        "reachable: no\nwhy not reachable: max_bytes is 100, but even with 2-bit weights the file has about 410 bytes.\n"
        in said
    )


def test_steps_of_flags_come_in_the_order_in_which_they_make_sense(capsys: Output) -> None:
    words = ["--weight-bits", "4", "--finetune-epochs", "1", "--max-drop", "0.5", "--format", "onnx", "--format", "c"]
    data = ["--train", "train.npz", "--selection", "selection.npz", "--scale", "1/16"]
    assert main(["submit", "--model", "net.onnx", *data, *words, "--json"]) == 0
    request = json.loads(capsys.readouterr().out)["request"]
    assert [step["kind"] for step in request["recipe"]] == ["prune_weights", "finetune", "quantize_fixed_point"]
    assert request["recipe"][2]["weight_bits"] == 4
    assert request["outputs"] == ["onnx", "c"]


@pytest.mark.parametrize(
    ("flags", "step"),
    [
        (["--prune-winograd"], {}),
        (
            ["--winograd-drop", "0.5", "--winograd-tile", "4", "--winograd-reduction", "3"],
            {"max_drop_pp": 0.5, "tile": 4, "target_reduction": 3.0},
        ),
        (["--winograd-tile", "fastest"], {"tile": "fastest"}),
    ],
)
def test_flags_prune_winograd_convolutions(capsys: Output, flags: list[str], step: Document) -> None:
    data = ["--train", "train.npz", "--selection", "selection.npz", "--scale", "1/16"]
    words = ["--model", "net.onnx", *data, "--prune", "--finetune-epochs", "1", *flags]
    assert main(["submit", *words, "--json"]) == 0
    recipe = json.loads(capsys.readouterr().out)["request"]["recipe"]
    assert [one["kind"] for one in recipe] == ["prune_weights", "prune_winograd", "finetune"]
    assert recipe[1].items() >= step.items()


def test_ids_stand_for_files(capsys: Output) -> None:
    model, data = uploaded("model", "net.onnx", capsys), uploaded("data", "selection.npz", capsys)
    words = ["--model", model, "--data", data, "--scale", "1/16", "--prune"]
    assert main(["check", *words]) == 0
    assert "This job can run.\nprune_weights may change conv\n" in capsys.readouterr().out


def test_a_check_that_fails_names_what_is_missing(capsys: Output) -> None:
    words = ["--model", "net.onnx", "--test", "test.npz", "--scale", "1/16", "--prune"]
    assert main(["check", *words]) == 3
    said = capsys.readouterr().out
    assert said.startswith("This job can't run:") and "selection" in said


def test_a_refused_job_ends_with_3_and_the_reason(capsys: Output) -> None:
    words = ["--model", "net.onnx", "--data", "selection.npz", "--scale", "1/16", "--max-drop", "-1"]
    assert main(["submit", *words]) == 3
    assert "#/recipe/0/max_drop_pp: Input should be greater than 0" in capsys.readouterr().err


def test_an_unknown_job_ends_with_3(capsys: Output) -> None:
    assert main(["report", "job_00000000000000000000000000"]) == 3
    assert "No such resource (404)" in capsys.readouterr().err


def test_lists_name_what_is_there(capsys: Output) -> None:
    job_id = finished_job(capsys)
    assert main(["jobs"]) == main(["models"]) == main(["datasets"]) == 0
    printed = capsys.readouterr().out
    assert job_id in printed and "net.onnx" in printed and "selection.npz" in printed
    assert main(["jobs", "--json"]) == 0
    assert job_id in [job["id"] for job in json.loads(capsys.readouterr().out)]


def test_steps_are_listed_with_their_defaults(capsys: Output) -> None:
    assert main(["steps"]) == 0
    printed = capsys.readouterr().out
    assert "prune_weights" in printed and "max_drop_pp=1.0" in printed


def test_a_download_goes_to_a_folder_named_after_the_job(capsys: Output) -> None:
    job_id = finished_job(capsys)
    assert main(["download", job_id]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{job_id}/model.onnx", f"{job_id}/report.json"]
    assert Path(job_id, "model.onnx").stat().st_size == 1_500_000


@pytest.mark.parametrize("name", ["..", "a/b", "..\\evil"])
def test_an_artifact_is_never_written_elsewhere(worker: PlayedWorker, capsys: Output, name: str) -> None:
    worker.delivers = {name: b"evil"}
    job_id = finished_job(capsys)
    assert main(["download", job_id, "-o", "out"]) == 2
    assert "is no name of a file" in capsys.readouterr().err
    assert not [path for path in Path.cwd().rglob("*") if path.is_file() and path.read_bytes() == b"evil"]


def test_retry_and_cancel_say_what_became_of_the_job(worker: PlayedWorker, capsys: Output) -> None:
    job_id = finished_job(capsys)
    worker.hold()
    assert main(["retry", job_id]) == 0
    again = capsys.readouterr().out.strip()
    assert again != job_id
    assert main(["cancel", again]) == 0
    assert re.fullmatch(rf"{again} is (cancelling|cancelled)\n", capsys.readouterr().out)
    assert main(["follow", again]) == 1


def test_finish_says_what_becomes_of_the_search(worker: PlayedWorker, capsys: Output) -> None:
    worker.hold()
    assert main(["submit", "net.onnx", "--data", "selection.npz", "--scale", "1/16", "--minimise", "bytes"]) == 0
    job_id = capsys.readouterr().out.strip()
    assert main(["finish", job_id]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(rf"{job_id} is (queued|running), and ends with the best that it has found\n", said)
    assert main(["follow", job_id]) == 0
    capsys.readouterr()
    assert main(["finish", job_id]) == 0
    assert capsys.readouterr().out == f"{job_id} is succeeded\n"


def test_finishing_a_job_that_is_no_search_ends_with_3_and_says_what_stops_it(capsys: Output) -> None:
    job_id = finished_job(capsys)
    assert main(["finish", job_id]) == 3
    said = capsys.readouterr().err
    assert "only a search" in said
    assert "cancel" in said


def test_without_a_server_it_ends_with_4_and_says_how_to_start_one(capsys: Output) -> None:
    assert main(["--url", "http://127.0.0.1:1", "jobs"]) == 4
    assert "start one with `winnow-server up`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["submit", "--model", "net.onnx"], "what shall be done?"),
        (["submit", "--prune"], "which model?"),
        (["submit", "net.onnx", "--model", "net.onnx", "--prune"], "which model?"),
        (
            ["submit", "net.onnx", "--minimise", "bytes", "--prune", "--weight-bits", "4"],
            "leave out --prune, --weight-bits",
        ),
        (["submit", "net.onnx", "--minimise", "bytes", "--winograd-tile", "4"], "leave out --winograd-tile"),
        (["submit", "net.onnx", "--minimise", "bytes", "--recipe", "steps.json"], "steps.json says the steps"),
        (
            ["submit", "net.onnx", "--max-bytes", "9", "--search-seconds", "9"],
            "--max-bytes, --search-seconds belong to a goal",
        ),
        (["submit", "--model", "nowhere.onnx", "--prune"], "neither a model's id nor a file"),
        (["submit", "--model", "net.onnx", "--learning-rate", "1"], "--learning-rate needs --finetune-epochs"),
        (["submit", "--model", "net.onnx", "--recipe", "net.onnx"], "net.onnx is no JSON"),
        (["submit", "--model", "net.onnx", "--recipe", "nowhere.json"], "can't read nowhere.json"),
    ],
)
def test_wrong_usage_ends_with_2_before_anything_is_sent(
    winnow: Client, capsys: Output, words: list[str], reason: str
) -> None:
    Path("steps.json").write_text('[{"kind": "prune_weights"}]')
    before = len(list(winnow.models()))
    assert main(words) == 2
    assert reason in capsys.readouterr().err
    assert len(list(winnow.models())) == before


@pytest.mark.parametrize(
    "flags",
    [["--scale", "a third"], ["--mean", "1,,2"], ["--metadata", "team"], ["--threads", "x"], ["--winograd-tile", "3"]],
)
def test_flags_that_cant_be_read_end_with_2(capsys: Output, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["submit", "--model", "net.onnx", "--prune", *flags])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("flags", "end", "offers"),
    [
        (["--prune"], "succeeded", ["winnow follow", "winnow cancel"]),
        (["--minimise", "bytes"], "succeeded", ["winnow follow", "winnow cancel", "winnow finish"]),
        (["--prune", "--cancel-on-interrupt"], "cancelled", []),
    ],
    ids=["recipe", "goal", "cancelled"],
)
def test_ctrl_c_leaves_the_job_running_unless_told_otherwise(
    winnow: Client, worker: PlayedWorker, flags: list[str], end: str, offers: list[str]
) -> None:
    worker.hold()
    words = [
        "submit",
        "--model",
        "net.onnx",
        "--data",
        "selection.npz",
        "--scale",
        "1/16",
        "--follow",
        *flags,
    ]
    process = subprocess.Popen([sys.executable, "-m", "winnow", *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "prune_weights" not in said:
        said += (line := process.stderr.readline())
        assert line, said
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130
    job = next(winnow.jobs())
    assert re.findall(f"`(winnow [a-z]+) {job.id}`", said) == offers
    assert offers or f"cancelled {job.id}" in said
    worker.lift()
    assert winnow.wait(job.id).state == end


def test_output_may_be_cut_short_by_its_reader() -> None:
    command = f"{sys.executable} -m winnow steps | head -c 1"
    started = time.monotonic()
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert time.monotonic() - started < 20
