"""Keys, and what was done to them, for people and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from server.cli.output import WIDTH
from server.errors import visible
from server.keys.audit import Entry
from server.keys.record import Key, in_words
from server.keys.store import Secret
from server.keys.times import written

_console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False)


def print_keys(keys: Iterable[Key], *, with_ids: bool) -> None:
    """A table, a key a line.

    Args:
        keys: of any state.
        with_ids: whether to show ids: a revoked key has no other name.
    """
    table = Table(box=None)
    for name in ("name", "scopes", "models", "priority", "limits", "balance", "until"):
        table.add_column(name, overflow="fold")
    if with_ids:
        table.add_column("id", no_wrap=True)
    for key in keys:
        cells = (
            key.name,
            in_words("scopes", key.scopes),
            in_words("models", key.models),
            str(key.priority),
            _limits(key),
            in_words("balance", key.balance),
            _until(key),
            *([key.key_id] if with_ids else []),
        )
        table.add_row(*map(visible, cells))
    _console.print(table, soft_wrap=True)


def print_key(key: Key, secrets: Iterable[Secret]) -> None:
    """All of one key, a field a line."""
    for name, value in key:
        _say(f"{name}: {in_words(name, value)}")
    for secret in secrets:
        _say(f"secret: {'ends at ' + written(secret.ends_at) if secret.ends_at else 'in use'}")


def print_entries(entries: Iterable[Entry]) -> None:
    """A table, an act a line."""
    table = Table(box=None)
    for name in ("at", "by", "act", "to", "changes"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        at = written(entry.at) if entry.at else ""
        changes = "; ".join(map(str, entry.changes))
        table.add_row(*map(visible, (at, entry.by, entry.act, entry.subject, changes)))
    _console.print(table, soft_wrap=True)


def key_json(key: Key, secrets: Iterable[Secret]) -> dict[str, Any]:
    """A key and when its secrets end. Amounts are text: they are exact."""
    ends = [None if secret.ends_at is None else written(secret.ends_at) for secret in secrets]
    return key.model_dump(mode="json") | {"secrets": [{"ends_at": end} for end in ends]}


def entry_json(entry: Entry) -> dict[str, Any]:
    """A line of the log."""
    return {
        "at": entry.at.isoformat() if entry.at else None,
        "by": entry.by,
        "act": entry.act,
        "subject": entry.subject,
        "key_id": entry.key_id,
        "changes": [change._asdict() for change in entry.changes],
    }


def _limits(key: Key) -> str:
    rate = f"{key.requests_per_minute} a minute" if key.requests_per_minute else ""
    at_once = f"{key.jobs_at_once} at once" if key.jobs_at_once else ""
    return ", ".join(filter(None, (rate, at_once))) or "none"


def _until(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {written(key.revoked_at)}"
    return in_words("expires_at", key.expires_at)


def _say(line: str) -> None:
    _console.print(visible(line), soft_wrap=True)
