"""API keys: made once, shown once, kept as a hash in the broker, looked up on every request."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from enum import StrEnum
from typing import cast
from uuid import uuid4

import redis.asyncio
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis import Redis

from server.errors import ForbiddenError, InvalidKeyError, KeyNameError
from worker import keyspace
from worker.batch import Batch
from worker.connection import broker_errors

PREFIX = "mochi_"
REMEMBER_SECONDS = 1.0
"""A key that was good is taken for good so long; it spares most lookups of a polling client."""
MOST_REMEMBERED = 10_000
MOST_SHARE = 100


class Scope(StrEnum):
    """What a key may do."""

    GENERATE = "generate"
    READ = "read"


class ApiKey(BaseModel):
    """What is known of a key. Not its secret.

    Attributes:
        key_id: owner of the requests made with it.
        name: for people.
        scopes: what it may do.
        share: turns in the queue for each one of a key whose share is 1.
        created_at: seconds since 1970.
    """

    model_config = ConfigDict(frozen=True)

    key_id: str
    name: str = Field(pattern=r"^[\w .@-]{1,64}$")
    scopes: frozenset[Scope] = frozenset(Scope)
    share: int = Field(default=1, ge=1, le=MOST_SHARE)
    created_at: float

    def require(self, scope: Scope) -> None:
        """Do nothing, if the key may.

        Raises:
            ForbiddenError: naming the scope.
        """
        if scope not in self.scopes:
            raise ForbiddenError(f"This API key may not do this: it lacks the scope `{scope}`.")


def new_secret() -> str:
    """A key that nobody has. 256 random bits need no slow hash."""
    return PREFIX + secrets.token_urlsafe(32)


def register_key(
    redis: Redis, secret: str, name: str, scopes: frozenset[Scope], now: float, *, share: int = 1
) -> None:
    """Let `secret` in from now on. Only its hash is kept.

    Raises:
        KeyNameError: the name is not fit to be shown in a table.
        BrokerUnavailableError: it is not let in.
    """
    try:
        key = ApiKey(key_id=uuid4().hex, name=name, scopes=scopes, share=share, created_at=now)
    except ValidationError:
        raise KeyNameError(name) from None
    with broker_errors():
        redis.hset(keyspace.API_KEYS, _digest(secret), key.model_dump_json())


def create_key(
    redis: Redis, name: str, scopes: frozenset[Scope], now: float, *, share: int = 1
) -> str:
    """Make a key and return its secret, which nobody can look up afterwards.

    Raises:
        KeyNameError, BrokerUnavailableError: see `register_key`.
    """
    secret = new_secret()
    register_key(redis, secret, name, scopes, now, share=share)
    return secret


def any_key(redis: Redis) -> bool:
    """Whether there is a key at all."""
    with broker_errors():
        return bool(redis.exists(keyspace.API_KEYS))


def is_registered(redis: Redis, secret: str) -> bool:
    """Whether a key is let in."""
    with broker_errors():
        return bool(redis.hexists(keyspace.API_KEYS, _digest(secret)))


class Keyring:
    """The gateway's lookup of keys."""

    def __init__(
        self, redis: redis.asyncio.Redis, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis = redis
        self._lookups = Batch(self._look_up)
        self._monotonic = monotonic
        self._remembered: dict[str, tuple[float, ApiKey]] = {}

    async def find(self, secret: str) -> ApiKey:
        """The key with this secret.

        Raises:
            InvalidKeyError: there is none.
            BrokerUnavailableError: nobody can tell.
        """
        digest = _digest(secret)
        known = self._remembered.get(digest)
        if known is not None and self._monotonic() < known[0]:
            return known[1]
        stored = await self._lookups.ask(digest)
        if stored is None:
            self._remembered.pop(digest, None)
            raise InvalidKeyError
        key = ApiKey.model_validate_json(stored)
        if len(self._remembered) >= MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[digest] = (self._monotonic() + REMEMBER_SECONDS, key)
        return key

    async def _look_up(self, digests: list[str]) -> list[str | None]:
        """All in one call: strangers with bad keys must not use up the connections."""
        return cast(list[str | None], await self._redis.hmget(keyspace.API_KEYS, digests))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
