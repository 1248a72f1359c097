"""A stand-in for the runner that does what the uploaded "model" tells it: a JSON list of actions, one after the other.

Called like the real one, `scripted_runner.py FOLDER`, and bound to the same contract (jobs/folder.py). It needs no torch, so
that tests of everything around the runner are fast.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

HOARD: list[bytearray] = []


def main(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    assignment = request["assignment"]
    model = folder / (assignment.get("model") or assignment["file"])["path"]
    for action, argument in json.loads(model.read_text()):
        ACTIONS[action](folder, argument)


def progress(_folder: Path, line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def say(_folder: Path, text: str) -> None:
    print(text, flush=True)


def tick(_folder: Path, argument: dict[str, Any]) -> None:
    """Report progress at even intervals; every report is an event."""
    count = argument["count"]
    for number in range(1, count + 1):
        line = {"type": "event", "phase": "ticking", "fraction": number / count, "data": {"tick": number}}
        print(json.dumps(line), flush=True)
        time.sleep(argument["seconds"] / count)


def sleep(_folder: Path, seconds: float) -> None:
    time.sleep(seconds)


def wait_for(folder: Path, name: str) -> None:
    """As a search waits for word that it is to finish."""
    while not (folder / name).exists():
        time.sleep(0.02)


def die(_folder: Path, number: int) -> None:
    os.kill(os.getpid(), number)


def leave(_folder: Path, code: int) -> None:
    sys.exit(code)


def complain(_folder: Path, text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def be_deaf(_folder: Path, _argument: None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def hoard(_folder: Path, size_bytes: int) -> None:
    HOARD.append(bytearray(os.urandom(1) * size_bytes))


def write(folder: Path, argument: dict[str, str]) -> None:
    path = folder / argument["path"]
    path.write_text(argument["text"])


def copy(folder: Path, argument: dict[str, str]) -> None:
    """Copy a file if it is there, as one who looks for a checkpoint does."""
    source = folder / argument["from"]
    (folder / argument["to"]).write_text(source.read_text() if source.is_file() else "nothing")


def link(folder: Path, argument: dict[str, str]) -> None:
    (folder / argument["path"]).symlink_to(argument["to"])


def hardlink(folder: Path, argument: dict[str, str]) -> None:
    (folder / argument["path"]).hardlink_to(argument["to"])


def pipe(folder: Path, name: str) -> None:
    os.mkfifo(folder / name)


def fork_away(folder: Path, seconds: float) -> None:
    """Start a process that leaves the session and would outlive everybody; its id, as it sees it, goes into work/."""
    if os.fork() == 0:
        os.setsid()
        os.close(1)
        (folder / "work" / "stray").write_text("running")
        time.sleep(seconds)
        os._exit(0)


def crash_first_time(folder: Path, number: int) -> None:
    """Die on the first attempt; a checkpoint tells the second one."""
    mark = folder / "work" / "checkpoints" / "tried"
    if not mark.exists():
        mark.write_text("once")
        os.kill(os.getpid(), number)


def succeed(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / "outputs" / name).write_text(text)
    outputs = [{"path": name, "kind": "model", "media_type": "text/plain"} for name in files]
    _end(folder, {"outputs": outputs, "verdict": "It worked."})


def result(folder: Path, document: dict[str, Any]) -> None:
    _end(folder, document)


def _end(folder: Path, document: dict[str, Any]) -> None:
    partial = folder / "result.json.partial"
    partial.write_text(json.dumps(document))
    partial.rename(folder / "result.json")


ACTIONS = {
    function.__name__: function
    for function in (
        progress, say, tick, sleep, wait_for, die, leave, complain, be_deaf, hoard, write, copy, link, hardlink, pipe, fork_away,
        crash_first_time, succeed, result,
    )
}  # fmt: skip

if __name__ == "__main__":
    main(Path(sys.argv[1]))
