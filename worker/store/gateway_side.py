"""The gateway's side of the job store: submit, read, list, cancel, delete."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from models.params import MODEL, GenerateParams
from worker.billing import FREE, Price, from_millionths
from worker.broker.batching import Batch
from worker.broker.connection import broker_errors
from worker.broker.health import dangers_in
from worker.errors import (
    IdempotencyConflictError,
    JobError,
    KeyEndedError,
    MonthlyCapError,
    NoWorkerError,
    QueueFullError,
    Rate,
    RequestNotFoundError,
    TooFastError,
    TooFewCreditsError,
    TooManyJobsError,
    UnknownAnswerError,
)
from worker.job import CANCELLED, Cancellation, Job
from worker.pace import Work
from worker.process.telemetry import trace_fields
from worker.store import keyspace, scripts
from worker.store.presence import LiveWorker, read_all
from worker.store.rq_queue import rq_fields
from worker.store.scripts import outcome, pairs

MOST_LOOKED_AT, MOST_CHECKED = 100, 1000
"""Records that one script reads, in about a millisecond: all of each, or its status."""
_REFUSED_WITHOUT_MEMORY = "#!lua\nreturn 1"
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Accepted:
    """An accepted request.

    Attributes:
        request_id: UUID v4, as text.
        is_replay: an earlier submit with the same idempotency key made it.
        rate: the owner's rate limit; None without one, and for a replay.
    """

    request_id: str
    is_replay: bool = False
    rate: Rate | None = None


@dataclass(frozen=True)
class Page:
    """Some of an owner's requests; `has_more` follow."""

    jobs: Sequence[Job]
    has_more: bool


