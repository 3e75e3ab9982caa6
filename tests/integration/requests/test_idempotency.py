"""The header `Idempotency-Key`: however often a client asks, there is one request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.support.stack import Stack, eventually
from tests.support.wire import another_gateway, refusal

POND: dict[str, Any] = {"prompt": "a pond", "frames": 1, "steps": 10}


def post(
    client: httpx2.Client, key: str, body: dict[str, Any] = POND, path: str = "/v2/mochi-1"
) -> httpx2.Response:
    return client.post(path, json=body, headers={"Idempotency-Key": key})


def test_the_same_key_and_body_is_answered_with_the_first_request(server: Stack) -> None:
    client = server.http()
    first, again = post(client, "one"), post(client, "one", dict(reversed(POND.items())))
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.status_code == 200
    assert again.json() == first.json()


def test_a_drawn_seed_is_drawn_once(server: Stack) -> None:
    client = server.http()
    ids = {post(client, "seed", {**POND, "seed": -1}).json()["request_id"] for _ in range(3)}
    assert len(ids) == 1


def test_another_body_under_the_key_is_409_and_names_the_request(server: Stack) -> None:
    client = server.http()
    request_id = post(client, "one").json()["request_id"]
    for other in ({**POND, "seed": 7}, {**POND, "note": "of another kind"}):
        text = refusal(post(client, "one", other), 409)
        assert request_id in text
        assert "another key" in text


def test_other_api_keys_have_idempotency_keys_of_their_own(server: Stack) -> None:
    ids = {post(server.http(), "one").json()["request_id"] for _ in range(2)}
    assert len(ids) == 2


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_that_is_empty_or_too_long_is_400(server: Stack, key: str) -> None:
    assert "`Idempotency-Key` must be one value of 1 to 255" in refusal(
        post(server.http(), key), 400
    )
    assert post(server.http(), "x" * 255).status_code == 200


def test_two_keys_are_400(server: Stack) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    answer = server.http().post("/v2/mochi-1", json=POND, headers=headers)
    assert "got 2 of them" in refusal(answer, 400)


def test_a_blocking_call_waits_for_the_request_that_was_queued_before(server: Stack) -> None:
    client = server.http()
    request_id = post(client, "both").json()["request_id"]
    video = post(client, "both", path="/v1/mochi-1")
    assert video.headers["x-request-id"] == request_id
    assert video.headers["idempotency-replayed"] == "true"
    assert video.content[4:8] == b"ftyp"
    assert post(client, "both", path="/v1/mochi-1").content == video.content


def test_fifty_submits_at_once_over_two_gateways_make_one_request(server: Stack) -> None:
    key = server.key()
    urls = [server.url, another_gateway(server)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(
            pool.map(
                lambda number: httpx2.post(
                    f"{urls[number % 2]}/v2/mochi-1",
                    json=POND,
                    headers={"x-api-key": key, "Idempotency-Key": "burst"},
                    timeout=30,
                ),
                range(50),
            )
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["request_id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1


def test_the_key_is_free_again_when_its_request_is_forgotten(server: Stack) -> None:
    client = server.http()
    request_id = post(client, "short").json()["request_id"]
    (name,) = [str(server.record(request_id)["idempotency_key"])]
    eventually(lambda: client.get(f"/v2/requests/{request_id}").json()["status"] == "COMPLETED")
    left = server.redis.pttl(name), server.redis.pttl(f"mochi:request:{request_id}")
    assert abs(left[0] - left[1]) < 100
    server.redis.delete(name, f"mochi:request:{request_id}")
    assert post(client, "short").json()["request_id"] != request_id


def test_a_waiting_request_keeps_its_key(server: Stack) -> None:
    client = server.http()
    request_id = post(client, "waits", {**POND, "steps": 75}).json()["request_id"]
    assert server.redis.pttl(server.record(request_id)["idempotency_key"]) == -1
    client.put(f"/v2/requests/{request_id}/cancel")
