"""Equal requests that wait at the same time: one of them runs."""

from __future__ import annotations

from redis import Redis

from tests.support.jobs import OWNER, ask_gateway, end_lease, pop
from tests.unit.worker.support.cached import (
    KEY,
    OTHER,
    RUN,
    complete,
    delete,
    find,
    has_video_of,
    park,
    start,
    submit,
)
from worker.job import Cancellation, Status
from worker.store import keyspace
from worker.store.worker_side import Recovery, Result, WorkerStore


def test_twins_are_completed_with_the_run_of_the_first(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    ids = [submit(redis_url), submit(redis_url, OTHER), submit(redis_url)]
    lease = start(store, redis)
    assert park(store, redis) in ids
    complete(store, lease)
    jobs = [find(redis_url, request_id) for request_id in (ids[0], ids[2])]
    jobs.insert(1, find(redis_url, ids[1], OTHER))
    assert [job.status for job in jobs] == [Status.COMPLETED] * 3
    assert sorted(job.cached for job in jobs) == [0, 1, 1]
    assert all(has_video_of(job, jobs[0]) for job in jobs)
    assert pop(redis) is None
    assert store.overdue().popped == []  # type: ignore[union-attr]


def test_a_cancel_of_the_running_one_lets_its_twin_run(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    first, second = submit(redis_url), submit(redis_url)
    lease = start(store, redis)
    park(store, redis)
    cancelled = ask_gateway(redis_url, lambda it: it.cancel(first, OWNER))
    assert cancelled is Cancellation.REQUESTED
    assert store.fail(lease, "cancelled", "The request was cancelled.")
    assert start(store, redis).request_id == second


def test_a_cancel_of_a_waiting_one_does_not_end_the_run(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    first, second = submit(redis_url), submit(redis_url)
    lease = start(store, redis)
    park(store, redis)
    ask_gateway(redis_url, lambda it: it.cancel(second, OWNER))
    complete(store, lease)
    assert find(redis_url, first).status is Status.COMPLETED
    assert find(redis_url, second).error_code == "cancelled"


def test_a_deleted_run_leaves_its_twin_to_run(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    first, second = submit(redis_url), submit(redis_url, OTHER)
    lease = start(store, redis)
    park(store, redis)
    assert delete(redis_url, first) == ""
    assert not store.complete(lease, Result(f"{first}-{RUN}.mp4", 1))
    assert complete(store, start(store, redis)) == second
    job = find(redis_url, second, OTHER)
    assert (job.status, job.attempt, job.cached) == (Status.COMPLETED, 1, 0)


def test_a_lost_run_loses_no_twin(redis: Redis, redis_url: str, store: WorkerStore) -> None:
    ids = {submit(redis_url), submit(redis_url)}
    lost = start(store, redis)
    park(store, redis)
    end_lease(redis, lost.request_id)
    assert store.reap(lost.request_id) is Recovery.REQUEUED
    maker = complete(store, start(store, redis))
    assert {find(redis_url, name).status for name in ids} == {Status.COMPLETED}
    assert find(redis_url, maker).cached == 0


def test_a_worker_that_stops_gives_twins_back(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    ids = {submit(redis_url), submit(redis_url)}
    lease = start(store, redis)
    park(store, redis)
    assert store.requeue(lease)
    assert {pop(redis), pop(redis)} == ids


def test_a_twin_whose_running_record_has_vanished_is_recovered(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    submit(redis_url)
    second = submit(redis_url)
    lease = start(store, redis)
    assert park(store, redis) == second
    assert store.overdue().popped == []  # type: ignore[union-attr]
    assert store.recover(second) is None
    redis.delete(keyspace.record(lease.request_id))
    assert store.overdue().popped == [second]  # type: ignore[union-attr]
    assert store.recover(second) is Recovery.REQUEUED
    assert start(store, redis).request_id == second


def test_above_a_limit_of_twins_a_request_runs_on_its_own(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    redis.sadd(keyspace.TWINS + KEY, *range(500))
    submit(redis_url)
    start(store, redis)
    submit(redis_url)
    assert start(store, redis)
    assert redis.scard(keyspace.TWINS + KEY) == 500
