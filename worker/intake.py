"""The gateway's side of the job store: accept a request, and look at it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any, cast
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from models.params import GenerateParams
from worker import keyspace, scripts
from worker.batch import Batch
from worker.dispatch import rq_fields
from worker.errors import (
    BrokerUnavailableError,
    NoWorkerError,
    QueueFullError,
    RequestNotFoundError,
)
from worker.job import Job, Status


class Intake:
    """Every method raises BrokerUnavailableError when the broker does not answer."""

    def __init__(self, redis: Redis, *, most_waiting: int) -> None:
        self._batch = Batch(redis)
        self._most_waiting = most_waiting
        self._scripts = {name: scripts.source(name) for name in ("submit", "alive")}
        self._digests = {name: _digest(source) for name, source in self._scripts.items()}

    async def submit(
        self, params: GenerateParams, owner: str, *, needs_worker: bool = False
    ) -> str:
        """Accept a request: when this returns, it is in the broker and will be run.

        Args:
            params: with the seed drawn.
            owner: id of the API key.
            needs_worker: refuse when nobody is there to run it soon.

        Returns:
            The request's id, a UUID v4.

        Raises:
            QueueFullError: too many requests wait already.
            NoWorkerError: `needs_worker`, and none is alive.
        """
        request_id = str(uuid4())
        answer = await self._run(
            "submit",
            request_id,
            self._most_waiting,
            int(needs_worker),
            owner,
            params.model_dump_json(),
            *rq_fields(request_id),
        )
        match answer:
            case "queue_full":
                raise QueueFullError(
                    f"The queue is full: {self._most_waiting} requests wait already."
                )
            case "no_worker":
                raise NoWorkerError("No worker is alive to run this; start one, or submit to /v2.")
        return request_id

    async def find(self, request_id: str, owner: str) -> Job:
        """The request as it is now.

        Raises:
            RequestNotFoundError: never made, expired, or made with another key.
        """
        job = await self.find_signed(request_id)
        if job.owner != owner:
            raise RequestNotFoundError(request_id)
        return job

    async def find_signed(self, request_id: str) -> Job:
        """The same for somebody who has shown otherwise that he may see it.

        Raises:
            RequestNotFoundError: never made, or expired.
        """
        record, rank = await self._batch.execute(
            ("HGETALL", keyspace.record(request_id)), ("ZRANK", keyspace.WAITING, request_id)
        )
        if not record:
            raise RequestNotFoundError(request_id)
        return Job.from_record(request_id, record, position=None if rank is None else rank + 1)

    async def ended(self, request_ids: Collection[str]) -> set[str]:
        """Those of `request_ids` that are final, or gone."""
        statuses = await self._batch.execute(
            *(("HGET", keyspace.record(request_id), "status") for request_id in request_ids)
        )
        return {
            request_id
            for request_id, status in zip(request_ids, statuses, strict=True)
            if status is None or Status(status).is_final
        }

    async def live_workers(self) -> int:
        """How many workers have the model loaded and have beaten lately."""
        return cast(int, await self._run("alive", ""))

    async def _run(self, script: str, request_id: str, *args: str | bytes | int) -> Any:  # noqa: ANN401
        """Every script takes all keys, and the id before its own arguments."""
        keys = keyspace.for_scripts(request_id)
        rest = (len(keys), *keys, request_id, *args)
        try:
            return (await self._batch.execute(("EVALSHA", self._digests[script], *rest)))[0]
        except BrokerUnavailableError as error:
            if not isinstance(error.__cause__, NoScriptError):
                raise
        # A broker that has just started knows no scripts yet.
        return (await self._batch.execute(("EVAL", self._scripts[script], *rest)))[0]


def _digest(source: str) -> str:
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
