"""Looks API keys up in the broker, for every request: nothing is cached."""

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
ADMIN_REMEDY = " The operator creates one with `mochi-server keys create prometheus --scope admin`."


class Scope(StrEnum):
    """Permissions of a key."""

    GENERATE = "generate"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True)
class ApiKey:
    """An authenticated key.

    Attributes:
        key_id: owner of the requests made with it.
        models: models that it may use; empty: all.
        balance: credits that it may spend; None: unlimited.
        monthly_cap: credits charged at most in a calendar month; None: no limit.
        reserved: credits held for requests that wait or run.
    """

    key_id: str
    name: str
    scopes: frozenset[str]
    models: frozenset[str] = frozenset()
    balance: Decimal | None = None
    monthly_cap: Decimal | None = None
    reserved: Decimal = Decimal(0)

    def require(self, scope: Scope) -> None:
        """Raise ForbiddenError if the key lacks the scope."""
        if scope not in self.scopes:
            raise ForbiddenError(
                f"This API key may not do this: it lacks the scope `{scope}`."
                + (ADMIN_REMEDY if scope == Scope.ADMIN else "")
            )

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models

    def require_model(self, model: str) -> None:
        """Raise ForbiddenError, which names the models of the key, if this is none of them."""
        if not self.may_use(model):
            allowed = ", ".join(f"`{name}`" for name in sorted(self.models))
            raise ForbiddenError(
                f"This API key may not use the model `{model}`; it may use {allowed}."
            )


class KeyLookup:
    """Authenticates secrets at the broker."""

    def __init__(self, redis: Redis) -> None:
        self._find = redis.register_script(scripts.source("find_keys"))
        self._lookups = Batch(self._look_up)

    async def find(self, sha256: str) -> ApiKey:
        """The live key whose secret has this `digest`.

        Raises:
            InvalidKeyError: it is unknown, revoked or expired.
            BrokerUnavailableError: the broker does not answer.
        """
        match await self._lookups.ask(sha256):
            case "unknown":
                raise InvalidKeyError
            case "revoked":
                raise RevokedKeyError
            case "expired":
                raise ExpiredKeyError
            case key_id, name, scopes, models, balance, monthly_cap, reserved:
                return ApiKey(
                    key_id=key_id,
                    name=name,
                    scopes=frozenset(scopes.split()),
                    models=frozenset(models.split()),
                    balance=None if balance is None else from_millionths(int(balance)),
                    monthly_cap=None if monthly_cap is None else from_millionths(int(monthly_cap)),
                    reserved=from_millionths(int(reserved or 0)),
                )
            case answer:
                raise UnknownAnswerError("find_keys", answer)

    async def _look_up(self, digests: list[str]) -> list[Any]:
        """One round trip for all: requests with bad keys must not exhaust the connections."""
        answers: list[Any] = await self._find([keyspace.SECRETS], [keyspace.API_KEY, *digests])
        return answers


def new_secret() -> str:
    """A new key: 256 random bits, so a fast hash is enough to store it."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
