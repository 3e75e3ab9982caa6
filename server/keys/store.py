"""API keys in the broker: create, change, rotate, revoke. Each is one transaction.

A key is a hash under its id, which stays after a revocation, as its usage refers to it; an entry
per secret, by its SHA-256; and, until it is revoked, an entry for its name.

`by` is the actor in the audit log; empty: the user of this process. Every function raises
BrokerUnavailableError when the broker does not answer; it is then unknown whether it was done.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import uuid4

from redis import Redis

from server.errors import CommandError
from server.keys.audit import Entry, Transaction, transaction
from server.keys.lookup import digest, new_secret
from server.keys.record import AMOUNTS, Change, Key, NewKey
from server.keys.times import from_ms, to_ms, written
from worker.broker.connection import broker_errors
from worker.store import keyspace

GRACE = timedelta(days=1)
"""How long the old secret is accepted after a rotation, by default."""


class KeyExistsError(CommandError):
    """The name is taken."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"There is a key `{name}` already: choose another name, or `mochi-server keys rotate` "
            "gives that one another secret."
        )


class NoSuchKeyError(CommandError):
    """No key has this name or id."""


class KeyStateError(CommandError):
    """The key's state does not allow this."""


@dataclass(frozen=True)
class Secret:
    """The stored form of a secret: its SHA-256. After a rotation a key has two for a while.

    `ends_at` is None when it ends with the key.
    """

    digest: str
    key_id: str
    ends_at: datetime | None = None

    @classmethod
    def read(cls, sha256: str, text: str) -> Secret:
        key_id, _, ends = text.partition(" ")
        return cls(sha256, key_id, from_ms(int(ends)) if ends else None)

    def __str__(self) -> str:
        return f"{self.key_id} {to_ms(self.ends_at)}" if self.ends_at else self.key_id


class KeyStore:
    """The keys, read and written within one transaction.

    Requests change balances at any time, so balances are incremented and never overwritten.
    """

    def __init__(self, step: Transaction) -> None:
        self.step = step
        self._records: dict[str, dict[str, str]] = {}

    def key(self, key_id: str) -> Key | None:
        """The key with this id, revoked or not."""
        record: Any = self.step.read.hgetall(keyspace.API_KEY + key_id)
        self._records[key_id] = record
        return Key.read(key_id, record) if record else None

    def holder(self, name: str) -> Key | None:
        """The live key with this name."""
        key_id: Any = self.step.read.hget(keyspace.KEY_NAMES, name)
        return self.key(key_id) if key_id else None

    def live_keys(self) -> list[Key]:
        """All live keys, sorted by name."""
        names: Any = self.step.read.hgetall(keyspace.KEY_NAMES)
        found = (self.key(key_id) for _, key_id in sorted(names.items()))
        return [key for key in found if key is not None]

    def find(self, name: str) -> Key:
        """The key with this name or id; a revoked key has only its id.

        Raises:
            NoSuchKeyError: there is no such key.
        """
        key = self.holder(name) or self.key(name)
        if key is None:
            names: Any = self.step.read.hkeys(keyspace.KEY_NAMES)
            close = difflib.get_close_matches(name, names, n=1)
            listing = "`mochi-server keys list --all` shows all, and the ids of revoked ones."
            hint = f"Did you mean `{close[0]}`?" if close else listing
            raise NoSuchKeyError(f"There is no key `{name}`. {hint}")
        return key

    def find_live(self, name: str) -> Key:
        """The live key with this name or id.

        Raises:
            NoSuchKeyError, KeyStateError: there is no such key, or it is revoked.
        """
        key = self.find(name)
        if key.revoked_at is not None:
            raise KeyStateError(
                f"The key {key.key_id} (`{key.name}`) was revoked on {written(key.revoked_at)}, "
                "permanently. Create another with `mochi-server keys create`."
            )
        return key

    def secret(self, sha256: str) -> Secret | None:
        text: Any = self.step.read.hget(keyspace.SECRETS, sha256)
        return Secret.read(sha256, text) if text else None

    def secrets_of(self, key_id: str) -> list[Secret]:
        stored: Any = self.step.read.hgetall(keyspace.SECRETS)
        return [secret for secret in _secrets(stored) if secret.key_id == key_id]

    def check_name_is_free(self, name: str) -> None:
        if self.step.read.hexists(keyspace.KEY_NAMES, name):
            raise KeyExistsError(name)

    def put(self, key: Key, old: Key | None, act: str, *also: Change) -> list[Change]:
        """Write the differences from `old`, if any, and an audit entry. Returns the changes.

        A revocation deletes what only this key could use.
        """
        changes = [*key.changes_since(old), *also]
        if not changes and old is not None:
            return []
        before = old.record() if old else {}
        after = key.record()
        if old is not None and old.balance is None and key.balance is not None:
            # A request may change the balance that is being replaced.
            self.step.hold(keyspace.API_KEY + key.key_id, self._records[key.key_id])
        self._rewrite(keyspace.API_KEY + key.key_id, before, after)
        if old and not old.revoked_at and (old.name != key.name or key.revoked_at):
            self.step.write("HDEL", keyspace.KEY_NAMES, old.name, first=True)
        if old and not old.revoked_at and key.revoked_at:
            for name in keyspace.gone_with_key(key.key_id):
                self.step.write("DEL", name)
        if not key.revoked_at:
            self.step.write("HSET", keyspace.KEY_NAMES, key.name, key.key_id)
        self.step.note(Entry(act, key.name, tuple(changes), key.key_id))
        return changes

    def _rewrite(self, name: str, before: dict[str, str], after: dict[str, str]) -> None:
        gone = sorted(before.keys() - after.keys())
        if gone:
            self.step.write("HDEL", name, *gone)
        for field, text in sorted(after.items() - before.items()):
            if field in AMOUNTS and field in before:
                self.step.write("HINCRBY", name, field, str(int(text) - int(before[field])))
            else:
                self.step.write("HSET", name, field, text)

    def put_secret(self, secret: Secret) -> None:
        self.step.write("HSET", keyspace.SECRETS, secret.digest, str(secret))

    def drop_secret(self, secret: Secret) -> None:
        self.step.write("HDEL", keyspace.SECRETS, secret.digest, first=True)

    def replace_secret(self, key: Key, sha256: str, grace: timedelta) -> Change:
        """Add a secret. The current one ends after `grace`, an older one now."""
        ends_at = self.step.now() + grace
        for secret in self.secrets_of(key.key_id):
            if secret.ends_at is not None:
                self.drop_secret(secret)
            else:
                self.put_secret(Secret(secret.digest, key.key_id, ends_at))
        self.put_secret(Secret(sha256, key.key_id))
        return Change("secret", "", f"another; the one before ends at {written(ends_at)}")


