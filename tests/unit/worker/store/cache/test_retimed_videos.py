"""Requests that differ from a kept video in their fps only."""

from __future__ import annotations

import pytest
from redis import Redis

from tests.support.jobs import pop
from tests.unit.worker.support.cached import (
    IDENTITY,
    KEY,
    POND,
    QUARTER,
    RUN,
    delete,
    find,
    make,
    submit,
)
from worker.billing import MILLION
from worker.job import Status
from worker.store import keyspace
from worker.store.submits import (
    frames_key_of,
)
from worker.store.worker_side import Lease, Result, WorkerStore


def retime(store: WorkerStore, redis: Redis, url: str, fps: float) -> tuple[str, str]:
    """Run a request with another fps. Returns its id, and the name of the file that it was told."""
    request_id = submit(url, fps=fps)
    lease = Lease(str(pop(redis)), RUN)
    job = store.start(lease, "ann", identity=IDENTITY)
    assert job
    result = Result(f"{request_id}-{RUN}.mp4", 900, source_ms=job.source_ms)
    assert store.complete(lease, result)
    return request_id, job.source


def test_a_run_with_another_fps_is_told_of_the_kept_file(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    maker = find(redis_url, make(store, redis, redis_url))
    other = submit(redis_url, fps=24.0, price=QUARTER)
    lease = Lease(str(pop(redis)), RUN)
    job = store.start(lease, "ann", identity=IDENTITY)
    assert job
    assert (job.source, job.source_warnings) == (maker.file_name, maker.warnings_json)
    assert store.complete(lease, Result(f"{other}-{RUN}.mp4", 900, source_ms=job.source_ms))
    retimed = find(redis_url, other)
    assert (retimed.cached, retimed.cost) == (1, MILLION)
    assert retimed.file_name != maker.file_name
    again = find(redis_url, submit(redis_url, fps=24.0))
    assert (again.status, again.file_name) == (Status.COMPLETED, retimed.file_name)
    counted = redis.hmget(keyspace.METRICS, "cache miss", "cache retimed", "cache hit")
    assert counted == ["1", "1", "1"]


@pytest.mark.parametrize("identity", ["other weights", ""])
def test_a_worker_with_other_weights_is_told_of_no_file(
    redis: Redis, redis_url: str, store: WorkerStore, identity: str
) -> None:
    make(store, redis, redis_url)
    submit(redis_url, fps=24.0)
    job = store.start(Lease(str(pop(redis)), RUN), "bob", identity=identity)
    assert job
    assert not job.source


def test_no_file_is_told_of_that_was_deleted(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    maker = make(store, redis, redis_url)
    submit(redis_url, fps=24.0)
    delete(redis_url, maker)
    job = store.start(Lease(str(pop(redis)), RUN), "ann", identity=IDENTITY)
    assert job
    assert not job.source


def test_a_deleted_video_of_another_fps_does_not_end_that_of_the_run(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    maker = find(redis_url, make(store, redis, redis_url))
    other, source = retime(store, redis, redis_url, 24.0)
    assert source == maker.file_name
    delete(redis_url, other)
    assert retime(store, redis, redis_url, 25.0)[1] == maker.file_name


def test_a_start_whose_reply_was_lost_is_told_of_the_file_again(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    maker = find(redis_url, make(store, redis, redis_url))
    submit(redis_url, fps=24.0)
    lease = Lease(str(pop(redis)), RUN)
    jobs = [store.start(lease, "ann", identity=IDENTITY) for _ in range(2)]
    assert [job and job.source for job in jobs] == [maker.file_name] * 2
    assert redis.hget(keyspace.METRICS, "cache retimed") == "1"


def test_only_an_mp4_can_be_given_another_fps() -> None:
    assert frames_key_of(POND) == frames_key_of(POND.model_copy(update={"fps": 24.0}))
    assert frames_key_of(POND) not in {KEY, frames_key_of(POND.model_copy(update={"seed": 8}))}
    assert not frames_key_of(POND.model_copy(update={"format": "gif"}))
