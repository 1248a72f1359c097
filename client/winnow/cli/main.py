"""The commands' flags, and how each command ends.

Exit codes: 0 done · 1 the job failed or was cancelled, or a file was rejected or damaged · 2 wrong usage ·
3 the server refused the request · 4 no server · 5 the job succeeded but a limit was missed · 130 interrupted
"""

import argparse
import os
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from rich.console import Console

from winnow.cli import commands
from winnow.cli.commands import Command, ExitCode, Session
from winnow.client import DEFAULT_URL, Client
from winnow.errors import ApiProblem, ConnectionLost, DigestMismatch, NoServer, UploadRejected, WinnowError


def main(words: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code."""
    arguments = build_parser().parse_args(words)
    out, progress = Console(), Console(stderr=True)
    try:
        with Client(arguments.url) as client:
            run: Command = arguments.run
            return run(Session(client, out, progress, as_json=arguments.json), arguments)
    except WinnowError as error:
        progress.print(f"winnow: {error}", markup=False, highlight=False, soft_wrap=True)
        return _exit_code(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


def _exit_code(error: WinnowError) -> ExitCode:
    match error:
        case ApiProblem():
            return ExitCode.REFUSED
        case NoServer() | ConnectionLost():
            return ExitCode.NO_SERVER
        case UploadRejected() | DigestMismatch():
            return ExitCode.JOB_FAILED
        case _:
            return ExitCode.USAGE


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="winnow",
        description="Compress trained CNNs with a Winnow server.",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--url", default=os.environ.get("WINNOW_URL", DEFAULT_URL), help="server; default: $WINNOW_URL or %(default)s"
    )
    everywhere = argparse.ArgumentParser(add_help=False)
    everywhere.add_argument("--json", action="store_true", help="print JSON on standard output, for programs")
    following = argparse.ArgumentParser(add_help=False)
    following.add_argument(
        "--cancel-on-interrupt", action="store_true", help="cancel the job on Ctrl-C, which else lets it go on"
    )
    names = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, run: Command, help_text: str, *parents: argparse.ArgumentParser, job: bool = False
    ) -> argparse.ArgumentParser:
        command = names.add_parser(name, help=help_text, description=help_text, parents=[everywhere, *parents])
        command.set_defaults(run=run)
        if job:
            command.add_argument("job", metavar="JOB")
        return command

    asking = _request_parser()
    compress = add("compress", commands.compress, "upload, compress, download and report in one go", asking, following)
    compress.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: MODEL-compressed")
    upload = add("upload", commands.upload, "upload a model or a dataset")
    upload.add_argument("kind", choices=("model", "data"))
    upload.add_argument("file", type=Path, metavar="FILE")
    upload.add_argument("--no-wait", dest="wait", action="store_false", help="don't wait until a worker has read it")
    add("models", commands.models, "list the models")
    add("datasets", commands.datasets, "list the datasets")
    add("jobs", commands.jobs, "list the jobs")
    add("steps", commands.steps, "list the steps that a recipe can have")
    add("check", commands.check, "say whether a job could run, without starting it", asking)
    submit = add("submit", commands.submit, "start a job", asking, following)
    retry = add("retry", commands.retry, "start a job again, as a new one", following, job=True)
    for command in (submit, retry):
        command.add_argument("--follow", action="store_true", help="show the job until it has ended")
    add("follow", commands.follow, "show a job until it has ended", following, job=True)
    add("cancel", commands.cancel, "stop a job and throw away what it has done", job=True)
    add("finish", commands.finish, "end a search early, with the best that it has found", job=True)
    download = add("download", commands.download, "save what a job delivered", job=True)
    download.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: a folder named after the job")
    add("report", commands.report, "show a finished job's report", job=True)
    return parser


def _request_parser() -> argparse.ArgumentParser:
    """The flags of which `requests.request_of` makes a job."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("named_model", nargs="?", metavar="MODEL", help="id or file of the model")
    parser.add_argument("--model", metavar="ID|FILE", help="the same, as a flag")
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="a request, with steps or a goal, or its list of steps, in JSON or TOML",
    )

    data = parser.add_argument_group("data, each an id or a file")
    data.add_argument("--data", dest="selection", metavar="ID|FILE", help="one dataset for all, split by class")
    data.add_argument("--train", metavar="ID|FILE", help="for steps that learn")
    data.add_argument("--selection", dest="selection", metavar="ID|FILE", help="for every decision")
    data.add_argument("--test", metavar="ID|FILE", help="for the figures in the report")

    pixels = parser.add_argument_group("how stored pixels become the model's input: x·scale, minus mean, over std")
    pixels.add_argument("--scale", type=_number, metavar="N", help="such as 1/255")
    pixels.add_argument("--mean", type=_numbers, metavar="N[,N…]", help="one value, or one a channel")
    pixels.add_argument("--std", type=_numbers, metavar="N[,N…]", help="one value, or one a channel")
    pixels.add_argument("--resize", type=int, metavar="PX", help="image folders: shorter side after resizing")
    pixels.add_argument("--crop", type=int, metavar="PX", help="image folders: square cut from the centre")

    goal = parser.add_argument_group("what to reach: the server searches for the steps and their settings")
    goal.add_argument("--minimise", choices=("latency", "bytes", "operations"), help="of the file that --runtime opens")
    goal.add_argument(
        "--max-drop", type=float, metavar="PP", help="accuracy that you can spare, in percentage points; 1.0 if not given. Without "
        "--minimise: accuracy that pruning may spend",
    )  # fmt: skip
    goal.add_argument("--max-bytes", type=int, metavar="N", help="size that the file must keep to")
    goal.add_argument("--max-latency", type=_number, metavar="MS", help="median time of one inference to keep to")
    goal.add_argument(
        "--confidence", type=float, metavar="P", help="how sure to be that new images keep the limit; 0.8 if not given"
    )
    goal.add_argument(
        "--search-seconds", type=int, metavar="N", help="then the best so far is delivered; 600 if not given"
    )

    steps = parser.add_argument_group("or what to do, in steps (`winnow steps` lists all that a recipe file can say)")
    steps.add_argument("--prune", action="store_true", help="prune weights; implied by --max-drop and the next four")
    steps.add_argument("--reference", choices=("baseline", "layer_start", "progressive"))
    steps.add_argument("--scope", choices=("layer", "global"))
    steps.add_argument("--distribution", choices=("normal", "empirical"))
    steps.add_argument("--exclude", action="append", metavar="LAYER", help="leave this layer as it is; can be repeated")
    steps.add_argument(
        "--prune-winograd", action="store_true", help="compute 3x3 convolutions in the Winograd domain, with pruned positions; "
        "implied by the next three",
    )  # fmt: skip
    steps.add_argument("--winograd-drop", type=float, metavar="PP", help="accuracy that it may spend; 1.0 if not given")
    steps.add_argument(
        "--winograd-tile",
        type=_tile,
        choices=("auto", "fastest", 2, 4, 6),
        help="auto, the fewest multiplications, if not given",
    )
    steps.add_argument(
        "--winograd-reduction", type=float, metavar="N", help="end at so many times fewer multiplications"
    )
    steps.add_argument("--finetune-epochs", type=int, metavar="N", help="train afterwards, to recover accuracy")
    steps.add_argument("--learning-rate", type=float, metavar="N")

    steps.add_argument(
        "--assign-precision", type=_integers, metavar="N[,N…]", help="bits of weights, the first of all layers, the others where "
        "accuracy allows, such as 8,4; makes a network of integers",
    )  # fmt: skip
    steps.add_argument("--precision-drop", type=float, metavar="PP", help="accuracy that fewer bits may cost")
    steps.add_argument("--statistics", type=Path, metavar="FILE", help="of your own training (winnow.WeightRecorder)")
    steps.add_argument("--quantize", action="store_true", help="make a network of integers; implied by the two next")
    steps.add_argument("--weight-bits", type=int, metavar="N", help="2 to 16; 8 if not given")
    steps.add_argument("--activation-bits", type=int, metavar="N", help="2 to 16; 8 if not given")

    other = parser.add_argument_group("other")
    other.add_argument("--limit", type=float, metavar="PP", help="loss of accuracy that the verdict is held against")
    other.add_argument("--deadline", type=int, metavar="SECONDS", help="running time after which the job fails")
    other.add_argument("--seed", type=int)
    other.add_argument(
        "--format",
        dest="outputs",
        action="append",
        choices=("onnx", "pt2", "pt2_standard", "pt2_integers", "c"),
        help="can be repeated",
    )
    other.add_argument("--runtime", choices=("onnxruntime", "torch"), help="where the file is to run")
    other.add_argument("--threads", type=int)
    other.add_argument("--batch-size", type=int)
    other.add_argument("--metadata", type=_pair, action=_Pairs, metavar="KEY=VALUE", help="your own labels")
    return parser


class _Pairs(argparse.Action):
    """Gathers KEY=VALUE pairs into one object."""

    def __call__(
        self, _parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, _flag: str | None = None
    ) -> None:
        assert isinstance(values, tuple)  # `_pair` made it
        key, value = values
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), key: value})


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _number(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as wrong:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from wrong


def _tile(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 8,4") from wrong


def _numbers(text: str) -> list[float]:
    return [_number(part) for part in text.split(",")]
