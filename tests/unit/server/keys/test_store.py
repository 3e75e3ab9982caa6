"""API keys in the broker: names, terms, secrets, and acts that fail."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from server.keys.lookup import digest
from server.keys.record import KeyFormError, NewKey
from server.keys.store import (
    KeyExistsError,
    KeyStateError,
    NoSuchKeyError,
    all_keys,
    change_key,
    create_key,
    one_key,
    revoke_key,
    rotate_key,
)
from server.keys.times import broker_time
from tests.support.keys import ANN, acts, key
from worker.broker.connection import connect_briefly
from worker.errors import BrokerUnavailableError
from worker.store import keyspace


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


def test_a_revoked_key_leaves_no_standing_webhooks_and_no_history(redis: Redis) -> None:
    create_key(redis, ANN)
    key_id = key(redis, "ann").key_id
    redis.hset(keyspace.STANDING + key_id, "a webhook", "{}")
    redis.xadd(keyspace.PAST + key_id, {"id": "a request"})
    redis.zadd(keyspace.PAST_TIMES + key_id, {"a request": 1})
    revoke_key(redis, "ann")
    assert redis.keys(f"*{key_id}") == [keyspace.API_KEY + key_id]


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


def test_without_a_broker_nothing_is_said_to_be_done() -> None:
    with (
        connect_briefly("unix:///nowhere/valkey.sock") as client,
        pytest.raises(BrokerUnavailableError),
    ):
        create_key(client, ANN)
