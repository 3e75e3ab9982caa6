"""`POST /v2/mochi-1?dry_run=true`: what a request would cost and meet, and nothing happens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from server.keys.lookup import Scope
from tests.support.stack import Stack
from tests.support.wire import another_gateway, refusal

POND = {"prompt": "a pond", "frames": 4, "steps": 10}
MOST = "3"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """No worker: what is accepted waits."""
    with Stack(
        tmp_path_factory.mktemp("dry-run"),
        engine="fake",
        price_base="0.2",
        price_frame_step="0.02",
        price_gpu_second="0.5",
        price_most_gpu_seconds="4",
    ) as stack:
        stack.start_gateway()
        yield stack


def dry_run(client: httpx2.Client, body: object = POND) -> httpx2.Response:
    return client.post("/v2/mochi-1?dry_run=true", json=body)


def answer_to(client: httpx2.Client) -> dict[str, Any]:
    answer = dry_run(client)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_it_says_what_the_request_would_cost_and_its_place_in_the_queue(stack: Stack) -> None:
    waiting = stack.redis.zcard("mochi:waiting")
    assert answer_to(stack.http()) == {
        "dry_run": True,
        "would_be_accepted": True,
        "price": {"fixed": 1.0, "gpu_second": 0.5, "most": 3.0},
        "queue_position": waiting + 1,
        "estimated_wait_seconds": None,
        "estimated_seconds": None,
    }


def test_nothing_is_queued_and_nothing_counted(stack: Stack) -> None:
    key = stack.key(credits="9", jobs_at_once=1, requests_per_minute=1)
    client = stack.http(key)
    before = {name: stack.redis.dump(name) for name in stack.redis.scan_iter()}
    for _ in range(3):
        assert answer_to(client)["would_be_accepted"]
    assert {name: stack.redis.dump(name) for name in stack.redis.scan_iter()} == before
    assert client.post("/v2/mochi-1", json=POND).status_code == 200


@pytest.mark.parametrize("priority", [1, 4])
def test_its_place_is_the_one_that_the_request_then_gets(stack: Stack, priority: int) -> None:
    others = stack.http()
    for _ in range(4):
        others.post("/v2/mochi-1", json=POND)
    client = stack.http(stack.key(priority=priority))
    places = []
    for _ in range(3):
        promised = answer_to(client)["queue_position"]
        submitted = client.post("/v2/mochi-1?dry_run=false", json=POND).json()
        assert client.get(submitted["status_url"]).json()["queue_position"] == promised
        places.append(promised)
    assert places[0] < stack.redis.zcard("mochi:waiting")


@pytest.mark.parametrize(
    ("limits", "status", "reason"),
    [
        ({"credits": "2.9"}, 406, "costs up to 3, and the balance is 2.9"),
        ({"jobs_at_once": 1}, 429, "1 request at once"),
        ({"requests_per_minute": 1}, 429, "1 request a minute"),
    ],
)
def test_what_would_be_refused_is_priced_all_the_same(
    stack: Stack, limits: dict[str, Any], status: int, reason: str
) -> None:
    client = stack.http(stack.key(**limits))
    real = client.post("/v2/mochi-1", json=POND)
    if real.is_success:
        real = client.post("/v2/mochi-1", json=POND)
    body = answer_to(client)
    assert not body["would_be_accepted"]
    assert body["price"]["most"] == 3.0
    assert body["refusal"]["status"] == status == real.status_code
    assert reason in body["refusal"]["error"]
    assert body["refusal"].get("retry_after", 0) == pytest.approx(
        int(real.headers.get("retry-after", 0)), abs=2
    )
    assert "queue_position" not in body


@pytest.mark.parametrize("path", ["/v1/mochi-1", "/v1/videos"])
def test_elsewhere_it_is_refused_and_nothing_is_queued(stack: Stack, path: str) -> None:
    client = stack.http()
    answer = client.post(path, json=POND, params={"dry_run": "true"})
    assert answer.status_code == 400
    text = "`dry_run` works only with POST /v2/mochi-1, and with the finish of a draft."
    assert text in answer.text
    assert client.get("/v1/videos").json()["data"] == []


def test_in_a_body_it_is_refused_with_the_place_where_it_belongs(stack: Stack) -> None:
    client = stack.http()
    answer = client.post("/v2/mochi-1", json=POND | {"dry_run": True})
    assert "POST /v2/mochi-1?dry_run=true" in refusal(answer, 400)
    asked = client.post("/v2/mochi-1?dry_run=true", json=POND | {"dry_run": True})
    assert asked.json()["dry_run"] is True
    assert client.post("/v2/mochi-1", json=POND | {"dry_run": False}).is_success


def test_a_full_queue_is_told(stack: Stack) -> None:
    url = another_gateway(stack, most_waiting="1")
    client = stack.http()
    assert client.post("/v2/mochi-1", json=POND).is_success
    body = client.post(f"{url}/v2/mochi-1?dry_run=1", json=POND | {"odd": 1}).json()
    assert body["warnings"] == ["`odd` is unknown and was ignored"]
    assert body["refusal"]["status"] == 429
    assert "queue is full" in body["refusal"]["error"]


def test_bad_parameters_are_400_as_ever_and_unknown_ones_named(stack: Stack) -> None:
    client = stack.http()
    assert "`steps` must be" in refusal(dry_run(client, POND | {"steps": 9}), 400)
    odd = client.post("/v2/mochi-1?dry_run=true&count=2", json=POND | {"num_frames": 1})
    assert odd.headers["x-ignored-parameters"] == "num_frames, count"
    assert odd.json()["warnings"] == [
        "`num_frames` is unknown and was ignored; did you mean `frames`?",
        "`count` in the query was ignored: it belongs into the body",
    ]
    long_key = {"Idempotency-Key": "x" * 256}
    refused = client.post("/v2/mochi-1?dry_run=true", json=POND, headers=long_key)
    assert "`Idempotency-Key`" in refusal(refused, 400)
    reader = stack.http(stack.key(scopes=[Scope.READ]))
    assert "generate" in refusal(dry_run(reader), 403)


@pytest.mark.parametrize("query", ["dry_run=", "dry_run=yes", "dry_run=1&dry_run=0"])
def test_other_words_are_400_and_nothing_is_queued(stack: Stack, query: str) -> None:
    before = stack.redis.zcard("mochi:waiting")
    refused = stack.http().post(f"/v2/mochi-1?{query}", json=POND)
    assert "`dry_run` must be one of `true`, `1`, `false`" in refusal(refused, 400)
    assert stack.redis.zcard("mochi:waiting") == before
