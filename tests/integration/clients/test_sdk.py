"""The official SDK against real processes, with nothing changed but its base URL."""

from __future__ import annotations

import httpx2
import pytest
from segmind import InferenceFailed, InferenceTimeout
from segmind.exceptions import SegmindError

from models.mock.scenario import SCENARIO
from models.request.example import EXAMPLE_REQUEST
from tests.support.stack import Stack, eventually


def test_run_answers_with_the_result_of_the_api_pages_example(server: Stack) -> None:
    result = server.sdk().run("mochi-1", **EXAMPLE_REQUEST)
    assert result["status"] == "COMPLETED"
    assert result["error"] is None
    assert result["seed"] == EXAMPLE_REQUEST["seed"]
    assert result["prompt"] == EXAMPLE_REQUEST["prompt"]
    assert result["output"] == result["video"]["url"]
    assert result["video"]["content_type"] == "video/mp4"
    assert set(result["metrics"]) == {
        "inference_time", "queue_time", "total_time", "cost", "remaining_credits",
    }  # fmt: skip
    video = httpx2.get(result["output"])
    assert video.headers["content-type"] == "video/mp4"
    assert len(video.content) == result["video"]["file_size"]


def test_run_sync_answers_with_the_video_and_its_headers(server: Stack) -> None:
    response = server.sdk().run_sync("mochi-1", prompt="a pond", frames=7, seed=3)
    assert response.headers["content-type"] == "video/mp4"
    assert response.content[4:8] == b"ftyp"
    assert response.headers["x-seed-value"] == "3"
    assert float(response.headers["x-generation-time"]) > 0
    assert {"x-request-id", "x-cost", "x-remaining-credits"} <= set(response.headers)


def test_submit_async_then_wait_follows_a_request_to_its_end(server: Stack) -> None:
    job = server.sdk().submit_async("mochi-1", prompt="a pond", frames=7)
    assert job.submit_response["status"] == "QUEUED"
    assert job.submit_response["poll_url"].endswith(f"/v1/requests/{job.request_id}")
    assert job.status()["status"] in {"QUEUED", "PROCESSING", "COMPLETED"}
    result = job.wait(timeout=30, interval=0.05)
    assert result["status"] == "COMPLETED"
    assert job.status()["status"] == "COMPLETED"
    assert job.status()["progress"] == 100


def test_poll_url_answers_as_the_result_does(server: Stack) -> None:
    key = server.key()
    job = server.sdk(key).submit_async("mochi-1", prompt="a pond", frames=1)
    result = job.wait(timeout=30, interval=0.05)
    poll_url = job.submit_response["poll_url"]
    assert httpx2.get(poll_url, headers={"x-api-key": key}).json() == result


def test_warnings_come_with_the_end_and_not_before(server: Stack) -> None:
    job = server.sdk().submit_async(
        "mochi-1", prompt="a pond", frames=1, **{SCENARIO: "warn:The prompt was cut."}
    )
    followed = [job.status()]
    while followed[-1]["status"] != "COMPLETED":
        followed.append(job.status())
    before, after = followed[:-1], followed[-1]
    assert {body["status"] for body in before} <= {"QUEUED", "PROCESSING"}
    assert before
    assert not [body for body in before if "warnings" in body or "precision" in body]
    assert after["warnings"] == ["The prompt was cut."]
    assert job.result()["warnings"] == ["The prompt was cut."]


def test_what_is_as_it_was_asked_for_has_an_empty_list_of_warnings(server: Stack) -> None:
    job = server.sdk().submit_async("mochi-1", prompt="a pond", frames=1)
    result = job.wait(timeout=30, interval=0.05)
    assert result["warnings"] == job.status()["warnings"] == []


def test_pictures_without_a_model_have_no_precision(server: Stack) -> None:
    assert "precision" not in server.sdk().run("mochi-1", prompt="a pond", frames=1)


def test_a_failed_request_raises_inference_failed_with_its_detail(server: Stack) -> None:
    job = server.sdk().submit_async(
        "mochi-1", prompt="a pond", **{SCENARIO: "fail:the lens cap was on"}
    )
    with pytest.raises(InferenceFailed) as failure:
        job.wait(timeout=30, interval=0.05)
    assert failure.value.detail == "the lens cap was on"
    assert failure.value.status_body["status"] == "FAILED"
    assert "cost" not in failure.value.status_body["metrics"]
    assert job.result()["error"] == "the lens cap was on"


def test_run_sync_raises_when_its_request_fails(server: Stack) -> None:
    with pytest.raises(SegmindError) as failure:
        server.sdk().run_sync("mochi-1", prompt="a pond", **{SCENARIO: "fail:the lens cap was on"})
    assert failure.value.status == 422
    assert failure.value.detail == "the lens cap was on"


def test_a_bug_in_the_engine_fails_the_request_and_shows_nothing_of_itself(server: Stack) -> None:
    with pytest.raises(InferenceFailed) as failure:
        server.sdk().run("mochi-1", prompt="a pond", **{SCENARIO: "bug"})
    assert failure.value.detail == "The worker failed on this request; its log says why."
    assert failure.value.status_body["error_code"] == "internal"
    assert server.sdk().run("mochi-1", prompt="the next one", frames=1)["status"] == "COMPLETED"


def test_out_of_memory_fails_the_request_and_the_worker_lives_on(server: Stack) -> None:
    with pytest.raises(InferenceFailed) as failure:
        server.sdk().run("mochi-1", prompt="a pond", **{SCENARIO: "out_of_memory"})
    assert failure.value.status_body["error_code"] == "out_of_memory"
    assert server.sdk().run("mochi-1", prompt="the next one", frames=1)["status"] == "COMPLETED"


def test_wait_times_out_and_polling_goes_on_afterwards(server: Stack) -> None:
    job = server.sdk().submit_async("mochi-1", prompt="a pond", frames=7, steps=75)
    with pytest.raises(InferenceTimeout) as timeout:
        job.wait(timeout=0.1, interval=0.05)
    assert timeout.value.request_id == job.request_id
    assert eventually(lambda: job.status()["status"] == "COMPLETED")
    assert job.result()["output"]


def test_unknown_ids_and_those_of_another_key_are_the_same_404(server: Stack) -> None:
    job = server.sdk().submit_async("mochi-1", prompt="a secret pond", frames=1)
    stranger = server.http()
    for request_id in (job.request_id, "00000000-0000-4000-8000-000000000000"):
        for path in (
            f"/v2/requests/{request_id}",
            f"/v2/requests/{request_id}/status",
            f"/v1/requests/{request_id}",
        ):
            answer = stranger.get(path)
            assert answer.status_code == 404
            assert answer.json() == {"error": f"Request {request_id} not found"}


def test_a_drawn_seed_is_reported_and_gives_the_same_video_again(server: Stack) -> None:
    drawn = server.sdk().run_sync("mochi-1", prompt="a pond", frames=2, seed=-1)
    seed = int(drawn.headers["x-seed-value"])
    assert seed >= 0
    again = server.sdk().run_sync("mochi-1", prompt="a pond", frames=2, seed=seed)
    assert again.content == drawn.content


def test_the_balance_can_be_asked_for(server: Stack) -> None:
    balance = server.http().get("/v1/get-user-credits").json()
    assert set(balance) == {"credits", "free-credits"}
    assert all(isinstance(value, float) for value in balance.values())


def test_a_bearer_token_is_as_good_as_x_api_key(server: Stack) -> None:
    answer = httpx2.get(
        f"{server.url}/v1/get-user-credits", headers={"Authorization": f"Bearer {server.key()}"}
    )
    assert answer.status_code == 200
