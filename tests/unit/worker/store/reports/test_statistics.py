"""What the scripts count while requests come and go, on a real broker."""

from __future__ import annotations

import asyncio
import time
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis

from models.engine import DeviceUse
from tests.support.jobs import OWNER, ask_gateway, end_lease, live, params, pop, submit
from worker.billing import Price
from worker.broker.connection import connect_gateway
from worker.errors import QueueFullError
from worker.process.shutdown import Stop
from worker.runtime import background
from worker.runtime.background import start_gpu_reporter
from worker.runtime.run import Run, RunEnergy, timed
from worker.store import keyspace
from worker.store.fleet import survey
from worker.store.reports.statistics import Devices, Survey, Times
from worker.store.webhooks.deliveries import Deliveries, State
from worker.store.worker_side import Lease, Result, WorkerStore

USES = [
    DeviceUse("cuda:0", 4, used_bytes=3, busy=0.5, allocated_bytes=1, reserved_bytes=2),
    DeviceUse("cuda:1", 4),
]


@pytest.fixture
def store(redis: Redis) -> WorkerStore:
    return WorkerStore(redis, lease_seconds=10, retention_seconds=60)


def started(store: WorkerStore, redis: Redis, run: str = "run") -> Lease:
    """The lease of the next request in the queue."""
    request_id = pop(redis)
    assert request_id is not None
    lease = Lease(request_id, run)
    assert store.start(lease, "ann") is not None
    return lease


def aged(redis: Redis, request_id: str, seconds: float) -> str:
    """The same request, as if it had come earlier."""
    record = keyspace.record(request_id)
    created = int(str(redis.hget(record, "created_at")))
    redis.hset(record, "created_at", created - round(seconds * 1000))
    return request_id


def counts(redis: Redis, name: str) -> dict[str, int]:
    return dict(survey(redis).counts.get(name, {}))


