"""Restores beside other changes: what they overwrite, and what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.keys import backup as backups
from server.keys.backup import BackupFileError
from server.keys.file import apply_key_file
from server.keys.lookup import digest
from server.keys.record import NewKey
from server.keys.restore import RestoreConflictError, restore
from server.keys.store import change_key, create_key, revoke_key
from tests.support.keys import amounts, key, move
from tests.unit.server.keys.backups import DAY, Broker, credits_of, during, stop, write
from worker.store import keyspace

LAST = 7
"""The last line of the fixture's backup."""


def usage(broker: Broker) -> list[Any]:
    return [broker.redis.hgetall(name) for name in sorted(broker.redis.keys(keyspace.USAGE + "*"))]


def test_of_two_restores_of_a_file_one_stops(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(broker.redis, tmp_path / "backup")
    broker.redis.flushall()

    def restore_and_spend() -> None:
        restore(broker.redis, file)
        move(broker.redis, "ann", balance=-1_000_000, charged=1_000_000)

    during(monkeypatch, 4, restore_and_spend)
    with pytest.raises(RestoreConflictError, match="Another restore"):
        restore(broker.redis, file)
    assert amounts(broker.redis, "ann") == credits_of(90, 0, 10, 100)


def test_a_key_that_comes_during_a_restore_is_not_overwritten(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(broker.redis, tmp_path / "backup")
    change_key(broker.redis, "bob", lambda old: old.replace(priority=7))
    other = write(broker.redis, tmp_path / "other")
    broker.redis.flushall()
    during(monkeypatch, 1, lambda: restore(broker.redis, other))
    with pytest.raises(
        RestoreConflictError, match=r"(?s)A part is restored, 3 lines.*The broker has the key"
    ):
        restore(broker.redis, file)
    assert key(broker.redis, "bob").priority == 7


def test_replace_leaves_no_key_out_after_a_restore_that_was_interrupted(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(broker.redis, tmp_path / "backup")
    broker.redis.flushall()
    during(monkeypatch, LAST, stop)
    with pytest.raises(KeyboardInterrupt):
        restore(broker.redis, file)
    assert 0 < broker.redis.pttl(keyspace.RESTORE) <= DAY.total_seconds() * 1000
    change_key(broker.redis, "bob", lambda old: old.replace(priority=7))
    done = restore(broker.redis, file, replace=True)
    assert (done.skipped, done.keys) == (0, 3)
    assert key(broker.redis, "bob").priority == 1


def test_usage_is_never_lowered(broker: Broker, tmp_path: Path) -> None:
    file = write(broker.redis, tmp_path / "backup")
    broker.make("ann", 3)
    before = usage(broker)
    restore(broker.redis, file, replace=True)
    assert usage(broker) == before


def test_a_sum_of_nothing_comes_back(broker: Broker, tmp_path: Path) -> None:
    [day] = broker.redis.keys(keyspace.USAGE + "*")
    broker.redis.hset(day, f"{broker.owner('ann')} gpu_ms", 0)  # runs of less than a millisecond
    file, before = write(broker.redis, tmp_path / "backup"), usage(broker)
    broker.redis.flushall()
    restore(broker.redis, file)
    assert usage(broker) == before


def test_a_key_that_the_backup_has_as_revoked_loses_what_only_it_could_use(
    broker: Broker, tmp_path: Path
) -> None:
    live, owner = write(broker.redis, tmp_path / "live"), broker.owner("ann")
    revoke_key(broker.redis, "ann")
    revoked = write(broker.redis, tmp_path / "revoked")
    broker.redis.flushall()
    restore(broker.redis, live)
    assert broker.redis.exists(*keyspace.gone_with_key(owner)) == 5
    restore(broker.redis, revoked, replace=True)
    assert broker.redis.exists(*keyspace.gone_with_key(owner)) == 0


def test_a_conflict_with_a_key_of_a_file_says_when_to_restore(
    broker: Broker, tmp_path: Path
) -> None:
    file, keys = write(broker.redis, tmp_path / "backup"), tmp_path / "keys.toml"
    keys.write_text(f'[keys.ann]\nsecret_sha256 = "{digest("of-ann")}"\n')
    broker.redis.flushall()
    apply_key_file(broker.redis, keys)
    create_key(broker.redis, NewKey(name="bob"))
    with pytest.raises(RestoreConflictError) as refused:
        restore(broker.redis, file)
    of_file, of_operator = sorted(str(refused.value).splitlines()[1:])  # ann, bob
    assert "restore on an empty broker, before the first gateway applies MOCHI_KEYS" in of_file
    assert "Rename it" in of_operator


def test_data_of_a_newer_schema_than_that_of_the_broker_are_refused(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(broker.redis, tmp_path / "backup")
    file.write_text(file.read_text().replace('"schema_number":1', '"schema_number":2', 1))
    monkeypatch.setattr(backups, "READS", frozenset({1, 2}))  # as a release between the two has it
    with pytest.raises(BackupFileError, match=r"have schema 2.* the broker's schema 1"):
        restore(broker.redis, file, replace=True)
