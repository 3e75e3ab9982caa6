"""`mochi-server usage`: what every key used, day by day, for people, spreadsheets and programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from enum import StrEnum

from redis import Redis
from rich.console import Console
from rich.table import Table

from server.cli.output import WIDTH
from worker.broker.connection import broker_errors
from worker.store import keyspace
from worker.store.usage import Period, Usage

COLUMNS = (
    *("day", "key", "requests", "completed", "failed"),
    *("failed_by_code", "gpu_seconds", "credits"),
)
"""Of the table. CSV and JSON have `key_id` too: a name may be that of another key later."""


class Form(StrEnum):
    """How it is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def print_usage(redis: Redis, period: Period, form: Form, only: str = "") -> None:
    """Print the usage of all keys, or of the one with this name or id.

    Raises:
        BrokerUnavailableError: nobody can tell.
    """
    usages = _read(redis, period)
    names = _names(redis, {usage.owner for usage in usages})
    rows = [
        _row(usage, names[usage.owner])
        for usage in usages
        if only in {"", usage.owner, names[usage.owner]}
    ]
    match form:
        case Form.CSV:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow((*COLUMNS, "key_id"))
            writer.writerows((*_cells(row), row["key_id"]) for row in rows)
        case Form.JSON:
            sys.stdout.write(json.dumps(rows, indent=2, default=float) + "\n")
        case Form.TABLE:
            _print_table(rows, only)


def _read(redis: Redis, period: Period) -> list[Usage]:
    pipeline = redis.pipeline(transaction=False)
    for key in period.keys:
        pipeline.hgetall(key)
    with broker_errors():
        return period.usages(pipeline.execute())


def _names(redis: Redis, owners: Iterable[str]) -> dict[str, str]:
    """Of the keys, the revoked ones included; the id of one that was imported elsewhere."""
    known = sorted(owners)
    pipeline = redis.pipeline(transaction=False)
    for owner in known:
        pipeline.hget(keyspace.api_key(owner), "name")
    with broker_errors():
        names = pipeline.execute()
    return {owner: name or owner for owner, name in zip(known, names, strict=True)}


def _row(usage: Usage, name: str) -> dict[str, object]:
    return {
        "day": usage.day.isoformat(),
        "key": name,
        "key_id": usage.owner,
        "requests": usage.requests,
        "completed": usage.completed,
        "failed": sum(usage.failed.values()),
        "failed_by_code": usage.failed,
        "gpu_seconds": usage.gpu_seconds,
        "credits": usage.credits,
    }


def _cells(row: dict[str, object]) -> list[str]:
    return [_cell(row[column]) for column in COLUMNS]


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{code}: {count}" for code, count in value.items())
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _print_table(rows: Sequence[dict[str, object]], only: str) -> None:
    if not rows:
        by = f"By a key `{only}` nothing" if only else "Nothing"
        Console(stderr=True).print(f"{by} was used in this time.", markup=False)
        return
    table = Table(box=None)
    for column in COLUMNS:
        is_number = isinstance(rows[0][column], int | float | Decimal)
        table.add_column(column.replace("_", " "), justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*_cells(row))
    table.add_row(*_sums(rows))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table, soft_wrap=True)


def _sums(rows: Sequence[dict[str, object]]) -> list[str]:
    """The last line."""
    return [
        _cell(sum(row[column] for row in rows))  # type: ignore[misc]  # numbers, all of one kind
        if isinstance(rows[0][column], int | float | Decimal)
        else ("all" if column == "day" else "")
        for column in COLUMNS
    ]
