"""`mochi-server keys` and `mochi-server audit`."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.administer.key_fields import (
    CreditsLeft,
    Expires,
    Jobs,
    Models,
    MonthlyCap,
    Priority,
    Rate,
    Scopes,
    entry_json,
    key_json,
    parse_credits,
    print_entries,
    print_key,
    print_keys,
)
from server.cli.options import (
    BROKER,
    AsJson,
    KeyName,
    any_broker,
    duration,
    fail,
    read_settings,
    settings_options,
)
from server.cli.output import errors, print_json
from server.errors import visible
from server.keys.audit import MOST_ENTRIES, entries
from server.keys.file import apply_key_file, export_key_file
from server.keys.lookup import PREFIX, digest, new_secret
from server.keys.record import Key, KeyFormError, NewKey
from server.keys.store import (
    GRACE,
    KeyStateError,
    all_keys,
    change_key,
    create_key,
    one_key,
    revoke_key,
    rotate_key,
)
from server.keys.times import broker_time, parse_end
from worker.broker.connection import Client
from worker.broker.url import shown
from worker.store.fleet import cancel_all

SECRET_LENGTH = len(new_secret())

keys = typer.Typer(help="Manage API keys: scopes, limits and credits.", no_args_is_help=True)


@keys.command()
@settings_options(*BROKER)
def create(
    name: Annotated[str, typer.Argument(help="A name for the user or purpose of the key.")],
    scope: Scopes = None,
    model: Models = None,
    expires: Expires = None,
    credits_: CreditsLeft = None,
    requests_per_minute: Rate = None,
    jobs_at_once: Jobs = None,
    monthly_cap: MonthlyCap = None,
    priority: Priority = None,
) -> None:
    """Create an API key and print it, and nothing else, on standard output.

    It cannot be shown again; a lost key can be rotated or revoked. Standard error names the server
    that it is for: the one on the same broker or data folder. Without options the key has the
    scopes generate and read for all models, does not expire, and has no limits.

    Example: `export MOCHI_API_KEY=$(mochi-server keys create laptop)`

    For a customer: `mochi-server keys create alice --credits 100 --expires 365d --jobs-at-once 4`
    """
    terms = _terms(
        scopes=scope,
        models=model,
        credits=credits_,
        requests_per_minute=requests_per_minute or None,
        jobs_at_once=jobs_at_once or None,
        monthly_cap=monthly_cap or None,
        priority=priority,
    )
    with any_broker(makes_folder=True) as redis:
        if expires is not None:
            terms["expires_at"] = _end_of(redis, expires)
        secret = create_key(redis, NewKey.of(name=name, **terms))
    _print_secret(secret)


@keys.command()
@settings_options(*BROKER)
def rotate(
    name: KeyName,
    grace: Annotated[
        timedelta,
        typer.Option(
            parser=duration,
            metavar="TIME",
            help="How long the current secret stays valid: 90s, 15m, 24h, 7d; 0: not at all.",
        ),
    ] = f"{GRACE.days}d",  # type: ignore[assignment]  # parsed as what is typed
) -> None:
    """Give a key a new secret and print it, and nothing else, on standard output.

    The current secret stays valid until the grace ends, so that clients can change over. An older
    secret that is still in its grace ends at once: at most two are valid.

    Example: `mochi-server keys rotate alice --grace 7d`
    """
    with any_broker() as redis:
        _warn_of_file(redis, name)
        secret = rotate_key(redis, name, grace=grace)
    _print_secret(secret)


@keys.command()
@settings_options(*BROKER)
def revoke(
    name: KeyName,
    keep_requests: Annotated[
        bool,
        typer.Option("--keep-requests", help="Do not cancel its waiting and running requests."),
    ] = False,
) -> None:
    """Revoke a key immediately and permanently, at every gateway. Its name becomes free.

    Its waiting and running requests are cancelled, and its history and standing webhooks deleted.
    If the command is interrupted, run it again with the id that it printed.

    Example: `mochi-server keys revoke alice`
    """
    with any_broker() as redis:
        key = revoke_key(redis, name)
        typer.echo(visible(f"Revoked: {key.name} ({key.key_id})."))
        if not keep_requests:
            _cancel(redis, [key])


@keys.command("set")
@settings_options(*BROKER)
def change(
    name: KeyName,
    new_name: Annotated[
        str | None, typer.Option("--name", metavar="NEW", help="A new name.")
    ] = None,
    scope: Scopes = None,
    model: Models = None,
    all_models: Annotated[bool, typer.Option("--all-models", help="Allow all models.")] = False,
    expires: Expires = None,
    never_expires: Annotated[
        bool, typer.Option("--never-expires", help="Remove the expiry.")
    ] = False,
    credits_: CreditsLeft = None,
    add_credits: Annotated[
        Decimal | None,
        typer.Option(parser=parse_credits, metavar="N", help="Credits to add to its balance."),
    ] = None,
    unlimited: Annotated[
        bool, typer.Option("--unlimited", help="Remove the limit of credits.")
    ] = False,
    requests_per_minute: Rate = None,
    jobs_at_once: Jobs = None,
    monthly_cap: MonthlyCap = None,
    priority: Priority = None,
) -> None:
    """Change the scopes, limits or credits of a key. What is not named stays as it is.

    If the key was unlimited, --credits also covers its waiting and running requests. A monthly cap
    counts what was charged since the month began.

    Example: `mochi-server keys set alice --add-credits 50 --requests-per-minute 120`

    No limits: `mochi-server keys set alice --unlimited --requests-per-minute 0 --jobs-at-once 0`
    """
    _refuse_both("--expires", expires is not None, "--never-expires", never_expires)
    _refuse_both("--model", bool(model), "--all-models", all_models)
    _refuse_both("--credits", credits_ is not None, "--add-credits", add_credits is not None)
    _refuse_both("--credits", credits_ is not None, "--unlimited", unlimited)
    _refuse_both("--add-credits", add_credits is not None, "--unlimited", unlimited)
    terms = _terms(name=new_name, scopes=scope, models=model, priority=priority)
    limits: dict[str, object] = {
        "requests_per_minute": requests_per_minute,
        "jobs_at_once": jobs_at_once,
        "monthly_cap": monthly_cap,
    }
    terms |= {field: value or None for field, value in limits.items() if value is not None}
    terms |= {"models": ()} if all_models else {}
    terms |= {"expires_at": None} if never_expires else {}

    def edit(key: Key) -> Key:
        key = key.replace(**terms)
        if add_credits is not None:
            if key.granted is None:
                raise KeyStateError(f"The key `{key.name}` is unlimited; set its --credits first.")
            return key.granted_in_all(key.granted + add_credits)
        if credits_ is not None:
            return key.with_balance(credits_)
        return key.granted_in_all(None) if unlimited else key

    with any_broker() as redis:
        _warn_of_file(redis, name)
        if expires is not None:
            terms["expires_at"] = _end_of(redis, expires)
        changes = change_key(redis, name, edit)
    typer.echo("\n".join(map(str, changes)) or "Nothing to change.")


@keys.command("list")
@settings_options(*BROKER)
def list_keys(
    all: Annotated[  # noqa: A002 (an option)
        bool, typer.Option("--all", help="Include revoked keys, and show ids.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the keys with their scopes, limits and balances.

    Example: `mochi-server keys list --all`
    """
    with any_broker() as redis:
        found = [entry for entry in all_keys(redis) if all or entry[0].revoked_at is None]
    if as_json:
        print_json([key_json(key, secrets) for key, secrets in found])
    elif found:
        print_keys((key for key, _ in found), with_ids=all)
    else:
        errors.print("No keys. Create one with `mochi-server keys create NAME`.")


