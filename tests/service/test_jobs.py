"""Jobs over HTTP: submitted, shown, listed, cancelled, finished early, retried, and what they deliver."""

import threading
import time

import pytest

from tests.service.running_service import RunningService


def test_submitted_job_is_accepted_with_its_address(each_service: RunningService) -> None:
    response = each_service.http.post("/v1/jobs", json=each_service.job_request())
    assert response.status_code == 202
    assert response.headers["Location"] == f"/v1/jobs/{response.json()['id']}"
    assert response.headers["Retry-After"] == "1"
    assert response.json()["state"] == "queued"


def test_submitted_job_reaches_the_broker_without_being_waited_for(each_service: RunningService) -> None:
    job_id = each_service.submit()["id"]
    deadline = time.monotonic() + 5
    while job_id not in each_service.broker.hints:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_job_shows_the_request_with_every_default(service: RunningService) -> None:
    request = service.submit()["request"]
    assert request["recipe"][0]["first_rate"] == 0.2
    assert request["seed"] == 0


def test_job_with_a_goal_shows_it_with_every_default_and_no_steps(each_service: RunningService) -> None:
    response = each_service.http.post("/v1/jobs", json=each_service.goal_request())
    job = response.json()
    assert (response.status_code, job["steps"], job["request"]["recipe"]) == (202, 0, [])
    assert job["request"]["goal"] == {
        "max_accuracy_drop_pp": 1.0,
        "minimise": "latency",
        "constraints": {"max_bytes": None, "max_latency_ms": None},
        "confidence": 0.8,
        "deadline_seconds": 600,
    }


def test_job_with_a_goal_is_retried_with_the_same_goal(each_service: RunningService) -> None:
    job = each_service.http.post("/v1/jobs", json=each_service.goal_request()).json()
    each_service.worker.fail(job["id"])
    again = each_service.http.post(f"/v1/jobs/{job['id']}/retry")
    assert (again.status_code, again.json()["request"]) == (202, job["request"])
    resubmitted = each_service.http.post("/v1/jobs", json=job["request"])
    assert resubmitted.status_code == 202


def test_running_job_shows_progress_and_an_estimate(each_service: RunningService) -> None:
    job_id = each_service.submit()["id"]
    token = each_service.worker.start(job_id)
    each_service.worker.progress(job_id, token, 0.5)
    job = each_service.http.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["progress"], job["phase"], job["step"], job["steps"]) == (
        "running",
        0.5,
        "prune_weights",
        0,
        1,
    )
    assert isinstance(job["eta_seconds"], int)


def test_queued_job_knows_how_many_wait_before_it(service: RunningService) -> None:
    first, second = service.submit(), service.submit()
    assert second["jobs_ahead"] > first["jobs_ahead"]


def test_unchanged_job_is_answered_304_until_it_changes(each_service: RunningService) -> None:
    job_id = each_service.submit()["id"]
    tag = each_service.http.get(f"/v1/jobs/{job_id}").headers["ETag"]
    unchanged = each_service.http.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": tag})
    each_service.worker.start(job_id)
    changed = each_service.http.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["Retry-After"]) == (304, b"", "1")
    assert (changed.status_code, changed.json()["state"]) == (200, "running")


def test_shortcut_and_ordinary_way_answer_a_poll_with_the_same_headers(service: RunningService) -> None:
    job_id = service.submit()["id"]
    tag = service.http.get(f"/v1/jobs/{job_id}").headers["ETag"]
    shortcut = service.http.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": tag, "X-Request-ID": "a"})
    ordinary = service.http.get(
        f"/v1/jobs/{job_id}", headers={"If-None-Match": tag, "X-Request-ID": "a", "Prefer": "nothing"}
    )
    shown = [{k: v for k, v in r.headers.items() if k != "date"} for r in (shortcut, ordinary)]
    assert shortcut.status_code == ordinary.status_code == 304
    assert shown[0] == shown[1]


def test_poll_of_an_unknown_job_is_not_found(service: RunningService) -> None:
    response = service.http.get(f"/v1/jobs/job_{'0' * 26}", headers={"If-None-Match": 'W/"1"'})
    assert response.status_code == 404


