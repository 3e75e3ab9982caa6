"""Daily usage of each API key. The scripts that change records count it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Self

from redis.asyncio import Redis

from worker.billing import from_millionths
from worker.broker.connection import Client, broker_errors, broker_time
from worker.job import FAILURES, NOT_FAILURES
from worker.store import keyspace

KEPT_DAYS = 400
_FIRST_DAY = date(1970, 1, 1)
_METRICS = ("requests", "completed", "gpu_ms", "charged", "energy_mj", "cached", *FAILURES)


@dataclass(frozen=True)
class Usage:
    """Of one key on one day in UTC. Requests count on the day of their submit, ends on theirs.

    Attributes:
        day: in UTC.
        owner: id of the key.
        requests: accepted.
        completed: ended with a video.
        cancelled: ended so.
        blocked: ended by moderation.
        failed: ended otherwise, by error code.
        gpu_seconds: of all runs, including lost and cancelled ones.
        credits: charged.
        energy_joules: of all runs but those whose worker died; None where no run told.
        cached: of the completed, those with the video of another request's run; None without any.
    """

    day: date
    owner: str
    requests: int
    completed: int
    cancelled: int
    blocked: int
    failed: dict[str, int]
    gpu_seconds: float
    credits: Decimal
    energy_joules: float | None = None
    cached: int | None = None

    @classmethod
    def of(cls, day: date, owner: str, sums: Mapping[str, int]) -> Self:
        return cls(
            day=day,
            owner=owner,
            requests=sums.get("requests", 0),
            completed=sums.get("completed", 0),
            cancelled=sums.get("cancelled", 0),
            blocked=sums.get("content_blocked", 0),
            failed={c: sums[c] for c in FAILURES if c in sums and c not in NOT_FAILURES},
            gpu_seconds=sums.get("gpu_ms", 0) / 1000,
            credits=from_millionths(sums.get("charged", 0)),
            energy_joules=sums["energy_mj"] / 1000 if "energy_mj" in sums else None,
            cached=sums.get("cached"),
        )


@dataclass(frozen=True)
class Period:
    """From the first day to the last, both included."""

    first: date
    last: date

    @classmethod
    def latest(cls, days: int, today: date) -> Self:
        """The last `days` up to `today`, which must be by the broker's clock."""
        return cls(today - timedelta(days=days - 1), today)

    @property
    def days(self) -> list[date]:
        """None when the period ends before it begins."""
        return [self.first + timedelta(days=n) for n in range((self.last - self.first).days + 1)]

    @property
    def keys(self) -> list[str]:
        """The Redis key of each day."""
        return [f"{keyspace.USAGE}{(day - _FIRST_DAY).days}" for day in self.days]

    def usages(self, kept: Iterable[Mapping[str, str]]) -> list[Usage]:
        """From the hashes of `keys`, by day and owner; days without usage are left out."""
        return [
            Usage.of(day, owner, sums)
            for day, fields in zip(self.days, kept, strict=True)
            for owner, sums in sorted(_by_owner(fields).items())
        ]

    def usages_of(self, owner: str, kept: Iterable[Sequence[str | None]]) -> list[Usage]:
        """The same for one owner, from the values of its `_METRICS` in each hash."""
        return [
            Usage.of(day, owner, sums)
            for day, amounts in zip(self.days, kept, strict=True)
            if (sums := {name: int(n) for name, n in zip(_METRICS, amounts, strict=True) if n})
        ]


class UsageStore:
    """The gateway's side. Every method raises BrokerUnavailableError when the broker is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def today(self) -> date:
        return (await broker_time(self._redis)).date()

    async def of_owner(self, owner: str, period: Period) -> list[Usage]:
        pipeline = self._redis.pipeline(transaction=False)
        for key in period.keys:
            pipeline.hmget(key, [f"{owner} {metric}" for metric in _METRICS])
        with broker_errors():
            return period.usages_of(owner, await pipeline.execute())

    async def charged_this_month(self, owner: str) -> Decimal:
        """Credits charged in the calendar month of the broker's clock, as scripts count them."""
        today = await self.today()
        month = Period(today.replace(day=1), today.replace(day=1) + timedelta(days=31))
        used = await self.of_owner(owner, month)
        return sum(
            (each.credits for each in used if each.day.month == today.month), start=Decimal(0)
        )

    async def of_all(self, period: Period) -> list[Usage]:
        """A day at a time, so that other commands do not wait for all of them."""
        with broker_errors():
            kept: list[Any] = [await self._redis.hgetall(key) for key in period.keys]
        return await asyncio.to_thread(period.usages, kept)


def read_usages(redis: Client, period: Period) -> list[Usage]:
    """The usage of every key in a period. Raises BrokerUnavailableError."""
    pipeline = redis.pipeline(transaction=False)
    for key in period.keys:
        pipeline.hgetall(key)
    with broker_errors():
        return period.usages(pipeline.execute())


def _by_owner(fields: Mapping[str, str]) -> dict[str, dict[str, int]]:
    owners: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for name, amount in fields.items():
        owner, _, metric = name.rpartition(" ")
        owners[owner][metric] = int(amount)
    return owners