@keys.command()
@settings_options(*BROKER)
def show(name: KeyName, as_json: AsJson = False) -> None:
    """Show everything about a key. Its secrets are not stored, only their hashes.

    Example: `mochi-server keys show alice`
    """
    with any_broker() as redis:
        key, secrets = one_key(redis, name)
    if as_json:
        print_json(key_json(key, secrets))
    else:
        print_key(key, secrets)


@keys.command()
@settings_options(*BROKER)
def export() -> None:
    """Print all keys as a file for `keys apply`: a backup, or a move to another broker.

    It holds balances and the hashes of secrets. Revoked keys and requests are left out, and so is
    a secret that was replaced and is still in its grace.

    Example: `mochi-server keys export > keys.toml`
    """
    with any_broker() as redis:
        typer.echo(export_key_file(redis), nl=False)


@keys.command()
@settings_options(*BROKER)
def apply(
    file: Annotated[Path, typer.Argument(help="The file, in TOML.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would change.")
    ] = False,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Revoke keys that came from a file and are no longer in it."),
    ] = False,
) -> None:
    """Create and change keys as a file declares. Applying it twice changes nothing.

    A file has a table for each key. It holds hashes, not secrets, so it may be in a repository.

    ```toml
    [keys.alice]
    secret_sha256 = "0123…"       # from `keys hash`; a new one rotates, with `grace = "1d"`
    scopes = ["generate", "read"]
    models = ["mochi-1"]          # default: all
    expires = 2027-01-31          # default: never
    credits_granted = 500         # in total, ever: raise it to give more; default: unlimited
    credits_charged = 12.5        # spent elsewhere; read only when the key is created
    requests_per_minute = 60      # default: no limit
    jobs_at_once = 4              # default: no limit
    monthly_cap = 50              # credits in a calendar month, in UTC; default: no limit
    priority = 2
    ```

    A revoked key stays revoked. With MOCHI_KEYS_FILE, `up` and `gateway` apply a file at start-up,
    without --prune.

    Example: `mochi-server keys apply keys.toml --dry-run`
    """
    with any_broker(makes_folder=not dry_run) as redis:
        lines, revoked = apply_key_file(redis, file, prune=prune, dry_run=dry_run)
        typer.echo("\n".join(lines) or "No key in the file.")
        if not dry_run:
            _cancel(redis, revoked)


