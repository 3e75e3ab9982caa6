"""The list of an owner's requests, and deleting one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from redis import Redis

from tests.support.jobs import OWNER, ask_gateway, find, live, params, pop, submit, waiting
from tests.support.stack import eventually
from worker.broker.connection import connect_gateway
from worker.errors import RequestNotFoundError
from worker.job import Status
from worker.store import keyspace
from worker.store.gateway_side import GatewayStore
from worker.store.submits import Idempotency
from worker.store.worker_side import Lease, Order, Result, WorkerStore

RESULT = Result("a.mp4", 17)


@pytest.fixture
def store(redis: Redis) -> WorkerStore:
    return WorkerStore(redis, lease_seconds=10, retention_seconds=60)


def start(store: WorkerStore, redis: Redis, request_id: str) -> Lease:
    assert pop(redis) == request_id
    lease = Lease(request_id, "run")
    assert store.start(lease, "ann") is not None
    return lease


def page(
    url: str, *, most: int = 100, after: str = "", is_ascending: bool = False, owner: str = OWNER
) -> tuple[list[str], bool]:
    """Ids, and whether there are more."""
    got = ask_gateway(
        url, lambda it: it.page_of(owner, most=most, after=after, is_ascending=is_ascending)
    )
    return [job.request_id for job in got.jobs], got.has_more


def delete(url: str, request_id: str, owner: str = OWNER) -> str:
    return ask_gateway(url, lambda it: it.delete(request_id, owner))


def submit_all(url: str, count: int, owner: str = OWNER) -> list[str]:
    async def run() -> Sequence[str]:
        async with connect_gateway(url) as redis:
            it = GatewayStore(redis, most_waiting=1000, retention_seconds=60)
            return [(await it.submit(params(), owner)).request_id for _ in range(count)]

    return [*asyncio.run(run())]


def test_pages_lead_through_all_of_them_the_newest_first(redis: Redis, redis_url: str) -> None:
    ids = submit_all(redis_url, 5)
    submit_all(redis_url, 2, owner="somebody else")
    assert page(redis_url) == (ids[::-1], False)
    assert page(redis_url, most=2) == ([ids[4], ids[3]], True)
    assert page(redis_url, most=2, after=ids[3]) == ([ids[2], ids[1]], True)
    assert page(redis_url, most=2, after=ids[1]) == ([ids[0]], False)
    assert page(redis_url, after=ids[0]) == ([], False)


def test_or_the_oldest_first(redis: Redis, redis_url: str) -> None:
    ids = submit_all(redis_url, 3)
    assert page(redis_url, is_ascending=True) == (ids, False)
    assert page(redis_url, most=1, after=ids[0], is_ascending=True) == ([ids[1]], True)


def test_a_page_begins_after_nothing_but_an_own_request(redis: Redis, redis_url: str) -> None:
    (foreign,) = submit_all(redis_url, 1, owner="somebody else")
    for after in (foreign, "no such"):
        with pytest.raises(RequestNotFoundError):
            page(redis_url, after=after)
    assert page(redis_url, owner="nobody") == ([], False)


def test_a_page_may_begin_after_what_was_deleted_meanwhile(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    ids = submit_all(redis_url, 4)
    store.complete(start(store, redis, ids[0]), RESULT)
    start(store, redis, ids[1])
    for ended_running_or_waiting in ids[:3]:
        delete(redis_url, ended_running_or_waiting)
        assert page(redis_url, most=2, after=ended_running_or_waiting, is_ascending=True) == (
            ids[ids.index(ended_running_or_waiting) + 1 :][:2],
            ended_running_or_waiting == ids[0],
        )
    assert page(redis_url) == ([ids[3]], False)


def test_a_page_costs_the_broker_nothing_for_what_was_deleted(redis: Redis, redis_url: str) -> None:
    first, *others = submit_all(redis_url, 30)
    for request_id in others:
        delete(redis_url, request_id)
    redis.config_resetstat()
    assert page(redis_url, most=1) == ([first], False)
    assert redis.info("commandstats")["cmdstat_hgetall"]["calls"] == 1


def test_what_is_forgotten_is_in_no_page_and_in_no_list(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    short = WorkerStore(redis, lease_seconds=10, retention_seconds=0.05)
    gone = [submit(redis_url) for _ in range(3)]
    for request_id in gone:
        short.complete(start(short, redis, request_id), RESULT)
    kept = submit(redis_url)
    assert eventually(lambda: page(redis_url) == ([kept], False))
    history = keyspace.HISTORY + OWNER
    assert redis.zrange(history, 0, -1) == [kept]
    assert redis.ttl(history) == -1  # what waits does not expire


def test_a_request_that_expires_early_leaves_the_list_when_its_record_goes(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    early = {"retention_ms": "50"}  # of the mock scenario `expire`
    gone = ask_gateway(redis_url, lambda it: it.submit(params(), OWNER, further=early)).request_id
    store.complete(start(store, redis, gone), RESULT)
    kept = submit(redis_url)
    eventually(lambda: page(redis_url) == ([kept], False))
    assert redis.zrange(keyspace.HISTORY + OWNER, 0, -1) == [kept]


def test_a_page_knows_when_the_broker_was_asked(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    request_id = submit(redis_url)
    store.complete(start(store, redis, request_id), RESULT)
    [job] = ask_gateway(redis_url, lambda it: it.page_of(OWNER, most=1)).jobs
    assert job.expires_at
    assert 50_000 < job.expires_at - job.seen_at <= 60_000


def test_each_end_takes_out_what_went_before(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    short = WorkerStore(redis, lease_seconds=10, retention_seconds=0.001)
    ended, waits = submit(redis_url), submit(redis_url)
    last = submit(redis_url)
    short.complete(start(short, redis, ended), RESULT)
    eventually(lambda: not store.exists(ended))
    store.complete(start(store, redis, waits), RESULT)
    assert set(redis.zrange(keyspace.HISTORY + OWNER, 0, -1)) == {waits, last}


def test_the_list_goes_with_the_last_record_in_it(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    first, second = submit(redis_url), submit(redis_url)
    history = keyspace.HISTORY + OWNER
    store.complete(start(store, redis, first), RESULT)
    assert redis.ttl(history) == -1
    short = WorkerStore(redis, lease_seconds=10, retention_seconds=0.05)
    short.complete(start(short, redis, second), RESULT)
    assert eventually(lambda: page(redis_url) == ([first], False))
    assert redis.pttl(history) <= redis.pttl(keyspace.record(first)) + 1000
    assert redis.pttl(history) > 50_000


def test_what_has_ended_is_deleted_at_once(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    request_id = submit(redis_url)
    store.complete(start(store, redis, request_id), RESULT)
    assert delete(redis_url, request_id) == RESULT.file_name
    assert not store.exists(request_id)
    assert page(redis_url) == ([], False)


def test_what_waits_is_never_run(redis: Redis, redis_url: str) -> None:
    request_id = submit(redis_url)
    assert delete(redis_url, request_id) == ""
    assert pop(redis) is None
    assert waiting(redis) == []
    assert not redis.zcard(keyspace.WAITING)
    assert not redis.scard(keyspace.LIVE + OWNER)
    assert eventually(lambda: not redis.exists(keyspace.record(request_id)))


def test_deleting_a_running_request_cancels_and_hides_it(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    request_id = submit(redis_url)
    lease = start(store, redis, request_id)
    assert delete(redis_url, request_id) == ""
    assert page(redis_url) == ([], False)
    for ask in (find, delete):
        with pytest.raises(RequestNotFoundError):
            ask(redis_url, request_id)
    with pytest.raises(RequestNotFoundError):
        ask_gateway(redis_url, lambda it: it.cancel(request_id, OWNER))
    assert Order.CANCEL in store.beat(live("ann"), lease)
    assert store.fail(lease, "cancelled", "It was cancelled.")
    assert eventually(lambda: not redis.exists(keyspace.record(request_id)))
    assert not redis.scard(keyspace.LIVE + OWNER)


def test_a_request_deleted_as_its_run_ends_has_no_video_and_no_webhook(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    url = {"webhook_url": "https://hooks.example/", "webhook_base": "https://us.example"}
    request_id = ask_gateway(
        redis_url, lambda it: it.submit(params(), OWNER, further=url)
    ).request_id
    lease = start(store, redis, request_id)
    delete(redis_url, request_id)
    assert not store.complete(lease, RESULT)
    assert eventually(lambda: not redis.exists(keyspace.record(request_id)))
    assert redis.hget(keyspace.METRICS, "ended cancelled") == "1"
    assert not redis.exists(keyspace.WEBHOOKS, keyspace.WEBHOOK + request_id)


def test_what_was_owed_for_it_goes_with_it(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    url = {"webhook_url": "https://hooks.example/", "webhook_base": "https://us.example"}
    request_id = ask_gateway(
        redis_url, lambda it: it.submit(params(), OWNER, further=url)
    ).request_id
    store.complete(start(store, redis, request_id), RESULT)
    assert redis.zcard(keyspace.WEBHOOKS) == 1
    delete(redis_url, request_id)
    assert not redis.exists(keyspace.WEBHOOKS, keyspace.WEBHOOK + request_id)


def test_only_the_owner_deletes(store: WorkerStore, redis: Redis, redis_url: str) -> None:
    request_id = submit(redis_url)
    for owner, wanted in (("somebody else", request_id), (OWNER, "no such")):
        with pytest.raises(RequestNotFoundError):
            delete(redis_url, wanted, owner)
    assert find(redis_url, request_id).status is Status.QUEUED


def test_its_idempotency_key_is_free_again(redis: Redis, redis_url: str) -> None:
    idempotency = Idempotency.of(OWNER, "one", {})

    def ask() -> str:
        accepted = ask_gateway(
            redis_url, lambda it: it.submit(params(), OWNER, idempotency=idempotency)
        )
        return accepted.request_id

    first = ask()
    assert ask() == first
    delete(redis_url, first)
    assert ask() != first


def test_its_end_does_not_take_the_key_from_the_next_one(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    idempotency = Idempotency.of(OWNER, "one", {})

    def ask() -> str:
        accepted = ask_gateway(
            redis_url, lambda it: it.submit(params(), OWNER, idempotency=idempotency)
        )
        return accepted.request_id

    first = ask()
    lease = start(store, redis, first)
    delete(redis_url, first)
    second = ask()
    store.fail(lease, "cancelled", "It was cancelled.")
    assert eventually(lambda: not redis.exists(keyspace.record(first)))
    assert ask() == second
