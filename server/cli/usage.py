"""`mochi-server usage`: each key's usage by day, as a table, CSV or JSON."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal

import typer

from server.cli.options import BROKER, running_broker, settings_options
from server.cli.output import errors, print_json, print_table
from server.keys.store import all_keys
from server.keys.times import broker_time
from worker.store.reports.usage import KEPT_DAYS, Period, Usage, read_usages

COLUMNS = (
    *("day", "key", "requests", "completed", "cancelled", "blocked", "failed"),
    *("failed_by_code", "gpu_seconds", "credits"),
)
"""Of the table. CSV also has `key_id`, as a name can pass to another key."""
FURTHER = ("energy_joules", "cached")
"""Columns that are the last ones of CSV, and of the table only where there is something to show."""
NUMBERS = frozenset({*COLUMNS, *FURTHER}) - {"day", "key", "failed_by_code"}


@settings_options(*BROKER)
def usage(
    days: Annotated[
        int, typer.Option(min=1, max=KEPT_DAYS, help="Days up to today, or up to --last.")
    ] = 30,
    first: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="The first day in UTC, instead of --days."),
    ] = None,
    last: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="The last day in UTC. [default: today]"),
    ] = None,
    key: Annotated[str, typer.Option(help="Only this key, by name or id.")] = "",
    form: Annotated[
        Literal["table", "csv", "json"], typer.Option("--format", help="Format of the output.")
    ] = "table",
) -> None:
    """Show each API key's usage by day.

    Requests, outcomes, GPU seconds, credits and energy are kept for 400 days.

    Example: `mochi-server usage --days 7`

    For a spreadsheet: `mochi-server usage --first 2026-11-01 --last 2026-11-30 --format csv`
    """
    with running_broker() as redis:
        today = broker_time(redis).date()
        period = _period(days, first and first.date(), last and last.date(), today)
        usages = read_usages(redis, period)
        names = {each.key_id: each.name for each, _ in all_keys(redis)}
    named = [(each, names.get(each.owner, each.owner)) for each in usages]
    named = [(each, name) for each, name in named if key in {"", name, each.owner}]
    rows = [_row(*each) for each in named]
    match form:
        case "csv":
            writer = csv.writer(sys.stdout, lineterminator="\n")
            all_columns = (*COLUMNS, "key_id", *FURTHER)
            writer.writerow(all_columns)
            writer.writerows(_cells(row, all_columns) for row in rows)
        case "json":
            print_json([_json(*each) for each in named])
        case "table" if rows:
            shown = [name for name in FURTHER if any(name in row for row in rows)]
            columns = (*COLUMNS, *shown)
            right = {column.replace("_", " ") for column in NUMBERS}
            lines = [*(_cells(row, columns) for row in rows), _sums(rows, columns)]
            print_table((column.replace("_", " ") for column in columns), lines, right=right)
        case "table":
            by = f" by the key `{key}`" if key else ""
            errors.print(f"No usage{by} in this period.")


def _period(days: int, first: date | None, last: date | None, today: date) -> Period:
    end = last or today
    period = Period(first or end - timedelta(days=days - 1), end)
    if len(period.days) not in range(1, KEPT_DAYS + 2):
        raise typer.BadParameter(
            f"From --first to --last (default: today) must be 1 to {KEPT_DAYS} days; "
            f"got {period.first} to {period.last}."
        )
    return period


def _row(usage: Usage, name: str) -> dict[str, object]:
    failed = {"failed": sum(usage.failed.values()), "failed_by_code": usage.failed}
    return _json(usage, name) | failed


def _json(usage: Usage, name: str) -> dict[str, object]:
    """As `/v1/usage` has it, and the name."""
    further = {name: getattr(usage, name) for name in FURTHER}
    return {
        "day": usage.day.isoformat(),
        "key": name,
        "key_id": usage.owner,
        "requests": usage.requests,
        "completed": usage.completed,
        "cancelled": usage.cancelled,
        "blocked": usage.blocked,
        "failed": usage.failed,
        "gpu_seconds": usage.gpu_seconds,
        "credits": usage.credits,
    } | {name: value for name, value in further.items() if value is not None}


def _cells(row: dict[str, object], columns: Sequence[str]) -> list[str]:
    return [_cell(row.get(column, "")) for column in columns]


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{code}: {count}" for code, count in value.items())
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _sums(rows: Sequence[dict[str, object]], columns: Sequence[str]) -> list[str]:
    """The last line of the table."""
    return [
        _cell(sum(row.get(column, 0) for row in rows))  # type: ignore[misc]  # all of one kind
        if column in NUMBERS
        else ("all" if column == "day" else "")
        for column in columns
    ]
