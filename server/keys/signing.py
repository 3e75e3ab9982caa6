"""The secrets that sign the webhooks of an API key: read and rotate them.

Both functions raise NoSuchKeyError if there is no such key, KeyStateError or KeyEndedError if it is
revoked, and BrokerUnavailableError; it is then unknown whether the secret was rotated.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from redis import Redis

from server.keys.audit import Entry, Transaction, transaction
from server.keys.record import Change
from server.keys.store import KeyStore
from server.keys.times import MILLISECOND
from worker.store import keyspace
from worker.store.webhooks.deliveries import new_signing_secret, signing_secrets

_CHANGE = Change("webhook secret", "", "another")


def signing_secret(redis: Redis, name: str) -> str:
    """The current secret of a key, which is made if there is none."""
    key = transaction(redis, lambda step: KeyStore(step).find_live(name))
    return signing_secrets(redis, key.key_id)[0]


def rotate_signing_secret(redis: Redis, name: str, grace: timedelta, *, by: str = "") -> None:
    """Sign with a new secret, and for `grace` with the old one too."""
    new = new_signing_secret()

    def decide(step: Transaction) -> None:
        key = KeyStore(step).find_live(name)
        current = keyspace.webhook_secret(key.key_id)
        previous = keyspace.old_webhook_secret(key.key_id)
        old: Any = step.read.get(current)
        step.write("SET", current, new)
        if old and grace:
            step.write("SET", previous, old, "PX", str(round(grace / MILLISECOND)))
        else:
            step.write("DEL", previous)
        step.note(Entry("rotate webhook secret", key.name, (_CHANGE,), key.key_id))

    transaction(redis, decide, by=by)