@keys.command("secret")
def secret_() -> None:
    """Print a new secret that no server knows yet. Put its hash into a file for `keys apply`.

    Example: `mochi-server keys secret | tee alice.secret | mochi-server keys hash`
    """
    typer.echo(new_secret())


@keys.command("hash")
def hash_() -> None:
    """Read a secret from standard input and print its hash, for a file for `keys apply`.

    Example: `mochi-server keys hash < alice.secret`
    """
    secret = sys.stdin.read().strip()
    if not secret.startswith(PREFIX) or len(secret) < SECRET_LENGTH:
        fail(
            "That is no secret of `mochi-server keys secret`. The hash of a secret that could be "
            "guessed must not be published.",
            2,
        )
    typer.echo(digest(secret))


@settings_options(*BROKER)
def audit(
    last: Annotated[int, typer.Option(min=1, max=MOST_ENTRIES, help="Number of entries.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List administrators' changes to keys, workers and webhooks.

    Example: `mochi-server audit --last 20`
    """
    with any_broker() as redis:
        found = entries(redis, last)
    if as_json:
        print_json([entry_json(entry) for entry in found])
    elif found:
        print_entries(found)
    else:
        errors.print("The audit log is empty.")


def _terms(**terms: object) -> dict[str, Any]:
    return {name: value for name, value in terms.items() if value is not None}


def _end_of(redis: Client, text: str) -> datetime:
    """Parse an expiry, by the broker's clock."""
    try:
        return parse_end(text, broker_time(redis))
    except ValueError as error:
        raise KeyFormError(f"--expires: {error}") from None


def _cancel(redis: Client, revoked: list[Key]) -> None:
    retention = read_settings().retention_seconds
    count = sum(cancel_all(redis, key.key_id, retention_seconds=retention) for key in revoked)
    if count:
        typer.echo(f"Cancelled: {count} of its requests.")


def _warn_of_file(redis: Client, name: str) -> None:
    key, _ = one_key(redis, name)
    if key.source == "file":
        warning = f"The key `{key.name}` comes from a file; the next `keys apply` undoes changes."
        typer.secho(visible(warning), err=True, fg="yellow")


def _refuse_both(one: str, has_one: bool, other: str, has_other: bool) -> None:  # noqa: FBT001
    if has_one and has_other:
        raise typer.BadParameter(f"Give either {one} or {other}.")


def _print_secret(secret: str) -> None:
    settings = read_settings()
    if settings.redis_url:
        place = f"on the broker {shown(settings.redis_url)}"
    else:
        place = f"with the data folder {settings.data_dir}"
    typer.echo(f"A key for the server {place}:", err=True)
    typer.echo(secret)
