"""API keys and the audit log on the command line: the options, tables and JSON of their fields."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from models.request.catalogue import CATALOGUE
from server.cli.output import console, print_table
from server.errors import visible
from server.keys.audit import Entry
from server.keys.lookup import Scope
from server.keys.record import MOST_PRIORITY, MOST_REQUESTS, Credits, Key, in_words
from server.keys.store import Secret
from server.keys.times import written

NO_LIMIT = 0


def parse_credits(text: str) -> Decimal:
    try:
        return TypeAdapter(Credits).validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter(f"got {text!r}. {error.errors()[0]['msg']}.") from None


def _warn_of_unknown(names: list[str] | None) -> list[str] | None:
    """Only a warning, as gateways of a later version may serve more models."""
    for name in names or ():
        if name not in CATALOGUE:
            known = ", ".join(f"`{slug}`" for slug in CATALOGUE)
            warning = (
                f"Warning: no model of this release is called `{name}`; it has {known}. The key is "
                "limited to it all the same."
            )
            typer.secho(visible(warning), err=True, fg="yellow")
    return names


Scopes = Annotated[
    list[Scope] | None,
    typer.Option("--scope", help="A scope that it has; repeat for more."),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        callback=_warn_of_unknown,
        help="A model that it may use; repeat for more.",
    ),
]
Expires = Annotated[
    str | None,
    typer.Option(help="In 12h or 30d, on 2027-01-31, or at 2027-01-31T18:00:00Z."),
]
CreditsLeft = Annotated[
    Decimal | None,
    typer.Option(
        "--credits",
        parser=parse_credits,
        metavar="N",
        help="Credits that it can spend.",
    ),
]
MonthlyCap = Annotated[
    Decimal | None,
    typer.Option(
        parser=parse_credits,
        metavar="N",
        help="Credits that it can spend in a calendar month, in UTC; 0: no limit.",
    ),
]
Rate = Annotated[
    int | None, typer.Option(min=NO_LIMIT, max=MOST_REQUESTS, help="Most submits; 0: no limit.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=NO_LIMIT, max=MOST_REQUESTS, help="Most waiting and running requests; 0: no limit."
    ),
]
Priority = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST_PRIORITY, help="Turns in the queue for each turn of a key with 1."
    ),
]


def print_keys(keys: Iterable[Key], *, with_ids: bool) -> None:
    """Print a table with a line for each key; `with_ids`, as a revoked key has no other name."""
    columns = ["name", "scopes", "models", "priority", "limits", "balance", "until"]
    rows = (
        (
            key.name,
            in_words("scopes", key.scopes),
            in_words("models", key.models),
            key.priority,
            _limits(key),
            in_words("balance", key.balance),
            _until(key),
            *([key.key_id] if with_ids else []),
        )
        for key in keys
    )
    print_table([*columns, "id"] if with_ids else columns, rows)


def print_key(key: Key, secrets: Iterable[Secret]) -> None:
    """Print a line for each field of a key."""
    for name, value in key:
        _say(f"{name}: {in_words(name, value)}")
    for secret in secrets:
        _say(f"secret: {'ends at ' + written(secret.ends_at) if secret.ends_at else 'in use'}")


def print_entries(entries: Iterable[Entry]) -> None:
    """Print the audit log as a table."""
    rows = (
        (
            written(entry.at) if entry.at else "",
            entry.by,
            entry.act,
            entry.subject,
            "; ".join(map(str, entry.changes)),
        )
        for entry in entries
    )
    print_table(("at", "by", "act", "to", "changes"), rows)


def key_json(key: Key, secrets: Iterable[Secret]) -> dict[str, Any]:
    """A key and when its secrets end. Amounts are text, as they are exact."""
    ends = [None if secret.ends_at is None else written(secret.ends_at) for secret in secrets]
    return key.model_dump(mode="json") | {"secrets": [{"ends_at": end} for end in ends]}


def entry_json(entry: Entry) -> dict[str, Any]:
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
    cap = f"{in_words('monthly_cap', key.monthly_cap)} credits a month" if key.monthly_cap else ""
    return ", ".join(filter(None, (rate, at_once, cap))) or "none"


def _until(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {written(key.revoked_at)}"
    return in_words("expires_at", key.expires_at)


def _say(line: str) -> None:
    console.print(visible(line), soft_wrap=True)
