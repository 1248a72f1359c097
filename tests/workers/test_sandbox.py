"""What a sandboxed command can't do. Each claim is checked against what `detect` says of this machine, both ways."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.winograd.gpu import needs_gpu
from workers.namespaces import REFUSED
from workers.process import runner_environment
from workers.sandbox import NO_ISOLATION, Isolation, detect, sandboxed

DETECTED = detect()
LEVELS = {
    "everything": DETECTED,
    "no-namespaces": Isolation(namespaces=False, landlock_abi=DETECTED.landlock_abi),
    "nothing": NO_ISOLATION,
}
CAN_READ = "lambda path: open(path).read()"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "jobs" / "job"
    for part in ("work/tmp", "outputs"):
        (folder / part).mkdir(parents=True)
    return folder


@pytest.fixture(params=list(LEVELS.values()), ids=list(LEVELS))
def isolation(request: pytest.FixtureRequest) -> Isolation:
    assert isinstance(request.param, Isolation)
    return request.param


def run(
    code: str, folder: Path, isolation: Isolation, *, parent: int | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    wrapped = sandboxed(
        command, folder=folder, isolation=isolation, largest_file_bytes=10**6, parent=parent or os.getpid()
    )
    return subprocess.run(
        wrapped,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder / "work",
        env=runner_environment(folder),
        start_new_session=True,
    )


def outcome(expression: str, folder: Path, isolation: Isolation) -> str:
    """`done`, or the name of the error that evaluating the expression in the sandbox raises."""
    code = f"""
        import os, socket, pathlib, signal, subprocess, resource
        try:
            {expression}
        except OSError as error:
            print(type(error).__name__)
        else:
            print("done")
    """
    ran = run(code, folder, isolation)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_network_is_out_of_reach(folder: Path, isolation: Isolation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reached = outcome(f"socket.create_connection(('127.0.0.1', {port}), timeout=5)", folder, isolation)
    assert (reached == "done") == (isolation.network == "open")


def test_datagrams_leave_no_namespace(folder: Path) -> None:
    sent = outcome("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))", folder, DETECTED)
    assert (sent != "done") == DETECTED.namespaces


@pytest.mark.parametrize(
    "attempt",
    ["open('{path}').read()", "open('{path}', 'a')", "os.unlink('{path}')", "os.rename('{path}', 'mine')"],
    ids=["read", "append", "delete", "move"],
)
def test_files_of_others_are_out_of_reach(attempt: str, folder: Path, isolation: Isolation) -> None:
    database = folder.parents[1] / "winnow.sqlite"
    database.write_text("rows")
    result = outcome(attempt.format(path=database), folder, isolation)
    if isolation.landlock_abi:
        assert result == "PermissionError" and database.read_text() == "rows"
    else:
        assert result == "done"


def test_nothing_can_be_written_outside_the_folder(folder: Path, isolation: Isolation) -> None:
    result = outcome(f"open('{folder.parent}/new', 'w')", folder, isolation)
    assert (result == "PermissionError") == (isolation.landlock_abi > 0)
    assert (folder.parent / "new").exists() == (isolation.landlock_abi == 0)


def test_own_folder_can_be_written_and_files_moved_in_it(folder: Path, isolation: Isolation) -> None:
    assert outcome(f"open('made', 'w'), os.rename('made', '{folder}/outputs/made')", folder, isolation) == "done"
    assert (folder / "outputs" / "made").exists()


def test_what_was_written_cannot_be_executed(folder: Path) -> None:
    program = folder / "work" / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o700)
    result = outcome("subprocess.run(['./program'], check=True)", folder, DETECTED)
    assert (result == "PermissionError") == (DETECTED.landlock_abi > 0)


def test_environment_of_the_supervisor_cannot_be_read(folder: Path) -> None:
    seen = run(
        """
        from pathlib import Path
        for process in Path("/proc").glob("[0-9]*"):
            try:
                text = (process / "environ").read_text(errors="replace")
            except OSError:
                continue
            if "PYTEST_CURRENT_TEST" in text:
                print("leaked", process)
        """,
        folder,
        DETECTED,
    )
    assert seen.returncode == 0
    assert ("leaked" not in seen.stdout) == (DETECTED.namespaces or DETECTED.landlock_abi > 0)


def test_environment_holds_nothing_of_the_workers(
    folder: Path, isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    seen = json.loads(run("import os, json; print(json.dumps(dict(os.environ)))", folder, isolation).stdout)
    assert "secret" not in json.dumps(seen) and {"WINNOW_DATABASE_URL", "AWS_SECRET_ACCESS_KEY"}.isdisjoint(seen)
    assert {seen["HOME"], seen["TMPDIR"]} == {str(folder / "work"), str(folder / "work" / "tmp")}


def test_runners_see_the_gpus_of_their_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert runner_environment(folder)["CUDA_VISIBLE_DEVICES"] == "3"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert "CUDA_VISIBLE_DEVICES" not in runner_environment(folder)


def test_supervisor_cannot_be_signalled(folder: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        outcome(f"os.kill({bystander.pid}, signal.SIGTERM)", folder, DETECTED)
        time.sleep(0.1)
        assert (bystander.poll() is None) == (DETECTED.namespaces or DETECTED.landlock_abi >= 6)
    finally:
        bystander.kill()
        bystander.wait()


def test_largest_file_is_bounded(folder: Path, isolation: Isolation) -> None:
    assert outcome("open('big', 'wb').write(bytes(2_000_000))", folder, isolation) == "OSError"
    assert (folder / "work" / "big").stat().st_size <= 10**6


def test_runner_has_no_privileges(folder: Path, isolation: Isolation) -> None:
    status = run("print(open('/proc/self/status').read())", folder, isolation).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["NoNewPrivs"] == "1" and int(fields["CapEff"], 16) == 0


def test_new_files_are_private(folder: Path, isolation: Isolation) -> None:
    outcome("open('made', 'w')", folder, isolation)
    assert (folder / "work" / "made").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("ending", "code"),
    [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", -9), ("os.abort()", -6), ("sys.exit(250)", 250)],
)
def test_end_of_the_command_is_passed_on(ending: str, code: int, folder: Path, isolation: Isolation) -> None:
    assert run(f"import os, sys; {ending}", folder, isolation).returncode == code


def test_command_does_not_start_if_its_parent_is_gone(folder: Path, isolation: Isolation) -> None:
    ran = run("print('started')", folder, isolation, parent=os.getpid() + 1)
    assert (ran.returncode, ran.stdout) == (REFUSED, "")


def test_command_does_not_start_without_the_sandbox_that_was_asked_for(folder: Path) -> None:
    command = sandboxed(
        [sys.executable, "-c", "print('started')"],
        folder=folder / "missing",
        isolation=Isolation(namespaces=True, landlock_abi=DETECTED.landlock_abi),
        largest_file_bytes=10**6,
        parent=os.getpid(),
    )
    denied = [sys.executable, "-c", _DENY_NAMESPACES, *command]
    ran = subprocess.run(denied, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (REFUSED, "") and "unshare" in ran.stderr


def test_everything_ends_with_the_parent(folder: Path, isolation: Isolation) -> None:
    """Also a process that left the session, where there are namespaces; the supervisor's own kill finds it elsewhere."""
    code = """
        import os, time
        if os.fork() == 0:
            os.setsid()
        time.sleep(60)
    """
    parent_code = f"""
        import os, subprocess, sys
        from pathlib import Path
        from workers.sandbox import Isolation, sandboxed
        command = sandboxed([sys.executable, "-c", {textwrap.dedent(code)!r}], folder=Path({str(folder)!r}),
            isolation={isolation!r}, largest_file_bytes=10**6, parent=os.getpid())
        print(subprocess.Popen(command, start_new_session=True).pid, flush=True)
        sys.stdin.read()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(parent_code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None and parent.stdin is not None
    outer = psutil.Process(int(parent.stdout.readline()))
    expected = 4 if isolation.namespaces else 2  # with namespaces also the outer process and init
    family = _wait_for_family(outer, expected)
    try:
        parent.kill()
        parent.wait()
        left_the_session = [] if isolation.namespaces else family[1:]
        assert psutil.wait_procs([process for process in family if process not in left_the_session], timeout=5)[1] == []
    finally:
        for process in psutil.wait_procs(family, timeout=0)[1]:
            process.send_signal(signal.SIGKILL)
        parent.stdin.close()
        parent.stdout.close()


def test_torch_and_onnxruntime_work_inside(folder: Path) -> None:
    code = """
        import numpy, onnxruntime, torch, torch.nn.functional as F
        from onnx import TensorProto, helper
        torch.set_num_threads(2)
        print(F.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)).sum().item())
        value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])
        graph = helper.make_graph([helper.make_node("Add", ["a", "a"], ["b"])], "g", [value("a")], [value("b")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        print(session.run(None, {"a": numpy.ones(2, numpy.float32)})[0].tolist())
        print(torch.ones(3).share_memory_().tolist())  # in /dev/shm
    """
    ran = run(code, folder, DETECTED)
    assert ran.stdout.splitlines() == ["36.0", "[2.0, 2.0]", "[1.0, 1.0, 1.0]"], ran.stderr


@needs_gpu
def test_a_gpu_works_inside(folder: Path, isolation: Isolation) -> None:
    code = """
        import torch
        torch.use_deterministic_algorithms(True)
        weights = torch.ones(64, 64, device="cuda", requires_grad=True)
        (weights @ weights).sum().backward()
        print(weights.grad.sum().item())
    """
    ran = run(code, folder, isolation)
    assert ran.stdout.splitlines() == [f"{2 * 64**3:.1f}"], ran.stderr


def test_report_states_what_was_achieved() -> None:
    assert NO_ISOLATION.for_report() == {
        "network": "open", "files": "open", "processes": "shared", "landlock_abi": 0,
    }  # fmt: skip
    everything = Isolation(namespaces=True, landlock_abi=7).for_report()
    assert (everything["network"], everything["files"], everything["processes"]) == ("none", "own_folder", "own")
    assert Isolation(namespaces=False, landlock_abi=4).network == "no_tcp"


# Makes user namespaces impossible by having used up their number, then becomes the command given.
_DENY_NAMESPACES = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
user = os.geteuid()
assert libc.unshare(0x10000000) == 0
open('/proc/self/setgroups', 'w').write('deny')
open('/proc/self/uid_map', 'w').write(f'{user} {user} 1')
open('/proc/sys/user/max_user_namespaces', 'w').write('0')
os.execv(sys.argv[1], sys.argv[1:])
"""


def _wait_for_family(outer: psutil.Process, size: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        family = [outer, *outer.children(recursive=True)]
        if len(family) == size and len({os.getsid(process.pid) for process in family}) == 2:
            return family
        time.sleep(0.02)
    raise AssertionError(f"{size} processes were expected, not {family}")
