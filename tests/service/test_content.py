"""Downloads: whole, in part, only when changed, and with what is needed to check them."""

import base64
import hashlib

import pytest

from tests.service.running_service import RunningService

CONTENT = bytes(range(256)) * 10
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def path(service: RunningService) -> str:
    """Where an artifact can be downloaded."""
    job_id = service.submit()["id"]
    service.worker.run(job_id, {"klein ä.onnx": CONTENT})
    items = service.http.get(f"/v1/jobs/{job_id}/artifacts").json()["items"]
    artifact = next(item for item in items if item["kind"] == "model")
    return f"/v1/artifacts/{artifact['id']}/content"


def test_whole_file_comes_with_what_is_needed_to_check_it(service: RunningService, path: str) -> None:
    response = service.http.get(path)
    assert (response.status_code, response.content) == (200, CONTENT)
    assert response.headers["ETag"] == f'"{SHA256}"'
    assert response.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(SHA256)).decode()}:"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Accept-Ranges"] == "bytes"
    assert "immutable" in response.headers["Cache-Control"]
    assert response.headers["Content-Disposition"].endswith("filename*=UTF-8''klein%20%C3%A4.onnx")


def test_head_says_the_same_without_the_bytes(service: RunningService, path: str) -> None:
    get, head = service.http.get(path), service.http.head(path)
    different = {"date", "x-request-id"}
    assert head.content == b""
    assert {k: v for k, v in head.headers.items() if k not in different} == {
        k: v for k, v in get.headers.items() if k not in different
    }


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=2550-", 2550, 2559),
        ("bytes=2550-99999", 2550, 2559),
        ("bytes=-1", 2559, 2559),
        ("bytes=-99999", 0, 2559),
        ("Bytes = 1-2", 1, 2),
    ],
)
def test_one_range_is_answered_with_its_bytes(
    service: RunningService, path: str, asked: str, first: int, last: int
) -> None:
    response = service.http.get(path, headers={"Range": asked})
    assert (response.status_code, response.content) == (206, CONTENT[first : last + 1])
    assert response.headers["Content-Range"] == f"bytes {first}-{last}/2560"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,3-4",
        "bytes=" + "0-1," * 5000 + "0-1",
        "lines=0-1",
        "bytes=5-1",
        "bytes=-",
        "bytes=a-b",
        "x",
        "",
        "bytes=٣-٤",
    ],
)
def test_range_that_is_not_one_range_of_bytes_is_ignored(service: RunningService, path: str, asked: str) -> None:
    response = service.http.get(path, headers={b"Range": asked.encode()})
    assert (response.status_code, response.content) == (200, CONTENT)


@pytest.mark.parametrize("asked", ["bytes=2560-", "bytes=99999999999999999-", "bytes=-0"])
def test_range_outside_the_file_is_refused(service: RunningService, path: str, asked: str) -> None:
    response = service.http.get(path, headers={"Range": asked})
    assert (response.status_code, response.headers["Content-Range"]) == (416, "bytes */2560")
    assert response.json()["type"] == "/problems/range-not-satisfiable"


@pytest.mark.parametrize(("condition", "status"), [(f'"{SHA256}"', 206), ('"other"', 200), (f'W/"{SHA256}"', 200)])
def test_range_is_sent_only_if_the_file_is_still_the_same(
    service: RunningService, path: str, condition: str, status: int
) -> None:
    response = service.http.get(path, headers={"Range": "bytes=0-9", "If-Range": condition})
    assert response.status_code == status


def test_file_that_the_client_has_is_not_sent_again(service: RunningService, path: str) -> None:
    response = service.http.get(path, headers={"If-None-Match": f'"{SHA256}"'})
    assert (response.status_code, response.content) == (304, b"")


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_uploaded_file_can_be_downloaded_again(each_service: RunningService, kind: str) -> None:
    upload = each_service.upload(kind, CONTENT, filename='a"b.npz')
    response = each_service.http.get(f"/v1/{kind}s/{upload['id']}/content")
    assert response.content == CONTENT
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert response.headers["Content-Disposition"] == "attachment; filename=\"a_b.npz\"; filename*=UTF-8''a%22b.npz"


def test_unknown_artifact_is_not_found(service: RunningService) -> None:
    assert service.http.get(f"/v1/artifacts/art_{'0' * 26}/content").status_code == 404
    assert service.http.head(f"/v1/artifacts/art_{'0' * 26}/content").status_code == 404


def test_lost_file_is_a_server_error_that_says_so(service: RunningService) -> None:
    upload = service.upload("model", b"soon lost")
    digest = upload["sha256"]
    (service.storage_folder / "sha256" / digest[:2] / digest[2:4] / digest).unlink()
    response = service.http.get(f"/v1/models/{upload['id']}/content")
    assert (response.status_code, response.json()["type"]) == (500, "/problems/file-lost")
