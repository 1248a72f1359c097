"""Whatever is sent, the answer is a problem document that says what to do, and the service goes on."""

import json
import socket
from typing import Any

import pytest

from tests.service.running_service import RunningService

JSON = {"Content-Type": "application/json"}
REQUEST: dict[str, Any] = {"model": f"mdl_{'0' * 26}", "recipe": [{"kind": "prune_weights"}]}


def problem_of(response: Any) -> dict[str, Any]:
    assert response.headers["Content-Type"] == "application/problem+json", response.text
    problem: dict[str, Any] = response.json()
    assert problem["status"] == response.status_code
    assert problem["request_id"] == response.headers["X-Request-ID"]
    assert problem["hint"]
    return problem


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b"{'a': 1}", id="single quotes"),
        pytest.param(b"\xff\xfe{}", id="not UTF-8"),
        pytest.param(b'{"a": "\\ud800"}', id="lone surrogate"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"a":' * 50_000, id="deep objects"),
        pytest.param(b'{"seed": 0, "model": "\x00"}', id="bare NUL"),
    ],
)
def test_malformed_json_is_refused_with_the_place(service: RunningService, body: bytes) -> None:
    response = service.http.post("/v1/jobs", content=body, headers=JSON)
    assert response.status_code == 400
    assert problem_of(response)["type"] == "/problems/malformed-json"


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        pytest.param({"model": 5}, "#/model", id="wrong type"),
        pytest.param({"model": "mdl_x"}, "#/model", id="no id"),
        pytest.param({"model": REQUEST["model"] + "\n"}, "#/model", id="line end"),
        pytest.param({"modell": "x"}, "#/modell", id="unknown field"),
        pytest.param({"a~b/c": "x"}, "#/a~0b~1c", id="escaped pointer"),
        pytest.param({"recipe": []}, "#/recipe", id="no step"),
        pytest.param({"goal": {}}, "#/recipe", id="steps and a goal"),
        pytest.param({"recipe": [], "goal": {"minimise": "size"}}, "#/goal/minimise", id="unknown aim"),
        pytest.param(
            {"recipe": [], "goal": {"constraints": {"max_bytes": 0}}}, "#/goal/constraints/max_bytes", id="no bytes"
        ),
        pytest.param({"recipe": [], "goal": {"deadline_seconds": 1}}, "#/goal/deadline_seconds", id="no time"),
        pytest.param({"recipe": {}}, "#/recipe", id="object for array"),
        pytest.param({"recipe": [{"kind": "shrink"}]}, "#/recipe/0", id="unknown step"),
        pytest.param({"recipe": [{}]}, "#/recipe/0", id="step without kind"),
        pytest.param({"recipe": [{"kind": "prune_weights", "rate": 1}]}, "#/recipe/0/rate", id="unknown option"),
        pytest.param(
            {"recipe": [{"kind": "prune_weights", "max_rate": "0.5"}]}, "#/recipe/0/max_rate", id="text for number"
        ),
        pytest.param(
            {"recipe": [{"kind": "prune_weights", "first_rate": 0.999}]}, "#/recipe/0", id="rates not ordered"
        ),
        pytest.param({"recipe": [{"kind": "finetune", "epochs": 1.5}]}, "#/recipe/0/epochs", id="half an epoch"),
        pytest.param({"recipe": [{"kind": "finetune", "epochs": True}]}, "#/recipe/0/epochs", id="truth for number"),
        pytest.param({"seed": 10**400}, "#/seed", id="huge number"),
        pytest.param({"seed": -1}, "#/seed", id="negative"),
        pytest.param({"limits": {"deadline_seconds": 1e308}}, "#/limits/deadline_seconds", id="huge float"),
        pytest.param({"metadata": {"a": "\0"}}, "#/metadata/a", id="NUL in a value"),
        pytest.param({"metadata": {"a\0": "b"}}, "#/metadata/a\0", id="NUL in a key"),
        pytest.param({"metadata": {"a": "x" * 513}}, "#/metadata/a", id="long value"),
        pytest.param({"metadata": {str(n): "" for n in range(17)}}, "#/metadata", id="too many"),
        pytest.param(
            {"recipe": [{"kind": "prune_weights", "exclude": ["\0"]}]}, "#/recipe/0/exclude/0", id="NUL in a name"
        ),
        pytest.param({"outputs": []}, "#/outputs", id="no outputs"),
        pytest.param({"preprocess": {"std": [0]}}, "#/preprocess/std/0", id="division by zero"),
    ],
)
def test_wrong_field_is_pointed_at(each_service: RunningService, changes: dict[str, Any], pointer: str) -> None:
    response = each_service.http.post("/v1/jobs", json={**REQUEST, **changes})
    assert response.status_code == 422
    assert [error["pointer"] for error in problem_of(response)["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("body", "pointer"), [({"recipe": []}, "#/recipe"), ({"goal": None}, "#/goal"), ({}, "#")], ids=str
)
def test_job_without_anything_to_do_is_told_what_to_give(
    service: RunningService, body: dict[str, Any], pointer: str
) -> None:
    problem = problem_of(service.http.post("/v1/jobs", json={"model": REQUEST["model"], **body}))
    assert problem["detail"] == "give either a recipe with at least one step, or a goal"
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


@pytest.mark.parametrize("body", ["[]", "5", "null", '"recipe"'])
def test_body_that_is_no_object_is_refused_as_a_whole(service: RunningService, body: str) -> None:
    response = service.http.post("/v1/jobs", content=body, headers=JSON)
    assert [error["pointer"] for error in problem_of(response)["errors"]] == ["#"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_number_that_is_none_is_refused(service: RunningService, number: str) -> None:
    body = json.dumps(REQUEST)[:-1] + ', "limits": {"max_accuracy_drop_pp": ' + number + "}}"
    assert service.http.post("/v1/jobs", content=body, headers=JSON).status_code in (400, 422)


def test_whole_float_is_an_integer(service: RunningService) -> None:
    assert service.http.post("/v1/jobs", json={**REQUEST, "seed": 3.0}).json()["type"] == "/problems/not-found"


def test_every_fault_is_listed_at_once(service: RunningService) -> None:
    response = service.http.post("/v1/jobs", json={"model": 1, "recipe": [{"kind": "finetune", "epochs": 0}], "x": 1})
    assert {error["pointer"] for error in problem_of(response)["errors"]} == {"#/model", "#/recipe/0/epochs", "#/x"}


def test_hundred_thousand_faults_are_refused_soon(service: RunningService) -> None:
    recipe = [{"kind": "prune_weights", "exclude": [0] * 100_000}]
    response = service.http.post("/v1/jobs", json={**REQUEST, "recipe": recipe}, timeout=10)
    assert response.status_code == 422
    assert len(problem_of(response)["errors"]) <= 50


@pytest.mark.parametrize("announced", [True, False], ids=["with a length", "chunked"])
def test_oversized_json_is_refused(service: RunningService, announced: bool) -> None:
    body = b" " * 9_000_000
    response = service.http.post("/v1/jobs", content=body if announced else iter([body] * 2), headers=JSON)
    assert (response.status_code, problem_of(response)["type"]) == (413, "/problems/too-large")


@pytest.mark.parametrize(
    "media_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"]
)
def test_job_in_another_media_type_is_refused(service: RunningService, media_type: str | None) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    response = service.http.post("/v1/jobs", content=json.dumps(REQUEST).encode(), headers=headers)
    assert (response.status_code, problem_of(response)["type"]) == (415, "/problems/wrong-media-type")


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_media_type_is_recognised_however_it_is_written(service: RunningService, media_type: str) -> None:
    response = service.http.post("/v1/jobs", content=json.dumps(REQUEST).encode(), headers={"Content-Type": media_type})
    assert response.status_code == 404  # the model; the body was read


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/models"), ("PATCH", f"/v1/models/mdl_{'0' * 26}"), ("DELETE", "/v1/jobs"), ("TRACE", "/v1/jobs"),
        ("OPTIONS", "/v1/steps"), ("HEAD", "/livez"), ("GET", f"/v1/jobs/job_{'0' * 26}/cancel"), ("POST", "/readyz"),
        ("PURGE", "/v1/jobs"), ("POST", "/openapi.json"),
    ],
)  # fmt: skip
def test_method_that_an_address_does_not_take_is_refused(service: RunningService, method: str, path: str) -> None:
    response = service.http.request(method, path)
    assert response.status_code == 405
    assert method not in response.headers["Allow"].split(", ")


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v2/jobs", "/v1/jobs/", "/v1/models//content", "/v1/%00", "/problems/none"]
)
def test_unknown_address_is_not_found(service: RunningService, path: str) -> None:
    response = service.http.get(path)
    assert (response.status_code, problem_of(response)["status"]) == (404, 404)


