"""Store functions of the command line: workers, queue, drain orders, cancel by owner."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

from redis import Redis

from models.engine import Traits
from models.request.params import MODEL
from worker.broker.connection import broker_errors
from worker.job import CANCELLED, Cancellation, Job, Status
from worker.store import keyspace, scripts
from worker.store.presence import read_all
from worker.store.reports.statistics import Survey
from worker.store.scripts import outcome


@dataclass(frozen=True)
class Worker:
    """One worker process.

    Attributes:
        name: `HOST-PID-RANDOM`.
        engine: None while it drains.
        job: the request that it runs.
        pause: why it takes none; empty if it takes some.
        version: of its build; empty while it drains, or where it tells none.
        models: slugs of those that it runs; empty while it drains.
    """

    name: str
    engine: Traits | None
    job: Job | None = None
    pause: str = ""
    version: str = ""
    models: tuple[str, ...] = (MODEL,)

    @property
    def state(self) -> str:
        if self.engine is None:
            return "draining"
        if self.job:
            return "running"
        return "paused" if self.pause else "idle"


def fleet(redis: Redis) -> list[Worker]:
    """The live workers, by name. Raises BrokerUnavailableError."""
    with broker_errors():
        alive = redis.register_script(scripts.source("alive"))(keys=keyspace.for_scripts())
        running: Any = [redis.zrange(queue.leases, 0, -1) for queue in keyspace.QUEUES.values()]
        records = _records(redis, [*chain.from_iterable(running)])
    jobs = {
        record["worker"]: Job.from_record(request_id, record)
        for request_id, record in records
        if record.get("status") == Status.PROCESSING
    }
    workers = {
        live.name: Worker(
            *(live.name, live.engine, jobs.get(live.name), live.pause, live.version, live.models)
        )
        for live in read_all(alive)
    }
    draining = {name: Worker(name, None, job, models=()) for name, job in jobs.items()}
    return [worker for _, worker in sorted((draining | workers).items())]


def first_waiting(redis: Redis, most: int) -> list[Job]:
    """The first `most` of each model's queue. Raises BrokerUnavailableError."""
    return [job for queue in keyspace.QUEUES.values() for job in _first(redis, queue, most)]


def _first(redis: Redis, queue: keyspace.QueueKeys, most: int) -> list[Job]:
    with broker_errors():
        records = _records(redis, redis.zrange(queue.waiting, 0, most - 1))
    return [
        Job.from_record(request_id, record, position=place)
        for place, (request_id, record) in enumerate(records, start=1)
        if record
    ]


def survey(redis: Redis) -> Survey:
    """The present figures. Raises BrokerUnavailableError."""
    with broker_errors():
        answer: Any = redis.register_script(scripts.source("survey"))(keyspace.for_scripts())
    return Survey.of(answer)


def drain_order(name: str) -> tuple[str, ...]:
    """The Redis command that makes a worker finish its request, take no other, and end."""
    return ("SET", keyspace.drain_order(name), "1", "EX", str(keyspace.DRAIN_ORDER_SECONDS))


def cancel_all(redis: Redis, owner: str, *, retention_seconds: float) -> int:
    """Cancel every request of `owner` that has not ended. Returns how many there were.

    Raises:
        BrokerUnavailableError: some may not be cancelled; do it again.
    """
    retention_ms = round(retention_seconds * 1000)
    with broker_errors():
        cancel = redis.register_script(scripts.source("cancel"))
        live: Any = redis.smembers(keyspace.LIVE + owner)
        answers = [
            cancel(keyspace.for_scripts(name), [name, owner, retention_ms, CANCELLED])
            for name in live
        ]
    outcomes = [outcome(Cancellation, "cancel", answer) for answer in answers if answer is not None]
    return outcomes.count(Cancellation.REQUESTED)


def _records(redis: Redis, ids: Any) -> list[tuple[str, dict[str, str]]]:  # noqa: ANN401 (redis-py's)
    pipeline = redis.pipeline(transaction=False)
    for request_id in ids:
        pipeline.hgetall(keyspace.record(request_id))
    return list(zip(ids, pipeline.execute(), strict=True))
