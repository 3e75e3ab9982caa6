"""Forecasts when requests will end, from the queue, the workers, and the speed of past runs.

Polls must not cost more in a long queue. So one walk through the queue serves all polls for a time
proportional to the walk's length, and it goes no deeper than `MOST_WAITING`.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any

from redis.asyncio import Redis

from models.request.params import MODEL
from worker.broker.connection import broker_errors
from worker.job import Job, Stage, Status
from worker.pace import Pace, Work, pace_for, read_paces
from worker.store import keyspace, scripts
from worker.store.presence import LiveWorker, read_all
from worker.store.scripts import pairs

MOST_WAITING = 2000
"""Requests behind it are taken to wait as much longer as those before do on average."""
SHARE = 0.01
"""Largest share of the time that walks take."""


@dataclass(frozen=True)
class Forecast:
    """The state of a model's queue and workers at one moment.

    Attributes:
        made_at: by this process's monotonic clock.
        paces: by latent frames; the mean of all live engines of the model.
        starts: by id, seconds until a waiting request starts, for the first ones.
        last_start: seconds for one that would come after these; None when no worker is alive.
    """

    made_at: float
    paces: Mapping[int, Pace]
    starts: Mapping[str, float]
    last_start: float | None

    def run_seconds(self, work: Work) -> float | None:
        """Length of a whole run; None before the first measurement."""
        pace = pace_for(work.latent_frames, self.paces)
        return pace.seconds(work.steps) if pace else None

    def start_seconds(self, job: Job, now: float) -> float | None:
        """Until a waiting request starts; None when no worker is alive."""
        start = self.starts.get(job.request_id)
        if start is None:
            return self.start_seconds_at(job.position or 1, now)
        return max(0.0, start - (now - self.made_at))

    def start_seconds_at(self, position: int, now: float) -> float | None:
        """The same for a place in the queue; 1 is next."""
        if self.last_start is None or not self.paces:
            return None
        if position <= len(self.starts):
            start = next(islice(self.starts.values(), position - 1, None))
        else:
            start = self.last_start * max(1.0, (position - 1) / (len(self.starts) or 1))
        return max(0.0, start - (now - self.made_at))

    def seconds_left(self, job: Job, now: float) -> float | None:
        """Until a request ends; None if unknown, and after the end."""
        pace = pace_for(Work.of(job.params).latent_frames, self.paces)
        if pace is None or job.status.is_final:
            return None
        if job.status is Status.QUEUED:
            start = self.start_seconds(job, now)
            return None if start is None else start + pace.seconds(job.last_step - job.first_step)
        elapsed = max(0, job.seen_at - (job.started_at or job.seen_at)) / 1000
        return pace.seconds_left(job.last_step, job.stage, job.step, job.run_progress, elapsed)


class Forecaster:
    """Makes forecasts and caches them. Every method raises BrokerUnavailableError."""

    def __init__(self, redis: Redis) -> None:
        self._foresee = redis.register_script(scripts.source("foresee"))
        self._forecasts: Mapping[str, Forecast] = {}
        self._good_until = 0.0
        self._lock = asyncio.Lock()

    async def seconds_left(self, job: Job) -> float | None:
        if job.status.is_final:
            return None
        return (await self.now(job.queue)).seconds_left(job, time.monotonic())

    async def now(self, queue: str = MODEL) -> Forecast:
        if time.monotonic() < self._good_until:
            return self._forecasts[queue]
        async with self._lock:  # concurrent callers wait for one walk
            began = time.monotonic()
            if began >= self._good_until:
                with broker_errors():
                    found = await self._foresee(keyspace.for_scripts(), [MOST_WAITING])
                self._forecasts = _forecasts(found, time.monotonic())
                took = time.monotonic() - began
                self._good_until = began + took / SHARE
            return self._forecasts[queue]


@dataclass
class _Queue:
    """The first waiting requests of a model, and when each starts, as far as it is known.

    Attributes:
        times: of their submits, in ms.
        owners: a number for each.
    """

    paces: Mapping[int, Pace]
    ids: Sequence[str]
    works: Sequence[Work | None]
    times: Sequence[int]
    owners: Sequence[int]
    starts: list[float] = field(default_factory=list)
    last_start: float | None = None

    @property
    def is_empty(self) -> bool:
        return len(self.starts) == len(self.ids)

    @property
    def next_owner(self) -> int:
        return self.owners[len(self.starts)]

    @property
    def waits_since(self) -> int:
        return self.times[len(self.starts)]

    def start_next(self, at: float) -> float:
        """Returns the end of its run."""
        work = self.works[len(self.starts)]
        self.starts.append(at)
        pace = work and pace_for(work.latent_frames, self.paces)
        return at + (pace.seconds(work.steps) if work and pace else 0.0)


def _forecasts(answer: list[Any], made_at: float) -> dict[str, Forecast]:
    found = dict(pairs(answer))
    workers = [worker for worker in read_all(found["workers"]) if not worker.pause]
    kept = list(pairs(found["paces"]))
    queues = {}
    for model, ids, works, firsts, times, owners in found["queues"]:
        # Of all engines when none is alive: the last worker may be finishing its last run.
        engines = {str(worker.engine) for worker in workers if worker.takes(model)}
        paces = read_paces(kept, engines)
        asked = [*map(_work, works, firsts)]
        queues[model] = _Queue(paces, ids, asked, [*map(int, times)], owners)
    busy = {
        run["worker"]: _left(run, queues[run["queue"]].paces, found["now_ms"])
        for run in map(dict, map(pairs, found["runs"]))
        if run["worker"] and run["work"]
    }
    served = dict(enumerate(map(int, found["served"]), start=1))
    _simulate([(busy.get(worker.name, 0.0), worker) for worker in workers], queues, served)
    return {
        model: Forecast(
            made_at,
            queue.paces,
            dict(zip(queue.ids, queue.starts, strict=False)),
            queue.last_start,
        )
        for model, queue in queues.items()
    }


def _simulate(
    free_in: Iterable[tuple[float, LiveWorker]],
    queues: Mapping[str, _Queue],
    served: dict[int, int],
) -> None:
    """Start the waiting requests, each by the worker that is free first.

    A worker of several queues takes, of the requests that are next, that of the owner that was
    served least recently.

    Args:
        free_in: seconds until each worker is free.
        queues: by name.
        served: by owner, the number of its latest start by such a worker.
    """
    numbers = count(max(served.values(), default=0) + 1)

    def rank(queue: _Queue) -> tuple[int, int]:
        return served[queue.next_owner], queue.waits_since

    order = [
        (seconds, number, [queues[queue] for queue in worker.queues if queue in queues])
        for number, (seconds, worker) in enumerate(free_in)
    ]
    heapq.heapify(order)
    idle = []
    while order:
        now, number, sources = order[0]
        waiting = [queue for queue in sources if not queue.is_empty]
        if waiting:
            first = min(waiting, key=rank)
            if len(sources) > 1:
                served[first.next_owner] = next(numbers)
            heapq.heapreplace(order, (first.start_next(now), number, sources))
        else:
            idle.append(heapq.heappop(order))
    for seconds, _, sources in sorted(idle, reverse=True, key=lambda worker: worker[:2]):
        for queue in sources:
            queue.last_start = seconds  # at last of the one that is free first


def _left(run: Mapping[str, str | None], paces: Mapping[int, Pace], now_ms: int) -> float:
    work = _work(run["work"])
    pace = work and pace_for(work.latent_frames, paces)
    if not work or not pace:
        return 0.0
    elapsed = max(0, now_ms - int(run["started_at"] or now_ms)) / 1000
    stage = Stage(run["stage"] or Stage.ENCODING_PROMPT)
    step, progress = int(run["step"] or 0), int(run["progress"] or 0)
    return pace.seconds_left(work.steps, stage, step, progress, elapsed)


def _work(text: str | None, first_step: str | None = None) -> Work | None:
    """Of a run that begins after `first_step`; None for a request accepted by another version."""
    work = Work.read(text) if text else None
    return work and replace(work, steps=work.steps - int(first_step or 0))
