"""What is due, and who may take it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar

import pytest
from redis import Redis

from tests.support.jobs import ask_gateway, make_webhook_due, params
from worker.broker.connection import connect_gateway
from worker.store import keyspace
from worker.store.gateway_side import GatewayStore
from worker.store.webhooks.deliveries import (
    JITTER,
    MOST_ATTEMPTS,
    MOST_OF_OWNER,
    PAUSES,
    Deliveries,
    Delivery,
    Replay,
    State,
    all_deliveries,
    replay,
)

_Result = TypeVar("_Result")
MOST_OWED = 1000
FURTHER = {"webhook_url": "https://hooks.example/", "webhook_base": "https://us.example"}


def owe(url: str, owner: str, prompt: str = "a pond") -> str:
    """The id of a request that has ended, with a delivery that is due."""

    async def run(it: GatewayStore) -> str:
        accepted = await it.submit(params(prompt), owner, further=FURTHER)
        await it.cancel(accepted.request_id, owner)
        return accepted.request_id

    return ask_gateway(url, run)


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
    make_webhook_due(redis, owed[0])
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
    assert redis.zcard(f"{keyspace.WEBHOOKS}:ann") == MOST_OF_OWNER + 5  # none is lost
    assert take(redis_url, busy={"ann": MOST_OF_OWNER}) == []
    assert len(take(redis_url, busy={"ann": MOST_OF_OWNER - 1})) == 1
    assert len(take(redis_url)) == 7
    assert take(redis_url) == []


def test_owners_take_turns_whatever_they_are_owed(redis_url: str) -> None:
    for owner in (*["ann"] * 3, *["bob"] * 2):
        owe(redis_url, owner)
    turns = [take(redis_url, 1)[0].owner for _ in range(3)]
    assert turns == ["ann", "bob", "ann"]
    assert {each.owner for each in take(redis_url)} == {"ann", "bob"}


def test_what_a_key_may_be_owed_has_an_end(redis: Redis, redis_url: str) -> None:
    """The newest is given up, and may be made by hand; another key's are owed all the same."""
    others = {f"other {number}": 2**42 for number in range(MOST_OWED - 1)}
    redis.zadd(f"{keyspace.WEBHOOKS}:ann", others)
    redis.sadd(f"{keyspace.WEBHOOKS}:ann:", *others)
    last, beyond = owe(redis_url, "ann"), owe(redis_url, "ann")
    bobs = owe(redis_url, "bob")
    assert sorted(ids(take(redis_url))) == sorted([last, bobs])
    found = {each.request_id: each for each in all_deliveries(redis)}
    assert found[last].state is found[bobs].state is State.DUE
    assert (found[beyond].state, found[beyond].due_at) == (State.GIVEN_UP, None)
    assert [what for _, what in found[beyond].log] == ["too many deliveries of this key are due"]
    assert 0 < redis.pttl(keyspace.WEBHOOK + beyond) <= 60_000
    assert replay(redis, beyond) is Replay.DUE
    assert ids(take(redis_url)) == [beyond]


def test_a_delivery_holds_the_prompt_once_as_it_is(redis: Redis, redis_url: str) -> None:
    prompt = '"\\\n' * 300
    request_id = owe(redis_url, "ann", prompt)
    (taken,) = take(redis_url)
    assert taken.job.params.prompt == prompt
    kept = redis.hgetall(keyspace.WEBHOOK + request_id)
    size = sum(len(str(value)) for value in kept.values())
    assert size < len(taken.job.params_json) + 1000


def test_a_delivery_leaves_the_history_out(redis: Redis, redis_url: str) -> None:
    history = {"history_days": "9", "history_params": '{"seed": 1}'}

    async def end(it: GatewayStore) -> str:
        accepted = await it.submit(params(), "ann", further=FURTHER | history)
        await it.cancel(accepted.request_id, "ann")
        return accepted.request_id

    request_id = ask_gateway(redis_url, end)
    assert redis.hget(keyspace.record(request_id), "history_entry")
    kept: Any = redis.hkeys(keyspace.WEBHOOK + request_id)
    assert ":params" in kept
    assert not [name for name in kept if name.startswith(":history")]


def test_a_delivery_that_ends_its_senders_ends_as_well(redis: Redis, redis_url: str) -> None:
    request_id = owe(redis_url, "ann")
    for _ in range(MOST_ATTEMPTS):
        assert ids(take(redis_url)) == [request_id]
        make_webhook_due(redis, request_id)
    assert take(redis_url) == []
    (delivery,) = all_deliveries(redis)
    assert (delivery.state, delivery.due_at) == (State.GIVEN_UP, None)
    assert redis.pttl(keyspace.WEBHOOK + request_id) > 0


def test_only_the_last_attempt_is_noted_and_once(redis: Redis, redis_url: str) -> None:
    request_id = owe(redis_url, "ann")
    (first,) = take(redis_url)
    make_webhook_due(redis, request_id)
    (second,) = take(redis_url)

    async def note(it: Deliveries) -> list[bool]:
        noted = [await it.note(each, State.DUE, "HTTP 500", 60) for each in (first, second, second)]
        return [*noted, await it.note(second, State.DELIVERED, "HTTP 200")]

    assert sender(redis_url, note) == [False, True, False, False]
    (delivery,) = all_deliveries(redis)
    assert [outcome for _, outcome in delivery.log] == ["HTTP 500"]


def test_an_outcome_is_a_line_whatever_is_in_it(redis: Redis, redis_url: str) -> None:
    """One that could not be read would be lost to its sender, and with it all that it took."""
    odd = "\r\n7 a\rb\u2028c\x85d\x1ce \n"
    request_id, other = owe(redis_url, "ann"), owe(redis_url, "bob")
    delivery = next(each for each in take(redis_url) if each.request_id == request_id)
    assert sender(redis_url, lambda it: it.note(delivery, State.DUE, odd))
    redis.hset(keyspace.WEBHOOK + other, "log", "8 as it\r was\u2028noted\n9 before\n")
    for each in (request_id, other):
        make_webhook_due(redis, each)
    logs = {each.owner: [what for _, what in each.log] for each in take(redis_url)}
    assert logs == {"ann": ["7 a b c d e"], "bob": ["as it\r was\u2028noted", "before"]}


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
