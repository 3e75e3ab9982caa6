"""Keys as the broker holds them: their accounts and the audit log."""

from __future__ import annotations

from decimal import Decimal

from redis import Redis

from server.keys.audit import MOST_ENTRIES, entries
from server.keys.record import Key, NewKey
from server.keys.store import one_key
from worker.store import keyspace

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
