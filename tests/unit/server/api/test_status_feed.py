"""The feed of a gateway, with a real broker behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from unittest.mock import AsyncMock

import pytest
from redis import Redis

from server.api import status_feed as feed
from server.api.status_feed import Feed
from tests.support.jobs import OWNER, live, pop, submit
from worker.broker.connection import connect_gateway
from worker.errors import BrokerUnavailableError
from worker.job import Job, Status
from worker.store import keyspace
from worker.store.gateway_side import GatewayStore
from worker.store.worker_side import Lease, WorkerStore

Follow = Callable[[str], Awaitable[AsyncIterator[Job | None]]]


@pytest.fixture
def store(redis: Redis) -> WorkerStore:
    return WorkerStore(redis, lease_seconds=10, retention_seconds=60)


@pytest.fixture(autouse=True)
def _is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "INTERVAL_SECONDS", 0.02)


def with_feed(url: str, test: Callable[[Feed, Follow], Awaitable[None]]) -> None:
    async def run() -> None:
        async with connect_gateway(url) as redis:
            intake = GatewayStore(redis, most_waiting=10, retention_seconds=60)
            it = Feed(intake)

            async def follow(request_id: str) -> AsyncIterator[Job | None]:
                return it.follow(await intake.find(request_id, OWNER))

            await test(it, follow)

    asyncio.run(run())


def test_a_slow_listener_hears_the_latest_and_not_all(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    async def test(_it: Feed, follow: Follow) -> None:
        followed = await follow(request_id)
        assert await anext(followed)
        lease = Lease(request_id, "run")
        store.start(lease, "ann")
        for step in range(5):
            store.beat(live(), lease, step)
            await asyncio.sleep(0.1)
        latest = await anext(followed)
        assert latest
        assert latest.step == 4

    request_id = submit(redis_url)
    pop(redis)
    with_feed(redis_url, test)


def test_what_changes_is_told_once_and_silence_is_broken_now_and_then(
    store: WorkerStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "HEARTBEAT_SECONDS", 0.3)

    async def test(_it: Feed, follow: Follow) -> None:
        followed = await follow(request_id)
        assert await anext(followed)
        store.start(Lease(request_id, "run"), "ann")
        told = [await anext(followed) for _ in range(3)]
        assert [job and job.status for job in told if job] == [Status.PROCESSING]
        assert told[-1] is None

    request_id = submit(redis_url)
    with_feed(redis_url, test)


def test_a_request_that_is_gone_has_no_more_to_say(redis: Redis, redis_url: str) -> None:
    async def test(_it: Feed, follow: Follow) -> None:
        followed = await follow(request_id)
        assert await anext(followed)
        redis.delete(keyspace.record(request_id))
        assert [job async for job in followed] == []

    request_id = submit(redis_url)
    with_feed(redis_url, test)


def test_a_look_that_fails_ends_no_listening(
    store: WorkerStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(_it: Feed, follow: Follow) -> None:
        followed = await follow(request_id)
        assert await anext(followed)
        with monkeypatch.context() as patched:
            for error in (BrokerUnavailableError, RuntimeError):
                patched.setattr(GatewayStore, "look", AsyncMock(side_effect=error))
                await asyncio.sleep(0.1)
        store.start(Lease(request_id, "run"), "ann")
        now = await anext(followed)
        assert now
        assert now.status is Status.PROCESSING

    request_id = submit(redis_url)
    with_feed(redis_url, test)


def test_who_is_let_go_leaves_and_so_does_who_comes_later(redis_url: str) -> None:
    async def test(it: Feed, follow: Follow) -> None:
        followed = await follow(request_id)
        assert await anext(followed)
        it.stop()
        assert [job async for job in followed] == []
        assert [job.request_id async for job in await follow(request_id) if job] == [request_id]
        assert not it._listeners

    request_id = submit(redis_url)
    with_feed(redis_url, test)
