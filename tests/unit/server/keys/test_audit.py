"""The audit log: each change once, with its author and without a secret."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable
from decimal import Decimal
from functools import partial

import pytest
from redis import Redis

from server.keys.audit import MOST_ENTRIES, Entry, Transaction, entries, transaction
from server.keys.lookup import digest
from server.keys.record import NewKey
from server.keys.store import KeyStore, change_key, create_key, one_key, revoke_key, rotate_key
from tests.faults.support.proxy import LossyProxy
from tests.support.keys import ANN, acts, amounts
from worker.broker.connection import connect_briefly
from worker.store import keyspace


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
