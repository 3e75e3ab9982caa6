from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import pytest
from redis import Redis

from server.errors import ExpiredKeyError, ForbiddenError, InvalidKeyError, RevokedKeyError
from server.keys.file import apply_key_file
from server.keys.first import DRAFT, first_key_file
from server.keys.lookup import PREFIX, ApiKey, KeyLookup, Scope, digest
from server.keys.record import KeyFormError, NewKey
from server.keys.store import any_key, create_key, one_key, revoke_key, rotate_key
from server.keys.times import EPOCH
from tests.faults.support.proxy import LossyProxy
from worker.broker.connection import connect_briefly, connect_gateway
from worker.errors import BrokerUnavailableError
from worker.store import keyspace

LAPTOP = NewKey(name="laptop")

_Result = TypeVar("_Result")


def with_lookup(url: str, use: Callable[[KeyLookup], Awaitable[_Result]]) -> _Result:
    async def run() -> _Result:
        async with connect_gateway(url) as client:
            return await use(KeyLookup(client))

    return asyncio.run(run())


def find(url: str, secret: str) -> ApiKey:
    return with_lookup(url, lambda lookup: lookup.find(digest(secret)))


def test_a_key_that_was_made_is_found_with_what_it_may_do(redis: Redis, redis_url: str) -> None:
    new = NewKey(name="laptop", scopes=(Scope.READ,), models=("b", "a"), credits=Decimal("7.5"))
    key = find(redis_url, create_key(redis, new))
    assert (key.name, *key.scopes, *sorted(key.models)) == ("laptop", "read", "a", "b")
    assert key.balance == Decimal("7.5")


def test_a_key_of_which_nothing_is_said_makes_and_reads_without_a_meter(
    redis: Redis, redis_url: str
) -> None:
    key = find(redis_url, create_key(redis, LAPTOP))
    assert key.scopes == {"generate", "read"}
    assert not key.models
    assert key.balance is None


def test_each_key_is_an_owner_of_its_own(redis: Redis, redis_url: str) -> None:
    keys = [find(redis_url, create_key(redis, NewKey(name=name))) for name in "ab"]
    assert keys[0].key_id != keys[1].key_id


def test_a_secret_is_long_and_random_and_kept_nowhere(redis: Redis) -> None:
    secret = create_key(redis, LAPTOP)
    assert secret.startswith(PREFIX)
    assert len(secret) >= len(PREFIX) + 43
    assert secret != create_key(redis, NewKey(name="other"))
    stored = [redis.hgetall(name) for name in redis.scan_iter("mochi:*", _type="hash")]
    everything = f"{stored} {redis.xrange(keyspace.AUDIT)}"
    assert "laptop" in everything
    assert secret.removeprefix(PREFIX) not in everything


@pytest.mark.parametrize("secret", ["", PREFIX, "mochi_guess", "\xff", "x" * 100_000])
def test_no_other_secret_is_a_key(redis: Redis, redis_url: str, secret: str) -> None:
    create_key(redis, LAPTOP)
    with pytest.raises(InvalidKeyError, match="Invalid"):
        find(redis_url, secret)


def test_the_stored_hash_is_no_key(redis: Redis, redis_url: str) -> None:
    create_key(redis, LAPTOP)
    (stored,) = redis.hkeys(keyspace.SECRETS)
    with pytest.raises(InvalidKeyError, match="Invalid"):
        find(redis_url, str(stored))


def test_a_revoked_key_is_refused_the_next_time(redis: Redis, redis_url: str) -> None:
    secret = create_key(redis, LAPTOP)

    async def use(lookup: KeyLookup) -> None:
        await lookup.find(digest(secret))
        revoke_key(redis, "laptop")
        with pytest.raises(RevokedKeyError):
            await lookup.find(digest(secret))

    with_lookup(redis_url, use)


