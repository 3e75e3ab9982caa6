"""Requests whose video the result cache has: completed by their submit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from models.errors import InvalidParametersError
from models.request.catalogue import MOCHI
from tests.support.jobs import OWNER, ask_gateway, live, pop, waiting
from tests.unit.worker.support.cached import (
    ACCOUNT,
    IDENTITY,
    KEY,
    OTHER,
    POND,
    RETENTION_SECONDS,
    RUN,
    complete,
    delete,
    find,
    has_video_of,
    make,
    submit,
    submit_all,
)
from worker.errors import LimitError, RequestNotFoundError
from worker.job import Status
from worker.store import keyspace
from worker.store.submits import (
    Accepted,
    Idempotency,
    cache_key_of,
)
from worker.store.worker_side import Lease, WorkerStore


def test_a_request_is_completed_by_its_submit_where_the_video_is_kept(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    maker = make(store, redis, redis_url)
    cached = submit(redis_url)
    job = find(redis_url, cached)
    assert (job.status, job.cached, job.attempt, job.energy_mj) == (Status.COMPLETED, 1, 0, None)
    assert has_video_of(job, find(redis_url, maker))
    assert (job.inference_seconds, job.queue_seconds) == (0.0, job.total_seconds)
    assert waiting(redis) == []
    assert not redis.exists(keyspace.rq_job(cached))
    assert redis.smembers(keyspace.LIVE + OWNER) == set()


def test_another_seed_is_another_video(redis: Redis, redis_url: str, store: WorkerStore) -> None:
    make(store, redis, redis_url)
    first = submit_all(redis_url, count=3).request_id
    ids = [first, *find(redis_url, first).siblings.split()]
    jobs = [find(redis_url, request_id) for request_id in ids]
    assert [job.status for job in jobs] == [Status.COMPLETED, Status.QUEUED, Status.QUEUED]
    assert waiting(redis) == ids[1:]


@pytest.mark.parametrize(
    "change",
    [
        *({"prompt": "a lake"}, {"negative_prompt": "fog"}, {"steps": 11}, {"frames": 2}),
        *({"guidance_scale": 5}, {"seed": 8}, {"fps": 24}, {"lora": {"ink": 1.0}}),
        *({"format": "gif"}, {"poster": True}, {"last_frame": True}),
    ],
)
def test_each_parameter_is_in_the_key(change: dict[str, Any]) -> None:
    assert cache_key_of(MOCHI.request(**POND.model_dump() | change)) != KEY


def test_a_number_may_be_written_in_several_ways() -> None:
    same = {"guidance_scale": 4.5, "fps": "16", "frames": 1.0, "format": "mp4", "poster": False}
    assert cache_key_of(MOCHI.request(**POND.model_dump() | same)) == KEY


def test_a_video_of_other_weights_is_not_given_while_a_worker_lives(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    make(store, redis, redis_url)
    store.beat(replace(live("bob"), identity="other weights"))
    assert find(redis_url, submit(redis_url)).status is Status.QUEUED
    store.beat(replace(live("ann"), identity=IDENTITY))
    assert find(redis_url, submit(redis_url)).status is Status.COMPLETED


def test_a_worker_that_names_no_identity_makes_nothing_for_others(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    submit(redis_url)
    lease = Lease(str(pop(redis)), RUN)
    assert store.start(lease, "ann")
    complete(store, lease)
    assert find(redis_url, submit(redis_url)).status is Status.QUEUED


def test_a_video_is_kept_until_the_last_request_that_has_it_is_deleted(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    maker = make(store, redis, redis_url)
    name = find(redis_url, maker).file_name
    mine, others = submit(redis_url), submit(redis_url, OTHER)
    assert delete(redis_url, maker) == ""
    assert store.exists(maker)
    assert delete(redis_url, mine) == ""
    with pytest.raises(RequestNotFoundError):
        delete(redis_url, others)
    assert find(redis_url, others, OTHER).file_name == name
    assert delete(redis_url, others, OTHER) == name
    assert not store.exists(maker)


def test_what_its_maker_deletes_is_forgotten(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    maker, hit = make(store, redis, redis_url), submit(redis_url, OTHER)
    delete(redis_url, maker)
    assert find(redis_url, submit(redis_url)).status is Status.QUEUED
    assert find(redis_url, hit, OTHER).status is Status.COMPLETED


def test_a_hit_keeps_the_file_and_not_the_entry_for_longer(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    maker = make(store, redis, redis_url)
    for key in (keyspace.record(maker), keyspace.MAKERS + KEY):
        redis.pexpire(key, 10_000)
    hit = submit(redis_url)
    assert redis.pttl(keyspace.MAKERS + KEY) <= 10_000
    assert redis.pttl(keyspace.record(hit)) > 50_000
    redis.delete(keyspace.record(maker), keyspace.MAKERS + KEY)  # as they expire
    assert store.exists(maker)
    assert redis.pttl(keyspace.SHARERS + maker) >= redis.pttl(keyspace.record(hit)) - 1000
    assert find(redis_url, submit(redis_url)).status is Status.QUEUED


def test_every_key_expires(redis: Redis, redis_url: str, store: WorkerStore) -> None:
    submit(redis_url)
    make(store, redis, redis_url)
    submit(redis_url)
    for prefix in (keyspace.MAKERS, keyspace.TWINS, keyspace.SHARERS, keyspace.HISTORY):
        assert all(redis.pttl(key) > 0 for key in redis.keys(f"{prefix}*")), prefix


def test_a_video_in_a_store_that_gateways_have_left_is_made_again(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    redis.set(keyspace.STORE, "first")
    submit(redis_url)
    lease = Lease(str(pop(redis)), RUN)
    assert store.start(lease, "ann", "first", identity=IDENTITY)
    complete(store, lease)
    assert find(redis_url, submit(redis_url)).status is Status.COMPLETED
    redis.set(keyspace.STORE, "second")
    assert find(redis_url, submit(redis_url)).status is Status.QUEUED


def test_a_replay_finds_the_request_that_was_completed_by_its_submit(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    make(store, redis, redis_url)
    key = Idempotency.of(OWNER, "a key", {})
    first, again = (submit_all(redis_url, idempotency=key) for _ in range(2))
    assert again == Accepted(first.request_id, is_replay=True)
    assert 0 < int(redis.pttl(key.key)) <= 1000 * RETENTION_SECONDS


@pytest.mark.parametrize("limits", [{"jobs_at_once": 2}, {}])
def test_kept_videos_of_a_count_do_not_make_it_larger_than_a_limit(
    redis: Redis, redis_url: str, store: WorkerStore, limits: dict[str, int]
) -> None:
    make(store, redis, redis_url)
    if limits:
        redis.hset(ACCOUNT, mapping=limits)  # type: ignore[arg-type]
    room = 1000 if limits else 2
    for fps in (20, 30):
        submit(redis_url, fps=fps, most_waiting=room)  # they wait
    with pytest.raises(LimitError):  # one of two is to run, and will be let in later
        submit_all(redis_url, count=2, most_waiting=room)
    with pytest.raises(InvalidParametersError, match=r"^`count` 4 is more than the 2 requests"):
        submit_all(redis_url, count=4, most_waiting=room)


def test_who_has_a_file_is_forgotten_as_they_expire(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    maker = make(store, redis, redis_url)
    first, _ = submit(redis_url), submit(redis_url)
    sharers = keyspace.SHARERS + maker
    assert redis.zscore(sharers, first) == pytest.approx(
        int(redis.time()[0]) * 1000 + 1000 * RETENTION_SECONDS, abs=2000
    )
    redis.zadd(sharers, {first: 1})  # as an hour later
    last = submit(redis_url)
    assert first not in redis.zrange(sharers, 0, -1)
    assert last in redis.zrange(sharers, 0, -1)
    redis.zadd(sharers, dict.fromkeys(map(str, redis.zrange(sharers, 0, -1)), 1))
    assert delete(redis_url, maker).startswith(maker)


@pytest.mark.parametrize("fps", [POND.fps, 24])
def test_a_video_whose_file_is_gone_is_made_again(
    redis: Redis, redis_url: str, store: WorkerStore, fps: float
) -> None:
    maker = make(store, redis, redis_url)
    asked = POND.model_copy(update={"fps": fps})
    ask_gateway(redis_url, lambda it: it.forget_maker("another-request", asked))
    assert find(redis_url, submit(redis_url)).status is Status.COMPLETED
    ask_gateway(redis_url, lambda it: it.forget_maker(maker, POND))
    assert find(redis_url, submit(redis_url)).status is Status.QUEUED
    assert redis.keys(f"{keyspace.MAKERS}*") == []
