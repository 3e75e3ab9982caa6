"""The credits of a key: balance, reserved and charged add up to what was granted."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from server.keys.record import Key, KeyFormError, NewKey
from server.keys.store import change_key, create_key
from tests.support.jobs import ask_gateway, params
from tests.support.keys import ANN, amounts, key, move
from worker.billing import MILLION, Price
from worker.store.fleet import cancel_all

_OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["set", "add", "grant"]), st.integers(0, 10**12)),
    st.tuples(st.sampled_from(["reserve", "charge", "release"]), st.integers(0, 10**9)),
    st.tuples(st.just("unlimited"), st.just(0)),
)


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(_OPERATIONS, max_size=12))
def test_an_account_always_adds_up(redis: Redis, operations: list[tuple[str, int]]) -> None:
    """Balance, reserved and charged make what was granted, whatever comes in between."""
    redis.flushall()
    create_key(redis, NewKey(name="ann", credits=Decimal("7.5")))
    for name, millionths in operations:
        before = key(redis, "ann")
        _operate(redis, name, millionths)
        found = key(redis, "ann")
        if found.balance is not None:
            balance, reserved, charged, granted = amounts(redis, "ann")
            assert balance + reserved + charged == granted
        if name == "set":
            unpaid = before.reserved if before.balance is None else 0
            assert found.balance == Decimal(millionths) / 1_000_000 - unpaid
        if name == "grant":
            assert found.granted == Decimal(millionths) / 1_000_000


def _operate(redis: Redis, name: str, millionths: int) -> None:
    credits_ = Decimal(millionths) / 1_000_000
    metered = key(redis, "ann").balance is not None
    paid: Any = {"balance": -millionths} if metered else {}
    match name:
        case "set":
            change_key(redis, "ann", lambda old: old.with_balance(credits_))
        case "add":
            change_key(
                redis, "ann", lambda old: old.granted_in_all((old.granted or Decimal(0)) + credits_)
            )
        case "grant":
            change_key(redis, "ann", lambda old: old.granted_in_all(credits_))
        case "unlimited":
            change_key(redis, "ann", lambda old: old.granted_in_all(None))
        case "reserve":
            move(redis, "ann", reserved=millionths, **paid)
        case "charge":
            spent = min(millionths, int(key(redis, "ann").reserved * 1_000_000))
            move(redis, "ann", reserved=-spent, charged=spent)
        case "release":
            back = min(millionths, int(key(redis, "ann").reserved * 1_000_000))
            move(redis, "ann", reserved=-back, **({"balance": back} if metered else {}))


@pytest.mark.parametrize("credits_", [None, Decimal(10)], ids=["unlimited", "metered"])
def test_what_a_request_takes_while_credits_are_given_is_not_lost(
    redis: Redis, credits_: Decimal | None
) -> None:
    create_key(redis, NewKey(name="ann", credits=credits_))
    asked = 0

    def edit(old: Key) -> Key:
        nonlocal asked
        asked += 1
        if asked == 1:  # after the account was read, and before it is written
            move(redis, "ann", reserved=3_000_000, **({"balance": -3_000_000} if credits_ else {}))
        return old.with_balance(Decimal(20))

    change_key(redis, "ann", edit)
    assert amounts(redis, "ann") == tuple(map(Decimal, (17, 3, 0, 20)))


def test_what_was_submitted_without_a_limit_gives_no_credits_when_it_is_cancelled(
    redis: Redis, redis_url: str
) -> None:
    create_key(redis, ANN)
    owner = key(redis, "ann").key_id
    for _ in range(3):
        ask_gateway(redis_url, lambda it: it.submit(params(), owner, price=Price(30 * MILLION)))
    change_key(redis, "ann", lambda old: old.with_balance(Decimal(5)))
    assert amounts(redis, "ann") == tuple(map(Decimal, (-85, 90, 0, 5)))
    assert cancel_all(redis, owner, retention_seconds=60) == 3
    assert amounts(redis, "ann") == tuple(map(Decimal, (5, 0, 0, 5)))


def test_more_than_can_be_counted_is_not_given(redis: Redis) -> None:
    create_key(redis, NewKey(name="ann", credits=Decimal(10**9)))
    with pytest.raises(KeyFormError, match="got 9000000001"):
        change_key(redis, "ann", lambda old: old.granted_in_all(Decimal(9 * 10**9 + 1)))
