"""The history of a key: its bounds, and who adds to it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from redis import Redis

from models.params import GenerateParams
from tests.support.jobs import OWNER, end_lease, params, pop
from worker.broker.connection import connect_gateway
from worker.errors import RequestNotFoundError
from worker.job import Status
from worker.store import keyspace
from worker.store.gateway_side import GatewayStore
from worker.store.history import MOST_PROMPT, Entry, History
from worker.store.worker_side import Lease, Result, WorkerStore

PAST = keyspace.PAST + OWNER
DAY_MS = 24 * 60 * 60 * 1000
MOST = 10_000


@pytest.fixture
def store(redis: Redis) -> WorkerStore:
    return WorkerStore(redis, lease_seconds=10, retention_seconds=60)


def submit(url: str, *, days: int = 90) -> str:
    async def run() -> str:
        async with connect_gateway(url) as redis:
            gateway = GatewayStore(redis, most_waiting=10, retention_seconds=60)
            further = History(redis, gateway, days=days).record_fields(params())
            return (await gateway.submit(params(), OWNER, further=further)).request_id

    return asyncio.run(run())


def entries(url: str, *, days: int = 90) -> list[Entry]:
    async def run() -> list[Entry]:
        async with connect_gateway(url) as redis:
            gateway = GatewayStore(redis, most_waiting=10, retention_seconds=60)
            return await History(redis, gateway, days=days).entries(OWNER)

    return asyncio.run(run())


def start(store: WorkerStore, redis: Redis, url: str) -> Lease:
    request_id = submit(url)
    assert pop(redis) == request_id
    lease = Lease(request_id, "run")
    assert store.start(lease, "ann") is not None
    return lease


def rows(redis: Redis) -> list[dict[Any, Any]]:
    found: Any = redis.xrange(PAST)
    return [fields for _, fields in found]


def test_every_end_adds_one_row(redis: Redis, redis_url: str, store: WorkerStore) -> None:
    done = start(store, redis, redis_url)
    assert store.complete(done, Result("a.mp4", 17))
    assert store.complete(done, Result("a.mp4", 17))  # a retry after a lost reply
    failed = start(store, redis, redis_url)
    assert store.fail(failed, "internal", "no")
    lost = start(store, redis, redis_url)
    redis.hset(keyspace.record(lost.request_id), "attempt", keyspace.MOST_ATTEMPTS)
    end_lease(redis, lost.request_id)
    store.reap(lost.request_id)
    ended = [(row["id"], row["status"]) for row in rows(redis)]
    assert ended == [
        (done.request_id, Status.COMPLETED),
        (failed.request_id, Status.FAILED),
        (lost.request_id, Status.FAILED),
    ]
    assert not [row for row in rows(redis) if "pond" in str(row)]
    assert [entry.request_id for entry in entries(redis_url)] == [
        each.request_id for each in (lost, failed, done)
    ]


def test_the_oldest_rows_are_dropped(redis: Redis, redis_url: str, store: WorkerStore) -> None:
    lease = start(store, redis, redis_url)
    pipeline = redis.pipeline()
    for number in range(MOST):
        pipeline.xadd(PAST, {"id": number})
    pipeline.execute()
    store.fail(lease, "internal", "no")
    assert [len(rows(redis)), rows(redis)[0]["id"], rows(redis)[-1]["id"]] == [
        MOST,
        "1",
        lease.request_id,
    ]


def test_so_are_old_ones(redis: Redis, redis_url: str, store: WorkerStore) -> None:
    done = start(store, redis, redis_url)
    store.complete(done, Result("a.mp4", 17))
    (row,) = rows(redis)
    redis.delete(PAST, keyspace.record(done.request_id))
    seconds: Any = redis.time()[0]
    now_ms = int(seconds) * 1000
    for age in (91, 89):
        redis.xadd(PAST, {**row, "id": str(age)}, id=f"{now_ms - age * DAY_MS}-0")
    assert [entry.request_id for entry in entries(redis_url)] == ["89"]
    assert [entry.request_id for entry in entries(redis_url, days=88)] == []
    last = start(store, redis, redis_url)
    store.fail(last, "internal", "no")
    assert [row["id"] for row in rows(redis)] == ["89", last.request_id]
    left: Any = redis.pttl(PAST)
    assert 89.9 * DAY_MS < left <= 90 * DAY_MS  # all of it, when the key makes no more


def test_a_long_history_is_read_to_its_end(redis: Redis, redis_url: str) -> None:
    row: dict[Any, Any] = {
        **dict.fromkeys(("created_at", "latency_ms", "cost"), 1),
        "status": "FAILED",
        "error": "no",
        "params": "{}",
    }
    pipeline = redis.pipeline()
    for number in range(1200):
        pipeline.xadd(PAST, {"id": number, **row})
    pipeline.execute()
    assert {entry.request_id for entry in entries(redis_url)} == {*map(str, range(1200))}

    async def find(request_id: str, owner: str) -> Entry:
        async with connect_gateway(redis_url) as client:
            gateway = GatewayStore(client, most_waiting=10, retention_seconds=60)
            return await History(client, gateway, days=90).find(request_id, owner)

    assert asyncio.run(find("1199", OWNER)).error == "no"
    for request_id, owner in (("1200", OWNER), ("1199", "another")):
        with pytest.raises(RequestNotFoundError):
            asyncio.run(find(request_id, owner))


def test_without_days_nothing_is_written(redis: Redis, redis_url: str, store: WorkerStore) -> None:
    request_id = submit(redis_url, days=0)
    assert pop(redis) == request_id
    lease = Lease(request_id, "run")
    store.start(lease, "ann")
    store.complete(lease, Result("a.mp4", 17))
    assert not redis.exists(PAST)
    assert [entry.request_id for entry in entries(redis_url, days=0)] == [request_id]


def test_prompts_are_cut_and_gone_when_the_setting_is_off_again(
    redis: Redis, redis_url: str
) -> None:
    long = params(prompt="x" * 4000)
    kept = fields_of(redis_url, long, with_prompts=True)
    assert json.loads(kept)["prompt"] == "x" * MOST_PROMPT
    assert not {"prompt", "negative_prompt"} & {*json.loads(fields_of(redis_url, long))}
    row: dict[Any, Any] = dict.fromkeys(("created_at", "latency_ms", "cost"), 1)
    redis.xadd(PAST, {"id": "1", **row, "status": "FAILED", "error": "no", "params": kept})
    redis.xadd(PAST, {"id": "2", "of": "another version"})
    (entry,) = entries(redis_url)
    assert entry.request_id == "1"
    assert not {"prompt", "negative_prompt"} & {*entry.params}
    assert entry.params["steps"] == long.steps


def fields_of(url: str, of: GenerateParams, *, with_prompts: bool = False) -> str:
    async def run() -> str:
        async with connect_gateway(url) as redis:
            gateway = GatewayStore(redis, most_waiting=10, retention_seconds=60)
            history = History(redis, gateway, days=90, with_prompts=with_prompts)
            return history.record_fields(of)["history_params"]

    return asyncio.run(run())


def test_a_history_of_another_type_does_not_keep_a_request_from_its_end(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    redis.set(PAST, "odd")
    lease = start(store, redis, redis_url)
    assert store.complete(lease, Result("a.mp4", 17))
    assert 0 < int(redis.pttl(keyspace.record(lease.request_id))) <= 60_000
