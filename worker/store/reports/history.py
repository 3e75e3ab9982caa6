"""The history of a key: its requests, for long after their records and videos have expired.

The script that ends a request also adds it here (`note_past` in lua/common/lists.lua), to a stream
of its owner: small, cut to length and age by the broker, and in the order of the ends. What is
still kept is read from its record, which knows more.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, repeat
from typing import Any

from redis.asyncio import Redis

from models.request.catalogue import CATALOGUE
from models.request.params import MODEL, GenerateParams
from worker.broker.connection import broker_errors, broker_time
from worker.errors import RequestNotFoundError
from worker.job import Job, Status
from worker.store import keyspace
from worker.store.gateway_side import GatewayStore

READ_AT_ONCE = 100
"""Records of one call to the broker, which serves no other client meanwhile."""
READ_FIRST = 100
READ_NEXT = 1000
"""Rows of the first call, which is often the last one, and of the next: smaller than records."""
MOST_PROMPT = 500
"""Characters of a prompt that outlive its record: a history has thousands of them."""
_DAY_MS = 24 * 60 * 60 * 1000
_PROMPTS = {"prompt", "negative_prompt"}


@dataclass(frozen=True)
class Entry:
    """A request in the history.

    Attributes:
        request_id: UUID v4, as text.
        status: see `Status`.
        created_at: its submit, in ms since 1970 by the broker's clock.
        latency_ms: from the submit to the end; None before.
        cost: charge in millionths of a credit.
        error: text for the client; only when FAILED.
        params_json: the parameters that are kept.
        energy_mj: see `Job`.
        model: slug.
        cached: see `Job`.
        job: the request itself, as long as it is kept.
    """

    request_id: str
    status: Status
    created_at: int
    latency_ms: int | None
    cost: int
    error: str
    params_json: str
    energy_mj: int | None = None
    model: str = MODEL
    cached: int = 0
    job: Job | None = None

    @classmethod
    def of_job(cls, job: Job) -> Entry:
        seconds = job.total_seconds
        return cls(
            request_id=job.request_id,
            status=job.status,
            created_at=job.created_at,
            latency_ms=None if seconds is None else round(seconds * 1000),
            cost=job.cost,
            error=job.error,
            params_json=job.params_json,
            energy_mj=job.energy_mj,
            model=job.model,
            cached=job.cached,
            job=job,
        )

    @classmethod
    def read(cls, fields: Mapping[str, str]) -> Entry:
        return cls(
            request_id=fields["id"],
            status=Status(fields["status"]),
            created_at=int(fields["created_at"]),
            latency_ms=int(fields["latency_ms"]),
            cost=int(fields["cost"]),
            error=fields["error"],
            params_json=fields["params"],
            energy_mj=int(fields["energy_mj"]) if "energy_mj" in fields else None,
            model=fields.get("model", MODEL),
            cached=int(fields.get("cached", 0)),
        )

    @property
    def ended_at(self) -> int:
        """In ms as `created_at`; of one that has not ended, its submit."""
        return self.created_at + (self.latency_ms or 0)

    @cached_property
    def params(self) -> dict[str, Any]:
        params: dict[str, Any] = json.loads(self.params_json)
        return params


class History:
    """Every method raises BrokerUnavailableError when the broker does not answer."""

    def __init__(
        self, redis: Redis, store: GatewayStore, *, days: int, with_prompts: bool = False
    ) -> None:
        """`days` after the end a request is dropped; 0: only what is kept anyway is listed."""
        self._redis = redis
        self._store = store
        self._days = days
        self._with_prompts = with_prompts

    def record_fields(self, params: GenerateParams) -> dict[str, str]:
        """Fields of the record that say what of the request is kept after its end."""
        if not self._days:
            return {}
        # Not `model_dump`, which has a default of 16 where the record has 16.0.
        kept = json.loads(params.model_dump_json())
        for name in _PROMPTS:
            kept[name] = kept[name][:MOST_PROMPT]
        return {
            "history_days": str(self._days),
            "history_params": json.dumps(kept if self._with_prompts else _without_prompts(kept)),
        }

    async def entries(self, owner: str, *, since_ms: int = 0) -> list[Entry]:
        """The owner's requests, the newest first. Of those before `since_ms`, some are left out."""
        found = {entry.request_id: entry async for entry in self._past(owner, since_ms)}
        found |= {job.request_id: Entry.of_job(job) async for job in self._kept(owner, since_ms)}
        return _newest(found.values())

    async def latest_videos(
        self, owner: str, most: int, models: Set[str] = CATALOGUE.keys()
    ) -> list[Entry]:
        """The owner's newest requests for these models that have made a video, the newest first."""
        newest: list[Entry] = []
        async for job in self._kept(owner):
            if job.status is Status.COMPLETED and job.model in models:
                newest.append(Entry.of_job(job))
            if len(newest) == most:
                break
        async for entry in self._past(owner):
            if len(newest) == most and entry.ended_at <= newest[-1].created_at:
                break  # further rows ended before, so they were submitted before
            is_known = entry.request_id in {other.request_id for other in newest}
            is_asked = entry.status is Status.COMPLETED and entry.model in models
            if is_asked and not is_known:
                newest = _newest([*newest, entry])[:most]
        return newest

    async def find(self, request_id: str, owner: str) -> Entry:
        """One request. Raises RequestNotFoundError."""
        try:
            return Entry.of_job(await self._store.find(request_id, owner))
        except RequestNotFoundError:
            for entry in await self._ended_with(request_id, owner):
                if entry.request_id == request_id:
                    return entry
            raise

    async def _kept(self, owner: str, since_ms: int = 0) -> AsyncIterator[Job]:
        """Those submitted since then, the newest first."""
        after = ""
        while True:
            try:
                page = await self._store.page_of(owner, most=READ_AT_ONCE, after=after)
            except RequestNotFoundError:
                return  # the last one has expired meanwhile
            for job in page.jobs:
                if job.created_at < since_ms:
                    return
                yield job
            if not page.has_more:
                return
            after = page.jobs[-1].request_id

    async def _past(self, owner: str, since_ms: int = 0) -> AsyncIterator[Entry]:
        """Those that ended since then, the latest end first."""
        if not self._days:
            return
        begin = max(since_ms, await self._first_ms())
        until = "+"
        for count in chain([READ_FIRST], repeat(READ_NEXT)):
            with broker_errors():
                found: Any = await self._redis.xrevrange(
                    keyspace.PAST + owner, max=until, min=begin, count=count
                )
            for entry in self._entries_of(found):
                yield entry
            if len(found) < count:
                return
            until = f"({found[-1][0]}"

    async def _ended_with(self, request_id: str, owner: str) -> list[Entry]:
        """The request's row, and those of the same millisecond."""
        if not self._days:
            return []
        first_ms = await self._first_ms()
        with broker_errors():
            at_ms = await self._redis.zscore(keyspace.PAST_TIMES + owner, request_id)
            if at_ms is None or at_ms < first_ms:
                return []
            at = int(at_ms)
            found: Any = await self._redis.xrange(keyspace.PAST + owner, min=at, max=at)
        return self._entries_of(found)

    async def _first_ms(self) -> int:
        """Ends before it are not served. A row's id begins with the time of the end, in ms."""
        now = await broker_time(self._redis)
        return max(0, int(now.timestamp()) * 1000 - self._days * _DAY_MS)

    def _entries_of(self, rows: Iterable[tuple[str, Mapping[str, str]]]) -> list[Entry]:
        return [entry for _, fields in rows if (entry := self._read(fields))]

    def _read(self, fields: Mapping[str, str]) -> Entry | None:
        """None for a row of another version that cannot be read: rows outlive releases."""
        try:
            entry = Entry.read(fields)
            if self._with_prompts:
                return entry
            return replace(entry, params_json=json.dumps(_without_prompts(entry.params)))
        except (KeyError, ValueError):
            return None


def _newest(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.created_at, reverse=True)


def _without_prompts(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name not in _PROMPTS}
