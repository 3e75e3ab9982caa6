"""The life of requests of two models in any order of events, against a real Valkey.

Workers die at any point simply by being forgotten. Zombies are leases that are still used after the
reconciler has taken them away.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import booleans, integers, sampled_from

from models.request.catalogue import CATALOGUE, FAST_MOCHI, MOCHI
from models.request.params import GenerateParams
from tests.support.jobs import OWNER, end_lease, live, params, pop, queue_of
from tests.unit.worker.support.lost_replies import AsyncForgetful, Forgetful
from tests.unit.worker.support.promises import (
    BUDGET_WEBHOOK,
    GRANTED,
    MONTHLY_CAP,
    MOST_WAITING,
    SOURCES,
    Promises,
)
from worker.billing import FREE, Price, to_millionths
from worker.errors import (
    MonthlyCapError,
    QueueFullError,
    RequestNotFoundError,
    TooFewCreditsError,
)
from worker.job import Cancellation, Status
from worker.job import queue_of as queue_for
from worker.store import keyspace, scripts
from worker.store.submits import Accepted, NewRequest
from worker.store.worker_side import Lease, Order, Recovery, Result

WORKERS = sampled_from(["ann", "bob", "cid"])
MODELS = sampled_from([*CATALOGUE])
CHOICES = sampled_from([None, None, {"a": 1.0}, {"a": 0.5, "b": 1.0}])
SERVED = sampled_from(
    [[MOCHI.slug], [FAST_MOCHI.slug], [*CATALOGUE], [MOCHI.slug, f"{MOCHI.slug}+lora:a"], SOURCES]
)
"""What a worker may run."""
PRICES = sampled_from(
    [
        FREE,
        Price(3),
        Price(4, gpu_second=2, most_gpu_seconds=3, cached_share=Decimal("0.5")),
    ]
)
VIDEOS = sampled_from(["", "", "x", "y"])
"""Of the result cache: requests of a queue for the same one are twins; without a name, none is."""
IDENTITY = "all workers"


WEBHOOK = {"webhook_url": "https://hooks.example/", "webhook_base": "https://us.example"}


def cache_key_of(asked: GenerateParams, video: str) -> str:
    """Of a request for one of few videos, or for none that is shared."""
    return f"{queue_for(asked)}:{','.join(asked.lora or ())}:{video}" if video else ""


class Requests(Promises):
    """One gateway, three workers, and a reconciler that may look at any time.

    `finishes`: by the id of a draft, that of its latest finish.
    """

    ids: Bundle[str] = Bundle("ids")
    drafts: Bundle[str] = Bundle("drafts")
    pops: Bundle[tuple[str, str]] = Bundle("pops")
    leases: Bundle[Lease] = Bundle("leases")

    @initialize()
    def flush(self) -> None:
        self.redis.flushall()
        self.finishes: dict[str, str] = {}
        account = {"balance": GRANTED, "granted": GRANTED, "reserved": 0, "charged": 0}
        account |= {"monthly_cap": MONTHLY_CAP}
        self.redis.hset(keyspace.API_KEY + OWNER, mapping=account)  # type: ignore[arg-type]
        self.redis.hset(keyspace.STANDING + OWNER, "budget", BUDGET_WEBHOOK)
        for name in ("submit", "start", "beat", "finish", "requeue", "reap", "recover", "cancel"):
            self.redis.script_load(
                scripts.source(name)
            )  # or the reply to this would be the lost one

    @rule(
        target=ids,
        model=MODELS,
        loras=CHOICES,
        lost=booleans(),
        keyed=booleans(),
        drafted=booleans(),
        price=PRICES,
        video=VIDEOS,
    )
    def submit(
        self,
        *,
        model: str,
        lost: bool,
        keyed: bool,
        drafted: bool,
        price: Price,
        loras: dict[str, float] | None = None,
        video: str = "",
    ) -> Any:
        first = self.redis.hget(self.key.key, "request_id") if keyed else None
        fields = WEBHOOK | ({"draft_steps": "4"} if drafted else {})
        asked = params(model=model, lora=loras)
        queue = queue_for(asked)
        cache_key = "" if drafted else cache_key_of(asked, video)
        submit = self.gateway.submit_all(
            [NewRequest(asked, fields, cache_key)],
            OWNER,
            price=price,
            idempotency=self.key if keyed else None,
        )
        first_id = str(first) if first else None
        return self.made(submit, queue, price, [cache_key], lost=lost, first=first_id)

    @rule(
        target=ids,
        model=MODELS,
        count=integers(2, 3),
        lost=booleans(),
        price=PRICES,
        is_cached=booleans(),
    )
    def submit_several(
        self, model: str, count: int, lost: bool, price: Price, is_cached: bool
    ) -> Any:
        keys = [f"{model}::{video}" if is_cached else "" for video in "xyz"[:count]]
        requests = [NewRequest(params(model=model), WEBHOOK, cache_key) for cache_key in keys]
        submit = self.gateway.submit_all(requests, OWNER, price=price)
        return self.made(submit, model, price, keys, lost=lost)

    @rule(target=ids, draft_id=drafts, lost=booleans(), price=PRICES, video=VIDEOS)
    def finish(self, draft_id: str, lost: bool, price: Price, video: str) -> Any:
        draft = self.job(draft_id)
        if draft is None or not draft.draft_steps or draft.status is not Status.COMPLETED:
            return multiple()
        first = self.finishes.get(draft_id)
        job = self.job(first) if first else None
        fields = WEBHOOK | {"draft_of": draft_id, "first_step": "4"}
        cache_key = cache_key_of(draft.params, video)
        request = NewRequest(draft.params, fields, cache_key)
        submit = self.gateway.submit_all([request], OWNER, price=price, draft_id=draft_id)
        is_ending = first and self.redis.hexists(keyspace.record(first), "cancelled")
        is_kept = job is not None and job.status is not Status.FAILED and not is_ending
        first = first if is_kept else None
        made = self.made(submit, draft.queue, price, [cache_key], lost=lost, first=first)
        if isinstance(made, str):
            self.finishes[draft_id] = made
        return made

    def made(
        self,
        submit: Coroutine[Any, Any, Accepted],
        queue: str,
        price: Price,
        cache_keys: list[str],
        *,
        lost: bool,
        first: str | None = None,
    ) -> Any:
        """The ids of as many requests, or none where the submit must be refused, or replays."""
        count, hits = len(cache_keys), [self.is_kept(key) for key in cache_keys]
        cached = round(price.cached_share * price.fixed)  # runs take no time here
        most = sum(cached if hit else to_millionths(price.most) for hit in hits)
        refusal = self.refusal(queue, hits.count(False), most)
        AsyncForgetful.lose_next = lost
        if first:
            assert self.loop.run(submit) == Accepted(first, is_replay=True)
            return multiple()
        if refusal:
            with pytest.raises(refusal):
                self.loop.run(submit)
            return multiple()
        accepted = self.loop.run(submit)
        # Asked again after a lost reply, the broker knows it already by its id.
        assert not accepted.is_replay
        job = self.job(accepted.request_id)
        assert job is not None
        made = [accepted.request_id, *job.siblings.split()]
        assert len({*made}) == count
        self.accepted |= {*made}
        self.hits |= {name for name, hit in zip(made, hits, strict=True) if hit}
        assert [self.is_completed(name) for name in made] == hits
        return made[0] if count == 1 else multiple(*made)

    def is_kept(self, cache_key: str) -> bool:
        """Whether there is a video for it."""
        maker = self.redis.get(keyspace.MAKERS + cache_key) if cache_key else None
        return maker is not None and self.is_completed(str(maker))

    def is_completed(self, request_id: str) -> bool:
        job = self.job(request_id)
        return job is not None and job.status is Status.COMPLETED

    def refusal(self, queue: str, runs: int, most: int) -> type[Exception] | None:
        """Why requests, of which so many wait and which cost at most so much, are not accepted."""
        if runs and self.redis.zcard(keyspace.QUEUES[queue].waiting) + runs > MOST_WAITING:
            return QueueFullError
        if most > self.balance():
            return TooFewCreditsError
        return MonthlyCapError if most and most > self.left_of_month() else None

    def balance(self) -> int:
        return int(self.redis.hget(keyspace.API_KEY + OWNER, "balance") or 0)

    @rule(amount=integers(1, 9))
    def grant(self, amount: int) -> None:
        for name in ("balance", "granted"):
            self.redis.hincrby(keyspace.API_KEY + OWNER, name, amount)

    @rule(amount=integers(1, 5))
    def raise_cap(self, amount: int) -> None:
        self.redis.hincrby(keyspace.API_KEY + OWNER, "monthly_cap", amount)

    @rule(target=pops, worker=WORKERS, served=SERVED)
    def pop(self, worker: str, served: list[str]) -> Any:
        request_id = pop(self.redis, *served)
        if request_id is None:
            return multiple()
        self.unlisted.discard(request_id)  # whose turn it is comes up wherever it is listed
        return worker, request_id

    @rule(target=leases, popped=consumes(pops), lost=booleans())
    def start(self, popped: tuple[str, str], lost: bool) -> Any:
        return self.start_popped(*popped, lost=lost) or multiple()

    def start_popped(self, worker: str, request_id: str, *, lost: bool = False) -> Lease | None:
        before, is_parked = self.job(request_id), self.waits_for_twin(request_id)
        lease = Lease(request_id, f"{next(self.runs):012x}")
        Forgetful.lose_next = lost
        job = self.store.start(lease, worker, identity=IDENTITY)
        is_due = before is not None and before.status is Status.QUEUED and not is_parked
        assert (job is not None) == is_due
        if is_parked:
            assert self.job(request_id) == before
        if before is None or job is None:
            return None
        assert (job.status, job.attempt) == (Status.PROCESSING, before.attempt + 1)
        assert job.params == params(model=job.model, lora=job.params.lora)
        self.unlisted.discard(request_id)
        return lease

    @rule(lease=leases, worker=WORKERS, step=integers(1, 10))
    def beat(self, lease: Lease, worker: str, step: int) -> None:
        holds = self.holds(lease)
        cancelled = self.is_cancelled(lease.request_id)
        expected = {Order.CANCEL} if holds and cancelled else set() if holds else {Order.LOST}
        known = replace(live(worker), identity=IDENTITY)
        assert self.store.beat(known, lease, step) == expected
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

    def assert_cancelled(self, request_id: str) -> None:
        job = self.job(request_id)
        assert job is not None
        assert (job.status, job.error_code) == (Status.FAILED, "cancelled")

    @rule(request_id=ids)
    def end_lease(self, request_id: str) -> None:
        leases = queue_of(self.redis, request_id).leases
        if self.redis.zscore(leases, request_id) not in {None, 1.0}:
            end_lease(self.redis, request_id)

    @rule(request_id=ids, lost=booleans())
    def reap(self, request_id: str, lost: bool) -> None:
        leases = queue_of(self.redis, request_id).leases
        is_over = self.redis.zscore(leases, request_id) == 1.0
        self.recovery(request_id, self.store.reap, is_due=is_over, lost=lost)

    @rule(request_id=ids, lost=booleans())
    def recover(self, request_id: str, lost: bool) -> None:
        before = self.job(request_id)
        listed = request_id in self.redis.lrange(queue_of(self.redis, request_id).rq_queue, 0, -1)
        is_due = before is not None and before.status is Status.QUEUED and not listed
        popped = self.redis.lrange(queue_of(self.redis, request_id).intermediate, 0, -1)
        if request_id in popped and self.waits_for_twin(request_id):
            is_due = False
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
        queue = queue_of(self.redis, request_id)
        assert self.redis.zrange(queue.waiting, 0, 0) == [request_id]
        assert self.redis.lindex(queue.rq_queue, 0) == request_id

    @rule(target=leases, worker=WORKERS, served=SERVED, lost=booleans())
    def make(self, worker: str, served: list[str], lost: bool) -> Any:
        """The same for one that is completed, and then for what its run may still try."""
        request_id = pop(self.redis, *served)
        if request_id is None:
            return multiple()
        self.unlisted.discard(request_id)
        lease = self.start_popped(worker, request_id)
        if lease is None:
            return multiple()
        self.holds_together()
        self.complete(lease, lost)
        return lease

    @rule(target=drafts, model=MODELS, worker=WORKERS)
    def make_draft(self, model: str, worker: str) -> Any:
        """A submit of a draft and a run in one step: of that, or of the request that is next."""
        request_id = self.submit(model=model, lost=False, keyed=False, drafted=True, price=FREE)
        self.holds_together()
        self.make(worker, [*CATALOGUE], lost=False)
        return request_id

    @rule(target=ids, model=MODELS, worker=WORKERS, lost=booleans())
    def spend(self, model: str, worker: str, lost: bool) -> Any:
        """A submit and a run in one step, so that a month comes to its cap more often."""
        request_id = self.submit(
            model=model, lost=False, keyed=False, drafted=False, price=Price(2)
        )
        self.holds_together()
        self.make(worker, SOURCES, lost)
        return request_id

    @rule(target=leases, model=MODELS, worker=WORKERS)
    def run_one_of_twins(self, model: str, worker: str) -> Any:
        """All that waits is started, so that the second of two twins waits for the first."""
        for _ in range(2):
            self.submit(model=model, lost=False, keyed=False, drafted=False, price=FREE, video="x")
            self.holds_together()
        begun = []
        while request_id := pop(self.redis, *SOURCES):
            self.unlisted.discard(request_id)
            begun.append(self.start_popped(worker, request_id))
            self.holds_together()
        return multiple(*filter(None, begun))

    @rule(worker=WORKERS, served=SERVED)
    def crash(self, worker: str, served: list[str]) -> None:
        """All of it in one step, so that a request comes to its last attempt more often."""
        request_id = pop(self.redis, *served)
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
            queue = queue_of(self.redis, request_id)
            self.redis.lrem(queue.rq_queue, 0, request_id)
            self.redis.lrem(queue.intermediate, 0, request_id)
            self.unlisted.add(request_id)

    @rule(request_id=ids)
    def delete(self, request_id: str) -> None:
        """The video is to be removed with the last request that has it."""
        job = self.job(request_id)
        if job is None or not job.status.is_final:
            return
        others = [
            other
            for name in self.accepted - {request_id}
            if (other := self.job(name)) and other.file_name == job.file_name
        ]
        file_name = self.loop.run(self.gateway.delete(request_id, OWNER))
        assert file_name == ("" if others else job.file_name)
        if job.file_name:  # what a gateway fails to remove is swept
            assert self.store.exists(job.file_name.rpartition("-")[0]) == bool(others)
        self.expired.add(request_id)

    @rule(request_id=ids)
    def expire(self, request_id: str) -> None:
        job = self.job(request_id)
        if job is not None and job.status.is_final:
            key = self.redis.hget(keyspace.record(request_id), "idempotency_key")
            self.redis.delete(keyspace.record(request_id), *([str(key)] if key else []))
            self.expired.add(request_id)


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
