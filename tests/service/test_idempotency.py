"""A creating request that is sent again creates nothing again."""

import socket
import threading
from typing import Any

import httpx2
import pytest

from tests.service.running_service import RunningService

RAW = {"Content-Type": "application/octet-stream"}


def test_repeated_submission_is_answered_with_the_first_job(each_service: RunningService) -> None:
    request, headers = each_service.job_request(), {"Idempotency-Key": "submission-1"}
    first = each_service.http.post("/v1/jobs", json=request, headers=headers)
    again = each_service.http.post("/v1/jobs", json=request, headers=headers)
    assert (again.status_code, again.json(), again.headers["Location"]) == (
        202,
        first.json(),
        first.headers["Location"],
    )
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert len(each_service.http.get("/v1/jobs", params={"model": request["model"]}).json()["items"]) == 1


def test_key_means_the_same_quoted_and_bare(service: RunningService) -> None:
    request = service.job_request()
    first = service.http.post("/v1/jobs", json=request, headers={"Idempotency-Key": '"quoted-1"'})
    again = service.http.post("/v1/jobs", json=request, headers={"Idempotency-Key": "quoted-1"})
    assert again.json()["id"] == first.json()["id"]


def test_key_is_refused_for_another_request(each_service: RunningService) -> None:
    headers = {"Idempotency-Key": "submission-2"}
    each_service.http.post("/v1/jobs", json=each_service.job_request(), headers=headers)
    other = each_service.http.post("/v1/jobs", json=each_service.job_request(seed=1), headers=headers)
    assert (other.status_code, other.json()["type"]) == (422, "/problems/key-reused")


def test_refused_request_leaves_its_key_free(each_service: RunningService) -> None:
    request, headers = each_service.job_request(), {"Idempotency-Key": "submission-3"}
    impossible = {**request, "data": {}}
    assert each_service.http.post("/v1/jobs", json=impossible, headers=headers).status_code == 422
    assert each_service.http.post("/v1/jobs", json=request, headers=headers).status_code == 202


def test_validation_takes_no_key(service: RunningService) -> None:
    request, headers = service.job_request(), {"Idempotency-Key": "submission-4"}
    assert service.http.post("/v1/jobs?validate_only=true", json=request, headers=headers).status_code == 200
    assert service.http.post("/v1/jobs", json=request, headers=headers).status_code == 202


def test_of_many_equal_submissions_at_once_one_creates(each_service: RunningService) -> None:
    request, ids = each_service.job_request(), set()

    def submit() -> None:
        with httpx2.Client(base_url=each_service.url, timeout=30, trust_env=False) as http:
            answer = http.post("/v1/jobs", json=request, headers={"Idempotency-Key": "at-once"})
            assert answer.status_code == 202
            ids.add(answer.json()["id"])

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 1


def test_repeated_retry_is_one_job(each_service: RunningService) -> None:
    job_id = each_service.submit()["id"]
    each_service.worker.run(job_id)
    headers = {"Idempotency-Key": "retry-1"}
    answers = [each_service.http.post(f"/v1/jobs/{job_id}/retry", headers=headers).json()["id"] for _ in range(2)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("form", ["bare", "multipart"])
def test_repeated_upload_is_one_model(each_service: RunningService, form: str) -> None:
    body: dict[str, Any] = {"content": b"once"} if form == "bare" else {"files": {"file": ("f", b"once")}}
    headers = {"Idempotency-Key": f"upload-{form}", **(RAW if form == "bare" else {})}
    answers = [each_service.http.post("/v1/models", headers=headers, **body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()


def test_key_of_an_upload_is_refused_for_another_file(service: RunningService) -> None:
    headers = {"Idempotency-Key": "upload-2", **RAW}
    service.http.post("/v1/models", content=b"one file", headers=headers)
    assert service.http.post("/v1/models", content=b"another file", headers=headers).status_code == 422


def test_same_key_counts_for_each_address_alone(service: RunningService) -> None:
    headers = {"Idempotency-Key": "upload-3", **RAW}
    model = service.http.post("/v1/models", content=b"same", headers=headers)
    dataset = service.http.post("/v1/datasets", content=b"same", headers=headers)
    assert (model.status_code, dataset.status_code) == (201, 201)


def test_second_upload_is_refused_while_the_first_comes_in_and_taken_after_it_broke_off(
    service: RunningService,
) -> None:
    address = (service.http.base_url.host, service.http.base_url.port)
    head = (
        "POST /v1/models HTTP/1.1\r\nHost: x\r\nIdempotency-Key: in-flight\r\n"
        "Content-Type: application/octet-stream\r\nContent-Length: 4\r\n\r\n"
    )
    headers = {"Idempotency-Key": "in-flight", **RAW}
    with socket.create_connection(address) as connection:
        connection.sendall(head.encode() + b"on")
        while not list((service.storage_folder / "incoming").iterdir()):
            pass
        second = service.http.post("/v1/models", content=b"once", headers=headers)
    assert (second.status_code, second.json()["type"]) == (409, "/problems/request-in-flight")
    while list((service.storage_folder / "incoming").iterdir()):
        pass
    assert service.http.post("/v1/models", content=b"once", headers=headers).status_code == 201


@pytest.mark.parametrize(
    "key", [b"", b"x" * 256, b"a b", "ключ".encode()], ids=["empty", "too long", "space", "not ASCII"]
)
def test_impossible_key_is_refused(service: RunningService, key: bytes) -> None:
    response = service.http.post("/v1/jobs", json=service.job_request(), headers={b"Idempotency-Key": key})
    assert (response.status_code, response.json()["errors"][0]["parameter"]) == (422, "Idempotency-Key")
