"""A broker with all that a backup holds, and a restore that is interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from server.keys import restore as restoring
from server.keys.backup import Line, lines_of_backup, read_backup
from server.keys.record import NewKey
from server.keys.signing import rotate_signing_secret, signing_secret
from server.keys.store import create_key, one_key, revoke_key, rotate_key
from tests.support.jobs import ask_gateway, params, pop
from worker.billing import MILLION, Price
from worker.store import keyspace
from worker.store.worker_side import Lease, Result, WorkerStore

DAY = timedelta(days=1)
KEPT = (
    *(keyspace.API_KEY, keyspace.SECRETS, keyspace.KEY_NAMES, keyspace.USAGE, keyspace.PAST),
    *("mochi:webhook-secret:", keyspace.STANDING),
)
"""Prefixes of what a backup holds."""
WEBHOOK = json.dumps({"url": "https://example.com/hook", "base": "", "types": [], "is_heard": True})


class Broker:
    """A broker with keys and requests of theirs."""

    def __init__(self, redis: Redis, url: str) -> None:
        self.redis = redis
        self._url = url
        self.store = WorkerStore(redis, lease_seconds=10, retention_seconds=60)

    def owner(self, name: str) -> str:
        return one_key(self.redis, name)[0].key_id

    def start(self, name: str, credits_: int) -> Lease:
        """A request that runs, with a price."""
        kept = {"history_days": "90", "history_params": '{"steps": 10}'}
        accepted = ask_gateway(
            self._url,
            lambda it: it.submit(
                params(), self.owner(name), price=Price(credits_ * MILLION), further=kept
            ),
        )
        assert pop(self.redis) == accepted.request_id
        lease = Lease(accepted.request_id, "run")
        assert self.store.start(lease, "ann") is not None
        return lease

    def end(self, lease: Lease) -> None:
        assert self.store.complete(lease, Result("a.mp4", 17))

    def make(self, name: str, credits_: int, *, count: int = 1) -> None:
        for _ in range(count):
            self.end(self.start(name, credits_))

    def kept(self) -> dict[str, object]:
        """All that a backup holds, with what has an expiry."""
        return {
            name: (self._value(name), self.redis.pexpiretime(name))
            for name in map(str, self.redis.scan_iter("mochi:*"))
            if name.startswith(KEPT) and not name.startswith(keyspace.STANDING_LOG)
        }

    def _value(self, name: str) -> Any:
        match self.redis.type(name):
            case "hash":
                return self.redis.hgetall(name)
            case "stream":
                return self.redis.xrange(name)
            case "zset":
                return self.redis.zrange(name, 0, -1, withscores=True)
        return self.redis.get(name)

    def history(self, name: str) -> list[str]:
        rows: Any = self.redis.xrange(keyspace.PAST + self.owner(name))
        return [fields["id"] for _, fields in rows]


def filled(redis: Redis, url: str) -> Broker:
    """With the metered key ann, which has webhooks and a rotated secret, bob, and a revoked key."""
    for name, credits_ in (("ann", Decimal(100)), ("bob", None), ("cid", Decimal(5))):
        create_key(redis, NewKey(name=name, credits=credits_))
    rotate_key(redis, "ann")
    signing_secret(redis, "ann")
    rotate_signing_secret(redis, "ann", DAY)
    broker = Broker(redis, url)
    redis.hset(keyspace.STANDING + broker.owner("ann"), "a-webhook", WEBHOOK)
    broker.make("ann", 3, count=3)
    broker.make("bob", 1)
    broker.make("cid", 2)
    revoke_key(redis, "cid")
    return broker


def credits_of(*amounts_: int) -> tuple[Decimal, ...]:
    return tuple(map(Decimal, amounts_))


def write(redis: Redis, path: Path) -> Path:
    path.write_text("".join(f"{line.model_dump_json()}\n" for line in lines_of_backup(redis)))
    return path


def during(patch: pytest.MonkeyPatch, line: int, act: Callable[[], object]) -> None:
    """`act` happens in the next restore, before this line is written."""
    passes = count()

    def reading(path: Path) -> Iterator[Line]:
        is_written = next(passes) == 1  # after the look through the file
        for number, each in enumerate(read_backup(path)):
            if is_written and number == line:
                act()
            yield each

    patch.setattr(restoring, "read_backup", reading)


def stop() -> None:
    raise KeyboardInterrupt
