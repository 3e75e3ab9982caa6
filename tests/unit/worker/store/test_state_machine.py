"""The life of requests in any order of events, against a real Valkey.

Workers die at any point simply by being forgotten. Zombies are leases that are still used after the
reconciler has taken them away.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import pytest
import redis.asyncio
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import booleans, integers, sampled_from
from redis import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.jobs import OWNER, end_lease, live, params, pop
from worker.billing import FREE, Price, to_millionths
from worker.errors import QueueFullError, RequestNotFoundError, TooFewCreditsError
from worker.job import TRANSITIONS, Cancellation, Job, Status
from worker.store import keyspace, scripts
from worker.store.deliveries import State, all_deliveries
from worker.store.gateway_side import Accepted, GatewayStore, Idempotency
from worker.store.worker_side import Lease, Order, Recovery, Result, WorkerStore

MOST_WAITING = 4
LEASE_SECONDS = 30
RETENTION_SECONDS = 60
WORKERS = sampled_from(["ann", "bob", "cid"])
GRANTED = 20
"""Millionths of a credit, as are all amounts here."""
PRICES = sampled_from([FREE, Price(3), Price(4, gpu_second=2, most_gpu_seconds=3)])


class Forgetful(redis.UnixDomainSocketConnection):
    """Loses the next reply on request: the command was executed, and the client cannot know."""

    lose_next = False

    def read_response(self, *args: Any, **options: Any) -> Any:
        response = super().read_response(*args, **options)
        if Forgetful.lose_next:
            Forgetful.lose_next = False
            raise redis.ConnectionError("the reply is lost")
        return response


class AsyncForgetful(redis.asyncio.UnixDomainSocketConnection):
    lose_next = False

    async def read_response(self, *args: Any, **options: Any) -> Any:
        response = await super().read_response(*args, **options)
        if AsyncForgetful.lose_next:
            AsyncForgetful.lose_next = False
            raise redis.ConnectionError("the reply is lost")
        return response


@dataclass
class Snapshot:
    """All that the broker holds of the requests, at one moment."""

    jobs: dict[str, Job]
    runs: dict[str, str]
    has_ttl: dict[str, bool]
    rq_jobs: set[str]
    waiting: set[str]
    leased: set[str]
    queued: list[str]
    popped: list[str]
    live: set[str]
    reserved: dict[str, int]
    account: dict[str, int]
    used: dict[str, int]


class Requests(RuleBasedStateMachine):
    """One gateway, three workers, and a reconciler that may look at any time."""

    ids: Bundle[str] = Bundle("ids")
    pops: Bundle[tuple[str, str]] = Bundle("pops")
    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self, url: str) -> None:
        super().__init__()
        path = url.removeprefix("unix://")
        self.redis = Redis(
            connection_pool=redis.ConnectionPool(
                connection_class=Forgetful,
                path=path,
                decode_responses=True,
                retry=Retry(NoBackoff(), 1),
            )
        )
        self.gateway_redis = redis.asyncio.Redis(
            connection_pool=redis.asyncio.ConnectionPool(
                connection_class=AsyncForgetful,
                path=path,
                decode_responses=True,
                retry=AsyncRetry(NoBackoff(), 1),
            )
        )
        self.loop = asyncio.Runner()
        self.store = WorkerStore(
            self.redis, lease_seconds=LEASE_SECONDS, retention_seconds=RETENTION_SECONDS
        )
        self.gateway = GatewayStore(
            self.gateway_redis, most_waiting=MOST_WAITING, retention_seconds=RETENTION_SECONDS
        )
        self.runs = itertools.count()
        self.key = Idempotency.of(OWNER, "a key", {"prompt": "a pond"})
        self.accepted: set[str] = set()
        self.expired: set[str] = set()
        self.unlisted: set[str] = set()
        self.last: dict[str, Job] = {}
        self.ends: dict[str, Job] = {}

    @initialize()
    def flush(self) -> None:
        self.redis.flushall()
        account = {"balance": GRANTED, "granted": GRANTED, "reserved": 0, "charged": 0}
        self.redis.hset(keyspace.API_KEY + OWNER, mapping=account)  # type: ignore[arg-type]
        for name in ("submit", "start", "beat", "finish", "requeue", "reap", "recover", "cancel"):
            self.redis.script_load(
                scripts.source(name)
            )  # or the reply to this would be the lost one

    def teardown(self) -> None:
        Forgetful.lose_next = AsyncForgetful.lose_next = False
        self.loop.run(self.gateway_redis.connection_pool.disconnect())
        self.loop.close()
        self.redis.connection_pool.disconnect()

    def job(self, request_id: str) -> Job | None:
        record = self.redis.hgetall(keyspace.record(request_id))
        return Job.from_record(request_id, record) if record else None  # type: ignore[arg-type]

    def holds(self, lease: Lease) -> bool:
        """Whether the record says that this run may write."""
        status, run = self.redis.hmget(keyspace.record(lease.request_id), "status", "run")
        return bool(status == Status.PROCESSING and run == lease.run)

    @rule(target=ids, lost=booleans(), keyed=booleans(), price=PRICES)
    def submit(self, lost: bool, keyed: bool, price: Price) -> Any:
        first = self.redis.hget(self.key.key, "request_id") if keyed else None
        room = self.redis.zcard(keyspace.WAITING) < MOST_WAITING
        AsyncForgetful.lose_next = lost
        submit = self.gateway.submit(
            params(),
            OWNER,
            price=price,
            idempotency=self.key if keyed else None,
            further={"webhook_url": "https://hooks.example/", "webhook_base": "https://us.example"},
        )
        if first:
            assert self.loop.run(submit) == Accepted(str(first), is_replay=True)
            return multiple()
        if not room:
            with pytest.raises(QueueFullError):
                self.loop.run(submit)
            return multiple()
        if to_millionths(price.most) > self.balance():
            with pytest.raises(TooFewCreditsError):
                self.loop.run(submit)
            return multiple()
        accepted = self.loop.run(submit)
        # Asked again after a lost reply, the broker knows it already by its id.
        assert not accepted.is_replay
        request_id = accepted.request_id
        self.accepted.add(request_id)
        return request_id

    def balance(self) -> int:
        return int(self.redis.hget(keyspace.API_KEY + OWNER, "balance") or 0)

    @rule(amount=integers(1, 9))
    def grant(self, amount: int) -> None:
        for name in ("balance", "granted"):
            self.redis.hincrby(keyspace.API_KEY + OWNER, name, amount)

    @rule(target=pops, worker=WORKERS)
    def pop(self, worker: str) -> Any:
        request_id = pop(self.redis)
        if request_id is None:
            return multiple()
        self.unlisted.discard(request_id)  # whose turn it is comes up wherever it is listed
        return worker, request_id

    @rule(target=leases, popped=consumes(pops), lost=booleans())
    def start(self, popped: tuple[str, str], lost: bool) -> Any:
        return self.start_popped(*popped, lost=lost) or multiple()

    def start_popped(self, worker: str, request_id: str, *, lost: bool = False) -> Lease | None:
        before = self.job(request_id)
        lease = Lease(request_id, f"run-{next(self.runs)}")
        Forgetful.lose_next = lost
        job = self.store.start(lease, worker)
        assert (job is not None) == (before is not None and before.status is Status.QUEUED)
        if before is None or job is None:
            return None
        assert (job.status, job.attempt) == (Status.PROCESSING, before.attempt + 1)
        assert job.params == params()
        self.unlisted.discard(request_id)
        return lease

    @rule(lease=leases, worker=WORKERS, step=integers(1, 10))
    def beat(self, lease: Lease, worker: str, step: int) -> None:
        holds = self.holds(lease)
        cancelled = self.is_cancelled(lease.request_id)
        expected = {Order.CANCEL} if holds and cancelled else set() if holds else {Order.LOST}
        assert self.store.beat(live(worker), lease, step) == expected
        if holds:
            assert self.redis.hget(keyspace.record(lease.request_id), "step") == str(step)

    @rule(lease=leases, lost=booleans())
    def complete(self, lease: Lease, lost: bool) -> None:
        result = Result(f"{lease.request_id}-{lease.run}.mp4", 1000, "bf16", ("Cut.",))
        self.end(lease, lambda: self.store.complete(lease, result), lost, Status.COMPLETED)

    @rule(lease=leases, lost=booleans())
    def fail(self, lease: Lease, lost: bool) -> None:
        self.end(lease, lambda: self.store.fail(lease, "internal", "no"), lost, Status.FAILED)

    def end(self, lease: Lease, end: Callable[[], bool], lost: bool, status: Status) -> None:
        holds = self.holds(lease)
        run = self.redis.hget(keyspace.record(lease.request_id), "run")
        before = self.job(lease.request_id)
        said_so = before is not None and run == lease.run and before.status is status
        unwanted = status is Status.COMPLETED and self.is_cancelled(lease.request_id)
        Forgetful.lose_next = lost
        assert end() == ((holds and not unwanted) or said_so)
        if not holds:
            assert self.job(lease.request_id) == before
        elif unwanted:
            self.assert_cancelled(lease.request_id)

    @rule(lease=leases, lost=booleans())
    def requeue(self, lease: Lease, lost: bool) -> None:
        holds, before = self.holds(lease), self.job(lease.request_id)
        cancelled = self.is_cancelled(lease.request_id)
        Forgetful.lose_next = lost
        given = self.store.requeue(lease)
        assert given == (holds and not lost)
        if before is None or not holds:
            return
        if cancelled:
            self.assert_cancelled(lease.request_id)
        else:
            self.assert_next(lease.request_id, attempt=before.attempt - 1)

    @rule(request_id=ids, lost=booleans())
    def cancel(self, request_id: str, lost: bool) -> None:
        before = self.job(request_id)
        with pytest.raises(RequestNotFoundError):
            self.loop.run(self.gateway.cancel(request_id, "somebody else"))
        assert self.job(request_id) == before
        AsyncForgetful.lose_next = lost
        cancel = self.gateway.cancel(request_id, OWNER)
        if before is None:
            with pytest.raises(RequestNotFoundError):
                self.loop.run(cancel)
            return
        outcome = self.loop.run(cancel)
        if before.status.is_final:
            assert outcome is Cancellation.ENDED
            assert self.job(request_id) == before
        elif before.status is Status.QUEUED:
            assert outcome is (Cancellation.ENDED if lost else Cancellation.REQUESTED)
            self.assert_cancelled(request_id)
            self.unlisted.discard(request_id)
        else:
            assert outcome is Cancellation.REQUESTED
            assert self.is_cancelled(request_id)

    def is_cancelled(self, request_id: str) -> bool:
        return bool(self.redis.hexists(keyspace.record(request_id), "cancelled"))

    def assert_cancelled(self, request_id: str) -> None:
        job = self.job(request_id)
        assert job is not None
        assert (job.status, job.error_code) == (Status.FAILED, "cancelled")

    @rule(request_id=ids)
    def end_lease(self, request_id: str) -> None:
        if self.redis.zscore(keyspace.LEASES, request_id) not in {None, 1.0}:
            end_lease(self.redis, request_id)

    @rule(request_id=ids, lost=booleans())
    def reap(self, request_id: str, lost: bool) -> None:
        is_over = self.redis.zscore(keyspace.LEASES, request_id) == 1.0
        self.recovery(request_id, self.store.reap, is_due=is_over, lost=lost)

    @rule(request_id=ids, lost=booleans())
    def recover(self, request_id: str, lost: bool) -> None:
        before = self.job(request_id)
        listed = request_id in self.redis.lrange(keyspace.RQ_QUEUE, 0, -1)
        is_due = before is not None and before.status is Status.QUEUED and not listed
        self.recovery(request_id, self.store.recover, is_due=is_due, lost=lost)
        self.unlisted.discard(request_id)

    def recovery(
        self,
        request_id: str,
        act: Callable[[str], Recovery | None],
        *,
        is_due: bool,
        lost: bool,
    ) -> None:
        before, cancelled = self.job(request_id), self.is_cancelled(request_id)
        Forgetful.lose_next = lost
        outcome = act(request_id)
        after = self.job(request_id)
        if not is_due or before is None or after is None:
            assert outcome is None
            assert after == before
        elif after.status is Status.FAILED:
            assert outcome is (None if lost else Recovery.FAILED)
            if cancelled:
                self.assert_cancelled(request_id)
            else:
                assert (after.error_code, after.attempt) == ("worker_lost", keyspace.MOST_ATTEMPTS)
        else:
            assert outcome is (None if lost else Recovery.REQUEUED)
            self.assert_next(request_id, attempt=after.attempt)

    def assert_next(self, request_id: str, *, attempt: int) -> None:
        """It is QUEUED, before all others, and nothing of the last run is left."""
        job = self.job(request_id)
        assert job is not None
        assert (job.status, job.attempt, job.started_at, job.step) == (
            Status.QUEUED, attempt, None, 0,
        )  # fmt: skip
        assert self.redis.zrange(keyspace.WAITING, 0, 0) == [request_id]
        assert self.redis.lindex(keyspace.RQ_QUEUE, 0) == request_id

    @rule(target=leases, worker=WORKERS, lost=booleans())
    def make(self, worker: str, lost: bool) -> Any:
        """The same for one that is completed, and then for what its run may still try."""
        request_id = pop(self.redis)
        if request_id is None:
            return multiple()
        self.unlisted.discard(request_id)
        lease = self.start_popped(worker, request_id)
        if lease is None:
            return multiple()
        self.holds_together()
        self.complete(lease, lost)
        return lease

    @rule(worker=WORKERS)
    def crash(self, worker: str) -> None:
        """All of it in one step, so that a request comes to its last attempt more often."""
        request_id = pop(self.redis)
        if request_id is None:
            return
        self.unlisted.discard(request_id)
        if self.start_popped(worker, request_id) is not None:
            self.end_lease(request_id)
            self.reap(request_id, lost=False)

    @rule(request_id=ids)
    def lose_from_lists(self, request_id: str) -> None:
        job = self.job(request_id)
        if job is not None and job.status is Status.QUEUED:
            self.redis.lrem(keyspace.RQ_QUEUE, 0, request_id)
            self.redis.lrem(keyspace.RQ_INTERMEDIATE, 0, request_id)
            self.unlisted.add(request_id)

    @rule(request_id=ids)
    def expire(self, request_id: str) -> None:
        job = self.job(request_id)
        if job is not None and job.status.is_final:
            key = self.redis.hget(keyspace.record(request_id), "idempotency_key")
            self.redis.delete(keyspace.record(request_id), *([str(key)] if key else []))
            self.expired.add(request_id)

    def look(self) -> Snapshot:
        known = sorted(self.accepted)
        pipeline = self.redis.pipeline()
        pipeline.zrange(keyspace.WAITING, 0, -1, withscores=True)
        pipeline.zrange(f"{keyspace.WAITING}:{OWNER}", 0, -1, withscores=True)
        pipeline.zrange(keyspace.LEASES, 0, -1)
        pipeline.lrange(keyspace.RQ_QUEUE, 0, -1)
        pipeline.lrange(keyspace.RQ_INTERMEDIATE, 0, -1)
        pipeline.smembers(keyspace.LIVE + OWNER)
        pipeline.hgetall(keyspace.API_KEY + OWNER)
        for request_id in known:
            pipeline.hgetall(keyspace.record(request_id))
            pipeline.pttl(keyspace.record(request_id))
            pipeline.exists(keyspace.rq_job(request_id))
        waiting, mine, leased, queued, popped, live, account, *rest = pipeline.execute()
        assert mine == waiting
        records = dict(zip(known, rest[0::3], strict=True))
        return Snapshot(
            jobs={
                name: Job.from_record(name, record) for name, record in records.items() if record
            },
            runs={name: record.get("run", "") for name, record in records.items()},
            has_ttl={name: ttl > 0 for name, ttl in zip(known, rest[1::3], strict=True)},
            rq_jobs={name for name, there in zip(known, rest[2::3], strict=True) if there},
            waiting={name for name, _ in waiting},
            leased=set(leased),
            queued=queued,
            popped=popped,
            live=live,
            reserved={name: int(record.get("reserved", 0)) for name, record in records.items()},
            account={name: int(amount) for name, amount in account.items()},
            used=self.used(),
        )

    def used(self) -> dict[str, int]:
        """The sums of all days: a test may run at midnight."""
        sums: Counter[str] = Counter()
        for day in self.redis.keys(f"{keyspace.USAGE}*"):
            for name, amount in cast("dict[str, str]", self.redis.hgetall(day)).items():
                sums[name.removeprefix(f"{OWNER} ")] += int(amount)
        return sums

    @invariant()
    def holds_together(self) -> None:
        now = self.look()
        assert set(now.jobs) == self.accepted - self.expired
        by_status = {
            status: {name for name, job in now.jobs.items() if job.status is status}
            for status in Status
        }
        assert now.waiting == by_status[Status.QUEUED]
        assert now.leased == by_status[Status.PROCESSING]
        ended = by_status[Status.COMPLETED] | by_status[Status.FAILED]
        assert {name for name, has_ttl in now.has_ttl.items() if has_ttl} == ended
        self.check_changes(now.jobs)
        self.check_webhooks(now.jobs, ended)
        self.check_rq(now, by_status)
        self.check_account(now, by_status[Status.QUEUED] | by_status[Status.PROCESSING])

    def check_changes(self, jobs: dict[str, Job]) -> None:
        for name, job in jobs.items():
            before = self.last.get(name)
            assert 0 <= job.attempt <= keyspace.MOST_ATTEMPTS
            is_completed = job.status is Status.COMPLETED
            assert {bool(job.file_name), bool(job.precision), bool(job.warnings)} == {is_completed}
            assert bool(job.error_code) == (job.status is Status.FAILED)
            if before is None:
                assert (job.status, job.attempt) == (Status.QUEUED, 0)
            elif before.status.is_final:
                assert job == before
            else:
                assert job.status in TRANSITIONS[before.status] | {before.status}
        self.last = jobs

    def check_webhooks(self, jobs: dict[str, Job], ended: set[str]) -> None:
        """Each end has one delivery, with the state at that end, and there is no other delivery."""
        deliveries = {each.request_id: each for each in all_deliveries(self.redis)}
        assert ended <= set(deliveries) <= ended | self.expired
        told = {name: replace(deliveries[name].job, expires_at=None) for name in ended}
        assert told == {name: jobs[name] for name in ended}
        assert set(self.redis.zrange(f"{keyspace.WEBHOOKS}:{OWNER}", 0, -1)) == set(deliveries)
        assert self.redis.zrange(keyspace.WEBHOOKS, 0, -1) == ([OWNER] if deliveries else [])
        assert all(each.state is State.DUE for each in deliveries.values())

    def check_account(self, now: Snapshot, live: set[str]) -> None:
        account, used = now.account, now.used
        self.ends |= {name: job for name, job in now.jobs.items() if job.status.is_final}
        completed = [job for job in self.ends.values() if job.status is Status.COMPLETED]
        assert now.live == live
        assert account["balance"] >= 0
        assert account["balance"] + account["reserved"] + account["charged"] == account["granted"]
        assert account["reserved"] == sum(now.reserved[name] for name in live)
        assert account["charged"] == sum(job.cost for job in completed) == used.get("charged", 0)
        assert all(job.cost == 0 for job in self.ends.values() if job not in completed)
        failed = Counter(job.error_code for job in self.ends.values() if job.error_code)
        ends = {"completed": len(completed), "requests": len(self.accepted)} | failed
        assert {name: used.get(name, 0) for name in ends} == ends

    def check_rq(self, now: Snapshot, by_status: dict[Status, set[str]]) -> None:
        listed = [*now.queued, *now.popped]
        assert len(set(listed)) == len(listed)
        assert set(listed) == by_status[Status.QUEUED] - self.unlisted
        assert now.rq_jobs == by_status[Status.QUEUED] | by_status[Status.PROCESSING]
        overdue = self.store.overdue()
        assert overdue is not None
        assert overdue.popped == now.popped
        assert overdue.missing == len(self.unlisted)
        assert set(self.store.unlisted()) == self.unlisted


def test_no_order_of_events_breaks_a_promise(redis_url: str) -> None:
    run_state_machine_as_test(
        partial(Requests, redis_url),  # type: ignore[arg-type]  # any factory will do
        settings=settings(
            max_examples=90,
            stateful_step_count=50,
            deadline=None,
            database=None,
            derandomize=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
