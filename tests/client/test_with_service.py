"""The SDK against Winnow's real service, over connections that break and a service that is killed."""

import hashlib
import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
from winnow import ApiProblem, Client, Document, Job, UploadRejected

from tests.client.cutting_proxy import CuttingProxy
from tests.client.played_worker import PlayedWorker
from tests.client.service_process import ServiceProcess

RECIPE = [{"kind": "prune_weights", "max_drop_pp": 1.0}]


def upload_file(folder: Path, name: str, size: int = 1000) -> Path:
    path = folder / name
    path.write_bytes(os.urandom(size))
    return path


@pytest.fixture
def request_document(winnow: Client, tmp_path: Path) -> Document:
    """A request that the service accepts."""
    model = winnow.wait_ready(winnow.upload_model(upload_file(tmp_path, "net.onnx")))
    images = winnow.wait_ready(winnow.upload_dataset(upload_file(tmp_path, "images.npz")))
    return {
        "model": model.id,
        "data": {"selection": images.id},
        "preprocess": {"scale": 0.0625},
        "recipe": RECIPE,
    }


@pytest.fixture
def finished_job(winnow: Client, request_document: Document) -> Job:
    """A job that has delivered something."""
    return winnow.wait(winnow.submit(request_document).id)


def test_a_job_goes_from_upload_to_download(winnow: Client, finished_job: Job, tmp_path: Path) -> None:
    assert (finished_job.state, finished_job.verdict) == ("succeeded", "Half of the weights are gone.")
    artifacts = {artifact.name: artifact for artifact in winnow.artifacts(finished_job.id)}
    path = winnow.download(artifacts["model.onnx"], tmp_path / "out" / "model.onnx")
    assert path.read_bytes() == b"a smaller model" * 100_000
    assert winnow.report(finished_job.id)["verdict"]["limits_kept"] is True


def test_the_service_stores_what_was_sent(winnow: Client, tmp_path: Path) -> None:
    path = upload_file(tmp_path, "größer.onnx", 3_000_000)
    upload = winnow.wait_ready(winnow.upload_model(path))
    assert upload.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (upload.filename, upload.size_bytes) == ("größer.onnx", 3_000_000)
    assert upload.document["inspection"]["parameters"] == 740


def test_a_large_upload_takes_little_memory(winnow: Client, tmp_path: Path) -> None:
    path = tmp_path / "large.npz"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)
    tracemalloc.start()
    try:
        upload = winnow.upload_dataset(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert upload.size_bytes == 200 * 2**20
    assert peak < 16 * 2**20


def test_a_rejected_model_raises_with_the_workers_words(winnow: Client, tmp_path: Path) -> None:
    path = tmp_path / "pickle.pt"
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(UploadRejected, match="It is a pickle"):
        winnow.wait_ready(winnow.upload_model(path))


def test_uploads_are_listed_and_deleted(winnow: Client, tmp_path: Path) -> None:
    kept, deleted = (
        winnow.wait_ready(winnow.upload_model(upload_file(tmp_path, name))) for name in ("a.onnx", "b.onnx")
    )
    winnow.delete(deleted)
    listed = [upload.id for upload in winnow.models()]
    assert kept.id in listed and deleted.id not in listed
    assert [upload.kind for upload in winnow.datasets()] == ["dataset"] * len(list(winnow.datasets()))


def test_the_same_key_submits_once(winnow: Client, request_document: Document) -> None:
    first = winnow.submit(request_document, idempotency_key="once")
    assert winnow.submit(request_document, idempotency_key="once").id == first.id


def test_a_submission_whose_answer_was_lost_is_not_done_twice(
    winnow: Client, service: ServiceProcess, request_document: Document
) -> None:
    before = len(list(winnow.jobs()))
    with CuttingProxy(service.port, cuts=[20]).running() as proxy, Client(proxy.url) as through_proxy:
        through_proxy.submit(request_document)
        assert proxy.connections == 2
    assert len(list(winnow.jobs())) == before + 1


def test_a_check_creates_nothing(winnow: Client, request_document: Document) -> None:
    before = len(list(winnow.jobs()))
    answer = winnow.check(request_document)
    assert answer["valid"] is True and answer["touched_layers"] == {"prune_weights": ["conv"]}
    assert len(list(winnow.jobs())) == before


def test_a_bad_request_says_where_it_is_bad(winnow: Client, request_document: Document) -> None:
    with pytest.raises(ApiProblem) as raised:
        winnow.submit({**request_document, "recipe": [{"kind": "prune_weights", "max_drop_pp": -1}]})
    assert [error.place for error in raised.value.errors] == ["#/recipe/0/max_drop_pp"]


def test_steps_are_documented(winnow: Client) -> None:
    assert {"prune_weights", "finetune"} <= {step["kind"] for step in winnow.steps()["items"]}


def test_events_are_numbered_without_gaps(winnow: Client, finished_job: Job) -> None:
    events = list(winnow.follow(finished_job.id))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.type for event in events] == ["queued", "running", *["layer_pruned"] * 3, "succeeded"]
    assert list(winnow.follow(finished_job.id, after=len(events))) == []


