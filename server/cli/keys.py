"""`mochi-server keys …` and `mochi-server audit`."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from redis import Redis

from server.cli.key_tables import entry_json, key_json, print_entries, print_key, print_keys
from server.cli.options import (
    DataDir,
    RedisUrl,
    any_broker,
    apply_options,
    end,
    errors_end,
    read_settings,
)
from server.cli.output import print_json
from server.errors import visible
from server.keys.audit import MOST_ENTRIES, entries
from server.keys.export import export_keys, import_keys
from server.keys.file import apply_key_file
from server.keys.lookup import PREFIX, Scope, digest, new_secret
from server.keys.record import (
    MOST_PRIORITY,
    MOST_REQUESTS,
    Credits,
    Key,
    KeyFormError,
    NewKey,
)
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
from server.keys.times import broker_time, parse_duration, parse_end
from worker.broker.url import shown
from worker.store.fleet import cancel_all

SECRET_LENGTH = len(new_secret())
NO_LIMIT = 0

keys = typer.Typer(help="API keys: who may use this server, and how much.", no_args_is_help=True)


def _credits(text: str) -> Decimal:
    try:
        return TypeAdapter(Credits).validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter(f"got {text!r}. {error.errors()[0]['msg']}.") from None


def duration(text: str) -> timedelta:
    """Of an option, like 7d."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Name = Annotated[str, typer.Argument(help="The key's name, or its id.")]
Scopes = Annotated[
    list[Scope] | None, typer.Option("--scope", help="What it may do; may be repeated.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="What it may do it with; may be repeated."),
]
Expires = Annotated[
    str | None,
    typer.Option(help="When: 12h or 30d from now, 2027-01-31 or 2027-01-31T18:00:00Z."),
]
Priority = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_PRIORITY, help="Its turns in the queue for one of others."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@keys.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="For people: who or what uses the key.")],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may do; may be repeated. [default: generate, read]"),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="What it may do it with; may be repeated. [default: all]"),
    ] = None,
    expires: Expires = None,
    credits: Annotated[  # noqa: A002 (an option)
        Decimal | None,
        typer.Option(
            parser=_credits, metavar="N", help="What it may spend. [default: not counted]"
        ),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, max=MOST_REQUESTS, help="[default: no limit]")
    ] = None,
    jobs_at_once: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_REQUESTS, help="Requests that wait or run. [default: no limit]"
        ),
    ] = None,
    priority: Priority = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Make an API key and print it, alone, on standard output. It cannot be shown again.

    Standard error says which server it is for: the one on the same broker or data folder. A key
    that was made and whose secret nobody has seen can be rotated or revoked.

    Example: `export SEGMIND_API_KEY=$(mochi-server keys create laptop)`

    For a customer: `mochi-server keys create alice --credits 100 --expires 365d --jobs-at-once 4`
    """
    apply_options(ctx)
    asked: dict[str, Any] = {
        "scopes": scope,
        "models": model,
        "credits": credits,
        "requests_per_minute": requests_per_minute,
        "jobs_at_once": jobs_at_once,
        "priority": priority,
    }
    with errors_end(), any_broker() as redis:
        asked["expires_at"] = _end_of(redis, expires)
        given = {field: value for field, value in asked.items() if value is not None}
        secret = create_key(redis, NewKey.of(name=name, **given))
    _print_secret(secret)


@keys.command()
def rotate(
    ctx: typer.Context,
    name: Name,
    grace: Annotated[
        timedelta,
        typer.Option(
            parser=duration,
            metavar="TIME",
            help="How long the present secret stays good: 90s, 15m, 24h, 7d; 0: it ends at once.",
        ),
    ] = f"{GRACE.days}d",  # type: ignore[assignment]  # parsed as what is typed
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Give a key another secret and print it, alone, on standard output.

    The present secret stays good for the grace, so that clients can change over. A secret that was
    still good from a rotation before that ends at once: never are more than two.

    Example: `mochi-server keys rotate alice --grace 7d`
    """
    apply_options(ctx)
    with errors_end(), any_broker() as redis:
        _warn_of_file(redis, name)
        secret = rotate_key(redis, name, grace=grace)
    _print_secret(secret)


