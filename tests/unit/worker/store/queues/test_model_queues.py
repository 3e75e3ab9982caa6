"""Each model has a queue of its own: other models' requests and workers change nothing in it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from redis import Redis

from models.request.catalogue import CATALOGUE, FAST_MOCHI, MOCHI
from tests.support.jobs import (
    OWNER,
    ask_gateway,
    end_lease,
    find,
    live,
    params,
    pop,
    queue_of,
    submit,
)
from worker.broker.connection import connect_gateway
from worker.errors import NoWorkerError, QueueFullError
from worker.job import CANCELLED, Cancellation, Job, Status
from worker.pace import Pace, Work
from worker.store import keyspace
from worker.store.fleet import first_waiting, fleet, survey
from worker.store.reports.forecast import Forecast, Forecaster
from worker.store.worker_side import Lease, Recovery, WorkerStore

SLOW, FAST = MOCHI.slug, FAST_MOCHI.slug

_Result = TypeVar("_Result")


def store_of(redis: Redis, *models: str) -> WorkerStore:
    """That of a worker of these models."""
    return WorkerStore(redis, lease_seconds=10, retention_seconds=60, sources=models)


@pytest.fixture
def both(redis: Redis) -> WorkerStore:
    return store_of(redis, SLOW, FAST)


def start(redis: Redis, store: WorkerStore, *models: str, worker: str = "ann") -> Job:
    request_id = pop(redis, *models)
    assert request_id is not None
    job = store.start(Lease(request_id, f"run of {request_id}"), worker)
    assert job is not None
    return job


def forecasts(url: str, ask: Callable[[Forecaster], Awaitable[_Result]]) -> _Result:
    async def run() -> _Result:
        async with connect_gateway(url) as redis:
            return await ask(Forecaster(redis))

    return asyncio.run(run())


def test_a_record_names_its_model_unless_it_is_the_default_one(
    redis: Redis, redis_url: str
) -> None:
    slow, fast = submit(redis_url), submit(redis_url, model=FAST)
    assert not redis.hexists(keyspace.record(slow), "model")
    assert redis.hget(keyspace.record(fast), "model") == FAST
    assert find(redis_url, slow).model == SLOW
    job = find(redis_url, fast)
    assert (job.model, type(job.params)) == (FAST, FAST_MOCHI.parameters)


def test_the_default_model_has_the_keys_of_releases_without_models() -> None:
    assert keyspace.QueueKeys.of(SLOW) == keyspace.QueueKeys(
        "mochi:waiting",
        "mochi:sequence",
        "mochi:turns",
        "mochi:leases",
        "rq:queue:mochi-1",
        "rq:queue:mochi-1:intermediate",
    )


def test_a_worker_pops_its_own_models_only(redis: Redis, redis_url: str) -> None:
    fast = submit(redis_url, model=FAST)
    assert pop(redis, SLOW) is None
    slow = submit(redis_url)
    assert pop(redis, FAST) == fast
    assert pop(redis, FAST) is None
    assert pop(redis, SLOW) == slow


def test_a_worker_of_several_models_takes_what_has_waited_longest(
    redis: Redis, redis_url: str, both: WorkerStore
) -> None:
    names = [submit(redis_url, model=model) for model in (FAST, SLOW, SLOW, FAST)]
    for age, name in enumerate(names):
        redis.hset(keyspace.record(name), "created_at", 1000 + age)
    for name in names:
        peeked = both.peek()
        assert peeked is not None
        assert (peeked[0], peeked[1].model) == (name, find(redis_url, name).model)
        assert pop(redis, SLOW, FAST) == name


def submit_for(url: str, owner: str, model: str) -> str:
    asked = params(model=model)
    return ask_gateway(url, lambda it: it.submit(asked, owner)).request_id


@pytest.mark.parametrize("models", [(SLOW, FAST), (FAST, SLOW)])
def test_a_long_queue_of_one_key_does_not_delay_another_key_in_another_queue(
    redis: Redis, redis_url: str, models: tuple[str, str]
) -> None:
    store, (long, short) = store_of(redis, SLOW, FAST), models
    first = [submit_for(redis_url, "ann", long) for _ in range(3)]
    later = [submit_for(redis_url, "bea", short) for _ in range(2)]
    for age, name in enumerate([*first, *later]):
        redis.hset(keyspace.record(name), "created_at", 1000 + age)
    store.note_pace(live().engine, Work.of(params()), Pace(1, 1, 1))
    store.beat(live("ann", SLOW, FAST))

    async def ask(forecaster: Forecaster) -> dict[str, float]:
        found = [await forecaster.now(model) for model in CATALOGUE]
        return {name: at for forecast in found for name, at in forecast.starts.items()}

    foreseen = forecasts(redis_url, ask)
    begun = [start(redis, store, SLOW, FAST).request_id for _ in range(5)]
    assert begun == [first[0], later[0], first[1], later[1], first[2]]
    assert sorted(foreseen, key=foreseen.__getitem__) == begun
    assert 0 < redis.pttl(keyspace.SERVED) <= 3_600_000


def test_a_request_that_has_run_before_comes_first_whoever_was_served(
    redis: Redis, redis_url: str, both: WorkerStore
) -> None:
    lost = submit_for(redis_url, "ann", SLOW)
    start(redis, both, SLOW, FAST)
    submit_for(redis_url, "bea", FAST)
    end_lease(redis, lost)
    assert both.reap(lost) is Recovery.REQUEUED
    assert pop(redis, SLOW, FAST) == lost


def test_a_key_of_another_type_there_stops_no_run(
    redis: Redis, redis_url: str, both: WorkerStore
) -> None:
    names = {submit(redis_url), submit(redis_url, model=FAST)}
    redis.set(keyspace.SERVED, "another client's")
    assert {start(redis, both, SLOW, FAST).request_id for _ in names} == names


def test_a_worker_of_one_queue_notes_nothing_of_owners(redis: Redis, redis_url: str) -> None:
    submit(redis_url)
    start(redis, store_of(redis, SLOW), SLOW)
    assert not redis.exists(keyspace.SERVED)


def test_a_place_counts_within_the_queue_of_the_model(redis_url: str) -> None:
    slow = [submit(redis_url) for _ in range(3)]
    fast = [submit(redis_url, model=FAST) for _ in range(2)]
    assert [find(redis_url, name).position for name in slow] == [1, 2, 3]
    assert [find(redis_url, name).position for name in fast] == [1, 2]


def test_a_full_queue_of_one_model_takes_requests_for_another(redis_url: str) -> None:
    def ask(model: str) -> str:
        accepted = ask_gateway(
            redis_url, lambda it: it.submit(params(model=model), OWNER), most_waiting=1
        )
        return accepted.request_id

    ask(SLOW)
    with pytest.raises(QueueFullError):
        ask(SLOW)
    ask(FAST)
    with pytest.raises(QueueFullError):
        ask(FAST)


@pytest.mark.parametrize(
    ("served", "refused"),
    [((SLOW,), [FAST]), ((FAST,), [SLOW]), ((SLOW, FAST), []), ((FAST, SLOW), [])],
)
def test_a_submit_that_needs_a_worker_needs_one_of_its_model(
    redis: Redis, redis_url: str, served: tuple[str, ...], refused: list[str]
) -> None:
    store_of(redis, *served).beat(live("ann", *served))
    lacking = []
    for model in CATALOGUE:
        asked = params(model=model)
        try:
            ask_gateway(redis_url, lambda it: it.submit(asked, OWNER, needs_worker=True))
        except NoWorkerError:
            lacking.append(model)
    assert lacking == refused


def test_a_worker_with_a_lora_called_pause_does_not_pause(redis: Redis, redis_url: str) -> None:
    WorkerStore(redis, lease_seconds=10, retention_seconds=60).beat(live(loras=["ink", "pause"]))
    ask_gateway(redis_url, lambda it: it.submit(params(), OWNER, needs_worker=True))


def test_a_paused_worker_of_the_model_does_not_count(redis: Redis, redis_url: str) -> None:
    store = store_of(redis, FAST)
    store.beat(replace(live("ann", FAST), pause="The disk is full."))
    store.beat(live("bob", SLOW))
    with pytest.raises(NoWorkerError, match="takes requests for `mochi-1-fast`: /readyz says why"):
        ask_gateway(redis_url, lambda it: it.submit(params(model=FAST), OWNER, needs_worker=True))


def test_a_worker_of_a_release_without_models_runs_the_default_one(
    redis: Redis, redis_url: str
) -> None:
    member = str(live()).replace(',"models":["mochi-1"]', "")
    assert "models" not in member
    redis.zadd(keyspace.WORKERS, {member: 2**52})
    ask_gateway(redis_url, lambda it: it.submit(params(), OWNER, needs_worker=True))
    with pytest.raises(NoWorkerError):
        ask_gateway(redis_url, lambda it: it.submit(params(model=FAST), OWNER, needs_worker=True))
    assert [worker.models for worker in fleet(redis)] == [(SLOW,)]


@pytest.mark.parametrize("model", [*CATALOGUE])
def test_a_lost_run_goes_back_to_the_head_of_its_own_queue(
    redis: Redis, redis_url: str, both: WorkerStore, model: str
) -> None:
    lost = submit(redis_url, model=model)
    job = start(redis, both, model)
    others = [submit(redis_url, model=each) for each in CATALOGUE]
    end_lease(redis, lost)
    overdue = both.overdue()
    assert overdue is not None
    assert overdue.expired == [lost]
    assert both.reap(lost) is Recovery.REQUEUED
    assert job.model == model
    assert pop(redis, model) == lost
    assert {pop(redis, each) for each in CATALOGUE} == {*others}


@pytest.mark.parametrize("model", [*CATALOGUE])
def test_a_request_that_was_popped_or_mislaid_is_recovered_in_its_own_queue(
    redis: Redis, redis_url: str, both: WorkerStore, model: str
) -> None:
    popped, mislaid = submit(redis_url, model=model), submit(redis_url, model=model)
    assert pop(redis, model) == popped
    redis.lrem(queue_of(redis, mislaid).rq_queue, 0, mislaid)
    overdue = both.overdue()
    assert overdue is not None
    assert (overdue.popped, overdue.missing) == ([popped], 1)
    assert both.unlisted() == [mislaid]
    for name in (popped, mislaid):
        assert both.recover(name) is Recovery.REQUEUED
    assert {pop(redis, model), pop(redis, model)} == {popped, mislaid}


@pytest.mark.parametrize("model", [*CATALOGUE])
def test_what_is_left_of_a_record_that_is_gone_leaves_the_queue_of_its_model(
    redis: Redis, redis_url: str, both: WorkerStore, model: str
) -> None:
    leased, popped, waits = (submit(redis_url, model=model) for _ in range(3))
    queue = queue_of(redis, leased)
    start(redis, both, model)
    assert pop(redis, model) == popped
    redis.delete(*map(keyspace.record, (leased, popped, waits)))
    assert both.reap(leased) is None
    assert both.recover(popped) is None
    assert pop(redis, model) == waits
    assert both.start(Lease(waits, "a run"), "ann") is None
    names = (queue.waiting, queue.leases, queue.rq_queue, queue.intermediate)
    assert redis.exists(*names) == 0


@pytest.mark.parametrize("model", [*CATALOGUE])
def test_cancel_and_delete_take_a_waiting_request_out_of_its_own_queue(
    redis: Redis, redis_url: str, model: str
) -> None:
    cancelled, deleted, waits = (submit(redis_url, model=model) for _ in range(3))
    outcome = ask_gateway(redis_url, lambda it: it.cancel(cancelled, OWNER))
    assert outcome is Cancellation.REQUESTED
    assert find(redis_url, cancelled).error == CANCELLED
    ask_gateway(redis_url, lambda it: it.delete(deleted, OWNER))
    queue = keyspace.QUEUES[model]
    assert redis.zrange(queue.waiting, 0, -1) == [waits]
    assert redis.lrange(queue.rq_queue, 0, -1) == [waits]


def test_a_worker_does_not_start_a_request_of_a_model_that_it_does_not_run(
    redis: Redis, redis_url: str
) -> None:
    foreign = submit(redis_url, model=FAST)
    redis.rpush(keyspace.RQ_INTERMEDIATE, foreign)  # in a queue that is not its own
    redis.zadd(keyspace.WAITING, {foreign: 0})
    assert store_of(redis, SLOW).start(Lease(foreign, "a run"), "ann") is None
    job = find(redis_url, foreign)
    assert (job.status, job.attempt, job.position) == (Status.QUEUED, 0, 1)
    assert not redis.exists(keyspace.RQ_INTERMEDIATE, keyspace.WAITING)
    assert pop(redis, FAST) == foreign


def test_figures_are_those_of_each_model_and_of_all(
    redis: Redis, redis_url: str, both: WorkerStore
) -> None:
    for model in (SLOW, SLOW, FAST, FAST, FAST):
        submit(redis_url, model=model)
    running = start(redis, both, FAST)
    both.beat(live("ann", SLOW, FAST))
    figures = survey(redis)
    counts = {name: (queue.waiting, queue.running) for name, queue in figures.queues.items()}
    assert counts == {SLOW: (2, 0), FAST: (2, 1)}
    assert (figures.waiting, figures.running) == (4, 1)
    assert [(job.model, job.position) for job in first_waiting(redis, 1)] == [(SLOW, 1), (FAST, 1)]
    [worker] = fleet(redis)
    assert worker.job is not None
    assert (worker.models, worker.job.request_id) == ((SLOW, FAST), running.request_id)


def test_forecasts_count_the_workers_of_the_model(
    redis: Redis, redis_url: str, both: WorkerStore
) -> None:
    both.note_pace(live().engine, Work.of(params()), Pace(1, 1, 1))
    slow = [submit(redis_url) for _ in range(2)]
    fast = [submit(redis_url, model=FAST) for _ in range(2)]
    both.beat(live("ann", SLOW))

    async def ask(forecaster: Forecaster) -> list[Forecast]:
        return [await forecaster.now(model) for model in CATALOGUE]

    of_slow, of_fast = forecasts(redis_url, ask)
    assert dict(of_slow.starts) == dict(zip(slow, [0, 12], strict=True))
    assert (of_slow.last_start, of_fast.last_start, dict(of_fast.starts)) == (24, None, {})

    both.beat(live("bob", FAST))
    of_slow, of_fast = forecasts(redis_url, ask)
    assert dict(of_fast.starts) == dict(zip(fast, [0, 12], strict=True))
    assert dict(of_slow.starts) == dict(zip(slow, [0, 12], strict=True))


def test_a_worker_of_two_models_is_forecast_to_take_what_has_waited_longest(
    redis: Redis, redis_url: str, both: WorkerStore
) -> None:
    both.note_pace(live().engine, Work.of(params()), Pace(1, 1, 1))
    names = [submit(redis_url, model=model) for model in (FAST, SLOW, FAST)]
    for age, name in enumerate(names):
        redis.hset(keyspace.record(name), "created_at", 1000 + age)
    both.beat(live("ann", SLOW, FAST))

    async def ask(forecaster: Forecaster) -> list[Forecast]:
        return [await forecaster.now(model) for model in CATALOGUE]

    of_slow, of_fast = forecasts(redis_url, ask)
    assert dict(of_fast.starts) == {names[0]: 0, names[2]: 24}
    assert dict(of_slow.starts) == {names[1]: 12}
    assert of_slow.last_start == of_fast.last_start == 36
