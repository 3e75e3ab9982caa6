"""Restores a backup, line by line, each in one step.

The broker counts the lines, so a restore that was killed goes on where it was when the same file is
restored again. What belongs to a key comes before the key: on an empty broker no client can
add to it meanwhile.

A key that the broker has is left alone, or replaced: terms, account and webhooks become those of
the file; usage and history get what they lack. Its secrets and a revocation stay as they are, as
they may be newer answers to a leak.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis import Redis

from server.errors import CommandError, visible
from server.keys.audit import Entry, Transaction, transaction
from server.keys.backup import (
    BackupFileError,
    End,
    Header,
    HistoryLine,
    KeyLine,
    Line,
    UsageLine,
    read_backup,
)
from server.keys.record import Key
from server.keys.store import KeyStore, Secret
from server.keys.times import written
from worker.broker.connection import broker_errors
from worker.broker.schema import SCHEMA, SCHEMA_KEY
from worker.store import keyspace, scripts

MOST_NAMED = 5
"""Conflicts that a message names."""
MARK_SECONDS = 24 * 60 * 60
"""How long an interrupted restore can go on where it was."""


class RestoreConflictError(CommandError):
    """The broker has something that the restore would overwrite; the text says what was written."""


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
            another key has the name or the secret of one, or another restore began meanwhile.
        BrokerUnavailableError: a part may be restored; restore the same file again.
    """
    lines = enumerate(read_backup(path))
    _, header = next(lines)
    assert isinstance(header, Header)  # noqa: S101 (`read_backup` has checked it)
    _check_schema(redis, path, header)
    run = _Run(redis, header, replace=replace, by=by)
    run.look_through(line for number, line in lines if number > run.done)
    for number, line in enumerate(read_backup(path)):
        if number > run.done:
            run.restore(number, line)
    return run.restored


def _check_schema(redis: Redis, path: Path, header: Header) -> None:
    """Data of a newer schema would be misread by processes that the broker's still lets in."""
    with broker_errors():
        mark: Any = redis.get(SCHEMA_KEY)
    known = max(int(mark or 0), SCHEMA)  # the first write raises an older mark
    if header.schema_number > known:
        raise BackupFileError(
            f"The data in {path} have schema {header.schema_number}, which is newer than the "
            f"broker's schema {known}. First start the release that wrote the backup, mochi-server "
            f"{visible(header.release)}, on this broker."
        )