def test_an_end_that_is_said_twice_is_counted_once(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    aged(redis, submit(redis_url), 20)
    lease = started(store, redis)
    result = Result("a.mp4", 17, stages={"denoising": 1.5, "video": 0.2, "step": 0.05})
    assert store.complete(lease, result)
    assert store.complete(lease, result)  # its first answer was lost
    now = survey(redis)
    assert now.counts["ended"] == {"completed": 1}
    assert now.counts["submits"] == {"accepted": 1}
    wait = now.times["wait"][""]
    assert (wait.counts[30_000], sum(wait.counts.values())) == (1, 1)
    assert 20_000 <= wait.total_ms < 30_000
    assert sum(now.times["run"][""].counts.values()) == 1
    stages = now.times["stage"]
    assert {name: times.total_ms for name, times in stages.items()} == {
        "denoising": 1500,
        "video": 200,
        "step": 50,
    }
    assert (stages["step"].counts[50], stages["video"].counts[250]) == (1, 1)


def test_what_takes_longer_than_any_bound_is_counted_too(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    aged(redis, submit(redis_url), keyspace.BOUNDS_MS[-1])
    store.fail(started(store, redis), "internal", "A bug.")
    now = survey(redis)
    assert now.times["wait"][""].longer == 1
    assert "run" not in now.times  # it made no video
    assert now.counts["ended"] == {"internal": 1}


def test_workers_that_are_lost_and_what_becomes_of_their_requests(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    request_id = submit(redis_url)
    for run in range(keyspace.MOST_ATTEMPTS):
        started(store, redis, str(run))
        end_lease(redis, request_id)
        assert store.reap(request_id) is not None
        assert store.reap(request_id) is None
    assert counts(redis, "lost") == {"run": 3}
    assert counts(redis, "requeues") == {"lost": 2}
    assert counts(redis, "ended") == {"worker_lost": 1}
    submit(redis_url)
    store.requeue(started(store, redis))
    recovered = pop(redis)
    assert recovered is not None
    store.recover(recovered)
    assert counts(redis, "requeues") == {"lost": 3, "stopped": 1}
    assert counts(redis, "lost") == {"run": 3, "pop": 1}


def test_a_submit_is_counted_by_what_became_of_it(redis: Redis, redis_url: str) -> None:
    first, _ = submit(redis_url), submit(redis_url)
    with pytest.raises(QueueFullError):
        ask_gateway(redis_url, lambda it: it.submit(params(), OWNER), most_waiting=2)
    ask_gateway(redis_url, lambda it: it.cancel(first, OWNER))
    assert counts(redis, "submits") == {"accepted": 2, "queue_full": 1}
    assert counts(redis, "ended") == {"cancelled": 1}
    assert "wait" not in survey(redis).times  # it was never started


def test_webhooks_are_counted_as_owed_and_by_what_became_of_them(
    redis: Redis, redis_url: str
) -> None:
    told = {"webhook_url": "https://hooks.example/", "webhook_base": "https://us.example"}
    ids = [
        ask_gateway(redis_url, lambda it: it.submit(params(), OWNER, further=told)).request_id
        for _ in range(3)
    ]
    for name in ids:
        ask_gateway(redis_url, lambda it: it.cancel(name, OWNER))

    async def tell() -> None:
        async with connect_gateway(redis_url) as client:
            deliveries = Deliveries(client, retention_seconds=60)
            one, other, _ = await deliveries.take(3, {})
            await deliveries.note(one, State.DELIVERED, "HTTP 204")
            await deliveries.note(other, State.GIVEN_UP, "HTTP 410")

    assert survey(redis).due_webhooks == 3
    asyncio.run(tell())
    assert survey(redis).due_webhooks == 1
    assert counts(redis, "webhooks") == {"delivered": 1, "given_up": 1}
    for name in ids:
        ask_gateway(redis_url, lambda it: it.delete(name, OWNER))
    assert survey(redis).due_webhooks == 0
    assert counts(redis, "webhooks") == {"delivered": 1, "given_up": 1}


def test_the_oldest_that_waits_is_found_wherever_it_stands(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    assert survey(redis).oldest_seconds == 0
    oldest, lost, back, *_ = (submit(redis_url) for _ in range(6))
    aged(redis, oldest, 100)
    assert 100 <= survey(redis).oldest_seconds < 110
    redis.zadd(keyspace.WAITING, {oldest: 1e15})  # all others have their turn before
    assert 100 <= survey(redis).oldest_seconds < 110
    started(store, redis, "one")
    store.requeue(started(store, redis, "two"))
    end_lease(redis, lost)
    store.reap(lost)  # now the two stand before it
    assert 100 <= survey(redis).oldest_seconds < 110
    aged(redis, back, 200)
    assert 200 <= survey(redis).oldest_seconds < 210
    assert pop(redis) == lost
    assert pop(redis) == back  # popped and not started: it waits still
    now = survey(redis)
    assert 200 <= now.oldest_seconds < 210
    assert (now.waiting, now.running) == (6, 0)


def test_a_worker_tells_how_much_of_each_of_its_cards_is_used(
    store: WorkerStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "REPORT_SECONDS", 0.01)
    store.beat(live("ann"))
    store.beat(live("bob"))

    def devices() -> Devices:
        now = survey(redis)
        told = [redis.get(key) for key in now.device_keys]
        return now.devices([None if text is None else str(text) for text in told])

    readings = iter([USES])  # a card that then cannot be read any more
    thread = start_gpu_reporter("ann", lambda: next(readings), store, lambda: None)
    thread.join(10)
    assert not thread.is_alive()
    assert devices() == {"ann": USES}
    assert 0 < redis.pttl(keyspace.device("ann")) <= 10_000
    redis.set(keyspace.device("bob"), "nonsense")
    assert devices() == {"ann": USES}


def test_the_energy_of_a_run_is_read_while_it_goes_on(
    store: WorkerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "REPORT_SECONDS", 0.01)
    joules = iter([5.0, 75.0, 125.0])
    run = Run(Lease("an-id", "a-run"), 60, Stop(), energy=RunEnergy(lambda: next(joules)))
    readings = iter([USES])
    with run.energy.counted():
        thread = start_gpu_reporter("ann", lambda: next(readings), store, lambda: run)
        thread.join(10)  # with a counter that cannot be read any more, after two reports
        assert not thread.is_alive()
        assert run.energy.joules == 120
        run.energy.counter = None


def test_what_another_version_has_counted_is_not_lost() -> None:
    sums = ["wait 10", 1, "wait 77", 2, "wait inf", 3, "wait sum", 9, "stage video 10", 4, "new", 5]
    figures = {"queues": [["mochi-1", 0, 0, 0]], "due_webhooks": 0}
    answer: dict[str, Any] = {**figures, "workers": [], "sums": list(map(str, sums))}
    now = Survey.of([*chain.from_iterable(answer.items())])
    assert now.times["wait"][""] == Times({**Times().counts, 10: 1}, longer=5, total_ms=9)
    assert now.times["stage"]["video"].counts[10] == 4
    assert now.counts == {"new": {"": 5}}


def test_the_mean_of_a_step_leaves_out_what_comes_before_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(Lease("an-id", "a-run"), 60, Stop())
    run._started = 0.0
    steps, parts = iter([5.0, 5.5, 6.5]), iter([0.0, 7.0, 7.0, 9.0])
    clock = SimpleNamespace(
        monotonic=lambda: next(steps), perf_counter=lambda: next(parts), time_ns=time.time_ns
    )
    monkeypatch.setattr("worker.runtime.run.time", clock)
    for step in range(3):
        run.on_step(step, 2)
    assert run.step_seconds == 0.75
    seconds: dict[str, float] = {}
    with timed("denoising", seconds):
        pass
    with timed("video", seconds):
        pass
    assert seconds == {"denoising": 7.0, "video": 2.0}


def test_the_gpu_seconds_of_a_run_count_each_card_of_its_group(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    price = Price(gpu_second=1000, most_gpu_seconds=600)
    request_id = ask_gateway(
        redis_url, lambda it: it.submit(params(), OWNER, price=price)
    ).request_id
    assert pop(redis) == request_id
    lease = Lease(request_id, "run")
    assert store.start(lease, "ann", gpus=4) is not None
    record = keyspace.record(request_id)
    redis.hincrby(record, "started_at", -10_000)
    store.complete(lease, Result("a.mp4", 17))
    gpu_ms = survey(redis).counts["gpu_ms"][""]
    assert 40_000 <= gpu_ms < 80_000
    assert int(str(redis.hget(record, "cost"))) == pytest.approx(gpu_ms, abs=1)
    (run,) = survey(redis).times["run"].values()
    assert run.total_ms < 20_000  # but the length of the run is the time on the clock
