"""Backups: what is in them, and that a restore is whole, repeatable and careful."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from server.keys import restore as restoring
from server.keys.audit import entries
from server.keys.backup import (
    BackupFileError,
    Header,
    HistoryLine,
    UsageLine,
    lines_of_backup,
    read_backup,
)
from server.keys.record import NewKey
from server.keys.restore import RestoreConflictError, restore
from server.keys.signing import rotate_signing_secret, signing_secret
from server.keys.store import change_key, create_key, one_key, revoke_key, rotate_key
from tests.support.keys import amounts, key
from tests.unit.server.keys.backups import Broker, credits_of, during, stop, write
from worker.broker.schema import SCHEMA
from worker.errors import MonthlyCapError
from worker.store import keyspace
from worker.store.webhooks.deliveries import all_deliveries


def test_an_empty_broker_gets_all_that_a_backup_holds(broker: Broker, tmp_path: Path) -> None:
    before, file = broker.kept(), write(broker.redis, tmp_path / "backup")
    assert len(before) >= 12  # of every kind
    broker.redis.flushall()
    done = restore(broker.redis, file)
    assert broker.kept() == before
    assert (done.keys, done.ended, done.revoked) == (3, 4, [])
    assert amounts(broker.redis, "ann") == credits_of(91, 0, 9, 100)
    assert [entry.act for entry in entries(broker.redis, 10)] == ["restore"] * 4


def test_credits_of_requests_that_run_are_unspent_in_a_backup(
    broker: Broker, tmp_path: Path
) -> None:
    broker.start("ann", 10)
    broker.start("bob", 10)
    assert amounts(broker.redis, "ann") == credits_of(81, 10, 9, 100)
    file = write(broker.redis, tmp_path / "backup")
    broker.redis.flushall()
    restore(broker.redis, file)
    assert amounts(broker.redis, "ann") == credits_of(91, 0, 9, 100)
    assert key(broker.redis, "bob").reserved == 0


def test_what_begins_during_a_backup_has_its_expiry(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    send: Any = broker.redis.execute_command
    for moment in count():
        broker.redis.delete(*broker.redis.keys(keyspace.PAST + "*"))
        sent = count()

        def execute(*command: Any, moment: int = moment, sent: Any = sent, **options: Any) -> Any:
            if next(sent) == moment:
                broker.make("bob", 1)
            return send(*command, **options)

        with monkeypatch.context() as patch:
            patch.setattr(broker.redis, "execute_command", execute)
            lines = [*lines_of_backup(broker.redis)]
        if next(sent) <= moment:  # every command had its turn
            assert moment > 3
            return
        kept = [line for line in lines if isinstance(line, UsageLine | HistoryLine)]
        assert all(line.expires_at > 0 for line in kept), moment


def test_a_restore_that_ended_after_any_line_goes_on_there(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, file = broker.kept(), write(broker.redis, tmp_path / "backup")
    header, *lines = read_backup(file)
    assert isinstance(header, Header)
    assert len(lines) == 7
    for written in range(len(lines)):
        broker.redis.flushall()
        with monkeypatch.context() as patch:
            during(patch, written + 1, stop)
            with pytest.raises(KeyboardInterrupt):
                restore(broker.redis, file)
        done = restore(broker.redis, file)
        assert done.skipped == written
        assert broker.kept() == before
        assert not broker.redis.exists(keyspace.RESTORE)


def test_a_line_that_was_killed_in_the_middle_is_repeated(broker: Broker, tmp_path: Path) -> None:
    """A history is written before the broker counts its line."""
    before, file = broker.kept(), write(broker.redis, tmp_path / "backup")
    broker.redis.flushall()
    for line in read_backup(file):
        if line.kind == "history":
            restoring._restore_history(broker.redis, line)
    restore(broker.redis, file)
    assert broker.kept() == before


def test_keys_that_the_broker_has_are_left_alone_unless_told(
    broker: Broker, tmp_path: Path
) -> None:
    file = write(broker.redis, tmp_path / "backup")
    before = {name: broker.redis.dump(name) for name in broker.redis.keys("*")}
    with pytest.raises(RestoreConflictError, match=r"has the key `ann` already\. With --replace"):
        restore(broker.redis, file)
    assert {name: broker.redis.dump(name) for name in broker.redis.keys("*")} == before


def test_a_replaced_key_gets_the_account_of_the_file_and_keeps_what_runs(
    broker: Broker, tmp_path: Path
) -> None:
    file = write(broker.redis, tmp_path / "backup")
    ended = broker.history("ann")
    broker.make("ann", 3)
    running = broker.start("ann", 10)
    change_key(broker.redis, "ann", lambda old: old.replace(name="eve", priority=7))
    done = restore(broker.redis, file, replace=True)
    assert done.keys == 3
    assert amounts(broker.redis, "ann") == credits_of(81, 10, 9, 100)
    assert key(broker.redis, "ann").priority == 1
    broker.end(running)
    assert amounts(broker.redis, "ann") == credits_of(81, 0, 19, 100)
    assert broker.history("ann")[: len(ended)] == ended  # none twice, and later ones stay
    assert len(broker.history("ann")) == len(ended) + 2


def test_secrets_and_revocations_are_never_older_after_a_restore(
    broker: Broker, tmp_path: Path
) -> None:
    create_key(broker.redis, NewKey(name="dan"))
    file = write(broker.redis, tmp_path / "backup")
    rotate_key(broker.redis, "dan", grace=timedelta())
    rotate_signing_secret(broker.redis, "dan", timedelta())
    revoke_key(broker.redis, "bob")
    secrets, signing = one_key(broker.redis, "dan")[1], signing_secret(broker.redis, "dan")
    done = restore(broker.redis, file, replace=True)
    assert done.revoked == ["bob"]
    assert one_key(broker.redis, "dan")[1] == secrets
    assert signing_secret(broker.redis, "dan") == signing


def test_a_name_or_a_secret_of_another_key_is_refused(broker: Broker, tmp_path: Path) -> None:
    create_key(broker.redis, NewKey(name="dan"), "of-dan")
    file = write(broker.redis, tmp_path / "backup")
    broker.redis.flushall()
    create_key(broker.redis, NewKey(name="ann"))
    create_key(broker.redis, NewKey(name="eve"), "of-dan")
    with pytest.raises(RestoreConflictError) as refused:
        restore(broker.redis, file, replace=True)
    assert "Another key has the name `ann`. Rename it" in str(refused.value)
    assert "The secret of the key `dan` is that of the key" in str(refused.value)
    assert not broker.redis.keys(keyspace.USAGE + "*")


def test_a_history_gets_back_what_it_lacks_in_its_order(broker: Broker, tmp_path: Path) -> None:
    owner = broker.owner("ann")
    before = broker.kept()
    file = write(broker.redis, tmp_path / "backup")
    rows: Any = broker.redis.xrange(keyspace.PAST + owner)
    broker.redis.xdel(keyspace.PAST + owner, rows[0][0], rows[1][0])
    broker.redis.zrem(keyspace.PAST_TIMES + owner, rows[0][1]["id"])
    restore(broker.redis, file, replace=True)
    assert broker.kept() == before
    broker.make("ann", 1)  # new rows still come last
    later: Any = broker.redis.xrange(keyspace.PAST + owner)
    assert later[:3] == rows


def test_a_file_that_is_no_whole_backup_of_this_release_is_refused(
    broker: Broker, tmp_path: Path
) -> None:
    header, *rest = write(broker.redis, tmp_path / "backup").read_text().splitlines()
    other: dict[str, Any] = json.loads(header)
    whole = [header, *rest]
    cases = {
        "is not a whole backup: its last line is missing": whole[:-1],
        "line 3: Invalid JSON": [*whole[:2], whole[2][:20]],
        "its first line alone must have the kind `backup`": rest,
        "has format 7, and this release reads format 1": [json.dumps(other | {"format": 7}), *rest],
        f"have schema 9, and this release, mochi-server .* reads schema {SCHEMA}": [
            json.dumps(other | {"schema_number": 9}),
            *rest,
        ],
        "line 2: usage.surprise": [header, json.dumps(json.loads(rest[0]) | {"surprise": 1})],
    }
    broker.redis.flushall()
    for message, lines in cases.items():
        (tmp_path / "bad").write_text("\n".join(lines) + "\n")
        with pytest.raises(BackupFileError, match=message):
            restore(broker.redis, tmp_path / "bad")
    with pytest.raises(BackupFileError, match="cannot be read"):
        restore(broker.redis, tmp_path / "none")
    assert not broker.redis.keys("mochi:key*")


def test_a_restored_month_is_as_far_spent_and_told_of_as_before(
    broker: Broker, tmp_path: Path
) -> None:
    redis = broker.redis
    change_key(redis, "ann", lambda old: old.replace(monthly_cap=Decimal(11)))
    hook = {"url": "https://example.com/budget", "base": "", "types": ["BUDGET"], "is_heard": False}
    redis.hset(keyspace.STANDING + broker.owner("ann"), "budget", json.dumps(hook))
    broker.make("ann", 1)  # 9 were charged before
    assert [each.event for each in all_deliveries(redis) if each.event] == ["budget.warning"]
    file = write(redis, tmp_path / "backup")
    redis.flushall()
    restore(redis, file)
    assert key(redis, "ann").monthly_cap == 11
    with pytest.raises(MonthlyCapError, match="of which 10 are spent"):
        broker.start("ann", 2)
    broker.make("ann", 1)
    assert [each.event for each in all_deliveries(redis) if each.event] == ["budget.reached"]
