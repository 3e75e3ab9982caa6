"""Webhook deliveries: queue, leases and retries.

The script that ends a request also queues its deliveries and, after a charge, those of a notice of
the budget (`enqueue_delivery` in lua/common/deliveries.lua). A delivery is due until it is
delivered or given up. A sender leases it, and when that sender dies, it is due again: delivery is
at least once, always with the same id.

RQ does not carry deliveries: its retries depend on registries, a scheduler and a lock that our
workers do without, and its schedule would not be atomic with the end.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from random import Random
from typing import Any

import redis.asyncio
from redis import Redis

from worker.broker.connection import broker_errors, broker_time
from worker.errors import KeyEndedError
from worker.job import Job
from worker.store import keyspace, scripts
from worker.store.scripts import outcome, pairs, was_done

PAUSES = (5, 5 * 60, 30 * 60, 2 * 60 * 60, 5 * 60 * 60, 10 * 60 * 60)
"""Seconds between attempts, without the jitter."""
MOST_ATTEMPTS = len(PAUSES) + 1
JITTER = 0.2
"""Largest share added to a pause, so that deliveries that failed together spread out."""
LEASE_SECONDS = 30.0
"""Longer than any attempt."""
MOST_OF_OWNER = 8
"""Concurrent attempts of one sender: a receiver or name server that hangs delays only its owner."""
SECRET_PREFIX = "whsec_"  # noqa: S105 (no secret)
SECRET_BYTES = 32


class State(StrEnum):
    """State of a delivery."""

    DUE = "due"
    """Waits for an attempt, or is under way."""
    DELIVERED = "delivered"
    """The receiver answered 2xx."""
    GIVEN_UP = "given_up"
    """Has no further attempt."""


_NOTICE = "budget-"
"""Begins the ids of notices; those of requests are hexadecimal."""


def request_of(delivery_id: str) -> str:
    """The id of the request, or of a notice, as all of its deliveries share it."""
    return delivery_id.partition(":")[0]


def is_notice(request_id: str) -> bool:
    """Whether it is a notice of the budget, and no end of a request."""
    return request_id.startswith(_NOTICE)


Log = tuple[tuple[int, str], ...]
"""Time and outcome of each attempt."""


def read_log(text: str) -> Log:
    """The field `log` of a delivery."""
    lines = (line.partition(" ") for line in text.split("\n") if line)
    return tuple((int(at), outcome) for at, _, outcome in lines)


@dataclass(frozen=True)
class Notice:
    """A key's charges have come to a share of its monthly cap.

    Attributes:
        percent: that share.
        month: like 2026-11, in UTC by the broker's clock.
        ends_at: its end, in ms since 1970.
        monthly_cap, charged: in millionths of a credit; the charges of the month until then.
    """

    percent: int
    month: str
    ends_at: int
    monthly_cap: int
    charged: int

    @classmethod
    def read(cls, fields: Mapping[str, str]) -> Notice:
        numbers = ("percent", "ends_at", "monthly_cap", "charged")
        return cls(month=fields["month"], **{name: int(fields[name]) for name in numbers})


@dataclass(frozen=True)
class Delivery:
    """One delivery, as read from the broker. Times are ms by the broker's clock.

    Attributes:
        delivery_id: the id of the request or the notice; to a standing webhook, with a colon and
            that webhook's id.
        owner: id of the API key.
        state: see `State`.
        url: of the receiver; may hold a secret.
        attempts: begun so far.
        before: attempts before the last replay.
        created_at: end of the request, or the charge that a notice is about.
        expires_at: expiry of the request's record.
        log: time and outcome of each attempt.
        record: the request's record at its end; of a notice, its fields.
        event: type of a notice; empty for the end of a request.
        due_at: next attempt; None without one.
    """

    delivery_id: str
    owner: str
    state: State
    url: str
    attempts: int
    before: int
    created_at: int
    expires_at: int
    log: Log
    record: Mapping[str, str]
    event: str = ""
    due_at: int | None = None

    @classmethod
    def read(
        cls, delivery_id: str, fields: Mapping[str, str], due_at: float | None = None
    ) -> Delivery:
        numbers = ("attempts", "before", "created_at", "expires_at")
        return cls(
            delivery_id=delivery_id,
            owner=fields["owner"],
            state=State(fields["state"]),
            url=fields["url"],
            **{name: int(fields[name]) for name in numbers},
            log=read_log(fields.get("log", "")),
            record={name[1:]: value for name, value in fields.items() if name.startswith(":")},
            event=fields.get("event", ""),
            due_at=None if due_at is None else int(due_at),
        )

    @property
    def request_id(self) -> str:
        """Of a notice its own id."""
        return request_of(self.delivery_id)

    @property
    def notice(self) -> Notice:
        """Where there is an `event`."""
        return Notice.read(self.record)

    @property
    def job(self) -> Job:
        """The request as it ended."""
        return Job.from_record(
            self.request_id, self.record, expires_at=self.expires_at, seen_at=self.created_at
        )

    @property
    def base_url(self) -> str:
        """Scheme and host of the links in what is sent."""
        return self.record["webhook_base"]

    def pause(self, random: Random) -> float | None:
        """Seconds from the present attempt to the next; None after the last."""
        number = self.attempts - self.before
        if number >= MOST_ATTEMPTS:
            return None
        return PAUSES[number - 1] * (1 + JITTER * random.random())


class Deliveries:
    """The sender's side. Every method raises BrokerUnavailableError when the broker is away."""

    def __init__(self, redis: redis.asyncio.Redis, *, retention_seconds: float) -> None:
        self._redis = redis
        self._retention_ms = round(retention_seconds * 1000)
        self._take = redis.register_script(scripts.source("take_webhooks"))
        self._draw = redis.register_script(scripts.source("draw"))
        self._note = redis.register_script(scripts.source("note_webhook"))

    async def take(self, most: int, busy: Mapping[str, int]) -> list[Delivery]:
        """Lease due deliveries.

        Args:
            most: limit.
            busy: by owner, the deliveries that this sender is at.
        """
        limits = (most, round(LEASE_SECONDS * 1000), MOST_ATTEMPTS, self._retention_ms)
        of_owners = [part for each in busy.items() for part in each]
        with broker_errors():
            found: list[Any] = await self._take(
                keyspace.for_scripts(), ["", *limits, MOST_OF_OWNER, *of_owners]
            )
        return [
            Delivery.read(delivery_id, dict(pairs(fields))) for delivery_id, fields in pairs(found)
        ]

    async def note(
        self, delivery: Delivery, state: State, outcome: str, pause: float = 0.0
    ) -> bool:
        """Record the present attempt's outcome, one line. False if the lease was lost."""
        line, pause_ms = " ".join(outcome.split()), round(pause * 1000)
        arguments = (delivery.delivery_id, delivery.attempts, state, line, pause_ms)
        with broker_errors():
            noted = await self._note(keyspace.for_scripts(), [*arguments, self._retention_ms])
        return was_done("note_webhook", noted)

    async def now(self) -> datetime:
        """By the broker's clock: a receiver refuses an attempt of a gateway whose own is wrong."""
        return await broker_time(self._redis)

    async def secrets(self, owner: str) -> list[str]:
        """Signing secrets of `owner`; two for a while after a rotation.

        Raises:
            KeyEndedError: the key was revoked.
        """
        with broker_errors():
            return _known(await self._draw(*_draw_arguments(owner)))


