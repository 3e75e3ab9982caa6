"""F16 and F17: several look after the dead at once, or the one who does dies as well."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis
from structlog.testing import capture_logs

from tests.faults.support.proxy import LossyProxy
from tests.support.jobs import end_lease, find, pop, submit, waiting
from tests.support.stack import Stack, eventually
from worker.broker.connection import connect_briefly
from worker.job import Status
from worker.runtime.reconciler import POPPED_SECONDS, Reconciler
from worker.store import keyspace
from worker.store.worker_side import Lease, WorkerStore

RECONCILERS = 3
LEASE_SECONDS = 10.0
REPAIR_SECONDS = 30.0
"""Promised, from the death of the one who was about to repair."""

Times = Callable[[int, int], int]


class Bench:
    """Reconcilers with a client each, and seconds that the test lets pass."""

    def __init__(self, url: str) -> None:
        self.now = 0.0
        self.clients = [connect_briefly(url) for _ in range(RECONCILERS)]
        self.stores = [
            WorkerStore(client, lease_seconds=LEASE_SECONDS, retention_seconds=60)
            for client in self.clients
        ]
        self._reconcilers = [
            Reconciler(store, lease_seconds=LEASE_SECONDS, monotonic=lambda: self.now)
            for store in self.stores
        ]
        self._threads = ThreadPoolExecutor(RECONCILERS)

    def look(self, seconds: int) -> None:
        """All at once, every second."""
        for _ in range(seconds):
            self.now += 1
            if self.clients[0].exists(keyspace.LOOKS):
                self.clients[0].hincrby(keyspace.LOOKS, "since", -1000)
            list(self._threads.map(Reconciler.reconcile, self._reconcilers))

    def close(self) -> None:
        """End the threads and connections."""
        self._threads.shutdown()
        for client in self.clients:
            client.close()


@pytest.fixture
def bench(redis_url: str) -> Iterator[Bench]:
    bench = Bench(redis_url)
    yield bench
    bench.close()


@pytest.mark.parametrize("died_in", ["run", "pop"])
def test_f16_of_three_reconcilers_at_once_exactly_one_puts_a_request_back(
    bench: Bench, redis: Redis, redis_url: str, times: Times, died_in: str
) -> None:
    bench.look(int(LEASE_SECONDS))
    ids = []
    for _ in range(times(10, 60)):
        request_id = submit(redis_url)
        assert pop(redis) == request_id
        if died_in == "run":
            assert bench.stores[0].start(Lease(request_id, "run"), "ann")
            end_lease(redis, request_id)
        with capture_logs() as logs:
            bench.look(1 if died_in == "run" else int(POPPED_SECONDS) + 2)
        recovered = {"request_id": request_id, "outcome": "requeued"}
        assert [log for log in logs if log.items() >= recovered.items()] == logs
        assert len(logs) == 1
        assert waiting(redis) == [request_id]
        job = find(redis_url, request_id)
        assert (job.status, job.attempt, job.position) == (Status.QUEUED, 1, 1)
        assert pop(redis) == request_id
        assert bench.stores[0].start(Lease(request_id, "again"), "bob")
        for store in bench.stores:  # each reconciler, also one that comes late
            assert store.reap(request_id) is store.recover(request_id) is None
        ids.append(request_id)
    bench.look(1)
    assert waiting(redis) == []
    assert {find(redis_url, request_id).attempt for request_id in ids} == {2}


@pytest.mark.timeout(300)
def test_f17_a_worker_killed_as_it_repairs_leaves_the_repair_to_another(
    tmp_path: Path, figure: Callable[[str], None], times: Times
) -> None:
    """There is no lock that it could leave behind. Killed before and after each step of a pass."""
    settings = {"engine": "fake", "fake_step_seconds": "0.05", "lease_seconds": "2"}
    seconds = []
    with Stack(tmp_path, **settings) as stack, LossyProxy(stack.broker.url) as proxy:
        moments = [(proxy.before, "reap"), (proxy.after, "reap")]
        moments += [(proxy.before, "overdue"), (proxy.after, "overdue")]
        runs = stack.start_worker()
        for when, step in moments[: times(1, 4)]:
            repairs = stack.start_worker(redis_url=proxy.url)
            request_id = submit_to(runs, stack)
            when(step, repairs.kill)
            runs.kill()
            assert repairs.wait(20) == -signal.SIGKILL
            killed = time.monotonic()
            assert find(stack.broker.url, request_id).status is not Status.COMPLETED
            runs = stack.start_worker()
            eventually(lambda: is_run_by(runs, stack, request_id), seconds=REPAIR_SECONDS)
            seconds.append(time.monotonic() - killed)
            eventually(lambda: find(stack.broker.url, request_id).status is Status.COMPLETED)
            # The one that was killed right after its repair may have popped the request as well.
            assert find(stack.broker.url, request_id).attempt in {2, 3}
            assert len([name for name in stack.outputs() if request_id in name]) == 1
    figure(f"F17: repaired by another after {max(seconds):.1f} s at most, its start included")


def submit_to(worker: subprocess.Popen[bytes], stack: Stack) -> str:
    """A request that `worker` runs. What another takes first is only in the way."""
    while True:
        request_id = submit(stack.broker.url, steps=20)
        eventually(lambda: find(stack.broker.url, request_id).step >= 2)
        if is_run_by(worker, stack, request_id):
            return request_id


def is_run_by(worker: subprocess.Popen[bytes], stack: Stack, request_id: str) -> bool:
    return f"-{worker.pid}-" in stack.record(request_id).get("worker", "")