class GatewayStore:
    """Every method raises BrokerUnavailableError when the broker does not answer."""

    def __init__(self, redis: Redis, *, most_waiting: int, retention_seconds: float) -> None:
        self._redis = redis
        self._most_waiting = most_waiting
        self._retention_ms = round(retention_seconds * 1000)
        self._submit = redis.register_script(scripts.source("submit"))
        self._probe = redis.register_script(_REFUSED_WITHOUT_MEMORY)
        self._alive = redis.register_script(scripts.source("alive"))
        self._cancel = redis.register_script(scripts.source("cancel"))
        self._delete = redis.register_script(scripts.source("delete"))
        self._list = redis.register_script(scripts.source("list"))
        self._draw = redis.register_script(scripts.source("draw"))
        self._ended = redis.register_script(scripts.source("ended"))
        self._look_script = redis.register_script(scripts.source("look"))
        self._looks = Batch(self._look_at_all)
        self._previews = Batch(self._previews_of_all)
        self._submits = Batch(self._submit_all)
        self._cancels = Batch(self._cancel_all)
        self._presence = Batch(self._live_workers)

    async def submit(
        self,
        params: GenerateParams,
        owner: str,
        *,
        price: Price = FREE,
        needs_worker: bool = False,
        idempotency: Idempotency | None = None,
        further: Mapping[str, str] = NOTHING,
        unless: JobError | None = None,
    ) -> Accepted:
        """Accept a request. When this returns, the broker has it and a worker will run it.

        Args:
            params: including the seed.
            owner: id of the API key; the broker knows its limits.
            price: its `most` is reserved until the request ends.
            needs_worker: refuse if no worker of the model is alive.
            idempotency: a second submit with it gets the first request.
            further: more fields of the record; see `Job`.
            unless: raised in place of making a new request.

        Raises:
            IdempotencyConflictError: the idempotency key came with another body.
            KeyEndedError: the API key was revoked or has expired.
            LimitError: one of its kinds: too many requests, of all or of this owner.
            NoWorkerError: no worker of the model is alive.
            TooFewCreditsError, MonthlyCapError: the balance or the cap does not cover the price.
        """
        request_id = str(uuid4())
        fields = {"work": str(Work.of(params)), **trace_fields(), **further}
        if params.model != MODEL:
            fields["model"] = params.model
        answer = await self._ask_to_submit(
            request_id,
            "replay" if unless else "needs_worker" if needs_worker else "",
            owner,
            idempotency.key if idempotency else "",
            idempotency.fingerprint if idempotency else "",
            price.fixed,
            price.gpu_second,
            price.most_gpu_seconds,
            params.model,
            params.model_dump_json(),
            2 * len(fields),
            *chain.from_iterable(fields.items()),
            *rq_fields(request_id, params.model),
        )
        match answer:
            case ["accepted"]:
                return Accepted(request_id)
            case ["accepted", limit, remaining, reset_ms]:
                return Accepted(request_id, rate=Rate(limit, remaining, reset_ms / 1000))
            case ["replayed", first_id]:
                return Accepted(first_id, is_replay=True)
            case ["not_replayed"] if unless:
                raise unless
        raise UnknownAnswerError("submit", answer)

    async def try_out(self, owner: str, *, price: Price, model: str = MODEL) -> int:
        """Check whether a submit would be accepted, and write nothing. Raises as `submit`.

        Returns:
            The place that the request would have in the queue; 1 is next.
        """
        bill = (price.fixed, price.gpu_second, price.most_gpu_seconds)
        match await self._ask_to_submit(str(uuid4()), "dry_run", owner, "", "", *bill, model):
            case ["would_accept", position]:
                return int(position)
            case answer:
                raise UnknownAnswerError("submit", answer)

    async def _ask_to_submit(
        self, request_id: str, mode: str, *arguments: str | bytes | int
    ) -> list[Any]:
        """The script's answer, unless it is a refusal, which raises."""
        keys = keyspace.for_scripts(request_id)
        answer = await self._submits.ask([*keys, request_id, self._most_waiting, mode, *arguments])
        match answer:
            case ["conflict", first_id]:
                raise IdempotencyConflictError(first_id)
            case ["queue_full"]:
                raise QueueFullError(self._most_waiting)
            case ["no_worker", model]:
                raise NoWorkerError(model)
            case ["key_ended"]:
                raise KeyEndedError
            case ["too_many_jobs", most]:
                raise TooManyJobsError(most)
            case ["too_fast", limit, remaining, reset_ms]:
                raise TooFastError(Rate(limit, remaining, reset_ms / 1000))
            case ["too_few_credits", *amounts]:
                raise TooFewCreditsError(*map(from_millionths, map(int, amounts)))
            case ["over_monthly_cap", ends_at, *amounts]:
                raise MonthlyCapError(int(ends_at), *map(from_millionths, map(int, amounts)))
        return list(answer)

    async def cancel(self, request_id: str, owner: str) -> Cancellation:
        """End a request FAILED, as soon as its run can be stopped. Raises RequestNotFoundError."""
        answer = await self._cancels.ask((request_id, owner))
        if answer is None:
            raise RequestNotFoundError(request_id)
        return outcome(Cancellation, "cancel", answer)

    async def delete(self, request_id: str, owner: str) -> str:
        """Delete a request, which cancels it if it has not ended.

        Returns:
            The name of its video, to be removed; empty without one.

        Raises:
            RequestNotFoundError: as in `find`, or the request was deleted before.
        """
        with broker_errors():
            file_name = await self._delete(
                keyspace.for_scripts(request_id),
                [request_id, owner, self._retention_ms, CANCELLED],
            )
        if file_name is None:
            raise RequestNotFoundError(request_id)
        return str(file_name)

    async def page_of(
        self, owner: str, *, most: int, after: str = "", is_ascending: bool = False
    ) -> Page:
        """Requests of `owner` by the time of their submit, the newest first.

        Args:
            owner: id of the API key.
            most: length of the page.
            after: the last id of the page before.
            is_ascending: the oldest first.

        Raises:
            RequestNotFoundError: `after` is no request of the owner's, or has expired.
        """
        order = "asc" if is_ascending else "desc"
        with broker_errors():
            found: list[Any] | None = await self._list(
                keyspace.for_scripts(), [owner, most, after, order]
            )
        if found is None:
            raise RequestNotFoundError(after)
        now, *parts = found
        kept = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
        jobs = [
            job
            for request_id, record, expires_at in kept
            if (job := _job(request_id, record, None, expires_at, now))
        ]
        return Page(jobs[:most], has_more=len(jobs) > most)

    async def find(self, request_id: str, owner: str) -> Job:
        """The request as it is now. Raises RequestNotFoundError."""
        job = await self.find_signed(request_id)
        if job.owner != owner:
            raise RequestNotFoundError(request_id)
        return job

    async def find_signed(self, request_id: str) -> Job:
        """The same, for a caller authorised by a signature in place of the owner's key."""
        job = await self._looks.ask(request_id)
        if job is None:
            raise RequestNotFoundError(request_id)
        return job

    async def look(self, request_ids: list[str]) -> list[Job | None]:
        """Requests of any owner; None for one that has expired."""
        with broker_errors():
            return await self._look_at_all(request_ids)

    async def preview(self, request_id: str) -> str | None:
        """The latest preview picture as a data URL; None without one."""
        return await self._previews.ask(request_id)

    async def ended(self, request_ids: Collection[str]) -> set[str]:
        """Those of `request_ids` that have ended or expired.

        A script, as a command for each takes ten times as much of the gateway's time.
        """
        ids, found = list(request_ids), set()
        with broker_errors():
            for some in _portions(ids, MOST_CHECKED):
                found |= set(await self._ended(keyspace.for_scripts(), some))
        return found

    async def live_workers(self) -> list[LiveWorker]:
        """The workers that are alive and have the model loaded."""
        return await self._presence.ask(None)

    async def is_loading(self) -> bool:
        """Whether a worker is loading the model."""
        with broker_errors():
            return bool(await self._redis.exists(keyspace.LOADING))

    async def check_memory(self) -> None:
        """Raise BrokerUnfitError while a full memory refuses submits."""
        with broker_errors():
            await self._probe()

    async def announce_store(self, mark: str) -> None:
        """Tell workers which store gateways read; others leave requests in the queue."""
        if mark and await self.announced_store() != mark:
            with broker_errors():
                await self._redis.set(keyspace.STORE, mark)

    async def announced_store(self) -> str | None:
        """The mark that a gateway announced last."""
        with broker_errors():
            mark = await self._redis.get(keyspace.STORE)
        return None if mark is None else str(mark)

    async def link_secret(self) -> str:
        """The key that signs links to videos; the first gateway draws it for all."""
        with broker_errors():
            (secret,) = await self._draw([keyspace.LINK_SECRET], [secrets.token_hex(32)])
            return str(secret)

    async def dangers(self) -> list[str]:
        """See `dangers_in`."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.info()
        pipeline.config_get("appendfsync")
        with broker_errors():
            return dangers_in(await pipeline.execute(raise_on_error=False))

    async def _submit_all(self, arguments: list[list[str | bytes | int]]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for each in arguments:
            pipeline.evalsha(self._submit.sha, keyspace.SCRIPT_KEYS, *each)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            # A new broker knows no scripts. Some may have run all the same: a repeated submit
            # changes nothing.
            await self._redis.script_load(self._submit.script)
            return await self._submit_all(arguments)
        return answers

    async def _cancel_all(self, asked: list[tuple[str, str]]) -> list[Any]:
        cancels = (
            self._cancel(keyspace.for_scripts(name), [name, owner, self._retention_ms, CANCELLED])
            for name, owner in asked
        )
        return await asyncio.gather(*cancels, return_exceptions=True)

    async def _previews_of_all(self, request_ids: list[str]) -> list[str | None]:
        different = list(dict.fromkeys(request_ids))  # many streams may show one request
        found: list[Any] = await self._redis.mget([keyspace.PREVIEWS + name for name in different])
        pictures = dict(zip(different, found, strict=True))
        return [pictures[request_id] for request_id in request_ids]

    async def _live_workers(self, questions: list[None]) -> list[list[LiveWorker]]:
        return [read_all(await self._alive(keyspace.for_scripts()))] * len(questions)

    async def _look_at_all(self, request_ids: list[str]) -> list[Job | None]:
        jobs: list[Job | None] = []
        for some in _portions(request_ids, MOST_LOOKED_AT):
            keys = [keyspace.WAITING, *map(keyspace.record, some)]
            now, *found = await self._look_script(keys, some)
            looks = zip(some, found[::3], found[1::3], found[2::3], strict=True)
            jobs += [_job(*look, now) for look in looks]
        return jobs


def _job(
    request_id: str, record: list[str], rank: int | None, expires_at: int, now: int
) -> Job | None:
    """None for a request that has expired or was deleted."""
    fields = dict(pairs(record))
    if not fields or "deleted" in fields:
        return None
    return Job.from_record(
        request_id,
        fields,
        position=None if rank is None else rank + 1,
        expires_at=expires_at if expires_at > 0 else None,
        seen_at=now,
    )


def _portions(items: list[str], most: int) -> Iterator[list[str]]:
    """Of a script that reads thousands of records, which would delay all other callers."""
    return (items[first : first + most] for first in range(0, len(items), most))


@dataclass(frozen=True)
class Idempotency:
    """An idempotency key with the fingerprint of its body, as the broker keeps them."""

    key: str
    fingerprint: str

    @classmethod
    def of(cls, owner: str, key: str, body: Mapping[str, Any]) -> Idempotency:
        """The client's `key` for the JSON object `body`, as hashes. Each owner has its own keys.

        The fingerprint is of the body as sent, not as parsed, which another version may do
        differently.
        """
        digest = _digest(f"{owner} {key}")
        return cls(keyspace.IDEMPOTENCY + digest, _digest(json.dumps(body, sort_keys=True)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
