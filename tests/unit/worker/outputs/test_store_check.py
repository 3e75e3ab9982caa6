"""Gateways and workers compare the marks of their stores again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from tests.support.jobs import live
from worker.broker.connection import AsyncClient, connect_gateway
from worker.broker.health import BrokerLog
from worker.errors import OtherStoreError, StorageError, StoreUnverifiedError
from worker.outputs.base import MARK_SECONDS, MARKER
from worker.outputs.local import LocalOutputs
from worker.outputs.store_check import GRACE_SECONDS, StoreCheck
from worker.process.shutdown import Stop
from worker.runtime.background import read_mark
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.reconciler import Reconciler
from worker.store import keyspace
from worker.store.gateway_side import GatewayStore
from worker.store.worker_side import WorkerStore


class Silent(LocalOutputs):
    """A bucket that does not answer while `is_silent`."""

    is_silent = False

    def mark(self) -> str:
        if self.is_silent:
            raise StorageError("s3://videos at store.example does not answer")
        return super().mark()


class Deployment:
    """Workers of one folder, and a gateway's check that looks at any."""

    def __init__(self, redis: Redis, folder: Path) -> None:
        self.redis = redis
        self.outputs = Silent(folder)
        self.now = 0.0
        self.connections: list[AsyncClient] = []

    def worker(self, name: str, outputs: LocalOutputs | None = None) -> Heartbeat:
        store = WorkerStore(self.redis, lease_seconds=10, retention_seconds=60)
        heartbeat = Heartbeat(
            live(name),
            store,
            Reconciler(store, lease_seconds=10),
            BrokerLog(""),
            stall_seconds=60,
            stop=Stop(),
        )
        self.beat(heartbeat, outputs)
        return heartbeat

    def beat(self, heartbeat: Heartbeat, outputs: LocalOutputs | None = None) -> None:
        read_mark(outputs or self.outputs, heartbeat)
        heartbeat._beat()

    def gateway(self, url: str, outputs: LocalOutputs | None = None) -> StoreCheck:
        self.connections.append(connect_gateway(url))
        store = GatewayStore(self.connections[-1], most_waiting=9, retention_seconds=60)
        return StoreCheck(outputs or self.outputs, store, clock=lambda: self.now)

    def do(self, *steps: Callable[[], object]) -> None:
        """Run the steps in one loop; a coroutine is awaited."""

        async def run() -> None:
            for step in steps:
                result = step()
                if isinstance(result, Awaitable):
                    await result
            for connection in self.connections:
                await connection.aclose()

        asyncio.run(run())


@pytest.fixture
def made(redis: Redis, tmp_path: Path) -> Deployment:
    return Deployment(redis, tmp_path / "outputs")


def test_a_mark_that_is_deleted_is_replaced_without_a_refusal_or_a_restart(
    made: Deployment, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    ann, bob = made.worker("ann"), made.worker("bob")
    old, new = made.gateway(redis_url), made.gateway(redis_url)
    refusals: list[StoreUnverifiedError | None] = []

    async def look() -> None:
        await old.look()
        refusals.append(old.refusal)

    made.do(
        look,
        (tmp_path / "outputs" / MARKER).unlink,
        lambda: made.beat(ann),
        look,
        lambda: made.beat(bob),
        look,
        new.look,
    )
    assert refusals == [None] * 3
    assert new.problem is None
    assert redis.get(keyspace.STORE) == (tmp_path / "outputs" / MARKER).read_text()
    assert redis.zcard(keyspace.WORKERS) == 2


def test_a_share_that_is_unmounted_under_a_gateway_is_noticed(
    made: Deployment, redis_url: str, tmp_path: Path
) -> None:
    made.worker("ann")
    outputs = LocalOutputs(tmp_path / "outputs")
    gateway = made.gateway(redis_url, outputs)

    def unmount() -> None:
        outputs._folder = tmp_path / "beneath" / "outputs"
        made.now += MARK_SECONDS

    def later() -> None:
        made.now += GRACE_SECONDS

    made.do(gateway.look, unmount, gateway.look, later, gateway.look)
    assert isinstance(gateway.refusal, OtherStoreError)


def test_a_worker_with_another_store_stops_no_gateway_that_serves_the_other_workers(
    made: Deployment, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    elsewhere = LocalOutputs(tmp_path / "elsewhere")
    made.worker("ann")
    right, wrong = made.gateway(redis_url), made.gateway(redis_url, elsewhere)
    made.do(right.look, lambda: made.worker("bob", elsewhere), right.look, wrong.look, right.look)
    assert (right.refusal, right.problem) == (None, None)
    assert isinstance(wrong.refusal, OtherStoreError)
    assert redis.get(keyspace.STORE) == made.outputs.mark()


def test_a_silent_store_is_not_called_another_one(made: Deployment, redis_url: str) -> None:
    gateway, fresh = made.gateway(redis_url), made.gateway(redis_url)
    made.worker("ann")

    def silence() -> None:
        made.outputs.is_silent = True
        made.now += MARK_SECONDS

    def speak() -> None:
        made.outputs.is_silent = False

    problems: list[StoreUnverifiedError | None] = []

    async def look() -> None:
        await gateway.look()
        problems.append(gateway.problem)

    made.do(look, silence, look, fresh.look, speak, look)
    assert [problems[0], problems[2]] == [None, None]
    assert "does not answer" in str(problems[1])
    assert "example" not in str(problems[1])
    assert gateway.refusal is None  # it has checked these workers
    assert type(fresh.refusal) is StoreUnverifiedError


def test_a_worker_keeps_the_mark_that_it_read_before_the_store_fell_silent(
    made: Deployment, redis: Redis
) -> None:
    ann = made.worker("ann")
    before = ann.worker
    made.outputs.is_silent = True
    made.beat(ann)
    assert ann.worker == before
    made.outputs.is_silent = False
    ann.worker = replace(ann.worker, store="")
    made.beat(ann)
    assert redis.zrange(keyspace.WORKERS, 0, -1) == [str(before)]
