"""What the gateway knows of API keys: nothing that it has not asked the broker for this request."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from server.errors import ExpiredKeyError, ForbiddenError, InvalidKeyError, RevokedKeyError
from worker.billing import from_millionths
from worker.broker.batching import Batch
from worker.errors import UnknownAnswerError
from worker.store import keyspace, scripts

PREFIX = "mochi_"


class Scope(StrEnum):
    """What a key may do."""

    GENERATE = "generate"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True)
class ApiKey:
    """What a route needs to know of a key.

    Attributes:
        key_id: owner of the requests made with it.
        name: for people.
        scopes: what it may do.
        models: what it may do it with; empty: all.
        balance: the credits that it may spend; None: as many as it likes.
    """

    key_id: str
    name: str
    scopes: frozenset[str]
    models: frozenset[str] = frozenset()
    balance: Decimal | None = None

    def require(self, scope: Scope) -> None:
        """Do nothing, if the key may.

        Raises:
            ForbiddenError: naming the scope.
        """
        if scope not in self.scopes:
            raise ForbiddenError(f"This API key may not do this: it lacks the scope `{scope}`.")

    def require_model(self, model: str) -> None:
        """Do nothing, if the key may use the model.

        Raises:
            ForbiddenError: naming the models that it may use.
        """
        if self.models and model not in self.models:
            allowed = ", ".join(f"`{name}`" for name in sorted(self.models))
            raise ForbiddenError(
                f"This API key may not use the model `{model}`; it may use {allowed}."
            )


class KeyLookup:
    """The gateway's lookup of keys."""

    def __init__(self, redis: Redis) -> None:
        self._find = redis.register_script(scripts.source("find_keys"))
        self._lookups = Batch(self._look_up)

    async def find(self, secret: str) -> ApiKey:
        """The key with this secret, as it is now.

        Raises:
            InvalidKeyError: there is none, or it is good no more.
            BrokerUnavailableError: nobody can tell.
        """
        match await self._lookups.ask(digest(secret)):
            case "unknown":
                raise InvalidKeyError
            case "revoked":
                raise RevokedKeyError
            case "expired":
                raise ExpiredKeyError
            case key_id, name, scopes, models, balance:
                return ApiKey(
                    key_id=key_id,
                    name=name,
                    scopes=frozenset(scopes.split()),
                    models=frozenset(models.split()),
                    balance=None if balance is None else from_millionths(int(balance)),
                )
            case answer:
                raise UnknownAnswerError("find_keys", answer)

    async def _look_up(self, digests: list[str]) -> list[Any]:
        """All in one call: strangers with bad keys must not use up the connections."""
        answers: list[Any] = await self._find([keyspace.SECRETS], [keyspace.api_key(""), *digests])
        return answers


def new_secret() -> str:
    """A key that nobody has. 256 random bits need no slow hash."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
