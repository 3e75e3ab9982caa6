"""`mochi-server webhooks`: list, replay and sign webhook deliveries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from server.cli.options import (
    BROKER,
    AsJson,
    any_broker,
    duration,
    settings_options,
)
from server.cli.output import errors, print_json, print_table
from server.errors import CommandError
from server.keys.audit import Entry, transaction
from server.keys.signing import rotate_signing_secret, signing_secret
from server.keys.store import GRACE, NoSuchKeyError, all_keys
from server.keys.times import from_ms, written
from worker.broker.connection import Client
from worker.store.webhooks.deliveries import (
    Delivery,
    Replay,
    State,
    all_deliveries,
    replay,
    request_of,
)

webhooks = typer.Typer(help="List, replay and sign webhook deliveries.", no_args_is_help=True)


class NoDeliveryError(CommandError):
    """The delivery does not exist, or must not be replayed."""


@webhooks.command("list")
@settings_options(*BROKER)
def list_deliveries(
    state: Annotated[State | None, typer.Option(help="Only deliveries in this state.")] = None,
    as_json: AsJson = False,
) -> None:
    """List deliveries and their attempts, the oldest first.

    An ended delivery is kept as long as the record of its request. Only scheme and host of a URL
    are shown, as the rest may hold a secret of the receiver. JSON has all attempts.

    Example: `mochi-server webhooks list --state given_up`
    """
    with any_broker() as redis:
        found = [each for each in all_deliveries(redis) if state in {None, each.state}]
        names = {key.key_id: key.name for key, _ in all_keys(redis)}
    if as_json:
        print_json([_json(delivery, names) for delivery in found])
    elif found:
        _print(found, names)
    else:
        errors.print("No deliveries.")


@webhooks.command("replay")
@settings_options(*BROKER)
def replay_delivery(
    delivery_id: Annotated[str, typer.Argument(help="The id that `webhooks list` shows first.")],
) -> None:
    """Deliver again, now, with the same `webhook-id` and a fresh set of retries.

    Example: `mochi-server webhooks replay 0b9f6a7e-8f0a-4f0e-9a55-5d4c0d7c7f11`
    """
    with any_broker() as redis:
        match replay(redis, delivery_id):
            case Replay.UNKNOWN:
                raise NoDeliveryError(_unknown(redis, delivery_id))
            case Replay.REVOKED:
                raise NoDeliveryError(
                    "The API key of this request was revoked, so its webhooks are not delivered."
                )
            case Replay.DUE:
                entry = Entry("replay webhook", f"request {delivery_id}")
                transaction(redis, lambda step: step.note(entry))
    typer.echo(f"Due: {delivery_id}.")


def _unknown(redis: Client, delivery_id: str) -> str:
    """Why there is no such delivery. A request or a notice may have only those with a suffix."""
    ids = (each.delivery_id for each in all_deliveries(redis))
    if standing := [each for each in ids if request_of(each) == delivery_id]:
        return (
            f"No webhook delivery {delivery_id}. Its deliveries to standing webhooks have ids of "
            f"their own: {', '.join(standing)}. Name one of these."
        )
    return (
        f"No webhook delivery {delivery_id}: none was requested, or it has expired. "
        "`mochi-server webhooks list` shows the others."
    )


@webhooks.command()
@settings_options(*BROKER)
def secret(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="The key's name or id. [default: the only key]"),
    ] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a new secret; the old one signs too for a while.")
    ] = False,
    grace: Annotated[
        timedelta | None,
        typer.Option(
            parser=duration,
            metavar="TIME",
            help="With --rotate: how long the old secret still signs: 90s, 15m, 24h, 7d; 0: not. "
            f"[default: {GRACE.days}d]",
        ),
    ] = None,
) -> None:
    """Print the secret that signs the webhooks of an API key, and nothing else, on standard output.

    It is made when first needed; receivers verify deliveries with it. After a rotation each
    delivery carries two signatures until the grace ends, so that receivers can change over.

    Example: `mochi-server webhooks secret alice`

    A new one: `mochi-server webhooks secret alice --rotate --grace 7d`
    """
    if grace is not None and not rotate:
        raise typer.BadParameter("--grace needs --rotate.")
    with any_broker() as redis:
        name = name or _only_key(redis)
        if rotate:
            rotate_signing_secret(redis, name, GRACE if grace is None else grace)
        found = signing_secret(redis, name)
    typer.echo(found)


def _only_key(redis: Client) -> str:
    live = [key.key_id for key, _ in all_keys(redis) if key.revoked_at is None]
    if len(live) == 1:
        return live[0]
    if not live:
        raise NoSuchKeyError("There is no key: `mochi-server keys create NAME` makes one.")
    raise NoSuchKeyError(
        f"There are {len(live)} keys: give the NAME of one; `mochi-server keys list` shows them."
    )


def _print(deliveries: Iterable[Delivery], names: dict[str, str]) -> None:
    rows = (
        (
            each.delivery_id,
            names.get(each.owner, each.owner),
            written(from_ms(each.created_at)),
            each.state,
            each.attempts,
            each.log[-1][1] if each.log else "",
            written(from_ms(each.due_at)) if each.due_at else "",
            _origin(each.url),
        )
        for each in deliveries
    )
    columns = ("delivery", "key", "ended", "state", "attempts", "last", "next", "url")
    print_table(columns, rows)


def _json(delivery: Delivery, names: dict[str, str]) -> dict[str, Any]:
    fields = asdict(delivery)
    del fields["record"], fields["before"]
    if not delivery.event:
        del fields["event"]
    return fields | {
        "request_id": delivery.request_id,
        "key": names.get(delivery.owner),
        "url": _origin(delivery.url),
        "created_at": from_ms(delivery.created_at).isoformat(),
        "expires_at": from_ms(delivery.expires_at).isoformat(),
        "due_at": from_ms(delivery.due_at).isoformat() if delivery.due_at else None,
        "log": [{"at": from_ms(at).isoformat(), "outcome": what} for at, what in delivery.log],
    }


def _origin(url: str) -> str:
    parsed = urlsplit(url)
    return f"{parsed.scheme}://{parsed.netloc.rpartition('@')[2]}"
