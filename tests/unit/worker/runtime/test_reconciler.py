"""With the real store, and a clock that the test moves."""

from __future__ import annotations

from collections import Counter

import pytest
from redis import Redis
from structlog.testing import capture_logs

from tests.support.jobs import end_lease, find, live, pop, submit, waiting
from worker.job import Status
from worker.runtime.reconciler import (
    MISSING_SECONDS,
    MOST_REPAIRS,
    POPPED_SECONDS,
    SETTLE_SECONDS,
    Reconciler,
)
from worker.store import keyspace
from worker.store.fleet import fleet
from worker.store.worker_side import Lease, WorkerStore

LEASE_SECONDS = 10.0
RETENTION_SECONDS = 60.0


class Bench:
    """A reconciler that looks every second, as the test passes them, and has done so for long."""

    def __init__(
        self, redis: Redis, lease_seconds: float = LEASE_SECONDS, looks: float = LEASE_SECONDS
    ) -> None:
        self.now = 0.0
        self.redis = redis
        self.store = WorkerStore(
            redis, lease_seconds=lease_seconds, retention_seconds=RETENTION_SECONDS
        )
        self.reconciler = Reconciler(
            self.store, lease_seconds=lease_seconds, monotonic=lambda: self.now
        )
        self.look(looks)

    def look(self, seconds: float) -> None:
        """Once a second for so long."""
        for _ in range(round(seconds)):
            self.sleep(1)
            self.reconciler.reconcile()

    def sleep(self, seconds: float) -> None:
        """Without a look, as when the broker does not answer."""
        self.now += seconds
        self.set_clock(seconds)
        if self.redis.exists(keyspace.LOOKS):
            self.redis.hincrby(keyspace.LOOKS, "since", -round(seconds * 1000))

    def set_clock(self, seconds: float) -> None:
        """As if the broker's were ahead by so much now, and the last look were long ago."""
        if self.redis.exists(keyspace.LOOKS):
            self.redis.hincrby(keyspace.LOOKS, "last", -round(seconds * 1000))


@pytest.fixture
def bench(redis: Redis) -> Bench:
    return Bench(redis)


def start(bench: Bench, redis: Redis, redis_url: str) -> str:
    """A request that runs, and whose worker died a lease ago."""
    request_id = submit(redis_url)
    pop(redis)
    assert bench.store.start(Lease(request_id, "run"), "ann")
    end_lease(redis, request_id)
    return request_id


