"""What is refused at submission, and where the refusal points."""

from typing import Any

import pytest

from jobs.inspection import DatasetInspection, Eligibility
from tests.service.fake_worker import DATASET, MODEL
from tests.service.running_service import RunningService


def refusal(service: RunningService, request: dict[str, Any]) -> tuple[int, str, list[str]]:
    """Status, problem and pointers."""
    response = service.http.post("/v1/jobs", json=request)
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["hint"]
    return response.status_code, problem["type"], [error.get("pointer") for error in problem.get("errors", [])]


@pytest.mark.parametrize(("field", "pointer"), [("model", "#/model"), ("selection", "#/data/selection")])
def test_unknown_upload_is_named(each_service: RunningService, field: str, pointer: str) -> None:
    request = each_service.job_request()
    if field == "model":
        request["model"] = f"mdl_{'0' * 26}"
    else:
        request["data"] = {"selection": f"dst_{'0' * 26}"}
    assert refusal(each_service, request) == (404, "/problems/not-found", [pointer])


def test_upload_that_is_being_inspected_is_to_be_waited_for(each_service: RunningService) -> None:
    request = each_service.job_request(model=each_service.upload("model", b"new")["id"])
    response = each_service.http.post("/v1/jobs", json=request)
    assert (response.status_code, response.json()["type"]) == (409, "/problems/not-ready")
    assert response.headers["Retry-After"] == "1"
    assert "Prefer: wait" in response.json()["hint"]


def test_rejected_upload_is_refused_with_its_error(each_service: RunningService) -> None:
    model_id = each_service.upload("model", b"bad")["id"]
    each_service.worker.reject(model_id, "Operator aten.foo is not known.")
    response = each_service.http.post("/v1/jobs", json=each_service.job_request(model=model_id))
    assert (response.status_code, response.json()["type"]) == (422, "/problems/upload-rejected")
    assert "aten.foo" in response.json()["detail"]


def test_missing_role_is_named(service: RunningService) -> None:
    assert refusal(service, service.job_request(data={})) == (422, "/problems/recipe-refused", ["#/data/selection"])


def test_layer_that_does_not_exist_is_named(service: RunningService) -> None:
    recipe = [{"kind": "prune_weights", "exclude": ["conv", "cnov"]}]
    status, _, pointers = refusal(service, service.job_request(recipe=recipe))
    assert status == 422
    assert "#/recipe/0/exclude/1" in pointers


def test_same_data_cannot_play_two_roles(service: RunningService) -> None:
    data = {"selection": service.ready_dataset(b"same"), "test": service.ready_dataset(b"same")}
    assert refusal(service, service.job_request(data=data)) == (422, "/problems/recipe-refused", ["#/data/test"])


def test_images_of_another_shape_are_refused(service: RunningService) -> None:
    dataset_id: str = service.upload("dataset", b"large images")["id"]
    service.worker.accept_dataset(dataset_id, DatasetInspection(**{**DATASET.model_dump(), "shape": (3, 224, 224)}))
    status, _, pointers = refusal(service, service.job_request(data={"selection": dataset_id}))
    assert (status, pointers) == (422, ["#/data/selection"])


def test_validation_says_what_a_job_would_touch_and_need(each_service: RunningService) -> None:
    response = each_service.http.post("/v1/jobs?validate_only=true", json=each_service.job_request())
    validation = response.json()
    assert (response.status_code, validation["valid"], validation["errors"]) == (200, True, [])
    assert validation["touched_layers"] == {"prune_weights": ["conv"]}
    assert validation["estimate"]["seconds_at_most"] > 0


def test_goal_is_refused_where_it_cannot_be_measured(each_service: RunningService) -> None:
    request = each_service.goal_request(outputs=["pt2"])
    assert refusal(each_service, request) == (422, "/problems/recipe-refused", ["#/outputs"])


def test_goal_without_selection_images_is_refused(service: RunningService) -> None:
    assert refusal(service, service.goal_request(data={})) == (422, "/problems/recipe-refused", ["#/data/selection"])


def test_goal_with_c_source_is_refused_where_the_network_cannot_be_made_of_integers(service: RunningService) -> None:
    no_integers = Eligibility(eligible=False, reason="aten.gelu.default has no integer form.")
    layers = [layer.model_copy(update={"steps": {"quantize_fixed_point": no_integers}}) for layer in MODEL.layers]
    model_id: str = service.upload("model", b"no integers")["id"]
    service.worker.accept_model(model_id, MODEL.model_copy(update={"layers": tuple(layers)}))
    response = service.http.post("/v1/jobs", json=service.goal_request(model=model_id, outputs=["onnx", "c"]))
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "#/outputs/1")
    assert "aten.gelu.default has no integer form." in response.json()["detail"]


def test_validation_of_a_goal_says_what_it_could_come_to(each_service: RunningService) -> None:
    response = each_service.http.post("/v1/jobs?validate_only=true", json=each_service.goal_request())
    validation = response.json()
    assert (response.status_code, validation["valid"]) == (200, True)
    assert validation["touched_layers"]["prune_weights"] == ["conv"]
    assert validation["touched_layers"]["quantize_fixed_point"] == ["conv", "head"]
    estimate = validation["estimate"]
    assert (estimate["reachable"], estimate["images"]) == (True, {"train": 120, "selection": 40, "test": 40})
    assert 0 < estimate["bytes"]["at_least"] < estimate["bytes"]["at_most"]


def test_validation_of_a_goal_out_of_reach_says_why(service: RunningService) -> None:
    goal = {"constraints": {"max_bytes": 100}}
    response = service.http.post("/v1/jobs?validate_only=true", json={**service.goal_request(), "goal": goal})
    validation = response.json()
    assert (validation["valid"], validation["estimate"]["reachable"]) == (True, False)
    assert "max_bytes is 100" in validation["estimate"]["why_not_reachable"]


def test_validation_submits_nothing(service: RunningService) -> None:
    request = service.job_request()
    service.http.post("/v1/jobs?validate_only=true", json=request)
    assert service.http.get("/v1/jobs", params={"model": request["model"]}).json()["items"] == []


def test_validation_of_an_impossible_job_lists_what_is_wrong(service: RunningService) -> None:
    response = service.http.post("/v1/jobs?validate_only=true", json=service.job_request(data={}))
    validation = response.json()
    assert (response.status_code, validation["valid"], validation["estimate"]) == (200, False, None)
    assert [error["pointer"] for error in validation["errors"]] == ["#/data/selection"]