@keys.command()
def revoke(
    ctx: typer.Context,
    name: Name,
    keep_requests: Annotated[
        bool,
        typer.Option("--keep-requests", help="Leave alone what it has waiting or running."),
    ] = False,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Let a key in no more: from now on, at every gateway, for ever. Its name is free again.

    What it has waiting or running is cancelled, as nobody could fetch it. To do that again, should
    the command be cut off, give the id that it has printed.

    Example: `mochi-server keys revoke alice`
    """
    apply_options(ctx)
    with errors_end(), any_broker() as redis:
        key = revoke_key(redis, name)
        typer.echo(visible(f"Revoked: {key.name} ({key.key_id})."))
        if not keep_requests:
            _cancel(redis, [key])


@keys.command("set")
def change(
    ctx: typer.Context,
    name: Name,
    new_name: Annotated[
        str | None, typer.Option("--name", metavar="NEW", help="Another name.")
    ] = None,
    scope: Scopes = None,
    model: Models = None,
    all_models: Annotated[
        bool, typer.Option("--all-models", help="Lift the restriction to models.")
    ] = False,
    expires: Expires = None,
    never_expires: Annotated[
        bool, typer.Option("--never-expires", help="Until it is revoked.")
    ] = False,
    credits: Annotated[  # noqa: A002 (an option)
        Decimal | None,
        typer.Option(parser=_credits, metavar="N", help="What it may spend from now on."),
    ] = None,
    add_credits: Annotated[
        Decimal | None,
        typer.Option(parser=_credits, metavar="N", help="What it may spend beyond what it has."),
    ] = None,
    unlimited: Annotated[
        bool, typer.Option("--unlimited", help="Count no credits any more.")
    ] = False,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=NO_LIMIT, max=MOST_REQUESTS, help="0: no limit.")
    ] = None,
    jobs_at_once: Annotated[
        int | None,
        typer.Option(
            min=NO_LIMIT, max=MOST_REQUESTS, help="Requests that wait or run. 0: no limit."
        ),
    ] = None,
    priority: Priority = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Change what a key may do, and how much. What is not named stays as it is.

    Of a key that was unlimited, --credits also pays for the requests that wait or run.

    Example: `mochi-server keys set alice --add-credits 50 --requests-per-minute 120`

    No limits: `mochi-server keys set alice --unlimited --requests-per-minute 0 --jobs-at-once 0`
    """
    apply_options(ctx)
    _refuse_both("--expires", expires is not None, "--never-expires", never_expires)
    _refuse_both("--model", bool(model), "--all-models", all_models)
    _refuse_both("--credits", credits is not None, "--add-credits", add_credits is not None)
    _refuse_both("--credits", credits is not None, "--unlimited", unlimited)
    _refuse_both("--add-credits", add_credits is not None, "--unlimited", unlimited)
    asked: dict[str, Any] = {
        "name": new_name,
        "scopes": scope,
        "models": model,
        "requests_per_minute": requests_per_minute,
        "jobs_at_once": jobs_at_once,
        "priority": priority,
    }
    terms = {
        field: None if value == NO_LIMIT else value
        for field, value in asked.items()
        if value is not None
    }
    terms |= {"models": ()} if all_models else {}
    terms |= {"expires_at": None} if never_expires else {}

    def edit(key: Key) -> Key:
        key = key.replace(**terms)
        if add_credits is not None:
            if key.granted is None:
                raise KeyStateError(
                    f"The key `{key.name}` is unlimited; --credits says what it may spend."
                )
            return key.granted_in_all(key.granted + add_credits)
        if credits is not None:
            return key.with_balance(credits)
        return key.granted_in_all(None) if unlimited else key

    with errors_end(), any_broker() as redis:
        _warn_of_file(redis, name)
        if expires is not None:
            terms["expires_at"] = _end_of(redis, expires)
        changes = change_key(redis, name, edit)
    typer.echo("\n".join(map(str, changes)) or "Nothing to change.")


@keys.command("list")
def list_keys(
    ctx: typer.Context,
    all: Annotated[  # noqa: A002 (an option)
        bool, typer.Option("--all", help="The revoked ones too, and the id of each.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """What keys there are, and what each may do.

    Example: `mochi-server keys list --all`
    """
    apply_options(ctx)
    with errors_end(), any_broker() as redis:
        found = [entry for entry in all_keys(redis) if all or entry[0].revoked_at is None]
    if as_json:
        print_json([key_json(key, secrets) for key, secrets in found])
    elif found:
        print_keys((key for key, _ in found), with_ids=all)
    else:
        typer.echo("No key: make one with `mochi-server keys create NAME`.", err=True)


@keys.command()
def show(
    ctx: typer.Context,
    name: Name,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """All that is known of a key. Not its secrets, which nobody but their owner has.

    Example: `mochi-server keys show alice`
    """
    apply_options(ctx)
    with errors_end(), any_broker() as redis:
        key, secrets = one_key(redis, name)
    if as_json:
        print_json(key_json(key, secrets))
    else:
        print_key(key, secrets)


@keys.command("export")
def export(ctx: typer.Context, data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """Print all keys as JSON: what they may do, their accounts, the hashes of their secrets.

    With it the same secrets are let in by another broker. The secrets themselves nobody has.

    Example: `mochi-server keys export > keys.json`
    """
    apply_options(ctx)
    with errors_end(), any_broker() as redis:
        typer.echo(export_keys(redis))


@keys.command("import")
def import_(
    ctx: typer.Context,
    file: Annotated[
        typer.FileText, typer.Argument(help="What `keys export` has printed; `-`: standard input.")
    ],
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Overwrite keys that are here already. One that only has the name of an imported "
            "one, as `first`, is revoked.",
        ),
    ] = False,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Make the keys of an export: all of them, or none if one cannot be.

    A key that was revoked here stays so. Requests do not come along. What was reserved for those
    that waited or ran when the export was made may be spent again.

    Example: `mochi-server keys import keys.json --redis-url redis://other:6379/0`
    """
    apply_options(ctx)
    document = file.read()
    with errors_end(), any_broker() as redis:
        imported = import_keys(redis, document, place=file.name, replace=replace)
        typer.echo(f"Imported: {len(imported.keys)}.")
        for key in imported.still_revoked:
            typer.echo(f"Revoked here, and stays so: {key.name} ({key.key_id}).")
        for key in imported.ousted:
            typer.echo(f"Revoked, as an imported key has its name: {key.name} ({key.key_id}).")
        _cancel(redis, imported.ousted)


@keys.command("apply")
def apply(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="The file, in TOML.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be changed.")
    ] = False,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Revoke keys that came from a file and are in it no more."),
    ] = False,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Make the keys what a file says. Twice is the same as once. What it leaves out is the default.

    A file has a table for each key, and may stand in a repository: it has hashes, no secrets.

    ```toml
    [keys.alice]
    secret_sha256 = "0123…"       # of `keys hash`; another one is a rotation, with `grace = "1d"`
    scopes = ["generate", "read"]
    models = ["mochi-1"]          # left out: all
    expires = 2027-01-31          # left out: never
    credits_granted = 500         # in all, ever: raise it to give more; left out: unlimited
    requests_per_minute = 60      # left out: no limit
    jobs_at_once = 4              # left out: no limit
    priority = 2
    ```

    A key that was revoked stays so, whatever a file says. With MOCHI_KEYS_FILE, `up` and `gateway`
    do the same at their start, without --prune.

    Example: `mochi-server keys apply keys.toml --dry-run`
    """
    apply_options(ctx)
    with errors_end(), any_broker() as redis:
        lines, revoked = apply_key_file(redis, file, prune=prune, dry_run=dry_run)
        typer.echo("\n".join(lines) or "No key in the file.")
        if not dry_run:
            _cancel(redis, revoked)


@keys.command("secret")
def secret_() -> None:
    """Print a new secret, alone, that no server knows yet. Its hash goes into a file of keys.

    Example: `mochi-server keys secret | tee alice.secret | mochi-server keys hash`
    """
    typer.echo(new_secret())


@keys.command("hash")
def hash_() -> None:
    """Read a secret from standard input and print its hash, for a file of keys.

    Example: `mochi-server keys hash < alice.secret`
    """
    secret = sys.stdin.read().strip()
    if not secret.startswith(PREFIX) or len(secret) < SECRET_LENGTH:
        end(
            "That is no secret of `mochi-server keys secret`. Only the hash of such a one, which "
            "nobody can guess, may be shown to others.",
            2,
        )
    typer.echo(digest(secret))


def audit(
    ctx: typer.Context,
    last: Annotated[int, typer.Option(min=1, max=MOST_ENTRIES, help="How many acts.")] = 100,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """What administrators did: to keys, and to workers. Never a secret.

    Example: `mochi-server audit --last 20`
    """
    apply_options(ctx)
    with errors_end(), any_broker() as redis:
        found = entries(redis, last)
    if as_json:
        print_json([entry_json(entry) for entry in found])
    elif found:
        print_entries(found)
    else:
        typer.echo("Nothing was done yet.", err=True)


def _end_of(redis: Redis, text: str | None) -> datetime | None:
    """When a key is to end, by the broker's clock."""
    if text is None:
        return None
    try:
        return parse_end(text, broker_time(redis))
    except ValueError as error:
        raise KeyFormError(f"--expires: {error}") from None


def _cancel(redis: Redis, revoked: list[Key]) -> None:
    retention = read_settings().retention_seconds
    count = sum(cancel_all(redis, key.key_id, retention_seconds=retention) for key in revoked)
    if count:
        typer.echo(f"Cancelled: {count} of its requests.")


def _warn_of_file(redis: Redis, name: str) -> None:
    key, _ = one_key(redis, name)
    if key.source == "file":
        typer.secho(
            visible(
                f"The key `{key.name}` comes from a file: the next `keys apply` makes it again "
                "what that says."
            ),
            err=True,
            fg="yellow",
        )


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
