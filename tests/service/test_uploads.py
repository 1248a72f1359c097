"""Models and datasets over HTTP: uploaded, shown, listed, deleted; and uploads that go wrong, which leave nothing."""

import base64
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from jobs.repository.uploads import find_upload
from jobs.tables import ModelRow
from service.uploads import display_name
from tests.service.conftest import StartService
from tests.service.running_service import RunningService

RAW = {"Content-Type": "application/octet-stream"}


def digest_header(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def incoming(service: RunningService) -> list[Path]:
    return list((service.storage_folder / "incoming").iterdir())


def wait_until_nothing_is_incoming(service: RunningService) -> None:
    deadline = time.monotonic() + 5
    while incoming(service):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_bare_body_is_stored_and_waits_for_its_inspection(each_service: RunningService, kind: str) -> None:
    content = os.urandom(100_000)
    response = each_service.http.post(f"/v1/{kind}s", params={"filename": "a b.onnx"}, content=content, headers=RAW)
    upload = response.json()
    assert response.status_code == 201
    assert response.headers["Location"] == f"/v1/{kind}s/{upload['id']}"
    assert (upload["state"], upload["filename"], upload["size_bytes"]) == ("inspecting", "a b.onnx", 100_000)
    assert upload["sha256"] == hashlib.sha256(content).hexdigest()
    with each_service.storage.open(upload["sha256"]) as stored:
        assert stored.read() == content


def test_multipart_file_is_stored_as_it_was_sent(service: RunningService) -> None:
    content = b"\r\n--almost a boundary\r\n" * 50_000 + b"\r\n-"
    response = service.http.post("/v1/models", files={"file": ("netz ä.onnx", content)})
    assert response.status_code == 201, response.text
    assert response.json()["filename"] == "netz ä.onnx"
    assert response.json()["sha256"] == hashlib.sha256(content).hexdigest()


def test_chunked_body_is_stored(service: RunningService) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 77_777

    response = service.http.post("/v1/datasets", content=chunks(), headers=RAW)
    assert response.json()["size_bytes"] == 7_777_700
    assert response.json()["sha256"] == hashlib.sha256(b"x" * 7_777_700).hexdigest()


def test_inspection_makes_the_upload_ready(each_service: RunningService) -> None:
    model_id = each_service.ready_model()
    model = each_service.http.get(f"/v1/models/{model_id}").json()
    assert (model["state"], model["format"]) == ("ready", "onnx")
    assert [layer["name"] for layer in model["inspection"]["layers"]] == ["conv", "head"]


def test_rejected_upload_says_why(each_service: RunningService) -> None:
    model_id = each_service.upload("model", b"rubbish")["id"]
    each_service.worker.reject(model_id, "It is a pickle.")
    model = each_service.http.get(f"/v1/models/{model_id}").json()
    assert (model["state"], model["error"]["message"]) == ("rejected", "It is a pickle.")


def test_prefer_wait_answers_when_the_inspection_is_done(each_service: RunningService) -> None:
    dataset_id = each_service.upload("dataset", b"slow")["id"]
    timer = threading.Timer(0.3, each_service.worker.accept_dataset, [dataset_id])
    timer.start()
    response = each_service.http.get(f"/v1/datasets/{dataset_id}", headers={"Prefer": "respond-async, wait=20"})
    timer.join()
    assert (response.json()["state"], response.headers["Preference-Applied"]) == ("ready", "wait=20")


def test_unchanged_upload_is_answered_304(service: RunningService) -> None:
    model_id = service.upload("model", b"unchanged")["id"]
    tag = service.http.get(f"/v1/models/{model_id}").headers["ETag"]
    response = service.http.get(f"/v1/models/{model_id}", headers={"If-None-Match": f'"x", {tag}'})
    assert (response.status_code, response.headers["ETag"]) == (304, tag)


def test_list_shows_uploads_by_state_newest_first(start_service: StartService) -> None:
    with start_service() as service:
        inspecting = [service.upload("model", bytes([n]))["id"] for n in range(3)]
        service.ready_model(b"ready")
        first = service.http.get("/v1/models", params={"state": "inspecting", "page_size": 2}).json()
        rest = service.http.get(
            "/v1/models", params={"state": "inspecting", "page_size": 2, "page_token": first["next_page_token"]}
        ).json()
    assert [model["id"] for model in first["items"] + rest["items"]] == inspecting[::-1]
    assert rest["next_page_token"] is None


def test_deleted_upload_is_gone(each_service: RunningService) -> None:
    model_id = each_service.ready_model()
    assert each_service.http.delete(f"/v1/models/{model_id}").status_code == 204
    assert each_service.http.get(f"/v1/models/{model_id}").status_code == 404
    assert each_service.http.delete(f"/v1/models/{model_id}").status_code == 404


def test_upload_that_a_job_works_on_is_not_deleted(each_service: RunningService) -> None:
    job = each_service.submit()
    model = each_service.http.delete(f"/v1/models/{job['request']['model']}")
    dataset = each_service.http.delete(f"/v1/datasets/{job['request']['data']['selection']}")
    assert [(r.status_code, r.json()["type"]) for r in (model, dataset)] == [(409, "/problems/in-use")] * 2


def test_announced_digest_is_checked(service: RunningService) -> None:
    good = service.http.post("/v1/models", content=b"x", headers={**RAW, "Repr-Digest": digest_header(b"x")})
    bad = service.http.post("/v1/models", content=b"x", headers={**RAW, "Repr-Digest": digest_header(b"y")})
    assert good.status_code == 201
    assert (bad.status_code, bad.json()["type"]) == (422, "/problems/digest-mismatch")
    wait_until_nothing_is_incoming(service)


def test_digest_that_is_none_is_refused_and_an_unknown_algorithm_ignored(service: RunningService) -> None:
    broken = service.http.post("/v1/models", content=b"x", headers={**RAW, "Repr-Digest": "sha-256=:abc:"})
    unknown = service.http.post("/v1/models", content=b"x", headers={**RAW, "Repr-Digest": "unixsum=:AAA=:"})
    assert (broken.status_code, unknown.status_code) == (422, 201)


@pytest.mark.parametrize("announced", [True, False], ids=["with a length", "chunked"])
@pytest.mark.parametrize("form", ["bare", "multipart"])
def test_oversized_upload_is_refused_and_leaves_nothing(
    start_service: StartService, announced: bool, form: str
) -> None:
    with start_service(max_upload_bytes=100_000) as service:
        body = b"x" * 200_000
        headers = dict(RAW)
        if form == "multipart":
            headers = {"Content-Type": "multipart/form-data; boundary=b"}
            body = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + body + b"\r\n--b--\r\n"
        response = service.http.post("/v1/models", content=body if announced else iter([body]), headers=headers)
        assert (response.status_code, response.json()["type"]) == (413, "/problems/too-large")
        wait_until_nothing_is_incoming(service)


def test_largest_upload_fits_in_both_forms(start_service: StartService) -> None:
    with start_service(max_upload_bytes=100_000) as service:
        bare = service.http.post("/v1/models", content=b"x" * 100_000, headers=RAW)
        multipart = service.http.post("/v1/models", files={"file": ("f", b"x" * 100_000)})
    assert (bare.status_code, multipart.status_code) == (201, 201)


@pytest.mark.parametrize("announced", [True, False], ids=["with a length", "chunked"])
def test_upload_is_refused_when_the_disk_would_be_full(start_service: StartService, announced: bool) -> None:
    with start_service(min_free_bytes=2**62) as service:
        body = b"x" * 1000
        response = service.http.post("/v1/models", content=body if announced else iter([body]), headers=RAW)
        assert (response.status_code, response.json()["type"]) == (507, "/problems/storage-full")
        wait_until_nothing_is_incoming(service)


@pytest.mark.parametrize("form", ["bare", "multipart"])
def test_client_that_goes_away_leaves_nothing(service: RunningService, form: str) -> None:
    address = (service.http.base_url.host, service.http.base_url.port)
    types = {"bare": "application/octet-stream", "multipart": "multipart/form-data; boundary=b"}
    head = f"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Type: {types[form]}\r\nContent-Length: 90000000\r\n\r\n"
    with socket.create_connection(address) as connection:
        connection.sendall(head.encode())
        if form == "multipart":
            connection.sendall(b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n')
        connection.sendall(b"x" * 20_000_000)
        assert len(incoming(service)) == 1
    wait_until_nothing_is_incoming(service)


@pytest.mark.parametrize("form", ["bare", "multipart", "multipart without a byte"])
def test_empty_upload_is_refused(service: RunningService, form: str) -> None:
    if form == "bare":
        response = service.http.post("/v1/models", headers=RAW)
    elif form == "multipart":
        response = service.http.post("/v1/models", files={"file": ("empty", b"")})
    else:
        response = service.http.post("/v1/models", headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert response.status_code in (400, 422)
    wait_until_nothing_is_incoming(service)


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        pytest.param({"Content-Type": "multipart/form-data"}, b"x", 400, id="no boundary"),
        pytest.param({"Content-Type": f"multipart/form-data; boundary={'b' * 3000}"}, b"x", 400, id="endless boundary"),
        pytest.param(MULTIPART, b"rubbish", 400, id="rubbish"),
        pytest.param(MULTIPART, PART, 400, id="no end"),
        pytest.param(MULTIPART, PART + PART + b"--b--\r\n", 422, id="two files"),
        pytest.param(MULTIPART, PART.replace(b'"file"', b'"other"') + b"--b--\r\n", 422, id="another field"),
        pytest.param(MULTIPART, b"--b\r\nX-Y: z\r\n\r\nx\r\n--b--\r\n", 422, id="no name"),
        pytest.param(MULTIPART, b"--b\r\n" + b"X: y\r\n" * 9999 + b"\r\n", 400, id="endless headers"),
        pytest.param({"Content-Type": "application/json"}, b"{}", 415, id="json"),
        pytest.param({"Content-Type": "application/x-www-form-urlencoded"}, b"x", 415, id="form"),
        pytest.param({**RAW, "Content-Encoding": "gzip"}, b"x", 415, id="gzip"),
    ],
)
def test_impossible_upload_is_refused(
    service: RunningService, headers: dict[str, str], body: bytes, status: int
) -> None:
    response = service.http.post("/v1/models", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["hint"]
    wait_until_nothing_is_incoming(service)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("net.onnx", "net.onnx"),
        ("/etc/passwd", "passwd"),
        ("C:\\nets\\net.onnx", "net.onnx"),
        ("../../x", "x"),
        ("a\0b\nc\x1b[31m", "abc[31m"),
        ("invoice\u202egpj.exe", "invoicegpj.exe"),
        ("\ud800x", "x"),
        ("n" * 300 + ".onnx", "n" * 250 + ".onnx"),
        ("..", ".."),
        ("/", "model"),
        ("", "model"),
        (None, "model"),
    ],
)
def test_filename_is_made_fit_to_be_shown(sent: str | None, shown: str) -> None:
    assert display_name(sent, "model") == shown


def test_filename_with_nul_is_stored(each_service: RunningService) -> None:
    upload = each_service.upload("model", b"x", filename="a\0b")
    with each_service.database.reading() as session:
        row = find_upload(session, ModelRow, upload["id"])
    assert row is not None
    assert row.filename == "ab"


def test_refused_upload_is_answered_before_its_body_is_read(service: RunningService) -> None:
    address = (service.http.base_url.host, service.http.base_url.port)
    head = "POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\nContent-Type: application/octet-stream"
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(f"{head}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_two_hundred_uploads_at_once_are_all_stored(service: RunningService) -> None:
    contents = [os.urandom(20_000) for _ in range(200)]
    digests: list[str] = []

    def upload(part: list[bytes]) -> None:
        with httpx2.Client(base_url=service.url, timeout=60, trust_env=False) as http:
            for content in part:
                digests.append(http.post("/v1/datasets", content=content, headers=RAW).json()["sha256"])

    threads = [threading.Thread(target=upload, args=[contents[n::20]]) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(digests) == sorted(hashlib.sha256(content).hexdigest() for content in contents)
