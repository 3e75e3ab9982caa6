"""Requests a minute and jobs at once of a key, for all gateways together (A13)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import httpx2
import pytest

from tests.support.stack import Stack
from worker.store import keyspace

POND = {"prompt": "a pond", "frames": 1, "steps": 10}
BURST = 60
MINUTE_MS = 60_000


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, list[str]]]:
    """Two gateways and no worker: what is accepted waits."""
    with Stack(tmp_path_factory.mktemp("limits"), engine="fake", most_waiting="100000") as stack:
        yield stack, [stack.start_gateway(), stack.start_gateway()]


def burst(urls: list[str], key: str, size: int = BURST) -> list[httpx2.Response]:
    """The answers to submits that come at once, over all gateways in turn."""
    with (
        httpx2.Client(headers={"x-api-key": key}, timeout=60) as client,
        ThreadPoolExecutor(size) as threads,
    ):

        def ask(number: int) -> httpx2.Response:
            return client.post(f"{urls[number % len(urls)]}/v2/mochi-1", json=POND)

        return [*threads.map(ask, range(size))]


def statuses(answers: list[httpx2.Response]) -> dict[int, int]:
    return dict(Counter(answer.status_code for answer in answers))


def as_if_submitted(stack: Stack, key: str, *, earlier_ms: int) -> None:
    """Shift the times at which the key submitted."""
    recent = keyspace.RATE + stack.owner(key)
    for name in cast("list[str]", stack.redis.zrange(recent, 0, -1)):
        stack.redis.zincrby(recent, -earlier_ms, name)


def test_a13_a_burst_over_two_gateways_gets_as_many_as_a_minute_has(
    stack: tuple[Stack, list[str]], times: Callable[[int, int], int], figure: Callable[[str], None]
) -> None:
    it, urls = stack
    rounds = times(2, 10)
    key = it.key(requests_per_minute=20)
    for _ in range(rounds):
        assert statuses(burst(urls, key)) == {200: 20, 429: BURST - 20}
        as_if_submitted(it, key, earlier_ms=MINUTE_MS)
    assert it.redis.scard(keyspace.LIVE + it.owner(key)) == 20 * rounds
    figure(f"A13: {rounds} bursts of {BURST} over two gateways, each accepted exactly 20")


def test_a13_a_burst_over_two_gateways_gets_as_many_jobs_as_may_be_at_once(
    stack: tuple[Stack, list[str]], times: Callable[[int, int], int]
) -> None:
    it, urls = stack
    for _ in range(times(2, 10)):
        key = it.key(jobs_at_once=5)
        assert statuses(burst(urls, key)) == {200: 5, 429: BURST - 5}


def test_a13_the_queues_limit_is_kept_exactly_over_two_gateways(tmp_path: Path) -> None:
    with Stack(tmp_path, engine="fake", most_waiting="9") as stack:
        urls = [stack.start_gateway(), stack.start_gateway()]
        assert statuses(burst(urls, stack.key())) == {200: 9, 429: BURST - 9}


def test_who_is_too_fast_is_told_how_long_to_wait(stack: tuple[Stack, list[str]]) -> None:
    it, _ = stack
    client = it.http(it.key(requests_per_minute=2))
    left = []
    for _ in range(2):
        answer = client.post("/v2/mochi-1", json=POND)
        assert answer.headers["x-ratelimit-limit"] == "2"
        left.append(answer.headers["x-ratelimit-remaining"])
    assert left == ["1", "0"]
    refused = client.post("/v1/mochi-1", json=POND)  # without a worker, that is said first
    assert refused.status_code == 502
    refused = client.post("/v2/mochi-1", json=POND)
    assert refused.status_code == 429
    seconds = int(refused.headers["retry-after"])
    assert 1 <= seconds <= 60
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert refused.headers["x-ratelimit-reset"] == str(seconds)
    reset = datetime.fromisoformat(refused.headers["x-rate-limit-reset-at-utc"])
    assert abs(reset - datetime.now(UTC)) < timedelta(minutes=2)
    assert refused.json()["error"].startswith("This API key may submit 2 requests a minute, and")


def test_who_has_no_limit_is_told_of_none(stack: tuple[Stack, list[str]]) -> None:
    it, _ = stack
    answer = it.http().post("/v2/mochi-1", json=POND)
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


def test_only_what_is_accepted_counts(stack: tuple[Stack, list[str]]) -> None:
    """Neither a bad request, nor a replay, nor what was refused for another reason."""
    it, _ = stack
    key = it.key(requests_per_minute=3, jobs_at_once=2)
    client = it.http(key)
    replayed = {"idempotency-key": "again"}
    for _ in range(3):
        assert client.post("/v2/mochi-1", json={"prompt": ""}).status_code == 400
        assert client.post("/v2/mochi-1", json=POND, headers=replayed).status_code == 200
    assert client.post("/v2/mochi-1", json=POND).headers["x-ratelimit-remaining"] == "1"
    busy = client.post("/v2/mochi-1", json=POND)
    assert busy.status_code == 429
    assert busy.json()["error"].startswith("This API key may have 2 requests at once, and has")
    assert it.redis.zcard(keyspace.RATE + it.owner(key)) == 2


def test_polling_is_never_limited(stack: tuple[Stack, list[str]]) -> None:
    it, _ = stack
    client = it.http(it.key(requests_per_minute=1, jobs_at_once=1))
    request_id = client.post("/v2/mochi-1", json=POND).json()["request_id"]
    assert client.post("/v2/mochi-1", json=POND).status_code == 429
    polls = {client.get(f"/v2/requests/{request_id}/status").status_code for _ in range(100)}
    assert polls == {200}


def test_a_job_that_ends_makes_room_for_another(stack: tuple[Stack, list[str]]) -> None:
    it, _ = stack
    client = it.http(it.key(jobs_at_once=1))
    for _ in range(3):
        request_id = client.post("/v2/mochi-1", json=POND).json()["request_id"]
        assert client.post("/v2/mochi-1", json=POND).status_code == 429
        assert client.delete(f"/v2/requests/{request_id}").status_code == 202


def test_a_minute_that_has_gone_by_makes_room(stack: tuple[Stack, list[str]]) -> None:
    it, _ = stack
    key = it.key(requests_per_minute=1)
    client = it.http(key)
    for _ in range(3):
        assert client.post("/v2/mochi-1", json=POND).status_code == 200
        assert client.post("/v2/mochi-1", json=POND).status_code == 429
        as_if_submitted(it, key, earlier_ms=MINUTE_MS)


def test_a_clock_that_was_set_back_blocks_no_key(stack: tuple[Stack, list[str]]) -> None:
    it, _ = stack
    key = it.key(requests_per_minute=1)
    client = it.http(key)
    assert client.post("/v2/mochi-1", json=POND).status_code == 200
    as_if_submitted(it, key, earlier_ms=-60 * MINUTE_MS)
    assert client.post("/v2/mochi-1", json=POND).status_code == 200


def test_limits_of_one_key_are_nothing_to_another(stack: tuple[Stack, list[str]]) -> None:
    it, _ = stack
    for _ in range(2):
        client = it.http(it.key(requests_per_minute=1, jobs_at_once=1))
        assert client.post("/v2/mochi-1", json=POND).status_code == 200