def test_prefer_wait_answers_as_soon_as_the_job_changes(each_service: RunningService) -> None:
    job_id = each_service.submit()["id"]
    timer = threading.Timer(0.3, each_service.worker.start, [job_id])
    timer.start()
    began = time.monotonic()
    response = each_service.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=20"})
    timer.join()
    assert response.json()["state"] == "running"
    assert response.headers["Preference-Applied"] == "wait=20"
    assert 0.3 <= time.monotonic() - began < 10


def test_prefer_wait_ends_with_the_job_as_it_is(service: RunningService) -> None:
    job_id = service.submit()["id"]
    tag = service.http.get(f"/v1/jobs/{job_id}").headers["ETag"]
    began = time.monotonic()
    response = service.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=1", "If-None-Match": tag})
    assert response.status_code == 304
    assert time.monotonic() - began >= 1


def test_prefer_wait_does_not_wait_for_what_the_client_has_not_seen(service: RunningService) -> None:
    job_id = service.submit()["id"]
    headers = {"Prefer": "wait=20", "If-None-Match": 'W/"0"'}
    assert service.http.get(f"/v1/jobs/{job_id}", headers=headers, timeout=5).status_code == 200


def test_prefer_wait_does_not_wait_for_a_job_that_has_ended(service: RunningService) -> None:
    job_id = service.submit()["id"]
    service.worker.run(job_id)
    response = service.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=20"}, timeout=5)
    assert response.json()["state"] == "succeeded"
    assert "Retry-After" not in response.headers


def test_list_shows_every_job_once_newest_first(each_service: RunningService) -> None:
    model = each_service.ready_model(b"listed model")
    data = {"selection": each_service.ready_dataset(b"listed data")}
    made = [each_service.submit(model=model, data=data)["id"] for _ in range(5)]
    seen: list[str] = []
    parameters = {"model": model, "page_size": "2"}
    while True:
        page = each_service.http.get("/v1/jobs", params=parameters).json()
        seen += [job["id"] for job in page["items"]]
        if page["next_page_token"] is None:
            break
        parameters["page_token"] = page["next_page_token"]
    assert seen == sorted(made, reverse=True)


def test_list_filters_by_states(service: RunningService) -> None:
    model = service.ready_model(b"filtered model")
    queued, failed = service.submit(model=model)["id"], service.submit(model=model)["id"]
    done = service.submit(model=model)["id"]
    service.worker.fail(failed)
    service.worker.run(done)
    page = service.http.get("/v1/jobs", params=[("model", model), ("state", "queued"), ("state", "failed")]).json()
    assert {job["id"] for job in page["items"]} == {queued, failed}


def test_page_token_is_bound_to_its_filters(service: RunningService) -> None:
    model = service.ready_model(b"paged model")
    for _ in range(2):
        service.submit(model=model)
    token = service.http.get("/v1/jobs", params={"model": model, "page_size": 1}).json()["next_page_token"]
    response = service.http.get("/v1/jobs", params={"page_token": token})
    assert (response.status_code, response.json()["type"]) == (404, "/problems/page-not-found")


def test_queued_job_is_cancelled_at_once(each_service: RunningService) -> None:
    job_id = each_service.submit()["id"]
    response = each_service.http.post(f"/v1/jobs/{job_id}/cancel")
    assert (response.status_code, response.json()["state"]) == (200, "cancelled")


def test_running_job_is_asked_to_stop_and_asking_again_is_harmless(each_service: RunningService) -> None:
    job_id = each_service.submit()["id"]
    token = each_service.worker.start(job_id)
    answers = [each_service.http.post(f"/v1/jobs/{job_id}/cancel") for _ in range(2)]
    each_service.worker.stop(job_id, token)
    assert [(r.status_code, r.json()["state"]) for r in answers] == [(202, "cancelling")] * 2
    assert each_service.http.get(f"/v1/jobs/{job_id}").json()["state"] == "cancelled"


