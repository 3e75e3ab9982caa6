"""The poller of a gateway, with a real broker behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from unittest.mock import AsyncMock

import pytest
from redis import Redis

from server.api import poller
from server.api.poller import Poller
from server.errors import WaitTimeoutError
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
    monkeypatch.setattr(poller, "EVENT_INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(poller, "END_INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(poller, "BUG_PAUSE_SECONDS", 0.02)


def with_poller(url: str, test: Callable[[Poller, Follow], Awaitable[None]]) -> None:
    async def run() -> None:
        async with connect_gateway(url) as redis:
            gateway = GatewayStore(redis, most_waiting=10, retention_seconds=60)
            it = Poller(gateway)

            async def follow(request_id: str) -> AsyncIterator[Job | None]:
                return it.follow(await gateway.find(request_id, OWNER))

            await test(it, follow)

    asyncio.run(run())


def test_a_wait_that_begins_after_the_end_of_all_waits_ends_at_once(redis_url: str) -> None:
    async def test(it: Poller, _follow: Follow) -> None:
        it.stop_waiting()
        with pytest.raises(WaitTimeoutError, match="This gateway stops"):
            await it.wait_for_end("an-id", 1)

    with_poller(redis_url, test)


def test_a_slow_listener_hears_the_latest_and_not_all(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    async def test(_it: Poller, follow: Follow) -> None:
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
    with_poller(redis_url, test)


def test_what_changes_is_told_once_and_silence_is_broken_now_and_then(
    store: WorkerStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "HEARTBEAT_SECONDS", 0.3)

    async def test(_it: Poller, follow: Follow) -> None:
        followed = await follow(request_id)
        assert await anext(followed)
        store.start(Lease(request_id, "run"), "ann")
        told = [await anext(followed) for _ in range(3)]
        assert [job and job.status for job in told if job] == [Status.PROCESSING]
        assert told[-1] is None

    request_id = submit(redis_url)
    with_poller(redis_url, test)


def test_a_request_that_is_gone_has_no_more_to_say(redis: Redis, redis_url: str) -> None:
    async def test(_it: Poller, follow: Follow) -> None:
        followed = await follow(request_id)
        assert await anext(followed)
        redis.delete(keyspace.record(request_id))
        assert [job async for job in followed] == []

    request_id = submit(redis_url)
    with_poller(redis_url, test)


def test_a_poll_that_fails_ends_no_stream(
    store: WorkerStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(_it: Poller, follow: Follow) -> None:
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
    with_poller(redis_url, test)


def test_streams_end_when_the_gateway_stops_and_later_ones_after_a_snapshot(redis_url: str) -> None:
    async def test(it: Poller, follow: Follow) -> None:
        followed = await follow(request_id)
        assert await anext(followed)
        it.stop_events()
        assert [job async for job in followed] == []
        assert [job.request_id async for job in await follow(request_id) if job] == [request_id]
        assert not it._listeners

    request_id = submit(redis_url)
    with_poller(redis_url, test)


def test_a_call_that_waits_returns_soon_after_the_end(
    redis_url: str,
) -> None:
    async def test(it: Poller, _follow: Follow) -> None:
        calls = [asyncio.create_task(it.wait_for_end(request_id, 10)) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert not any(call.done() for call in calls)
        await it._store.cancel(request_id, OWNER)
        await asyncio.wait_for(asyncio.gather(*calls), 2)
        assert not it._waiters

    request_id = submit(redis_url)
    with_poller(redis_url, test)


def test_a_call_whose_request_is_gone_returns(redis: Redis, redis_url: str) -> None:
    async def test(it: Poller, _follow: Follow) -> None:
        call = asyncio.create_task(it.wait_for_end(request_id, 10))
        redis.delete(keyspace.record(request_id))
        await asyncio.wait_for(call, 2)

    request_id = submit(redis_url)
    with_poller(redis_url, test)


def test_a_call_that_waits_times_out_at_its_limit_or_when_the_gateway_stops(
    redis_url: str,
) -> None:
    async def test(it: Poller, _follow: Follow) -> None:
        with pytest.raises(WaitTimeoutError, match=f"poll /v2/requests/{request_id}") as error:
            await it.wait_for_end(request_id, 0.05)
        assert "stops" not in str(error.value)
        call = asyncio.create_task(it.wait_for_end(request_id, 10))
        await asyncio.sleep(0.05)
        it.stop_waiting()
        with pytest.raises(WaitTimeoutError, match="This gateway stops"):
            await call

    request_id = submit(redis_url)
    with_poller(redis_url, test)


def test_a_poll_that_fails_ends_no_waiting(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(it: Poller, _follow: Follow) -> None:
        call = asyncio.create_task(it.wait_for_end(request_id, 10))
        with monkeypatch.context() as patched:
            for error in (BrokerUnavailableError, RuntimeError):
                patched.setattr(GatewayStore, "ended", AsyncMock(side_effect=error))
                await asyncio.sleep(0.1)
        assert not call.done()
        await it._store.cancel(request_id, OWNER)
        await asyncio.wait_for(call, 2)

    request_id = submit(redis_url)
    with_poller(redis_url, test)


def test_all_clients_of_a_gateway_share_one_poll(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(it: Poller, follow: Follow) -> None:
        looked = AsyncMock(side_effect=lambda ids: [None] * len(ids))
        monkeypatch.setattr(GatewayStore, "look", looked)
        streams = [await follow(request_id) for request_id in ids for _ in range(2)]
        for stream in streams:
            assert await anext(stream)
        await asyncio.gather(*(_rest(stream) for stream in streams))
        assert {frozenset(call.args[0]) for call in looked.await_args_list} == {frozenset(ids)}

    ids = [submit(redis_url) for _ in range(2)]
    with_poller(redis_url, test)


async def _rest(stream: AsyncIterator[Job | None]) -> list[Job | None]:
    return [job async for job in stream]


def test_a_place_far_behind_is_told_less_often_than_the_head_of_the_queue(
    store: WorkerStore, redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes with each start, for every listener in a long queue."""
    monkeypatch.setattr(poller, "HEARTBEAT_SECONDS", 0.3)
    monkeypatch.setattr(poller, "NEXT", 1)
    monkeypatch.setattr(poller, "FAR_INTERVAL_SECONDS", 3600)

    async def test(_it: Poller, follow: Follow) -> None:
        near, far = [await follow(request_id) for request_id in (ids[0], ids[2])]
        assert [(await anext(near)).position, (await anext(far)).position] == [1, 3]  # type: ignore[union-attr]
        assert store.start(Lease(pop(redis) or "", "run"), "ann")
        told = await anext(near)
        assert told
        assert told.status is Status.PROCESSING
        assert await anext(far) is None  # a heartbeat
        monkeypatch.setattr(poller, "FAR_INTERVAL_SECONDS", 0.02)
        told = await anext(far)
        assert told
        assert told.position == 2

    ids = [submit(redis_url) for _ in range(3)]
    with_poller(redis_url, test)
