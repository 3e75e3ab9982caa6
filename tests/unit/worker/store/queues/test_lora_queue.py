"""A request with LoRAs goes to a worker that has them all, and delays no other request."""

from __future__ import annotations

import pytest
from redis import Redis

from models.request.catalogue import FAST_MOCHI, MOCHI
from tests.support.jobs import OWNER, ask_gateway, end_lease, find, live, params, pop, submit
from worker.errors import NoWorkerError
from worker.job import LORA, Cancellation, Status
from worker.store import keyspace
from worker.store.fleet import survey
from worker.store.presence import read_all
from worker.store.worker_side import Lease, Recovery, WorkerStore

SLOW, FAST = MOCHI.slug, FAST_MOCHI.slug
ANY = live("any", SLOW, FAST, loras=["a", "b", "c"]).sources


def of(*loras: str) -> tuple[str, ...]:
    """The queues of a worker of the default model with these LoRAs."""
    return live("ann", loras=loras).sources


def asked(*names: str) -> dict[str, float]:
    return dict.fromkeys(names, 1.0)


def test_the_first_request_that_a_worker_can_run_is_its_next(redis: Redis, redis_url: str) -> None:
    for_c = [submit(redis_url, lora=asked("c")) for _ in range(3)]
    for_ab, plain, for_b = (
        submit(redis_url, lora=asked("a", "b")),
        submit(redis_url),
        submit(redis_url, lora=asked("b")),
    )
    assert pop(redis, *of("b")) == plain  # it has waited longer than the one for b
    assert pop(redis, *of("b")) == for_b
    assert pop(redis, *of("b")) is None
    assert pop(redis, *of()) is None
    assert pop(redis, *of("a", "b")) == for_ab
    assert [pop(redis, *of("a", "c")) for _ in range(4)] == [*for_c, None]


def test_a_worker_of_an_earlier_release_takes_no_request_with_loras(
    redis: Redis, redis_url: str
) -> None:
    submit(redis_url, lora=asked("a"))
    assert pop(redis) is None
    assert redis.zcard(keyspace.WAITING) == redis.llen(keyspace.RQ_QUEUE) == 0


def test_a_model_s_requests_with_loras_are_its_own(redis: Redis, redis_url: str) -> None:
    request_id = submit(redis_url, model=FAST, lora=asked("a"))
    assert pop(redis, *of("a")) is None
    assert pop(redis, *live("ann", FAST, loras="a").sources) == request_id
    assert find(redis_url, request_id).model == FAST


def test_a_request_is_found_in_its_queue_runs_and_waits_again(redis: Redis, redis_url: str) -> None:
    store = WorkerStore(redis, lease_seconds=10, retention_seconds=60, sources=of("a"))
    first, second = submit(redis_url, lora=asked("a")), submit(redis_url, lora=asked("a"))
    assert [find(redis_url, each).position for each in (first, second)] == [1, 2]
    assert pop(redis, *of("a")) == first
    job = store.start(Lease(first, "run"), "ann")
    assert job is not None
    assert (job.status, job.params.lora) == (Status.PROCESSING, {"a": 1.0})
    end_lease(redis, first)
    assert store.reap(first) is Recovery.REQUEUED
    assert [find(redis_url, each).position for each in (first, second)] == [1, 2]
    assert pop(redis, *of("a")) == first


def test_what_ends_while_it_waits_leaves_nothing(redis: Redis, redis_url: str) -> None:
    request_id = submit(redis_url, lora=asked("a", "b"))
    cancelled = ask_gateway(redis_url, lambda it: it.cancel(request_id, OWNER))
    assert cancelled is Cancellation.REQUESTED
    assert [key for key in redis.scan_iter() if LORA in str(key)] == []


def test_a_place_whose_record_is_gone_is_given_up(redis: Redis, redis_url: str) -> None:
    store = WorkerStore(redis, lease_seconds=10, retention_seconds=60, sources=of("a"))
    request_id = submit(redis_url, lora=asked("a"))
    redis.delete(keyspace.record(request_id))
    assert pop(redis, *of("a")) == request_id
    assert store.start(Lease(request_id, "run"), "ann") is None
    assert pop(redis, *of("a")) is None
    assert [key for key in redis.scan_iter() if ":loras" in str(key)] == []


def test_a_place_in_a_choice_alone_stops_no_pop(redis: Redis, redis_url: str) -> None:
    request_id, plain = submit(redis_url, lora=asked("a")), submit(redis_url)
    redis.zrem(keyspace.QUEUES[SLOW + LORA].waiting, request_id)
    assert [pop(redis, *of("a")) for _ in range(3)] == [request_id, plain, None]


def test_a_popped_request_that_the_worker_cannot_run_waits_on(redis: Redis, redis_url: str) -> None:
    store = WorkerStore(redis, lease_seconds=10, retention_seconds=60, sources=of("b"))
    request_id = submit(redis_url, lora=asked("a"))
    assert store.start(Lease(request_id, "run"), "ann") is None
    assert pop(redis, *of("a")) == request_id


@pytest.mark.parametrize(("offered", "is_there"), [("a", False), ("ab", True), ("abc", True)])
def test_a_blocking_submit_needs_a_worker_with_all_that_it_names(
    redis: Redis, redis_url: str, offered: str, is_there: bool
) -> None:
    WorkerStore(redis, lease_seconds=10, retention_seconds=60).beat(live("ann", loras=offered))

    def ask() -> None:
        ask_gateway(
            redis_url, lambda it: it.submit(params(lora=asked("a", "b")), OWNER, needs_worker=True)
        )

    if is_there:
        ask()
    else:
        with pytest.raises(NoWorkerError, match="with the LoRAs a,b"):
            ask()


def test_figures_of_a_model_count_its_requests_with_loras(redis: Redis, redis_url: str) -> None:
    submit(redis_url)
    submit(redis_url, lora=asked("a"))
    figures = survey(redis).queues
    assert figures.keys() == {SLOW, FAST}
    assert figures[SLOW].waiting == 2


def test_a_worker_without_loras_announces_what_it_did_before(redis: Redis) -> None:
    assert live().sources == (SLOW,)
    (read,) = read_all([str(live("ann", loras="a"))])
    assert (read.takes(SLOW), read.takes(SLOW + LORA)) == (True, True)
    assert (read.has_loras("a"), read.has_loras(["a", "b"])) == (True, False)
    earlier = str(live()).replace(',"loras":{}', "")
    assert read_all([earlier]) == [live()]
