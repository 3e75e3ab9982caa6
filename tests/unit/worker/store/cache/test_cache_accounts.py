"""What cached videos cost, count for, and need of a key's limits."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from redis import Redis

from server.keys.times import broker_time
from tests.support.jobs import OWNER, ask_gateway, pop
from tests.unit.worker.support.cached import (
    ACCOUNT,
    KEY,
    OTHER,
    POND,
    QUARTER,
    complete,
    find,
    make,
    start,
    submit,
    submit_all,
)
from worker.billing import MILLION, Price
from worker.errors import QueueFullError, TooFewCreditsError, TooManyJobsError
from worker.job import Status
from worker.store import keyspace
from worker.store.reports.usage import Period, read_usages
from worker.store.submits import (
    NewRequest,
    cache_key_of,
)
from worker.store.webhooks.deliveries import all_deliveries
from worker.store.worker_side import WorkerStore


def test_a_cached_video_costs_its_share(redis: Redis, redis_url: str, store: WorkerStore) -> None:
    redis.hset(ACCOUNT, mapping={"balance": 9 * MILLION, "reserved": 0, "charged": 0})
    first, twin = submit(redis_url, price=QUARTER), submit(redis_url, price=QUARTER)
    complete(store, start(store, redis))
    hit = submit(redis_url, price=QUARTER)
    costs = [find(redis_url, name).cost for name in (first, twin, hit)]
    assert costs == [4 * MILLION, MILLION, MILLION]
    assert redis.hmget(ACCOUNT, "balance", "reserved", "charged") == [
        *(str(3 * MILLION), "0", str(6 * MILLION)),
    ]
    assert find(redis_url, hit).remaining == 3 * MILLION


def test_a_share_of_gpu_time_is_that_of_the_run(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    price = Price(0, MILLION, 600, Decimal("0.5"))
    submit(redis_url, price=price)
    lease = start(store, redis)
    begun = int(str(redis.hget(keyspace.record(lease.request_id), "started_at")))
    redis.hset(keyspace.record(lease.request_id), "started_at", begun - 10_000)
    maker = find(redis_url, complete(store, lease))
    assert maker.cost >= 10 * MILLION
    assert find(redis_url, submit(redis_url, price=price)).cost == round(maker.cost / 2)


def test_a_share_is_one_of_the_most_that_a_run_costs(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    price = Price(0, MILLION, 4, Decimal("0.5"))
    ids = [submit(redis_url, price=price) for _ in range(2)]
    lease = start(store, redis)
    redis.hincrby(keyspace.record(lease.request_id), "started_at", -10_000)
    complete(store, lease)
    ids.append(submit(redis_url, price=price))
    assert sorted(find(redis_url, name).cost for name in ids) == [
        *(2 * MILLION, 2 * MILLION, 4 * MILLION),
    ]


def test_a_free_video_needs_no_balance_and_no_place(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    make(store, redis, redis_url)
    redis.hset(ACCOUNT, mapping={"balance": 0, "jobs_at_once": 2, "reserved": 0, "charged": 0})
    others = [POND.model_copy(update={"seed": seed}) for seed in (20, 21)]
    ask_gateway(redis_url, lambda it: it.submit_all([*map(NewRequest, others)], OWNER))
    options: dict[str, Any] = {"price": Price(MILLION), "needs_worker": True}
    hit = submit(redis_url, most_waiting=2, **options)
    assert (find(redis_url, hit).status, find(redis_url, hit).cost) == (Status.COMPLETED, 0)
    with pytest.raises(TooFewCreditsError):
        submit(redis_url, price=Price(MILLION, cached_share=Decimal(1)))
    with pytest.raises(TooManyJobsError):
        submit_all(redis_url, count=2)
    redis.hdel(ACCOUNT, "jobs_at_once")
    with pytest.raises(QueueFullError):
        submit_all(redis_url, count=2, most_waiting=2)


def test_a_kept_video_takes_no_turn_in_the_queue(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    def submit_seed(seed: int, owner: str) -> str:
        params = POND.model_copy(update={"seed": seed})
        return ask_gateway(redis_url, lambda it: it.submit(params, owner)).request_id

    make(store, redis, redis_url)
    head = submit_seed(20, "a-third-owner")
    mine = find(redis_url, submit_all(redis_url, count=2).request_id).siblings
    others = submit_seed(21, OTHER)
    assert [pop(redis) for _ in range(3)] == [head, mine, others]


def test_a_dry_run_tells_how_many_would_be_completed_at_once(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    make(store, redis, redis_url)
    keys = [KEY, cache_key_of(POND.model_copy(update={"seed": 8}))]
    asked = ask_gateway(
        redis_url, lambda it: it.try_out(OWNER, price=QUARTER, count=2, cache_keys=keys)
    )
    assert (asked.position, asked.cached, asked.most) == (1, 1, Decimal(5))


def test_each_has_its_own_delivery_usage_and_counter(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    hook = {"webhook_url": "https://hooks.example/", "webhook_base": "https://us.example"}
    hooked = [NewRequest(POND, hook, KEY)]
    ids = [
        ask_gateway(redis_url, lambda it: it.submit_all(hooked, OWNER)).request_id for _ in range(2)
    ]
    complete(store, start(store, redis))
    ids.append(ask_gateway(redis_url, lambda it: it.submit_all(hooked, OWNER)).request_id)
    told = {each.delivery_id: each.job for each in all_deliveries(redis)}
    assert sorted(told) == sorted(ids)
    assert sorted(job.cached for job in told.values()) == [0, 1, 1]
    today = Period.latest(2, broker_time(redis).date())
    (usage,) = read_usages(redis, today)
    assert (usage.requests, usage.completed, usage.cached) == (3, 3, 2)
    counted = redis.hmget(keyspace.METRICS, "cache miss", "cache wait", "cache hit")
    assert counted == ["1", "1", "1"]


def test_no_run_is_counted_for_a_cached_video(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    submit(redis_url)
    make(store, redis, redis_url)
    before = redis.hgetall(keyspace.METRICS)
    submit(redis_url)
    after = redis.hgetall(keyspace.METRICS)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"submits accepted", "ended completed", "cache hit"}
    assert not any(str(name).startswith("stage cached") for name in after)
