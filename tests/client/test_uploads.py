"""Files are streamed with their digest, and an upload counts once it was read."""

import base64
import hashlib
from pathlib import Path

import pytest
from winnow import Client, FileMissing, UploadRejected, WinnowError

from tests.client.scripted_server import Reply, ScriptedServer, json_reply

CONTENT = bytes(range(256)) * 20_000  # 5 MB


def document(state: str, **more: object) -> dict[str, object]:
    known = {"id": "mdl_1", "state": state, "filename": "net.onnx", "size_bytes": len(CONTENT), "sha256": "0" * 64}
    return {**known, **more}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net 1.onnx"
    path.write_bytes(CONTENT)
    return path


def test_a_file_is_sent_as_it_is_with_its_name_length_and_digest(
    client: Client, server: ScriptedServer, file: Path
) -> None:
    server.on("POST", "/v1/models", json_reply(document("inspecting"), 201))
    assert client.upload_model(file).id == "mdl_1"
    request = server.seen[0]
    assert request.body == CONTENT
    assert request.target == "/v1/models?filename=net+1.onnx"
    assert request.headers["Content-Length"] == str(len(CONTENT))
    digest = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    assert request.headers["Repr-Digest"] == f"sha-256=:{digest}:"


def test_progress_ends_at_the_whole_file(client: Client, server: ScriptedServer, file: Path) -> None:
    server.on("POST", "/v1/datasets", json_reply(document("inspecting"), 201))
    told: list[tuple[int, int]] = []
    client.upload_dataset(file, lambda done, size: told.append((done, size)))
    assert told == sorted(told) and len(told) > 1
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_an_upload_that_broke_is_sent_again_whole_and_under_the_same_key(
    client: Client, server: ScriptedServer, file: Path
) -> None:
    accepted = json_reply(document("inspecting"), 201)
    server.on("POST", "/v1/models", Reply(201, accepted.body, accepted.headers, cut_after=5), accepted)
    client.upload_model(file)
    first, second = server.seen
    assert first.body == second.body == CONTENT
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]


def test_a_file_that_is_not_there_is_named(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match=r"there is no file .*nowhere\.onnx"):
        client.upload_model(tmp_path / "nowhere.onnx")


def test_waiting_asks_until_a_worker_has_read_the_file(client: Client, server: ScriptedServer, file: Path) -> None:
    server.on("POST", "/v1/models", json_reply(document("inspecting"), 201))
    server.on("GET", "/v1/models/mdl_1", json_reply(document("inspecting")), json_reply(document("ready")))
    assert client.wait_ready(client.upload_model(file)).state == "ready"
    assert server.seen[-1].headers["Prefer"] == "wait=20"


def test_a_rejected_file_raises_with_the_reason(client: Client, server: ScriptedServer) -> None:
    error = {"code": "model_rejected", "message": "it is a pickle", "hint": "export it with torch.export"}
    server.on("GET", "/v1/models/mdl_1", json_reply(document("rejected", error=error)))
    with pytest.raises(UploadRejected, match=r"it is a pickle\nhint: export it with torch\.export"):
        client.wait_ready(client.model("mdl_1"))


def test_waiting_has_an_end(client: Client, server: ScriptedServer) -> None:
    server.on("GET", "/v1/models/mdl_1", json_reply(document("inspecting")))
    with pytest.raises(WinnowError, match="is a worker running"):
        client.wait_ready(client.model("mdl_1"), timeout_seconds=0.3)