def all_deliveries(redis: Redis) -> list[Delivery]:
    """All deliveries, the oldest first. Raises BrokerUnavailableError."""
    with broker_errors():
        names = redis.scan_iter(f"{keyspace.WEBHOOK}*", 1000)
        ids = sorted({str(name).removeprefix(keyspace.WEBHOOK) for name in names})
        pipeline = redis.pipeline(transaction=False)
        for delivery_id in ids:
            pipeline.hgetall(keyspace.WEBHOOK + delivery_id)
        found = dict(zip(ids, pipeline.execute(), strict=True))
        found = {delivery_id: fields for delivery_id, fields in found.items() if fields}
        for delivery_id, fields in found.items():  # some may have expired meanwhile
            pipeline.zscore(f"{keyspace.WEBHOOKS}:{fields['owner']}", delivery_id)
        dues = pipeline.execute()
    deliveries = (
        Delivery.read(delivery_id, fields, due_at)
        for (delivery_id, fields), due_at in zip(found.items(), dues, strict=True)
    )
    return sorted(deliveries, key=lambda delivery: delivery.created_at)


class Replay(StrEnum):
    """Outcome of `replay`."""

    DUE = "due"
    REVOKED = "revoked"
    """Its API key was revoked: nothing is delivered."""
    UNKNOWN = "unknown"


def replay(redis: Redis, delivery_id: str) -> Replay:
    """Make a delivery due again, whatever its state.

    Raises:
        BrokerUnavailableError: the outcome is unknown.
    """
    script = redis.register_script(scripts.source("replay_webhook"))
    with broker_errors():
        answer = script(keyspace.for_scripts(), [delivery_id])
    return Replay.UNKNOWN if answer is None else outcome(Replay, "replay_webhook", answer)


def signing_secrets(redis: Redis, owner: str) -> list[str]:
    """See `Deliveries.secrets`."""
    draw = redis.register_script(scripts.source("draw"))
    with broker_errors():
        return _known(draw(*_draw_arguments(owner)))


def new_signing_secret() -> str:
    """In the form of Standard Webhooks."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _draw_arguments(owner: str) -> tuple[list[str], list[str]]:
    names = [keyspace.webhook_secret(owner), keyspace.old_webhook_secret(owner)]
    return names, [new_signing_secret(), keyspace.API_KEY + owner]


def _known(found: list[str | None]) -> list[str]:
    if not found:
        raise KeyEndedError
    return [secret for secret in found if secret]
