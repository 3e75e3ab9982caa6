"""Gauges, counters and histograms for /metrics, of all gateways and workers together.

The scripts that change records also count, in one hash of the broker. So a crash of any process
counts nothing twice, and every gateway shows the same figures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis

from models.engine import DeviceUse
from worker.broker.connection import broker_errors
from worker.job import model_of
from worker.store import keyspace, scripts
from worker.store.presence import LiveWorker, read_all
from worker.store.scripts import pairs

DEVICE_USES: TypeAdapter[Sequence[DeviceUse]] = TypeAdapter(Sequence[DeviceUse])
"""Reads and writes a worker's GPU report."""


Devices = Mapping[str, Sequence[DeviceUse]]
"""The use of GPUs by the name of their worker."""


@dataclass
class Times:
    """A histogram.

    Attributes:
        counts: by upper bound in ms; not cumulative.
        longer: above the last bound.
        total_ms: the sum.
    """

    counts: dict[int, int] = field(default_factory=lambda: dict.fromkeys(keyspace.BOUNDS_MS, 0))
    longer: int = 0
    total_ms: int = 0

    def add(self, bound: str, amount: int) -> None:
        """Add a field of the hash; `bound` as in `observe` of lua/common/base.lua."""
        if bound == "sum":
            self.total_ms = amount
        elif bound.isdecimal() and int(bound) in self.counts:
            self.counts[int(bound)] = amount
        else:
            self.longer += amount  # includes bounds of other versions


@dataclass(frozen=True)
class QueueSurvey:
    """The queues of one model: that of its requests with LoRAs counts, too.

    Attributes:
        waiting: requests that are QUEUED.
        running: requests that are PROCESSING.
        oldest_seconds: age of the oldest waiting request; 0 without one.
    """

    waiting: int
    running: int
    oldest_seconds: float


def _by_model(queues: list[tuple[str, int, int, int]]) -> dict[str, QueueSurvey]:
    models: dict[str, QueueSurvey] = {}
    for queue, waiting, running, oldest_ms in queues:
        other = models.get(model_of(queue), QueueSurvey(0, 0, 0.0))
        models[model_of(queue)] = QueueSurvey(
            other.waiting + waiting,
            other.running + running,
            max(other.oldest_seconds, oldest_ms / 1000),
        )
    return models


@dataclass(frozen=True)
class Survey:
    """The figures of one moment.

    Attributes:
        queues: by the model's slug.
        workers: live workers that take requests.
        due_webhooks: deliveries that wait for an attempt.
        counts: counters by name and label; the label is empty for a counter without.
        times: histograms by name and label, likewise.
    """

    queues: Mapping[str, QueueSurvey]
    workers: list[LiveWorker]
    due_webhooks: int
    counts: Mapping[str, Mapping[str, int]]
    times: Mapping[str, Mapping[str, Times]]

    @classmethod
    def of(cls, answer: list[Any]) -> Self:
        """From the answer of survey.lua."""
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
            queues=_by_model(found["queues"]),
            workers=read_all(found["workers"]),
            due_webhooks=found["due_webhooks"],
            counts=counts,
            times=times,
        )

    @property
    def waiting(self) -> int:
        """Of all models."""
        return sum(queue.waiting for queue in self.queues.values())

    @property
    def running(self) -> int:
        """Of all models."""
        return sum(queue.running for queue in self.queues.values())

    @property
    def oldest_seconds(self) -> float:
        """Age of the oldest waiting request of any model; 0 without one."""
        return max(queue.oldest_seconds for queue in self.queues.values())

    @property
    def device_keys(self) -> list[str]:
        """Redis keys of the workers' GPU reports."""
        return [keyspace.device(worker.name) for worker in self.workers]

    def devices(self, reports: Sequence[str | bytes | None]) -> Devices:
        """GPU use by worker name, from the values of `device_keys`; left out without a report."""
        uses = {}
        for worker, report in zip(self.workers, reports, strict=True):
            with suppress(ValidationError):
                uses[worker.name] = DEVICE_USES.validate_json(report or "")
        return uses


class Statistics:
    """The gateway's side."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._survey = redis.register_script(scripts.source("survey"))

    async def read(self) -> tuple[Survey, Devices]:
        """The present figures, and GPU use by worker name. Raises BrokerUnavailableError."""
        with broker_errors():
            survey = Survey.of(await self._survey(keyspace.for_scripts()))
            keys = survey.device_keys
            reports = await self._redis.mget(keys) if keys else []
        return survey, survey.devices(reports)
