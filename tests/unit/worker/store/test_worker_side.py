"""What the state machine does not show."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from redis import Redis

from models.engine import Traits
from tests.support.jobs import (
    OWNER,
    ask_gateway,
    end_lease,
    find,
    live,
    params,
    pop,
    submit,
    waiting,
)
from worker.billing import FREE, Price
from worker.broker.connection import connect_briefly
from worker.broker.schema import SCHEMA_KEY
from worker.errors import (
    BrokerUnavailableError,
    IdempotencyConflictError,
    NoWorkerError,
    QueueFullError,
    RequestNotFoundError,
    TooFastError,
    TooFewCreditsError,
)
from worker.job import Status
from worker.store import keyspace
from worker.store.fleet import Worker, fleet
from worker.store.presence import LiveWorker
from worker.store.submits import Idempotency
from worker.store.worker_side import Lease, Recovery, Result, WorkerStore

RESULT = Result("a.mp4", 17)


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


def test_requests_are_run_in_the_order_they_came(redis: Redis, redis_url: str) -> None:
    ids = [submit(redis_url) for _ in range(5)]
    assert [pop(redis) for _ in range(5)] == ids


def test_a_look_at_the_queue_passes_over_what_is_popped_and_takes_nothing(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    assert store.peek() is None
    submit(redis_url, "a pond")
    second = submit(redis_url, "a lake", seed=7)
    pop(redis)
    before = {key: redis.dump(key) for key in redis.scan_iter()}
    assert store.peek() == store.peek() == (second, params("a lake", seed=7))
    assert {key: redis.dump(key) for key in redis.scan_iter()} == before
    assert pop(redis) == second
    assert store.peek() is None


def test_what_had_its_turn_goes_before_all_that_wait(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    crashed, handed_back, popped, new = (submit(redis_url) for _ in range(4))
    lease = started(store, redis, "one")
    store.requeue(started(store, redis, "two"))
    assert waiting(redis) == [handed_back, popped, new]
    end_lease(redis, lease.request_id)
    store.reap(crashed)
    assert waiting(redis) == [crashed, handed_back, popped, new]
    for _ in range(3):
        pop(redis)
    store.recover(popped)
    assert waiting(redis) == [popped, new]
    assert [find(redis_url, name).position for name in (popped, crashed, handed_back, new)] == [
        1, 2, 3, 4,
    ]  # fmt: skip


def test_only_what_waits_has_a_place(store: WorkerStore, redis: Redis, redis_url: str) -> None:
    first, second = submit(redis_url), submit(redis_url)
    assert [find(redis_url, name).position for name in (first, second)] == [1, 2]
    lease = started(store, redis)
    assert [find(redis_url, name).position for name in (first, second)] == [None, 1]
    store.fail(lease, "internal", "no")
    assert find(redis_url, first).position is None


def test_a_full_queue_takes_no_more_until_one_has_started(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    def submit_to_a_queue_of_two() -> str:
        return ask_gateway(
            redis_url, lambda it: it.submit(params(), OWNER), most_waiting=2
        ).request_id

    ids = [submit_to_a_queue_of_two() for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        submit_to_a_queue_of_two()
    assert waiting(redis) == ids
    assert len(redis.keys("mochi:request:*")) == 2
    started(store, redis)
    submit_to_a_queue_of_two()


def test_who_needs_a_worker_is_refused_when_none_beats(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    def submit_and_wait() -> str:
        return ask_gateway(
            redis_url, lambda it: it.submit(params(), OWNER, needs_worker=True)
        ).request_id

    with pytest.raises(NoWorkerError):
        submit_and_wait()
    assert not redis.keys("mochi:request:*")
    store.beat(live("ann"))
    assert find(redis_url, submit_and_wait()).status is Status.QUEUED
    store.sign_off(live("ann"))
    with pytest.raises(NoWorkerError):
        submit_and_wait()


def test_a_worker_that_is_silent_for_a_lease_counts_as_dead(redis: Redis, redis_url: str) -> None:
    WorkerStore(redis, lease_seconds=0.05, retention_seconds=60).beat(live("ann"))
    WorkerStore(redis, lease_seconds=10, retention_seconds=60).beat(live("bob"))
    time.sleep(0.06)
    assert ask_gateway(redis_url, lambda it: it.live_workers()) == [live("bob")]
    assert [worker.name for worker in fleet(redis)] == ["bob"]


def test_a_live_worker_is_read_as_it_told_of_itself(store: WorkerStore, redis_url: str) -> None:
    traits = Traits("Mochi 1", 'A card, of "some" kind', "bf16", "24gb", ("fp8", "größer"))
    told = LiveWorker("zoe", traits, version="0.2.0.dev12+g0123abc")
    for worker in (told, live("ann"), told):
        store.beat(worker)
    assert ask_gateway(redis_url, lambda it: it.live_workers()) == [live("ann"), told]


def test_workers_of_releases_before_and_after_this_one_are_read(
    store: WorkerStore, redis: Redis
) -> None:
    for name, change in {"old": {}, "next": {"version": "9.0.0", "unheard_of": 1}}.items():
        record = json.loads(str(live(name)))
        del record["version"]
        redis.zadd(keyspace.WORKERS, {json.dumps(record | change): "+inf"})
    assert [(each.name, each.version) for each in fleet(redis)] == [("next", "9.0.0"), ("old", "")]


def test_a_broker_that_has_lost_its_workers_knows_them_after_the_next_beat(
    store: WorkerStore, redis: Redis
) -> None:
    store.beat(live("ann"))
    redis.flushall()
    assert fleet(redis) == []
    store.beat(live("ann"))
    assert fleet(redis) == [Worker("ann", live().engine)]


def test_nothing_is_kept_of_workers_that_died_or_signed_off(
    store: WorkerStore, redis: Redis
) -> None:
    hasty = WorkerStore(redis, lease_seconds=0.05, retention_seconds=60)
    for number in range(20):
        hasty.beat(live(f"dead-{number}"))
    time.sleep(0.06)
    store.beat(live("ann"))
    assert kept_keys(redis) == {keyspace.WORKERS, SCHEMA_KEY}
    assert redis.zcard(keyspace.WORKERS) == 1
    store.sign_off(live("ann"))
    assert kept_keys(redis) == {SCHEMA_KEY}


def kept_keys(redis: Redis) -> set[str]:
    """All keys, less those of a sweep: the workers of other tests in this process still sweep."""
    return {key for key in redis.scan_iter() if not key.startswith(keyspace.SWEEP)}


def test_what_no_worker_of_ours_wrote_is_no_live_worker(store: WorkerStore, redis: Redis) -> None:
    store.beat(live("ann"))
    for planted in ("EVIL", "{}", '{"name": "eve"}', '{"name": 1, "engine": null}'):
        redis.zadd(keyspace.WORKERS, {planted: "+inf"})
    assert fleet(redis) == [Worker("ann", live().engine)]


def test_a_beat_makes_the_lease_longer(redis: Redis, redis_url: str) -> None:
    store = WorkerStore(redis, lease_seconds=0.3, retention_seconds=60)
    submit(redis_url)
    lease = started(store, redis)
    for step in range(5):
        time.sleep(0.1)
        assert store.reap(lease.request_id) is None
        assert not store.beat(live(), lease, step)
    time.sleep(0.31)
    overdue = store.overdue()
    assert overdue is not None
    assert overdue.expired == [lease.request_id]
    assert store.reap(lease.request_id) is Recovery.REQUEUED


def test_an_ended_request_is_kept_for_the_retention(redis: Redis, redis_url: str) -> None:
    store = WorkerStore(redis, lease_seconds=10, retention_seconds=0.1)
    submit(redis_url)
    waits = submit(redis_url)
    lease = started(store, redis)
    assert redis.pttl(keyspace.record(lease.request_id)) == -1
    assert store.complete(lease, RESULT)
    assert store.exists(lease.request_id)
    time.sleep(0.11)
    assert not store.exists(lease.request_id)
    with pytest.raises(RequestNotFoundError):
        find(redis_url, lease.request_id)
    assert store.exists(waits)


def test_what_a_run_says_of_its_video_is_read_after_the_end(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    request_id = submit(redis_url)
    lease = started(store, redis)
    assert find(redis_url, request_id).warnings == []
    warnings = ("Cut: “ein Bär …”.", "Two\nlines.")
    assert store.complete(lease, Result("a.mp4", 17, "bf16", warnings))
    job = find(redis_url, request_id)
    assert (job.file_name, job.file_size) == ("a.mp4", 17)
    assert (job.precision, job.warnings) == ("bf16", list(warnings))


def test_what_has_ended_or_is_gone_is_told_from_what_goes_on(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    done, failed, runs, waits = (submit(redis_url) for _ in range(4))
    store.complete(started(store, redis, "one"), RESULT)
    store.fail(started(store, redis, "two"), "internal", "no")
    started(store, redis, "three")
    asked = [done, failed, runs, waits, "never-made"]
    assert ask_gateway(redis_url, lambda it: it.ended(asked)) == {done, failed, "never-made"}


def keyed(url: str, idempotency: Idempotency) -> str:
    ask = ask_gateway(url, lambda it: it.submit(params(), OWNER, idempotency=idempotency))
    return ask.request_id


def test_a_broker_with_full_memory_refuses_requests_and_takes_results(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    mine = Idempotency.of(OWNER, "mine", {})
    submit(redis_url)
    submit(redis_url)
    made = keyed(redis_url, mine)
    done, crashed = started(store, redis, "one"), started(store, redis, "two")
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(BrokerUnavailableError):
            submit(redis_url)
        assert keyed(redis_url, mine) == made  # what needs no room is answered
        with pytest.raises(IdempotencyConflictError):
            keyed(redis_url, Idempotency.of(OWNER, "mine", {"another": "body"}))
        assert not store.beat(live(), done, 7)
        assert store.complete(done, RESULT)
        assert store.requeue(crashed)
        assert store.start(Lease(crashed.request_id, "three"), "bob") is not None
    finally:
        redis.config_set("maxmemory", 0)
    assert find(redis_url, done.request_id).file_name == "a.mp4"


@pytest.mark.parametrize(
    "terms",
    [
        {"requests_per_minute": 100},
        {"requests_per_minute": 100, "jobs_at_once": 100, "balance": 9},
        {"balance": 9, "granted": 9},
    ],
)
@pytest.mark.parametrize("price", [FREE, Price(1)])
def test_a_broker_with_full_memory_takes_nothing_of_a_key_with_limits(
    redis: Redis, redis_url: str, terms: dict[str, int], price: Price
) -> None:
    """What a script has written first decides whether it may go on."""
    redis.hset(keyspace.API_KEY + OWNER, mapping=terms)  # type: ignore[arg-type]
    submit(redis_url)
    before = {key: redis.dump(key) for key in redis.keys("*")}
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(BrokerUnavailableError):
            ask_gateway(redis_url, lambda it: it.submit(params(), OWNER, price=price))
    finally:
        redis.config_set("maxmemory", 0)
    assert {key: redis.dump(key) for key in redis.keys("*")} == before


def test_a_limit_that_was_lowered_says_when_there_is_room_again(
    redis: Redis, redis_url: str
) -> None:
    key = keyspace.API_KEY + OWNER
    redis.hset(key, "requests_per_minute", 5)
    ids = [submit(redis_url) for _ in range(5)]
    recent = keyspace.RATE + OWNER
    for number, request_id in enumerate(ids):
        redis.zincrby(recent, -1000 * (40 - 10 * number), request_id)
    redis.hset(key, "requests_per_minute", 2)
    with pytest.raises(TooFastError) as error:
        submit(redis_url)
    # The first was 40 s ago. When it is forgotten, four are left; room is when the fourth is.
    assert 45 < error.value.retry_seconds <= 50


def test_who_has_less_than_nothing_may_ask_for_what_costs_nothing(
    redis: Redis, redis_url: str
) -> None:
    redis.hset(keyspace.API_KEY + OWNER, "balance", -5)
    submit(redis_url)
    with pytest.raises(TooFewCreditsError, match=r"costs up to 0\.000001, and the balance is -0"):
        ask_gateway(redis_url, lambda it: it.submit(params(), OWNER, price=Price(1)))


def test_a_broker_that_is_gone_is_one_error_for_all_who_ask(redis_url: str) -> None:
    nowhere = redis_url + "-not"
    client = connect_briefly(nowhere)
    store = WorkerStore(client, lease_seconds=10, retention_seconds=60)
    lease = Lease("an-id", "run")
    asks: tuple[Callable[[], object], ...] = (
        lambda: store.start(lease, "ann"),
        lambda: store.beat(live()),
        lambda: store.complete(lease, RESULT),
        store.overdue,
        lambda: fleet(client),
        store.unlisted,
        lambda: submit(nowhere),
        lambda: find(nowhere, "an-id"),
        lambda: ask_gateway(nowhere, lambda it: it.live_workers()),
    )
    for ask in asks:
        with pytest.raises(BrokerUnavailableError):
            ask()
    client.close()


def test_the_looks_of_a_large_fleet_write_as_little_as_those_of_one_worker(
    store: WorkerStore, redis: Redis
) -> None:
    """Each write is one on the broker's disk."""

    def writes() -> int:
        return int(redis.info("persistence")["rdb_changes_since_last_save"])

    store.overdue()
    before = writes()
    assert all(store.overdue() for _ in range(20))
    assert writes() - before < 10  # one every half second, on a slow machine too


MANY = [f"gone-{number}" for number in range(2400)]


def test_many_requests_are_looked_at_in_portions(redis: Redis, redis_url: str) -> None:
    """One long script would delay all other callers of the broker."""
    ids = [submit(redis_url) for _ in range(3)]
    redis.config_resetstat()
    jobs = ask_gateway(redis_url, lambda it: it.look([*ids, *MANY]))
    assert [job and job.request_id for job in jobs] == [*ids, *([None] * len(MANY))]
    assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] > len(MANY) / 100


def test_the_ends_of_many_requests_are_asked_for_by_few_scripts(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    ended = submit(redis_url)
    store.fail(started(store, redis), "internal", "no")
    ids = [submit(redis_url) for _ in range(3)]
    redis.config_resetstat()
    found = ask_gateway(redis_url, lambda it: it.ended([*ids, ended, *MANY]))
    assert found == {ended, *MANY}
    assert (
        redis.info("commandstats")["cmdstat_evalsha"]["calls"] <= 4
    )  # 3, and the loading of the script
