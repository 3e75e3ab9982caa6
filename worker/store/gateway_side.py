"""The gateway's side of the job store: submit, read, list, cancel, delete."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from models.request.params import RequestParams
from worker.broker.batching import Batch
from worker.broker.connection import broker_errors
from worker.broker.health import dangers_in
from worker.errors import (
    RequestNotFoundError,
)
from worker.job import CANCELLED, Cancellation, Job
from worker.store import keyspace, scripts
from worker.store.presence import LiveWorker, read_all
from worker.store.scripts import outcome, pairs
from worker.store.submits import Submits, cache_key_of, frames_key_of

MOST_LOOKED_AT, MOST_CHECKED = 100, 1000
"""Records that one script reads, in about a millisecond: all of each, or its status."""
_REFUSED_WITHOUT_MEMORY = "#!lua\nreturn 1"


@dataclass(frozen=True)
class Page:
    """Some of an owner's requests; `has_more` follow."""

    jobs: Sequence[Job]
    has_more: bool


class GatewayStore(Submits):
    """Every method raises BrokerUnavailableError when the broker does not answer."""

    def __init__(self, redis: Redis, *, most_waiting: int, retention_seconds: float) -> None:
        super().__init__(redis, most_waiting=most_waiting, retention_seconds=retention_seconds)
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
        self._cancels = Batch(self._cancel_all)
        self._presence = Batch(self._live_workers)

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

    async def forget_maker(self, request_id: str, params: RequestParams) -> None:
        """Let the result cache give its video to no more requests, as a file of it is gone."""
        with broker_errors():
            for key in filter(None, (cache_key_of(params), frames_key_of(params))):
                # One that another request becomes in between may be lost: it only costs a run.
                if await self._redis.get(keyspace.MAKERS + key) == request_id:
                    await self._redis.delete(keyspace.MAKERS + key)

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
