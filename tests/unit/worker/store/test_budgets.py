"""Monthly caps: what counts against one, when a month begins, and the notices of each month."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from redis import Redis

from server.keys.times import broker_time
from tests.support.jobs import OWNER, ask_gateway, find, params, pop
from worker.billing import MILLION, Price, from_millionths
from worker.broker.connection import connect_gateway
from worker.errors import MonthlyCapError, TooFewCreditsError
from worker.store import keyspace, scripts
from worker.store.reports.usage import UsageStore
from worker.store.webhooks.deliveries import Delivery, all_deliveries
from worker.store.worker_side import Lease, Result, WorkerStore

RETENTION_SECONDS = 60
ACCOUNT = keyspace.API_KEY + OWNER
FIRST_DAY = date(1970, 1, 1)
THERE: Any = {"url": "https://there.example/", "base": "https://us.example", "is_heard": False}


@pytest.fixture
def store(redis: Redis) -> WorkerStore:
    return WorkerStore(redis, lease_seconds=10, retention_seconds=RETENTION_SECONDS)


def put_cap(redis: Redis, credits_: float, **more: float) -> None:
    amounts = {"monthly_cap": credits_} | more
    redis.hset(ACCOUNT, mapping={name: round(MILLION * it) for name, it in amounts.items()})


def put_webhook(redis: Redis, name: str = "hook", types: Any = ("BUDGET",), **more: Any) -> None:
    redis.hset(keyspace.STANDING + OWNER, name, json.dumps(THERE | {"types": types} | more))


def submit(url: str, credits_: float) -> str:
    price = Price(round(credits_ * MILLION))
    return ask_gateway(url, lambda it: it.submit(params(), OWNER, price=price)).request_id


def start(store: WorkerStore, redis: Redis) -> Lease:
    lease = Lease(str(pop(redis)), "run")
    assert store.start(lease, "ann")
    return lease


def spend(store: WorkerStore, redis: Redis, url: str, credits_: float) -> str:
    request_id = submit(url, credits_)
    assert store.complete(start(store, redis), Result("a.mp4", 17))
    return request_id


def notices(redis: Redis) -> list[Delivery]:
    found = [each for each in all_deliveries(redis) if each.event]
    return sorted(found, key=lambda each: (each.notice.percent, each.delivery_id))


def to_last_month(redis: Redis) -> None:
    """As if a month had begun since. Two months back, lest this one ends meanwhile."""
    for name in map(str, redis.keys(f"{keyspace.USAGE}*")):
        day = int(name.removeprefix(keyspace.USAGE))
        redis.rename(name, f"{keyspace.USAGE}{day - 62}")


def refused(url: str, credits_: float, match: str) -> None:
    with pytest.raises(MonthlyCapError, match=match):
        submit(url, credits_)
    price = Price(round(credits_ * MILLION))
    with pytest.raises(MonthlyCapError, match=match):
        ask_gateway(url, lambda it: it.try_out(OWNER, price=price))


def test_the_months_of_the_scripts_are_those_of_the_calendar(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_month = "local m = {} for day = 0, 47846 do m[day + 1] = { month_of(day) } end return m"
    monkeypatch.setitem(scripts._TEXTS, "alive", every_month)
    source = scripts.source.__wrapped__("alive")
    months = redis.register_script(source)(keyspace.for_scripts())
    days = [FIRST_DAY + timedelta(number) for number in range(len(months))]
    assert days[-1] == date(2100, 12, 31)
    assert months == [[(day.replace(day=1) - FIRST_DAY).days, day.isoformat()[:7]] for day in days]


def test_what_is_charged_reserved_and_asked_for_is_no_more_than_the_cap(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    put_cap(redis, 10)
    spend(store, redis, redis_url, 4)
    waits = submit(redis_url, 5)
    refused(
        redis_url,
        1.5,
        r"up to 1\.5, and the `monthly_cap` of this API key is 10, of which 4 are spent, and 5 are "
        "reserved",
    )
    before = redis.dump(ACCOUNT)
    submit(redis_url, 0)  # what costs nothing is accepted
    assert redis.dump(ACCOUNT) == before
    submit(redis_url, 1)
    refused(redis_url, 0.000001, r"costs up to 0\.000001")
    ask_gateway(redis_url, lambda it: it.cancel(waits, OWNER))
    submit(redis_url, 5)  # which the cancelled one has freed
    refused(redis_url, 0.000001, "month")


def test_what_is_above_the_whole_cap_is_not_told_to_wait(redis: Redis, redis_url: str) -> None:
    put_cap(redis, 1)
    refused(
        redis_url,
        1.5,
        r"up to 1\.5, more than the whole `monthly_cap` of this API key, 1\. Ask for less, or",
    )


def test_a_refusal_says_when_the_month_ends(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    put_cap(redis, 1)
    spend(store, redis, redis_url, 0.5)
    with pytest.raises(MonthlyCapError) as error:
        submit(redis_url, 0.75)
    end = re.search(r"month ends at (\d{4})-(\d\d)-01T00:00:00Z;", str(error.value))
    assert end
    today = broker_time(redis).date()
    next_month = (today.replace(day=1) + timedelta(31)).replace(day=1)
    assert date(int(end[1]), int(end[2]), 1) == next_month
    assert "reserved" not in str(error.value)


def test_a_new_month_begins_with_nothing_spent_and_what_still_runs(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    put_cap(redis, 10)
    spend(store, redis, redis_url, 6)
    submit(redis_url, 4)
    refused(redis_url, 1, "of which 6 are spent, and 4 are reserved")
    to_last_month(redis)
    refused(redis_url, 7, "of which 0 are spent, and 4 are reserved")
    submit(redis_url, 6)
    assert store.complete(start(store, redis), Result("a.mp4", 17))
    refused(redis_url, 1, "of which 4 are spent, and 6 are reserved")


def test_a_cap_counts_what_was_spent_before_it_was_set(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    redis.hset(ACCOUNT, "priority", 1)
    spend(store, redis, redis_url, 3)
    put_cap(redis, 4)
    refused(redis_url, 2, "of which 3 are spent")
    put_cap(redis, 2)
    refused(redis_url, 1, "of which 3 are spent")
    submit(redis_url, 0)
    redis.hdel(ACCOUNT, "monthly_cap")
    submit(redis_url, 100)


def test_the_balance_is_looked_at_before_the_cap(redis: Redis, redis_url: str) -> None:
    put_cap(redis, 1, balance=1)
    with pytest.raises(TooFewCreditsError):
        submit(redis_url, 2)


@pytest.mark.parametrize(
    ("balance", "left"), [(None, 7), (20, 7), (8, 5)], ids=["no balance", "large", "small"]
)
def test_what_is_left_after_a_request_is_the_smaller_of_balance_and_cap(
    store: WorkerStore, redis: Redis, redis_url: str, balance: int | None, left: int
) -> None:
    put_cap(redis, 10, **({} if balance is None else {"balance": balance}))
    request_id = spend(store, redis, redis_url, 3)
    assert find(redis_url, request_id).remaining == left * MILLION


async def _charged(url: str) -> Decimal:
    async with connect_gateway(url) as client:
        return await UsageStore(client).charged_this_month(OWNER)


def test_gateways_and_scripts_count_the_same_for_a_month(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    put_cap(redis, 10)
    spend(store, redis, redis_url, 1.25)
    today = broker_time(redis).date()
    first, last = ((day - FIRST_DAY).days for day in (today.replace(day=1), today))
    for day in (first - 1, first + 31):  # of the months before and after
        redis.hincrby(f"{keyspace.USAGE}{day}", f"{OWNER} charged", 100 * MILLION)
    redis.hincrby(f"{keyspace.USAGE}{first}", f"{OWNER} charged", 2 * MILLION)
    redis.hincrby(f"{keyspace.USAGE}{last}", "another charged", 50 * MILLION)
    assert asyncio.run(_charged(redis_url)) == Decimal("3.25")
    refused(redis_url, 7, r"of which 3\.25 are spent")


def test_each_share_of_a_cap_is_told_once_a_month(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    put_cap(redis, 10)
    put_webhook(redis)
    put_webhook(redis, "other", ["INFERENCE", "BUDGET"], url="https://other.example/")
    spend(store, redis, redis_url, 7.999999)
    assert notices(redis) == []
    spend(store, redis, redis_url, 0.000001)
    month = broker_time(redis).strftime("%Y-%m")
    name = f"budget-80-{month}-{OWNER}"
    assert [each.delivery_id for each in notices(redis)] == [f"{name}:hook", f"{name}:other"]
    spend(store, redis, redis_url, 1)
    assert len(notices(redis)) == 2
    spend(store, redis, redis_url, 1)
    assert [each.event for each in notices(redis)] == ["budget.warning"] * 2 + [
        "budget.reached"
    ] * 2
    warned, *_, reached = (each.notice for each in notices(redis))
    assert (warned.month, warned.percent, reached.percent) == (month, 80, 100)
    assert [from_millionths(it.charged) for it in (warned, reached)] == [8, 10]
    assert warned.monthly_cap == reached.monthly_cap == 10 * MILLION
    put_cap(redis, 20)
    spend(store, redis, redis_url, 10)
    assert len(notices(redis)) == 4
    assert len(redis.lrange(f"{keyspace.STANDING_LOG}hook", 0, -1)) == 2


def test_the_next_month_has_notices_of_its_own(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    put_cap(redis, 10)
    put_webhook(redis)
    spend(store, redis, redis_url, 9)
    to_last_month(redis)
    redis.delete(*(keyspace.WEBHOOK + each.delivery_id for each in notices(redis)))
    spend(store, redis, redis_url, 7)
    assert notices(redis) == []
    spend(store, redis, redis_url, 1)
    assert [each.notice.percent for each in notices(redis)] == [80]


def test_one_charge_may_bring_both_and_only_a_charge_brings_any(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    put_webhook(redis)
    put_cap(redis, 10)
    submit(redis_url, 10)
    assert store.fail(start(store, redis), "internal", "no")
    spend(store, redis, redis_url, 0)
    assert notices(redis) == []
    spend(store, redis, redis_url, 10)
    assert [each.event for each in notices(redis)] == ["budget.warning", "budget.reached"]


def test_a_rest_that_covers_no_further_request_is_told_of_as_100_per_cent(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    """Hardly a cap is a multiple of the prices, and nothing is charged above it."""
    put_cap(redis, 10.5)
    put_webhook(redis)
    told = []
    for _ in range(10):
        spend(store, redis, redis_url, 1)
        told.append([each.notice.percent for each in notices(redis)])
    refused(redis_url, 1, "of which 10 are spent")
    assert told == [[]] * 8 + [[80], [80, 100]]
    assert from_millionths(notices(redis)[1].notice.charged) == 10


def test_a_large_request_that_still_leaves_much_is_not_told_of_as_100_per_cent(
    store: WorkerStore, redis: Redis, redis_url: str
) -> None:
    put_cap(redis, 10)
    put_webhook(redis)
    spend(store, redis, redis_url, 7)
    assert notices(redis) == []


@pytest.mark.parametrize("millions", [7, 10**9 - 1])
def test_large_and_odd_caps_are_compared_exactly(
    store: WorkerStore, redis: Redis, redis_url: str, millions: int
) -> None:
    cap = millions * MILLION + 1  # in millionths: no share of it is whole
    redis.hset(ACCOUNT, "monthly_cap", cap)
    put_webhook(redis)
    share = (cap * 4 + 4) // 5
    today = (broker_time(redis).date() - FIRST_DAY).days
    redis.hset(f"{keyspace.USAGE}{today}", f"{OWNER} charged", share - 2)
    spend(store, redis, redis_url, 0.000001)
    assert notices(redis) == []
    spend(store, redis, redis_url, 0.000001)
    assert [each.notice.percent for each in notices(redis)] == [80]


def revoke(redis: Redis) -> None:
    put_webhook(redis)
    redis.hset(ACCOUNT, "revoked_at", 1)


def remove_cap(redis: Redis) -> None:
    put_webhook(redis)
    redis.hdel(ACCOUNT, "monthly_cap")


def put_odd_webhooks(redis: Redis) -> None:
    put_webhook(redis, "ends", ["INFERENCE"], is_heard=True)
    put_webhook(redis, "odd", {"BUDGET": 1})
    put_webhook(redis, "null", None)


@pytest.mark.parametrize(
    "prepare",
    [revoke, remove_cap, put_odd_webhooks],
    ids=["revoked", "no cap", "not asked for"],
)
def test_others_get_no_notice(
    store: WorkerStore, redis: Redis, redis_url: str, prepare: Callable[[Redis], None]
) -> None:
    put_cap(redis, 1)
    submit(redis_url, 1)
    prepare(redis)
    assert store.complete(start(store, redis), Result("a.mp4", 17))
    assert notices(redis) == []
