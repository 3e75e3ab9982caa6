from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from redis import Redis

from server.errors import ForbiddenError, InvalidKeyError, KeyNameError
from server.first_key import first_key_file
from server.keyring import PREFIX, REMEMBER_SECONDS, ApiKey, Keyring, Scope, any_key, create_key
from worker import keyspace
from worker.connection import connect_gateway
from worker.errors import BrokerUnavailableError

ALL = frozenset(Scope)

_Result = TypeVar("_Result")


def with_keyring(
    url: str,
    use: Callable[[Keyring], Awaitable[_Result]],
    monotonic: Callable[[], float] = lambda: 0.0,
) -> _Result:
    async def run() -> _Result:
        client = connect_gateway(url)
        try:
            return await use(Keyring(client, monotonic))
        finally:
            await client.aclose()

    return asyncio.run(run())


def find(url: str, secret: str) -> ApiKey:
    return with_keyring(url, lambda keyring: keyring.find(secret))


def test_a_key_that_was_made_is_found_with_what_it_may_do(redis: Redis, redis_url: str) -> None:
    key = find(redis_url, create_key(redis, "laptop", frozenset({Scope.READ}), now=7.0))
    assert (key.name, key.scopes, key.created_at) == ("laptop", frozenset({Scope.READ}), 7.0)


def test_each_key_is_an_owner_of_its_own(redis: Redis, redis_url: str) -> None:
    keys = [find(redis_url, create_key(redis, "laptop", ALL, now=0.0)) for _ in range(2)]
    assert keys[0].key_id != keys[1].key_id


def test_a_secret_is_long_and_random_and_kept_nowhere(redis: Redis) -> None:
    secret = create_key(redis, "laptop", ALL, now=0.0)
    assert secret.startswith(PREFIX)
    assert len(secret) >= len(PREFIX) + 43
    assert secret != create_key(redis, "laptop", ALL, now=0.0)
    assert secret.removeprefix(PREFIX) not in str(redis.hgetall(keyspace.API_KEYS))


@pytest.mark.parametrize("secret", ["", PREFIX, "mochi_guess", "\xff", "x" * 100_000])
def test_no_other_secret_is_a_key(redis: Redis, redis_url: str, secret: str) -> None:
    create_key(redis, "laptop", ALL, now=0.0)
    with pytest.raises(InvalidKeyError):
        find(redis_url, secret)


def test_the_stored_hash_is_no_key(redis: Redis, redis_url: str) -> None:
    create_key(redis, "laptop", ALL, now=0.0)
    (stored,) = redis.hkeys(keyspace.API_KEYS)
    with pytest.raises(InvalidKeyError):
        find(redis_url, str(stored))


def test_a_removed_key_is_refused_a_second_later(redis: Redis, redis_url: str) -> None:
    secret = create_key(redis, "laptop", ALL, now=0.0)
    now = 0.0

    async def use(keyring: Keyring) -> None:
        nonlocal now
        await keyring.find(secret)
        redis.delete(keyspace.API_KEYS)
        await keyring.find(secret)
        now = REMEMBER_SECONDS
        for _ in range(2):
            with pytest.raises(InvalidKeyError):
                await keyring.find(secret)

    with_keyring(redis_url, use, lambda: now)


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "a\n", "x" * 65, "\x1b[2J", "<b>"])
def test_a_name_that_could_upset_a_table_is_refused(redis: Redis, name: str) -> None:
    with pytest.raises(KeyNameError, match="1 to 64 letters"):
        create_key(redis, name, ALL, now=0.0)
    assert not any_key(redis)


def test_without_a_broker_nobody_can_tell(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailableError):
        find(f"unix://{tmp_path}/none.sock", "mochi_guess")


def test_a_scope_that_is_missing_is_named() -> None:
    key = ApiKey(key_id="1", name="laptop", scopes=frozenset({Scope.READ}), created_at=0.0)
    key.require(Scope.READ)
    with pytest.raises(ForbiddenError, match="lacks the scope `generate`"):
        key.require(Scope.GENERATE)


def test_the_first_key_is_made_once_and_for_its_owner_only(redis: Redis, tmp_path: Path) -> None:
    assert not any_key(redis)
    path = first_key_file(redis, tmp_path)
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o600
    assert any_key(redis)
    assert first_key_file(redis, tmp_path) == path
    assert first_key_file(redis, tmp_path / "elsewhere") is None


def test_a_first_key_that_could_not_be_let_in_is_made_again(redis: Redis, tmp_path: Path) -> None:
    lost = first_key_file(redis, tmp_path)
    assert lost is not None
    secret = lost.read_text()
    redis.delete(keyspace.API_KEYS)  # as if the process had died before it came so far
    again = first_key_file(redis, tmp_path)
    assert again == lost
    assert lost.read_text() != secret
    assert any_key(redis)
