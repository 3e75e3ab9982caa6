"""Requests of the result cache, made and looked at as gateways and workers do."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from redis import Redis

from models.request.catalogue import MOCHI
from tests.support.jobs import OWNER, ask_gateway, pop
from worker.billing import MILLION, Price
from worker.job import Job
from worker.store import keyspace
from worker.store.submits import (
    Accepted,
    NewRequest,
    cache_key_of,
    frames_key_of,
)
from worker.store.worker_side import Lease, Result, WorkerStore

RETENTION_SECONDS = 60
ACCOUNT = keyspace.API_KEY + OWNER
OTHER = "another-owner"
RUN = "0123456789ab"
IDENTITY = "some weights and settings"
QUARTER = Price(4 * MILLION, cached_share=Decimal("0.25"))
POND = MOCHI.request(prompt="a pond", frames=1, steps=10, seed=7)
KEY = cache_key_of(POND)


def submit_all(url: str, owner: str = OWNER, count: int = 1, **options: Any) -> Accepted:
    most_waiting = options.pop("most_waiting", 1000)
    fps = options.pop("fps", POND.fps)
    each = [
        POND.model_copy(update={"seed": POND.seed + number, "fps": fps}) for number in range(count)
    ]
    requests = [
        NewRequest(params, {"frames_key": frames_key_of(params)}, cache_key_of(params))
        for params in each
    ]
    return ask_gateway(
        url, lambda it: it.submit_all(requests, owner, **options), most_waiting=most_waiting
    )


def submit(url: str, owner: str = OWNER, **options: Any) -> str:
    return submit_all(url, owner, **options).request_id


def start(store: WorkerStore, redis: Redis) -> Lease:
    """The next request, by a worker with the usual identity."""
    lease = Lease(str(pop(redis)), RUN)
    assert store.start(lease, "ann", identity=IDENTITY)
    return lease


def park(store: WorkerStore, redis: Redis) -> str:
    """Pop the next request, whose twin runs, and try to start it."""
    request_id = str(pop(redis))
    assert store.start(Lease(request_id, RUN), "bob", identity=IDENTITY) is None
    return request_id


def complete(store: WorkerStore, lease: Lease) -> str:
    result = Result(f"{lease.request_id}-{lease.run}.mp4", 1000, "bf16", ("Cut.",), joules=3.0)
    assert store.complete(lease, replace(result, stills={"poster": 17}))
    return lease.request_id


def make(store: WorkerStore, redis: Redis, url: str, **options: Any) -> str:
    submit(url, **options)
    return complete(store, start(store, redis))


def find(url: str, request_id: str, owner: str = OWNER) -> Job:
    return ask_gateway(url, lambda it: it.find(request_id, owner))


def has_video_of(job: Job, maker: Job) -> bool:
    files = (job.file_name, job.file_size, job.poster_size, job.precision, job.warnings)
    return files == (
        *(maker.file_name, maker.file_size, maker.poster_size),
        *(maker.precision, maker.warnings),
    )


def delete(url: str, request_id: str, owner: str = OWNER) -> str:
    return ask_gateway(url, lambda it: it.delete(request_id, owner))