def test_finished_job_cannot_be_cancelled(service: RunningService) -> None:
    job_id = service.submit()["id"]
    service.worker.run(job_id)
    response = service.http.post(f"/v1/jobs/{job_id}/cancel")
    assert (response.status_code, response.json()["type"]) == (409, "/problems/not-cancellable")
    assert "succeeded" in response.json()["detail"]


def test_queued_search_is_asked_to_finish_and_waits_on(each_service: RunningService) -> None:
    job_id = each_service.submit_goal()["id"]
    response = each_service.http.post(f"/v1/jobs/{job_id}/finish")
    assert (response.status_code, response.json()["state"]) == (202, "queued")
    assert response.json()["finish_requested_at"]
    assert each_service.http.get(f"/v1/jobs/{job_id}").json() == response.json()


def test_running_search_is_asked_to_finish_and_asking_again_changes_nothing(each_service: RunningService) -> None:
    job_id = each_service.submit_goal()["id"]
    token = each_service.worker.start(job_id)
    assert each_service.http.get(f"/v1/jobs/{job_id}").json()["finish_requested_at"] is None
    first, again = (each_service.http.post(f"/v1/jobs/{job_id}/finish") for _ in range(2))
    assert (first.status_code, first.headers["Retry-After"]) == (202, "1")
    assert (again.status_code, again.json()) == (202, first.json())
    each_service.worker.succeed(job_id, token)
    late = each_service.http.post(f"/v1/jobs/{job_id}/finish")
    assert (late.status_code, late.json()["state"]) == (200, "succeeded")
    events = each_service.http.get(f"/v1/jobs/{job_id}/events").json()["items"]
    assert [event["type"] for event in events] == ["queued", "running", "finish_requested", "succeeded"]


def test_watcher_learns_of_a_wish_to_finish(each_service: RunningService) -> None:
    job_id = each_service.submit_goal()["id"]
    seen = each_service.http.get(f"/v1/jobs/{job_id}").headers["ETag"]
    each_service.http.post(f"/v1/jobs/{job_id}/finish")
    answer = each_service.http.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": seen})
    assert (answer.status_code, answer.json()["finish_requested_at"] is not None) == (200, True)


def test_only_searches_can_be_finished_early(each_service: RunningService) -> None:
    job_id = each_service.submit()["id"]
    response = each_service.http.post(f"/v1/jobs/{job_id}/finish")
    assert (response.status_code, response.json()["type"]) == (409, "/problems/not-a-search")
    assert "only a search" in response.json()["detail"]
    assert "cancel" in response.json()["hint"]
    assert each_service.http.get(f"/v1/jobs/{job_id}").json()["finish_requested_at"] is None


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelling", "cancelled"])
def test_search_that_is_over_or_is_being_cancelled_cannot_be_finished(service: RunningService, end: str) -> None:
    job_id = service.submit_goal()["id"]
    match end:
        case "succeeded":
            service.worker.run(job_id)
        case "failed":
            service.worker.fail(job_id)
        case "cancelling":
            service.worker.start(job_id)
            service.http.post(f"/v1/jobs/{job_id}/cancel")
        case "cancelled":
            service.http.post(f"/v1/jobs/{job_id}/cancel")
    response = service.http.post(f"/v1/jobs/{job_id}/finish")
    assert (response.status_code, response.json()["type"]) == (409, "/problems/not-finishable")
    assert response.json()["detail"].endswith(f"it is {end}.")
    assert response.json()["where"] == {"state": end}


def test_unknown_job_cannot_be_finished(service: RunningService) -> None:
    response = service.http.post(f"/v1/jobs/job_{'0' * 26}/finish")
    assert (response.status_code, response.json()["type"]) == (404, "/problems/not-found")


def test_search_that_was_asked_to_finish_can_still_be_cancelled(service: RunningService) -> None:
    job_id = service.submit_goal()["id"]
    service.http.post(f"/v1/jobs/{job_id}/finish")
    response = service.http.post(f"/v1/jobs/{job_id}/cancel")
    assert (response.status_code, response.json()["state"]) == (200, "cancelled")


