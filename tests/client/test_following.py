"""Every event arrives once and in order, whatever the connection does."""

import json

import pytest
from winnow import ApiProblem, Client, Document

from tests.client.scripted_server import Reply, ScriptedServer, json_reply, problem_reply

ADDRESS = "/v1/jobs/job_1/events"


def event(seq: int, kind: str) -> Document:
    return {"seq": seq, "type": kind, "at": "2026-11-23T12:00:00Z", "data": {"n": seq}}


QUEUED, RUNNING, PRUNED, SUCCEEDED = (
    event(1, "queued"), event(2, "running"), event(3, "layer_pruned"), event(4, "succeeded"),
)  # fmt: skip


def stream(*events: Document, cut_after: int | None = None) -> Reply:
    blocks = [f"event: {item['type']}\nid: {item['seq']}\ndata: {json.dumps(item)}\n\n" for item in events]
    return Reply(200, (": ping\n\n" + "".join(blocks)).encode(), {"Content-Type": "text/event-stream"}, cut_after)


def followed(client: Client, after: int = 0) -> list[int]:
    return [event.seq for event in client.follow("job_1", after=after)]


def test_events_come_until_the_job_has_ended(client: Client, server: ScriptedServer) -> None:
    server.on("GET", ADDRESS, stream(QUEUED, RUNNING, PRUNED, SUCCEEDED))
    events = list(client.follow("job_1"))
    assert [event.type for event in events] == ["queued", "running", "layer_pruned", "succeeded"]
    assert events[2].data == {"n": 3}


def test_a_stream_that_ends_early_is_opened_again_after_the_last_event(client: Client, server: ScriptedServer) -> None:
    server.on("GET", ADDRESS, stream(QUEUED), stream(RUNNING, PRUNED), stream(SUCCEEDED))
    assert followed(client) == [1, 2, 3, 4]
    assert [request.headers["Last-Event-ID"] for request in server.seen] == ["0", "1", "3"]


def test_an_event_that_was_cut_in_half_comes_whole_the_next_time(client: Client, server: ScriptedServer) -> None:
    first = len(stream(QUEUED).body)
    server.on("GET", ADDRESS, stream(QUEUED, RUNNING, cut_after=first + 40), stream(RUNNING, SUCCEEDED))
    assert followed(client) == [1, 2, 4]


def test_a_server_that_repeats_events_is_not_listened_to_twice(client: Client, server: ScriptedServer) -> None:
    server.on("GET", ADDRESS, stream(QUEUED, RUNNING), stream(QUEUED, RUNNING, SUCCEEDED))
    assert followed(client) == [1, 2, 4]


def test_a_server_that_restarts_is_waited_for(client: Client, server: ScriptedServer) -> None:
    server.on("GET", ADDRESS, stream(QUEUED), Reply(502), problem_reply(503, "Not ready"), stream(SUCCEEDED))
    assert followed(client) == [1, 4]


def test_following_can_begin_in_the_middle(client: Client, server: ScriptedServer) -> None:
    server.on("GET", ADDRESS, stream(PRUNED, SUCCEEDED))
    assert followed(client, after=2) == [3, 4]
    assert server.seen[0].headers["Last-Event-ID"] == "2"


def test_a_job_whose_last_event_is_known_has_nothing_to_follow(client: Client, server: ScriptedServer) -> None:
    server.on("GET", ADDRESS, Reply(204))
    assert followed(client, after=4) == []


def test_pages_are_asked_for_where_streams_dont_get_through(client: Client, server: ScriptedServer) -> None:
    pages = [{"items": items, "next_after": 0} for items in ([QUEUED, RUNNING], [SUCCEEDED])]
    server.on("GET", ADDRESS, json_reply(pages[0]), *map(json_reply, pages))
    assert followed(client) == [1, 2, 4]
    assert [request.target.partition("?")[2] for request in server.seen] == ["", "after=0", "after=2"]


def test_a_job_that_is_not_there_is_a_problem(client: Client, server: ScriptedServer) -> None:
    server.on("GET", ADDRESS, problem_reply(404, "No such resource"))
    with pytest.raises(ApiProblem, match="No such resource"):
        followed(client)


def test_watching_shows_each_change_until_the_end(client: Client, server: ScriptedServer) -> None:
    running = {"id": "job_1", "state": "running", "phase": "prune_weights", "progress": 0.5}
    ended = {"id": "job_1", "state": "succeeded", "progress": 1.0, "verdict": "smaller"}
    server.on(
        "GET", "/v1/jobs/job_1",
        json_reply(running, ETag='W/"1"'), Reply(304, headers={"ETag": 'W/"1"'}), json_reply(ended, ETag='W/"2"'),
    )  # fmt: skip
    assert [job.state for job in client.watch("job_1")] == ["running", "succeeded"]
    assert server.seen[1].headers["If-None-Match"] == 'W/"1"'
    assert client.wait("job_1").verdict == "smaller"
