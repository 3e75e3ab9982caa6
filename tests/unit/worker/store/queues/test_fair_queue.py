"""Who is next, when several keys share the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import cycle, islice
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from tests.support.jobs import params, pop
from worker.broker.connection import connect_gateway
from worker.errors import QueueFullError
from worker.store import keyspace
from worker.store.gateway_side import GatewayStore
from worker.store.worker_side import Lease, WorkerStore

_Result = TypeVar("_Result")


class Shop:
    """A queue, whose customers are known by a letter, and one who serves them."""

    def __init__(self, redis: Redis, url: str) -> None:
        self._redis = redis
        self._url = url
        self.store = WorkerStore(redis, lease_seconds=10, retention_seconds=60)
        self.owners: dict[str, str] = {}

    def submit(self, *owners: str, priority: int = 1) -> list[str]:
        """The ids of requests, one after the other."""
        for owner in set(owners):
            self._redis.hset(keyspace.API_KEY + owner, "priority", priority)

        async def ask(it: GatewayStore) -> list[str]:
            submits = (it.submit(params(), owner) for owner in owners)
            return [accepted.request_id for accepted in await asyncio.gather(*submits)]

        ids = self._ask(ask)
        self.owners |= dict(zip(ids, owners, strict=True))
        return ids

    def position(self, request_id: str) -> int | None:
        """What its customer is told."""
        return self._ask(lambda it: it.find_signed(request_id)).position

    def cancel(self, request_id: str) -> None:
        """Not any more."""
        self._ask(lambda it: it.cancel(request_id, self.owners[request_id]))

    def start(self) -> Lease:
        """The lease of the next one, which a look at the queue has foreseen."""
        foreseen = self.store.peek()
        request_id = pop(self._redis)
        assert request_id is not None
        assert foreseen
        assert foreseen[0] == request_id
        lease = Lease(request_id, f"run of {request_id}")
        assert self.store.start(lease, "ann")
        return lease

    def serve(self) -> str:
        """The next one, which is done at once."""
        lease = self.start()
        assert self.store.fail(lease, "internal", "done")
        return lease.request_id

    def served(self, times: int) -> str:
        """The customers in the order in which they are served."""
        return "".join(self.owners[self.serve()] for _ in range(times))

    def _ask(self, ask: Callable[[GatewayStore], Awaitable[_Result]]) -> _Result:
        async def run() -> _Result:
            async with connect_gateway(self._url) as redis:
                return await ask(GatewayStore(redis, most_waiting=10_000, retention_seconds=60))

        return asyncio.run(run())


@pytest.fixture
def shop(redis: Redis, redis_url: str) -> Shop:
    return Shop(redis, redis_url)


@pytest.mark.parametrize("served_before", [0, 1, 5])
def test_a_thousand_waiting_requests_of_one_key_do_not_delay_another_keys_first(
    shop: Shop, served_before: int
) -> None:
    shop.submit(*"a" * 1000)
    shop.served(served_before)
    (first,) = shop.submit("b")
    assert shop.position(first) in {1, 2}
    assert "b" in shop.served(2)


def test_busy_keys_take_turns(shop: Shop) -> None:
    shop.submit(*"aaaaabbbbbccccc")
    assert shop.served(15) == "abc" * 5


def test_a_key_with_a_higher_priority_has_as_many_turns_more(shop: Shop) -> None:
    shop.submit(*"a" * 40, priority=3)
    shop.submit(*"b" * 40)
    served = shop.served(40)
    assert 29 <= served.count("a") <= 31
    for start in range(len(served) - 8):
        assert 5 <= served[start : start + 8].count("a") <= 7


def test_one_key_is_served_in_the_order_it_asked(shop: Shop) -> None:
    ids = shop.submit(*"abaabbab")
    served = [shop.serve() for _ in ids]
    for owner in "ab":
        mine = [name for name in ids if shop.owners[name] == owner]
        assert [name for name in served if shop.owners[name] == owner] == mine


def test_keys_that_ask_for_one_at_a_time_all_get_their_turns_beside_a_long_queue(
    shop: Shop,
) -> None:
    shop.submit(*"a" * 100)
    shop.submit(*"bcd")
    served = ""
    for _ in range(40):
        owner = shop.owners[shop.serve()]
        served += owner
        if owner != "a":
            shop.submit(owner)
    assert {owner: served.count(owner) for owner in "abcd"} == dict.fromkeys("abcd", 10)


def test_who_comes_back_after_a_pause_has_no_turns_saved_up(shop: Shop) -> None:
    shop.submit(*"a" * 50)
    shop.submit("b")
    shop.served(20)
    shop.submit(*"b" * 10)
    assert shop.served(10).count("b") == 5


def test_cancelled_requests_cost_their_key_no_turns(shop: Shop) -> None:
    shop.submit(*"a" * 20)
    for request_id in shop.submit(*"b" * 20):
        shop.cancel(request_id)
    (wanted,) = shop.submit("b")
    assert shop.position(wanted) in {1, 2}
    assert "b" in shop.served(2)


def test_requeued_requests_come_first_and_cost_no_second_turn(shop: Shop) -> None:
    shop.submit(*"ab" * 5)
    lease = shop.start()
    assert shop.store.requeue(lease)
    assert shop.serve() == lease.request_id
    assert shop.served(9) == "babababab"


def test_a_position_is_the_place_in_which_it_is_served(shop: Shop) -> None:
    ids = shop.submit(*"aaaaaaabbbc") + shop.submit(*"dddd", priority=2)
    shop.store.requeue(shop.start())
    positions = {shop.position(name): name for name in ids}
    assert [positions[place] for place in range(1, len(ids) + 1)] == [shop.serve() for _ in ids]


def test_where_only_requeued_requests_wait_no_key_has_had_more_turns(shop: Shop) -> None:
    shop.submit("z")
    lease = shop.start()
    shop.submit(*"a" * 4)
    for _ in range(3):
        shop.serve()
    shop.store.requeue(lease)
    (last,) = [name for name, owner in shop.owners.items() if owner == "a"][-1:]
    shop.cancel(last)
    shop.submit(*"bbba")
    assert [shop.owners[shop.start().request_id] for _ in range(3)] == ["z", "b", "a"]


def test_a_queue_that_one_key_has_filled_still_takes_anothers_first(
    redis: Redis, redis_url: str
) -> None:
    async def ask() -> list[str]:
        told = []
        async with connect_gateway(redis_url) as client:
            it = GatewayStore(client, most_waiting=3, retention_seconds=60)
            for owner in "aaaabbca":
                try:
                    await it.submit(params(), owner)
                    told.append(owner)
                except QueueFullError:
                    told.append("full")
        return told

    assert asyncio.run(ask()) == ["a", "a", "a", "full", "b", "full", "c", "full"]
    assert redis.zcard(keyspace.WAITING) == 5


def test_an_empty_queue_leaves_no_turns(shop: Shop, redis: Redis) -> None:
    shop.submit(*"aab")
    shop.served(3)
    assert not [key for key in map(str, redis.keys()) if key.startswith(keyspace.WAITING)]
    assert not redis.exists(keyspace.TURNS, keyspace.SEQUENCE)


PAIRS = ("ab", "ac", "bc")
MOST_AHEAD = 2
"""Turns, while both wait."""


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=4, max_size=40))
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_no_mixture_of_submits_and_service_is_unfair(
    redis: Redis, redis_url: str, events: list[str | None]
) -> None:
    """None: one is served. First come first served for one key, and turns between two."""
    redis.flushall()
    shop = Shop(redis, redis_url)
    waiting: dict[str, list[str]] = {owner: [] for owner in "abc"}
    ahead = dict.fromkeys(PAIRS, 0)
    for event in [*events, *[None] * len(events)]:
        if event is not None:
            waiting[event] += shop.submit(event)
        elif any(waiting.values()):
            served = shop.serve()
            owner = shop.owners[served]
            assert waiting[owner].pop(0) == served
            ahead = {
                pair: lead + {pair[0]: 1, pair[1]: -1}.get(owner, 0)
                for pair, lead in ahead.items()
                if all(waiting[each] for each in pair)  # or there is no turn to be owed
            }
            ahead = dict.fromkeys(PAIRS, 0) | ahead
            assert all(abs(lead) <= MOST_AHEAD for lead in ahead.values()), ahead


def test_fair_turns_are_kept_for_hundreds_of_turns(shop: Shop) -> None:
    shop.submit(*islice(cycle("ab"), 200))
    served = shop.served(200)
    assert all({"a", "b"} == set(served[at : at + 2]) for at in range(0, 200, 2))