HOSTILE_IDS = [
    "x", "job_", "%00", "job_%00" + "0" * 25, "..", "%2e%2e%2fetc", "a" * 5000, "job_" + "0" * 27, "JOB_" + "0" * 26,
    "job_" + "%D9%A3" * 26, "'%20OR%201=1--", "%ED%A0%80", "job_" + "0" * 26 + "%0a",
]  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE_IDS)
@pytest.mark.parametrize(
    "address", ["/v1/jobs/{}/events", "/v1/models/{}/content", "/v1/artifacts/{}/content", "/v1/datasets/{}/x"]
)
def test_hostile_id_is_not_found(each_service: RunningService, address: str, hostile: str) -> None:
    response = each_service.http.get(address.format(hostile))
    assert (response.status_code, problem_of(response)["status"]) == (404, 404)


@pytest.mark.parametrize(
    "query",
    [
        "page_size=0", "page_size=501", f"page_size={'9' * 5000}", "page_size=x", "page_size=1.5", "page_size=", "state=x",
        "page_token=x", "page_token=%00", "colour=red", "state=queued&sort=asc",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/models", "/v1/datasets"])
def test_bad_parameter_of_a_list_is_named(each_service: RunningService, path: str, query: str) -> None:
    response = each_service.http.get(f"{path}?{query}")
    assert response.status_code == 422
    assert problem_of(response)["errors"][0]["parameter"] in query


@pytest.mark.parametrize("query", ["model=%00", "parent=job_%00", "model=%ED%A0%80", "model='--"])
def test_filter_that_fits_nothing_finds_nothing(each_service: RunningService, query: str) -> None:
    response = each_service.http.get(f"/v1/jobs?{query}")
    assert (response.status_code, response.json()["items"]) == (200, [])


@pytest.mark.parametrize(
    "query", ["after=-1", f"after={2**31}", f"after={2**200}", "after=x", "limit=0", "limit=100000"]
)
def test_bad_parameter_of_events_is_refused(each_service: RunningService, query: str) -> None:
    assert each_service.http.get(f"/v1/jobs/job_{'0' * 26}/events?{query}").status_code == 422


@pytest.mark.parametrize(
    "prefer", ["wait", "wait=", "wait=x", "wait=-1", "wait=1.5", f"wait={'9' * 3000}", "wait=٣", "x;y=z,,,", "wait=0"]
)
def test_preference_that_makes_no_sense_is_ignored(service: RunningService, prefer: str) -> None:
    job_id = service.submit()["id"]
    response = service.http.get(f"/v1/jobs/{job_id}", headers={b"Prefer": prefer.encode()}, timeout=5)
    assert response.status_code == 200


@pytest.mark.parametrize("tag", ["", "x", '"', "W/", '"unclosed', "\xff", '"' * 5000])
def test_condition_that_makes_no_sense_is_ignored(service: RunningService, tag: str) -> None:
    job_id = service.submit()["id"]
    assert service.http.get(f"/v1/jobs/{job_id}", headers={b"If-None-Match": tag.encode("latin-1")}).status_code == 200


@pytest.mark.parametrize("given", ["x" * 129, "a b", "a\tb", "ключ", ""])
def test_request_id_that_is_not_sane_is_replaced(service: RunningService, given: str) -> None:
    response = service.http.get("/livez", headers={b"X-Request-ID": given.encode()})
    assert response.headers["X-Request-ID"] not in ("", given)


def test_request_id_is_returned(service: RunningService) -> None:
    response = service.http.get("/v1/jobs/x", headers={"X-Request-ID": "trace/1:2"})
    assert response.headers["X-Request-ID"] == response.json()["request_id"] == "trace/1:2"


def test_rubbish_instead_of_http_does_not_stop_the_service(service: RunningService) -> None:
    address = (service.http.base_url.host, service.http.base_url.port)
    for rubbish in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9\r\n\r\n", b"\0" * 100_000, b"GET /" + b"x" * 200_000):
        with socket.create_connection(address) as connection:
            connection.sendall(rubbish)
    assert service.http.get("/livez").status_code == 200


@pytest.mark.parametrize("length", ["-1", "x", "9" * 30, "1, 2"])
def test_impossible_content_length_is_no_server_error(service: RunningService, length: str) -> None:
    address = (service.http.base_url.host, service.http.base_url.port)
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(head.encode() + b"{}")
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(100)
    assert not answer.startswith(b"HTTP/1.1 5")
    assert service.http.get("/livez").status_code == 200
