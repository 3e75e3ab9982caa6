from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest
from redis import Redis

from tests.support.jobs import OWNER, ask_gateway, find, live, params, pop, submit
from worker.broker.connection import connect_gateway
from worker.job import Job, Stage, Status
from worker.pace import USUAL, Pace, Work, pace_for
from worker.store import keyspace
from worker.store.gateway_side import GatewayStore
from worker.store.reports import forecast
from worker.store.reports.forecast import Forecast, Forecaster
from worker.store.submits import NewRequest
from worker.store.worker_side import Lease, WorkerStore

SLOW, FAST = Pace(4, 2, 10), Pace(2, 1, 4)


@pytest.fixture
def store(redis: Redis) -> WorkerStore:
    return WorkerStore(redis, lease_seconds=10, retention_seconds=60)


def note(store: WorkerStore, frames: int, steps: int, pace: Pace) -> None:
    store.note_pace(live().engine, Work.of(params(frames=frames, steps=steps)), pace)


def left(url: str, *request_ids: str) -> list[float | None]:
    """Seconds that each is said to have left, to a tenth."""

    async def ask() -> list[float | None]:
        async with connect_gateway(url) as redis:
            forecaster = Forecaster(redis)
            found = [await forecaster.seconds_left(find_in_thread[name]) for name in request_ids]
            return [None if each is None else round(each, 1) for each in found]

    find_in_thread = {name: find(url, name) for name in request_ids}
    return asyncio.run(ask())


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (2, 2), (7, 2), (8, 3), (160, 28)])
def test_the_time_of_a_run_depends_on_what_the_model_makes(frames: int, latent: int) -> None:
    work = Work.of(params(frames=frames, steps=30))
    assert work == Work(latent, 30)
    assert Work.read(str(work)) == work


@pytest.mark.parametrize(
    ("latent_frames", "pace"),
    [
        (4, FAST),
        (12, SLOW),
        (6, Pace(2.5, 1.25, 5.5)),
        (2, Pace(1, 0.5, 2)),
        (24, Pace(8, 4, 20)),
    ],
)
def test_what_was_not_measured_lies_between_what_was(latent_frames: int, pace: Pace) -> None:
    assert pace_for(latent_frames, {4: FAST, 12: SLOW}) == pace


def test_the_last_run_counts_most(store: WorkerStore, redis: Redis) -> None:
    for pace in (FAST, SLOW):
        note(store, 1, 30, pace)
    (means,) = redis.hvals(keyspace.PACES)
    assert [float(ms) for ms in means.split()] == [2600, 1300, 5800]
    assert redis.ttl(keyspace.PACES) > 0


def test_engines_that_do_not_live_tell_nothing(store: WorkerStore, redis_url: str) -> None:
    request_id = submit(redis_url)
    other = replace(live().engine, device="another card")
    store.note_pace(other, Work.of(params()), SLOW)
    store.beat(live("ann"))
    assert left(redis_url, request_id) == [None]
    store.note_pace(live().engine, Work.of(params()), FAST)
    alone = left(redis_url, request_id)
    store.beat(replace(live("bob"), engine=other))
    (both,) = left(redis_url, request_id)
    assert alone[0]
    assert both
    assert both > alone[0]  # it may come to the slow one


