"""Drafts over HTTP: eight seeds at once, pick one, finish it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.stack import Stack
from tests.support.wire import ended, refusal, submit

POND: dict[str, Any] = {"prompt": "a pond", "frames": 4, "steps": 20, "seed": 7}
DRAFT = {**POND, "draft_steps": 5}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(
        tmp_path_factory.mktemp("drafts"),
        engine="fake",
        fake_step_seconds="0.01",
        loras="ink",
        price_base="0.2",
        price_frame_step="0.01",
    ) as stack:
        stack.start_gateway()
        stack.start_worker()
        yield stack


def result(client: httpx2.Client, submitted: dict[str, Any]) -> dict[str, Any]:
    return ended(client, submitted["request_id"])


def drafted(client: httpx2.Client, **others: Any) -> dict[str, Any]:
    return result(client, submit(client, {**DRAFT, **others}))


def video(body: dict[str, Any]) -> bytes:
    assert body["status"] == "COMPLETED", body
    return httpx2.get(body["output"]).content


# Drafts


def test_a_draft_is_a_result_with_a_video_and_the_way_to_its_finish(client: httpx2.Client) -> None:
    draft = drafted(client)
    assert draft["draft"] == {
        "steps": 5,
        "total_steps": 20,
        "finish_url": f"{client.base_url}/v2/requests/{draft['request_id']}/finish",
    }
    assert len(video(draft)) == draft["video"]["file_size"]
    status = client.get(f"/v2/requests/{draft['request_id']}/status").json()
    assert (status["step"], status["total_steps"], status["progress"]) == (5, 5, 100)


def test_an_ordinary_result_says_nothing_of_drafts(client: httpx2.Client) -> None:
    submitted = submit(client, POND)
    assert "requests" not in submitted
    assert "draft" not in result(client, submitted)


def test_a_finish_makes_the_video_of_an_undisturbed_run(client: httpx2.Client) -> None:
    undisturbed = result(client, submit(client, POND))
    draft = drafted(client)
    finished = client.post(draft["draft"]["finish_url"])
    assert finished.status_code == 200
    assert {*finished.json()} == {
        *("request_id", "status", "poll_url", "status_url", "response_url"),
    }
    body = result(client, finished.json())
    assert body["seed"] == undisturbed["seed"] == 7
    assert video(body) == video(undisturbed) != video(draft)
    assert "draft" not in body


def test_a_finish_makes_the_files_that_its_draft_was_asked_for(client: httpx2.Client) -> None:
    draft = drafted(client, format="gif", poster=True)
    finished = result(client, client.post(draft["draft"]["finish_url"]).json())
    for body in (draft, finished):
        assert body["video"]["content_type"] == "image/gif"
        assert body["poster"]["content_type"] == "image/jpeg"
    assert video(finished) == video(result(client, submit(client, {**POND, "format": "gif"})))


def test_a_finish_asks_for_the_loras_of_its_draft(client: httpx2.Client) -> None:
    inked = {**POND, "lora": {"ink": 0.5}}
    draft = result(client, submit(client, {**inked, "draft_steps": 5}))
    finished = result(client, client.post(draft["draft"]["finish_url"]).json())
    assert video(finished) == video(result(client, submit(client, inked))) != video(draft)


def test_each_pays_for_the_steps_that_it_runs(client: httpx2.Client) -> None:
    """A base of 0.2, and 0.01 for each step of each of 4 frames."""
    draft = drafted(client)
    finished = result(client, client.post(draft["draft"]["finish_url"]).json())
    whole = result(client, submit(client, POND))
    costs = [body["metrics"]["cost"] for body in (draft, finished, whole)]
    assert costs == pytest.approx([0.4, 0.8, 1.0])


def test_a_draft_has_one_finish(client: httpx2.Client) -> None:
    url = drafted(client)["draft"]["finish_url"]
    first, again = client.post(url), client.post(url, json={})
    assert again.json() == first.json()
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    result(client, first.json())
    assert client.post(url).json() == first.json()


def test_an_idempotency_key_finds_its_finish_and_no_other_drafts(client: httpx2.Client) -> None:
    urls = [drafted(client, seed=seed)["draft"]["finish_url"] for seed in (1, 2)]
    headers = {"idempotency-key": "the finish"}
    first = client.post(urls[0], headers=headers)
    assert client.post(urls[0], headers=headers).json() == first.json()
    assert first.json()["request_id"] in refusal(client.post(urls[1], headers=headers), 409)


def test_a_finish_that_failed_may_be_repeated(client: httpx2.Client) -> None:
    url = drafted(client)["draft"]["finish_url"]
    first = client.post(url, headers={"x-mock-scenario": "fail"})
    assert result(client, first.json())["status"] == "FAILED"
    again = client.post(url)
    assert again.json()["request_id"] != first.json()["request_id"]
    assert result(client, again.json())["status"] == "COMPLETED"


def test_a_dry_run_of_a_finish_says_its_price_and_queues_nothing(
    stack: Stack, client: httpx2.Client
) -> None:
    url = drafted(client)["draft"]["finish_url"]
    answer = client.post(f"{url}?dry_run=true")
    assert answer.json()["price"] == {"fixed": 0.8, "gpu_second": 0.0, "most": 0.8}
    assert "idempotency-replayed" not in client.post(url).headers


def test_a_finish_names_what_it_ignores(client: httpx2.Client) -> None:
    url = drafted(client)["draft"]["finish_url"]
    wrong = {"seed": 8, "steps": 40, "webhook_urll": "https://a.test"}
    answer = client.post(url, json=wrong, params={"dry-run": "1", "fps": "9"})
    assert answer.headers["x-ignored-parameters"] == "seed, steps, webhook_urll, dry-run, fps"
    body = result(client, answer.json())
    assert body["seed"] == 7
    rest = "was ignored: a finish takes only `webhook_url`, and the rest is the draft's"
    assert body["warnings"][:5] == [
        f"`seed` {rest}",
        f"`steps` {rest}",
        "`webhook_urll` is unknown and was ignored; did you mean `webhook_url`?",
        "`dry-run` in the query is unknown and was ignored; did you mean `dry_run`?",
        "`fps` in the query is unknown and was ignored",
    ]


def test_a_finish_names_all_that_is_wrong(client: httpx2.Client) -> None:
    url = drafted(client)["draft"]["finish_url"]
    answer = client.post(url, json={"webhook_url": "ftp://a.test", "x-mock-scenario": "nap"})
    assert refusal(answer, 400)
    assert answer.json()["parameters"].keys() == {"webhook_url", "x-mock-scenario"}


def test_a_body_of_a_finish_that_is_no_object_is_refused_with_one(client: httpx2.Client) -> None:
    url = drafted(client)["draft"]["finish_url"]
    text = refusal(client.post(url, json=[]), 400)
    assert text == 'The body must be a JSON object, like {"webhook_url": "…"}.'


def test_a_request_of_another_key_has_no_finish(stack: Stack, client: httpx2.Client) -> None:
    url = drafted(client)["draft"]["finish_url"]
    request_id = url.split("/")[-2]
    assert refusal(stack.http().post(url), 404) == f"Request {request_id} not found"
    unknown = url.replace(request_id, "5f6d4a52-1f43-4c5f-9d57-000000000000")
    assert "not found" in refusal(client.post(unknown), 404)


def test_what_is_no_draft_cannot_be_finished(client: httpx2.Client) -> None:
    whole = result(client, submit(client, POND))
    text = refusal(client.post(f"/v2/requests/{whole['request_id']}/finish"), 400)
    assert "is no draft" in text
    assert "`draft_steps`" in text


def test_a_draft_that_still_runs_or_has_failed_cannot_be_finished(client: httpx2.Client) -> None:
    slow = submit(client, DRAFT, **{"x-mock-scenario": "slow:60"})
    url = f"/v2/requests/{slow['request_id']}/finish"
    assert "poll it until it is COMPLETED" in refusal(client.post(url), 409)
    client.put(f"/v2/requests/{slow['request_id']}/cancel")
    assert result(client, slow)["status"] == "FAILED"
    assert "submit it again; it failed: The request was cancelled." in refusal(
        client.post(url), 409
    )


def test_a_deleted_draft_takes_its_checkpoint_along(stack: Stack, client: httpx2.Client) -> None:
    request_id = drafted(client)["request_id"]
    assert f"{request_id}.checkpoint" in stack.outputs()
    assert client.delete(f"/v1/videos/{request_id}").status_code == 200
    assert not [name for name in stack.outputs() if name.startswith(request_id)]
    assert client.post(f"/v2/requests/{request_id}/finish").status_code == 404


@pytest.mark.parametrize("steps", [0, 20, 21, -1, 2.5, "many", True, [5], 10**30])
def test_a_draft_that_is_no_part_of_the_steps_is_400(client: httpx2.Client, steps: object) -> None:
    answer = client.post("/v2/mochi-1", json={**POND, "draft_steps": steps})
    text = refusal(answer, 400)
    assert text.startswith("`draft_steps` must be a whole number from 1 to 19, fewer than `steps`;")
    assert {*answer.json()["parameters"]} == {"draft_steps"}


@pytest.mark.parametrize("steps", [1, 19, "7", 7.0])
def test_any_part_of_the_steps_makes_a_draft(client: httpx2.Client, steps: object) -> None:
    assert drafted(client, draft_steps=steps)["draft"]["steps"] == int(float(str(steps)))


def test_null_is_no_draft_and_no_count(client: httpx2.Client) -> None:
    submitted = submit(client, {**POND, "draft_steps": None, "count": None})
    assert "requests" not in submitted
    assert "draft" not in result(client, submitted)


@pytest.mark.parametrize("path", ["/v1/mochi-1", "/v1/videos"])
@pytest.mark.parametrize("field", ["draft_steps", "count"])
def test_routes_that_answer_with_one_video_name_the_one_that_takes_drafts(
    client: httpx2.Client, path: str, field: str
) -> None:
    answer = client.post(path, json={**POND, field: 2})
    assert answer.status_code == 400
    error = answer.json()["error"]
    text = error["message"] if path == "/v1/videos" else error
    assert text == (f"`{field}` works only with POST /v2/mochi-1: send it there, or leave it out.")


# Several at once


def test_a_count_makes_as_many_requests_with_the_next_seeds(client: httpx2.Client) -> None:
    submitted = submit(client, {**DRAFT, "count": 3})
    first = submitted["requests"][0]
    assert {name: submitted[name] for name in first if name != "seed"} == {
        name: first[name] for name in first if name != "seed"
    }
    bodies = [result(client, each) for each in submitted["requests"]]
    assert [body["seed"] for body in bodies] == [7, 8, 9]
    assert [each["seed"] for each in submitted["requests"]] == [7, 8, 9]
    assert all(body["draft"] for body in bodies)
    assert len({video(body) for body in bodies}) == 3


def test_each_of_several_has_the_video_of_a_request_of_its_own(client: httpx2.Client) -> None:
    requests = submit(client, {**POND, "count": 2})["requests"]
    alone = result(client, submit(client, {**POND, "seed": 8}))
    assert video(result(client, requests[1])) == video(alone)


def test_a_count_of_one_has_a_list_of_one(client: httpx2.Client) -> None:
    submitted = submit(client, {**DRAFT, "count": 1})
    assert [each["request_id"] for each in submitted["requests"]] == [submitted["request_id"]]


def test_a_drawn_seed_is_drawn_once_for_all(client: httpx2.Client) -> None:
    seeds = [each["seed"] for each in submit(client, {**DRAFT, "count": 4, "seed": -1})["requests"]]
    assert seeds == list(range(seeds[0], seeds[0] + 4))
    assert seeds[0] >= 0


def test_an_idempotency_key_finds_all_of_them(client: httpx2.Client) -> None:
    body, key = {**DRAFT, "count": 3, "seed": -1}, {"idempotency-key": "three"}
    first, again = (client.post("/v2/mochi-1", json=body, headers=key) for _ in range(2))
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert refusal(client.post("/v2/mochi-1", json=DRAFT, headers=key), 409)


@pytest.mark.parametrize("count", [0, 9, -1, 1.5, "two", True])
def test_another_count_is_400(client: httpx2.Client, count: object) -> None:
    text = refusal(client.post("/v2/mochi-1", json={**POND, "count": count}), 400)
    assert text.startswith("`count` must be a whole number from 1 to 8;")


def test_seeds_beyond_the_last_one_are_400(client: httpx2.Client) -> None:
    last = 2**63 - 1
    text = refusal(client.post("/v2/mochi-1", json={**POND, "count": 2, "seed": last}), 400)
    assert text.startswith("`seed` must be at most 2^63-2 with a `count` of 2")
    requests = submit(client, {**DRAFT, "count": 2, "seed": last - 1})["requests"]
    assert [each["seed"] for each in requests] == [last - 1, last]


def test_too_few_credits_for_all_queue_none(stack: Stack) -> None:
    client = stack.http(stack.key(credits="1.9"))
    text = refusal(client.post("/v2/mochi-1", json={**POND, "count": 2}), 406)
    assert "the 2 requests cost up to 2, and the balance is 1.9" in text
    assert client.get("/v1/videos").json()["data"] == []
    assert submit(client, POND)


@pytest.mark.parametrize("path", ["/v2/mochi-1", "/v2/mochi-1?dry_run=true"])
def test_a_count_above_what_the_key_may_ever_have_is_400(stack: Stack, path: str) -> None:
    answer = stack.http(stack.key(jobs_at_once=2)).post(path, json={**POND, "count": 3})
    assert "`count` 3 is more than the 2 requests that this API key" in refusal(answer, 400)
    assert answer.json()["parameters"].keys() == {"count"}
    assert "retry-after" not in answer.headers


def test_a_dry_run_says_the_price_of_all(client: httpx2.Client) -> None:
    def price(**body: Any) -> dict[str, float]:
        answer = client.post("/v2/mochi-1?dry_run=true", json={**POND, **body})
        found: dict[str, float] = answer.json()["price"]
        return found

    assert price() == {"fixed": 1.0, "gpu_second": 0.0, "most": 1.0}
    assert price(draft_steps=5)["most"] == 0.4
    assert price(draft_steps=5, count=8) == {"fixed": 3.2, "gpu_second": 0.0, "most": 3.2}
