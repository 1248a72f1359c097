"""What must never be forgotten: every error has a status, every step an algorithm, every setting and step its documentation."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import ErrorCode
from jobs.recipe import STEP_KINDS
from jobs.settings import Settings
from service.settings import HttpSettings

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "module", ["service.app", "workers.celery_app", "workers.supervisor", "jobs.repository.lifecycle"]
)
def test_importing_loads_no_torch(module: str) -> None:
    program = f"import sys, {module}; print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", STEP_KINDS)
def test_every_step_kind_has_an_algorithm_a_test_file_and_a_heading(kind: str) -> None:
    module = importlib.import_module(f"workers.compression.{kind}")
    assert callable(getattr(module, kind))
    assert (ROOT / "tests" / "workers" / "compression" / f"test_{kind}.py").is_file()
    assert re.search(rf"^#+ .*`{kind}`", (ROOT / "docs" / "methods.md").read_text(), re.MULTILINE)


def test_every_setting_stands_in_the_readme_with_its_default() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = dict(re.findall(r"^\| `WINNOW_([A-Z_]+)` \| `?([^|`]*)`? \|", readme, re.MULTILINE))
    settings = {name.upper(): field for name, field in (Settings.model_fields | HttpSettings.model_fields).items()}
    assert set(rows) == set(settings)
    for name, field in settings.items():
        assert rows[name].strip() == str(field.default), f"the README's default of WINNOW_{name} is not true"


def test_every_error_code_is_documented() -> None:
    documented = (ROOT / "docs" / "errors.md").read_text()
    assert [code for code in ErrorCode if f"`{code}`" not in documented] == []


BUILT_ELEMENTS = [f"{method}-{n}" for method in "PW" for n in range(1, 14)]


@pytest.mark.parametrize("element", BUILT_ELEMENTS)
def test_every_claim_element_that_is_built_has_a_row_and_its_test(element: str) -> None:
    methods = (ROOT / "docs" / "methods.md").read_text()
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    row = re.search(rf"^\| {element} \|.*$", methods, re.MULTILINE)
    assert row is not None, f"docs/methods.md has no row for {element}"
    named = re.findall(rf"(test_{element.lower().replace('-', '')}_\w+)`", row.group())
    assert named, f"the row of {element} names no test"
    for test in named:
        assert f"def {test}(" in tests, f"{test} does not exist"


BENCHMARKS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted((ROOT / "benchmarks").rglob("*.py"))
]


@pytest.mark.parametrize("module", BENCHMARKS)
def test_every_benchmark_imports(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, cwd=ROOT, capture_output=True)
