"""The heartbeat thread: what other processes see of its worker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from redis import Redis
from typing_extensions import override

from tests.support.jobs import live
from worker.broker.health import BrokerLog
from worker.process.shutdown import Stop
from worker.runtime.heartbeat import Heartbeat
from worker.runtime.reconciler import Reconciler
from worker.store.fleet import fleet
from worker.store.presence import LiveWorker
from worker.store.worker_side import Order, WorkerStore


class Watched(WorkerStore):
    """Notes after each of its commands which workers are live."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, lease_seconds=10, retention_seconds=60)
        self.redis = redis
        self.seen: list[list[str]] = []

    def look(self) -> None:
        self.seen.append([worker.pause for worker in fleet(self.redis)])

    @override
    def beat(self, worker: LiveWorker, *args: Any, **options: Any) -> frozenset[Order]:
        orders = super().beat(worker, *args, **options)
        self.look()
        return orders

    @override
    def withdraw(self, worker: LiveWorker) -> None:
        super().withdraw(worker)
        self.look()


def test_a_worker_whose_state_changes_is_live_at_every_moment(redis: Redis) -> None:
    store = Watched(redis)
    heartbeat = Heartbeat(
        live("ann"),
        store,
        Reconciler(store, lease_seconds=10),
        BrokerLog(""),
        stall_seconds=60,
        stop=Stop(),
    )
    heartbeat._beat()
    heartbeat.worker = replace(heartbeat.worker, pause="the disk is full")
    heartbeat._beat()
    assert store.seen[0] == [""]
    assert all(store.seen)
    assert store.seen[-1] == ["the disk is full"]