def test_a_run_whose_lease_ended_is_queued_again_at_the_next_look(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    request_id = start(bench, redis, redis_url)
    bench.look(1)
    assert find(redis_url, request_id).status is Status.QUEUED
    assert waiting(redis) == [request_id]


def test_a_new_reconciler_relies_on_those_who_have_looked_before(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    """Workers that die one after the other, and young, must not keep the dead unnoticed."""
    request_id = start(bench, redis, redis_url)
    Reconciler(bench.store, lease_seconds=LEASE_SECONDS).reconcile()
    assert find(redis_url, request_id).status is Status.QUEUED


def test_without_an_earlier_look_it_lets_workers_beat_before_it_trusts_leases(
    redis: Redis, redis_url: str
) -> None:
    """An outage may just have ended."""
    bench = Bench(redis, looks=0)
    request_id = start(bench, redis, redis_url)
    bench.look(SETTLE_SECONDS)
    assert find(redis_url, request_id).status is Status.PROCESSING
    bench.look(1)
    assert find(redis_url, request_id).status is Status.QUEUED


def test_after_an_outage_leases_count_again_when_workers_have_had_time_to_beat(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    bench.look(3)
    request_id = start(bench, redis, redis_url)
    bench.sleep(LEASE_SECONDS)
    bench.look(SETTLE_SECONDS)
    assert find(redis_url, request_id).status is Status.PROCESSING
    bench.look(1)
    assert find(redis_url, request_id).status is Status.QUEUED


def test_a_worker_that_beats_after_an_outage_keeps_its_run(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    request_id = start(bench, redis, redis_url)
    bench.sleep(3 * LEASE_SECONDS)
    bench.look(1)
    assert not bench.store.beat(live(), Lease(request_id, "run"), 3)
    bench.look(2 * LEASE_SECONDS)
    assert find(redis_url, request_id).attempt == 1
    assert find(redis_url, request_id).status is Status.PROCESSING


def test_the_shortest_lease_is_trusted_although_looks_are_as_far_apart(
    redis: Redis, redis_url: str
) -> None:
    bench = Bench(redis, lease_seconds=2)
    request_id = start(bench, redis, redis_url)
    for _ in range(3):
        bench.sleep(0.5)  # one beat that came late
        bench.look(1)
    assert find(redis_url, request_id).status is Status.QUEUED


@pytest.mark.parametrize("hours", [1, -1])
def test_a_broker_whose_clock_is_set_gives_workers_time_to_beat(
    bench: Bench, redis: Redis, redis_url: str, hours: int
) -> None:
    bench.look(3)
    request_id = start(bench, redis, redis_url)
    bench.set_clock(hours * 3600)
    bench.look(SETTLE_SECONDS)
    assert find(redis_url, request_id).status is Status.PROCESSING
    bench.look(1)
    assert find(redis_url, request_id).status is Status.QUEUED


def test_a_lease_from_before_the_clock_was_set_back_ends_all_the_same(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    request_id = start(bench, redis, redis_url)
    in_an_hour = (redis.time()[0] + 3600) * 1000
    redis.zadd(keyspace.LEASES, {request_id: in_an_hour})
    redis.zadd(keyspace.WORKERS, {str(live()): in_an_hour})
    bench.look(1)
    lease = redis.zscore(keyspace.LEASES, request_id)
    assert lease
    assert lease <= (redis.time()[0] + LEASE_SECONDS + 1) * 1000
    assert [worker.state for worker in fleet(redis)] == ["draining"]  # none is signed on


def test_what_was_popped_and_never_started_goes_back_first(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    popped, next_one = submit(redis_url), submit(redis_url)
    assert pop(redis) == popped
    bench.look(POPPED_SECONDS + 1)
    assert waiting(redis) == [next_one]
    bench.look(1)
    assert waiting(redis) == [popped, next_one]
    assert redis.llen(keyspace.RQ_INTERMEDIATE) == 0


def test_an_outage_between_pop_and_start_counts_for_nothing(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    popped = submit(redis_url)
    pop(redis)
    bench.look(3)
    bench.sleep(POPPED_SECONDS)
    bench.look(POPPED_SECONDS)
    assert waiting(redis) == []
    assert bench.store.start(Lease(popped, "run"), "ann")
    assert find(redis_url, popped).attempt == 1


def test_many_repairs_are_made_over_many_looks(bench: Bench, redis: Redis, redis_url: str) -> None:
    ids = [start(bench, redis, redis_url) for _ in range(MOST_REPAIRS + 1)]
    bench.look(1)
    assert len(waiting(redis)) == MOST_REPAIRS
    bench.look(1)
    assert set(waiting(redis)) == set(ids)


def test_many_that_are_in_no_list_go_back_over_many_looks(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    ids = [submit(redis_url) for _ in range(MOST_REPAIRS + 1)]
    redis.delete(keyspace.RQ_QUEUE)
    bench.look(MISSING_SECONDS + 2)
    assert len(waiting(redis)) == MOST_REPAIRS
    bench.look(1)
    assert set(waiting(redis)) == set(ids)


def test_a_pop_that_kills_each_worker_ends_failed(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    request_id = submit(redis_url)
    for _ in range(keyspace.MOST_ATTEMPTS):
        assert pop(redis) == request_id
        bench.look(POPPED_SECONDS + 2)
    job = find(redis_url, request_id)
    assert (job.status, job.error_code) == (Status.FAILED, "worker_lost")
    assert not redis.keys("rq:job:*")
    assert waiting(redis) == []


def test_an_id_that_is_no_request_is_dropped_from_the_popped(bench: Bench, redis: Redis) -> None:
    redis.rpush(keyspace.RQ_INTERMEDIATE, "planted")
    bench.look(POPPED_SECONDS + 2)
    assert redis.llen(keyspace.RQ_INTERMEDIATE) == 0


def test_a_request_that_is_in_no_list_goes_back_after_half_a_minute(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    lost, next_one = submit(redis_url), submit(redis_url)
    redis.lrem(keyspace.RQ_QUEUE, 0, lost)
    bench.look(MISSING_SECONDS + 1)
    assert waiting(redis) == [next_one]
    bench.look(1)
    assert waiting(redis) == [lost, next_one]
    assert find(redis_url, next_one).attempt == 0


def test_a_request_that_waits_is_left_alone_for_ever(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    request_id = submit(redis_url)
    before = find(redis_url, request_id)
    bench.look(300)
    assert find(redis_url, request_id) == before


def test_one_gateway_looks_while_no_worker_does(bench: Bench, redis: Redis, redis_url: str) -> None:
    first, second = (
        Reconciler(bench.store, lease_seconds=LEASE_SECONDS, gateway=name)
        for name in ("first", "second")
    )
    request_id = start(bench, redis, redis_url)
    first.reconcile()
    assert not first.is_active
    assert find(redis_url, request_id).status is Status.PROCESSING
    bench.sleep(2)
    for _ in range(2):
        first.reconcile()
        second.reconcile()
        assert (first.is_active, second.is_active) == (True, False)
        bench.sleep(1)
    assert find(redis_url, request_id).status is Status.QUEUED
    bench.look(1)
    first.reconcile()
    assert not first.is_active  # a worker is back
    bench.set_clock(-3600)
    second.reconcile()
    assert second.is_active


def test_records_that_cannot_be_repaired_keep_no_other_from_it(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    garbage = broken(redis, Status.PROCESSING)
    redis.zadd(keyspace.LEASES, dict.fromkeys(garbage, 1))
    request_id = start(bench, redis, redis_url)
    assert_repaired_among_broken(bench, request_id, 5)


def test_popped_records_that_cannot_be_repaired_keep_no_other_from_it(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    redis.rpush(keyspace.RQ_INTERMEDIATE, *broken(redis, Status.QUEUED))
    request_id = submit(redis_url)
    redis.lrem(keyspace.RQ_QUEUE, 0, request_id)
    redis.rpush(keyspace.RQ_INTERMEDIATE, request_id)
    assert_repaired_among_broken(bench, request_id, POPPED_SECONDS + 5)


def test_missing_records_that_cannot_be_repaired_keep_no_other_from_it(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    redis.zadd(keyspace.WAITING, dict.fromkeys(broken(redis, Status.QUEUED), 0))
    request_id = submit(redis_url)
    redis.lrem(keyspace.RQ_QUEUE, 0, request_id)
    assert_repaired_among_broken(bench, request_id, MISSING_SECONDS + 5)


def broken(redis: Redis, status: Status) -> list[str]:
    """Records on which each repair fails."""
    names = [f"{number:036}" for number in range(MOST_REPAIRS)]
    for name in names:
        redis.hset(keyspace.record(name), mapping={"status": status, "attempt": "no number"})
    return names


def assert_repaired_among_broken(bench: Bench, request_id: str, seconds: float) -> None:
    with capture_logs() as logs:
        bench.look(seconds)
    assert waiting(bench.redis) == [request_id]
    counted = bench.redis.hgetall(keyspace.METRICS)
    counts = {str(name).partition(" ")[0]: count for name, count in counted.items()}
    assert counts["lost"] == counts["requeues"] == "1"
    assert Counter(log["event"] for log in logs) == {
        "request.unrepaired": MOST_REPAIRS,
        "request.recovered": 1,
    }


def test_a_gateway_does_not_count_the_time_in_which_others_look(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    gateway = Reconciler(
        bench.store, lease_seconds=LEASE_SECONDS, gateway="one", monotonic=lambda: bench.now
    )
    request_id = submit(redis_url)
    redis.delete(keyspace.RQ_QUEUE)
    bench.sleep(3)
    gateway.reconcile()
    bench.look(3)
    gateway.reconcile()  # in vain: a worker looks
    redis.rpush(keyspace.RQ_QUEUE, request_id)
    bench.look(MISSING_SECONDS)
    redis.delete(keyspace.RQ_QUEUE)
    bench.sleep(3)
    gateway.reconcile()
    assert gateway.is_active
    assert waiting(redis) == []


def test_an_id_that_is_not_utf_8_is_dropped_from_the_popped(
    bench: Bench, redis: Redis, redis_url: str
) -> None:
    request_id = start(bench, redis, redis_url)
    redis.rpush(keyspace.RQ_INTERMEDIATE, b"\xff\xfe")
    bench.look(POPPED_SECONDS + 2)
    assert redis.llen(keyspace.RQ_INTERMEDIATE) == 0
    assert find(redis_url, request_id).status is Status.QUEUED
