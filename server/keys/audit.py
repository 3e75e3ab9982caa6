"""Transactions of administrators, each with an entry in the audit log.

The log is a stream in the broker. A transaction writes only if the log's latest entry is the one
that it began with, so concurrent transactions are serialised; one whose reply was lost finds its
own entry on the retry and is not repeated.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any, TypeVar
from uuid import uuid4

from redis import Redis

from server.keys.record import Change
from server.keys.times import broker_time, from_ms
from worker.broker.connection import broker_errors
from worker.store import keyspace, scripts
from worker.store.scripts import was_done

MOST_ENTRIES = 10_000
"""Length of the log; the oldest entries are trimmed."""
RECENT = 100
"""Entries that are searched for a transaction's own one."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Entry:
    """An entry of the audit log: the actor, an `act` like `rotate`, and what it was done to.

    `changes` hold no secret and no digest. `at` is by the broker's clock.
    """

    act: str
    subject: str
    changes: tuple[Change, ...] = ()
    key_id: str = ""
    by: str = ""
    at: datetime | None = None


class Transaction:
    """Reads first; then all its writes are applied at once, or none."""

    def __init__(self, redis: Redis) -> None:
        self.read = redis
        self._last = _last_id(redis)
        self._records: dict[str, list[str]] = {}
        self._removals: list[tuple[str, ...]] = []
        self._writes: list[tuple[str, ...]] = []
        self._entries: list[Entry] = []

    def now(self) -> datetime:
        return broker_time(self.read)

    def write(self, *command: str, first: bool = False) -> None:
        """Queue a command with one key. `first`: before the other writes, as it frees a name."""
        (self._removals if first else self._writes).append(command)

    def hold(self, name: str, record: Mapping[str, str]) -> None:
        """Write only if the hash `name` is still as it was read."""
        self._records[name] = list(chain.from_iterable(record.items()))

    def note(self, entry: Entry) -> None:
        self._entries.append(entry)

    def forget(self) -> None:
        """Drop all queued writes, for a dry run."""
        self._removals, self._writes, self._entries = [], [], []

    def finish(self, by: str, token: str) -> bool:
        """Apply all writes as one script. False if something has changed since the read.

        A script may write although the broker's memory is full, so a key can still be revoked.
        """
        notes = [_line(entry, by, token) for entry in self._entries]
        commands = [*notes, *self._removals, *self._writes]
        if not commands:
            return _last_id(self.read) == self._last  # what was read belongs together
        plan = {
            "last": self._last,
            "records": list(self._records.values()),
            "commands": [(word, *rest) for word, _, *rest in commands],
        }
        names = [keyspace.AUDIT, *self._records, *(name for _, name, *_ in commands)]
        script = self.read.register_script(scripts.source("commands"))
        return was_done("commands", script(keys=names, args=[json.dumps(plan)]))


def transaction(redis: Redis, decide: Callable[[Transaction], _Result], *, by: str = "") -> _Result:
    """Run `decide` as one transaction; after a concurrent change it is called again.

    `by` is the actor; empty: the user of this process.

    Raises:
        BrokerUnavailableError: it is unknown whether it was done.
    """
    token = uuid4().hex
    with broker_errors():
        while True:
            step = Transaction(redis)
            result = decide(step)
            # Not written, and yet in the log: only the reply to the first try was lost.
            if step.finish(by or local_user(), token) or _is_logged(redis, token):
                return result


def _last_id(redis: Redis) -> str:
    latest: Any = redis.xrevrange(keyspace.AUDIT, count=1)
    return str(latest[0][0]) if latest else ""


def _is_logged(redis: Redis, token: str) -> bool:
    recent: Any = redis.xrevrange(keyspace.AUDIT, count=RECENT)
    return any(fields["token"] == token for _, fields in recent)


def entries(redis: Redis, count: int) -> list[Entry]:
    """The last `count` entries of the log, oldest first. Raises BrokerUnavailableError."""
    with broker_errors():
        lines: Any = redis.xrevrange(keyspace.AUDIT, count=count)
    return [
        Entry(
            act=fields["act"],
            subject=fields["subject"],
            changes=tuple(Change(*change) for change in json.loads(fields["changes"])),
            key_id=fields["key_id"],
            by=fields["by"],
            at=from_ms(int(name.partition("-")[0])),
        )
        for name, fields in reversed(lines)
    ]


def local_user() -> str:
    """User and host of this process; not from the environment, which could be forged."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user may have no name
        user = str(os.geteuid())
    return f"{user}@{socket.gethostname()}"


def _line(entry: Entry, by: str, token: str) -> tuple[str, ...]:
    fields = {
        "token": token,
        "by": by,
        "act": entry.act,
        "subject": entry.subject,
        "key_id": entry.key_id,
        "changes": json.dumps(entry.changes, ensure_ascii=False),
    }
    length = ("MAXLEN", "~", str(MOST_ENTRIES))
    return ("XADD", keyspace.AUDIT, *length, "*", *chain.from_iterable(fields.items()))
