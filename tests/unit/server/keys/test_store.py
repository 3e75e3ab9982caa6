"""The life of keys, on a real broker: what is promised of every act, in any order."""

from __future__ import annotations

import os
import pwd
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from server.keys.audit import MOST_ENTRIES, Entry, Transaction, entries, transaction
from server.keys.lookup import digest
from server.keys.record import Key, KeyFormError, NewKey
from server.keys.store import (
    KeyExistsError,
    KeyStateError,
    KeyStore,
    NoSuchKeyError,
    all_keys,
    change_key,
    create_key,
    one_key,
    revoke_key,
    rotate_key,
)
from server.keys.times import broker_time
from tests.faults.support.proxy import LossyProxy
from tests.support.jobs import ask_gateway, params
from worker.billing import MILLION, Price
from worker.broker.connection import connect_briefly
from worker.errors import BrokerUnavailableError
from worker.store import keyspace
from worker.store.fleet import cancel_all

ANN = NewKey(name="ann")


def key(redis: Redis, name: str) -> Key:
    return one_key(redis, name)[0]


def amounts(redis: Redis, name: str) -> tuple[Decimal, Decimal, Decimal, Decimal]:
    """Balance, reserved, charged and granted."""
    found = key(redis, name)
    assert found.balance is not None
    assert found.granted is not None
    return found.balance, found.reserved, found.charged, found.granted


def move(redis: Redis, name: str, **by: int) -> None:
    """What a request that comes or ends does to the account of its key, in millionths."""
    for field, amount in by.items():
        redis.hincrby(keyspace.API_KEY + key(redis, name).key_id, field, amount)


def acts(redis: Redis) -> list[str]:
    return [f"{entry.act} {entry.subject}" for entry in entries(redis, MOST_ENTRIES)]


def good_secrets(redis: Redis, name: str) -> int:
    """How many secrets let this key in now."""
    now = broker_time(redis)
    return sum(secret.ends_at is None or secret.ends_at > now for secret in one_key(redis, name)[1])


# names


def test_two_keys_that_are_in_use_never_have_one_name(redis: Redis) -> None:
    create_key(redis, ANN)
    create_key(redis, NewKey(name="bob"))
    with pytest.raises(KeyExistsError, match="There is a key `ann` already"):
        create_key(redis, ANN)
    with pytest.raises(KeyExistsError):
        change_key(redis, "bob", lambda old: old.replace(name="ann"))
    assert [key.name for key, _ in all_keys(redis)] == ["ann", "bob"]


def test_of_many_who_make_a_key_of_one_name_at_once_one_does(redis: Redis, redis_url: str) -> None:
    def make(_: int) -> bool:
        with connect_briefly(redis_url) as own:
            try:
                create_key(own, ANN)
            except KeyExistsError:
                return False
            return True

    with ThreadPoolExecutor(8) as pool:
        assert Counter(pool.map(make, range(16))) == {True: 1, False: 15}
    assert acts(redis) == ["create ann"]
    assert redis.hlen(keyspace.SECRETS) == 1


def test_a_revoked_key_frees_its_name_and_is_found_by_its_id(redis: Redis) -> None:
    create_key(redis, ANN)
    first = revoke_key(redis, "ann")
    create_key(redis, ANN)
    assert key(redis, "ann").key_id != first.key_id
    assert key(redis, first.key_id) == first
    assert [key.revoked_at is None for key, _ in all_keys(redis)] == [True, False]


def test_to_revoke_twice_changes_nothing_more(redis: Redis) -> None:
    create_key(redis, ANN)
    revoked = revoke_key(redis, "ann")
    assert revoke_key(redis, revoked.key_id) == revoked
    assert acts(redis) == ["create ann", "revoke ann"]


def test_a_key_can_be_revoked_whatever_the_broker_holds_of_it(redis: Redis) -> None:
    create_key(redis, ANN)
    redis.hset(keyspace.API_KEY + key(redis, "ann").key_id, "priority", 0)
    revoked = revoke_key(redis, "ann")
    assert key(redis, revoked.key_id).revoked_at


def test_a_revoked_key_takes_no_other_secret_and_no_other_terms(redis: Redis) -> None:
    create_key(redis, ANN)
    gone = revoke_key(redis, "ann").key_id
    for act in (
        lambda: rotate_key(redis, gone),
        lambda: change_key(redis, gone, lambda old: old.replace(priority=2)),
    ):
        with pytest.raises(KeyStateError, match=r"was revoked on .*, permanently"):
            act()


def test_a_key_that_is_not_there_is_told_with_one_that_is_like_it(redis: Redis) -> None:
    create_key(redis, NewKey(name="alice"))
    with pytest.raises(NoSuchKeyError, match=r"no key `alcie`\. Did you mean `alice`"):
        revoke_key(redis, "alcie")
    with pytest.raises(NoSuchKeyError, match="keys list"):
        revoke_key(redis, "zoe")


# terms


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scopes", ()),
        ("scopes", ("write",)),
        ("models", ("A b",)),
        ("models", ("",)),
        ("priority", 0),
        ("priority", 101),
        ("requests_per_minute", 0),
        ("requests_per_minute", 10_001),
        ("jobs_at_once", 0),
        ("jobs_at_once", 1.5),
        ("expires_at", "2027-01-31T00:00:00"),
        ("credits", "-1"),
        ("credits", "1.1234567"),
        ("credits", "1000000001"),
        ("credits", "NaN"),
        ("colour", "red"),
    ],
)
def test_what_a_key_cannot_be_is_named(redis: Redis, field: str, value: object) -> None:
    with pytest.raises(KeyFormError, match=rf"^{field}\b.*: .*\.$"):
        NewKey.of(name="ann", **{field: value})


