"""The result cache: twins, of which one runs, and videos that are kept."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from redis import Redis

from models.catalogue import MOCHI
from server.keys.times import broker_time
from tests.support.jobs import OWNER, ask_gateway, end_lease, live, pop, waiting
from worker.billing import MILLION, Price
from worker.errors import QueueFullError, RequestNotFoundError, TooFewCreditsError, TooManyJobsError
from worker.job import Cancellation, Job, Status
from worker.store import keyspace
from worker.store.reports.usage import Period, read_usages
from worker.store.submits import (
    Accepted,
    Idempotency,
    NewRequest,
    cache_key_of,
    frames_key_of,
)
from worker.store.webhooks.deliveries import all_deliveries
from worker.store.worker_side import Lease, Recovery, Result, WorkerStore

RETENTION_SECONDS = 60
ACCOUNT = keyspace.API_KEY + OWNER
OTHER = "another-owner"
RUN = "0123456789ab"
IDENTITY = "some weights and settings"
QUARTER = Price(4 * MILLION, cached_share=Decimal("0.25"))
POND = MOCHI.request(prompt="a pond", frames=1, steps=10, seed=7)
KEY = cache_key_of(POND)


@pytest.fixture
def store(redis: Redis) -> WorkerStore:
    return WorkerStore(redis, lease_seconds=10, retention_seconds=RETENTION_SECONDS)


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


def test_a_cached_video_costs_its_share(redis: Redis, redis_url: str, store: WorkerStore) -> None:
    redis.hset(ACCOUNT, mapping={"balance": 9 * MILLION, "reserved": 0, "charged": 0})
    first, twin = submit(redis_url, price=QUARTER), submit(redis_url, price=QUARTER)
    complete(store, start(store, redis))
    hit = submit(redis_url, price=QUARTER)
    costs = [find(redis_url, name).cost for name in (first, twin, hit)]
    assert costs == [4 * MILLION, MILLION, MILLION]
    assert redis.hmget(ACCOUNT, "balance", "reserved", "charged") == [
        *(str(3 * MILLION), "0", str(6 * MILLION)),
    ]
    assert find(redis_url, hit).remaining == 3 * MILLION


def test_a_share_of_gpu_time_is_that_of_the_run(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    price = Price(0, MILLION, 600, Decimal("0.5"))
    submit(redis_url, price=price)
    lease = start(store, redis)
    begun = int(str(redis.hget(keyspace.record(lease.request_id), "started_at")))
    redis.hset(keyspace.record(lease.request_id), "started_at", begun - 10_000)
    maker = find(redis_url, complete(store, lease))
    assert maker.cost >= 10 * MILLION
    assert find(redis_url, submit(redis_url, price=price)).cost == round(maker.cost / 2)


def test_a_free_video_needs_no_balance_and_no_place(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    make(store, redis, redis_url)
    redis.hset(ACCOUNT, mapping={"balance": 0, "jobs_at_once": 2, "reserved": 0, "charged": 0})
    others = [POND.model_copy(update={"seed": seed}) for seed in (20, 21)]
    ask_gateway(redis_url, lambda it: it.submit_all([*map(NewRequest, others)], OWNER))
    options: dict[str, Any] = {"price": Price(MILLION), "needs_worker": True}
    hit = submit(redis_url, most_waiting=2, **options)
    assert (find(redis_url, hit).status, find(redis_url, hit).cost) == (Status.COMPLETED, 0)
    with pytest.raises(TooFewCreditsError):
        submit(redis_url, price=Price(MILLION, cached_share=Decimal(1)))
    with pytest.raises(TooManyJobsError):
        submit_all(redis_url, count=2)
    redis.hdel(ACCOUNT, "jobs_at_once")
    with pytest.raises(QueueFullError):
        submit_all(redis_url, count=2, most_waiting=2)


def test_a_dry_run_tells_how_many_would_be_completed_at_once(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    make(store, redis, redis_url)
    keys = [KEY, cache_key_of(POND.model_copy(update={"seed": 8}))]
    asked = ask_gateway(
        redis_url, lambda it: it.try_out(OWNER, price=Price(), count=2, cache_keys=keys)
    )
    assert asked == (1, 1)


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


def test_above_a_limit_of_twins_a_request_runs_on_its_own(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    redis.sadd(keyspace.TWINS + KEY, *range(500))
    submit(redis_url)
    start(store, redis)
    submit(redis_url)
    assert start(store, redis)
    assert redis.scard(keyspace.TWINS + KEY) == 500


def test_each_has_its_own_delivery_usage_and_counter(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    hook = {"webhook_url": "https://hooks.example/", "webhook_base": "https://us.example"}
    hooked = [NewRequest(POND, hook, KEY)]
    ids = [
        ask_gateway(redis_url, lambda it: it.submit_all(hooked, OWNER)).request_id for _ in range(2)
    ]
    complete(store, start(store, redis))
    ids.append(ask_gateway(redis_url, lambda it: it.submit_all(hooked, OWNER)).request_id)
    told = {each.delivery_id: each.job for each in all_deliveries(redis)}
    assert sorted(told) == sorted(ids)
    assert sorted(job.cached for job in told.values()) == [0, 1, 1]
    today = Period.latest(2, broker_time(redis).date())
    (usage,) = read_usages(redis, today)
    assert (usage.requests, usage.completed, usage.cached) == (3, 3, 2)
    counted = redis.hmget(keyspace.METRICS, "cache miss", "cache wait", "cache hit")
    assert counted == ["1", "1", "1"]


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


def test_only_an_mp4_can_be_given_another_fps() -> None:
    assert frames_key_of(POND) == frames_key_of(POND.model_copy(update={"fps": 24.0}))
    assert frames_key_of(POND) not in {KEY, frames_key_of(POND.model_copy(update={"seed": 8}))}
    assert not frames_key_of(POND.model_copy(update={"format": "gif"}))


def test_no_run_is_counted_for_a_cached_video(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    submit(redis_url)
    make(store, redis, redis_url)
    before = redis.hgetall(keyspace.METRICS)
    submit(redis_url)
    after = redis.hgetall(keyspace.METRICS)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"submits accepted", "ended completed", "cache hit"}
    assert not any(str(name).startswith("stage cached") for name in after)


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


def test_a_share_is_one_of_the_most_that_a_run_costs(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    price = Price(0, MILLION, 4, Decimal("0.5"))
    ids = [submit(redis_url, price=price) for _ in range(2)]
    lease = start(store, redis)
    redis.hincrby(keyspace.record(lease.request_id), "started_at", -10_000)
    complete(store, lease)
    ids.append(submit(redis_url, price=price))
    assert sorted(find(redis_url, name).cost for name in ids) == [
        *(2 * MILLION, 2 * MILLION, 4 * MILLION),
    ]


def test_a_kept_video_takes_no_turn_in_the_queue(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    def submit_seed(seed: int, owner: str) -> str:
        params = POND.model_copy(update={"seed": seed})
        return ask_gateway(redis_url, lambda it: it.submit(params, owner)).request_id

    make(store, redis, redis_url)
    head = submit_seed(20, "a-third-owner")
    mine = find(redis_url, submit_all(redis_url, count=2).request_id).siblings
    others = submit_seed(21, OTHER)
    assert [pop(redis) for _ in range(3)] == [head, mine, others]


def retime(store: WorkerStore, redis: Redis, url: str, fps: float) -> tuple[str, str]:
    """Run a request with another fps. Returns its id, and the name of the file that it was told."""
    request_id = submit(url, fps=fps)
    lease = Lease(str(pop(redis)), RUN)
    job = store.start(lease, "ann", identity=IDENTITY)
    assert job
    result = Result(f"{request_id}-{RUN}.mp4", 900, source_ms=job.source_ms)
    assert store.complete(lease, result)
    return request_id, job.source


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


def test_a_replay_finds_the_request_that_was_completed_by_its_submit(
    redis: Redis, redis_url: str, store: WorkerStore
) -> None:
    make(store, redis, redis_url)
    key = Idempotency.of(OWNER, "a key", {})
    first, again = (submit_all(redis_url, idempotency=key) for _ in range(2))
    assert again == Accepted(first.request_id, is_replay=True)
    assert 0 < int(redis.pttl(key.key)) <= 1000 * RETENTION_SECONDS  # type: ignore[arg-type]
