"""Restores a backup, line by line, each in one step.

The broker counts the lines, so a restore that was killed goes on where it was when the same file is
restored again. What belongs to a key comes before the key: on an empty broker nobody can add to it
meanwhile.

A key that the broker has is left alone, or replaced: terms, account, usage and webhooks become
those of the file. Its secrets and a revocation stay as they are, as they may be newer answers to a
leak.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from redis import Redis

from server.errors import CommandError, visible
from server.keys.audit import Entry, Transaction, transaction
from server.keys.backup import End, Header, HistoryLine, KeyLine, Line, UsageLine, read_backup
from server.keys.record import Key
from server.keys.store import KeyStore, Secret
from server.keys.times import written
from worker.broker.connection import broker_errors
from worker.store import keyspace, scripts

MOST_NAMED = 5
"""Conflicts that a message names."""


class RestoreConflictError(CommandError):
    """The broker has something that the restore would overwrite. Nothing was written."""


@dataclass
class Restored:
    """What a restore has done.

    Attributes:
        made_at: time of the backup.
        keys: written.
        ended: requests of the history in the lines that were restored now.
        revoked: names of keys that were revoked after the backup, and stay so.
        skipped: lines that an earlier, interrupted restore of the same file had done.
    """

    made_at: datetime
    keys: int = 0
    ended: int = 0
    revoked: list[str] = field(default_factory=list)
    skipped: int = 0


def restore(redis: Redis, path: Path, *, replace: bool = False, by: str = "") -> Restored:
    """Restore a backup; `replace` the keys of the file that the broker has.

    `by` is the actor in the audit log. The server may run.

    Raises:
        BackupFileError: the file cannot be used; nothing was written.
        RestoreConflictError: without `replace`, the broker has a key of the file; or, in any case,
            another key has the name or the secret of one. Nothing was written.
        BrokerUnavailableError: a part may be restored; restore the same file again.
    """
    header, done = _look_through(redis, path, replace=replace)
    restored = Restored(header.made_at, skipped=done)
    for number, line in enumerate(read_backup(path)):
        if number > done:
            _restore_line(redis, line, f"{header.backup_id} {number}", restored, by)
    return restored


def _look_through(redis: Redis, path: Path, *, replace: bool) -> tuple[Header, int]:
    """The header, and the number of the last line that is restored; raises what forbids the rest.

    The header is line 0, and has nothing to restore.
    """
    lines = enumerate(read_backup(path))
    _, header = next(lines)
    assert isinstance(header, Header)  # noqa: S101 (`read_backup` has checked it)
    done = _done(redis, header.backup_id)
    rest = [line for number, line in lines if number > done and isinstance(line, KeyLine)]

    def decide(step: Transaction) -> list[str]:
        keys = KeyStore(step)
        return [text for line in rest if (text := _conflict(keys, line, replace=replace))]

    conflicts = transaction(redis, decide)
    if conflicts:
        more = len(conflicts) - MOST_NAMED
        named = "\n".join(conflicts[:MOST_NAMED] + ([f"And {more} more."] if more > 0 else []))
        raise RestoreConflictError(f"Nothing was restored.\n{named}")
    return header, done


def _done(redis: Redis, backup_id: str) -> int:
    with broker_errors():
        mark: Any = redis.get(keyspace.RESTORE)
    its_id, _, number = (mark or "").partition(" ")
    return int(number) if its_id == backup_id else 0


def _conflict(keys: KeyStore, line: KeyLine, *, replace: bool) -> str:
    """Why the key cannot be restored; empty if it can."""
    name, known = line.record["name"], keys.key(line.key_id)
    is_live = "revoked_at" not in line.record
    holder = keys.holder(name) if is_live else None
    if holder is not None and holder.key_id != line.key_id:
        return (
            f"Another key has the name `{visible(name)}`. Rename it with `mochi-server keys set "
            f"{visible(name)} --name OTHER`, or revoke it."
        )
    for sha256 in line.secrets:
        secret = keys.secret(sha256)
        if secret is not None and secret.key_id != line.key_id:
            return f"The secret of the key `{visible(name)}` is that of the key {secret.key_id}."
    if known is not None and not replace:
        return (
            f"The broker has the key `{visible(known.name)}` already. With --replace its terms, "
            "account, usage and webhooks become those of the backup."
        )
    return ""


def _restore_line(redis: Redis, line: Line, mark: str, restored: Restored, by: str) -> None:
    if isinstance(line, HistoryLine):
        _restore_history(redis, line)
        restored.ended += len(line.ended)

    def decide(step: Transaction) -> bool:
        """Whether a key was left revoked."""
        step.write("SET", keyspace.RESTORE, mark)
        match line:
            case UsageLine():
                _restore_usage(step, line)
            case KeyLine():
                return not _restore_key(KeyStore(step), line)
            case End():
                step.write("DEL", keyspace.RESTORE)
                step.note(Entry("restore", f"backup of {written(restored.made_at)}"))
        return False

    is_left_revoked = transaction(redis, decide, by=by)
    if isinstance(line, KeyLine):
        restored.keys += not is_left_revoked
        restored.revoked += [line.record["name"]] * is_left_revoked


def _restore_usage(step: Transaction, line: UsageLine) -> None:
    name = f"{keyspace.USAGE}{line.day}"
    for metric, amount in line.sums.items():
        step.write("HSET", name, metric, str(amount))
    step.write("PEXPIREAT", name, str(line.expires_at))


def _restore_history(redis: Redis, line: HistoryLine) -> None:
    ended = [(row, [*chain.from_iterable(fields.items())]) for row, fields in line.ended]
    script = redis.register_script(scripts.source("put_past"))
    arguments: list[str | int] = ["", line.owner, line.expires_at, json.dumps(ended)]
    with broker_errors():
        script(keyspace.for_scripts(), arguments)


def _restore_key(keys: KeyStore, line: KeyLine) -> bool:
    """False for a key that was revoked after the backup: a revocation is permanent."""
    if problem := _conflict(keys, line, replace=True):  # since the look through the file
        raise RestoreConflictError(problem)
    old, key = keys.key(line.key_id), Key.read(line.key_id, line.record)
    if old is not None:
        if old.revoked_at is not None and key.revoked_at is None:
            return False
        # Requests that wait or run hold their reservation, and release it at their end.
        key = key.model_copy(update={"reserved": old.reserved}).granted_in_all(key.granted)
    keys.put(key, old, "restore")
    if old is None:
        for sha256, text in line.secrets.items():
            keys.put_secret(Secret.read(sha256, text))
    if key.revoked_at is None:
        for command in _webhook_commands(line):
            keys.step.write(*command)
    return True


def _webhook_commands(line: KeyLine) -> Iterator[tuple[str, ...]]:
    current, old = (*line.signing_secrets, "", "")[:2]
    if current:
        yield "SET", keyspace.webhook_secret(line.key_id), current, "NX"
    if old:
        name, ends_at = keyspace.old_webhook_secret(line.key_id), line.old_signing_secret_ends_at
        yield "SET", name, old, "NX", "PXAT", str(ends_at)
    standing = keyspace.STANDING + line.key_id
    yield "DEL", standing
    for webhook_id, webhook in line.webhooks.items():
        yield "HSET", standing, webhook_id, webhook
