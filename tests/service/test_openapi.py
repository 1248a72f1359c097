"""The OpenAPI document is complete, and what it says is true."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.recipe import STEP_KINDS
from jobs.request import JobRequest
from service import refusals
from service.errors import PROBLEM_TYPES
from service.refusals import RequestRefused
from tests.service.conftest import StartService
from tests.service.running_service import RunningService

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def document(service: RunningService) -> dict[str, Any]:
    document: dict[str, Any] = service.http.get("/openapi.json").json()
    return document


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def test_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")


def test_every_operation_has_a_name_of_its_own_a_summary_and_a_tag(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for operation in operations(document)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z_]+", name) for name in names)
    assert all(operation["summary"] and operation["tags"] for operation in operations(document))


def test_every_declared_error_is_a_problem_document(document: dict[str, Any]) -> None:
    for operation in operations(document):
        errors = {status: answer for status, answer in operation["responses"].items() if status >= "4"}
        assert {"405", "422", "500", "503"} <= set(errors)
        for answer in errors.values():
            assert list(answer["content"]) == ["application/problem+json"]
            assert answer["content"]["application/problem+json"]["examples"]


def test_examples_of_jobs_are_right_in_form(document: dict[str, Any]) -> None:
    examples = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    jobs = [JobRequest.model_validate_json(json.dumps(example["value"]), strict=True) for example in examples.values()]
    assert any(job.goal for job in jobs)
    assert any(job.recipe for job in jobs)


def test_nothing_is_left_of_the_frameworks_own_errors(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in str(document)


def test_accepted_job_links_to_what_can_be_done_with_it(document: dict[str, Any]) -> None:
    links = document["paths"]["/v1/jobs"]["post"]["responses"]["202"]["links"]
    assert {"show_job", "cancel_job", "finish_job", "list_events", "show_report"} <= set(links)
    names = {operation["operationId"] for operation in operations(document)}
    assert {link["operationId"] for link in links.values()} <= names


def test_resources_have_examples(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("Model", "Dataset", "Job", "JobEvent", "Artifact", "Problem", "Validation"):
        assert schemas[name]["examples"], name


def all_refusals(parent: type[RequestRefused]) -> set[type[RequestRefused]]:
    return {child for direct in parent.__subclasses__() for child in {direct, *all_refusals(direct)}}


def test_every_refusal_has_a_status_and_a_slug_of_its_own() -> None:
    assert set(PROBLEM_TYPES) == all_refusals(refusals.RequestRefused)
    slugs = [kind.slug for kind in PROBLEM_TYPES.values()]
    assert len(set(slugs)) == len(slugs)


@pytest.mark.parametrize("refusal", PROBLEM_TYPES, ids=lambda refusal: refusal.__name__)
def test_type_of_every_problem_leads_to_a_page(service: RunningService, refusal: type[RequestRefused]) -> None:
    kind = PROBLEM_TYPES[refusal]
    page = service.http.get(f"/problems/{kind.slug}")
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert str(kind.status) in page.text


def test_every_step_kind_is_documented_with_its_schema_and_defaults(service: RunningService) -> None:
    steps = {step["kind"]: step for step in service.http.get("/v1/steps").json()["items"]}
    assert set(steps) == set(STEP_KINDS)
    prune = steps["prune_weights"]
    assert prune["defaults"]["first_rate"] == 0.2
    assert prune["json_schema"]["properties"]["first_rate"]["description"]
    assert prune["needs"].startswith("selection")


def test_schemathesis_finds_nothing(start_service: StartService, tmp_path: Path) -> None:
    with start_service() as service:
        job = service.submit()
        service.worker.run(job["id"], {"model.onnx": b"0123456789"})
        known = {  # what nobody can delete; models and datasets are found by following links
            "job_id": job["id"],
            "artifact_id": service.http.get(f"/v1/jobs/{job['id']}/artifacts").json()["items"][0]["id"],
        }
        config = tmp_path / "schemathesis.toml"
        parameters = "[parameters]\n" + "".join(f'{name} = "{value}"\n' for name, value in known.items())
        config.write_text(
            (ROOT / "schemathesis.toml").read_text().replace("[[operations]]", parameters + "\n[[operations]]", 1)
        )
        command = [
            str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config), "run",
            f"{service.url}/openapi.json", "--max-examples", "8", "--generation-deterministic", "--no-color",
        ]  # fmt: skip
        run = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    assert run.returncode == 0, run.stdout[-6000:]
