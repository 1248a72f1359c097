"""What an installation of winograd holds, with a C++ compiler and without one."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import winograd
from winograd import library

SOURCE = Path(__file__).parents[2] / "winograd"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
NO_COMPILER = {**os.environ, "CXX": "/no/such/compiler", "PATH": PATH}
COMPILED = next((Path(folder) for folder in winograd.__path__ if (Path(folder) / "libwinograd.so").is_file()), Path())

needs_compiled_code = pytest.mark.skipif(not library.variants(), reason=f"plain torch computes: {library.info().why}")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def symbols(name: str, *options: str) -> list[list[str]]:
    return [line.split() for line in run("nm", "--dynamic", *options, str(COMPILED / name)).splitlines()]


# ---- Without a compiler -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built_without_compiler(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an unpacked wheel, and what pip printed."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(SOURCE, folder / "source", ignore=shutil.ignore_patterns("build", "__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-build-isolation", "--no-deps", "--no-index"]
    printed = run(*command, "--wheel-dir", str(folder), str(source), environment=NO_COMPILER)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed", printed


def test_a_wheel_needs_no_compiler_but_says_what_is_missing(built_without_compiler: tuple[Path, str]) -> None:
    folder, printed = built_without_compiler
    assert list(folder.rglob("*.so")) == []
    assert "winograd is built WITHOUT its compiled code for CPU" in " ".join(printed.split())
    record = json.loads((folder / "winograd" / "built.json").read_text())
    assert record["without_cpu"] == record["without_cuda"] == "it was built without a C++ compiler"


def test_a_wheel_holds_all_python_files_and_nothing_of_the_build(built_without_compiler: tuple[Path, str]) -> None:
    folder, _ = built_without_compiler
    held = {path.name for path in (folder / "winograd").iterdir()}
    assert held == {path.name for path in (SOURCE / "winograd").iterdir() if path.suffix in (".py", ".typed")} | {
        "built.json"
    }
    assert list(folder.glob("*.dist-info/licenses/LICENSE"))


def test_without_compiled_code_plain_torch_computes_and_info_tells(built_without_compiler: tuple[Path, str]) -> None:
    folder, _ = built_without_compiler
    program = (
        f"import sys; sys.meta_path = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__];"
        f"sys.path.insert(0, {str(folder)!r});"
        "import torch, winograd; w = winograd.transform_filters(torch.ones(1, 1, 3, 3), range(16), 2);"
        "print(winograd.conv2d(torch.ones(1, 1, 4, 4), w, range(16), 2).sum().item(), winograd.info())"
    )
    printed = run(sys.executable, "-c", program)
    assert printed.startswith("36.0 cpu: reference (it was built without a C++ compiler); cuda: none")


def test_a_build_that_must_compile_fails_without_a_compiler(tmp_path: Path) -> None:
    command = ["cmake", "-S", str(SOURCE), "-B", str(tmp_path), "-G", "Ninja", "-DWINOGRAD_CPU=ON"]
    result = subprocess.run(command, capture_output=True, text=True, env=NO_COMPILER)
    assert result.returncode != 0
    assert "WINOGRAD_CPU=ON, but it was built without a C++ compiler" in " ".join(result.stderr.split())


# ---- With one -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")
def test_the_installation_that_is_tested_is_compiled() -> None:
    assert library.variants(), library.info()


@needs_compiled_code
@needs_nm
def test_the_core_exports_its_c_interface_and_nothing_else() -> None:
    exported = {name for *_, name in symbols("libwinograd.so", "--defined-only")}
    assert {name for name in exported if not name.startswith("winograd_")} == set()
    header = (SOURCE / "csrc" / "winograd.h").read_text()
    assert {name for name in exported if f" {name}(" not in header and f"*{name}(" not in header} == set()


@needs_compiled_code
def test_the_core_runs_without_torch() -> None:
    program = (
        "import ctypes, sys;"
        f"core = ctypes.CDLL({str(COMPILED / 'libwinograd.so')!r});"
        "bt, g, at = ((ctypes.c_double * 81)() for _ in range(3));"
        "print(core.winograd_matrices(2, bt, g, at), bt[0], 'torch' in sys.modules)"
    )
    assert run(sys.executable, "-c", program).split() == ["0", "-1.0", "False"]


@needs_compiled_code
@needs_nm
def test_the_bindings_need_no_symbol_of_torch_that_came_after_its_stable_interface() -> None:
    undefined = symbols("libwinograd_torch.so", "--undefined-only")
    of_torch = {name: kind for kind, name in undefined if name.startswith(("torch_", "aoti_torch_")) or "3c10" in name}
    # What came after 2.10 is weak, so that the library loads where it is missing.
    assert {name for name, kind in of_torch.items() if kind != "U"} == {"torch_exception_get_what_without_backtrace"}
    assert {name for name in of_torch if not name.startswith(("torch_", "aoti_torch_"))} == set()


# ---- The build backend --------------------------------------------------------------------------------------------


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SOURCE / "cmake"))
    monkeypatch.chdir(SOURCE)
    import winograd_build  # lies in no package: the build frontend puts its folder on the path

    return winograd_build


def asks_for_torch(backend: ModuleType) -> list[bool]:
    hooks = (backend.get_requires_for_build_wheel, backend.get_requires_for_build_editable)
    return [any(requirement.startswith("torch") for requirement in hook()) for hook in hooks]


def test_a_build_takes_the_torch_that_is_there(backend: ModuleType) -> None:
    assert asks_for_torch(backend) == [False, False]


@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")
def test_a_build_asks_for_torch_where_there_is_none(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "torch_folder", lambda: None)
    assert asks_for_torch(backend) == [True, True]


def test_a_build_without_a_compiler_needs_no_torch(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "torch_folder", lambda: None)
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert asks_for_torch(backend) == [False, False]
