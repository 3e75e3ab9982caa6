"""Standing webhooks: where their deliveries go, and when those end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from redis import Redis

from tests.support.jobs import OWNER, ask_gateway, make_webhook_due, params, pop
from worker.billing import Price
from worker.broker.connection import connect_gateway
from worker.errors import KeyEndedError
from worker.store import keyspace
from worker.store.webhooks.deliveries import (
    JITTER,
    PAUSES,
    Deliveries,
    Delivery,
    State,
    all_deliveries,
    replay,
)
from worker.store.webhooks.standing import Put, StandingWebhooks, Webhook
from worker.store.worker_side import Lease, Result, WorkerStore

RETENTION_SECONDS = 60.0
MOST_DUE = 500
FIRST = Webhook("https://first.example/", "https://us.example", ["INFERENCE"], True)
SECOND = replace(FIRST, url="https://second.example/", base="https://eu.example")
AT: Any = {"created_at": 1}
UNSUBSCRIBED = replace(FIRST, types=["PIXELFLOW"], is_heard=False)

_Result = TypeVar("_Result")


def ask(url: str, question: Callable[[StandingWebhooks], Awaitable[_Result]]) -> _Result:
    async def run() -> _Result:
        async with connect_gateway(url) as redis:
            return await question(StandingWebhooks(redis, retention_seconds=RETENTION_SECONDS))

    return asyncio.run(run())


def add(url: str, webhook: Webhook = FIRST) -> str:
    done, webhook_id = ask(url, lambda it: it.add(OWNER, webhook))
    assert done is Put.ADDED
    return webhook_id


def end_request(url: str, prompt: str = "a pond", further: Mapping[str, str] | None = None) -> str:
    """The id of a request that has ended."""
    accepted = ask_gateway(url, lambda it: it.submit(params(prompt), OWNER, further=further or {}))
    ask_gateway(url, lambda it: it.cancel(accepted.request_id, OWNER))
    return accepted.request_id


def take(url: str) -> list[Delivery]:
    async def run() -> list[Delivery]:
        async with connect_gateway(url) as redis:
            return await Deliveries(redis, retention_seconds=RETENTION_SECONDS).take(10, {})

    return asyncio.run(run())


def test_a_waiting_delivery_goes_to_the_present_url(redis: Redis, redis_url: str) -> None:
    webhook_id = add(redis_url)
    delivery_id = f"{end_request(redis_url)}:{webhook_id}"
    (before,) = take(redis_url)
    assert (before.url, before.base_url) == (FIRST.url, FIRST.base)
    changed = ask(redis_url, lambda it: it.change(OWNER, webhook_id, SECOND))
    assert changed == (Put.CHANGED, webhook_id)
    make_webhook_due(redis, delivery_id)
    (after,) = take(redis_url)
    assert (after.delivery_id, after.attempts) == (delivery_id, 2)
    assert (after.url, after.base_url) == (SECOND.url, SECOND.base)


@pytest.mark.parametrize("is_deleted", [True, False])
def test_waiting_deliveries_end_with_their_webhook_or_its_interest(
    redis: Redis, redis_url: str, *, is_deleted: bool
) -> None:
    webhook_id, other_id = add(redis_url), add(redis_url, SECOND)
    request_id = end_request(redis_url)
    if is_deleted:
        reason = "the webhook was deleted"
        assert ask(redis_url, lambda it: it.delete(OWNER, webhook_id))
    else:
        reason = "the webhook does not receive the ends of requests any more"
        ask(redis_url, lambda it: it.change(OWNER, webhook_id, UNSUBSCRIBED))
    found = {each.delivery_id: each for each in all_deliveries(redis)}
    ended, waits = found[f"{request_id}:{webhook_id}"], found[f"{request_id}:{other_id}"]
    assert (ended.state, ended.due_at) == (State.GIVEN_UP, None)
    assert [outcome for _, outcome in ended.log] == [reason]
    assert 0 < redis.pttl(keyspace.WEBHOOK + ended.delivery_id) <= RETENTION_SECONDS * 1000
    assert (waits.state, waits.due_at is None) == (State.DUE, False)
    replay(redis, ended.delivery_id)
    assert [each.url for each in take(redis_url)] == [SECOND.url]
    found = {each.delivery_id: each for each in all_deliveries(redis)}
    assert found[ended.delivery_id].state is State.GIVEN_UP
    assert [outcome for _, outcome in found[ended.delivery_id].log] == [reason, reason]


def test_a_dead_webhook_takes_no_room_of_other_receivers(redis: Redis, redis_url: str) -> None:
    dead, healthy = add(redis_url), add(redis_url, SECOND)
    queue = f"{keyspace.WEBHOOKS}:{OWNER}"
    waits = {f"{number}:{dead}": 2**42 for number in range(MOST_DUE - 1)}
    redis.zadd(queue, waits)
    redis.sadd(f"{queue}:{dead}", *waits)
    own = {"webhook_url": "https://own.example/", "webhook_base": "https://us.example"}
    last, beyond = end_request(redis_url), end_request(redis_url, further=own)
    found = {each.delivery_id: each for each in all_deliveries(redis)}
    due = {beyond, f"{beyond}:{healthy}", f"{last}:{healthy}", f"{last}:{dead}"}
    assert {name for name, each in found.items() if each.state is State.DUE} == due
    given_up = found[f"{beyond}:{dead}"]
    assert given_up.state is State.GIVEN_UP
    assert [what for _, what in given_up.log] == ["too many deliveries of this webhook are due"]
    assert ask(redis_url, lambda it: it.delete(OWNER, dead))
    assert not redis.exists(f"{queue}:{dead}")
    assert set(redis.zrange(queue, 0, -1)) == {*due} - {f"{last}:{dead}"}


def test_a_deleted_request_takes_along_its_deliveries_to_deleted_webhooks(
    redis: Redis, redis_url: str
) -> None:
    gone, stays = add(redis_url), add(redis_url, SECOND)
    request_id, other = end_request(redis_url), end_request(redis_url)
    assert ask(redis_url, lambda it: it.delete(OWNER, gone))
    assert len(of_request(redis, request_id)) == len(of_request(redis, other)) == 2
    ask_gateway(redis_url, lambda it: it.delete(request_id, OWNER))
    assert of_request(redis, request_id) == set()
    assert of_request(redis, other) == {f"{other}:{gone}", f"{other}:{stays}"}
    assert [each.delivery_id for each in take(redis_url)] == [f"{other}:{stays}"]


def test_a_log_is_read_without_the_requests(redis: Redis, redis_url: str) -> None:
    webhook_id = add(redis_url)
    requests = [end_request(redis_url, "x" * 4000) for _ in range(20)]
    for delivery in take(redis_url):
        note(redis_url, delivery, "HTTP 503")
    sent = bytes_sent(redis)
    log = ask(redis_url, lambda it: it.log(webhook_id))
    assert bytes_sent(redis) - sent < 4000 * len(requests)
    assert [request_id for request_id, _ in log] == requests[::-1]
    outcomes = [[outcome for _, outcome in attempts] for _, attempts in log]
    assert sorted(outcomes) == [[]] * 12 + [["HTTP 503"]] * 8


def bytes_sent(redis: Redis) -> int:
    stats: Any = redis.info("stats")
    return int(stats["total_net_output_bytes"])


def note(url: str, delivery: Delivery, outcome: str, state: State = State.DUE) -> None:
    async def run() -> None:
        async with connect_gateway(url) as redis:
            deliveries = Deliveries(redis, retention_seconds=RETENTION_SECONDS)
            assert await deliveries.note(delivery, state, outcome, 60)

    asyncio.run(run())


def test_a_webhook_keeps_the_time_at_which_it_was_added(redis: Redis, redis_url: str) -> None:
    before = now_ms(redis)
    webhook_id = add(redis_url)
    kept: Any = redis.hget(keyspace.STANDING + OWNER, webhook_id)
    assert before <= json.loads(kept)["created_at"] <= now_ms(redis)
    redis.hset(keyspace.STANDING + OWNER, webhook_id, json.dumps(json.loads(kept) | AT))
    ask(redis_url, lambda it: it.add(OWNER, replace(FIRST, base="https://eu.example")))
    ask(redis_url, lambda it: it.change(OWNER, webhook_id, SECOND))
    assert ask(redis_url, lambda it: it.of_owner(OWNER)) == {webhook_id: replace(SECOND, **AT)}


def now_ms(redis: Redis) -> int:
    seconds, microseconds = redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def test_an_attempt_under_way_is_noted_after_its_webhook_has_ended(
    redis: Redis, redis_url: str
) -> None:
    webhook_id = add(redis_url)
    end_request(redis_url)
    (under_way,) = take(redis_url)
    waits = end_request(redis_url)
    assert ask(redis_url, lambda it: it.delete(OWNER, webhook_id))
    found = {each.request_id: each for each in all_deliveries(redis)}
    assert found[waits].state is State.GIVEN_UP
    assert found[under_way.request_id].state is State.DUE
    note(redis_url, under_way, "HTTP 200", State.DELIVERED)
    counts: Any = redis.hgetall(keyspace.METRICS)
    assert (counts["webhooks delivered"], counts["webhooks given_up"]) == ("1", "1")
    assert not redis.exists(keyspace.WEBHOOKS)


def test_a_log_is_kept_as_long_as_its_deliveries(redis: Redis, redis_url: str) -> None:
    webhook_id = add(redis_url)
    ask_gateway(redis_url, lambda it: it.submit(params(), OWNER))
    days_ms = 5 * 24 * 60 * 60 * 1000
    store = WorkerStore(redis, lease_seconds=10, retention_seconds=days_ms / 1000)
    lease = Lease(str(pop(redis)), "run")
    assert store.start(lease, "ann")
    assert store.fail(lease, "internal", "no")
    retries_ms = sum(PAUSES) * (1 + JITTER) * 1000
    assert redis.pttl(keyspace.STANDING_LOG + webhook_id) > retries_ms + days_ms


def test_a_webhook_of_a_later_version_is_read(redis: Redis, redis_url: str) -> None:
    webhook_id = add(redis_url)
    kept: Any = redis.hget(keyspace.STANDING + OWNER, webhook_id)
    redis.hset(
        keyspace.STANDING + OWNER,
        webhook_id,
        json.dumps(json.loads(kept) | AT | {"secret": "of its own"}),
    )
    assert ask(redis_url, lambda it: it.of_owner(OWNER)) == {webhook_id: replace(FIRST, **AT)}


def test_a_key_that_was_revoked_meanwhile_adds_none(redis: Redis, redis_url: str) -> None:
    redis.hset(keyspace.API_KEY + OWNER, "revoked_at", 1)
    with pytest.raises(KeyEndedError):
        add(redis_url)
    assert not redis.exists(keyspace.STANDING + OWNER)


def of_request(redis: Redis, request_id: str) -> set[str]:
    return {e.delivery_id for e in all_deliveries(redis) if e.request_id == request_id}


def test_a_webhook_that_changes_its_events_keeps_the_deliveries_of_the_others(
    redis: Redis, redis_url: str
) -> None:
    webhook_id = add(redis_url, replace(FIRST, types=["INFERENCE", "BUDGET"]))
    redis.hset(keyspace.API_KEY + OWNER, "monthly_cap", 1)
    price = Price(1)
    ask_gateway(redis_url, lambda it: it.submit(params(), OWNER, price=price))
    store = WorkerStore(redis, lease_seconds=10, retention_seconds=RETENTION_SECONDS)
    lease = Lease(str(pop(redis)), "run")
    assert store.start(lease, "ann")
    assert store.complete(lease, Result("a.mp4", 17))
    assert due(redis) == {"", "budget.warning", "budget.reached"}
    ask(redis_url, lambda it: it.change(OWNER, webhook_id, replace(FIRST, types=["INFERENCE"])))
    assert due(redis) == {""}
    reasons = {each.log[-1][1] for each in all_deliveries(redis) if each.event}
    assert reasons == {"the webhook does not receive notices of the budget any more"}
    notice = next(each for each in all_deliveries(redis) if each.event)
    replay(redis, notice.delivery_id)
    assert [each.event for each in take(redis_url)] == [""]
    only = replace(FIRST, types=["BUDGET"], is_heard=False)
    make_webhook_due(redis, f"{lease.request_id}:{webhook_id}")
    ask(redis_url, lambda it: it.change(OWNER, webhook_id, only))
    replay(redis, notice.delivery_id)
    assert [each.delivery_id for each in take(redis_url)] == [notice.delivery_id]


def due(redis: Redis) -> set[str]:
    """The events that wait."""
    return {each.event for each in all_deliveries(redis) if each.state is State.DUE}
