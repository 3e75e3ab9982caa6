"""API keys declared in a TOML file: for a repository, a backup, or a move to another broker.

[keys.alice]
secret_sha256 = "…"           # of 256 random bits, so it reveals nothing
scopes = ["generate", "read"]
models = ["mochi-1"]
expires = 2027-01-31
credits_granted = 500         # in total, ever: raise it to give more
credits_charged = 12.5        # read only when the key is created, as by a restore
requests_per_minute = 60
jobs_at_once = 4
monthly_cap = 50              # credits in a calendar month, in UTC
priority = 2

Only `secret_sha256` is required. Applying a file twice changes nothing. Functions that take `redis`
raise BrokerUnavailableError; it is then unknown whether the file was applied.
"""

from __future__ import annotations

import json
import socket
import tomllib
from collections.abc import Callable, Iterable
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated
from uuid import uuid4

from pydantic import BeforeValidator, Field
from redis import Redis

from server.errors import CommandError, visible
from server.keys.audit import Transaction, transaction
from server.keys.record import Granted, Key, KeyFormError, Moment, Terms
from server.keys.store import GRACE, KeyStateError, KeyStore, Secret, all_keys, revoke
from server.keys.times import in_utc, parse_duration, parse_moment, written
from server.settings import ServerSettings
from worker.broker.connection import connect_briefly

SETTING = "MOCHI_KEYS_FILE"


class KeyFileError(CommandError):
    """The file cannot be read, or is not TOML."""


def _moment(value: object) -> object:
    if isinstance(value, date):
        return in_utc(value)
    return parse_moment(str(value))


def _duration(value: object) -> object:
    return value if isinstance(value, timedelta) else parse_duration(str(value))


class FileKey(Terms):
    """A key as declared in a file.

    Attributes:
        credits_granted: credits in total, ever; None: unlimited.
        credits_charged: of these, spent before the key is created; ignored when it exists.
        grace: how long the previous secret stays valid when the hash has changed.
    """

    secret_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    expires_at: Annotated[Moment | None, BeforeValidator(_moment)] = Field(None, alias="expires")
    credits_granted: Granted | None = None
    credits_charged: Granted = Decimal(0)
    grace: Annotated[timedelta, BeforeValidator(_duration)] = GRACE