def test_a_key_is_good_until_it_expires_by_the_brokers_clock(redis: Redis, redis_url: str) -> None:
    seconds, microseconds = redis.time()
    now = EPOCH + timedelta(seconds=seconds, microseconds=microseconds)
    hour = timedelta(hours=1)
    good, over = (
        create_key(redis, NewKey(name=name, expires_at=end))
        for name, end in {"good": now + hour, "over": now - hour}.items()
    )
    assert find(redis_url, good).name == "good"
    with pytest.raises(ExpiredKeyError):
        find(redis_url, over)


def test_a_secret_that_was_replaced_is_good_for_the_grace(redis: Redis, redis_url: str) -> None:
    first = create_key(redis, LAPTOP)
    second = rotate_key(redis, "laptop")
    assert find(redis_url, first) == find(redis_url, second)
    third = rotate_key(redis, "laptop", grace=timedelta())
    assert find(redis_url, third).name == "laptop"
    with pytest.raises(ExpiredKeyError):
        find(redis_url, second)
    with pytest.raises(InvalidKeyError, match="Invalid"):
        find(redis_url, first)


def test_keys_are_found_by_a_broker_that_has_forgotten_the_script(
    redis: Redis, redis_url: str
) -> None:
    secret = create_key(redis, LAPTOP)

    async def use(lookup: KeyLookup) -> None:
        await lookup.find(digest(secret))
        redis.script_flush()
        assert (await lookup.find(digest(secret))).name == "laptop"

    with_lookup(redis_url, use)


def test_each_of_many_who_ask_at_once_has_his_own_answer(redis: Redis, redis_url: str) -> None:
    secrets = [create_key(redis, NewKey(name=name)) for name in "abc"]
    revoke_key(redis, "b")

    async def use(lookup: KeyLookup) -> list[ApiKey | BaseException]:
        asked = (lookup.find(digest(secret)) for secret in [*secrets, "mochi_guess"])
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third, stranger = with_lookup(redis_url, use)
    assert [getattr(key, "name", "") for key in (first, third)] == ["a", "c"]
    assert [type(second), type(stranger)] == [RevokedKeyError, InvalidKeyError]


@pytest.mark.parametrize(
    ("entry", "outcome"),
    [
        ("ID -1000", ExpiredKeyError),
        ("ID soon", ExpiredKeyError),
        ("ID -", ExpiredKeyError),
        ("", InvalidKeyError),
        (" ", InvalidKeyError),
    ],
)
def test_a_foreign_entry_does_not_fail_the_lookup_of_other_keys(
    redis: Redis, redis_url: str, entry: str, outcome: type[Exception]
) -> None:
    good, bad = (create_key(redis, NewKey(name=name)) for name in ("good", "bad"))
    key_id = one_key(redis, "bad")[0].key_id
    redis.hset(keyspace.SECRETS, digest(bad), entry.replace("ID", key_id))

    async def use(lookup: KeyLookup) -> list[ApiKey | BaseException]:
        asked = (lookup.find(digest(secret)) for secret in [good, bad])
        return await asyncio.gather(*asked, return_exceptions=True)

    key, refusal = with_lookup(redis_url, use)
    assert getattr(key, "name", "") == "good"
    assert type(refusal) is outcome


def test_a_key_whose_end_is_no_moment_is_over(redis: Redis, redis_url: str) -> None:
    secret = create_key(redis, LAPTOP)
    redis.hset(keyspace.API_KEY + one_key(redis, "laptop")[0].key_id, "expires_at", "soon")
    with pytest.raises(ExpiredKeyError):
        find(redis_url, secret)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b",
        "a\nb",
        "a\n",
        "x" * 65,
        "\x1b[2J",
        "<b>",
        " ",
        " a",
        "-x",
        "_",
        "a\u200db",
        "\u3164",
        "a\ufe0f",
        "\u0301a",
    ],
)
def test_a_name_that_could_upset_a_table_is_refused(name: str) -> None:
    with pytest.raises(KeyFormError, match="1 to 64 letters"):
        NewKey.of(name=name)


@pytest.mark.parametrize(
    "name", ["a", "7", "Zoë", "Zoe\u0308", "李 @home", "अनु", "a_b.c-d", "x" * 64]
)
def test_names_are_of_any_language(name: str) -> None:
    assert NewKey.of(name=name).name == name


