"""What holds for all requests after each event: records, queues, accounts and deliveries agree."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import cast

import redis.asyncio
from hypothesis.stateful import RuleBasedStateMachine, invariant
from redis import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from models.request.params import MODEL
from tests.support.jobs import OWNER
from tests.unit.worker.support.lost_replies import AsyncForgetful, Forgetful
from worker.job import LORA, TRANSITIONS, Job, Status
from worker.store import keyspace
from worker.store.gateway_side import GatewayStore
from worker.store.submits import Idempotency
from worker.store.webhooks.deliveries import State, all_deliveries, is_notice
from worker.store.worker_side import Lease, WorkerStore

SOURCES = [queue + (":a,b" if queue.endswith(LORA) else "") for queue in keyspace.QUEUES]
"""Of a worker of all models, with two LoRAs."""
MOST_WAITING = 4
LEASE_SECONDS = 30
RETENTION_SECONDS = 60
GRANTED = 20
"""Millionths of a credit, as are all amounts here."""
MONTHLY_CAP = 6
BUDGET_WEBHOOK = json.dumps(
    {"url": "https://budget.example/", "base": "", "types": ["BUDGET"], "is_heard": False}
)
"""Standing: it receives notices, and no end of a request."""


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


class Promises(RuleBasedStateMachine):
    """A gateway and a worker's store, and what is checked after each rule of a subclass.

    Attributes:
        accepted: the ids of all requests.
        expired: those whose record the broker has deleted.
        unlisted: those that are QUEUED and in no list of the queue.
        last: the records at the last look.
        ends: the records that have ended.
        noticed: shares of the monthly cap, in per cent, that a charge has come to.
        hits: those that were COMPLETED by their submit.
    """

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
            self.redis,
            lease_seconds=LEASE_SECONDS,
            retention_seconds=RETENTION_SECONDS,
            sources=SOURCES,
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
        self.noticed: set[int] = set()
        self.hits: set[str] = set()
        self.charged = 0

    def left_of_month(self) -> int:
        """Of the cap; all that was ever charged was charged in this month."""
        account = cast("dict[str, str]", self.redis.hgetall(keyspace.API_KEY + OWNER))
        cap, *held = (int(account[name]) for name in ("monthly_cap", "charged", "reserved"))
        return cap - sum(held)

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

    def is_cancelled(self, request_id: str) -> bool:
        return bool(self.redis.hexists(keyspace.record(request_id), "cancelled"))

    def waits_for_twin(self, request_id: str) -> bool:
        """Whether another request, with the same cache key, runs."""
        cache_key = self.redis.hget(keyspace.record(request_id), "cache_key")
        maker = self.redis.get(keyspace.MAKERS + str(cache_key)) if cache_key else None
        job = self.job(str(maker)) if maker else None
        return job is not None and job.status is Status.PROCESSING and maker != request_id

    def look(self) -> Snapshot:
        known = sorted(self.accepted)
        pipeline = self.redis.pipeline()
        for queue in keyspace.QUEUES.values():
            pipeline.zrange(queue.waiting, 0, -1, withscores=True)
            pipeline.zrange(f"{queue.waiting}:{OWNER}", 0, -1, withscores=True)
            pipeline.zrange(queue.leases, 0, -1)
            pipeline.lrange(queue.rq_queue, 0, -1)
            pipeline.lrange(queue.intermediate, 0, -1)
        pipeline.smembers(keyspace.LIVE + OWNER)
        pipeline.hgetall(keyspace.API_KEY + OWNER)
        for request_id in known:
            pipeline.hgetall(keyspace.record(request_id))
            pipeline.pttl(keyspace.record(request_id))
            pipeline.exists(keyspace.rq_job(request_id))
        answers = pipeline.execute()
        parts = 5 * len(keyspace.QUEUES)
        waiting, mine, leased, queued, popped = (answers[part:parts:5] for part in range(5))
        live, account, *rest = answers[parts:]
        assert mine == waiting
        records = dict(zip(known, rest[0::3], strict=True))
        for place, slug in enumerate(keyspace.QUEUES):
            held = {*leased[place], *queued[place], *popped[place], *dict(waiting[place])}
            assert {records[name].get("queue", MODEL) for name in held} <= {slug}
            self.choices_hold(keyspace.QUEUES[slug].waiting, dict(waiting[place]), records)
        return Snapshot(
            jobs={
                name: Job.from_record(name, record) for name, record in records.items() if record
            },
            runs={name: record.get("run", "") for name, record in records.items()},
            has_ttl={name: ttl > 0 for name, ttl in zip(known, rest[1::3], strict=True)},
            rq_jobs={name for name, there in zip(known, rest[2::3], strict=True) if there},
            waiting={name for name, _ in chain(*waiting)},
            leased=set(chain(*leased)),
            queued=[*chain(*queued)],
            popped=[*chain(*popped)],
            live=live,
            reserved={name: int(record.get("reserved", 0)) for name, record in records.items()},
            account={name: int(amount) for name, amount in account.items()},
            used=self.used(),
        )

    def choices_hold(
        self, key: str, waiting: Mapping[str, float], records: Mapping[str, Mapping[str, str]]
    ) -> None:
        """Each request with LoRAs waits at its place in the set of its choice, and in no other."""
        expected: dict[str, dict[str, float]] = {}
        for name, place in waiting.items():
            if loras := records[name].get("loras"):
                expected.setdefault(loras, {})[name] = place
        choices = cast("set[str]", self.redis.smembers(f"{key}:loras"))
        found = {
            loras: dict(self.redis.zrange(f"{key}:loras:{loras}", 0, -1, withscores=True))  # type: ignore[arg-type]
            for loras in choices
        }
        assert found == expected

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
        self.check_cache(now, by_status)
        self.check_changes(now.jobs)
        self.check_webhooks(now.jobs, ended)
        self.check_rq(now, by_status)
        self.check_account(now, by_status[Status.QUEUED] | by_status[Status.PROCESSING])

    def check_cache(self, now: Snapshot, by_status: dict[Status, set[str]]) -> None:
        """Of twins one runs, each that waits is found by its run, and all files are kept."""
        found = [
            (str(self.redis.hget(keyspace.record(name), "cache_key") or ""), name)
            for name in sorted(now.jobs)
        ]
        running = [key for key, name in found if key and name in by_status[Status.PROCESSING]]
        assert len({*running}) == len(running)
        waiting = {(key, name) for key, name in found if key and name in by_status[Status.QUEUED]}
        kept = [str(key) for key in self.redis.keys(f"{keyspace.TWINS}*")]
        twins = {
            (key.removeprefix(keyspace.TWINS), str(name))
            for key in kept
            for name in cast("set[str]", self.redis.smembers(key))
        }
        assert twins == waiting
        for name in by_status[Status.COMPLETED]:
            assert self.store.exists(now.jobs[name].file_name.rpartition("-")[0])

    def check_changes(self, jobs: dict[str, Job]) -> None:
        for name, job in jobs.items():
            before = self.last.get(name)
            assert 0 <= job.attempt <= keyspace.MOST_ATTEMPTS
            is_completed = job.status is Status.COMPLETED
            assert {bool(job.file_name), bool(job.precision), bool(job.warnings)} == {is_completed}
            assert bool(job.error_code) == (job.status is Status.FAILED)
            if before is None:
                is_hit = name in self.hits
                assert job.status is (Status.COMPLETED if is_hit else Status.QUEUED)
                assert (job.cached, job.attempt) == (int(is_hit), 0)
            elif before.status.is_final:
                assert job == before
            else:
                assert job.status in TRANSITIONS[before.status] | {before.status}
        self.last = jobs

    def check_webhooks(self, jobs: dict[str, Job], ended: set[str]) -> None:
        """Each end has one delivery, with the state at that end, and there is no other delivery."""
        found = [each for each in all_deliveries(self.redis) if not each.event]
        deliveries = {each.delivery_id: each for each in found}
        assert ended <= set(deliveries) <= ended | self.expired
        told = {name: replace(deliveries[name].job, expires_at=None) for name in ended}
        assert told == {name: jobs[name] for name in ended}
        due = set(self.redis.zrange(f"{keyspace.WEBHOOKS}:{OWNER}", 0, -1))
        assert {name for name in due if not is_notice(str(name))} == set(deliveries)
        assert self.redis.zrange(keyspace.WEBHOOKS, 0, -1) == ([OWNER] if due else [])
        assert all(each.state is State.DUE for each in deliveries.values())

    def check_budget(self, now: Snapshot) -> None:
        """Nothing is spent above the cap, and each share of it was told once.

        The last fifth counts as spent if it does not cover another request like the charged one.
        """
        cap, charged = now.account["monthly_cap"], now.account["charged"]
        assert charged + now.account["reserved"] <= cap
        if charged > self.charged:
            held = max(now.reserved[name] for name, job in now.jobs.items() if self.is_new(job))
            counted = charged if charged + held <= cap or 100 * charged < 80 * cap else cap
            self.noticed |= {share for share in (80, 100) if 100 * counted >= share * cap}
        self.charged = charged
        notices = {each.delivery_id: each for each in all_deliveries(self.redis) if each.event}
        assert {each.notice.percent for each in notices.values()} == self.noticed
        assert all(each.state is State.DUE for each in notices.values())
        logged = cast("list[str]", self.redis.lrange(f"{keyspace.STANDING_LOG}budget", 0, -1))
        assert sorted(logged) == sorted(notices)

    def is_new(self, job: Job) -> bool:
        """Whether it was completed since the last look."""
        return job.status is Status.COMPLETED and job.request_id not in self.ends

    def check_account(self, now: Snapshot, live: set[str]) -> None:
        account, used = now.account, now.used
        self.check_budget(now)
        self.ends |= {name: job for name, job in now.jobs.items() if job.status.is_final}
        completed = [job for job in self.ends.values() if job.status is Status.COMPLETED]
        assert now.live == live
        assert used.get("cached", 0) == sum(job.cached for job in completed)
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
        assert overdue.popped == [name for name in now.popped if not self.waits_for_twin(name)]
        assert overdue.missing == len(self.unlisted)
        assert set(self.store.unlisted()) == self.unlisted