class _Run:
    """One restore.

    The broker's mark names the backup, its last line that is restored, and the run. A line is
    written only while the mark is as this run left it: of two restores at once, one stops. A mark
    that is left behind expires, and a run that replaces does not go on there, as keys may have
    changed since.

    Attributes:
        done: lines that an earlier, interrupted run has written; line 0 is the header.
        restored: what this run has done until now.
    """

    def __init__(self, redis: Redis, header: Header, *, replace: bool, by: str) -> None:
        self._redis, self._replace, self._by = redis, replace, by
        self._backup_id, self._run_id = header.backup_id, uuid4().hex
        with broker_errors():
            mark: Any = redis.hgetall(keyspace.RESTORE)
        self._mark: dict[str, str] = mark
        is_gone_on = not replace and mark.get("backup_id") == header.backup_id
        self.done = int(mark["line"]) if is_gone_on else 0
        self.restored = Restored(header.made_at, skipped=self.done)

    def look_through(self, lines: Iterable[Line]) -> None:
        """Raise what forbids the restore before anything is written."""
        rest = [line for line in lines if isinstance(line, KeyLine)]

        def decide(step: Transaction) -> list[str]:
            keys, replace = KeyStore(step), self._replace
            return [text for line in rest if (text := _conflict(keys, line, replace=replace))]

        conflicts = transaction(self._redis, decide)
        if conflicts:
            more = len(conflicts) - MOST_NAMED
            named = "\n".join(conflicts[:MOST_NAMED] + ([f"And {more} more."] if more > 0 else []))
            raise RestoreConflictError(f"{self._so_far(1)}\n{named}")

    def restore(self, number: int, line: Line) -> None:
        if isinstance(line, HistoryLine):
            _restore_history(self._redis, line)
            self.restored.ended += len(line.ended)
        mark = {"backup_id": self._backup_id, "line": str(number), "run": self._run_id}

        def decide(step: Transaction) -> bool:
            """Whether a key stays revoked, as a revocation is permanent."""
            keys, known = KeyStore(step), self._read_mark(step)
            stays_revoked = isinstance(line, KeyLine) and _is_revoked_since(keys, line)
            if known == mark:  # written, and only the reply was lost
                return stays_revoked
            if known != self._mark:
                raise RestoreConflictError(
                    f"{self._so_far(number)}\nAnother restore began meanwhile. When it has ended, "
                    "restore again what it has not."
                )
            step.write("HSET", keyspace.RESTORE, *chain.from_iterable(mark.items()))
            step.write("EXPIRE", keyspace.RESTORE, str(MARK_SECONDS))
            match line:
                case UsageLine():
                    _restore_usage(step, line)
                case KeyLine() if not stays_revoked:
                    self._restore_key(keys, number, line)
                case End():
                    step.write("DEL", keyspace.RESTORE)
                    step.note(Entry("restore", f"backup of {written(self.restored.made_at)}"))
            return stays_revoked

        stays_revoked = transaction(self._redis, decide, by=self._by)
        self._mark = mark
        if isinstance(line, KeyLine):
            self.restored.keys += not stays_revoked
            self.restored.revoked += [line.record["name"]] * stays_revoked

    def _read_mark(self, step: Transaction) -> dict[str, str]:
        mark: Any = step.read.hgetall(keyspace.RESTORE)
        step.hold(keyspace.RESTORE, mark)
        return dict(mark)

    def _restore_key(self, keys: KeyStore, number: int, line: KeyLine) -> None:
        # The broker may have changed since the look through the file.
        if problem := _conflict(keys, line, replace=self._replace):
            raise RestoreConflictError(
                f"{self._so_far(number)} Restore the same file again when this is resolved:\n"
                f"{problem}"
            )
        _restore_key(keys, line)

    def _so_far(self, number: int) -> str:
        """How much is restored before the line `number`."""
        lines = max(self.done, number - 1)
        return f"A part is restored, {lines:,} lines." if lines else "Nothing was restored."


def _conflict(keys: KeyStore, line: KeyLine, *, replace: bool) -> str:
    """Why the key cannot be restored; empty if it can."""
    name, known = line.record["name"], keys.key(line.key_id)
    is_live = "revoked_at" not in line.record
    holder = keys.holder(name) if is_live else None
    if holder is not None and holder.key_id != line.key_id:
        if holder.source == "file":
            return (
                f"Another key has the name `{visible(name)}`, declared in a file of keys: restore "
                "on an empty broker, before the first gateway applies MOCHI_KEYS_FILE."
            )
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
            "account and webhooks become those of the backup."
        )
    return ""


def _is_revoked_since(keys: KeyStore, line: KeyLine) -> bool:
    """Whether the key was revoked after the backup."""
    known = keys.key(line.key_id)
    return known is not None and known.revoked_at is not None and "revoked_at" not in line.record


def _restore_usage(step: Transaction, line: UsageLine) -> None:
    """Usage is never lowered: what the broker has beyond the file was used after the backup."""
    name = f"{keyspace.USAGE}{line.day}"
    known: Any = step.read.hmget(name, [*line.sums])
    for (metric, amount), now in zip(line.sums.items(), known, strict=True):
        if now is None or amount > int(now):
            step.write("HINCRBY", name, metric, str(amount - int(now or 0)))
    step.write("PEXPIREAT", name, str(line.expires_at))


def _restore_history(redis: Redis, line: HistoryLine) -> None:
    ended = [(row, [*chain.from_iterable(fields.items())]) for row, fields in line.ended]
    script = redis.register_script(scripts.source("put_past"))
    arguments: list[str | int] = ["", line.owner, line.expires_at, json.dumps(ended)]
    with broker_errors():
        script(keyspace.for_scripts(), arguments)


def _restore_key(keys: KeyStore, line: KeyLine) -> None:
    old, key = keys.key(line.key_id), Key.read(line.key_id, line.record)
    if old is not None:
        # Requests that wait or run hold their reservation, and release it at their end.
        key = key.model_copy(update={"reserved": old.reserved}).granted_in_all(key.granted)
    keys.put(key, old, "restore")
    if old is None:
        for sha256, text in line.secrets.items():
            keys.put_secret(Secret.read(sha256, text))
    if key.revoked_at is None:
        for command in _webhook_commands(line):
            keys.step.write(*command)


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
