"""Deliveries: what is owed to those who want to be told of a request's end.

A delivery comes into being in the same step as the end (`enqueue_delivery` in lua/common.lua), and
is due until it is delivered or given up. Any number of senders may take what is due: each is leased
to one of them, and due again when that one has died. So it is made at least once, and says each
time which request it is about.

RQ has no part in it: what brings back a job of a dead worker there are registries, a scheduler
and a lock, which our workers do without, and its schedule would not be one step with the end.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any

import redis.asyncio
from redis import Redis

from worker.broker.connection import broker_errors
from worker.job import Job
from worker.store import keyspace, scripts
from worker.store.answers import outcome, pairs, was_done

PAUSES = (5, 5 * 60, 30 * 60, 2 * 60 * 60, 5 * 60 * 60, 10 * 60 * 60)
"""Seconds from one attempt to the next, without the jitter."""
MOST_ATTEMPTS = len(PAUSES) + 1
JITTER = 0.2
"""At most so much is added to a pause: what failed together does not come again together."""
LEASE_SECONDS = 30.0
"""Longer than any attempt."""
MOST_OF_OWNER = 8
"""Attempts at once, by one sender: a receiver or a name server that hangs holds up its owner's
alone."""
SECRET_PREFIX = "whsec_"  # noqa: S105 (no secret)
SECRET_BYTES = 32


class State(StrEnum):
    """What has become of a delivery."""

    DUE = "due"
    """It will be tried, or is."""
    DELIVERED = "delivered"
    """Somebody has said that he has it."""
    GIVEN_UP = "given_up"
    """It will not be tried any more."""


@dataclass(frozen=True)
class Delivery:
    """One, as it was when it was read.

    Attributes:
        request_id: the request; also the delivery's own id.
        owner: id of the API key.
        state: see `State`.
        url: where to; may hold a secret of the receiver's.
        attempts: that were begun.
        before: of these, before it was last replayed.
        created_at: the end of the request, in ms by the broker's clock.
        expires_at: when its record goes, or went.
        log: time in ms and outcome of each attempt.
        record: of the request, at its end.
        due_at: when it is tried next, in ms; None when it is not.
    """

    request_id: str
    owner: str
    state: State
    url: str
    attempts: int
    before: int
    created_at: int
    expires_at: int
    log: tuple[tuple[int, str], ...]
    record: Mapping[str, str]
    due_at: int | None = None

    @classmethod
    def read(
        cls, request_id: str, fields: Mapping[str, str], due_at: float | None = None
    ) -> Delivery:
        """From the hash that the broker keeps."""
        lines = (line.partition(" ") for line in fields.get("log", "").split("\n") if line)
        return cls(
            request_id=request_id,
            owner=fields["owner"],
            state=State(fields["state"]),
            url=fields["url"],
            attempts=int(fields["attempts"]),
            before=int(fields["before"]),
            created_at=int(fields["created_at"]),
            expires_at=int(fields["expires_at"]),
            log=tuple((int(at), outcome) for at, _, outcome in lines),
            record={name[1:]: value for name, value in fields.items() if name.startswith(":")},
            due_at=None if due_at is None else int(due_at),
        )

    @property
    def job(self) -> Job:
        """The request as it ended."""
        return Job.from_record(self.request_id, self.record, expires_at=self.expires_at)

    @property
    def base_url(self) -> str:
        """Scheme and host of the links in what is sent."""
        return self.record["webhook_base"]

    def pause(self, random: Random) -> float | None:
        """Seconds until the attempt after the present one; None: there is none."""
        number = self.attempts - self.before
        if number >= MOST_ATTEMPTS:
            return None
        return PAUSES[number - 1] * (1 + JITTER * random.random())


class Deliveries:
    """A sender's side. Every method raises BrokerUnavailableError when the broker is away."""

    def __init__(self, redis: redis.asyncio.Redis, *, retention_seconds: float) -> None:
        self._redis = redis
        self._retention_ms = round(retention_seconds * 1000)
        self._take = redis.register_script(scripts.source("take_webhooks"))
        self._note = redis.register_script(scripts.source("note_webhook"))

    async def take(self, most: int, busy: Mapping[str, int]) -> list[Delivery]:
        """Some that are due, for this sender alone until the lease is over.

        Args:
            most: how many.
            busy: owners, and how many of theirs this sender is at.
        """
        with broker_errors():
            found: list[Any] = await self._take(
                keyspace.for_scripts(),
                [
                    "",
                    most,
                    round(LEASE_SECONDS * 1000),
                    MOST_ATTEMPTS,
                    self._retention_ms,
                    MOST_OF_OWNER,
                    *(part for each in busy.items() for part in each),
                ],
            )
        return [
            Delivery.read(request_id, dict(pairs(fields))) for request_id, fields in pairs(found)
        ]

    async def note(
        self, delivery: Delivery, state: State, outcome: str, pause: float = 0.0
    ) -> bool:
        """Say what became of the present attempt, in a line. False when it is not this sender's."""
        pause_ms = round(pause * 1000)
        with broker_errors():
            noted = await self._note(
                keyspace.for_scripts(),
                [
                    delivery.request_id,
                    delivery.attempts,
                    state,
                    " ".join(outcome.split()),
                    pause_ms,
                    self._retention_ms,
                ],
            )
        return was_done("note_webhook", noted)

    async def secrets(self, owner: str) -> list[str]:
        """What signs deliveries for `owner`; two for a while after a rotation."""
        pipeline = self._redis.pipeline()
        _ask_for_secrets(pipeline, owner)
        with broker_errors():
            return _read_secrets(await pipeline.execute())


