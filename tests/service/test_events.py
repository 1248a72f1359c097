"""What happened to a job: as pages, and as a stream that ends with the job and can be taken up again anywhere."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from service import events
from tests.service.running_service import RunningService

STREAM = {"Accept": "text/event-stream"}


@dataclass(frozen=True)
class Streamed:
    seq: int
    type: str


def stream(service: RunningService, job_id: str, **headers: str) -> Iterator[Streamed]:
    with httpx2.Client(base_url=service.url, timeout=20, trust_env=False) as http:
        path = f"/v1/jobs/{job_id}/events"
        with http.stream(
            "GET", path, headers={**STREAM, **{k.replace("_", "-"): v for k, v in headers.items()}}
        ) as response:
            assert response.status_code == 200
            assert response.headers["Content-Type"].startswith("text/event-stream")
            for event in httpx2.EventSource(response):
                if event.data:
                    document: Any = event.json()
                    assert (str(document["seq"]), document["type"]) == (event.id, event.event)
                    yield Streamed(document["seq"], document["type"])


def test_page_shows_events_in_order_and_where_to_go_on(each_service: RunningService) -> None:
    job_id = each_service.submit()["id"]
    each_service.worker.run(job_id)
    path = f"/v1/jobs/{job_id}/events"
    first = each_service.http.get(path, params={"limit": 2}).json()
    rest = each_service.http.get(path, params={"after": first["next_after"]}).json()
    assert [event["type"] for event in first["items"] + rest["items"]] == ["queued", "running", "succeeded"]
    assert (first["next_after"], rest["next_after"]) == (2, 3)


def test_page_after_the_last_event_is_empty(service: RunningService) -> None:
    job_id = service.submit()["id"]
    assert service.http.get(f"/v1/jobs/{job_id}/events?after=99").json() == {"items": [], "next_after": 99}


def test_stream_brings_every_event_as_it_happens_and_ends_with_the_job(each_service: RunningService) -> None:
    job_id = each_service.submit()["id"]
    seen: list[Streamed] = []
    reader = threading.Thread(target=lambda: seen.extend(stream(each_service, job_id)))
    reader.start()
    token = each_service.worker.start(job_id)
    each_service.worker.progress(job_id, token, 0.3, ("layer", {"name": "conv"}), ("layer", {"name": "head"}))
    time.sleep(0.5)
    each_service.worker.succeed(job_id, token)
    reader.join(timeout=10)
    assert not reader.is_alive()
    assert seen == [
        Streamed(seq, kind) for seq, kind in enumerate(["queued", "running", "layer", "layer", "succeeded"], start=1)
    ]


def test_stream_goes_on_after_the_last_event_that_the_client_has(each_service: RunningService) -> None:
    job_id = each_service.submit()["id"]
    each_service.worker.run(job_id)
    assert [event.seq for event in stream(each_service, job_id, Last_Event_ID="1")] == [2, 3]


def test_stream_longer_than_a_batch_is_complete(service: RunningService) -> None:
    job_id = service.submit()["id"]
    token = service.worker.start(job_id)
    service.worker.progress(job_id, token, 0.5, *(("probe", {"n": n}) for n in range(1200)))
    service.worker.succeed(job_id, token)
    assert [event.seq for event in stream(service, job_id)] == list(range(1, 1204))


def test_stream_of_which_nothing_follows_says_so(service: RunningService) -> None:
    job_id = service.submit()["id"]
    service.worker.run(job_id)
    response = service.http.get(f"/v1/jobs/{job_id}/events", headers={**STREAM, "Last-Event-ID": "3"})
    assert (response.status_code, response.content) == (204, b"")


def test_silent_stream_is_kept_alive(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PING_SECONDS", 0.1)
    job_id = service.submit()["id"]
    path = f"/v1/jobs/{job_id}/events"
    with service.http.stream("GET", path, headers={**STREAM, "Last-Event-ID": "1"}) as response:
        text = ""
        for chunk in response.iter_text():
            text += chunk
            if text.count(": ping") >= 2:
                break
    assert text.startswith("retry: 2000")


def test_event_with_a_hostile_type_cannot_forge_another(service: RunningService) -> None:
    job_id = service.submit()["id"]
    token = service.worker.start(job_id)
    service.worker.progress(job_id, token, 0.5, ("a\nid: 999\ndata: x", {"text": "\n\ndata: forged"}))
    service.worker.succeed(job_id, token)
    with service.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as response:
        ids = [event.id for event in httpx2.EventSource(response) if event.data]
    assert ids == ["1", "2", "3", "4"]


def test_hundred_streams_of_one_job_all_see_its_end(service: RunningService) -> None:
    job_id = service.submit()["id"]
    last: list[str] = []
    readers = [threading.Thread(target=lambda: last.append(list(stream(service, job_id))[-1].type)) for _ in range(100)]
    for reader in readers:
        reader.start()
    service.worker.run(job_id)
    for reader in readers:
        reader.join(timeout=20)
    assert last == ["succeeded"] * 100


@pytest.mark.parametrize("last_event_id", ["x", "-1", "1.5", "9" * 100, ""])
def test_impossible_last_event_id_is_refused(service: RunningService, last_event_id: str) -> None:
    job_id = service.submit()["id"]
    response = service.http.get(f"/v1/jobs/{job_id}/events", headers={**STREAM, "Last-Event-ID": last_event_id})
    assert response.status_code == 422
