"""A download is resumed wherever it broke, and only the right bytes get the file's name."""

import base64
import hashlib
import re
from pathlib import Path

import pytest
from winnow import ApiProblem, Artifact, Client, ConnectionLost, DigestMismatch

from tests.client.scripted_server import Reply, ScriptedServer, Seen, problem_reply

CONTENT = hashlib.shake_128(b"model").digest(1_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
ARTIFACT = Artifact(
    id="art_1", name="model.onnx", kind="model", size_bytes=len(CONTENT), sha256=DIGEST, document={}
)  # fmt: skip
ADDRESS = "/v1/artifacts/art_1/content"


def serve_range(request: Seen, *, content: bytes = CONTENT, cut_after: int | None = None) -> Reply:
    """What the service answers: the whole, or the rest if the If-Range still holds."""
    found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    headers = {"ETag": f'"{DIGEST}"'}
    if found and request.headers.get("If-Range") == headers["ETag"]:
        start = int(found[1])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return Reply(206, content[start:], headers, cut_after)
    return Reply(200, content, headers, cut_after)


def broken(request: Seen) -> Reply:
    return serve_range(request, cut_after=300_000)


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.{DIGEST[:16]}.part")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "model.onnx"


def test_a_whole_download_gets_its_name_and_leaves_nothing_else(
    client: Client, server: ScriptedServer, path: Path
) -> None:
    server.on("GET", ADDRESS, serve_range)
    assert client.download(ARTIFACT, path) == path
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_a_connection_that_breaks_is_gone_on_from_where_it_broke(
    client: Client, server: ScriptedServer, path: Path
) -> None:
    server.on("GET", ADDRESS, broken, broken, serve_range)
    client.download(ARTIFACT, path)
    assert path.read_bytes() == CONTENT
    assert [request.headers.get("Range") for request in server.seen] == [None, "bytes=300000-", "bytes=600000-"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(client: Client, server: ScriptedServer, path: Path) -> None:
    server.on("GET", ADDRESS, broken, problem_reply(500, "Internal error"), serve_range)
    with pytest.raises(ApiProblem):
        client.download(ARTIFACT, path)
    assert not path.exists() and part_of(path).read_bytes() == CONTENT[:300_000]
    client.download(ARTIFACT, path)
    assert path.read_bytes() == CONTENT
    assert server.seen[-1].headers["Range"] == "bytes=300000-"


def test_a_server_that_is_busy_is_asked_again(client: Client, server: ScriptedServer, path: Path) -> None:
    server.on("GET", ADDRESS, problem_reply(503, "Database unavailable"), serve_range)
    client.download(ARTIFACT, path)
    assert path.read_bytes() == CONTENT


def test_a_server_that_sends_everything_again_is_taken_at_its_word(
    client: Client, server: ScriptedServer, path: Path
) -> None:
    server.on("GET", ADDRESS, broken, Reply(200, CONTENT))
    client.download(ARTIFACT, path)
    assert path.read_bytes() == CONTENT


def test_a_damaged_piece_from_last_time_is_fetched_again(client: Client, server: ScriptedServer, path: Path) -> None:
    path.parent.mkdir()
    part_of(path).write_bytes(b"?" * 1000)
    server.on("GET", ADDRESS, serve_range)
    client.download(ARTIFACT, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [0, 10], ids=["as long as it should be", "too long"])
def test_a_complete_piece_needs_no_request_but_is_checked(
    client: Client, server: ScriptedServer, path: Path, extra: int
) -> None:
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT + b"?" * extra)
    server.on("GET", ADDRESS, serve_range)
    client.download(ARTIFACT, path)
    assert path.read_bytes() == CONTENT
    assert len(server.seen) == (1 if extra else 0)


def test_bytes_that_are_not_the_right_ones_are_never_saved(client: Client, server: ScriptedServer, path: Path) -> None:
    server.on("GET", ADDRESS, Reply(200, CONTENT[:-1] + b"?"))
    with pytest.raises(DigestMismatch, match="nothing was saved"):
        client.download(ARTIFACT, path)
    assert list(path.parent.iterdir()) == []


def test_a_digest_announced_for_something_else_ends_the_download_at_once(
    client: Client, server: ScriptedServer, path: Path
) -> None:
    other = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    server.on("GET", ADDRESS, Reply(200, CONTENT, {"Repr-Digest": f"sha-256=:{other}:"}))
    told: list[int] = []
    with pytest.raises(DigestMismatch):
        client.download(ARTIFACT, path, lambda done, _size: told.append(done))
    assert told == []


def test_what_is_there_already_is_not_fetched(client: Client, server: ScriptedServer, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    client.download(ARTIFACT, path)
    assert server.seen == []


def test_another_file_of_that_name_is_replaced_only_by_a_good_one(
    client: Client, server: ScriptedServer, path: Path
) -> None:
    path.parent.mkdir()
    path.write_bytes(b"last week's")
    server.on("GET", ADDRESS, Reply(200, b"?" * len(CONTENT)), serve_range)
    with pytest.raises(DigestMismatch):
        client.download(ARTIFACT, path)
    assert path.read_bytes() == b"last week's"
    client.download(ARTIFACT, path)
    assert path.read_bytes() == CONTENT


def test_a_server_that_never_gets_further_is_given_up(server: ScriptedServer, path: Path) -> None:
    server.on("GET", ADDRESS, lambda request: serve_range(request, cut_after=0))
    with Client(server.url, patience_seconds=0.3) as client, pytest.raises(ConnectionLost):
        client.download(ARTIFACT, path)


def test_progress_counts_what_was_there_already(client: Client, server: ScriptedServer, path: Path) -> None:
    server.on("GET", ADDRESS, broken, serve_range)
    told: list[int] = []
    client.download(ARTIFACT, path, lambda done, _size: told.append(done))
    assert told == sorted(told) and told[-1] == len(CONTENT)


def test_an_empty_artifact_is_an_empty_file(client: Client, server: ScriptedServer, path: Path) -> None:
    empty = Artifact(
        id="art_1", name="log", kind="log", size_bytes=0, sha256=hashlib.sha256().hexdigest(), document={}
    )  # fmt: skip
    server.on("GET", ADDRESS, Reply(200, b""))
    client.download(empty, path)
    assert path.read_bytes() == b""
