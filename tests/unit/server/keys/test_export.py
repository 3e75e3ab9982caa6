"""Keys as a copy of them, and on another broker."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from redis import Redis

from server.keys.audit import entries
from server.keys.export import ImportRefusedError, export_keys, import_keys
from server.keys.lookup import digest
from server.keys.record import KeyFormError, NewKey
from server.keys.store import (
    all_keys,
    change_key,
    create_key,
    is_registered,
    one_key,
    revoke_key,
    rotate_key,
)
from worker.billing import MILLION
from worker.store import keyspace

FULL = NewKey(
    name="ann", scopes=("read",), models=("mochi-1",), priority=3, requests_per_minute=60,
    jobs_at_once=2, credits=Decimal("10.5"),
)  # fmt: skip


def everything(redis: Redis) -> dict[str, object]:
    """All that the broker holds but the log."""
    hashes = [name for name in redis.scan_iter("mochi:*") if name != keyspace.AUDIT]
    return {name: redis.hgetall(name) for name in hashes}


def bring(redis: Redis, document: str, *, replace: bool = False) -> list[str]:
    """Names of the keys that were revoked for those of the document."""
    imported = import_keys(redis, document, place="keys.json", replace=replace)
    return [key.name for key in imported.ousted]


def altered(document: str, **fields: Any) -> str:
    """With the first key other than it was."""
    parsed = json.loads(document)
    parsed["keys"][0] |= fields
    return json.dumps(parsed)


def test_keys_are_the_same_on_another_broker(redis: Redis) -> None:
    create_key(redis, FULL)
    rotate_key(redis, "ann", grace=timedelta(hours=1))
    create_key(redis, NewKey(name="gone"))
    revoke_key(redis, "gone")
    before, document = everything(redis), export_keys(redis)
    redis.flushall()
    bring(redis, document)
    assert everything(redis) == before
    assert [entry.act for entry in entries(redis, 9)] == ["import", "import"]


def test_no_secret_is_in_an_export(redis: Redis) -> None:
    secret = create_key(redis, FULL)
    document = export_keys(redis)
    assert secret not in document
    assert digest(secret) in document


def test_what_was_reserved_may_be_spent_again(redis: Redis) -> None:
    create_key(redis, FULL)
    name = keyspace.api_key(one_key(redis, "ann")[0].key_id)
    for field, amount in {"balance": -6, "reserved": 3, "charged": 3}.items():
        redis.hincrby(name, field, amount * MILLION)
    document = export_keys(redis)
    redis.flushall()
    bring(redis, document)
    key, _ = one_key(redis, "ann")
    assert [key.balance, key.reserved, key.charged] == [Decimal("7.5"), 0, 3]
    redis.hincrby(name, "balance", -MILLION)
    redis.hincrby(name, "reserved", MILLION)  # a request of this broker
    bring(redis, document, replace=True)
    key, _ = one_key(redis, "ann")
    assert [key.balance, key.reserved, key.charged] == [Decimal("6.5"), 1, 3]


def test_what_is_here_already_is_not_overwritten_unless_asked_to(redis: Redis) -> None:
    secret = create_key(redis, FULL)
    document = export_keys(redis)
    change_key(redis, "ann", lambda old: old.replace(priority=9))
    rotated = rotate_key(redis, "ann")
    before = everything(redis)
    with pytest.raises(ImportRefusedError, match=r"`ann` \(.*Nothing was|Nothing was .*`ann` \("):
        bring(redis, document)
    assert everything(redis) == before
    assert bring(redis, document, replace=True) == []
    assert one_key(redis, "ann")[0].priority == 3
    assert is_registered(redis, secret)
    assert not is_registered(redis, rotated)


def test_a_name_that_another_key_has_here_is_taken_from_it_only_when_asked_to(redis: Redis) -> None:
    create_key(redis, FULL)
    document = export_keys(redis)
    redis.flushall()
    create_key(redis, NewKey(name="ann"))
    other = one_key(redis, "ann")[0]
    with pytest.raises(ImportRefusedError, match=other.key_id):
        bring(redis, document)
    assert bring(redis, document, replace=True) == ["ann"]
    assert one_key(redis, other.key_id)[0].revoked_at
    assert one_key(redis, "ann")[0].priority == 3


def test_names_may_be_swapped(redis: Redis) -> None:
    for name in ("ann", "bob"):
        create_key(redis, NewKey(name=name))
    document = export_keys(redis)
    ids = {key.name: key.key_id for key, _ in all_keys(redis)}
    for old, new in (("ann", "x"), ("bob", "ann"), ("x", "bob")):
        change_key(redis, old, lambda key: key.replace(name=new))  # noqa: B023
    assert bring(redis, document, replace=True) == []
    assert {key.name: key.key_id for key, _ in all_keys(redis)} == ids
    assert redis.hgetall(keyspace.KEY_NAMES) == ids


def test_a_revoked_key_leaves_its_name_to_who_has_it_now(redis: Redis) -> None:
    create_key(redis, FULL)
    revoke_key(redis, "ann")
    document = export_keys(redis)
    create_key(redis, NewKey(name="ann"))
    present, _ = one_key(redis, "ann")
    document = altered(document, priority=5)
    assert bring(redis, document, replace=True) == []
    assert one_key(redis, "ann")[0] == present


def test_a_key_that_was_revoked_since_the_export_does_not_come_back(redis: Redis) -> None:
    secret = create_key(redis, FULL)
    document = export_keys(redis)
    gone = revoke_key(redis, "ann")
    create_key(redis, NewKey(name="ann"))
    present, _ = one_key(redis, "ann")
    imported = import_keys(redis, document, place="keys.json", replace=True)
    assert imported.still_revoked == imported.keys == [gone]
    assert imported.ousted == []
    assert not is_registered(redis, secret)
    assert one_key(redis, "ann")[0] == present


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"priority": 0}, r"keys.json: keys.0.priority: got 0"),
        ({"colour": "red"}, r"keys.0.colour: got 'red'"),
        ({"\x1b]0;x\x07": "red"}, r"keys.0.\\x1b\]0;x\\x07: got 'red'"),
        ({"key_id": "../x"}, r"keys.0.key_id: got '../x'. An id has 32 hex digits"),
        ({"secrets": [{"sha256": "x"}]}, r"keys.0.secrets.0.sha256: .*64 hex digits"),
        ({"balance": "11"}, r"keys.0: `balance`, `reserved` and `charged` make 11, not `granted`"),
        ({"granted": None}, r"keys.0: a key has both"),
        ({"expires_at": "9999-12-31T23:59:59-10:00"}, r"keys.0.expires_at: .*from 1970 to 8999"),
        ({"created_at": "0001-01-01T00:00:00+10:00"}, r"keys.0.created_at: .*from 1970 to 8999"),
        ({"created_at": "yesterday"}, r"keys.0.created_at: got 'yesterday'"),
        ({"name": "bob"}, r"keys.json: two keys have the name 'bob'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_and_nothing_is_imported(
    redis: Redis, fields: dict[str, Any], named: str
) -> None:
    create_key(redis, FULL)
    create_key(redis, NewKey(name="bob"))
    document = altered(export_keys(redis), **fields)
    redis.flushall()
    with pytest.raises(KeyFormError, match=named):
        bring(redis, document)
    assert everything(redis) == {}


@pytest.mark.parametrize("document", ["", "{", "[]", '{"version": 2, "keys": []}', '{"keys": 1}'])
def test_what_is_no_export_is_refused(redis: Redis, document: str) -> None:
    with pytest.raises(KeyFormError, match=r"keys\.json: "):
        bring(redis, document)


def test_the_same_secret_twice_is_refused(redis: Redis) -> None:
    create_key(redis, FULL)
    create_key(redis, NewKey(name="bob"))
    document = json.loads(export_keys(redis))
    document["keys"][0]["secrets"] = document["keys"][1]["secrets"]
    redis.flushall()
    with pytest.raises(KeyFormError, match="two keys have the secret's hash"):
        bring(redis, json.dumps(document))
