"""What is due, and who may take it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

import pytest
from redis import Redis

from tests.jobs import intake, params
from worker import keyspace
from worker.connection import connect_gateway
from worker.intake import Intake
from worker.webhooks import (
    JITTER,
    MOST_ATTEMPTS,
    MOST_OF_OWNER,
    PAUSES,
    Deliveries,
    Delivery,
    State,
    all_deliveries,
)

_Result = TypeVar("_Result")
FURTHER = {"webhook_url": "https://hooks.example/", "webhook_base": "https://us.example"}


def owe(url: str, owner: str) -> str:
    """The id of a request that has ended, and that somebody is to be told of."""

    async def run(it: Intake) -> str:
        accepted = await it.submit(params(), owner, further=FURTHER)
        await it.cancel(accepted.request_id, owner)
        return accepted.request_id

    return intake(url, run)


def sender(url: str, ask: Callable[[Deliveries], Awaitable[_Result]]) -> _Result:
    """What `ask` gets, as the sender of a gateway."""

    async def run() -> _Result:
        async with connect_gateway(url) as redis:
            return await ask(Deliveries(redis, retention_seconds=60))

    return asyncio.run(run())


def take(url: str, most: int = 100, busy: dict[str, int] | None = None) -> list[Delivery]:
    return sender(url, lambda it: it.take(most, busy or {}))


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.request_id for delivery in deliveries]


def test_what_is_due_is_taken_by_one_sender_until_its_lease_is_over(
    redis: Redis, redis_url: str
) -> None:
    owed = [owe(redis_url, "ann") for _ in range(3)]
    first, rest = take(redis_url, 1), take(redis_url)
    assert sorted(ids(first + rest)) == sorted(owed)
    assert len(first) == 1
    assert take(redis_url) == []
    redis.zadd(keyspace.WEBHOOKS, {owed[0]: 1})
    again = take(redis_url)
    assert ids(again) == owed[:1]
    assert again[0].attempts == 2


def test_one_owner_is_not_sent_to_so_often_at_once_that_others_wait(
    redis: Redis, redis_url: str
) -> None:
    for _ in range(MOST_OF_OWNER + 5):
        owe(redis_url, "ann")
    bobs = owe(redis_url, "bob")
    taken = take(redis_url, busy={"ann": 3})
    assert [each.owner for each in taken].count("ann") == MOST_OF_OWNER - 3
    assert bobs in ids(taken)
    assert redis.zcount(keyspace.WEBHOOKS, "-inf", "+inf") == MOST_OF_OWNER + 6  # none is lost


def test_a_delivery_that_ends_its_senders_ends_as_well(redis: Redis, redis_url: str) -> None:
    request_id = owe(redis_url, "ann")
    for _ in range(MOST_ATTEMPTS):
        assert ids(take(redis_url)) == [request_id]
        redis.zadd(keyspace.WEBHOOKS, {request_id: 1})
    assert take(redis_url) == []
    (delivery,) = all_deliveries(redis)
    assert (delivery.state, delivery.due_at) == (State.GIVEN_UP, None)
    assert redis.pttl(keyspace.WEBHOOK + request_id) > 0


def test_only_the_last_attempt_is_noted_and_once(redis: Redis, redis_url: str) -> None:
    request_id = owe(redis_url, "ann")
    (first,) = take(redis_url)
    redis.zadd(keyspace.WEBHOOKS, {request_id: 1})
    (second,) = take(redis_url)

    async def note(it: Deliveries) -> list[bool]:
        noted = [await it.note(each, State.DUE, "HTTP 500", 60) for each in (first, second, second)]
        return [*noted, await it.note(second, State.DELIVERED, "HTTP 200")]

    assert sender(redis_url, note) == [False, True, False, False]
    (delivery,) = all_deliveries(redis)
    assert [outcome for _, outcome in delivery.log] == ["HTTP 500"]


@pytest.mark.parametrize("before", [0, 4])
def test_pauses_grow_over_hours_and_differ(redis: Redis, redis_url: str, before: int) -> None:
    owe(redis_url, "ann")
    (taken,) = take(redis_url)
    random = Random(1)
    for number, pause in enumerate(PAUSES, start=1):
        fields = vars(taken) | {"attempts": before + number, "before": before}
        drawn = {Delivery(**fields).pause(random) for _ in range(20)}
        assert len(drawn) == 20
        assert all(each and pause <= each <= pause * (1 + JITTER) for each in drawn)
    fields["attempts"] += 1
    assert Delivery(**fields).pause(random) is None
