"""A record that another client of the broker has overwritten with another type."""

from __future__ import annotations

import asyncio

import pytest
from redis import Redis

from tests.support.jobs import OWNER, ask_gateway, find, live, pop, submit, waiting
from worker.broker.connection import connect_gateway
from worker.errors import RequestNotFoundError
from worker.job import Status
from worker.store import keyspace
from worker.store.fleet import survey
from worker.store.reports.forecast import Forecaster
from worker.store.worker_side import Lease, Result, WorkerStore


@pytest.fixture
def store(redis: Redis) -> WorkerStore:
    return WorkerStore(redis, lease_seconds=10, retention_seconds=60)


def overwrite(redis: Redis, request_id: str) -> str:
    redis.set(keyspace.record(request_id), "no hash")
    return request_id


@pytest.fixture
def spoilt(redis: Redis, redis_url: str, store: WorkerStore) -> list[str]:
    """One that runs and one that waits, both overwritten."""
    running, waits = submit(redis_url), submit(redis_url)
    assert pop(redis) == running
    assert store.start(Lease(running, "run"), "ann")
    return [overwrite(redis, running), overwrite(redis, waits)]


def test_other_requests_have_a_forecast(
    redis: Redis, redis_url: str, store: WorkerStore, spoilt: list[str]
) -> None:
    store.beat(live())
    request_id = submit(redis_url)

    async def forecast() -> list[str]:
        async with connect_gateway(redis_url) as client:
            return list((await Forecaster(client).now()).starts)

    assert asyncio.run(forecast()) == [spoilt[1], request_id]
    assert survey(redis).waiting == 2


def test_it_is_not_found_and_others_are(redis_url: str, spoilt: list[str]) -> None:
    request_id = submit(redis_url)
    both = ask_gateway(redis_url, lambda it: it.look([spoilt[0], request_id]))
    assert [job and job.request_id for job in both] == [None, request_id]
    page = ask_gateway(redis_url, lambda it: it.page_of(OWNER, most=10))
    assert [job.request_id for job in page.jobs] == [request_id]
    ended = ask_gateway(redis_url, lambda it: it.ended([*spoilt, request_id]))
    assert ended == set(spoilt)


def test_its_owner_can_neither_cancel_nor_delete_it(redis_url: str, spoilt: list[str]) -> None:
    request_id = spoilt[0]
    with pytest.raises(RequestNotFoundError):
        ask_gateway(redis_url, lambda it: it.cancel(request_id, OWNER))
    with pytest.raises(RequestNotFoundError):
        ask_gateway(redis_url, lambda it: it.delete(request_id, OWNER))


def test_its_run_has_lost_its_lease(store: WorkerStore, spoilt: list[str]) -> None:
    lease = Lease(spoilt[0], "run")
    assert store.beat(live(), lease) == {"lost"}
    assert not store.complete(lease, Result("video", 1))
    assert not store.requeue(lease)


def test_a_worker_that_pops_it_takes_it_off_the_queue(
    redis: Redis, redis_url: str, store: WorkerStore, spoilt: list[str]
) -> None:
    request_id = submit(redis_url)
    assert pop(redis) == spoilt[1]
    assert store.start(Lease(spoilt[1], "run"), "ann") is None
    assert pop(redis) == request_id
    assert find(redis_url, request_id).status is Status.QUEUED


def test_a_reconciler_takes_it_off_every_list(
    redis: Redis, store: WorkerStore, spoilt: list[str]
) -> None:
    running, waits = spoilt
    redis.zadd(keyspace.LEASES, {running: 1})
    redis.rpush(keyspace.RQ_INTERMEDIATE, waits)
    assert store.reap(running) is None
    assert store.recover(waits) is None
    assert not redis.exists(keyspace.LEASES, keyspace.WAITING, keyspace.RQ_INTERMEDIATE)
    assert waiting(redis) == []
