"""Submits: what a gateway asks of the broker to accept requests, all of them or none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from models.errors import MochiError
from models.request.params import MODEL, GenerateParams, RequestParams
from worker.billing import FREE, Price, from_millionths
from worker.broker.batching import Batch
from worker.errors import (
    FinishConflictError,
    IdempotencyConflictError,
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
    count_too_large,
)
from worker.job import LORA, queue_of
from worker.pace import Work
from worker.process.telemetry import trace_fields
from worker.store import keyspace, scripts
from worker.store.rq_queue import rq_fields

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class NewRequest:
    """A request to submit.

    Attributes:
        params: with the seed.
        fields: further ones of its record.
        cache_key: of the result cache; empty: it runs, whatever is kept.
    """

    params: GenerateParams
    fields: Mapping[str, str] = field(default_factory=dict)
    cache_key: str = ""


@dataclass(frozen=True)
class Accepted:
    """An accepted request, the first of those that were submitted with it.

    Attributes:
        request_id: UUID v4, as text.
        is_replay: an earlier submit made it: one with the same idempotency key, or of the finish of
            the same draft.
        rate: the owner's rate limit; None without one, and for a replay.
        cached: how many of the requests the result cache has completed.
    """

    request_id: str
    is_replay: bool = False
    rate: Rate | None = None
    cached: int = 0


@dataclass(frozen=True)
class Outlook:
    """What would come of a submit.

    Attributes:
        position: in the queue, of the first request that would run; 1 is next.
        cached: how many requests the result cache would complete.
        most: credits that would be reserved for all.
    """

    position: int
    cached: int
    most: Decimal


class Submits:
    """Every method raises BrokerUnavailableError when the broker does not answer."""

    def __init__(self, redis: Redis, *, most_waiting: int, retention_seconds: float) -> None:
        self._redis = redis
        self._most_waiting = most_waiting
        self._retention_ms = round(retention_seconds * 1000)
        self._submit = redis.register_script(scripts.source("submit"))
        self._submits = Batch(self._submit_all)

    async def submit(
        self,
        params: GenerateParams,
        owner: str,
        *,
        price: Price = FREE,
        needs_worker: bool = False,
        idempotency: Idempotency | None = None,
        further: Mapping[str, str] = NOTHING,
        unless: MochiError | None = None,
    ) -> Accepted:
        """Accept one request; see `submit_all`."""
        return await self.submit_all(
            [NewRequest(params, further)],
            owner,
            price=price,
            needs_worker=needs_worker,
            idempotency=idempotency,
            unless=unless,
        )

    async def submit_all(
        self,
        requests: Sequence[NewRequest],
        owner: str,
        *,
        price: Price = FREE,
        needs_worker: bool = False,
        idempotency: Idempotency | None = None,
        unless: MochiError | None = None,
        draft_id: str = "",
    ) -> Accepted:
        """Accept all requests or none.

        When this returns, the broker has them and workers will run them, but for those whose video
        the result cache has: they are COMPLETED. The record of the first has the ids of the others,
        so that a replay finds them.

        Args:
            requests: one or more, of one model, which ask for the same LoRAs. All have a cache key,
                or none has.
            owner: id of the API key; the broker knows its limits.
            price: of each; its `most` is reserved until the request ends.
            needs_worker: refuse if no worker of the model, which has the LoRAs, is alive.
            idempotency: a second submit with it gets the first request.
            unless: raised in place of making a new request.
            draft_id: of the owner's draft that the only request finishes. A second finish of it
                gets the first one, unless that has failed or is gone, or this one has a webhook
                and the first had not the same.

        Raises:
            FinishConflictError: the draft has a finish with another webhook, or without.
            IdempotencyConflictError: the idempotency key came with another body or model.
            KeyEndedError: the API key was revoked or has expired.
            LimitError: one of its kinds: too many requests, of all or of this owner.
            NoWorkerError: no worker of the model is alive.
            RequestNotFoundError: the draft has expired or was deleted.
            TooFewCreditsError, MonthlyCapError: the balance or the cap does not cover the price.
        """
        ids = [str(uuid4()) for _ in requests]
        trace = trace_fields()
        answer = await self._ask_to_submit(
            ids[0],
            "replay" if unless else "needs_worker" if needs_worker else "",
            owner,
            idempotency.key if idempotency else "",
            idempotency.fingerprint if idempotency else "",
            price.fixed,
            price.gpu_second,
            price.most_gpu_seconds,
            str(price.cached_share),
            _source(requests[0].params.model, requests[0].params.lora or ()),
            len(requests),
            draft_id,
            requests[0].fields.get("webhook_url", ""),
            self._retention_ms,
            " ".join(request.cache_key for request in requests).strip(),
            *_arguments(requests[0], ids[0], {**trace, **_siblings(ids)}),
            *(
                argument
                for request, request_id in zip(requests[1:], ids[1:], strict=True)
                for argument in _arguments(request, request_id, trace)
            ),
            count=len(requests),
        )
        match answer:
            case ["accepted"]:
                return Accepted(ids[0])
            case ["accepted", cached]:
                return Accepted(ids[0], cached=cached)
            case ["accepted", cached, limit, remaining, reset_ms]:
                rate = Rate(limit, remaining, reset_ms / 1000)
                return Accepted(ids[0], rate=rate, cached=cached)
            case ["replayed", first_id]:
                return Accepted(first_id, is_replay=True)
            case ["no_draft"]:
                raise RequestNotFoundError(draft_id)
            case ["not_replayed"] if unless:
                raise unless
        raise UnknownAnswerError("submit", answer)

    async def try_out(
        self,
        owner: str,
        *,
        price: Price,
        model: str = MODEL,
        loras: Iterable[str] = (),
        count: int = 1,
        cache_keys: Iterable[str] = (),
    ) -> Outlook:
        """Check whether a submit would be accepted, and write nothing. Raises as `submit_all`.

        Args:
            owner: id of the API key.
            price: of each request.
            model: its slug.
            loras: names of those that each request asks for.
            count: of requests.
            cache_keys: of each request, or none.
        """
        bill = (price.fixed, price.gpu_second, price.most_gpu_seconds, str(price.cached_share))
        asked = (
            str(uuid4()),
            "dry_run",
            owner,
            "",
            "",
            *bill,
            _source(model, loras),
            count,
            "",
            "",
            self._retention_ms,
            " ".join(cache_keys),
        )
        match await self._ask_to_submit(*asked, count=count):
            case ["would_accept", position, cached, most]:
                return Outlook(int(position), int(cached), from_millionths(int(most)))
            case answer:
                raise UnknownAnswerError("submit", answer)

    async def _ask_to_submit(
        self, request_id: str, mode: str, *arguments: str | bytes | int, count: int
    ) -> list[Any]:
        """The script's answer, unless it is a refusal, which raises."""
        keys = keyspace.for_scripts(request_id)
        answer = await self._submits.ask([*keys, request_id, self._most_waiting, mode, *arguments])
        _refuse_count(answer, count, self._most_waiting)
        match answer:
            case ["conflict", first_id, "finish"]:
                raise FinishConflictError(first_id)
            case ["conflict", first_id]:
                raise IdempotencyConflictError(first_id)
            case ["queue_full", _]:
                raise QueueFullError(self._most_waiting, count)
            case ["no_worker", model, loras]:
                raise NoWorkerError(model, loras)
            case ["key_ended"]:
                raise KeyEndedError
            case ["too_many_jobs", _, most]:
                raise TooManyJobsError(most, count)
            case ["too_fast", limit, remaining, reset_ms]:
                raise TooFastError(Rate(limit, remaining, reset_ms / 1000), count)
            case ["too_few_credits", *amounts]:
                raise TooFewCreditsError(*map(from_millionths, map(int, amounts)), count=count)
            case ["over_monthly_cap", ends_at, *amounts]:
                credits_ = map(from_millionths, map(int, amounts))
                raise MonthlyCapError(int(ends_at), *credits_, count=count)
        return list(answer)

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