def create_key(redis: Redis, new: NewKey, secret: str = "", *, by: str = "") -> str:
    """Create a key and return its secret, by default a new one. Only its hash is stored.

    Raises:
        KeyExistsError: the name is taken.
    """
    secret = secret or new_secret()
    key_id = uuid4().hex

    def decide(step: Transaction) -> None:
        keys = KeyStore(step)
        keys.check_name_is_free(new.name)
        terms = dict(new)
        credits_ = terms.pop("credits")
        key = Key.of(key_id=key_id, created_at=step.now(), **terms)
        keys.put(key.granted_in_all(credits_), None, "create")
        keys.put_secret(Secret(digest(secret), key_id))

    transaction(redis, decide, by=by)
    return secret


def rotate_key(redis: Redis, name: str, *, grace: timedelta = GRACE, by: str = "") -> str:
    """Give a key a new secret and return it. The current one is accepted for `grace`.

    At most two secrets are accepted: an older one ends at once.

    Raises:
        NoSuchKeyError, KeyStateError: there is no such key, or it was revoked.
    """
    secret = new_secret()

    def decide(step: Transaction) -> None:
        keys = KeyStore(step)
        key = keys.find_live(name)
        change = keys.replace_secret(key, digest(secret), grace)
        keys.put(key, key, "rotate", change)

    transaction(redis, decide, by=by)
    return secret


def revoke_key(redis: Redis, name: str, *, by: str = "") -> Key:
    """Revoke a key and free its name. Idempotent by id.

    Raises:
        NoSuchKeyError: there is no such key.
    """

    def decide(step: Transaction) -> Key:
        keys = KeyStore(step)
        key = keys.find(name)
        return key if key.revoked_at else revoke(keys, key)

    return transaction(redis, decide, by=by)


def revoke(keys: KeyStore, key: Key) -> Key:
    """Revoke within a transaction."""
    revoked = key.model_copy(update={"revoked_at": keys.step.now()})
    keys.put(revoked, key, "revoke")
    return revoked


def change_key(
    redis: Redis, name: str, edit: Callable[[Key], Key], *, by: str = ""
) -> list[Change]:
    """Map a key to its new state with `edit`. Returns the changes.

    Raises:
        NoSuchKeyError, KeyStateError: there is no such key, or it was revoked.
        KeyExistsError: its new name is taken.
    """

    def decide(step: Transaction) -> list[Change]:
        keys = KeyStore(step)
        old = keys.find_live(name)
        key = edit(old)
        if key.name != old.name:
            keys.check_name_is_free(key.name)
        return keys.put(key, old, "set")

    return transaction(redis, decide, by=by)


def all_keys(redis: Redis) -> list[tuple[Key, list[Secret]]]:
    """All keys with their secrets, sorted by name; revoked keys come last."""
    prefix = keyspace.API_KEY
    with broker_errors():
        ids = {name.removeprefix(prefix) for name in redis.scan_iter(f"{prefix}*", 1000)}
        pipeline = redis.pipeline(transaction=False)
        for key_id in ids:
            pipeline.hgetall(keyspace.API_KEY + key_id)
        pipeline.hgetall(keyspace.SECRETS)
        *records, stored = cast("list[dict[str, str]]", pipeline.execute())
    keys = [Key.read(key_id, record) for key_id, record in zip(ids, records, strict=True) if record]
    secrets: dict[str, list[Secret]] = {}
    for secret in _secrets(stored):
        secrets.setdefault(secret.key_id, []).append(secret)
    keys.sort(key=lambda key: (key.revoked_at is not None, key.name, key.created_at))
    return [(key, secrets.get(key.key_id, [])) for key in keys]


def one_key(redis: Redis, name: str) -> tuple[Key, list[Secret]]:
    """The key with this name or id, and its secrets.

    Raises:
        NoSuchKeyError: there is no such key.
    """

    def decide(step: Transaction) -> tuple[Key, list[Secret]]:
        keys = KeyStore(step)
        key = keys.find(name)
        return key, keys.secrets_of(key.key_id)

    return transaction(redis, decide)


def any_key(redis: Redis) -> bool:
    """Whether there is a live key."""
    with broker_errors():
        return bool(redis.exists(keyspace.KEY_NAMES))


def is_registered(redis: Redis, secret: str) -> bool:
    """Whether the secret belongs to a live key."""
    with broker_errors():
        stored: Any = redis.hget(keyspace.SECRETS, digest(secret))
        if not stored:
            return False
        key_id = Secret.read("", stored).key_id
        return not redis.hexists(keyspace.API_KEY + key_id, "revoked_at")


def _secrets(stored: Mapping[str, str]) -> list[Secret]:
    return [Secret.read(sha256, text) for sha256, text in stored.items()]