def test_only_what_is_named_is_changed_and_what_was_is_told(redis: Redis) -> None:
    create_key(redis, NewKey(name="ann", models=("mochi-1",), requests_per_minute=5))
    before = key(redis, "ann")
    changes = change_key(
        redis, "ann", lambda old: old.replace(name="eve", models=(), requests_per_minute=None)
    )
    assert [str(change) for change in changes] == [
        "name: ann → eve",
        "models: mochi-1 → all",
        "requests_per_minute: 5 → none",
    ]
    assert key(redis, "eve") == before.replace(name="eve", models=(), requests_per_minute=None)
    assert "requests_per_minute" not in redis.hgetall(keyspace.API_KEY + before.key_id)
    with pytest.raises(NoSuchKeyError):
        key(redis, "ann")


def test_a_change_that_changes_nothing_is_not_noted(redis: Redis) -> None:
    create_key(redis, ANN)
    assert change_key(redis, "ann", lambda old: old.replace(priority=1)) == []
    assert acts(redis) == ["create ann"]


# secrets


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from([0, 1, 3600]), min_size=1, max_size=8))
def test_never_are_more_than_two_secrets_good(redis: Redis, graces: list[int]) -> None:
    redis.flushall()
    secrets = [create_key(redis, ANN)]
    for seconds in graces:
        secrets.append(rotate_key(redis, "ann", grace=timedelta(seconds=seconds)))
        assert good_secrets(redis, "ann") <= 2
        stored = {secret.digest: secret.ends_at for secret in one_key(redis, "ann")[1]}
        assert set(stored) == {digest(secret) for secret in secrets[-2:]}
        assert stored[digest(secrets[-1])] is None
    assert good_secrets(redis, "ann") == 2 - (graces[-1] == 0)


# accounts


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


# the log


def test_an_act_that_another_came_before_is_decided_anew(redis: Redis) -> None:
    create_key(redis, ANN)
    seen: list[int] = []

    def decide(step: Transaction) -> int:
        seen.append(KeyStore(step).find("ann").priority)
        if len(seen) == 1:  # after it was read
            change_key(redis, "ann", lambda old: old.replace(priority=9))
        return seen[-1]

    assert transaction(redis, decide) == 9
    assert seen == [1, 9]


def test_every_change_is_audited_with_its_author_and_without_a_secret(redis: Redis) -> None:
    secrets = [create_key(redis, ANN, by="ops@desk")]
    change_key(redis, "ann", lambda old: old.replace(priority=3), by="ops@desk")
    secrets.append(rotate_key(redis, "ann", by="ops@desk"))
    revoke_key(redis, "ann")
    log = entries(redis, 10)
    assert [(entry.by, entry.act) for entry in log[:3]] == [
        ("ops@desk", "create"),
        ("ops@desk", "set"),
        ("ops@desk", "rotate"),
    ]
    assert "@" in log[3].by
    assert str(log[1].changes[0]) == "priority: 1 → 3"
    assert all(secret not in str(log) and digest(secret) not in str(log) for secret in secrets)


def test_who_acted_is_not_what_the_environment_says(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    create_key(redis, ANN)
    (entry,) = entries(redis, 1)
    assert entry.by.startswith(f"{pwd.getpwuid(os.geteuid()).pw_name}@")


def test_the_log_forgets_what_is_oldest(redis: Redis) -> None:
    def note(step: Transaction, subjects: Iterable[object]) -> None:
        for subject in subjects:
            step.note(Entry("drain", str(subject)))

    for start in range(0, MOST_ENTRIES, 2000):
        transaction(redis, partial(note, subjects=range(start, start + 2000)))
    transaction(redis, partial(note, subjects=["the last"]))
    assert MOST_ENTRIES <= redis.xlen(keyspace.AUDIT) < MOST_ENTRIES + 200
    assert [entry.subject for entry in entries(redis, 1)] == ["the last"]


def test_a_change_whose_reply_is_lost_is_done_once(redis: Redis, redis_url: str) -> None:
    """The client library asks again, and so do we; what was done is found in the log."""
    create_key(redis, NewKey(name="ann", credits=Decimal(1)))
    with LossyProxy(redis_url) as proxy, connect_briefly(proxy.url) as client:
        proxy.lose("commands")
        change_key(client, "ann", lambda old: old.granted_in_all((old.granted or 0) + Decimal(2)))
        proxy.lose("commands")
        secret = rotate_key(client, "ann")
        assert proxy.lost["commands"] == 2
    assert amounts(redis, "ann")[0] == 3
    assert acts(redis) == ["create ann", "set ann", "rotate ann"]
    assert {secret.digest: secret.ends_at for secret in one_key(redis, "ann")[1]}[
        digest(secret)
    ] is None


def test_without_a_broker_nothing_is_said_to_be_done() -> None:
    with (
        connect_briefly("unix:///nowhere/valkey.sock") as client,
        pytest.raises(BrokerUnavailableError),
    ):
        create_key(client, ANN)