def test_a_name_that_could_be_an_id_is_refused(redis: Redis) -> None:
    create_key(redis, LAPTOP)
    key_id = one_key(redis, "laptop")[0].key_id
    with pytest.raises(KeyFormError, match=r"name: .* taken for an id"):
        NewKey.of(name=key_id)


def test_without_a_broker_a_lookup_raises(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailableError):
        find(f"unix://{tmp_path}/none.sock", "mochi_guess")


def test_a_scope_that_is_missing_is_named() -> None:
    key = ApiKey(key_id="1", name="laptop", scopes=frozenset({"read"}))
    key.require(Scope.READ)
    with pytest.raises(ForbiddenError, match="lacks the scope `generate`"):
        key.require(Scope.GENERATE)
    with pytest.raises(ForbiddenError, match=r"`admin`\. .* keys create \w+ --scope admin"):
        key.require(Scope.ADMIN)


def test_a_model_that_is_not_allowed_is_named_with_those_that_are() -> None:
    key = ApiKey(key_id="1", name="laptop", scopes=frozenset(), models=frozenset({"b", "a"}))
    key.require_model("a")
    with pytest.raises(ForbiddenError, match="not use the model `c`; it may use `a`, `b`"):
        key.require_model("c")
    ApiKey(key_id="1", name="laptop", scopes=frozenset()).require_model("c")


def test_the_first_key_is_made_once_and_for_its_owner_only(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    assert not any_key(redis)
    path = first_key_file(redis, tmp_path)
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o600
    first = find(redis_url, path.read_text().strip())
    assert first.scopes == set(Scope)
    assert first.balance is None
    assert first_key_file(redis, tmp_path) == path
    assert first_key_file(redis, tmp_path / "elsewhere") is None


def test_a_first_key_that_could_not_be_let_in_is_made_again(redis: Redis, tmp_path: Path) -> None:
    lost = first_key_file(redis, tmp_path)
    assert lost is not None
    secret = lost.read_text()
    redis.flushall()  # as if the process had died before it came so far
    again = first_key_file(redis, tmp_path)
    assert again == lost
    assert lost.read_text() != secret
    assert any_key(redis)


def test_of_two_that_make_the_first_key_in_one_folder_both_have_it(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    def be_faster() -> None:
        assert first_key_file(redis, tmp_path)

    with LossyProxy(redis_url) as proxy, connect_briefly(proxy.url) as slower:
        proxy.before("EVALSHA", be_faster)  # the other has written its file by then
        path = first_key_file(slower, tmp_path)
    assert path == tmp_path / "key" == first_key_file(redis, tmp_path)
    assert find(redis_url, path.read_text().strip()).name == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_first_key_whose_maker_died_before_its_file_had_its_name_is_found(
    redis: Redis, tmp_path: Path
) -> None:
    path = first_key_file(redis, tmp_path)
    assert path is not None
    path.rename(tmp_path / f"{DRAFT}x")
    (tmp_path / f"{DRAFT}y").write_text("mochi_of_one_that_died_earlier\n")
    assert first_key_file(redis, tmp_path) == path
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_first_key_is_made_again_when_all_are_revoked(redis: Redis, tmp_path: Path) -> None:
    lost = first_key_file(redis, tmp_path)
    assert lost is not None
    secret = lost.read_text()
    revoke_key(redis, "first")
    assert first_key_file(redis, tmp_path) == lost
    assert lost.read_text() != secret


def test_a_first_key_is_made_beside_others_unless_a_file_declares_them_or_it_was_revoked(
    redis: Redis, tmp_path: Path
) -> None:
    create_key(redis, NewKey(name="laptop"))
    path = first_key_file(redis, tmp_path)
    assert path == tmp_path / "key"
    revoke_key(redis, "first")
    assert first_key_file(redis, tmp_path) is None
    redis.flushall()
    keys_file = tmp_path / "keys.toml"
    keys_file.write_text(f'[keys.laptop]\nsecret_sha256 = "{"0" * 64}"\n')
    apply_key_file(redis, keys_file)
    assert first_key_file(redis, tmp_path) is None