def all_deliveries(redis: Redis) -> list[Delivery]:
    """What is kept of deliveries, the oldest first.

    Raises:
        BrokerUnavailableError: nobody can tell.
    """
    with broker_errors():
        names = redis.scan_iter(f"{keyspace.WEBHOOK}*", 1000)
        ids = sorted({str(name).removeprefix(keyspace.WEBHOOK) for name in names})
        pipeline = redis.pipeline(transaction=False)
        for request_id in ids:
            pipeline.hgetall(keyspace.WEBHOOK + request_id)
        found = dict(zip(ids, pipeline.execute(), strict=True))
        found = {request_id: fields for request_id, fields in found.items() if fields}
        for request_id, fields in found.items():  # those that have not expired meanwhile
            pipeline.zscore(keyspace.webhooks(fields["owner"]), request_id)
        dues = pipeline.execute()
    deliveries = (
        Delivery.read(request_id, fields, due_at)
        for (request_id, fields), due_at in zip(found.items(), dues, strict=True)
    )
    return sorted(deliveries, key=lambda delivery: delivery.created_at)


class Replay(StrEnum):
    """What became of the wish to deliver once more."""

    DUE = "due"
    REVOKED = "revoked"
    """Its API key was revoked: nothing leaves for that any more."""
    UNKNOWN = "unknown"


def replay(redis: Redis, request_id: str) -> Replay:
    """Let a delivery be made once more, whatever became of it.

    Raises:
        BrokerUnavailableError: it is not known whether it will be.
    """
    script = redis.register_script(scripts.source("replay_webhook"))
    with broker_errors():
        answer = script(keyspace.for_scripts(), [request_id])
    return Replay.UNKNOWN if answer is None else outcome(Replay, "replay_webhook", answer)


def signing_secrets(redis: Redis, owner: str) -> list[str]:
    """See `Deliveries.secrets`.

    Raises:
        BrokerUnavailableError: they cannot be had.
    """
    pipeline = redis.pipeline()
    _ask_for_secrets(pipeline, owner)
    with broker_errors():
        return _read_secrets(pipeline.execute())


def new_signing_secret() -> str:
    """In the form of Standard Webhooks."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _ask_for_secrets(pipeline: Any, owner: str) -> None:  # noqa: ANN401 (of either client)
    """The first who asks draws it."""
    name = keyspace.webhook_secret(owner)
    pipeline.set(name, new_signing_secret(), nx=True)
    pipeline.mget(name, keyspace.old_webhook_secret(owner))


def _read_secrets(answers: list[Any]) -> list[str]:
    return [str(secret) for secret in answers[-1] if secret]
