"""Acts of administrators: each is done whole or not at all, together with its line in a log.

The log is a stream in the broker. Who acts watches it, so of two acts at the same time one waits
for the other; and an act whose answer was lost on its way finds its own line, and is not repeated.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any, TypeVar
from uuid import uuid4

from redis import Redis
from redis.client import Pipeline

from server.keys.record import Change
from server.keys.times import broker_time, from_ms
from worker.broker.connection import broker_errors
from worker.store import keyspace, scripts

MOST_ENTRIES = 10_000
"""Of the log; the oldest go first."""
RECENT = 100
"""Entries among which the own one is looked for."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Entry:
    """A line of the log.

    Attributes:
        act: in one word, or two.
        subject: what it was done to.
        changes: what was changed; no secret and no digest.
        key_id: of an API key.
        by: who did it.
        at: by the broker's clock.
    """

    act: str
    subject: str
    changes: tuple[Change, ...] = ()
    key_id: str = ""
    by: str = ""
    at: datetime | None = None


class Transaction:
    """One act: first it reads, then all its writes happen at once."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.read = pipeline
        self._removals: list[tuple[str, ...]] = []
        self._writes: list[tuple[str, ...]] = []
        self._entries: list[Entry] = []

    def now(self) -> datetime:
        """By the broker's clock."""
        return broker_time(self.read)

    def write(self, *command: str, first: bool = False) -> None:
        """Have this done at the end; with `first`, before what is not.

        Args:
            command: its name, the one key that it is about, and the rest of it.
            first: whether it makes room for another.
        """
        (self._removals if first else self._writes).append(command)

    def note(self, entry: Entry) -> None:
        """Have this in the log."""
        self._entries.append(entry)

    def forget(self) -> None:
        """Do nothing of it: it was only a question."""
        self._removals, self._writes, self._entries = [], [], []

    def finish(self, by: str, token: str) -> None:
        """Give all of it to the broker, which does it when the pipeline is executed.

        In a script, which may write into a full memory: a key must be revoked also then.
        """
        self.read.multi()
        notes = [_line(entry, by, token) for entry in self._entries]
        commands = [*notes, *self._removals, *self._writes]
        if not commands:
            return
        script = self.read.register_script(scripts.source("commands"))
        self.read.script_load(script.script)  # with it: after a failover none is known
        names = [name for _, name, *_ in commands]
        without_names = [(word, *rest) for word, _, *rest in commands]
        self.read.evalsha(script.sha, len(names), *names, json.dumps(without_names))


def transaction(redis: Redis, decide: Callable[[Transaction], _Result], *, by: str = "") -> _Result:
    """Do what `decide` says, all of it or nothing.

    Args:
        redis: the broker.
        decide: reads, and says what to write; called again when somebody else was faster.
        by: who does it; empty: the user of this process.

    Raises:
        BrokerUnavailableError: it is not known whether it was done.
    """
    token = uuid4().hex
    decided: list[_Result] = []

    def run(pipeline: Pipeline) -> None:
        if decided and token in _recent_tokens(pipeline):
            return  # it was done; only the answer was lost
        step = Transaction(pipeline)
        decided.append(decide(step))
        step.finish(by or local_user(), token)

    with broker_errors():
        redis.transaction(run, keyspace.AUDIT)
    return decided[-1]


def entries(redis: Redis, count: int) -> list[Entry]:
    """The last lines of the log, the oldest first.

    Raises:
        BrokerUnavailableError: nobody can tell.
    """
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
    """The user and host of this process. Its environment may say anything and is not asked."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user may have no name
        user = str(os.geteuid())
    return f"{user}@{socket.gethostname()}"


def _line(entry: Entry, by: str, token: str) -> tuple[str, ...]:
    """The command that puts it into the log."""
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


def _recent_tokens(pipeline: Pipeline) -> set[str]:
    lines: Any = pipeline.xrevrange(keyspace.AUDIT, count=RECENT)
    return {fields["token"] for _, fields in lines}
