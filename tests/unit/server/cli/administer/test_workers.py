"""Taking workers out of service."""

from __future__ import annotations

import pytest
from redis import Redis

from server.cli.administer.workers import NoSuchWorkerError, drain_workers
from server.keys.audit import entries
from tests.faults.support.proxy import LossyProxy
from tests.support.jobs import live
from worker.broker.connection import connect_briefly
from worker.store import keyspace
from worker.store.worker_side import Order, WorkerStore


@pytest.fixture
def store(redis: Redis) -> WorkerStore:
    """With two live workers."""
    store = WorkerStore(redis, lease_seconds=60, retention_seconds=60)
    for name in ("ann", "bob"):
        store.beat(live(name))
    return store


def acts(redis: Redis) -> list[str]:
    return [f"{entry.act} {entry.subject}" for entry in entries(redis, 10)]


def test_workers_are_told_while_the_brokers_memory_is_full(
    redis: Redis, store: WorkerStore
) -> None:
    redis.config_set("maxmemory", "1")
    try:
        drain_workers(redis, [], wait=False)
    finally:
        redis.config_set("maxmemory", "0")
    assert store.beat(live("ann")) == store.beat(live("bob")) == {Order.DRAIN}
    assert acts(redis) == ["drain worker ann", "drain worker bob"]
    assert 0 < redis.ttl(keyspace.drain_order("ann")) <= keyspace.DRAIN_ORDER_SECONDS


def test_an_order_is_given_and_noted_at_once_or_not_at_all(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    def look() -> tuple[object, int]:
        return redis.exists(keyspace.drain_order("ann")), len(acts(redis))

    seen = []
    with LossyProxy(redis_url) as proxy, connect_briefly(proxy.url) as client:
        proxy.before("EVALSHA", lambda: seen.append(look()))  # as if the command had died there
        drain_workers(client, ["ann"], wait=False)
    assert store.beat(live("ann")) == {Order.DRAIN}
    assert [*seen, look()] == [(0, 0), (1, 1)]


def test_no_worker_gets_the_order_when_one_of_them_is_unknown(
    redis: Redis, store: WorkerStore
) -> None:
    with pytest.raises(NoSuchWorkerError, match=r"No live worker eve\. Alive: ann, bob\."):
        drain_workers(redis, ["ann", "eve"], wait=False)
    assert store.beat(live("ann")) == set()
    assert acts(redis) == []
