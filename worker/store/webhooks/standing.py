"""Standing webhooks: URLs of a key that receive the end of each request, and notices of its budget.

The script that ends a request queues their deliveries, as that to the request's own webhook URL.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from worker.broker.connection import broker_errors
from worker.errors import KeyEndedError
from worker.store import keyspace, scripts
from worker.store.scripts import outcome, was_done
from worker.store.webhooks.deliveries import Log, read_log, request_of

MOST_WEBHOOKS = 10
"""Of one key."""


@dataclass(frozen=True)
class Webhook:
    """A standing webhook.

    Attributes:
        url: of the receiver; may hold a secret.
        base: scheme and host of the links in what is sent.
        types: names of events, as the client gave them.
        is_heard: one of them stands for the end of a request.
        created_at: ms since 1970 by the broker's clock; the script that adds the webhook sets it.
    """

    url: str
    base: str
    types: list[str]
    is_heard: bool
    created_at: int = 0

    @classmethod
    def read(cls, text: str) -> Webhook:
        """From JSON. Fields of a later version are ignored."""
        kept = json.loads(text)
        return cls(**{field.name: kept[field.name] for field in fields(cls)})


class Put(StrEnum):
    """Outcome of adding or changing a webhook."""

    ADDED = "added"
    CHANGED = "changed"
    TOO_MANY = "too_many"
    """The key has `MOST_WEBHOOKS`."""
    UNKNOWN = "unknown"
    """The key has no such webhook."""
    TAKEN = "taken"
    """Another webhook of the key has the URL."""


class StandingWebhooks:
    """Every method raises BrokerUnavailableError when the broker does not answer."""

    def __init__(self, redis: Redis, *, retention_seconds: float) -> None:
        self._redis = redis
        self._retention_ms = round(retention_seconds * 1000)
        self._delete = redis.register_script(scripts.source("delete_webhook"))
        self._put = redis.register_script(scripts.source("put_webhook"))

    async def of_owner(self, owner: str) -> dict[str, Webhook]:
        """By id, the oldest first."""
        with broker_errors():
            found: Any = await self._redis.hgetall(keyspace.STANDING + owner)
        webhooks = {webhook_id: Webhook.read(text) for webhook_id, text in found.items()}
        return dict(sorted(webhooks.items(), key=lambda item: item[1].created_at))

    async def add(self, owner: str, webhook: Webhook) -> tuple[Put, str]:
        """Add a webhook, or change the one that has its URL. Returns the id, too.

        Raises:
            KeyEndedError: the key was revoked.
        """
        return await self._write(owner, "add", str(uuid4()), webhook)

    async def change(self, owner: str, webhook_id: str, webhook: Webhook) -> tuple[Put, str]:
        """Change a webhook. Waiting deliveries go where it leads now. Returns and raises as `add`.

        The id is that of another webhook when the URL is taken.
        """
        return await self._write(owner, "change", webhook_id, webhook)

    async def delete(self, owner: str, webhook_id: str) -> bool:
        """False if there is no such webhook. Its waiting deliveries are given up."""
        with broker_errors():
            deleted = await self._delete(
                keyspace.for_scripts(), ["", owner, webhook_id, self._retention_ms]
            )
        return was_done("delete_webhook", deleted)

    async def log(self, webhook_id: str) -> list[tuple[str, Log]]:
        """Request and attempts of the latest 100 deliveries, the newest first, while kept."""
        pipeline = self._redis.pipeline(transaction=False)
        with broker_errors():
            ids: Any = await self._redis.lrange(keyspace.STANDING_LOG + webhook_id, 0, -1)
            for delivery_id in ids:
                pipeline.hget(keyspace.WEBHOOK + delivery_id, "log")
            found = await pipeline.execute()
        return [
            (request_of(delivery_id), read_log(text or ""))
            for delivery_id, text in zip(ids, found, strict=True)
        ]

    async def _write(
        self, owner: str, act: str, webhook_id: str, webhook: Webhook
    ) -> tuple[Put, str]:
        given = (owner, act, webhook_id, json.dumps(asdict(webhook)))
        with broker_errors():
            answer, put_id = await self._put(
                keyspace.for_scripts(), ["", *given, MOST_WEBHOOKS, self._retention_ms]
            )
        if answer == "revoked":
            raise KeyEndedError
        return outcome(Put, "put_webhook", answer), put_id