def test_retry_of_a_search_that_was_finished_early_searches_to_its_end(service: RunningService) -> None:
    job_id = service.submit_goal()["id"]
    service.http.post(f"/v1/jobs/{job_id}/finish")
    service.worker.run(job_id)
    assert service.http.post(f"/v1/jobs/{job_id}/retry").json()["finish_requested_at"] is None


def test_retry_asks_for_the_same_and_names_its_parent(each_service: RunningService) -> None:
    job = each_service.submit(seed=7)
    each_service.worker.fail(job["id"])
    response = each_service.http.post(f"/v1/jobs/{job['id']}/retry")
    assert response.status_code == 202
    assert response.json()["parent"] == job["id"]
    assert response.json()["request"] == job["request"]
    children = each_service.http.get("/v1/jobs", params={"parent": job["id"]}).json()["items"]
    assert [child["id"] for child in children] == [response.json()["id"]]


def test_job_that_has_not_ended_cannot_be_retried(service: RunningService) -> None:
    response = service.http.post(f"/v1/jobs/{service.submit()['id']}/retry")
    assert (response.status_code, response.json()["type"]) == (409, "/problems/not-retryable")


def test_retry_of_a_job_whose_model_was_deleted_is_refused(service: RunningService) -> None:
    job = service.submit()
    service.worker.run(job["id"])
    service.http.delete(f"/v1/models/{job['request']['model']}")
    response = service.http.post(f"/v1/jobs/{job['id']}/retry")
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (404, "#/model")


def test_failed_job_says_why(service: RunningService) -> None:
    job_id = service.submit()["id"]
    service.worker.fail(job_id)
    error = service.http.get(f"/v1/jobs/{job_id}").json()["error"]
    assert (error["code"], error["retryable"]) == ("stalled", True)


def test_report_is_shown_when_the_job_succeeded(each_service: RunningService) -> None:
    job_id = each_service.submit()["id"]
    each_service.worker.run(job_id)
    report = each_service.http.get(f"/v1/jobs/{job_id}/report")
    assert report.headers["Content-Type"] == "application/json"
    assert report.json()["verdict"]["sentence"] == "Half of the weights are gone."


def test_report_of_an_unfinished_job_is_not_there_yet(service: RunningService) -> None:
    response = service.http.get(f"/v1/jobs/{service.submit()['id']}/report")
    assert (response.status_code, response.headers["Retry-After"]) == (409, "2")


def test_report_of_a_failed_job_does_not_exist(service: RunningService) -> None:
    job_id = service.submit()["id"]
    service.worker.fail(job_id)
    response = service.http.get(f"/v1/jobs/{job_id}/report")
    assert (response.status_code, response.json()["where"]["error"]["code"]) == (404, "stalled")


def test_artifacts_are_listed_with_their_digests(each_service: RunningService) -> None:
    job_id = each_service.submit()["id"]
    each_service.worker.run(job_id, {"model.onnx": b"small"})
    items = each_service.http.get(f"/v1/jobs/{job_id}/artifacts").json()["items"]
    assert [(item["name"], item["kind"]) for item in items] == [("model.onnx", "model"), ("report.json", "report")]
    assert items[0]["size_bytes"] == 5


def test_inspections_are_not_shown_as_jobs(service: RunningService) -> None:
    service.upload("model", b"never inspected")
    inspection = service.broker.hints
    deadline = time.monotonic() + 5
    while not inspection and time.monotonic() < deadline:
        time.sleep(0.01)
    found = [service.http.get(f"/v1/jobs/{job_id}") for job_id in inspection]
    shown = {response.json()["id"] for response in found if response.status_code == 200}
    listed = {job["id"] for job in service.http.get("/v1/jobs", params={"page_size": 500}).json()["items"]}
    assert shown <= listed
    assert any(response.status_code == 404 for response in found)


@pytest.mark.parametrize("action", ["", "/events", "/report", "/artifacts"])
def test_unknown_job_is_not_found(service: RunningService, action: str) -> None:
    response = service.http.get(f"/v1/jobs/job_{'0' * 26}{action}")
    assert (response.status_code, response.json()["type"]) == (404, "/problems/not-found")
