"""Standing webhooks: where their deliveries go, and when those end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from redis import Redis

from tests.support.jobs import OWNER, ask_gateway, make_webhook_due, params
from worker.broker.connection import connect_gateway
from worker.errors import KeyEndedError
from worker.store import keyspace
from worker.store.deliveries import Deliveries, Delivery, State, all_deliveries, replay
from worker.store.standing import Put, StandingWebhooks, Webhook

RETENTION_SECONDS = 60.0
FIRST = Webhook("https://first.example/", "https://us.example", ["INFERENCE"], True, 1)
SECOND = replace(FIRST, url="https://second.example/", base="https://eu.example")
DEAF = replace(FIRST, types=["PIXELFLOW"], is_heard=False)

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


def end_request(url: str) -> str:
    """The id of a request that has ended."""
    accepted = ask_gateway(url, lambda it: it.submit(params(), OWNER))
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
        ask(redis_url, lambda it: it.change(OWNER, webhook_id, DEAF))
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


def test_a_key_that_was_revoked_meanwhile_adds_none(redis: Redis, redis_url: str) -> None:
    redis.hset(keyspace.API_KEY + OWNER, "revoked_at", 1)
    with pytest.raises(KeyEndedError):
        add(redis_url)
    assert not redis.exists(keyspace.STANDING + OWNER)


def of_request(redis: Redis, request_id: str) -> set[str]:
    return {e.delivery_id for e in all_deliveries(redis) if e.request_id == request_id}
