"""`mochi-server webhooks …`: what was delivered to whom, once more, and what signs it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

import httpx
import typer
from redis import Redis
from rich.console import Console
from rich.table import Table

from server.cli.keys import AsJson, Name, duration
from server.cli.options import DataDir, RedisUrl, any_broker, apply_options, errors_end
from server.cli.output import WIDTH, print_json
from server.errors import CommandError
from server.keys.audit import Entry, Transaction, transaction
from server.keys.record import Change, Key
from server.keys.store import GRACE, KeyStore, all_keys
from server.keys.times import from_ms, written
from worker.store import keyspace
from worker.store.deliveries import (
    Delivery,
    Replay,
    State,
    all_deliveries,
    new_signing_secret,
    replay,
    signing_secrets,
)

webhooks = typer.Typer(
    help="Who was told of the end of which request, and what signs it.", no_args_is_help=True
)
_console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False)


class NoDeliveryError(CommandError):
    """What is to be delivered once more is not there, or may not be."""


@webhooks.command("list")
def list_deliveries(
    ctx: typer.Context,
    state: Annotated[State | None, typer.Option(help="Only those.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Deliveries, the oldest first: which are due, were made, or given up, and the attempts.

    They are kept until they have ended, and then as long as a request's record. Of URLs only
    scheme and host are shown, as the rest may be a secret of the receiver's. JSON has all attempts.

    Example: `mochi-server webhooks list --state given_up`
    """
    apply_options(ctx)
    with errors_end(), any_broker() as redis:
        found = [each for each in all_deliveries(redis) if state in {None, each.state}]
        names = {key.key_id: key.name for key, _ in all_keys(redis)}
    if as_json:
        print_json([_json(delivery, names) for delivery in found])
    elif found:
        _print(found, names)
    else:
        typer.echo("No delivery.", err=True)


@webhooks.command("replay")
def replay_delivery(
    ctx: typer.Context,
    request_id: Annotated[str, typer.Argument(help="Of the request, as `webhooks list` has it.")],
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Deliver once more, at once, with the same `webhook-id`; with all attempts, if need be.

    Example: `mochi-server webhooks replay 0b9f6a7e-8f0a-4f0e-9a55-5d4c0d7c7f11`
    """
    apply_options(ctx)
    with errors_end(), any_broker() as redis:
        _replay(redis, request_id)
    typer.echo(f"Due: {request_id}.")


@webhooks.command()
def secret(
    ctx: typer.Context,
    name: Name,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make another one; the present one signs as well.")
    ] = False,
    grace: Annotated[
        timedelta | None,
        typer.Option(
            parser=duration,
            metavar="TIME",
            help="With --rotate: for how long: 90s, 15m, 24h, 7d; 0: not any more.",
            show_default=f"{GRACE.days}d",
        ),
    ] = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Print what signs the webhooks of an API key, alone, on standard output.

    It is made when it is first needed. Receivers verify with it what comes. After a rotation each
    delivery has two signatures for the grace, so that receivers can change over.

    Example: `mochi-server webhooks secret alice`

    Another one: `mochi-server webhooks secret alice --rotate --grace 7d`
    """
    if grace is not None and not rotate:
        raise typer.BadParameter("--grace is of a rotation: give --rotate as well.")
    apply_options(ctx)
    with errors_end(), any_broker() as redis:
        key = transaction(redis, lambda step: KeyStore(step).find_live(name))
        if rotate:
            rotate_signing_secret(redis, key.name, GRACE if grace is None else grace)
        found = signing_secrets(redis, key.key_id)[0]
    typer.echo(found)


def rotate_signing_secret(redis: Redis, name: str, grace: timedelta, *, by: str = "") -> None:
    """Sign with another secret, and for `grace` with the present one as well.

    Raises:
        NoSuchKeyError, KeyStateError: there is no such key, or it was revoked.
        BrokerUnavailableError: it is not known whether it was done.
    """
    new = new_signing_secret()

    def decide(step: Transaction) -> None:
        key = KeyStore(step).find_live(name)
        present: Any = step.read.get(keyspace.webhook_secret(key.key_id))
        _put(step, key, new, present, grace)
        step.note(Entry("rotate webhook secret", key.name, (_CHANGE,), key.key_id))

    transaction(redis, decide, by=by)


_CHANGE = Change("webhook secret", "", "another")


def _put(step: Transaction, key: Key, new: str, present: str | None, grace: timedelta) -> None:
    old = keyspace.old_webhook_secret(key.key_id)
    step.write("SET", keyspace.webhook_secret(key.key_id), new)
    if present and grace:
        step.write("SET", old, present, "PX", str(round(grace / timedelta(milliseconds=1))))
    else:
        step.write("DEL", old)


def _replay(redis: Redis, request_id: str) -> None:
    match replay(redis, request_id):
        case Replay.UNKNOWN:
            raise NoDeliveryError(
                f"No delivery {request_id}: it was never owed, or is forgotten. "
                "`mochi-server webhooks list` has those that are kept."
            )
        case Replay.REVOKED:
            raise NoDeliveryError(
                "The API key of this request was revoked: nothing is delivered for it any more."
            )
        case Replay.DUE:
            entry = Entry("replay webhook", f"request {request_id}")
            transaction(redis, lambda step: step.note(entry))


def _print(deliveries: Iterable[Delivery], names: dict[str, str]) -> None:
    table = Table(box=None)
    for name in ("request", "key", "ended", "state", "attempts", "last", "next", "url"):
        table.add_column(name, no_wrap=name == "request", overflow="fold")
    for delivery in deliveries:
        table.add_row(
            delivery.request_id,
            names.get(delivery.owner, delivery.owner),
            written(from_ms(delivery.created_at)),
            delivery.state,
            str(delivery.attempts),
            delivery.log[-1][1] if delivery.log else "",
            written(from_ms(delivery.due_at)) if delivery.due_at else "",
            _shown(delivery.url),
        )
    _console.print(table, soft_wrap=True)


def _json(delivery: Delivery, names: dict[str, str]) -> dict[str, Any]:
    fields = asdict(delivery)
    del fields["record"], fields["before"]
    return fields | {
        "key": names.get(delivery.owner),
        "url": _shown(delivery.url),
        "created_at": from_ms(delivery.created_at).isoformat(),
        "expires_at": from_ms(delivery.expires_at).isoformat(),
        "due_at": from_ms(delivery.due_at).isoformat() if delivery.due_at else None,
        "log": [{"at": from_ms(at).isoformat(), "outcome": what} for at, what in delivery.log],
    }


def _shown(url: str) -> str:
    parsed = httpx.URL(url)
    return f"{parsed.scheme}://{parsed.netloc.decode('ascii')}"
