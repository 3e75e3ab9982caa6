"""What is there now and what was counted since ever, for all gateways and workers together.

The scripts that change records count in the same step, in one hash of the broker: nothing is
counted twice, whoever dies, and every gateway shows the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis

from models.device import DeviceUse
from worker.broker.connection import broker_errors
from worker.store import keyspace, scripts
from worker.store.answers import pairs
from worker.store.presence import LiveWorker, read_all

_USE = TypeAdapter(DeviceUse)


@dataclass
class Times:
    """A histogram.

    Attributes:
        counts: of what took at most so many ms as the bound, and longer than the one before.
        longer: of what took longer than the last.
        total_ms: the sum.
    """

    counts: dict[int, int] = field(default_factory=lambda: dict.fromkeys(keyspace.BOUNDS_MS, 0))
    longer: int = 0
    total_ms: int = 0

    def add(self, bound: str, amount: int) -> None:
        """A field of the hash, as `common.lua` names it."""
        if bound == "sum":
            self.total_ms = amount
        elif bound.isdecimal() and int(bound) in self.counts:
            self.counts[int(bound)] = amount
        else:
            self.longer += amount  # also what was counted with other bounds, by another version


@dataclass(frozen=True)
class Survey:
    """One moment.

    Attributes:
        waiting: requests that are QUEUED.
        running: requests that are PROCESSING.
        oldest_seconds: how long the oldest of those that wait has waited; 0 when none does.
        workers: that are alive and take requests.
        due_webhooks: deliveries that are to be made, or made again.
        counts: a name, and what of it: how often. The empty name is that of a sum.
        times: a name, and what of it: how long.
    """

    waiting: int
    running: int
    oldest_seconds: float
    workers: list[LiveWorker]
    due_webhooks: int
    counts: Mapping[str, Mapping[str, int]]
    times: Mapping[str, Mapping[str, Times]]

    @classmethod
    def of(cls, answer: list[Any]) -> Self:
        """What `survey.lua` returns."""
        found = dict(pairs(answer))
        counts: defaultdict[str, dict[str, int]] = defaultdict(dict)
        times: defaultdict[str, defaultdict[str, Times]] = defaultdict(lambda: defaultdict(Times))
        for name, amount in pairs(found["sums"]):
            match name.split(" "):
                case [metric]:
                    counts[metric][""] = int(amount)
                case ["wait" | "run" as metric, bound]:
                    times[metric][""].add(bound, int(amount))
                case [metric, of]:
                    counts[metric][of] = int(amount)
                case [metric, of, bound]:
                    times[metric][of].add(bound, int(amount))
        return cls(
            waiting=found["waiting"],
            running=found["running"],
            oldest_seconds=found["oldest_ms"] / 1000,
            workers=read_all(found["workers"]),
            due_webhooks=found["due_webhooks"],
            counts=counts,
            times=times,
        )

    @property
    def device_keys(self) -> list[str]:
        """Where the workers tell how much of their cards they use."""
        return [keyspace.device(worker.name) for worker in self.workers]

    def devices(self, told: Sequence[str | bytes | None]) -> dict[str, DeviceUse]:
        """What stands under `device_keys`, by name of the worker; none of who has told nothing."""
        uses = {}
        for worker, text in zip(self.workers, told, strict=True):
            use = None if text is None else _read(text)
            if use is not None:
                uses[worker.name] = use
        return uses


class Statistics:
    """The gateway's side."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._survey = redis.register_script(scripts.source("survey"))

    async def read(self) -> tuple[Survey, dict[str, DeviceUse]]:
        """This moment, and how much of its card each worker uses.

        Raises:
            BrokerUnavailableError: the broker does not answer.
        """
        with broker_errors():
            survey = Survey.of(await self._survey(keyspace.for_scripts()))
            keys = survey.device_keys
            told = await self._redis.mget(keys) if keys else []
        return survey, survey.devices(told)


def device_text(use: DeviceUse) -> str:
    """What a worker writes."""
    return _USE.dump_json(use).decode()


def _read(text: str | bytes) -> DeviceUse | None:
    try:
        return _USE.validate_json(text)
    except ValidationError:
        return None
