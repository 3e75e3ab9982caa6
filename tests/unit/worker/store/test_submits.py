"""Several requests in one submit, and the one request that finishes a draft."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from redis import Redis

from models.errors import InvalidParametersError
from tests.support.jobs import OWNER, ask_gateway, find, params, pop, submit, waiting
from worker.billing import Price
from worker.errors import (
    FinishConflictError,
    IdempotencyConflictError,
    JobError,
    LimitError,
    QueueFullError,
    RequestNotFoundError,
    TooFastError,
    TooFewCreditsError,
    TooManyJobsError,
)
from worker.job import Status
from worker.store import keyspace
from worker.store.submits import Accepted, Idempotency, NewRequest
from worker.store.worker_side import Lease, Result, WorkerStore

ACCOUNT = keyspace.API_KEY + OWNER
DRAFT = {"draft_steps": "4"}


def submit_several(url: str, count: int, most_waiting: int = 1000, **options: Any) -> Accepted:
    requests = [NewRequest(params(seed=seed), {"hints": f'["{seed}"]'}) for seed in range(count)]
    return ask_gateway(
        url, lambda it: it.submit_all(requests, OWNER, **options), most_waiting=most_waiting
    )


def ids_of(url: str, accepted: Accepted) -> list[str]:
    return [accepted.request_id, *find(url, accepted.request_id).siblings.split()]


def keys_of_requests(redis: Redis) -> Counter[str]:
    """How many keys of each kind the broker has, but for counters."""
    names = map(str, redis.keys("*"))
    return Counter(name.rpartition(":")[0] for name in names if "metrics" not in name)


def test_all_requests_of_a_submit_wait_in_its_order(redis: Redis, redis_url: str) -> None:
    ids = ids_of(redis_url, submit_several(redis_url, 4))
    jobs = [find(redis_url, request_id) for request_id in ids]
    assert [job.params.seed for job in jobs] == [0, 1, 2, 3]
    assert [job.position for job in jobs] == [1, 2, 3, 4]
    assert [job.warnings for job in jobs] == [["0"], ["1"], ["2"], ["3"]]
    assert {job.status for job in jobs} == {Status.QUEUED}
    assert waiting(redis) == ids
    page = ask_gateway(redis_url, lambda it: it.page_of(OWNER, most=10, is_ascending=True))
    assert [job.request_id for job in page.jobs] == ids
    assert [pop(redis) for _ in ids] == ids


def test_only_the_first_names_the_others(redis_url: str) -> None:
    first, *others = ids_of(redis_url, submit_several(redis_url, 3))
    assert find(redis_url, first).siblings == " ".join(others)
    assert {find(redis_url, other).siblings for other in others} == {""}
    assert find(redis_url, submit(redis_url)).siblings == ""


def test_several_requests_leave_the_keys_of_as_many_single_ones(
    redis: Redis, redis_url: str
) -> None:
    submit_several(redis_url, 3)
    together = keys_of_requests(redis)
    redis.flushall()
    for _ in range(3):
        submit(redis_url)
    assert keys_of_requests(redis) == together


def test_another_owners_request_comes_between_several(redis: Redis, redis_url: str) -> None:
    first, *others = ids_of(redis_url, submit_several(redis_url, 3))
    other = ask_gateway(redis_url, lambda it: it.submit(params(), "another-key"))
    assert [pop(redis) for _ in range(4)] == [first, other.request_id, *others]


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"jobs_at_once": 3}, TooManyJobsError),
        ({"requests_per_minute": 3}, TooFastError),
        ({"balance": 29, "granted": 29}, TooFewCreditsError),
    ],
)
def test_a_limit_that_has_no_room_for_all_lets_none_in(
    redis: Redis, redis_url: str, limits: dict[str, int], error: type[Exception]
) -> None:
    redis.hset(ACCOUNT, mapping=limits)  # type: ignore[arg-type]
    submit_several(redis_url, 1)
    before = waiting(redis), redis.hgetall(ACCOUNT)
    with pytest.raises(error):
        submit_several(redis_url, 3, price=Price(10))
    assert (waiting(redis), redis.hgetall(ACCOUNT)) == before
    assert submit_several(redis_url, 2, price=Price(10))


@pytest.mark.parametrize("limits", [{"jobs_at_once": 3}, {"requests_per_minute": 3}, {}])
def test_a_limit_that_has_no_room_for_all_says_what_to_lower(
    redis: Redis, redis_url: str, limits: dict[str, int]
) -> None:
    if limits:
        redis.hset(ACCOUNT, mapping=limits)  # type: ignore[arg-type]
    submit_several(redis_url, 1, most_waiting=3)
    with pytest.raises(LimitError, match=r"All 3 requests of your `count` need room at once"):
        submit_several(redis_url, 3, most_waiting=3)
    submit_several(redis_url, 2, most_waiting=3)
    with pytest.raises(LimitError) as error:
        submit_several(redis_url, 1, most_waiting=3)
    assert "count" not in str(error.value)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (
            {"balance": 39, "granted": 39},
            "Insufficient credits: the 4 requests cost up to 0.00004, and the balance is 0.000039. "
            "Ask your operator for more.",
        ),
        (
            {"monthly_cap": 39},
            "Insufficient credits this month: the 4 requests cost up to 0.00004, more ",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_refusal_of_several_says_what_all_of_them_need(
    redis: Redis, redis_url: str, limits: dict[str, int], text: str
) -> None:
    redis.hset(ACCOUNT, mapping=limits)  # type: ignore[arg-type]
    with pytest.raises(JobError) as submitted:
        submit_several(redis_url, 4, price=Price(10))
    with pytest.raises(JobError) as tried:
        ask_gateway(redis_url, lambda it: it.try_out(OWNER, price=Price(10), count=4))
    assert str(submitted.value) == str(tried.value)
    assert str(submitted.value).startswith(text)


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"jobs_at_once": 3}, "3 requests that this API key may have at once"),
        ({"requests_per_minute": 1}, "1 request that this API key may submit a minute"),
        ({}, "3 requests that the queue may hold"),
    ],
    ids=["jobs_at_once", "requests_per_minute", "queue"],
)
def test_more_than_would_ever_fit_is_a_wrong_count(
    redis: Redis, redis_url: str, limits: dict[str, int], most: str
) -> None:
    if limits:
        redis.hset(ACCOUNT, mapping=limits)  # type: ignore[arg-type]
    room = 1000 if limits else 3
    with pytest.raises(InvalidParametersError) as submitted:
        submit_several(redis_url, 4, most_waiting=room)
    with pytest.raises(InvalidParametersError) as tried:
        ask_gateway(
            redis_url, lambda it: it.try_out(OWNER, price=Price(), count=4), most_waiting=room
        )
    text = f"`count` 4 is more than the {most}. Ask for fewer."
    assert submitted.value.parameters == tried.value.parameters == {"count": text}
    assert str(submitted.value) == text


def test_a_queue_takes_as_many_as_it_has_room_for(redis: Redis, redis_url: str) -> None:
    assert submit_several(redis_url, 1, most_waiting=3)
    with pytest.raises(QueueFullError):
        submit_several(redis_url, 3, most_waiting=3)
    assert submit_several(redis_url, 2, most_waiting=3)
    with pytest.raises(QueueFullError):
        submit_several(redis_url, 1, most_waiting=3)


def test_several_requests_reserve_the_price_of_each(redis: Redis, redis_url: str) -> None:
    redis.hset(ACCOUNT, mapping={"balance": 100, "granted": 100})
    submit_several(redis_url, 3, price=Price(10, gpu_second=2, most_gpu_seconds=3))
    assert redis.hmget(ACCOUNT, "balance", "reserved") == ["52", "48"]
    request_id = pop(redis)
    assert request_id
    store = WorkerStore(redis, lease_seconds=10, retention_seconds=60)
    assert store.start(Lease(request_id, "a-run"), "ann")
    assert store.fail(Lease(request_id, "a-run"), "internal", "no")
    assert redis.hmget(ACCOUNT, "balance", "reserved") == ["68", "32"]


def test_the_rate_limit_counts_each_and_names_when_there_is_room_for_all(
    redis: Redis, redis_url: str
) -> None:
    redis.hset(ACCOUNT, "requests_per_minute", 5)
    accepted = submit_several(redis_url, 3)
    assert accepted.rate
    assert accepted.rate.remaining == 2
    ids = ids_of(redis_url, accepted)
    now = redis.time()[0] * 1000
    for age, request_id in zip((30_000, 20_000, 10_000), ids, strict=True):
        redis.zadd(keyspace.RATE + OWNER, {request_id: now - age})
    with pytest.raises(TooFastError) as error:
        submit_several(redis_url, 4)
    assert error.value.rate.remaining == 2
    assert 38 < error.value.rate.reset_seconds < 42  # when the second is a minute old


def test_a_dry_run_of_several_makes_the_same_checks(redis: Redis, redis_url: str) -> None:
    redis.hset(ACCOUNT, "jobs_at_once", 3)
    submit_several(redis_url, 1)
    free = Price()
    outlook = ask_gateway(redis_url, lambda it: it.try_out(OWNER, price=free, count=2))
    assert (outlook.position, outlook.cached) == (2, 0)
    with pytest.raises(TooManyJobsError):
        ask_gateway(redis_url, lambda it: it.try_out(OWNER, price=free, count=3))
    assert len(waiting(redis)) == 1


def test_a_replay_finds_all_requests_of_the_first_submit(redis: Redis, redis_url: str) -> None:
    key = Idempotency.of(OWNER, "a key", {"count": 3})
    first = submit_several(redis_url, 3, idempotency=key)
    again = submit_several(redis_url, 3, idempotency=key)
    assert again == Accepted(first.request_id, is_replay=True)
    assert len(ids_of(redis_url, again)) == len(waiting(redis)) == 3
    with pytest.raises(IdempotencyConflictError):
        submit_several(redis_url, 2, idempotency=Idempotency.of(OWNER, "a key", {"count": 2}))


def test_a_broker_with_full_memory_takes_none_of_several(redis: Redis, redis_url: str) -> None:
    redis.hset(ACCOUNT, "requests_per_minute", 5)
    redis.zadd(keyspace.RATE + OWNER, {"long ago": 1})
    ask_gateway(redis_url, lambda it: it.submit(params(), OWNER))
    before = redis.zrange(keyspace.RATE + OWNER, 0, -1), sorted(redis.keys("*"))
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Exception, match="memory"):
            submit_several(redis_url, 2)
    finally:
        redis.config_set("maxmemory", 0)
    assert (redis.zrange(keyspace.RATE + OWNER, 0, -1), sorted(redis.keys("*"))) == before


# Finishes


def finish(url: str, draft_id: str, owner: str = OWNER, **options: Any) -> Accepted:
    request = NewRequest(params(), {"draft_of": draft_id, "first_step": "4"})
    return ask_gateway(
        url, lambda it: it.submit_all([request], owner, draft_id=draft_id, **options)
    )


def complete(redis: Redis, request_id: str) -> None:
    assert pop(redis) == request_id
    store = WorkerStore(redis, lease_seconds=10, retention_seconds=60)
    lease = Lease(request_id, "a-run")
    assert store.start(lease, "ann")
    assert store.complete(lease, Result(f"{request_id}-a-run.mp4", 1000))


@pytest.fixture
def draft(redis: Redis, redis_url: str) -> str:
    request_id = submit(redis_url, record=DRAFT)
    complete(redis, request_id)
    return request_id


def test_a_draft_has_one_finish_however_often_it_is_asked_for(
    redis: Redis, redis_url: str, draft: str
) -> None:
    first = finish(redis_url, draft)
    assert not first.is_replay
    assert finish(redis_url, draft) == Accepted(first.request_id, is_replay=True)
    job = find(redis_url, first.request_id)
    assert (job.draft_of, job.first_step, job.draft_steps) == (draft, 4, 0)
    complete(redis, first.request_id)
    assert finish(redis_url, draft) == Accepted(first.request_id, is_replay=True)
    assert waiting(redis) == []


def test_a_second_finish_with_another_webhook_is_refused(
    redis: Redis, redis_url: str, draft: str
) -> None:
    def ask(draft_id: str, **fields: str) -> Accepted:
        request = NewRequest(params(), {"draft_of": draft_id, "first_step": "4", **fields})
        return ask_gateway(redis_url, lambda it: it.submit_all([request], OWNER, draft_id=draft_id))

    first = ask(draft, webhook_url="https://a.test")
    for again in (ask(draft, webhook_url="https://a.test"), ask(draft)):
        assert again == Accepted(first.request_id, is_replay=True)
    with pytest.raises(FinishConflictError, match=f"Request {first.request_id} finishes this"):
        ask(draft, webhook_url="https://b.test")
    assert redis.hget(f"{keyspace.METRICS}", "submits conflict") == "1"
    assert waiting(redis) == [first.request_id]
    complete(redis, first.request_id)
    other = submit(redis_url, record=DRAFT)
    complete(redis, other)
    plain = ask(other)
    with pytest.raises(FinishConflictError, match="with another `webhook_url` or none"):
        ask(other, webhook_url="https://b.test")
    assert waiting(redis) == [plain.request_id]


def test_a_finish_changes_no_expiry_and_no_state_of_its_draft(
    redis: Redis, redis_url: str, draft: str
) -> None:
    before, expiry = find(redis_url, draft), redis.pexpiretime(keyspace.record(draft))
    finish(redis_url, draft)
    assert find(redis_url, draft) == before
    assert redis.pexpiretime(keyspace.record(draft)) == expiry > 0


@pytest.mark.parametrize("end", ["cancelled", "deleted", "expired"])
def test_a_finish_that_failed_or_is_gone_may_be_repeated(
    redis: Redis, redis_url: str, draft: str, end: str
) -> None:
    first = finish(redis_url, draft).request_id
    match end:
        case "cancelled":
            ask_gateway(redis_url, lambda it: it.cancel(first, OWNER))
        case "deleted":
            ask_gateway(redis_url, lambda it: it.delete(first, OWNER))
        case "expired":
            complete(redis, first)
            redis.delete(keyspace.record(first))
    again = finish(redis_url, draft)
    assert not again.is_replay
    assert again.request_id != first


@pytest.mark.parametrize("how", ["deleted", "cancelled"])
def test_a_running_finish_that_is_about_to_end_without_a_video_may_be_repeated(
    redis: Redis, redis_url: str, draft: str, how: str
) -> None:
    first = finish(redis_url, draft).request_id
    assert pop(redis) == first
    store = WorkerStore(redis, lease_seconds=10, retention_seconds=60)
    assert store.start(Lease(first, "a-run"), "ann")
    if how == "deleted":
        ask_gateway(redis_url, lambda it: it.delete(first, OWNER))
    else:
        ask_gateway(redis_url, lambda it: it.cancel(first, OWNER))
    assert find(redis_url, draft).status is Status.COMPLETED
    assert finish(redis_url, draft).request_id != first


def test_another_owner_cannot_finish_a_draft(redis: Redis, redis_url: str, draft: str) -> None:
    with pytest.raises(RequestNotFoundError, match=draft):
        finish(redis_url, draft, owner="another-key")
    assert waiting(redis) == []


@pytest.mark.parametrize("how", ["expired", "deleted"])
def test_a_draft_that_is_gone_has_no_finish(
    redis: Redis, redis_url: str, draft: str, how: str
) -> None:
    if how == "expired":
        redis.delete(keyspace.record(draft))
    else:
        ask_gateway(redis_url, lambda it: it.delete(draft, OWNER))
    with pytest.raises(RequestNotFoundError, match=draft):
        finish(redis_url, draft)
    assert waiting(redis) == []
    assert not redis.exists(keyspace.record(draft))


def test_an_idempotency_key_finds_its_finish_even_when_that_failed(
    redis_url: str, draft: str
) -> None:
    key = Idempotency.of(OWNER, "a key", {"finish": draft})
    first = finish(redis_url, draft, idempotency=key)
    ask_gateway(redis_url, lambda it: it.cancel(first.request_id, OWNER))
    assert finish(redis_url, draft, idempotency=key) == Accepted(first.request_id, is_replay=True)
