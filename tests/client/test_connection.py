"""Patience with servers that restart, and clear words about those that refuse or aren't there."""

import socket
import time

import pytest
from winnow import ApiProblem, Client, ConnectionLost, FieldError, NoServer, WinnowError

from tests.client.scripted_server import Reply, ScriptedServer, json_reply, problem_reply

STEPS = json_reply({"items": []})
JOB = json_reply({"id": "job_1", "state": "queued"}, 202)


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_server_that_never_answered_is_reported_at_once_with_what_to_do() -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    started = time.monotonic()
    with Client(url) as client, pytest.raises(NoServer) as raised:
        client.steps()
    assert str(raised.value) == f"no Winnow server at {url}; start one with `winnow-server up`, or set WINNOW_URL"
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "nonsense", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(WinnowError, match="no address of a server"):
        Client(url)


def test_a_server_that_is_busy_for_a_moment_is_asked_again(client: Client, server: ScriptedServer) -> None:
    server.on("GET", "/v1/steps", problem_reply(503, "Database unavailable"), Reply(502), STEPS)
    assert client.steps() == {"items": []}
    assert len(server.seen) == 3


def test_retry_after_is_kept(client: Client, server: ScriptedServer) -> None:
    server.on("GET", "/v1/steps", problem_reply(503, "Database unavailable", {"Retry-After": "1"}), STEPS)
    started = time.monotonic()
    client.steps()
    assert time.monotonic() - started >= 1


def test_a_request_that_creates_is_repeated_under_the_same_key(client: Client, server: ScriptedServer) -> None:
    server.on("POST", "/v1/jobs", Reply(202, b"{" * 100, cut_after=10), JOB)
    assert client.submit({"model": "mdl_1"}).id == "job_1"
    keys = [request.headers["Idempotency-Key"] for request in server.seen]
    assert len(keys) == 2 and keys[0] == keys[1]


def test_two_submissions_have_different_keys(client: Client, server: ScriptedServer) -> None:
    server.on("POST", "/v1/jobs", JOB)
    client.submit({})
    client.submit({})
    assert len({request.headers["Idempotency-Key"] for request in server.seen}) == 2


def test_the_callers_own_key_is_sent(client: Client, server: ScriptedServer) -> None:
    server.on("POST", "/v1/jobs", JOB)
    client.submit({}, idempotency_key="nightly-1")
    assert server.seen[0].headers["Idempotency-Key"] == "nightly-1"


def test_the_answer_to_a_first_attempt_that_is_still_served_is_waited_for(
    client: Client, server: ScriptedServer
) -> None:
    in_flight = problem_reply(409, "First request still in flight", type="/problems/request-in-flight")
    server.on("POST", "/v1/jobs", in_flight, JOB)
    assert client.submit({}).id == "job_1"


def test_what_must_not_happen_twice_is_not_repeated(client: Client, server: ScriptedServer) -> None:
    server.on("DELETE", "/v1/models/mdl_1", Reply(503))
    server.on("GET", "/v1/models/mdl_1", json_reply(upload_document("mdl_1", "ready")))
    with pytest.raises(ApiProblem):
        client.delete(client.model("mdl_1"))
    assert [request.method for request in server.seen] == ["GET", "DELETE"]


def test_patience_with_a_server_that_is_gone_has_an_end(server: ScriptedServer) -> None:
    gone = Client(server.url, patience_seconds=0.3)
    server.on("GET", "/v1/steps", STEPS, Reply(200, b"{}", cut_after=1))
    with gone:
        gone.steps()
        started = time.monotonic()
        with pytest.raises(ConnectionLost, match="stopped answering"):
            gone.steps()
    assert time.monotonic() - started < 2


def test_a_problem_says_what_is_wrong_and_where_and_what_to_do(client: Client, server: ScriptedServer) -> None:
    server.on(
        "POST", "/v1/jobs",
        problem_reply(
            422, "Invalid request", detail="2 things are wrong with the request.", hint="Correct what `errors` lists.",
            errors=[
                {"detail": "must be above 0", "pointer": "#/recipe/0/max_drop_pp"},
                {"detail": "no number", "parameter": "page_size", "hint": "Give one."},
            ],
        ),
    )  # fmt: skip
    with pytest.raises(ApiProblem) as raised:
        client.submit({})
    assert raised.value.status == 422
    assert raised.value.errors[0] == FieldError("must be above 0", "#/recipe/0/max_drop_pp")
    assert str(raised.value).splitlines() == [
        "Invalid request (422): 2 things are wrong with the request.",
        "  #/recipe/0/max_drop_pp: must be above 0",
        "  page_size: no number (Give one.)",
        "hint: Correct what `errors` lists.",
    ]


@pytest.mark.parametrize("body", [b"<html>go away</html>", b'["a list"]', b"", b"\xff\xfe"])
def test_an_error_that_is_no_problem_document_still_has_its_status(
    client: Client, server: ScriptedServer, body: bytes
) -> None:
    server.on("GET", "/v1/steps", Reply(403, body))
    with pytest.raises(ApiProblem, match=r"Forbidden \(403\)"):
        client.steps()


def test_loopback_is_reached_without_the_environments_proxy(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{unused_port()}")
    server.on("GET", "/v1/steps", STEPS)
    with Client(server.url) as client:
        assert client.steps() == {"items": []}


def test_lists_go_over_all_pages(client: Client, server: ScriptedServer) -> None:
    server.on(
        "GET", "/v1/jobs",
        json_reply({"items": [{"id": "job_2", "state": "queued"}], "next_page_token": "t"}),
        json_reply({"items": [{"id": "job_1", "state": "queued"}], "next_page_token": None}),
    )  # fmt: skip
    assert [job.id for job in client.jobs(state="queued")] == ["job_2", "job_1"]
    assert [request.target for request in server.seen] == [
        "/v1/jobs?state=queued",
        "/v1/jobs?state=queued&page_token=t",
    ]


def upload_document(upload_id: str, state: str) -> dict[str, object]:
    return {"id": upload_id, "state": state, "filename": "net.onnx", "size_bytes": 1, "sha256": "0" * 64}