def test_the_last_run_of_a_worker_that_drains_is_foretold(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    note(store, 1, 10, FAST)
    store.beat(live("ann"))
    request_id = submit(redis_url)
    lease = Lease(request_id, "run")
    pop(redis)
    store.start(lease, "ann")
    store.beat(live("ann"), lease, 3, takes_more=False)
    assert left(redis_url, request_id) != [None]


def test_drafts_and_finishes_take_the_time_of_their_own_steps(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    note(store, 1, 10, FAST)
    store.beat(live("ann"))
    of_draft = {"draft_steps": "4", "work": str(Work.of(params(), 4))}
    of_finish = {"draft_of": "a draft", "first_step": "4"}
    finish = submit(redis_url, record=of_finish)
    draft = submit(redis_url, record=of_draft)
    whole = submit(redis_url)
    waiting = 2 + 6 + 4, (2 + 6 + 4) + (2 + 4 + 4), (2 + 6 + 4) + (2 + 4 + 4) + (2 + 10 + 4)
    assert left(redis_url, finish, draft, whole) == [*map(float, waiting)]
    pop(redis)
    lease = Lease(finish, "run")
    store.start(lease, "ann")
    store.beat(live("ann"), lease, 7, Stage.DENOISING)
    assert left(redis_url, finish, draft) == [3 + 4, (3 + 4) + (2 + 4 + 4)]


def test_nothing_is_foretold_while_nothing_was_measured(store: WorkerStore, redis_url: str) -> None:
    assert pace_for(4, {}) is None
    request_id = submit(redis_url)
    store.beat(live("ann"))
    assert left(redis_url, request_id) == [None]


@pytest.mark.parametrize(
    ("stage", "step", "progress", "elapsed", "seconds"),
    [
        (Stage.ENCODING_PROMPT, 0, 0, 1, 1 + 10 + 4),
        (Stage.ENCODING_PROMPT, 0, 0, 9, 10 + 4),
        (Stage.DENOISING, 3, 31, 99, 7 + 4),
        (Stage.DECODING, 10, 75, 13, 4),
        (Stage.DECODING, 10, 75, 3, 4),
        (Stage.ENCODING_VIDEO, 10, 87.5, 99, 2),
    ],
)
def test_a_run_has_left_what_it_has_not_done(
    stage: Stage, step: int, progress: int, elapsed: float, seconds: float
) -> None:
    assert FAST.seconds_left(10, stage, step, progress, elapsed) == seconds


@pytest.mark.parametrize("of_worker", [FAST, SLOW, USUAL])
@pytest.mark.parametrize("seconds_between", [0.1, 1, 10])
def test_the_time_left_of_a_run_never_grows_whatever_its_speed(
    of_worker: Pace, seconds_between: float
) -> None:
    moments = [
        *((Stage.ENCODING_PROMPT, 0, 0.0) for _ in range(3)),
        *((Stage.DENOISING, step, 0.0) for step in range(11)),
        *((Stage.DECODING, 10, frame / 7) for frame in range(8)),
        *((stage, 10, 1.0) for stage in (Stage.ENCODING_VIDEO, Stage.PUBLISHING)),
    ]
    left = [
        FAST.seconds_left(
            10, stage, step, of_worker.progress(10, step, drawn), number * seconds_between
        )
        for number, (stage, step, drawn) in enumerate(moments)
    ]
    assert left == sorted(left, reverse=True)
    assert left[-1] < 1


def test_who_waits_is_started_by_the_worker_that_is_free_first(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    note(store, 1, 10, FAST)  # of which 10 steps take 16 seconds, and 20 steps 26
    first = submit(redis_url, steps=20)
    pop(redis)
    store.beat(live("ann"))
    store.beat(live("bob"))
    lease = Lease(first, "run")
    assert store.start(lease, "ann")
    store.beat(live("ann"), lease, 15, Stage.DENOISING)  # 9 seconds left
    waiting = [submit(redis_url, steps=steps) for steps in (10, 20, 10)]
    # bob at once, ann after 9 seconds, bob again after his 16
    assert left(redis_url, first, *waiting) == pytest.approx([9, 16, 9 + 26, 16 + 16], abs=0.3)


def test_without_a_live_worker_there_is_no_forecast(store: WorkerStore, redis_url: str) -> None:
    note(store, 1, 10, FAST)
    request_id = submit(redis_url)
    assert left(redis_url, request_id) == [None]
    store.beat(live("ann"))
    assert left(redis_url, request_id) == [16]


def test_far_behind_the_wait_is_that_of_those_before_on_average(
    store: WorkerStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "MOST_WAITING", 2)
    note(store, 1, 10, FAST)
    store.beat(live("ann"))
    ids = [submit(redis_url) for _ in range(5)]
    seconds = left(redis_url, *ids)
    assert seconds[:2] == [16, 32]
    assert seconds[2:] == pytest.approx([16 * 3, 16 * 4, 16 * 5], abs=0.3)


def test_one_walk_through_the_queue_serves_all_who_ask_for_a_while(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    note(store, 1, 10, FAST)
    store.beat(live("ann"))
    job = find(redis_url, submit(redis_url))

    async def ask() -> None:
        async with connect_gateway(redis_url) as client:
            forecaster = Forecaster(client)
            await forecaster.now()
            forecaster._good_until += 60
            await asyncio.gather(*(forecaster.seconds_left(job) for _ in range(50)))
            await forecaster.seconds_left(replace(job, status=Status.COMPLETED))

    redis.config_resetstat()
    asyncio.run(ask())
    assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] <= 2  # one, if it is loaded


def test_a_request_of_another_version_does_not_disturb(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    note(store, 1, 10, FAST)
    store.beat(live("ann"))
    old, new = submit(redis_url), submit(redis_url)
    redis.hdel(keyspace.record(old), "work")
    assert left(redis_url, old, new) == [16, 16]


def test_a_forecast_ages(redis_url: str) -> None:
    job = Job("an-id", "a-key", Status.QUEUED, params().model_dump_json(), 0, 1000, position=1)
    made = Forecast(made_at=100, paces={1: FAST}, starts={"an-id": 8.0}, last_start=24.0)
    assert made.seconds_left(job, now=103) == 5 + 16
    assert made.seconds_left(job, now=200) == 16


def test_requests_that_will_have_the_video_of_another_run_delay_nothing(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    note(store, 1, 10, FAST)
    store.beat(live("ann"))
    for cache_key in ("one", "one", "another", "another"):
        asked = [NewRequest(params(), {}, cache_key)]
        ask_gateway(redis_url, partial(GatewayStore.submit_all, requests=asked, owner=OWNER))
    last = submit(redis_url)
    assert left(redis_url, last) == [3 * 16.0]
    store.start(Lease(str(pop(redis)), "run"), "ann", identity="some weights")
    assert left(redis_url, last) == [3 * 16.0]