def read_key_file(path: Path) -> list[FileKey]:
    """The keys in a file.

    Raises:
        KeyFileError: it cannot be read, or is not TOML.
        KeyFormError: a value is invalid; names the key, the field and the rule.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"), parse_float=Decimal)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path} is not TOML: {error}.") from None
    tables = document.pop("keys", {})
    if document:
        unknown = visible(next(iter(document)))
        raise KeyFormError(f"{path}: {unknown}: unknown; keys are `[keys.NAME]`.")
    if not isinstance(tables, dict):
        raise KeyFormError(f"{path}: keys: must be tables, `[keys.NAME]`.")
    keys = [_file_key(path, name, table) for name, table in tables.items()]
    _refuse_same_secrets(path, keys)
    return keys


def apply_key_file(
    redis: Redis, path: Path, *, prune: bool = False, dry_run: bool = False, by: str = ""
) -> tuple[list[str], list[Key]]:
    """Make the keys in the broker those of a file. Returns a line for each, and the revoked keys.

    `prune` revokes keys that came from a file and are no longer in it; `by` is the actor in the
    audit log.

    Raises:
        KeyFileError, KeyFormError: see `read_key_file`.
        KeyStateError: a secret belongs to another key.
    """
    wanted = read_key_file(path)

    def decide(step: Transaction) -> tuple[list[str], list[Key]]:
        keys = KeyStore(step)
        lines = [f"{key.name}: {_apply(keys, path, key)}" for key in wanted]
        kept = {key.name for key in wanted}
        live = keys.live_keys() if prune else []
        gone = [key for key in live if key.source == "file" and key.name not in kept]
        revoked = [revoke(keys, key) for key in gone]
        lines += [f"{key.name}: revoked, as it is not in the file any more" for key in revoked]
        if dry_run:
            step.forget()
        return lines, revoked

    return transaction(redis, decide, by=by)


def export_key_file(redis: Redis) -> str:
    """All keys that are not revoked, as a file for `apply_key_file`.

    Credits reserved for waiting and running requests count as unspent. A secret that is replaced
    and in its grace is left out.
    """
    return "\n".join(_table(*found) for found in all_keys(redis) if found[0].revoked_at is None)


def apply_at_start(settings: ServerSettings, url: str, say: Callable[[str], object]) -> None:
    """Apply the file that the settings name, if any. `say` receives a line for each key.

    Raises:
        KeyFileError, KeyFormError, KeyStateError, BrokerUnavailableError: see `apply_key_file`.
    """
    if not settings.keys_file:
        return
    by = f"{SETTING} at {socket.gethostname()}"
    with connect_briefly(url) as redis:
        lines, _ = apply_key_file(redis, Path(settings.keys_file), by=by)
    for line in lines:
        say(line)


def _file_key(path: Path, name: str, table: object) -> FileKey:
    place = f"{path}: [keys.{visible(name)}]"
    if not isinstance(table, dict):
        raise KeyFormError(f"{place}: must be a table.")
    if "name" in table:
        raise KeyFormError(f"{place}: name: it stands in the brackets already.")
    return FileKey.of(place, name=name, **table)


def _refuse_same_secrets(path: Path, keys: list[FileKey]) -> None:
    names: dict[str, str] = {}
    for key in keys:
        other = names.setdefault(key.secret_sha256, key.name)
        if other != key.name:
            raise KeyFormError(
                f"{path}: [keys.{key.name}]: secret_sha256: it is that of [keys.{other}] as well."
            )


def _apply(keys: KeyStore, path: Path, wanted: FileKey) -> str:
    """Apply one key, and say what was done."""
    terms = {name: value for name, value in wanted if name in Terms.model_fields}
    old = keys.holder(wanted.name)
    known = keys.secret(wanted.secret_sha256)
    if known is not None and (old is None or old.key_id != known.key_id):
        return _explain_foreign(keys, path, wanted, known)
    if old is None:
        key = Key.of(
            key_id=uuid4().hex,
            created_at=keys.step.now(),
            source="file",
            charged=wanted.credits_charged,
            **terms,
        )
        keys.put_secret(Secret(wanted.secret_sha256, key.key_id))
        changes = keys.put(key.granted_in_all(wanted.credits_granted), None, "apply")
        return "created; " + "; ".join(map(str, changes))
    key = old.replace(source="file", **terms).granted_in_all(wanted.credits_granted)
    also = []
    if known is None or known.ends_at is not None:
        also = [keys.replace_secret(old, wanted.secret_sha256, wanted.grace)]
    changes = keys.put(key, old, "apply", *also)
    return "; ".join(map(str, changes)) or "unchanged"


def _explain_foreign(keys: KeyStore, path: Path, wanted: FileKey, known: Secret) -> str:
    """A key that was revoked stays revoked; the secret of another live key is an error."""
    owner = keys.key(known.key_id)
    if owner is not None and owner.revoked_at is not None:
        return (
            f"revoked on {written(owner.revoked_at)}, and stays so; with another "
            "secret_sha256 it is a new key"
        )
    name = visible(owner.name if owner else known.key_id)
    raise KeyStateError(
        f"{path}: [keys.{wanted.name}]: secret_sha256: it is that of the key `{name}`. To rename "
        f"that key, first type `mochi-server keys set '{name}' --name '{wanted.name}'`."
    )


def _table(key: Key, secrets: Iterable[Secret]) -> str:
    fields = {
        "secret_sha256": next(each.digest for each in secrets if each.ends_at is None),
        "scopes": key.scopes,
        "models": key.models,
        "expires": key.expires_at,
        "credits_granted": key.granted,
        "credits_charged": key.charged or None,
        "requests_per_minute": key.requests_per_minute,
        "jobs_at_once": key.jobs_at_once,
        "monthly_cap": key.monthly_cap,
        "priority": key.priority,
    }
    lines = [f"{name} = {_toml(value)}\n" for name, value in fields.items() if value is not None]
    return f"[keys.{_toml(key.name)}]\n{''.join(lines)}"


def _toml(value: object) -> str:
    if isinstance(value, datetime):
        return written(value)
    # Strings, lists of strings and whole numbers look as in JSON.
    return f"{value:f}" if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=False)