def test_events_come_once_over_connections_that_break(
    winnow: Client, service: ServiceProcess, finished_job: Job
) -> None:
    with CuttingProxy(service.port, cuts=[450, 500, 550, 450]).running() as proxy, Client(proxy.url) as client:
        events = list(client.follow(finished_job.id))
        assert proxy.connections > 2
    assert events == list(winnow.follow(finished_job.id))


def test_a_download_survives_connections_that_break(
    winnow: Client, service: ServiceProcess, finished_job: Job, tmp_path: Path
) -> None:
    artifact = next(artifact for artifact in winnow.artifacts(finished_job.id) if artifact.kind == "model")
    with CuttingProxy(service.port, cuts=[400_000, 300_000, 200]).running() as proxy, Client(proxy.url) as client:
        path = client.download(artifact, tmp_path / "model.onnx")
        assert proxy.connections == 4
    assert hashlib.sha256(path.read_bytes()).hexdigest() == artifact.sha256


def test_a_job_is_cancelled_while_it_runs(winnow: Client, worker: PlayedWorker, request_document: Document) -> None:
    worker.hold()
    job = winnow.submit(request_document)
    running = next(state for state in winnow.watch(job.id) if state.phase == "prune_weights")
    assert running.state == "running"
    winnow.cancel(job.id)
    assert winnow.wait(job.id).state == "cancelled"


def test_a_search_is_finished_while_it_runs(winnow: Client, worker: PlayedWorker, request_document: Document) -> None:
    worker.hold()
    request = {name: value for name, value in request_document.items() if name != "recipe"}
    job = winnow.submit({**request, "goal": {"minimise": "bytes"}})
    next(state for state in winnow.watch(job.id) if state.state == "running")
    asked = winnow.finish(job.id)
    assert asked.document["finish_requested_at"]
    assert winnow.wait(job.id).state == "succeeded"
    assert winnow.artifacts(job.id)
    assert winnow.finish(job.id).state == "succeeded"


def test_a_job_that_follows_a_recipe_is_not_finished_early(winnow: Client, finished_job: Job) -> None:
    with pytest.raises(ApiProblem) as refused:
        winnow.finish(finished_job.id)
    assert (refused.value.status, refused.value.type) == (409, "/problems/not-a-search")


def test_a_retry_is_a_new_job_with_the_same_request(winnow: Client, finished_job: Job) -> None:
    again = winnow.wait(winnow.retry(finished_job.id).id)
    assert again.id != finished_job.id
    assert again.document["parent"] == finished_job.id
    assert again.document["request"] == finished_job.document["request"]


def test_a_failed_job_says_why(winnow: Client, worker: PlayedWorker, request_document: Document) -> None:
    worker.fails = True
    job = winnow.wait(winnow.submit(request_document).id)
    assert job.state == "failed" and job.error is not None
    assert (job.error["code"], job.error["message"]) == ("stalled", "The runner fell silent.")


@pytest.fixture
def restarting(service: ServiceProcess) -> Iterator[ServiceProcess]:
    """The service, to be killed by the test; afterwards it runs again for the others."""
    yield service
    if not service.is_alive:
        service.start()


def test_watching_and_following_outlive_a_killed_service(
    winnow: Client, restarting: ServiceProcess, worker: PlayedWorker, request_document: Document
) -> None:
    worker.hold()
    job = winnow.submit(request_document)
    followed: SimpleQueue[int] = SimpleQueue()

    def follow() -> None:
        with Client(restarting.url, patience_seconds=60) as client:
            for event in client.follow(job.id):
                followed.put(event.seq)

    follower = threading.Thread(target=follow)
    follower.start()
    states = winnow.watch(job.id)
    next(state for state in states if state.phase == "prune_weights")
    seen_before = [followed.get(timeout=30) for _ in range(5)]
    restarting.kill()
    worker.lift()
    restarting.start()
    assert list(states)[-1].state == "succeeded"
    follower.join()
    assert [*seen_before, followed.get_nowait()] == list(range(1, 7))
    assert followed.empty()