def _refuse_count(answer: list[Any], count: int, most_waiting: int) -> None:
    """Raise InvalidParametersError if a limit refuses more requests than it ever lets in.

    Those with a kept video need no room in the queue or among the key's jobs.
    """
    match answer:
        case ["queue_full", int(counted)]:
            most, limit = most_waiting, "the queue may hold"
        case ["too_many_jobs", int(counted), int(most)]:
            limit = "this API key may have at once"
        case ["too_fast", int(most), *_]:
            counted, limit = count, "this API key may submit a minute"
        case _:
            return
    if counted > max(most, 1):
        raise count_too_large(count, most, limit)


def _source(model: str, loras: Iterable[str]) -> str:
    """The queue of a request, with the LoRAs that it asks for; see `LiveWorker.sources`."""
    return f"{model}{LORA}:{','.join(loras)}" if loras else model


def _siblings(ids: Sequence[str]) -> dict[str, str]:
    return {"siblings": " ".join(ids[1:])} if ids[1:] else {}


def _arguments(
    request: NewRequest, request_id: str, fields: Mapping[str, str]
) -> Iterator[str | bytes | int]:
    """Of the script, for one of the requests."""
    params = request.params
    record = {"work": str(Work.of(params)), **fields, **request.fields}
    queue = queue_of(params)
    if params.model != MODEL:
        record["model"] = params.model
    if queue != MODEL:
        record["queue"] = queue
    if params.lora:
        record["loras"] = ",".join(params.lora)
    rq_job = rq_fields(request_id, queue)
    yield request_id
    yield params.model_dump_json()
    yield 2 * len(record)
    yield from chain.from_iterable(record.items())
    yield len(rq_job)
    yield from rq_job


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


def cache_key_of(params: RequestParams) -> str:
    """Requests with the same key have the same files, if workers with the same identity make them.

    A SHA-256, as 64 hexadecimal digits, of the model and all parameters with their defaults.
    """
    return _digest(f"{params.model} {params.model_dump_json()}")


def frames_key_of(params: RequestParams) -> str:
    """As `cache_key_of`, the same for every fps. Empty where files cannot be given another one."""
    if params.format != "mp4":
        return ""
    return _digest(f"any fps {cache_key_of(params.model_copy(update={'fps': 1.0}))}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
