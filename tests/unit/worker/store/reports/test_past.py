"""The history of a key: its bounds, and who adds to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, TypeVar

import pytest
from redis import Redis

from models.request.params import GenerateParams
from tests.support.jobs import OWNER, end_lease, params, pop
from worker.broker.connection import connect_gateway
from worker.errors import RequestNotFoundError
from worker.job import Status
from worker.store import keyspace
from worker.store.gateway_side import GatewayStore
from worker.store.reports.history import MOST_PROMPT, Entry, History
from worker.store.worker_side import Lease, Result, WorkerStore

PAST = keyspace.PAST + OWNER
TIMES = keyspace.PAST_TIMES + OWNER
READS = ("xrange", "xrevrange")
DAY_MS = 24 * 60 * 60 * 1000
MOST = 10_000

_Result = TypeVar("_Result")


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


def ask(url: str, question: Callable[[History], Awaitable[_Result]], *, days: int = 90) -> _Result:
    async def run() -> _Result:
        async with connect_gateway(url) as redis:
            gateway = GatewayStore(redis, most_waiting=10, retention_seconds=60)
            return await question(History(redis, gateway, days=days))

    return asyncio.run(run())


def entries(url: str, *, days: int = 90) -> list[Entry]:
    return ask(url, lambda it: it.entries(OWNER), days=days)


def test_the_history_writes_each_parameter_as_the_record_does(redis: Redis, redis_url: str) -> None:
    request_id = submit(redis_url)
    record: Any = redis.hgetall(f"mochi:request:{request_id}")
    asked, kept = json.loads(record["params"]), json.loads(record["history_params"])
    assert json.dumps(kept) == json.dumps({name: asked[name] for name in kept})  # 16.0, not 16


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


def test_a_long_history_is_read_in_few_calls(redis: Redis, redis_url: str) -> None:
    most = 20
    add_rows(redis, range(MOST), completed={*range(0, MOST, 2)})
    calls(redis)
    assert {entry.request_id for entry in entries(redis_url)} == {*map(str, range(MOST))}
    assert calls(redis) == 11
    newest = ask(redis_url, lambda it: it.latest_videos(OWNER, most))
    expected = range(MOST - 2, MOST - 2 - 2 * most, -2)
    assert [entry.request_id for entry in newest] == [*map(str, expected)]
    assert calls(redis) == 1
    assert ask(redis_url, lambda it: it.find("17", OWNER)).error == "no"
    assert calls(redis) == 1
    for request_id, owner in ((str(MOST), OWNER), ("17", "another")):
        with pytest.raises(RequestNotFoundError):
            ask(redis_url, lambda it: it.find(request_id, owner))
    assert calls(redis) == 0


def add_rows(redis: Redis, numbers: Iterable[int], completed: Collection[int] = ()) -> None:
    """Ended requests, one each millisecond until now; submitted in the order of their ends."""
    seconds: Any = redis.time()[0]
    pipeline = redis.pipeline()
    for number in numbers:
        at = int(seconds) * 1000 - MOST + number
        status = Status.COMPLETED if number in completed else Status.FAILED
        row: dict[Any, Any] = {"id": number, "status": status, "created_at": at - 5}
        row |= {"latency_ms": 5, "cost": 1, "error": "no", "params": "{}"}
        pipeline.xadd(PAST, row, id=f"{at}-0")
        pipeline.zadd(TIMES, {str(number): at})
    pipeline.execute()


def calls(redis: Redis) -> int:
    """How often the history was read since the last question."""
    stats: Any = redis.info("commandstats")
    redis.config_resetstat()
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in READS)


def test_the_newest_videos_are_those_submitted_last_whatever_ended_last(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    first, second, failed = (start(store, redis, redis_url) for _ in range(3))
    for number, lease in enumerate((first, second, failed)):
        redis.hincrby(keyspace.record(lease.request_id), "created_at", number - 5000)
    store.complete(second, Result("b.mp4", 17))
    store.fail(failed, "internal", "no")
    store.complete(first, Result("a.mp4", 17))

    def newest(most: int) -> list[str]:
        found = ask(redis_url, lambda it: it.latest_videos(OWNER, most))
        return [entry.request_id for entry in found]

    assert newest(2) == [second.request_id, first.request_id]
    redis.delete(keyspace.record(first.request_id), keyspace.record(second.request_id))
    assert newest(1) == [second.request_id]
    assert newest(20) == [second.request_id, first.request_id]
    third = start(store, redis, redis_url)
    store.complete(third, Result("c.mp4", 17))
    assert newest(2) == [third.request_id, second.request_id]


def test_a_row_is_found_until_it_is_dropped(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    lease = start(store, redis, redis_url)
    store.fail(lease, "internal", "no")
    redis.delete(keyspace.record(lease.request_id))
    found = ask(redis_url, lambda it: it.find(lease.request_id, OWNER))
    assert (found.status, found.job) == (Status.FAILED, None)
    for days in (-1, 0):
        with pytest.raises(RequestNotFoundError):
            ask(redis_url, lambda it: it.find(lease.request_id, OWNER), days=days)
    now: Any = redis.zscore(TIMES, lease.request_id)
    redis.zadd(TIMES, {str(number): now for number in range(MOST)} | {lease.request_id: 1})
    last = start(store, redis, redis_url)
    store.fail(last, "internal", "no")
    assert redis.zcard(TIMES) == MOST
    redis.zadd(TIMES, {str(number): 1 for number in range(MOST)})
    store.fail(start(store, redis, redis_url), "internal", "no")
    assert redis.zcard(TIMES) == 2
    assert redis.zscore(TIMES, lease.request_id) is None
    assert 89.9 * DAY_MS < int(redis.pttl(TIMES)) <= 90 * DAY_MS


def test_without_days_nothing_is_written(redis: Redis, redis_url: str, store: WorkerStore) -> None:
    request_id = submit(redis_url, days=0)
    assert pop(redis) == request_id
    lease = Lease(request_id, "run")
    store.start(lease, "ann")
    store.complete(lease, Result("a.mp4", 17))
    assert not redis.exists(PAST)
    assert [entry.request_id for entry in entries(redis_url, days=0)] == [request_id]


def test_rows_are_not_served_when_the_history_is_off_again(redis: Redis, redis_url: str) -> None:
    numbers = range(MOST, MOST + 2000)  # of this very second, too
    add_rows(redis, numbers, completed=numbers)
    assert len(entries(redis_url)) == len(numbers)
    assert entries(redis_url, days=0) == []
    assert ask(redis_url, lambda it: it.latest_videos(OWNER, 20), days=0) == []
    with pytest.raises(RequestNotFoundError):
        ask(redis_url, lambda it: it.find(str(MOST), OWNER), days=0)


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


def test_the_end_of_a_revoked_keys_request_is_not_added(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    lease = start(store, redis, redis_url)
    redis.hset(keyspace.API_KEY + OWNER, "revoked_at", 1)
    store.complete(lease, Result("a.mp4", 17))
    assert not redis.exists(PAST, TIMES)


def test_a_history_of_another_type_does_not_keep_a_request_from_its_end(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    redis.set(PAST, "odd")
    lease = start(store, redis, redis_url)
    assert store.complete(lease, Result("a.mp4", 17))
    assert 0 < int(redis.pttl(keyspace.record(lease.request_id))) <= 60_000
